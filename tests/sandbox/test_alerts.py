"""Usage alerts: an event once in a customer's life."""

from __future__ import annotations

import pytest

START = 1_768_478_400


@pytest.fixture
def alert(shop):
    def alert(gte=100, **threshold):
        threshold = {"meter": shop.meter.id, "gte": gte, "recurrence": "one_time", **threshold}
        return shop.api.billing.alerts.create(
            {"alert_type": "usage_threshold", "title": "Much", "usage_threshold": threshold}
        )

    return alert


def fired(shop):
    events = shop.api.events.list({"type": "billing.alert.triggered"}).data
    return [(event.data.object.customer, event.data.object.value) for event in events][::-1]


def test_an_alert_fires_when_the_threshold_is_reached(shop, alert):
    made = alert(100)
    shop.use(99)
    assert fired(shop) == []
    shop.use(1)
    assert fired(shop) == [(shop.customer.id, 100)]
    [event] = shop.api.events.list({"type": "billing.alert.triggered"}).data
    assert event.data.object.object == "billing.alert_triggered"
    assert event.data.object.alert.id == made.id


def test_an_alert_fires_once_in_a_customers_life(shop, alert, clock):
    alert(100)
    shop.use(1000)
    assert len(fired(shop)) == 1
    clock.time += 60 * 86_400
    shop.use(1000)
    assert len(fired(shop)) == 1


def test_each_customer_is_counted_by_itself(shop, alert):
    alert(100)
    other = shop.api.customers.create({})
    shop.use(60)
    shop.use(60, customer=other.id)
    assert fired(shop) == []
    shop.use(60, customer=other.id)
    assert fired(shop) == [(other.id, 120)]


def test_an_alert_can_be_for_one_customer(shop, alert):
    other = shop.api.customers.create({})
    alert(100, filters=[{"type": "customer", "customer": shop.customer.id}])
    shop.use(500, customer=other.id)
    shop.use(200)
    assert fired(shop) == [(shop.customer.id, 200)]


def test_only_usage_that_is_reported_after_the_alert_counts(shop, alert, clock):
    shop.use(1000)
    clock.time += 1
    alert(100)
    shop.use(50)
    assert fired(shop) == []
    shop.use(50, timestamp=START - 86_400)
    assert fired(shop) == [(shop.customer.id, 100)]


def test_an_inactive_alert_is_silent_until_it_is_activated(shop, alert):
    made = alert(100)
    assert shop.api.billing.alerts.deactivate(made.id).status == "inactive"
    shop.use(1000)
    assert fired(shop) == []
    assert shop.api.billing.alerts.activate(made.id).status == "active"
    shop.use(1)
    assert fired(shop) == [(shop.customer.id, 1001)]


def test_an_archived_alert_is_hidden_and_final(shop, alert, refused):
    made = alert()
    assert [one.id for one in shop.api.billing.alerts.list().data] == [made.id]
    assert shop.api.billing.alerts.archive(made.id).status == "archived"
    assert shop.api.billing.alerts.list().data == []
    assert refused(shop.api.billing.alerts.activate, made.id).http_status == 400


def test_a_meter_and_customer_have_at_most_25_alerts(shop, alert, refused):
    for _ in range(25):
        made = alert(filters=[{"type": "customer", "customer": shop.customer.id}])
    error = refused(alert, filters=[{"type": "customer", "customer": shop.customer.id}])
    assert error.http_status == 400
    shop.api.billing.alerts.archive(made.id)
    alert(filters=[{"type": "customer", "customer": shop.customer.id}])
    other = shop.api.customers.create({})
    alert(filters=[{"type": "customer", "customer": other.id}])


def test_alerts_do_not_work_with_test_clocks(shop, alert):
    clock = shop.api.test_helpers.test_clocks.create({"frozen_time": START})
    customer = shop.api.customers.create({"test_clock": clock.id})
    alert(100)
    shop.use(1000, customer=customer.id)
    assert fired(shop) == []


def test_a_thin_event_points_to_the_alert(sandbox, shop, alert, checked):
    made = alert(1)
    shop.use(1)
    shop.api.customers.list()
    [event] = sandbox.client(http_client=checked).v2.core.events.list().data
    assert event.type == "v1.billing.alert.triggered"
    assert event.related_object.id == made.id


@pytest.mark.parametrize(
    ("threshold", "param"),
    [
        ({"meter": "mtr_x"}, "usage_threshold[meter]"),
        ({"gte": 0}, "usage_threshold[gte]"),
        ({"recurrence": "monthly"}, "usage_threshold[recurrence]"),
        ({"filters": [{"type": "customer", "customer": "cus_x"}]}, None),
        ({"filters": [{"type": "customer", "customer": "a"}, {"type": "customer", "customer": "b"}]}, None),
    ],
)
def test_an_alert_that_cannot_be_is_refused(alert, refused, threshold, param):
    error = refused(alert, **threshold)
    assert error.http_status == 400
    assert param in (None, error.param)
