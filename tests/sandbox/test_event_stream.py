"""v2 meter events, sessions and the stream."""

from __future__ import annotations

import pytest
import requests
import stripe


@pytest.fixture
def v2(sandbox, checked):
    """The official SDK's v2 services, their answers checked as well."""
    return sandbox.client(http_client=checked).v2


def event(shop, value="1", **changes):
    payload = {"stripe_customer_id": shop.customer.id, "value": value}
    return {"event_name": "hypernian_tokens", "payload": payload, **changes}


def test_an_event_is_answered_with_times_as_text(shop, v2):
    made = v2.billing.meter_events.create(
        event(shop, "25", identifier="id-1", timestamp="2026-01-15T11:59:59.500Z")
    )
    assert made.object == "v2.billing.meter_event"
    assert (made.created, made.timestamp) == ("2026-01-15T12:00:00.000Z", "2026-01-15T11:59:59.000Z")
    assert made.payload.to_dict() == {"stripe_customer_id": shop.customer.id, "value": "25"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-15T12:00:00Z", 0),
        ("2026-01-15T13:00:00+01:00", 0),
        ("2026-01-15T06:30:00.123456-05:30", 0),
        ("2026-01-15T12:04:59z", 299),
    ],
)
def test_times_are_read_with_any_offset(sandbox, shop, v2, text, seconds):
    made = v2.billing.meter_events.create(event(shop, timestamp=text))
    assert made.timestamp == f"2026-01-15T12:0{seconds // 60}:{seconds % 60:02d}.000Z"


def test_v2_events_are_counted_with_v1_events(sandbox, shop, v2):
    subscription = shop.subscribe(shop.price)
    shop.use(1000)
    v2.billing.meter_events.create(event(shop, "2000"))
    assert shop.preview(subscription).total == 120


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"event_name": "unknown"}, "no_meter"),
        ({"payload": {"value": "1"}}, "payload_no_customer_defined"),
        ({"payload": {"stripe_customer_id": "cus_1"}}, "payload_no_value_defined"),
        ({"payload": {"stripe_customer_id": "cus_1", "value": "abc"}}, "payload_invalid_value"),
        ({"timestamp": "2025-12-01T00:00:00Z"}, "timestamp_too_far_in_past"),
        ({"timestamp": "2026-01-15T12:05:01Z"}, "timestamp_in_future"),
        ({"timestamp": 1768478400}, "invalid_parameters"),
        ({"timestamp": "2026-13-45T99:00:00Z"}, "invalid_parameters"),
        ({"payload": {"stripe_customer_id": "cus_1", "value": 1}}, "invalid_parameters"),
        ({"identifier": "i" * 101}, "invalid_parameters"),
    ],
)
def test_problems_are_found_at_the_door_with_a_code_and_no_type(shop, v2, refused, changes, code):
    error = refused(v2.billing.meter_events.create, event(shop, **changes)).json_body["error"]
    assert error["code"] == code
    assert "type" not in error


def test_a_duplicate_and_an_archived_meter_have_codes(shop, v2, refused):
    v2.billing.meter_events.create(event(shop, identifier="one"))
    error = refused(v2.billing.meter_events.create, event(shop, identifier="one"))
    assert (error.http_status, error.json_body["error"]["code"]) == (400, "duplicate_meter_event")
    shop.api.billing.meters.deactivate(shop.meter.id)
    error = refused(v2.billing.meter_events.create, event(shop))
    assert error.json_body["error"]["code"] == "archived_meter"


def test_v1_and_v2_share_identifiers(shop, v2, refused):
    shop.use(1, identifier="one")
    error = refused(v2.billing.meter_events.create, event(shop, identifier="one"))
    assert error.json_body["error"]["code"] == "duplicate_meter_event"


def test_an_unknown_customer_is_found_later(sandbox, shop, v2):
    v2.billing.meter_events.create(event(shop, payload={"stripe_customer_id": "cus_unknown", "value": "1"}))
    sandbox.settle()
    assert [(row.events, row.refused) for row in sandbox.books()] == [(0, 1)]


@pytest.mark.parametrize(
    ("switch", "value"), [("v2_refuses_decimals", "1.5"), ("v2_refuses_negatives", "-1")]
)
def test_decimals_and_negatives_pass_unless_switched_off(sandbox, shop, v2, refused, switch, value):
    v2.billing.meter_events.create(event(shop, value))
    sandbox.set_switches(**{switch: True})
    error = refused(v2.billing.meter_events.create, event(shop, value))
    assert error.json_body["error"]["code"] == "payload_invalid_value"


def test_a_failed_v2_request_is_carried_out_again_under_the_same_key(shop, v2, refused):
    key = {"idempotency_key": "k"}
    bad = event(shop, event_name="later")
    refused(v2.billing.meter_events.create, bad, key)
    shop.api.billing.meters.create(
        {"display_name": "L", "event_name": "later", "default_aggregation": {"formula": "sum"}}
    )
    assert v2.billing.meter_events.create(bad, key).event_name == "later"


def test_a_v2_answer_is_replayed_for_30_days(shop, v2, clock, sandbox):
    key = {"idempotency_key": "k"}
    first = v2.billing.meter_events.create(event(shop), key)
    clock.time += 29 * 86_400
    assert v2.billing.meter_events.create(event(shop), key).identifier == first.identifier
    assert sandbox.books().events() == 1


def test_how_long_v2_remembers_a_key_can_be_switched(shop, v2, clock, sandbox, refused):
    sandbox.set_switches(v2_idempotency_s=60)
    key = {"idempotency_key": "k"}
    first = v2.billing.meter_events.create(event(shop, identifier="once"), key)
    clock.time += 61
    error = refused(v2.billing.meter_events.create, event(shop, identifier="once"), key)
    assert (first.identifier, error.code) == ("once", "duplicate_meter_event")


def test_an_event_is_cancelled_by_v2(sandbox, shop, v2, refused):
    shop.use(5, identifier="wrong")
    done = v2.billing.meter_event_adjustments.create(
        {"event_name": "hypernian_tokens", "type": "cancel", "cancel": {"identifier": "wrong"}}
    )
    assert (done.status, done.cancel.identifier) == ("complete", "wrong")
    assert done.id
    assert sandbox.books().total() == 0


def test_a_session_lives_15_minutes(sandbox, shop, v2, clock, refused):
    session = v2.billing.meter_event_session.create()
    assert session.expires_at == "2026-01-15T12:15:00.000Z"
    options = {"api_key": session.authentication_token}
    v2.billing.meter_event_stream.create({"events": [event(shop)]}, options)
    clock.time += 15 * 60 - 1
    v2.billing.meter_event_stream.create({"events": [event(shop)]}, options)
    clock.time += 1
    error = refused(v2.billing.meter_event_stream.create, {"events": [event(shop)]}, options)
    assert isinstance(error, stripe.TemporarySessionExpiredError)
    assert error.http_status == 401
    assert error.json_body["error"]["code"] == "billing_meter_event_session_expired"
    assert sandbox.books().events() == 2


@pytest.fixture
def send(v2):
    def send(*events):
        session = v2.billing.meter_event_session.create()
        return v2.billing.meter_event_stream.create(
            {"events": list(events)}, {"api_key": session.authentication_token}
        )

    return send


def test_the_stream_takes_100_events_and_answers_nothing(sandbox, shop, v2, send):
    send(*(event(shop, str(n), identifier=str(n)) for n in range(100)))
    assert sandbox.books().total() == 4950
    token = v2.billing.meter_event_session.create().authentication_token
    answer = requests.post(
        f"{sandbox.url}/v2/billing/meter_event_stream",
        json={"events": [event(shop)]},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert (answer.status_code, answer.content) == (200, b"{}")


@pytest.mark.parametrize("count", [0, 101])
def test_the_stream_takes_1_to_100_events(sandbox, shop, send, refused, count):
    assert refused(send, *[event(shop)] * count).http_status == 400
    assert list(sandbox.books()) == []


def test_a_bad_event_does_not_fail_its_neighbours(sandbox, shop, send):
    send(
        event(shop, "5"),
        event(shop, "abc"),
        event(shop, event_name="unknown"),
        event(shop, timestamp="2025-01-01T00:00:00Z"),
        event(shop, timestamp="2026-01-15T13:00:00Z"),
        event(shop, payload={"value": "1"}),
        event(shop, "7"),
    )
    sandbox.settle()
    assert sandbox.books().total(event_name="hypernian_tokens") == 12
    assert sum(row.refused for row in sandbox.books()) == 5


def test_a_malformed_event_fails_the_whole_call(sandbox, shop, send, refused):
    error = refused(send, event(shop), {"event_name": "hypernian_tokens", "payload": {"value": 1}})
    assert error.http_status == 400
    assert list(sandbox.books()) == []


def test_a_repeated_identifier_in_the_stream_is_counted_once(sandbox, shop, send):
    send(event(shop, "5", identifier="one"), event(shop, "5", identifier="one"))
    send(event(shop, "5", identifier="one"))
    [row] = sandbox.books()
    assert (row.value, row.events, row.duplicates) == (5, 1, 2)


def test_the_stream_finds_an_archived_meter_later(sandbox, shop, send):
    shop.api.billing.meters.deactivate(shop.meter.id)
    send(event(shop))
    sandbox.settle()
    assert [(row.events, row.refused) for row in sandbox.books()] == [(0, 1)]


@pytest.mark.parametrize("token", ["sk_test_sandbox", "mestk_1_unknown", "mestk_x_y", "nonsense"])
def test_the_stream_takes_nothing_but_a_sessions_token(sandbox, shop, v2, refused, token):
    error = refused(v2.billing.meter_event_stream.create, {"events": [event(shop)]}, {"api_key": token})
    assert error.http_status == 401


def test_a_session_belongs_to_its_account(sandbox, shop):
    other = sandbox.client("sk_test_other")
    token = other.v2.billing.meter_event_session.create().authentication_token
    other.v2.billing.meter_event_stream.create({"events": [event(shop)]}, {"api_key": token})
    [row] = sandbox.books()
    own = requests.get(
        f"{sandbox.url}/v1/account", headers={"Authorization": f"Bearer {sandbox.api_key}"}
    ).json()
    assert row.account != own["id"]
    sandbox.settle()
    assert sandbox.books().total() == 0  # that account has no such meter


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"a":' * 100_000, b'{"x": "\\ud800"}', b"\xff"])
def test_a_body_that_is_not_json_gets_400(sandbox, body):
    answer = requests.post(
        f"{sandbox.url}/v2/billing/meter_events",
        data=body,
        headers={"Authorization": "Bearer sk_test_sandbox"},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"]
