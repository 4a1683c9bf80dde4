"""`plan`: what it would take to make a Stripe account match a catalog. It only reads; `compare` is pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from .account import Account, fetch
from .catalog import Catalog
from .facts import Facts, Found, Kind, Wanted, show_fact, summary_of_price, wanted
from .leftovers import Leftover

if TYPE_CHECKING:
    from stripe import StripeClient

Action = Literal[
    "create", "adopt", "reactivate", "update", "replace", "unchanged", "conflict", "archive", "leave"
]

SIGNS: dict[Action, str] = {
    "create": "+",
    "adopt": "<",
    "reactivate": "^",
    "update": "~",
    "replace": "±",
    "unchanged": "=",
    "conflict": "!",
    "archive": "-",
    "leave": "·",
}

_AT_THE_END: dict[Action, str] = {"unchanged": "unchanged", "leave": "of ours not in the catalog"}

MEANINGS: dict[Action, str] = {
    "create": "is not there and will be made",
    "adopt": "is there, made by someone else; it will be used and marked as ours",
    "reactivate": "is there, switched off; it will be switched on again",
    "update": "has drifted in what can be edited; it will be set back",
    "replace": "differs in what Stripe never edits; a new one takes over its key, the old one stays",
    "unchanged": "is as it should be",
    "conflict": "differs in what cannot be changed or replaced; a person has to decide",
    "archive": "is ours and not in the catalog, and bills nobody; it will be switched off, never deleted",
    "leave": "is ours and not in the catalog; it stays as it is, and the plan says why",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact that the account has otherwise than the catalog."""

    field: str
    found: str
    wanted: str


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done about one object."""

    action: Action
    kind: Kind
    key: str
    """Event name, product id, lookup key or title."""
    summary: str
    id: str | None = None
    """Stripe's id of the object that is there."""
    differences: tuple[Difference, ...] = ()
    """Drift: what was found otherwise, and what it should be."""
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole comparison, in the order in which it is carried out. `str(plan)` is a diff for review."""

    catalog: Catalog
    changes: tuple[Change, ...]
    archive: bool = False
    """Whether what is ours and not in the catalog is to be switched off."""

    @property
    def done(self) -> bool:
        """Whether the account matches already."""
        return all(change.action in ("unchanged", "leave") for change in self.changes)

    @property
    def conflicts(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.action == "conflict")

    @property
    def counts(self) -> dict[Action, int]:
        """How many objects each action concerns."""
        return dict(Counter(change.action for change in self.changes))

    def __str__(self) -> str:
        return "\n".join([*_lines(self.changes), self.summary])

    @property
    def summary(self) -> str:
        """Such as "2 to create, 1 unchanged"."""
        counts = self.counts
        words = [f"{n} {_to_do(action)}" for action, n in counts.items() if action not in _AT_THE_END]
        words += [f"{counts[a]} {said}" for a, said in _AT_THE_END.items() if a in counts]
        return ", ".join(words) or "an empty catalog"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "done": self.done,
            "counts": dict(self.counts),
            "changes": [
                {
                    "action": change.action,
                    "kind": change.kind,
                    "key": change.key,
                    "id": change.id,
                    "summary": change.summary,
                    "differences": [
                        {"field": d.field, "found": d.found, "wanted": d.wanted} for d in change.differences
                    ],
                    "note": change.note,
                }
                for change in self.changes
            ],
        }


def plan(catalog: Catalog, client: StripeClient, *, archive: bool = False) -> Plan:
    """Compare a catalog with an account. Sends GET requests only.

    Args:
        catalog: What is sold.
        client: A Stripe client, such as `connect()` makes.
        archive: The catalog is all that is sold in this account: what is ours and not in it is to be
            switched off, unless it bills someone. Without it such things are shown and left alone.
    """
    return compare(catalog, fetch(catalog, client, leftovers=True), archive=archive)


def compare(catalog: Catalog, account: Account, *, archive: bool = False) -> Plan:
    """The comparison itself: values in, values out."""
    changes = [_change(want, account.get(want.kind, want.key)) for want in wanted(catalog)]
    if archive:
        changes = [_to_be_archived(change) for change in changes]
    return Plan(catalog, (*changes, *(_end(one, archive) for one in account.leftovers)), archive)


def _to_be_archived(change: Change) -> Change:
    """A price that is replaced is a leftover from then on."""
    if (change.action, change.kind) != ("replace", "price"):
        return change
    return replace(change, note=f"{change.note}; once it bills nobody, it is archived")


def _end(left: Leftover, archive: bool) -> Change:
    """What becomes of an object that the catalog does not hold."""
    if archive and left.stays is None:
        note = _METER_ENDS if left.kind == "meter" else None
        return Change("archive", left.kind, left.key, left.summary, left.id, note=note)
    note = f"not in the catalog; {left.stays or 'it bills nobody and can be archived (--archive)'}"
    return Change("leave", left.kind, left.key, left.summary, left.id, note=note)


_METER_ENDS = "Stripe refuses events for it from then on: let nothing report to it any more"


def _change(want: Wanted, found: Found | None) -> Change:
    if found is None:
        return Change("create", want.kind, want.key, want.summary)
    fixed = _differences(want.fixed, found.fixed)
    editable = _differences(want.editable, found.editable)
    action, note = _decide(want.kind, found, bool(fixed), bool(editable))
    return Change(action, want.kind, want.key, want.summary, found.id, fixed + editable, note)


def _decide(kind: Kind, found: Found, fixed: bool, editable: bool) -> tuple[Action, str | None]:
    if fixed and kind == "meter":
        return "conflict", (
            "a meter's aggregation and payload keys never change, and its event name stays taken even when "
            "it is deactivated: choose another event name, or make the catalog say what this meter does"
        )
    if fixed and kind == "alert":
        return "replace", (
            "an alert is never edited: the old one is archived, and the new one counts only what is reported "
            "from now on, also of customers that the old one has told of"
        )
    if fixed:
        was = "" if kind != "price" else f" ({summary_of_price(found.fixed)})"
        return (
            "replace",
            f"{found.id}{was} stays for those who subscribe to it; new subscribers get the new one",
        )
    if not found.active:
        return "reactivate", None
    if not found.ours and kind == "meter":
        return "adopt", "a meter carries no mark, so whose it is cannot be told; it will be used as it is"
    if not found.ours:
        return "adopt", None
    return ("update", None) if editable else ("unchanged", None)


def _differences(want: Facts, found: Facts) -> tuple[Difference, ...]:
    return tuple(
        Difference(
            field,
            show_fact(field, found.get(field), str(found.get("currency"))),
            show_fact(field, value, str(want.get("currency"))),
        )
        for field, value in want.items()
        if found.get(field) != value
    )


def _lines(changes: Iterable[Change]) -> Iterable[str]:
    for change in changes:
        was = f"  ({change.id})" if change.id else ""
        yield f"{SIGNS[change.action]} {change.action:<10} {change.kind:<8} {change.key}{was}"
        yield f"      {change.summary}"
        for difference in change.differences:
            yield f"      {difference.field}: {difference.found} -> {difference.wanted}"
        if change.note:
            yield f"      {change.note}"


def _to_do(action: Action) -> str:
    return "in conflict" if action == "conflict" else f"to {action}"
