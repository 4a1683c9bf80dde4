"""Credits and alerts as values of a catalog. Neither ever limits usage.

A credit pays for metered lines when an invoice is finalised; what goes beyond it is used, and billed. An
alert sends a webhook once a customer's usage reaches a threshold; the usage goes on. Who must not use more
has to be stopped by the service itself, before the model is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .checks import count, one_of, refuse, text
from .money import WHOLE_ONLY, Amount, minor_units, parse_currency

Category = Literal["paid", "promotional"]

_MOST_PRICES = 20
_LARGEST_THRESHOLD = 10**15


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditSpec:
    """An amount that customers may be granted, each once under its key. It does not limit usage."""

    key: str
    """How a grant is found again; a customer gets it once."""
    amount: Amount
    """In major units."""
    currency: str
    name: str | None = None
    """In the Dashboard."""
    category: Category = "paid"
    """"promotional" ones are used up before paid ones of the same priority and expiry."""
    prices: tuple[str, ...] = ()
    """Keys of the metered prices it pays for; all metered prices if there are none."""
    priority: int = 50
    """0 to 100; lower ones are used up first."""
    expires_days: int | None = None
    """Days after it is granted; None keeps it for good."""

    def __post_init__(self) -> None:
        where = f"credit {self.key!r}"
        text("credit", "key", self.key, 100)
        object.__setattr__(self, "currency", parse_currency(self.currency, f"{where}: currency"))
        object.__setattr__(self, "prices", tuple(self.prices))
        if self.name is not None:
            text(where, "name", self.name, 100)
        one_of(where, "category", self.category, get_args(Category))
        _check_amount(where, self.amount, self.currency)
        if type(self.priority) is not int or not 0 <= self.priority <= 100:
            refuse(where, f"priority={self.priority!r} must be a whole number from 0 to 100")
        if self.expires_days is not None:
            count(where, "expires_days", self.expires_days)
        if len(self.prices) > _MOST_PRICES:
            refuse(where, f"it names {len(self.prices)} prices; Stripe takes at most {_MOST_PRICES}")

    @property
    def minor(self) -> int:
        """The amount in the currency's minor unit."""
        return int(minor_units(self.amount, self.currency))


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSpec:
    """A webhook once a customer's usage of a meter reaches a threshold. It does not limit usage."""

    title: str
    """How it is found again: an alert carries no mark and no key."""
    meter: str
    """Event name."""
    threshold: int
    """In the meter's units; usage reported before the alert was made does not count."""

    def __post_init__(self) -> None:
        where = f"alert {self.title!r}"
        text("alert", "title", self.title, 256)
        text(where, "meter", self.meter, 100)
        count(where, "threshold", self.threshold)
        if self.threshold > _LARGEST_THRESHOLD:
            refuse(where, f"threshold={self.threshold} is more than a meter holds")


def _check_amount(where: str, amount: Amount, currency: str) -> None:
    minor = minor_units(amount, currency, f"{where}: amount")
    unit = 100 if currency in {"isk", "ugx"} else 1
    if minor % unit:
        smallest = "whole units" if currency in WHOLE_ONLY else "the currency's smallest coin"
        refuse(where, f"amount={amount} has a fraction that {currency!r} does not have; use {smallest}")
    if minor < 1:
        refuse(where, f"amount={amount} must be above 0")
