"""What a host records on its way to the ledger that a fleet shares: groups of its lanes are offered in their
order, and stay here after they were taken for as long as the ledger might go back in time.

    lane: │ dropped │ taken, kept for the window │ waiting │ ◀── recording
                    └──── offered again, should the ledger have gone back

How far a lane has come is noted in the lane itself, a moment late: after a crash some of it is offered once
more, and known by its id. Everything here runs on the thread that writes to the lanes.
"""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .._failpoints import failpoint
from .._values import dataclass as value
from . import folder as files
from . import rows, schema
from .lane import Lane
from .offers import Answer, Offer, OfferAgain
from .sqlite import SqliteLedger

GROUP = 500
"""The most records of one offer."""
HEARTBEAT_S = 5.0
"""How often the ledger hears of a lane in which nothing is new, so that it is noticed if it went back."""
_SAVE_EVERY_S = 1.0
_NOTE_EVERY_S = 10.0
"""How exactly it is noted when records were taken."""
_AHEAD = 5000
"""So many records may be offered before that is noted once more."""
_DROP_AT_ONCE = 2000
_NAME = "outbox"
_RECORDS = f"SELECT seq, {rows.RECORD} FROM usage WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
_STREAMS = f"SELECT {rows.RECORD} FROM progress"
_FAR = 2**62


@value(frozen=True, slots=True)
class Waiting:
    """What of this host the ledger does not have yet."""

    records: int = 0
    since: float | None = None
    """When the oldest of them was recorded."""
    lanes: int = 0
    kept: int = 0
    """Records that it has, and that would be offered again."""
    streams: int = 0


@dataclass(slots=True)
class _Course:
    """How far one lane has come."""

    lane: str
    number: int = 0
    mark: str = ""
    taken: int = 0
    """Records up to this number are in the ledger."""
    offered: int = 0
    """Those up to this one may be."""
    again: int = 0
    """Those up to this one were offered before the ledger went back."""
    retells: bool = False
    """Whether the ledger, since it went back, has yet to hear which streams are under way."""
    heard_at: float | None = None
    notes: list[list[float]] = field(default_factory=list)
    """When those up to which number were taken."""


@dataclass(slots=True)
class _Held:
    """A lane of ours, its course, and what need not survive us."""

    lane: Lane
    course: _Course
    saved_at: float = 0.0
    offered: int = 0
    """As in the course, which is ahead of it."""
    before: int = 0
    """The same before the last offer."""
    is_new: bool = True
    """Whether the ledger has yet to hear from us which of its streams are under way."""
    told: dict[str, float] = field(default_factory=dict)
    """Streams that the ledger knows of, and as of when."""
    retold: set[str] = field(default_factory=set)
    """Streams that it may have known before it went back, whatever they came to since."""
    retold_upto: int = 0
    """Records up to this number may be what such streams came to."""


class Outbox:
    """Offers what the lanes of a folder hold. Nothing is offered that is not on disk.

    Args:
        ledger: The lanes, opened with `forwards=True`.
        window_s: How long records are kept after they were taken.
    """

    def __init__(self, ledger: SqliteLedger, *, window_s: float) -> None:
        self._ledger = ledger
        self._window_s = window_s
        self._held: dict[str, _Held] = {}

    def next(self, *, now: float) -> Offer | None:
        """The next group that is to be offered; None if the ledger has everything."""
        return self._ledger.visit(lambda: self._next(now))

    def answered(self, offer: Offer, answer: Answer, *, now: float) -> int:
        """Note what became of an offer; return how many records are offered again because of it."""
        return self._ledger.visit(lambda: self._answered(offer, answer, now))

    def tidy(self, *, now: float) -> None:
        """Drop what was kept for long enough; see to lanes of dead processes."""
        self._ledger.visit(lambda: self._each(self._drop, now))
        self._ledger.look_for_lanes(now=now, has_work=lambda lane: not self._is_done(lane))

    def save(self, *, now: float) -> None:
        """Note how far each lane has come."""
        self._ledger.visit(lambda: self._each(self._save, now))

    # ---- what is offered

    def _next(self, now: float) -> Offer | None:
        for held in self._all(now):
            if (offer := self._offer_of(held, now)) is not None:
                failpoint("offered")
                return offer
            if held.course.number and not 0 <= now - held.saved_at < _SAVE_EVERY_S:
                self._save(held, now)
        return None

    def _offer_of(self, held: _Held, now: float) -> Offer | None:
        lane, course = held.lane, held.course
        if course.taken >= course.again:
            found = lane.db.execute(_RECORDS, (course.taken, _FAR, GROUP)).fetchall()
        elif not (found := lane.db.execute(_RECORDS, (course.taken, course.again, GROUP)).fetchall()):
            course.taken = course.again
            return self._offer_of(held, now)
        again = course.taken < course.again
        streams = None if again or len(found) == GROUP else lane.db.execute(_STREAMS).fetchall()
        changed = [row for row in streams or () if held.told.get(row[0]) != row[12]]
        ids = None if streams is None else [row[0] for row in streams]
        if not (found or changed or self._is_due(held, ids or [], now)):
            return None
        records = [row[1:] for row in found]
        last = found[-1][0] if found else course.taken
        self._intend(held, last, now)
        return Offer(
            lane=lane.name,
            number=course.number,
            mark=course.mark,
            records=records,
            progress=changed,
            streams=ids,
            keys=lane.line_keys(_numbers([*records, *changed])),
            last=last,
            was_offered=held.before > 0,
            again=again,
            retold=_retold(held, found, changed),
        )

    def _is_due(self, held: _Held, streams: Sequence[str], now: float) -> bool:
        """Whether the ledger is to hear of a lane although nothing in it is new."""
        course = held.course
        if not course.number or course.heard_at is None:
            return False
        if held.is_new or held.told.keys() != set(streams):
            return True
        return bool(streams or course.notes) and not 0 <= now - course.heard_at < HEARTBEAT_S

    def _intend(self, held: _Held, last: int, now: float) -> None:
        """It is on disk that records may be in the ledger before any of them can be."""
        held.before = held.offered
        held.offered = max(held.offered, last)
        if held.offered > held.course.offered:
            held.course.offered = held.offered + _AHEAD
            self._save(held, now)

    # ---- what became of it

    def _answered(self, offer: Offer, answer: Answer, now: float) -> int:
        held = self._of(offer.lane, now)
        if held is None:
            return 0  # the lane was removed under us, and nothing of it is left to note
        course, is_first = held.course, not held.course.number
        if is_first and isinstance(answer, OfferAgain) and answer.number:
            held.before = held.lane.last_seq()  # we know nothing, and the ledger knows us
        course.number, course.mark, course.heard_at = answer.number, answer.mark, now
        if isinstance(answer, OfferAgain):
            return self._begin_again(held, now)
        course.taken = max(course.taken, offer.last)
        held.told.update({row[0]: row[12] for row in offer.progress})
        if offer.streams is not None:
            course.retells = False
            under_way = set(offer.streams)
            held.told = {id_: at for id_, at in held.told.items() if id_ in under_way}
            held.is_new = False
        self._note(course, now)
        if is_first:
            self._save(held, now)
        return 0

    def _begin_again(self, held: _Held, now: float) -> int:
        """The ledger may lack, or may have forgotten that it billed, whatever it was ever offered."""
        course = held.course
        held.offered = held.before
        _doubt_streams(held)
        course.again, course.taken, course.notes, course.retells = held.offered, 0, [], True
        held.told, held.is_new = {}, True
        self._save(held, now)
        query = "SELECT count(*) FROM usage WHERE seq <= ?"
        return int(held.lane.db.execute(query, (course.again,)).fetchone()[0])

    def _note(self, course: _Course, now: float) -> None:
        known = course.notes[-1] if course.notes else [float("-inf"), 0.0]
        if course.taken > known[1] and now - known[0] >= _NOTE_EVERY_S:
            course.notes.append([now, course.taken])

    def _drop(self, held: _Held, now: float) -> None:
        """Drop a share of what was kept for long enough."""
        course, db = held.course, held.lane.db
        course.notes = [[min(at, now), upto] for at, upto in course.notes]  # the clock may have gone back
        over = [upto for at, upto in course.notes if now - at >= self._window_s]
        if not over:
            return
        first, last = db.execute("SELECT min(seq), max(seq) FROM usage").fetchone()
        if first is None or first >= min(over[-1], last):
            course.notes = course.notes[len(over) :]
            return
        with held.lane.transaction(of_attempts=True):
            held.lane.drop_records(min(int(over[-1]), first + _DROP_AT_ONCE))
            self._put(held, now)

    def _is_done(self, lane: Lane) -> bool:
        """Whether nothing in a lane waits, and nothing would be offered again."""
        held = self._held.get(lane.name)
        if held is None or held.lane is not lane:
            return False
        course = held.course
        streams = lane.db.execute("SELECT EXISTS (SELECT 1 FROM progress)").fetchone()[0]
        return not (streams or course.notes) and course.taken >= lane.last_seq()

    # ---- the lanes and their courses

    def _all(self, now: float) -> list[_Held]:
        lanes = self._ledger.held(now=now)
        known = self._held
        self._held = {
            lane.name: held
            if (held := known.get(lane.name)) is not None and held.lane is lane
            else _opened(lane)
            for lane in lanes
        }
        return list(self._held.values())

    def _each(self, act: Callable[[_Held, float], None], now: float) -> None:
        for held in self._all(now):
            act(held, now)

    def _of(self, name: str, now: float) -> _Held | None:
        self._all(now)
        return self._held.get(name)

    def _save(self, held: _Held, now: float) -> None:
        with held.lane.transaction(of_attempts=True):
            self._put(held, now)

    def _put(self, held: _Held, now: float) -> None:
        held.lane.put_meta(_NAME, json.dumps(asdict(held.course)))
        held.saved_at = now


def waiting_in(folder: Path) -> Waiting:
    """What of a folder's lanes waits; for readers, while others write."""
    found = Waiting()
    for name in files.lane_names(folder):
        path = files.lane_path(folder, name)
        with suppress(sqlite3.Error), closing(files.read_lane(path)) as db:
            if schema.version_of(db) == schema.VERSION:
                found = _plus(found, _waiting(db))
    return found


def _waiting(db: sqlite3.Connection) -> Waiting:
    row = db.execute("SELECT value FROM meta WHERE name = ?", (_NAME,)).fetchone()
    taken = json.loads(row[0])["taken"] if row else 0
    first, last = db.execute("SELECT min(seq), max(seq) FROM usage").fetchone()
    (streams,) = db.execute("SELECT count(*) FROM progress").fetchone()
    if last is None:
        return Waiting(lanes=1, streams=streams)
    oldest = db.execute(
        "SELECT recorded_at FROM usage WHERE seq > ? ORDER BY seq LIMIT 1", (taken,)
    ).fetchone()
    return Waiting(
        records=max(last - max(taken, first - 1), 0),
        since=oldest[0] if oldest else None,
        lanes=1,
        kept=max(min(taken, last) - first + 1, 0),
        streams=streams,
    )


def _plus(a: Waiting, b: Waiting) -> Waiting:
    since = [at for at in (a.since, b.since) if at is not None]
    return Waiting(
        a.records + b.records,
        min(since, default=None),
        a.lanes + b.lanes,
        a.kept + b.kept,
        a.streams + b.streams,
    )


def _opened(lane: Lane) -> _Held:
    """A lane as we find it; what others have offered of it is known up to a point."""
    text = lane.meta(_NAME)
    if text is None:
        return _Held(lane, _Course(lane.name))
    course = _Course(**json.loads(text))
    offered = min(course.offered, lane.last_seq())
    if course.lane != lane.name:  # a copy: the ledger knows nothing of it under this name
        course = _Course(lane.name, offered=offered, again=offered)
    held = _Held(lane, course, offered=offered, before=offered)
    if course.retells:
        _doubt_streams(held)
    return held


def _doubt_streams(held: _Held) -> None:
    """The ledger went back, and may have known streams of this lane that it does not know any more."""
    if not held.is_new:
        held.retold |= held.told.keys()
        return
    # Of a lane that was just opened nobody can say which they were.
    held.retold |= {id_ for (id_,) in held.lane.db.execute("SELECT id FROM progress")}
    held.retold_upto = held.lane.last_seq()


def _retold(held: _Held, found: Sequence[rows.Row], changed: Sequence[rows.Row]) -> list[str]:
    """Ids among these records, each with its number before it, and streams."""
    records = [row[1] for row in found if row[0] <= held.retold_upto or row[1] in held.retold]
    return records + [row[0] for row in changed if row[0] in held.retold]


def _numbers(found: Iterable[rows.Row]) -> set[int]:
    """The line keys that occur in these rows."""
    return {number for row in found for number, _ in json.loads(row[10])}
