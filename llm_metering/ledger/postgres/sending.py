"""Attempts to send meter events: which are due, how one begins, ends or is cut off.

What `states` decides is carried out here. Every function works inside a transaction, reads the rows that it
is to change under a lock, and writes each under the fence that it has read.
"""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...protocols import Claim, EventRow, Outcome, Transition
from .. import rows, states
from .connecting import Db
from .storable import Column, floats, texts, whole

Row = Sequence[Any]
Pair = tuple[str, str]

LANE = "postgresql"
"""There is one for all."""

_ROW = f"{rows.EVENT}, seq"
_FENCE, _SEQ = 13, 14
_WAITS = """
    n.next_attempt_at IS NOT NULL AND n.state = 'PENDING' AND n.partition = ANY(%(mine)s::smallint[])
    AND (n.next_attempt_at <= %(now)s OR n.next_attempt_at > %(far)s) AND n.timestamp > %(oldest)s
    AND n.event_name <> ALL(%(without)s::text[])
"""
# The earliest due event of each customer and meter, found one pair after another in the index.
_HEADS = f"""
    WITH RECURSIVE head AS (
        (SELECT n.seq, n.customer, n.event_name FROM meter_event n
        WHERE {_WAITS} AND (n.customer, n.event_name) > (%(customer)s, %(event_name)s)
        ORDER BY n.customer, n.event_name, n.next_attempt_at LIMIT 1)
        UNION ALL
        SELECT next.* FROM head h CROSS JOIN LATERAL (
            SELECT n.seq, n.customer, n.event_name FROM meter_event n
            WHERE {_WAITS} AND (n.customer, n.event_name) > (h.customer, h.event_name)
            ORDER BY n.customer, n.event_name, n.next_attempt_at LIMIT 1
        ) next
    )
    SELECT seq, customer, event_name FROM head LIMIT %(limit)s
"""
BY_INDEX = (
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; SET LOCAL enable_incremental_sort = off; "
    "SET LOCAL jit = off;"
)
"""Before statistics are gathered the planner would read and sort all that waits for each pair, or all that
there ever was. What it thinks that costs would make it compile every statement, too."""
_WRITE = """
    UPDATE meter_event e SET state = v.state, attempts = v.attempts,
        attempt_started_at = v.attempt_started_at, first_ambiguous_at = v.first_ambiguous_at,
        next_attempt_at = v.next_attempt_at, backoff_s = v.backoff_s, reason = v.reason,
        lease_until = v.lease_until,
        fence = CASE v.state WHEN 'SENDING' THEN nextval('fence') ELSE e.fence END
    FROM unnest(%(seq)s::bigint[], %(was)s::bigint[], %(state)s::text[], %(attempts)s::integer[],
        %(attempt_started_at)s::float8[], %(first_ambiguous_at)s::float8[], %(next_attempt_at)s::float8[],
        %(backoff_s)s::float8[], %(reason)s::text[], %(lease_until)s::float8[])
        AS v (seq, was, state, attempts, attempt_started_at, first_ambiguous_at, next_attempt_at, backoff_s,
            reason, lease_until)
    WHERE e.seq = v.seq AND e.fence = v.was
    RETURNING e.seq, e.fence
"""
_BEGIN = """
    INSERT INTO attempt (identifier, number, fence, started_at)
    SELECT *, %(now)s FROM unnest(%(identifier)s::text[], %(number)s::integer[], %(fence)s::bigint[])
"""
_END = """
    UPDATE attempt a SET ended_at = %(now)s, outcome = v.outcome, status = v.status, code = v.code,
        message = v.message, request_id = v.request_id
    FROM unnest(%(identifier)s::text[], %(number)s::integer[], %(outcome)s::text[], %(status)s::integer[],
        %(code)s::text[], %(message)s::text[], %(request_id)s::text[])
        AS v (identifier, number, outcome, status, code, message, request_id)
    WHERE a.identifier = v.identifier AND a.number = v.number
"""


@dataclass(frozen=True, slots=True)
class _Change:
    """A row as it was read, where it stands now, and the end of its lease."""

    row: Row
    standing: states.Standing
    lease_until: float | None = None


@dataclass(slots=True)
class Turn:
    """Whose turn it is: the pair that the last claim ended with."""

    after: Pair = ("", "")
    without: frozenset[str] = field(default_factory=frozenset)
    """Event names of which nothing new is sent: their meters are gone."""


def begin(
    db: Db,
    turn: Turn,
    mine: Sequence[int],
    *,
    now: float,
    limit: int,
    ambiguous_only: bool,
    awaits_time: bool,
    lease_s: float,
) -> list[Claim]:
    """Begin attempts of these partitions: the doubtful events first, then pair after pair."""
    if limit <= 0 or not mine:
        return []
    busy = _busy(db, mine)
    heads = [] if awaits_time else _doubtful(db, mine, busy, now, limit)
    if not ambiguous_only and len(heads) < limit:
        heads += _in_turn(db, turn, mine, busy, now, limit - len(heads))
    started = [(row, states.started(rows.standing_of(row), now=now)) for row in heads]
    fences = _write(db, [_Change(row, after, now + lease_s) for row, after in started])
    claims = [
        Claim(rows.event_of(row), after.attempts, fences[row[_SEQ]], LANE, after.first_ambiguous_at)
        for row, after in started
    ]
    if claims:
        columns = {
            "identifier": texts(c.event.identifier for c in claims),
            "number": whole(c.attempt for c in claims),
            "fence": whole(c.fence for c in claims),
        }
        db.run(_BEGIN, now=now, **columns)
    return claims


def finish(
    db: Db, results: Sequence[tuple[Claim, Outcome]], now: float, random: Callable[[], float]
) -> list[Transition | None]:
    """End attempts, each under its own fence."""
    if not results:
        return []
    found = {row[0]: row for row in _named(db, [claim.event.identifier for claim, _ in results])}
    told: list[Transition | None] = []
    ended: list[tuple[Row, states.Step, Outcome]] = []
    for claim, outcome in results:
        row = found.get(claim.event.identifier)
        if row is None or row[_FENCE] != claim.fence or row[6] != "SENDING":
            told.append(None)
            continue
        del found[claim.event.identifier]  # an attempt ends once
        step = states.ended(rows.standing_of(row), outcome, now=now, random=random)
        ended.append((row, step, outcome))
        told.append(_transition(row, step))
    _end(db, ended, now)
    return told


def crash_sending(db: Db, now: float, partitions: Sequence[int]) -> list[Transition]:
    """Whoever was sending from these partitions is gone."""
    if not partitions:
        return []
    return _crash(db, "partition = ANY(%(mine)s::smallint[])", now, mine=list(partitions))


def pass_time(db: Db, mine: Sequence[int], now: float) -> list[Transition]:
    """Expire leases and move states by age, in these partitions."""
    mine = list(mine)
    here = "partition = ANY(%(mine)s::smallint[])"
    changed = _crash(db, f"lease_until <= %(now)s AND {here}", now, mine=mine)
    doubted = f"{here} AND state = 'AMBIGUOUS' AND first_ambiguous_at <= %(before)s"
    waiting = f"{here} AND next_attempt_at IS NOT NULL AND timestamp <= %(before)s"
    old = _events(db, doubted, mine=mine, before=now - states.HORIZON_S)
    old += [
        row for row in _events(db, waiting, mine=mine, before=now - states.EXPIRY_S) if row[6] == "PENDING"
    ]
    aged = [(row, step) for row in old if (step := states.aged(rows.standing_of(row), now=now))]
    _write(db, [_Change(row, step.standing) for row, step in aged])
    return changed + [_transition(row, step) for row, step in aged]


def due_at(db: Db, mine: Sequence[int] | None) -> float | None:
    """When the next event of these partitions is due; of all of them for None."""
    here = "" if mine is None else "AND partition = ANY(%(mine)s::smallint[])"
    query = f"SELECT min(next_attempt_at) FROM meter_event WHERE next_attempt_at IS NOT NULL {here}"
    at: float | None = db.one(query, mine=list(mine or ()))[0]
    return at


def waiting_since(db: Db, mine: Sequence[int]) -> tuple[float | None, float | None]:
    """When the oldest event of these partitions that waits was made, and its oldest use."""
    since, use = db.one(
        "SELECT min(frozen_at), min(timestamp) FROM meter_event WHERE partition = ANY(%(mine)s::smallint[]) "
        "AND (next_attempt_at IS NOT NULL OR state = 'SENDING')",
        mine=list(mine),
    )
    return since, use


def unsettled(
    db: Db, mine: Sequence[int] | None, *, before: float, since: float, limit: int
) -> list[EventRow]:
    """Events ACCEPTED or IN_DOUBT of these partitions, or of all for None; the oldest first."""
    here = "" if mine is None else "AND partition = ANY(%(mine)s::smallint[])"
    found = db.run(
        f"SELECT {rows.EVENT} FROM meter_event WHERE state IN ('ACCEPTED', 'IN_DOUBT') {here} "
        "AND timestamp >= %(since)s AND (attempt_started_at IS NULL OR attempt_started_at < %(before)s) "
        "ORDER BY timestamp, seq LIMIT %(limit)s",
        mine=list(mine or ()),
        since=since,
        before=before,
        limit=limit,
    )
    return [rows.event_row_of(row, LANE) for row in found]


def _busy(db: Db, mine: Sequence[int]) -> set[Pair]:
    """Customers and meters for which an attempt is under way."""
    found = db.run(
        "SELECT customer, event_name FROM meter_event "
        "WHERE state = 'SENDING' AND partition = ANY(%(mine)s::smallint[])",
        mine=list(mine),
    )
    return {(customer, event_name) for customer, event_name in found}


def _doubtful(db: Db, mine: Sequence[int], busy: set[Pair], now: float, limit: int) -> list[Row]:
    found = _events(
        db,
        "state = 'AMBIGUOUS' AND partition = ANY(%(mine)s::smallint[])",
        "first_ambiguous_at, seq",
        mine=list(mine),
    )
    heads: list[Row] = []
    for row in found:
        pair = (row[2], row[1])
        if (
            row[6] == "AMBIGUOUS"
            and len(heads) < limit
            and pair not in busy
            and states.may_send(rows.standing_of(row), now=now)
        ):
            busy.add(pair)
            heads.append(row)
    return heads


def _in_turn(db: Db, turn: Turn, mine: Sequence[int], busy: set[Pair], now: float, limit: int) -> list[Row]:
    """The earliest due event of each pair, from where the last claim ended and round to it again."""
    chosen: list[int] = []
    for seq, pair in _round(db, turn, mine, now, limit):
        turn.after = pair
        if pair not in busy:
            busy.add(pair)
            chosen.append(seq)
            if len(chosen) == limit:
                break
    if not chosen:
        return []
    found = _events(db, "seq = ANY(%(chosen)s::bigint[])", chosen=chosen)
    place = {seq: n for n, seq in enumerate(chosen)}
    ready = [row for row in found if row[6] == "PENDING" and states.may_send(rows.standing_of(row), now=now)]
    return sorted(ready, key=lambda row: place[row[_SEQ]])


def _round(db: Db, turn: Turn, mine: Sequence[int], now: float, limit: int) -> Iterator[tuple[int, Pair]]:
    start = turn.after
    yield from _next(db, turn, start, mine, now, limit)
    for seq, pair in _next(db, turn, ("", ""), mine, now, limit) if start > ("", "") else ():
        if pair > start:
            return
        yield seq, pair


def _next(
    db: Db, turn: Turn, after: Pair, mine: Sequence[int], now: float, limit: int
) -> Iterator[tuple[int, Pair]]:
    """The earliest due event of each pair behind this one, read in groups."""
    while True:
        group = db.run(
            _HEADS,
            customer=after[0],
            event_name=after[1],
            mine=list(mine),
            without=sorted(turn.without),
            now=now,
            far=now + states.MAX_WAIT_S,
            oldest=now - states.EXPIRY_S,
            limit=limit,
        ).fetchall()
        for seq, customer, event_name in group:
            yield seq, (customer, event_name)
        if len(group) < limit:
            return
        after = (group[-1][1], group[-1][2])


def _events(db: Db, where: str, order: str = "seq", **values: Any) -> list[Row]:
    # Found first, by the index that fits, and locked in order then: where sorting is off, one query for both
    # would read the whole table by its key. What was locked may have moved on, which callers look at.
    query = (
        f"SELECT {_ROW} FROM meter_event WHERE seq = ANY(ARRAY(SELECT seq FROM meter_event WHERE {where})) "
        f"ORDER BY {order} FOR UPDATE"
    )
    return list(db.run(query, **values).fetchall())


def _named(db: Db, identifiers: Sequence[str]) -> list[Row]:
    return _events(db, "identifier = ANY(%(identifiers)s::text[])", identifiers=list(identifiers))


def _crash(db: Db, where: str, now: float, **values: Any) -> list[Transition]:
    crashed = []
    for row in _events(db, f"state = 'SENDING' AND {where}", **{"now": now, **values}):
        if row[6] != "SENDING":
            continue
        step = states.crashed(rows.standing_of(row), now=now)
        crashed.append((row, step, Outcome("ambiguous", message=step.standing.reason)))
    _end(db, crashed, now)
    return [_transition(row, step) for row, step, _ in crashed]


def _end(db: Db, ended: Sequence[tuple[Row, states.Step, Outcome]], now: float) -> None:
    """Attempts end, each the latest of its event."""
    if not ended:
        return
    _write(db, [_Change(row, step.standing) for row, step, _ in ended])
    outcomes = [o for _, _, o in ended]
    columns: dict[str, Column] = {
        "identifier": texts(row[0] for row, _, _ in ended),
        "number": whole(row[7] for row, _, _ in ended),
        "outcome": texts(o.kind for o in outcomes),
        "status": whole(o.status for o in outcomes),
        "code": texts(o.code for o in outcomes),
        "message": texts(o.message for o in outcomes),
        "request_id": texts(o.request_id for o in outcomes),
    }
    db.run(_END, now=now, **columns)


def _write(db: Db, changes: Iterable[_Change]) -> dict[int, int]:
    """Write where events stand, each under the fence it was read with; their fences by `seq`."""
    changes = list(changes)
    if not changes:
        return {}
    places = [c.standing for c in changes]
    columns: dict[str, Column] = {
        "seq": whole(c.row[_SEQ] for c in changes),
        "was": whole(c.row[_FENCE] for c in changes),
        "state": texts(s.state for s in places),
        "attempts": whole(s.attempts for s in places),
        "attempt_started_at": floats(s.attempt_started_at for s in places),
        "first_ambiguous_at": floats(s.first_ambiguous_at for s in places),
        "next_attempt_at": floats(s.next_attempt_at for s in places),
        "backoff_s": floats(s.backoff_s for s in places),
        "reason": texts(s.reason for s in places),
        "lease_until": floats(c.lease_until for c in changes),
    }
    return dict(db.run(_WRITE, **columns).fetchall())


def _transition(row: Row, step: states.Step) -> Transition:
    after = step.standing
    return Transition(row[0], row[6], after.state, after.reason, step.alarm, after.next_attempt_at)
