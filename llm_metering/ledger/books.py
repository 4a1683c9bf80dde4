"""The books: usage and meter events added up for reports, the same for every ledger. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from ..protocols import Balance, State, UsageSum
from .lines import LineKey, Value, add, decimal

_COLUMN: dict[State, str] = {
    "PENDING": "pending",
    "SENDING": "pending",
    "AMBIGUOUS": "pending",
    "ACCEPTED": "accepted",
    "SETTLED": "accepted",
    "IN_DOUBT": "in_doubt",
    "DEAD": "dead",
}  # CLOSED was replaced by another event, which counts instead.

Dimensions = tuple[tuple[str, str], ...]
_Account = tuple[str | None, str, Dimensions]


class UsageRow(NamedTuple):
    """One record, as far as the books go."""

    customer: str | None
    model: str | None
    used_at: float
    freeze: object
    """Which freeze took it, None while none has; the same for all records of one bucket in one freeze."""
    lines: Sequence[tuple[LineKey, Value]]


@dataclass(slots=True)
class Tally:
    """Adds up rows as they come by; `balances()` and `usage_sums()` give the result.

    Recorded is added up from usage alone and the other columns from meter events and unfrozen usage, so
    that a balance that is not conserved shows a loss. Of a "last" meter only the latest reading of each
    freeze counts, on both sides.
    """

    _sums: dict[tuple[str | None, str | None, str, Dimensions], Value] = field(default_factory=dict)
    _columns: dict[tuple[_Account, str], Value] = field(default_factory=dict)
    _latest: dict[tuple[object, object, str | None, LineKey], tuple[float, Value]] = field(
        default_factory=dict
    )

    def usage(self, row: UsageRow, source: object = None) -> None:
        """`source` tells apart stores whose freezes are numbered each on their own."""
        for key, value in row.lines:
            if key.aggregation == "last":
                which = (source, row.freeze, row.customer, key)
                latest = self._latest.get(which)
                if latest is None or row.used_at >= latest[0]:
                    self._latest[which] = (row.used_at, value)
            elif value:
                self._record((row.customer, key.event_name, key.dimensions), value, row.freeze is None)
            if value:
                name = (row.customer, row.model, key.event_name, key.dimensions)
                self._sums[name] = add(self._sums.get(name, 0), value)

    def event(self, customer: str, event_name: str, dimensions: Dimensions, state: State, v: Value) -> None:
        if column := _COLUMN.get(state):
            self._add((customer, event_name, dimensions), column, v)

    def balances(self) -> list[Balance]:
        """One row for each customer, meter and dimensions; the unresolved first."""
        for (_, freeze, customer, key), (_, value) in self._latest.items():
            self._record((customer, key.event_name, key.dimensions), value, freeze is None)
        self._latest.clear()
        accounts = {account for account, _ in self._columns}
        return [self._balance(a) for a in sorted(accounts, key=lambda a: (a[0] or "", a[1], a[2]))]

    def usage_sums(self) -> list[UsageSum]:
        order = sorted(self._sums, key=lambda n: (n[0] or "", n[1] or "", n[2], n[3]))
        return [UsageSum(*name, decimal(self._sums[name])) for name in order]

    def _record(self, account: _Account, value: Value, unfrozen: bool) -> None:
        self._add(account, "recorded", value)
        if unfrozen:
            self._add(account, "pending", value)

    def _add(self, account: _Account, column: str, value: Value) -> None:
        self._columns[account, column] = add(self._columns.get((account, column), 0), value)

    def _balance(self, account: _Account) -> Balance:
        def of(column: str) -> Decimal:
            return decimal(self._columns.get((account, column), 0))

        columns = (of(c) for c in ("recorded", "pending", "accepted", "in_doubt", "dead"))
        return Balance(*account, *columns)
