"""The bodies of the calls that create meters, products and prices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .account import KEY, MARK, MARK_VALUE
from .catalog import MeterSpec, ProductSpec
from .money import wire
from .prices import PriceSpec


def meter_params(meter: MeterSpec) -> dict[str, Any]:
    """The body of the call that creates a meter."""
    params: dict[str, Any] = {
        "display_name": meter.display_name,
        "event_name": meter.event_name,
        "default_aggregation": {"formula": meter.aggregation},
        "customer_mapping": {"type": "by_id", "event_payload_key": meter.customer_key},
    }
    if meter.aggregation != "count":
        params["value_settings"] = {"event_payload_key": meter.value_key}
    if meter.event_time_window is not None:
        params["event_time_window"] = meter.event_time_window
    return params


def product_params(product: ProductSpec) -> dict[str, Any]:
    """What a product is to say."""
    params: dict[str, Any] = {"name": product.name, "metadata": {MARK: MARK_VALUE}}
    if product.description is not None:
        params["description"] = product.description
    if product.unit_label is not None:
        params["unit_label"] = product.unit_label
    return params


def price_params(price: PriceSpec, meters: Mapping[str, str]) -> dict[str, Any]:
    """The body of the call that creates a price. `meters` gives the id of each event name's meter."""
    recurring: dict[str, Any] = {
        "interval": price.interval,
        "interval_count": price.interval_count,
        "usage_type": "metered" if price.metered else "licensed",
    }
    if price.meter is not None:
        recurring["meter"] = meters[price.meter]
    params: dict[str, Any] = {
        "product": price.product,
        "currency": price.currency,
        "recurring": recurring,
        "lookup_key": price.key,
        "metadata": {MARK: MARK_VALUE, KEY: price.key},
        **_amounts(price),
    }
    if price.nickname is not None:
        params["nickname"] = price.nickname
    return params


def _amounts(price: PriceSpec) -> dict[str, Any]:
    if price.tiers:
        tiers = [
            {
                "up_to": tier.up_to,
                **_decimal("unit_amount", price, tier.unit_amount),
                **_decimal("flat_amount", price, tier.flat_amount),
            }
            for tier in price.tiers
        ]
        return {"billing_scheme": "tiered", "tiers_mode": price.tiers_mode, "tiers": tiers}
    params: dict[str, Any] = {"billing_scheme": "per_unit", **_decimal("unit_amount", price, price.amount)}
    if price.package_size is not None:
        params["transform_quantity"] = {"divide_by": price.package_size, "round": price.package_round}
    return params


def _decimal(name: str, price: PriceSpec, amount: Any) -> dict[str, str]:
    minor = price.minor(amount)
    return {} if minor is None else {f"{name}_decimal": wire(minor)}
