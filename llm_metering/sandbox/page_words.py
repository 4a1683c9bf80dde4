"""Amounts, times and prices as the pages say them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from typing import Any

from .money import EXACT, ZERO_DECIMAL, plain, shown
from .store import Doc


def money(minor: Any, currency: str) -> str:
    """An amount in minor units: "$1.20", "-$0.05"."""
    amount = Decimal(str(minor or 0))
    return ("-" if amount < 0 else "") + shown(abs(amount), currency)


def amount_due(minor: Any, currency: str) -> str:
    """An amount that stands by itself, with its currency: "$1.20 USD"."""
    text = money(minor, currency)
    code = currency.upper()
    return text if code in text else f"{text} {code}"


def minor(text: str, currency: str) -> str:
    """What was typed for an amount, in minor units. What is no number stays, for the API to refuse."""
    try:
        amount = Decimal(text.strip())
    except InvalidOperation:
        return text
    if not amount.is_finite():
        return text
    return plain(amount if currency in ZERO_DECIMAL else EXACT.scaleb(amount, 2))


def moment(at: Any) -> str:
    """A time: "20 Nov 2026, 12:40 UTC"."""
    if at is None:
        return "–"
    return f"{_utc(at):%-d %b %Y, %H:%M} UTC"


def day(at: Any) -> str:
    return "–" if at is None else f"{_utc(at):%-d %b %Y}"


def input_time(at: Any) -> str:
    """A time as an input of type datetime-local has it."""
    return f"{_utc(at):%Y-%m-%dT%H:%M}"


def typed_time(text: str) -> str:
    """What such an input was given, in Unix seconds, UTC. What is no time stays, for the API to refuse."""
    try:
        return str(int(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()))
    except ValueError:
        return text


def number(value: Any) -> str:
    """A count in groups of three: "3,000"."""
    whole, _, rest = plain(Decimal(str(value))).partition(".")
    return f"{int(whole):,}" + (f".{rest}" if rest else "")


def price_words(price: Doc) -> str:
    """A price in a line: "$0.04 per 100 units / month"."""
    return f"{_charged(price)}{_every(price)}"


def tier_rows(price: Doc) -> list[dict[str, str]]:
    """The tiers of a price as a table has them."""
    rows, first = [], 0
    for tier in price.get("tiers") or ():
        rows.append(
            {
                "first": number(first),
                "last": "∞" if tier["up_to"] is None else number(tier["up_to"]),
                "unit": money(tier["unit_amount_decimal"], price["currency"]),
                "flat": money(tier["flat_amount_decimal"], price["currency"]),
            }
        )
        first = (tier["up_to"] or 0) + 1
    return rows


def coupon_words(coupon: Doc) -> str:
    """A coupon in a line: "Friends: 25% off, once"."""
    if coupon["percent_off"] is not None:
        less = f"{plain(Decimal(str(coupon['percent_off'])))}%"
    else:
        less = money(coupon["amount_off"], coupon["currency"])
    lasts = {"once": "once", "forever": "for ever"}.get(
        coupon["duration"], f"for {coupon['duration_in_months']} months"
    )
    return f"{coupon['name'] or coupon['id']}: {less} off, {lasts}"


def is_metered(price: Doc) -> bool:
    return (price.get("recurring") or {}).get("usage_type") == "metered"


STATUS_TONES: Mapping[str, str] = {
    "active": "good", "trialing": "good", "paid": "good", "counted": "good", "done": "good",
    "enabled": "good", "ready": "good",
    "open": "warn", "draft": "", "waiting": "warn", "incomplete": "warn", "past_due": "warn",
    "refused": "bad", "failed": "bad", "unpaid": "bad", "uncollectible": "bad",
}  # fmt: skip
"""The colour of a state; those left out have none."""


def _charged(price: Doc) -> str:
    currency = price["currency"]
    if price["billing_scheme"] == "tiered":
        tiers = [
            f"{money(tier['unit_amount_decimal'], currency)}"
            + _flat(tier, currency)
            + (" above" if tier["up_to"] is None else f" to {number(tier['up_to'])}")
            for tier in price.get("tiers") or ()
        ]
        return f"{price['tiers_mode'].capitalize()}: {', '.join(tiers)}"
    unit = money(price["unit_amount_decimal"], currency)
    if price["transform_quantity"]:
        return f"{unit} per {number(price['transform_quantity']['divide_by'])} units"
    return f"{unit} per unit" if is_metered(price) else unit


def _flat(tier: Doc, currency: str) -> str:
    flat = Decimal(tier["flat_amount_decimal"] or 0)
    return f" + {money(flat, currency)}" if flat else ""


def _every(price: Doc) -> str:
    recurring = price["recurring"]
    if recurring is None:
        return ""
    count = recurring["interval_count"]
    return f" / {recurring['interval']}" if count == 1 else f" every {count} {recurring['interval']}s"


def _utc(at: Any) -> datetime:
    return datetime.fromtimestamp(float(at), timezone.utc)
