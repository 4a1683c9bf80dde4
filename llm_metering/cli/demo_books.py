"""The demo's audit: what the provider sent, what the ledger holds, what Stripe's books say.

An answer that reached its caller in full has one record with exactly the provider's counts, and is in
Stripe's books once. An answer that the kill cut short has at most one record, with at most what the
provider counted; it is listed apart. So a call that is lost or doubled anywhere breaks an equation.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from ..ledger.folder import lane_names, lane_path, read_lane
from ..ledger.lines import LineKey, Value
from ..ledger.rows import LineKeys, lines_of


class Kind(NamedTuple):
    """What the books are kept by."""

    customer: str | None
    model: str
    token_type: str


Tokens = Mapping[Kind, Decimal]


@dataclass(frozen=True, slots=True)
class Sent:
    """One answer, as the provider tells."""

    response_id: str
    tokens: Tokens

    @property
    def total(self) -> Decimal:
        return total(self.tokens)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One record of the ledger, as it is billed."""

    response_id: str | None
    provenance: str
    tokens: Tokens

    @property
    def total(self) -> Decimal:
        return total(self.tokens)


@dataclass(frozen=True, slots=True)
class Audit:
    """The three numbers, and whatever is wrong with them."""

    sent: Decimal
    """Tokens of the answers that reached their callers in full, by the provider's own count."""
    in_ledger: Decimal
    """What the ledger holds for those answers."""
    in_stripe: Decimal
    """What Stripe's books hold, less what is billed for the answers that were cut short."""
    answered: int
    """Answers that reached their callers in full."""
    cut: int
    """Calls whose connection broke."""
    cut_recorded: int
    """Of those, how many the provider had answered, in part or in full, before the kill; each billed once."""
    cut_billed: Decimal
    """Tokens billed for those."""
    cut_sent_at_most: Decimal
    """What the provider counts for those, as if each had been sent to its end."""
    by_kind: Tokens
    """Stripe's books."""
    problems: Sequence[str] = field(default=())

    @property
    def is_right(self) -> bool:
        return not self.problems and self.sent == self.in_ledger == self.in_stripe


def audit(
    *,
    sent: Iterable[Sent],
    answered: Iterable[str],
    cut: int,
    recorded: Iterable[Recorded],
    in_stripe: Tokens,
) -> Audit:
    """Compare the three books.

    Args:
        sent: All answers that the provider began.
        answered: Response ids of the answers that reached their callers in full.
        cut: How many calls broke.
        recorded: All records of the ledger.
        in_stripe: What Stripe bills, by kind.
    """
    by_id = {answer.response_id: answer for answer in sent}
    recorded = list(recorded)
    whole = Counter(answered)
    full = [r for r in recorded if r.response_id in whole]
    partial = [r for r in recorded if r.response_id not in whole]
    expected = add(by_id[name].tokens for name in whole if name in by_id)
    cut_billed = add(r.tokens for r in partial)
    rest = subtract(in_stripe, cut_billed)
    problems = [
        *_repeated(whole, "reached two callers"),
        *_repeated(Counter(r.response_id for r in recorded), "is in the ledger more than once"),
        *(
            f"the provider never sent answer {name}, which a caller got"
            for name in whole.keys() - by_id.keys()
        ),
        *_differences("the ledger", expected, add(r.tokens for r in full)),
        *_differences("Stripe's books", expected, rest),
        *_beyond(partial, by_id),
    ]
    return Audit(
        sent=total(expected),
        in_ledger=total(add(r.tokens for r in full)),
        in_stripe=total(rest),
        answered=sum(whole.values()),
        cut=cut,
        cut_recorded=len(partial),
        cut_billed=total(cut_billed),
        cut_sent_at_most=total(add(by_id[r.response_id].tokens for r in partial if r.response_id in by_id)),
        by_kind=in_stripe,
        problems=problems,
    )


def sent_of(tally: Mapping[str, Any]) -> list[Sent]:
    """The provider stand-in's `/_tally`."""
    return [
        Sent(
            row["id"],
            {Kind(row["customer"], row["model"], kind): Decimal(n) for kind, n in row["tokens"].items()},
        )
        for row in tally["answers"]
    ]


def recorded_in(folder: Path) -> list[Recorded]:
    """Every record of a ledger folder, read beside whoever writes it."""
    found: list[Recorded] = []
    for name in lane_names(folder):
        with closing(read_lane(lane_path(folder, name))) as lane:
            found += _records(lane)
    return found


def add(many: Iterable[Tokens]) -> dict[Kind, Decimal]:
    sums: dict[Kind, Decimal] = {}
    for tokens in many:
        for kind, value in tokens.items():
            sums[kind] = sums.get(kind, Decimal()) + value
    return sums


def subtract(tokens: Tokens, less: Tokens) -> dict[Kind, Decimal]:
    kinds = {**tokens, **less}
    return {kind: tokens.get(kind, Decimal()) - less.get(kind, Decimal()) for kind in kinds}


def total(tokens: Tokens) -> Decimal:
    return sum(tokens.values(), Decimal())


def _records(lane: sqlite3.Connection) -> list[Recorded]:
    keys = LineKeys(lane)
    rows = lane.execute("SELECT response_id, provenance, customer, lines FROM usage ORDER BY seq").fetchall()
    return [
        Recorded(response_id, provenance, add(_tokens(customer, lines_of(json.loads(lines), keys))))
        for response_id, provenance, customer, lines in rows
    ]


def _tokens(customer: str | None, lines: Iterable[tuple[LineKey, Value]]) -> Iterable[Tokens]:
    for key, value in lines:
        dimensions = dict(key.dimensions)
        kind = Kind(customer, dimensions.get("model", ""), dimensions.get("token_type", ""))
        yield {kind: Decimal(value)}


def _repeated(seen: Counter[Any], what: str) -> list[str]:
    return [
        f"a record names no answer ({n} times)" if name is None else f"answer {name} {what}: {n} times"
        for name, n in seen.items()
        if n > 1 or name is None
    ]


def _differences(where: str, expected: Tokens, found: Tokens) -> list[str]:
    return [
        f"{kind.customer}, {kind.model}, {kind.token_type}: the provider sent {expected.get(kind, 0)}, "
        f"{where} holds {found.get(kind, 0)}"
        for kind in sorted({**expected, **found}, key=str)
        if expected.get(kind, 0) != found.get(kind, 0)
    ]


def _beyond(cut: Iterable[Recorded], by_id: Mapping[str, Sent]) -> list[str]:
    """An answer that was cut short: one that the provider reported is billed as reported, one that we had to
    count for no more than it counts. What a killed process leaves of a stream is an estimate; it must be
    of the right size."""
    problems = []
    for record in cut:
        answer = by_id.get(record.response_id or "")
        if answer is None:
            problems.append(f"the ledger bills answer {record.response_id}, which the provider never sent")
            continue
        slack = 2 if record.provenance == "partial" else 1
        limits = _directions(answer.tokens)
        over = any(n > slack * limits[way] for way, n in _directions(record.tokens).items())
        if over or (record.provenance == "reported" and dict(record.tokens) != dict(answer.tokens)):
            problems.append(
                f"answer {record.response_id} was cut short: the ledger bills {_listed(record.tokens)} "
                f"({record.provenance}), the provider counts {_listed(answer.tokens)}"
            )
    return problems


def _listed(tokens: Tokens) -> str:
    return ", ".join(f"{n} {kind.token_type}" for kind, n in tokens.items()) or "nothing"


def _directions(tokens: Tokens) -> Counter[str]:
    """In and out: only the provider knows what of a prompt came from its cache."""
    sums: Counter[str] = Counter()
    for kind, n in tokens.items():
        sums["out" if "output" in kind.token_type else "in"] += int(n)
    return sums
