"""Rate limits, where they are switched on."""

from __future__ import annotations

import pytest
import requests
import stripe
from llm_metering.sandbox.limits import Limits
from llm_metering.sandbox.store import Account


@pytest.fixture
def limited(sandbox):
    sandbox.set_switches(rate_limits=True)
    return sandbox


def get(sandbox, path, key="sk_test_a"):
    return requests.get(f"{sandbox.url}{path}", headers={"Authorization": f"Bearer {key}"})


def statuses(sandbox, count, path="/v1/customers", key="sk_test_a"):
    return [get(sandbox, path, key).status_code for _ in range(count)]


def test_there_are_no_limits_unless_they_are_switched_on(sandbox):
    assert statuses(sandbox, 30) == [200] * 30


def test_test_mode_allows_25_requests_a_second(limited, clock):
    assert statuses(limited, 27) == [200] * 25 + [429] * 2
    clock.time += 1
    assert statuses(limited, 1) == [200]


def test_the_refusal_says_which_limit_it_was(limited, refused):
    statuses(limited, 25)
    refusal = get(limited, "/v1/products")
    assert refusal.headers["Stripe-Rate-Limited-Reason"] == "global-rate"
    assert refusal.json()["error"]["code"] == "rate_limit"
    assert isinstance(refused(limited.client("sk_test_a").v1.prices.list), stripe.RateLimitError)


def test_live_mode_allows_100_a_second_and_25_an_endpoint(limited):
    assert statuses(limited, 26, key="sk_live_a") == [200] * 25 + [429]
    assert get(limited, "/v1/customers", "sk_live_a").headers["Stripe-Rate-Limited-Reason"] == "endpoint-rate"
    for path in ("/v1/products", "/v1/prices", "/v1/subscriptions"):
        assert statuses(limited, 25, path, "sk_live_a") == [200] * 25
    assert statuses(limited, 1, "/v1/invoices", "sk_live_a") == [429]


def test_live_meter_events_have_a_limit_of_their_own(limited):
    key = {"Authorization": "Bearer sk_live_a"}
    meter = {"display_name": "T", "event_name": "tokens", "default_aggregation[formula]": "sum"}
    requests.post(f"{limited.url}/v1/billing/meters", data=meter, headers=key).raise_for_status()
    with requests.Session() as session:
        session.headers.update(key)
        event = {"event_name": "tokens", "payload[stripe_customer_id]": "c", "payload[value]": "1"}
        for _ in range(150):
            session.post(f"{limited.url}/v1/billing/meter_events", data=event).raise_for_status()
    assert limited.books().events() == 150


@pytest.mark.parametrize(
    ("path", "requests_of", "allowed"),
    [
        ("/v1/billing/meter_events", 1, 1_000),
        ("/v2/billing/meter_events", 1, 1_000),
        ("/v2/billing/meter_event_stream", 100, 100),
    ],
)
def test_live_meter_events_are_limited_by_the_second_the_stream_by_its_events(path, requests_of, allowed):
    limits, account = Limits(), Account(1, "acct_1", True)
    found = [limits.check(account, f"POST {path}", requests_of, 5.5) for _ in range(allowed + 1)]
    assert [refusal is None for refusal in found] == [True] * allowed + [False]
    assert found[-1].headers["Stripe-Rate-Limited-Reason"] == "endpoint-rate"
    assert limits.check(account, f"POST {path}", requests_of, 6.0) is None


def test_accounts_do_not_share_a_limit(limited):
    statuses(limited, 25)
    assert statuses(limited, 1, key="sk_test_b") == [200]


def test_a_request_that_was_limited_leaves_its_idempotency_key_free(limited, clock):
    statuses(limited, 25)
    headers = {"Authorization": "Bearer sk_test_a", "Idempotency-Key": "k"}
    assert requests.post(f"{limited.url}/v1/customers", headers=headers).status_code == 429
    clock.time += 1
    assert requests.post(f"{limited.url}/v1/customers", headers=headers).status_code == 200
