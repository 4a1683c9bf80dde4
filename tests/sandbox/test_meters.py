"""Billing meters and their event summaries."""

from __future__ import annotations

import pytest

METER = {"display_name": "Tokens", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}
HOUR = 1_768_478_400
DAY = HOUR - 12 * 3600


def test_a_meter_has_the_documented_defaults(api):
    meter = api.billing.meters.create(METER)
    assert meter.id.startswith("mtr_test_61")
    assert meter.customer_mapping.event_payload_key == "stripe_customer_id"
    assert meter.value_settings.event_payload_key == "value"
    assert meter.event_time_window is None
    assert meter.status == "active"
    assert meter.status_transitions.deactivated_at is None
    assert api.billing.meters.retrieve(meter.id).event_name == "tokens"


def test_there_is_one_meter_for_an_event_name(api, refused):
    api.billing.meters.create(METER)
    error = refused(api.billing.meters.create, METER)
    assert (error.http_status, error.json_body["error"]["type"]) == (400, "invalid_request_error")


def test_a_deactivated_meter_keeps_its_name_until_it_is_reactivated(api, refused):
    meter = api.billing.meters.create(METER)
    gone = api.billing.meters.deactivate(meter.id)
    assert gone.status == "inactive"
    assert gone.status_transitions.deactivated_at == gone.updated
    assert refused(api.billing.meters.create, METER).http_status == 400
    back = api.billing.meters.reactivate(meter.id)
    assert back.status == "active"
    assert back.status_transitions.deactivated_at is None


def test_deactivating_twice_is_refused(api, refused):
    meter = api.billing.meters.create(METER)
    api.billing.meters.deactivate(meter.id)
    assert refused(api.billing.meters.deactivate, meter.id).http_status == 400


def test_deactivating_twice_can_be_switched_to_pass(sandbox, api):
    sandbox.set_switches(deactivate_twice="accept")
    meter = api.billing.meters.create(METER)
    api.billing.meters.deactivate(meter.id)
    assert api.billing.meters.deactivate(meter.id).status == "inactive"


def test_only_the_display_name_of_a_meter_changes(api, refused):
    meter = api.billing.meters.create(METER)
    assert api.billing.meters.update(meter.id, {"display_name": "New"}).display_name == "New"
    assert refused(api.billing.meters.update, meter.id, {"event_name": "other"}).code == "parameter_unknown"


def test_meters_are_listed_by_status_and_not_by_event_name(api, refused):
    first = api.billing.meters.create(METER)
    second = api.billing.meters.create({**METER, "event_name": "other"})
    api.billing.meters.deactivate(first.id)
    assert [one.id for one in api.billing.meters.list({"status": "active"}).data] == [second.id]
    assert [one.id for one in api.billing.meters.list().data] == [second.id, first.id]
    assert refused(api.billing.meters.list, {"event_name": "tokens"}).code == "parameter_unknown"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"default_aggregation": {"formula": "max"}}, "default_aggregation[formula]"),
        ({"event_name": "e" * 101}, "event_name"),
        ({"display_name": "d" * 251}, "display_name"),
        ({"event_time_window": "week"}, "event_time_window"),
        ({"customer_mapping": {"event_payload_key": "k" * 101, "type": "by_id"}}, None),
        ({"value_settings": {"event_payload_key": ""}}, "value_settings[event_payload_key]"),
        ({"metadata": {"a": "b"}}, "metadata"),
    ],
)
def test_a_meter_that_cannot_be_is_refused(api, refused, change, param):
    error = refused(api.billing.meters.create, {**METER, **change})
    assert error.http_status == 400
    assert param in (None, error.param)


def test_an_inactive_meter_cannot_be_attached_to_a_price(shop, refused):
    shop.api.billing.meters.deactivate(shop.meter.id)
    assert refused(shop.metered, unit_amount=1).param == "recurring[meter]"


def summaries(shop, start, end, **options):
    given = {"customer": shop.customer.id, "start_time": start, "end_time": end, **options}
    return shop.api.billing.meters.event_summaries.list(shop.meter.id, given)


def test_a_summary_without_a_window_is_one_item_even_for_no_usage(shop):
    [nothing] = summaries(shop, HOUR - 60, HOUR).data
    assert nothing.aggregated_value == 0
    assert nothing.id.startswith("mtrusg_")
    shop.use(7, timestamp=HOUR - 30)
    shop.use("0.5", timestamp=HOUR - 60)
    shop.use(100, timestamp=HOUR)
    [used] = summaries(shop, HOUR - 60, HOUR).data
    assert (used.aggregated_value, used.start_time, used.end_time) == (7.5, HOUR - 60, HOUR)
    assert used.meter == shop.meter.id


def test_a_summary_of_nothing_can_be_switched_to_be_empty(shop, sandbox):
    sandbox.set_switches(empty_summary=False)
    assert summaries(shop, HOUR - 60, HOUR).data == []
    shop.use(0, timestamp=HOUR - 30)
    assert [one.aggregated_value for one in summaries(shop, HOUR - 60, HOUR).data] == [0]


def test_summaries_by_hour_are_newest_first_and_leave_empty_hours_out(shop):
    shop.use(1, timestamp=HOUR - 3 * 3600)
    shop.use(2, timestamp=HOUR - 1)
    found = summaries(shop, HOUR - 5 * 3600, HOUR, value_grouping_window="hour").data
    assert [(one.start_time, one.aggregated_value) for one in found] == [
        (HOUR - 3600, 2),
        (HOUR - 3 * 3600, 1),
    ]


def test_summaries_can_be_switched_to_show_empty_windows_oldest_first(sandbox, shop):
    sandbox.set_switches(empty_windows=True, summary_order="oldest_first")
    shop.use(2, timestamp=HOUR - 1)
    found = summaries(shop, HOUR - 3 * 3600, HOUR, value_grouping_window="hour").data
    assert [one.aggregated_value for one in found] == [0, 0, 2]


def test_a_month_of_days_needs_paging(shop):
    for day in range(31):
        shop.use(day + 1, timestamp=DAY - day * 86_400 + 5)
    page = summaries(shop, DAY - 30 * 86_400, DAY + 86_400, value_grouping_window="day")
    assert len(page.data) == 10
    assert page.has_more
    assert [one.aggregated_value for one in page.auto_paging_iter()] == list(range(1, 32))


@pytest.mark.parametrize(
    ("start", "end", "window"),
    [
        (HOUR + 1, HOUR + 60, None),
        (HOUR, HOUR + 61, None),
        (HOUR + 60, HOUR + 3600, "hour"),
        (HOUR, HOUR + 86_400, "day"),
        (HOUR, HOUR, None),
        (HOUR, HOUR - 60, None),
    ],
)
def test_misaligned_or_empty_ranges_are_refused(shop, refused, start, end, window):
    options = {} if window is None else {"value_grouping_window": window}
    assert refused(summaries, shop, start, end, **options).http_status == 400


def test_summaries_of_an_unknown_customer_are_refused(shop, refused):
    error = refused(summaries, shop, HOUR, HOUR + 60, customer="cus_x")
    assert (error.code, error.param) == ("resource_missing", "customer")


@pytest.mark.parametrize(("formula", "value"), [("sum", 10), ("count", 4), ("last", 3)])
def test_the_formula_says_how_events_add_up(shop, formula, value):
    api = shop.api
    meter = api.billing.meters.create(
        {**METER, "event_name": formula, "default_aggregation": {"formula": formula}}
    )
    for at, used in ((0, 1), (3, 3), (2, 4), (1, 2)):  # the latest use is not what came last
        payload = {"stripe_customer_id": shop.customer.id, "value": str(used)}
        api.billing.meter_events.create(
            {"event_name": formula, "payload": payload, "timestamp": HOUR - 100 + at}
        )
    given = {"customer": shop.customer.id, "start_time": HOUR - 120, "end_time": HOUR}
    [found] = api.billing.meters.event_summaries.list(meter.id, given).data
    assert found.aggregated_value == value


@pytest.mark.parametrize(("window", "value"), [("hour", 2 + 8), ("day", 8)])
def test_with_an_event_time_window_only_the_last_received_event_counts(shop, window, value):
    api = shop.api
    meter = api.billing.meters.create({**METER, "event_name": window, "event_time_window": window})
    for timestamp, used in (
        (DAY + 3600 + 50, 1),
        (DAY + 3600 + 10, 2),  # received later, so it counts, though it happened before
        (DAY + 7200, 4),
        (DAY + 7300, 8),
    ):
        payload = {"stripe_customer_id": shop.customer.id, "value": str(used)}
        api.billing.meter_events.create({"event_name": window, "payload": payload, "timestamp": timestamp})
    given = {"customer": shop.customer.id, "start_time": DAY, "end_time": DAY + 86_400}
    [found] = api.billing.meters.event_summaries.list(meter.id, given).data
    assert found.aggregated_value == value
