"""`price_data`: prices that are made in the call that needs them."""

from __future__ import annotations

from typing import Any

from .errors import invalid
from .events import emit
from .forms import Required, Table, hash_of, integer, text
from .prices import (
    AMOUNTS,
    CURRENCY,
    INTERVAL,
    TAX_BEHAVIOR,
    both_forms,
    one_amount,
    read_recurring,
    shown_price,
)
from .store import Doc
from .world import Call


def inline_price(call: Call, given: dict[str, Any], path: str) -> Doc:
    """The price that `price_data` asks for: made in the same call, and inactive, so that it is used once."""
    product = call.find("product", given["product"], f"{path}[product]")
    amount = one_amount(given, "unit_amount", path)
    if amount is None:
        raise invalid("You must specify one of unit_amount and unit_amount_decimal.", f"{path}[unit_amount]")
    recurring = None
    if "recurring" in given:
        recurring = read_recurring(call, {**given["recurring"], "usage_type": "licensed"})
    price = {
        "id": call.new_id("price_"),
        "object": "price",
        "active": False,
        "billing_scheme": "per_unit",
        "created": call.now,
        "currency": given["currency"],
        "custom_unit_amount": None,
        "livemode": call.account.livemode,
        "lookup_key": None,
        "metadata": {},
        "nickname": None,
        "product": product["id"],
        "recurring": recurring,
        "tax_behavior": given.get("tax_behavior", "unspecified"),
        "tiers_mode": None,
        "transform_quantity": None,
        "type": "one_time" if recurring is None else "recurring",
        **both_forms("unit_amount", amount),
    }
    call.store.insert(call.account, price, owner=product["id"])
    emit(call, "price.created", shown_price(price))
    return price


ONCE_DATA: Table = {
    **AMOUNTS,
    "currency": Required(CURRENCY),
    "product": Required(text()),
    "tax_behavior": TAX_BEHAVIOR,
}
"""The `price_data` of an amount that is billed once."""
RECURRING_DATA: Table = {
    **ONCE_DATA,
    "recurring": Required(hash_of({"interval": Required(INTERVAL), "interval_count": integer(1)})),
}
