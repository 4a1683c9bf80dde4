"""Who would be moved from which price to which, and what becomes of what they have used and paid.

Values and the rules of Stripe behind them; `migrations` reads them from an account and carries them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from .catalog import Catalog
from .facts import Facts
from .money import show, wire

Proration = Literal["create_prorations", "always_invoice", "none"]

_LICENCE: dict[Proration, str] = {
    "create_prorations": "the rest of this period is credited at the old price and charged at the new one, "
    "on the next invoice",
    "always_invoice": "the rest of this period is credited at the old price and charged at the new one, "
    "on an invoice of its own, at once",
    "none": "this period stays as it was paid; the new price is charged from {end} on",
}

_FIXED = {
    "usage_type": "a fee does not become a metered price, nor the other way round",
    "currency": "a subscription has one currency",
    "interval": "another interval would begin a new billing period",
    "interval_count": "another interval would begin a new billing period",
    "meter": "what is still reported to the old meter would no longer be billed",
}
"""What the two prices of a move must have in common, and why."""


@dataclass(frozen=True, slots=True)
class ItemMove:
    """One item of a subscription that changes its price."""

    item: str
    key: str
    """Key of the new price in the catalog."""
    old_price: str
    new_price: str
    """Stripe's ids."""
    old_summary: str
    new_summary: str
    meter: str | None
    """Event name of a metered price's meter."""
    used: Decimal | None
    """What a metered item has used in this period; None for a licence."""
    period_start: datetime
    period_end: datetime
    becomes: str
    """What happens to what was used or paid in this period."""


@dataclass(frozen=True, slots=True)
class Move:
    """One subscription whose items change their prices, all of them at the same moment."""

    customer: str
    subscription: str
    status: str
    billing_mode: str
    items: tuple[ItemMove, ...]
    turns_flexible: bool = False
    """It leaves classic billing first, for good."""
    blocked: str | None = None
    """Why it is not moved, and what to do about it."""
    next_total: Decimal | None = None
    next_total_after: Decimal | None = None
    """What the next invoice comes to without and with the move, where that was asked for."""
    currency: str = ""


@dataclass(frozen=True, slots=True)
class Migration:
    """Everybody who would be moved. `str(migration)` is a list for review."""

    catalog: Catalog
    moves: tuple[Move, ...]
    proration: Proration
    forfeit_usage: bool = False

    @property
    def done(self) -> bool:
        """Whether nobody has an old price any more."""
        return not self.moves

    @property
    def ready(self) -> tuple[Move, ...]:
        return tuple(move for move in self.moves if move.blocked is None)

    @property
    def blocked(self) -> tuple[Move, ...]:
        return tuple(move for move in self.moves if move.blocked is not None)

    @property
    def summary(self) -> str:
        """Such as "2 subscriptions to move, 1 that cannot be moved as it is"."""
        if self.done:
            return "nobody has a price that was replaced"
        ready, blocked = len(self.ready), len(self.blocked)
        words = [f"{ready} subscription{'s' * (ready != 1)} to move"]
        return ", ".join(words + ([f"{blocked} that cannot be moved as it is"] if blocked else []))

    def __str__(self) -> str:
        return "\n".join([*(line for move in self.moves for line in lines(move)), self.summary])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "done": self.done,
            "proration": self.proration,
            "takes_effect": "at once",
            "moves": [_as_dict(move) for move in self.moves],
        }


def lines(move: Move) -> Iterator[str]:
    """A move for people: who, from what to what, and what becomes of this period."""
    sign = ">" if move.blocked is None else "!"
    yield f"{sign} {move.customer}  {move.subscription} ({move.status}, {move.billing_mode})"
    for item in move.items:
        yield f"      {item.item}: {item.old_price} ({item.old_summary})"
        yield f"        -> {item.new_price} ({item.new_summary})"
        yield f"        {item.becomes}"
    if move.turns_flexible:
        yield "      it leaves classic billing first, for good: there is no way back from flexible"
    if move.next_total is not None and move.next_total_after is not None:
        before, after = show(move.next_total, move.currency), show(move.next_total_after, move.currency)
        yield f"      next invoice: {before} -> {after}, as usage stands now"
    if move.blocked is not None:
        yield f"      not moved: {move.blocked}"


def unlike(old: Facts, new: Facts) -> str | None:
    """Why subscribers cannot go from one price to the other in mid-period, if they cannot."""
    for field, why in _FIXED.items():
        if old[field] != new[field]:
            return (
                f"the {field} of the two prices differs ({old[field]}, {new[field]}), and {why}. "
                f"Cancel the subscription at the end of its period and subscribe anew"
            )
    return None


def becomes(
    facts: Facts,
    used: Decimal | None,
    start: datetime,
    end: datetime,
    *,
    flexible: bool,
    proration: Proration,
) -> str:
    """What Stripe does with what was used or paid in the current period."""
    if facts["meter"] is None:
        return _LICENCE[proration].format(end=_day(end))
    what = f"{wire(used or Decimal(0))} used since {_day(start)}"
    if flexible:
        return f"{what} stay at the old price, later use is at the new one; both are billed on {_day(end)}"
    if used:
        return f"{what} would never be billed: classic billing bills only use after the change"
    return f"{what}; use from the change on is billed at the new price on {_day(end)}"


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d}"


def _as_dict(move: Move) -> dict[str, Any]:
    names = [name for name in move.__slots__ if name != "items"]
    items = [{name: getattr(item, name) for name in item.__slots__} for item in move.items]
    return {**{name: getattr(move, name) for name in names}, "items": items}
