"""Lanes pass from the process that records to the one that delivers.

Where another process delivers, this one goes on in a fresh lane now and then and lets go of the one before;
who delivers takes it by its lock. At every moment a lane has one holder or none, so whoever is killed leaves
a lane that the other may take, and nothing has to be told to anyone.

The end of a stream belongs into the lane that has its progress, in one transaction. So a lane is kept until
the streams that began in it have ended, or for `max_stream_s`: then what they produced is usage, and what
they produce from then on is a part of its own in another lane.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field

from ..protocols import Entry, Progress
from . import folder as files
from .lane import Lane
from .lanes import Lanes
from .parts import Parts

MAX_KEPT = 8
"""So many lanes are kept for the sake of their streams; then no further one is handed over until one ends."""
LONG_KEPT_S = 3600.0
"""A lane that is kept for longer is an alarm."""
MAX_FORMER = 64
"""So many lanes that were ours are looked through for ids that were recorded before."""


@dataclass(slots=True)
class _Share:
    """What of one group goes to one lane."""

    entries: list[Entry] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)


class Handover:
    """What a process that hands its lanes over must remember of them."""

    def __init__(self, lanes: Lanes, *, max_stream_s: float = 0.0) -> None:
        self._lanes = lanes
        self._max_stream_s = max_stream_s
        self._parts = Parts()
        self._homes: dict[str, str] = {}
        """The lanes of streams that began before the last hand-over."""
        self._former: dict[str, None] = {}
        self._kept_since: dict[str, float] = {}
        """When each lane that is kept for its streams would have been handed over."""
        self._told: set[str] = set()
        self._has_stopped = False

    @property
    def has_begun(self) -> bool:
        """Whether usage may have to go elsewhere than into our own lane."""
        return bool(self._former)

    def forget(self) -> None:
        """We are a forked child: none of it is ours."""
        self._homes.clear()
        self._former.clear()
        self._kept_since.clear()
        self._parts.clear()

    def hand_over(self, *, now: float, bucket_s: int, everything: bool) -> bool:
        """Let go of what another process can deliver; whether there was anything."""
        lanes = self._lanes
        self._cut_streams(now)
        own = lanes.get(lanes.own)
        wanted = own is not None and own.can_be_delivered(now=now, bucket_s=bucket_s, everything=everything)
        stopped = wanted and len(set(self._homes.values())) >= MAX_KEPT
        if own is not None and wanted and not stopped:
            streams = own.streams()
            before = lanes.move_on(now=now)
            self._homes.update(dict.fromkeys(streams, before))
            self._kept_since[before] = now
            self._former.pop(before, None)
            self._former[before] = None
            while len(self._former) > MAX_FORMER:
                del self._former[next(iter(self._former))]
        has_gone = self._let_go()
        self._watch_streams(now, stopped=stopped)
        return has_gone

    def _cut_streams(self, now: float) -> None:
        """What long streams produced so far is usage, so that their lanes can go."""
        long = {n for n, since in self._kept_since.items() if 0 < self._max_stream_s <= now - since}
        for name in long & set(self._homes.values()):
            lane = self._lanes.get(name)
            ids = [id_ for id_, home in self._homes.items() if home == name][:_AT_ONCE]
            if lane is None or not ids:
                continue
            for id_, counts, lines in lane.cut(ids):
                self._parts.cut(id_, counts, lines)
            self._ended(ids, ())

    def _watch_streams(self, now: float, *, stopped: bool) -> None:
        """A stream that does not end keeps its lane's usage from being billed: a person must know."""
        kept = set(self._homes.values())
        self._kept_since = {name: min(at, now) for name, at in self._kept_since.items() if name in kept}
        for name, since in self._kept_since.items():
            if now - since >= LONG_KEPT_S and name not in self._told:
                self._told.add(name)
                ids = sorted(id_ for id_, home in self._homes.items() if home == name)
                self._lanes.alarm(
                    "ledger.handover_waits",
                    f"lane {name} has been kept for an hour by {len(ids)} streams that have not ended, such "
                    f"as {ids[0]}; its usage is billed once they end, or this process does",
                    lane=name,
                    streams=len(ids),
                )
        if stopped and not self._has_stopped:
            self._lanes.alarm(
                "ledger.handover_stopped",
                f"{len(kept)} lanes are kept by {len(self._homes)} streams that have not ended, so nothing "
                "is handed over until one does; end hanging streams (a time-out on the provider's client), "
                "or restart this process: what they produced is billed as partial",
                lanes=len(kept),
                streams=len(self._homes),
            )
        self._has_stopped = stopped
        self._told &= kept

    def commit(
        self, entries: Sequence[Entry], progress: Sequence[Progress], drops: Sequence[str], *, now: float
    ) -> int:
        """As `Lane.commit`, each part where it belongs. Told again after a failure, it counts nothing twice:
        where a stream lives is forgotten only when all of it is on disk."""
        over: set[str] = set()
        if self._parts:
            over = {*(id_ for e in entries for id_ in (e.closes, e.record.id) if id_ is not None), *drops}
            entries = [self._parts.rest(entry) for entry in entries]
            progress = [Progress(self._parts.rest(each.entry)) for each in progress]
            drops = [self._parts.name(id_) for id_ in drops]
        new = self._put(entries, progress, drops, now=now)
        for id_ in over:
            self._parts.over(id_)
        return new

    def _put(
        self, entries: Sequence[Entry], progress: Sequence[Progress], drops: Sequence[str], *, now: float
    ) -> int:
        shares: dict[str, _Share] = {}
        known = self._known([e.record.id for e in entries if self._home(e.record.id, e.closes) is None])
        for each in progress:
            self._share(shares, self._homes.get(each.entry.record.id)).progress.append(each)
        for entry in entries:
            home = self._home(entry.record.id, entry.closes)
            if home is not None or entry.record.id not in known:
                self._share(shares, home).entries.append(entry)
            elif entry.closes is not None:
                self._share(shares, None).drops.append(entry.closes)
        for id_ in drops:
            self._share(shares, self._homes.get(id_)).drops.append(id_)
        new = 0
        for name, share in shares.items():
            lane = self._lane(name)
            new += lane.commit(share.entries, share.progress, share.drops, now=now)
        self._ended((e.closes or e.record.id for e in entries), drops)
        return new

    def _home(self, id_: str, closes: str | None) -> str | None:
        """The lane that a record must go to; None for our own."""
        home = self._homes.get(closes) if closes is not None else None
        return home or self._homes.get(id_)

    def _share(self, shares: dict[str, _Share], home: str | None) -> _Share:
        name = home if home is not None and self._lanes.get(home) is not None else self._lanes.own
        return shares.setdefault(name, _Share())

    def _lane(self, name: str) -> Lane:
        lane = self._lanes.get(name)
        assert lane is not None, "a share is made for lanes that we hold"  # noqa: S101
        return lane

    def _ended(self, ends: Iterable[str], drops: Sequence[str]) -> None:
        for id_ in (*ends, *drops):
            self._homes.pop(id_, None)

    def _let_go(self) -> bool:
        """Of all lanes but our own in which no stream of ours goes on."""
        kept = {self._lanes.own, *self._homes.values()}
        free = [lane.name for lane in self._lanes.all() if lane.name not in kept]
        for name in free:
            self._lanes.let_go(name)
        return bool(free)

    def _known(self, ids: Sequence[str]) -> set[str]:
        """Which of these were recorded in lanes that were ours before. An id is recorded once."""
        known: set[str] = set()
        for name in self._former:
            if name == self._lanes.own:
                continue
            lane = self._lanes.get(name)
            if lane is not None:
                known |= _found(lane.db, ids)
                continue
            path = files.lane_path(self._lanes.folder, name)
            # If it was removed or set apart nobody can tell.
            with suppress(sqlite3.Error), closing(files.read_lane(path)) as db:
                known |= _found(db, ids)
        return known


def _found(db: sqlite3.Connection, ids: Sequence[str]) -> set[str]:
    some = [ids[i : i + _AT_ONCE] for i in range(0, len(ids), _AT_ONCE)]
    return {
        found
        for group in some
        for (found,) in db.execute(
            f"SELECT id FROM usage WHERE id IN ({','.join('?' * len(group))})",  # noqa: S608
            group,
        )
    }


_AT_ONCE = 500
