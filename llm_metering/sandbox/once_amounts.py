"""What an amount that is billed once comes to: as it is given, or a quantity of a unit or a price."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from .errors import invalid, missing_parameter
from .inline_prices import inline_price
from .money import EXACT, minor_units, plain
from .rating import charges
from .store import Doc
from .tariffs import rate
from .world import Call


def once_amounts(call: Call, given: dict[str, Any], currency: str) -> Doc:
    """The fields of an invoice item that say how much."""
    ways = [name for name in _WAYS if name in given]
    if not ways:
        raise missing_parameter("amount")
    if len(ways) > 1:
        raise invalid(f"You may only specify one of these parameters: {', '.join(ways)}.", ways[-1])
    if "quantity" in given and "quantity_decimal" in given:
        raise invalid("You may only specify one of these parameters: quantity, quantity_decimal.", "quantity")
    if "amount" in given:
        if "quantity" in given or "quantity_decimal" in given:
            raise invalid("A quantity goes with a price or a unit amount, not with an amount.", "quantity")
        return {"amount": given["amount"], "net_amount": given["amount"]}
    quantity = Decimal(given.get("quantity_decimal", given.get("quantity", 1)))
    if "price" in given or "price_data" in given:
        return _of_price(_price(call, given, currency), quantity)
    name = "unit_amount_decimal" if "unit_amount_decimal" in given else "unit_amount"
    unit = Decimal(given[name])
    amount = minor_units(EXACT.multiply(unit, quantity))
    return {**_fields(amount, quantity), "pricing": {"type": "price_details", **_unit(unit)}}


def _price(call: Call, given: dict[str, Any], currency: str) -> Doc:
    if "price_data" in given:
        price = inline_price(call, given["price_data"], "price_data")
    else:
        price = call.find("price", given["price"], "price")
        if not price["active"]:
            raise invalid("The price specified is inactive. This field only accepts active prices.", "price")
    if price["recurring"] is not None:
        raise invalid(
            "The price specified is set to `type=recurring` but this field only accepts prices with "
            "`type=one_time`.",
            "price",
        )
    if price["currency"] != currency:
        raise invalid(f"The price is in {price['currency']}; this is billed in {currency}.", "price")
    return price


def _of_price(price: Doc, quantity: Decimal) -> Doc:
    found = charges(rate(price), quantity)
    return {
        **_fields(sum(charge.amount for charge in found), quantity),
        "pricing": {
            "price_details": {"price": price["id"], "product": price["product"]},
            "type": "price_details",
            **_unit(found[0].unit),
        },
    }


def _fields(amount: int, quantity: Decimal) -> Doc:
    return {
        "amount": amount,
        "net_amount": amount,
        "quantity": int(quantity),
        "quantity_decimal": plain(quantity),
    }


def _unit(unit: Decimal) -> Doc:
    return {"unit_amount_decimal": plain(unit)}


_WAYS = ("amount", "price", "price_data", "unit_amount", "unit_amount_decimal")
