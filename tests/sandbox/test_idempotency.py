"""Idempotency keys: replay, mismatch, life, and what they do not remember."""

from __future__ import annotations

import threading
import time

import pytest
import stripe


def key(name="k"):
    return {"idempotency_key": name}


def test_the_same_key_replays_the_first_answer(api):
    first = api.customers.create({"name": "a"}, key())
    second = api.customers.create({"name": "a"}, key())
    assert first.id == second.id
    assert len(api.customers.list().data) == 1
    assert second.last_response.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.last_response.headers


def test_the_same_key_with_other_parameters_is_an_error(api, refused):
    api.customers.create({"name": "a"}, key())
    error = refused(api.customers.create, {"name": "b"}, key())
    assert isinstance(error, stripe.IdempotencyError)
    assert error.http_status == 400


def test_the_same_parameters_in_another_order_are_the_same_request(api):
    first = api.customers.create({"name": "a", "email": "a@b.c"}, key())
    assert api.customers.create({"email": "a@b.c", "name": "a"}, key()).id == first.id


def test_the_same_key_at_another_endpoint_is_an_error(api, refused):
    api.customers.create({"name": "a"}, key())
    error = refused(api.products.create, {"name": "a"}, key())
    assert isinstance(error, stripe.IdempotencyError)
    assert "'/v1/customers' vs '/v1/products'" in error.user_message


def test_a_key_is_free_again_after_24_hours(api, clock):
    first = api.customers.create({"name": "a"}, key())
    clock.time += 86_400 - 1
    assert api.customers.create({"name": "a"}, key()).id == first.id
    clock.time += 1
    assert api.customers.create({"name": "a"}, key()).id != first.id


def test_keys_are_kept_apart_by_account(sandbox):
    ids = {
        sandbox.client(name).v1.customers.create({"name": "a"}, key()).id
        for name in ("sk_test_a", "sk_test_b", "sk_live_a")
    }
    assert len(ids) == 3


def test_a_refusal_by_the_endpoint_is_remembered(shop, refused):
    event = {
        "event_name": "hypernian_tokens",
        "payload": {"stripe_customer_id": shop.customer.id, "value": "1"},
        "identifier": "same",
    }
    shop.api.billing.meter_events.create(event)
    create = shop.api.billing.meter_events.create
    first = refused(create, event, key("second"))
    again = refused(create, event, key("second"))
    assert again.headers["Idempotent-Replayed"] == "true"
    assert first.user_message == again.user_message


def test_a_request_that_fails_validation_leaves_the_key_free(api, refused):
    refused(api.customers.create, {"nmae": "a"}, key())
    assert api.customers.create({"name": "a"}, key()).name == "a"


def test_a_500_that_came_after_the_work_is_remembered(sandbox, api, refused):
    sandbox.fault("500_after", path="/v1/customers")
    assert refused(api.customers.create, {"name": "a"}, key()).http_status == 500
    replayed = refused(api.customers.create, {"name": "a"}, key())
    assert replayed.http_status == 500
    assert replayed.headers["Idempotent-Replayed"] == "true"
    assert len(api.customers.list().data) == 1


def test_a_retry_of_the_same_event_under_the_same_key_replays_and_counts_once(sandbox, shop):
    for _ in range(2):
        event = shop.api.billing.meter_events.create(
            {
                "event_name": "hypernian_tokens",
                "payload": {"stripe_customer_id": shop.customer.id, "value": "5"},
                "identifier": "one",
            },
            key("one"),
        )
        assert event.identifier == "one"
    assert sandbox.books().total() == 5


@pytest.mark.parametrize("kind", ["idempotency_error", "invalid_request_error"])
def test_a_key_that_is_still_running_gets_409(sandbox, api, refused, kind):
    sandbox.set_switches(idempotency_clash_type=kind)
    sandbox.fault("slow", path="/v1/customers", seconds=1.5)
    slow = threading.Thread(target=sandbox.client().v1.customers.create, args=({"name": "a"}, key()))
    slow.start()
    while not sandbox.app.under_way:
        time.sleep(0.001)
    error = refused(api.customers.create, {"name": "a"}, key())
    slow.join()
    assert error.http_status == 409
    assert error.json_body["error"]["type"] == kind
    assert len(api.customers.list().data) == 1
    assert api.customers.create({"name": "a"}, key()).name == "a"


def test_a_key_of_more_than_255_characters_is_refused(api, refused):
    assert refused(api.customers.create, {}, key("k" * 256)).http_status == 400
    assert api.customers.create({}, key("k" * 255)).id
