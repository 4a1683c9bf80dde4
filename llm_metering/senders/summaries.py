"""Stripe's side of the books: its meters, and what it has counted, read from event summaries.

The numbers are exact as they stand in Stripe's answer; Stripe itself may hold them as doubles, so that of a
sum of more than 15 digits the last ones mean nothing (`oracle.same` knows).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Context, Decimal, localcontext
from typing import Any
from urllib.parse import quote

from .._redact import one_line
from .._values import dataclass
from ..errors import StripeUnavailable
from .reading import Object, StripeReader

MINUTE_S = 60
HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter of Stripe's, as far as its summaries go."""

    id: str
    event_name: str
    active: bool
    formula: str
    """How it adds up: sum, count or last."""
    event_time_window: str | None = None
    """hour or day: only the last event received in each counts."""

    @property
    def adds_up(self) -> bool:
        """Whether its summaries are sums of what the ledger holds."""
        return self.formula in ("sum", "count") and self.event_time_window is None


class Summaries:
    """Reads what Stripe has counted.

        summaries = Summaries(StripeReader("rk_test_…"))
        summaries.total("hypernian_tokens", "cus_1", start=1_750_000_020, end=1_750_000_080)

    Args:
        reader: Asks Stripe. Its key needs to read meters and meter event summaries, nothing else.
    """

    def __init__(self, reader: StripeReader) -> None:
        self.reader = reader
        self._meters: dict[str, Meter] | None = None

    def meters(self, *, afresh: bool = False) -> Mapping[str, Meter]:
        """The account's meters by event name, kept once they are read.

        Args:
            afresh: Read them anew.
        """
        if self._meters is None or afresh:
            # There is no filter by event name.
            meters = [_meter(item) for item in self.reader.pages("/v1/billing/meters")]
            self._meters = {meter.event_name: meter for meter in meters}
        return self._meters

    def meter(self, event_name: str) -> Meter:
        """The meter of this event name.

        Raises:
            StripeUnavailable: There is none (code "no_meter"), or Stripe cannot be asked.
        """
        meter = self.meters().get(event_name) or self.meters(afresh=True).get(event_name)
        if meter is None:
            raise StripeUnavailable(f"Stripe has no meter {event_name!r}", status=404, code="no_meter")
        return meter

    def total(self, event_name: str, customer: str, *, start: int, end: int) -> Decimal:
        """What a customer used from `start` to before `end`, both whole minutes."""
        _check_aligned(start, end, MINUTE_S)
        items = self._items(event_name, customer, start=start, end=end, window=None)
        with localcontext(Context(prec=200)):  # the default one would round to 28 digits
            return sum((_value(item) for item in items), Decimal(0))

    def hours(self, event_name: str, customer: str, *, start: int, end: int) -> dict[int, Decimal]:
        """What a customer used by hour, from `start` to before `end`, both whole hours. An hour that is
        not there is an hour without usage."""
        _check_aligned(start, end, HOUR_S)
        found: dict[int, Decimal] = {}
        for item in self._items(event_name, customer, start=start, end=end, window="hour"):
            at = item.get("start_time")
            if not isinstance(at, int) or not start <= at < end or at in found:
                raise StripeUnavailable(f"a summary of meter {event_name!r} has the start {at!r}")
            found[at] = _value(item)
        return found

    def _items(
        self, event_name: str, customer: str, *, start: int, end: int, window: str | None
    ) -> Iterable[Object]:
        path = f"/v1/billing/meters/{quote(self.meter(event_name).id, safe='')}/event_summaries"
        times: dict[str, str | int | None] = {"start_time": start, "end_time": end}
        return self.reader.pages(path, {"customer": customer, **times, "value_grouping_window": window})


def _meter(item: Object) -> Meter:
    aggregation = item.get("default_aggregation")
    window = item.get("event_time_window")
    return Meter(
        id=_text(item, "id"),
        event_name=_text(item, "event_name"),
        active=item.get("status") == "active",
        formula=_text(aggregation if isinstance(aggregation, dict) else {}, "formula"),
        event_time_window=None if window is None else str(window),
    )


def _value(item: Object) -> Decimal:
    value: Any = item.get("aggregated_value")
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise StripeUnavailable(one_line(f"a summary's aggregated_value is {value!r}, not a number"))
    return Decimal(value)


def _text(item: Object, name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise StripeUnavailable(one_line(f"a meter's {name} is {value!r}"))
    return value


def _check_aligned(start: int, end: int, seconds: int) -> None:
    if start % seconds or end % seconds or end <= start:
        raise ValueError(f"start and end must be multiples of {seconds} and in order, not {start} and {end}")
