"""v1 meter events: identifiers, timestamps, values, delays, adjustments."""

from __future__ import annotations

from decimal import Decimal

import pytest
import stripe

DAY = 86_400
START = 1_768_478_400


def test_an_event_is_answered_as_it_was_sent(shop):
    event = shop.use(25, payload={"model": "gpt-5", "token_type": "input"}, identifier="id-1")
    assert event.object == "billing.meter_event"
    assert event.identifier == "id-1"
    assert event.timestamp == event.created == START
    assert event.payload.to_dict() == {
        "stripe_customer_id": shop.customer.id,
        "value": "25",
        "model": "gpt-5",
        "token_type": "input",
    }
    assert "id" not in event


def test_stripe_makes_an_identifier_where_none_is_given(shop):
    assert shop.use(1).identifier != shop.use(1).identifier


def test_an_identifier_is_refused_a_second_time_without_a_code(shop, sandbox, refused):
    shop.use(1, identifier="same")
    error = refused(shop.use, 1, identifier="same")
    assert isinstance(error, stripe.InvalidRequestError)
    assert error.http_status == 400
    assert error.code is None
    assert error.user_message == "An event already exists with identifier same."
    assert error.headers["Stripe-Should-Retry"] == "false"
    assert sandbox.books().total() == 1


def test_an_identifier_is_never_free_before_24_hours(shop, clock, refused):
    shop.use(1, identifier="same")
    clock.time += DAY - 1
    refused(shop.use, 1, identifier="same")
    clock.time += 2
    shop.use(1, identifier="same")


def test_the_identifier_window_can_be_longer(sandbox, shop, clock, refused):
    sandbox.set_switches(identifier_window_s=35 * DAY)
    shop.use(1, identifier="same")
    clock.time += 34 * DAY
    refused(shop.use, 1, identifier="same")


def test_identifiers_are_unique_in_the_account_whatever_the_event_name_and_customer(shop, refused):
    other = shop.api.customers.create({})
    shop.use(1, identifier="same")
    refused(shop.use, 1, customer=other.id, identifier="same")


def test_identifiers_can_be_scoped_to_the_customer(sandbox, shop, refused):
    sandbox.set_switches(identifier_scope="customer")
    other = shop.api.customers.create({})
    shop.use(1, identifier="same")
    shop.use(1, customer=other.id, identifier="same")
    refused(shop.use, 1, customer=other.id, identifier="same")


def test_identifiers_can_be_scoped_to_the_event_name(sandbox, shop, refused):
    sandbox.set_switches(identifier_scope="event_name")
    shop.api.billing.meters.create(
        {"display_name": "Other", "event_name": "other", "default_aggregation": {"formula": "count"}}
    )
    event = {"payload": {"stripe_customer_id": shop.customer.id}, "identifier": "same"}
    shop.use(1, identifier="same")
    shop.api.billing.meter_events.create({**event, "event_name": "other"})
    refused(shop.api.billing.meter_events.create, {**event, "event_name": "other"})


def test_an_event_name_without_a_meter_is_refused(shop, refused):
    error = refused(
        shop.api.billing.meter_events.create,
        {"event_name": "unknown", "payload": {"stripe_customer_id": shop.customer.id, "value": "1"}},
    )
    assert error.http_status == 400
    assert error.user_message == 'No active meter found for event name "unknown".'


def test_a_deactivated_meter_takes_no_events(shop, refused):
    shop.api.billing.meters.deactivate(shop.meter.id)
    error = refused(shop.use, 1)
    assert error.user_message == 'No active meter found for event name "hypernian_tokens".'


def test_a_deactivated_meter_can_be_switched_to_say_archived(sandbox, shop, refused):
    sandbox.set_switches(deactivated_meter="archived_meter")
    shop.api.billing.meters.deactivate(shop.meter.id)
    assert refused(shop.use, 1).code == "archived_meter"


def test_a_timestamp_of_35_days_ago_is_the_oldest(shop, refused):
    shop.use(1, timestamp=START - 35 * DAY)
    error = refused(shop.use, 1, timestamp=START - 35 * DAY - 1)
    assert error.http_status == 400
    assert error.user_message == (
        "The event timestamp cannot be more than 35 days in past. Expected a timestamp greater than or equal "
        f"to {START - 35 * DAY}."
    )


def test_a_timestamp_may_be_5_minutes_ahead(shop, refused):
    shop.use(1, timestamp=START + 300)
    error = refused(shop.use, 1, timestamp=START + 301)
    assert error.user_message == "The event timestamp cannot be in future."


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"event_name": "e" * 101}, "event_name"),
        ({"identifier": "i" * 101}, "identifier"),
        ({"timestamp": "soon"}, "timestamp"),
        ({"payload": ""}, "payload"),
        ({"payload": {"k" * 101: "v"}}, None),
        ({"identifer": "typo"}, "identifer"),
    ],
)
def test_an_event_that_cannot_be_read_is_refused(shop, refused, change, param):
    event = {"event_name": "hypernian_tokens", "payload": {"value": "1"}}
    error = refused(shop.api.billing.meter_events.create, {**event, **change})
    assert error.http_status == 400
    assert param in (None, error.param)


@pytest.mark.parametrize("missing", ["event_name", "payload"])
def test_event_name_and_payload_are_required(shop, refused, missing):
    event = {"event_name": "hypernian_tokens", "payload": {"value": "1"}}
    del event[missing]
    error = refused(shop.api.billing.meter_events.create, event)
    assert (error.code, error.param) == ("parameter_missing", missing)


def test_an_identifier_of_100_characters_is_fine(shop):
    assert shop.use(1, identifier="i" * 100).identifier == "i" * 100


@pytest.mark.parametrize("value", ["0.000000000001", "-5", "123456789012345.123456789012", "007"])
def test_decimals_and_negatives_are_counted(sandbox, shop, value):
    shop.use(value)
    sandbox.settle()
    [row] = sandbox.books()
    assert (row.value, row.events, row.refused) == (Decimal(value), 1, 0)


BAD_VALUES = ["", "abc", "1e-05", "NaN", "1,000", " 1", "+1", "1234567890123456", "0.1234567890123"]


@pytest.mark.parametrize("value", BAD_VALUES)
def test_a_value_that_is_no_number_is_accepted_and_found_later(sandbox, shop, value):
    shop.use(value)
    sandbox.settle()
    [row] = sandbox.books()
    assert (row.value, row.events, row.refused) == (0, 0, 1)
    assert shop.preview(shop.subscribe(shop.price)).total == 0


@pytest.mark.parametrize(("value", "counted"), [("1e-05", "0.00001"), ("2.5E+3", "2500"), ("-1e2", "-100")])
def test_values_with_exponents_can_be_switched_to_count(sandbox, shop, value, counted):
    sandbox.set_switches(exponent_values=True)
    shop.use(value)
    shop.use("1e-99")
    sandbox.settle()
    [row] = sandbox.books()
    assert (row.value, row.events, row.refused) == (Decimal(counted), 1, 1)


@pytest.mark.parametrize("value", BAD_VALUES)
def test_strict_v1_refuses_a_value_that_is_no_number_at_once(sandbox, shop, refused, value):
    sandbox.set_switches(strict_v1=True)
    error = refused(shop.use, value)
    assert (error.http_status, error.code) == (400, "payload_invalid_value")
    assert list(sandbox.books()) == []


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"value": "1"}, "payload_no_customer_defined"),
        ({"stripe_customer_id": "cus_unknown", "value": "1"}, "meter_event_customer_not_found"),
        ({"stripe_customer_id": "{customer}"}, "payload_no_value_defined"),
    ],
)
def test_payload_problems_are_found_later_or_at_once_under_strict_v1(sandbox, shop, refused, payload, code):
    payload = {name: value.format(customer=shop.customer.id) for name, value in payload.items()}
    event = {"event_name": "hypernian_tokens", "payload": payload}
    shop.api.billing.meter_events.create(event)
    sandbox.settle()
    [row] = sandbox.books()
    assert (row.events, row.refused) == (0, 1)
    sandbox.set_switches(strict_v1=True)
    assert refused(shop.api.billing.meter_events.create, event).code == code


def test_usage_of_a_deleted_customer_is_not_counted(sandbox, shop):
    shop.api.customers.delete(shop.customer.id)
    shop.use(5)
    sandbox.settle()
    [row] = sandbox.books()
    assert (row.value, row.refused, row.refused_value) == (0, 1, 5)


def test_count_meters_ignore_the_value(sandbox, shop):
    meter = shop.api.billing.meters.create(
        {"display_name": "Calls", "event_name": "calls", "default_aggregation": {"formula": "count"}}
    )
    for payload in ({}, {"value": "abc"}, {"value": "12"}):
        shop.api.billing.meter_events.create(
            {"event_name": "calls", "payload": {"stripe_customer_id": shop.customer.id, **payload}}
        )
    given = {"customer": shop.customer.id, "start_time": START - 60, "end_time": START + 60}
    [found] = shop.api.billing.meters.event_summaries.list(meter.id, given).data
    assert found.aggregated_value == 3


def test_dimensions_are_kept_apart_in_the_books(sandbox, shop):
    for model, kind, used in (("a", "input", 1), ("a", "output", 2), ("b", "input", 4), ("a", "input", 8)):
        shop.use(used, payload={"model": model, "token_type": kind})
    books = sandbox.books()
    assert books.total(model="a", token_type="input") == 9
    assert books.total(model="a") == 11
    assert books.total(customer=shop.customer.id) == 15
    assert books.events(model="a") == 3


def test_dimensions_can_be_limited(sandbox, shop):
    sandbox.set_switches(dimension_keys=1)
    shop.use(1, payload={"model": "a"})
    shop.use(1, payload={"model": "a", "region": "eu"})
    sandbox.settle()
    assert [(row.events, row.refused) for row in sandbox.books()] == [(1, 0), (0, 1)]


def test_usage_shows_after_its_delay_or_when_settled(sandbox, shop, clock):
    sandbox.set_switches(aggregation_delay_s=54)
    subscription = shop.subscribe(shop.price)
    shop.use(3000)
    assert shop.preview(subscription).total == 0
    assert [row.waiting for row in sandbox.books()] == [1]
    clock.time += 53
    assert shop.preview(subscription).total == 0
    clock.time += 1
    assert shop.preview(subscription).total == 120
    shop.use(100)
    assert shop.preview(subscription).total == 120
    assert sandbox.settle() == 1
    assert shop.preview(subscription).total == 124


def adjust(shop, identifier, **changes):
    given = {"event_name": "hypernian_tokens", "type": "cancel", "cancel": {"identifier": identifier}}
    return shop.api.billing.meter_event_adjustments.create({**given, **changes})


def test_an_event_of_the_last_24_hours_can_be_cancelled(sandbox, shop, clock):
    subscription = shop.subscribe(shop.price)
    shop.use(3000, identifier="wrong")
    shop.use(100, identifier="right")
    clock.time += DAY - 1
    done = adjust(shop, "wrong")
    assert (done.status, done.type, done.cancel.identifier) == ("complete", "cancel", "wrong")
    assert shop.preview(subscription).total == 4
    assert [(row.value, row.cancelled) for row in sandbox.books()] == [(100, 1)]


def test_a_cancelled_event_keeps_its_identifier(shop, refused):
    shop.use(1, identifier="same")
    adjust(shop, "same")
    refused(shop.use, 1, identifier="same")


def test_an_event_that_waits_is_cancelled_while_pending(sandbox, shop):
    sandbox.set_switches(aggregation_delay_s=54)
    shop.use(1, identifier="early")
    assert adjust(shop, "early").status == "pending"
    sandbox.settle()
    assert sandbox.books().total() == 0


def test_the_24_hours_count_from_receipt_not_from_the_timestamp(shop, clock, refused):
    shop.use(1, identifier="old", timestamp=START - 30 * DAY)
    adjust(shop, "old")
    shop.use(1, identifier="late", timestamp=START)
    clock.time += DAY + 1
    assert refused(adjust, shop, "late").http_status == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"cancel": {"identifier": "unknown"}},
        {"cancel": {}},
        {"event_name": "other"},
        {"type": "undo"},
    ],
)
def test_an_adjustment_of_nothing_is_refused(shop, refused, changes):
    shop.use(1, identifier="one")
    assert refused(adjust, shop, "one", **changes).http_status == 400


def test_an_event_is_cancelled_only_once(shop, refused):
    shop.use(1, identifier="one")
    adjust(shop, "one")
    assert refused(adjust, shop, "one").http_status == 400


def test_a_retry_of_an_old_event_still_learns_that_it_arrived(sandbox, shop, clock, refused):
    sandbox.set_switches(identifier_window_s=60 * DAY)
    shop.use(1, identifier="same", timestamp=START)
    clock.time += 40 * DAY
    assert "already exists" in refused(shop.use, 1, identifier="same", timestamp=START).user_message
    shop.api.billing.meters.deactivate(shop.meter.id)
    assert "already exists" in refused(shop.use, 1, identifier="same", timestamp=START).user_message
