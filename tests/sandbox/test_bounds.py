"""Lengths, counts and ranges that Stripe names: what is just allowed passes, one more is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

METERED = {"scope": {"price_type": "metered"}}


def price(shop: Any, **given: Any) -> Any:
    return shop.api.prices.create(
        {"currency": "usd", "unit_amount": 1, "product_data": {"name": "x"}, **given}
    )


def grant(shop: Any, **given: Any) -> Any:
    amount = {"type": "monetary", "monetary": {"currency": "usd", "value": 100}}
    given = {"applicability_config": METERED, **given}
    return shop.api.billing.credit_grants.create({"customer": shop.customer.id, "amount": amount, **given})


def alert(shop: Any, title: str = "Much", gte: int = 1, filters: int = 0) -> Any:
    one = {"type": "customer", "customer": shop.customer.id}
    threshold = {"meter": shop.meter.id, "gte": gte, "recurrence": "one_time", "filters": [one] * filters}
    given = {"alert_type": "usage_threshold", "title": title, "usage_threshold": threshold}
    return shop.api.billing.alerts.create(given)


def meter(shop: Any, name: str = "x", event_name: str = "y") -> Any:
    formula = {"formula": "sum"}
    given = {"display_name": name, "event_name": event_name, "default_aggregation": formula}
    return shop.api.billing.meters.create(given)


def scope(shop: Any, count: int) -> dict[str, Any]:
    return {"scope": {"prices": [{"id": shop.price.id}] * count}}


BOUNDS: dict[str, tuple[Callable[[Any, int], Any], int, int]] = {
    "length of a lookup key": (lambda shop, n: price(shop, lookup_key="k" * n), 200, 201),
    "lookup keys a list": (lambda shop, n: shop.api.prices.list({"lookup_keys": ["k"] * n}), 10, 11),
    "prices of a credit": (lambda shop, n: grant(shop, applicability_config=scope(shop, n)), 20, 21),
    "length of a credit's name": (lambda shop, n: grant(shop, name="n" * n), 100, 101),
    "highest priority": (lambda shop, n: grant(shop, priority=n), 100, 101),
    "lowest priority": (lambda shop, n: grant(shop, priority=n), 0, -1),
    "smallest credit": (
        lambda shop, n: shop.api.billing.credit_grants.create(
            {
                "customer": shop.customer.id,
                "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": n}},
                "applicability_config": METERED,
            }
        ),
        1,
        0,
    ),
    "length of an alert's title": (lambda shop, n: alert(shop, title="t" * n), 256, 257),
    "lowest threshold": (lambda shop, n: alert(shop, gte=n), 1, 0),
    "filters of an alert": (lambda shop, n: alert(shop, filters=n), 1, 2),
    "length of a meter's name": (lambda shop, n: meter(shop, name="n" * n), 250, 251),
    "length of an event name": (lambda shop, n: meter(shop, event_name="n" * n), 100, 101),
    "length of an identifier": (lambda shop, n: shop.use(1, identifier="i" * n), 100, 101),
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_what_is_just_allowed_passes_and_one_more_is_refused(shop: Any, refused: Any, bound: str) -> None:
    call, allowed, beyond = BOUNDS[bound]
    assert call(shop, allowed) is not None
    assert refused(call, shop, beyond).http_status == 400
