"""Which lanes this process holds: takes a free one, adopts those of dead processes, lets go of empty ones."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakSet

from ..errors import LedgerError
from ..protocols import Alarm, Transition
from . import folder as files
from . import schema, spool
from .lane import Lane, has_work
from .room import Room

_HOLDER = "holder"
_CHECK_UP_TO = 512 * 1024 * 1024
"""Larger files are not read through at the start (a second a gigabyte)."""
_IDLE_UP_TO = 64 * 1024 * 1024
"""A file is read through when it is taken, and usage waits for that."""
_abandoned: list[object] = []
_watched: WeakSet[Lanes] = WeakSet()


@dataclass(slots=True)
class _Held:
    """A lane whose lock is ours."""

    lane: Lane
    lock: int
    inode: int


class Lanes:
    """The lanes of one folder, seen from one process."""

    def __init__(
        self,
        folder: Path,
        *,
        new_id: Callable[[], str],
        random: Callable[[], float],
        adopt_after_s: float,
        connect: files.Connect,
        room: Room,
    ) -> None:
        self.folder = folder
        self.room = room
        self.own = ""
        """The name of the lane that new usage goes to, "" while closed."""
        self.forked = False
        """Whether this is a child process whose parent had it open."""
        self.recovered: list[Transition] = []
        """What taking over changed, until someone asks."""
        self.alarms: list[Alarm] = []
        self._new_id = new_id
        self._random = random
        self._adopt_after_s = adopt_after_s
        self._connect = connect
        self._held: dict[str, _Held] = {}
        self._holder = ""
        self._free_since: dict[str, float] = {}
        self._nothing_to_do: dict[str, object] = {}
        self._left_alone: set[str] = set()
        _watch_forks(self)

    def __bool__(self) -> bool:
        return bool(self.own)

    def open(self, *, now: float) -> None:
        """Continue in a free lane, or make a new one."""
        files.prepare(self.folder)
        self.forked = False
        self._holder = self._holder or os.urandom(8).hex()
        for name in files.lane_names(self.folder):
            if self._take(name, now):
                self.own = name
                break
        else:
            self.own = self._make(now)
        self.room.settle_in(self.own)
        if self._adopt_after_s <= 0:
            self.adopt(now=now)

    def close(self) -> None:
        held, self._held, self.own = self._held, {}, ""
        self.room.leave()
        for each in held.values():
            _let_go(each)

    def all(self) -> list[Lane]:
        """The lanes we hold, our own first."""
        return [held.lane for held in self._held.values()]

    def get(self, name: str) -> Lane | None:
        held = self._held.get(name)
        return held.lane if held else None

    def adopt(self, *, now: float) -> None:
        """Take over lanes that have been free for long enough and hold work."""
        asked_for = {lane for lane, _ in spool.posted(self.folder)}
        for name in files.lane_names(self.folder):
            if name in self._held or name in self._left_alone:
                continue
            if name not in asked_for and self._has_nothing_to_do(name):
                continue
            if self._long_free(name, now):
                self._free_since.pop(name, None)
                self._take(name, now)

    def carry_out_decisions(self, *, now: float) -> None:
        """What people decided of the lanes that we hold."""
        spool.take_up(self.folder, self.get, now=now, alarms=self.alarms)

    def move_on(self, *, now: float) -> str:
        """Record in a lane in which nothing waits from now on; the name of the one before."""
        before = self.own
        own = self._take_idle(now) or self._make(now)
        self._held = {own: self._held.pop(own), **self._held}
        self.own = own
        self.room.settle_in(own)
        return before

    def let_go(self, name: str) -> None:
        """Let another process take it."""
        if held := self._held.pop(name, None):
            _let_go(held)

    def release(self) -> None:
        """Let go of adopted lanes in which nothing goes on by itself; a new process may continue there."""
        for name, held in list(self._held.items()):
            if name != self.own and not held.lane.has_work():
                del self._held[name]
                _let_go(held)
                self._nothing_to_do[name] = _signature(files.lane_path(self.folder, name))

    def replace_removed(self, *, now: float) -> None:
        """A lane whose file was removed or replaced under us takes no more usage."""
        for name, held in list(self._held.items()):
            path = files.lane_path(self.folder, name)
            with suppress(FileNotFoundError):
                if path.lstat().st_ino == held.inode:
                    continue
            self.alarm(
                "ledger.lane_removed",
                f"the file of lane {name} was removed or replaced while in use; recording goes on in "
                "another lane, and what this one held can no longer be read",
                lane=name,
            )
            del self._held[name]
            _let_go(held)
        if self.own not in self._held:
            adopted, self._held = self._held, {}
            self.open(now=now)
            self._held.update(adopted)

    def is_full(self, exc: sqlite3.Error) -> bool:
        """Whether an error means that there is no room."""
        return self.room.is_full(exc)

    def make_room(self, exc: sqlite3.Error) -> bool:
        """A write failed: where the disk is full give up ballast; whether there was any."""
        freed = self.room.strike(exc, self._held)
        for name, held in self._held.items():
            self.room.shorten(held.lane.db, files.lane_path(self.folder, name))
        return freed

    def keep_short(self) -> None:
        """Where room is scarce, keep logs short."""
        if not self.room.is_scarce:
            return
        for name, held in self._held.items():
            self.room.shorten(held.lane.db, files.lane_path(self.folder, name))

    def alarm(self, name: str, message: str, **data: object) -> None:
        self.alarms.append(Alarm(name, message, data))

    def abandon(self) -> None:
        """We are a forked child: leave the parent's lanes to the parent.

        Its connections must not be used, not even to close them. Its locks must not stay alive through us;
        closing a descriptor that a fork copied leaves the parent's lock in place.
        """
        if not self._held:
            return
        for held in self._held.values():
            os.close(held.lock)
            _keep_for_ever(held.lane)
        self._held, self.own, self._holder = {}, "", ""
        self._free_since, self.recovered, self.alarms = {}, [], []
        self.forked = True

    def _take(self, name: str, now: float) -> bool:
        """Take a lane if it is free and sound, and tidy up what its last holder left under way."""
        fd = files.lock(self.folder, name)
        if fd is None:
            return False
        db: sqlite3.Connection | None = None
        path = files.lane_path(self.folder, name)
        size = 0
        try:
            size = path.stat().st_size  # opening an empty file makes it grow
            db = files.open_lane(path, self._connect)
            if problem := _foreign(db):
                self._leave_alone(name, *problem)
            else:
                if size <= _CHECK_UP_TO:
                    _check(db)
                lane = Lane(
                    name, db, new_id=self._new_id, random=self._random, mark=partial(files.set_mark, fd)
                )
                self._check_records(lane, files.mark(fd))
                self.recovered += self._recover(lane, now)
                self._held[name] = _Held(lane, fd, path.stat().st_ino)
                files.sign(fd)
                return True
        except sqlite3.DatabaseError as exc:
            if not _is_damage(exc):
                _drop(db, fd)
                if self.room.strike(exc, [name]):
                    return self._take(name, now)  # the ballast that was kept with it
                raise
            _close(db)
            db = None
            self._set_apart(name, size, exc, now)
        except BaseException:
            _drop(db, fd)
            raise
        _drop(db, fd)
        return False

    def _check_records(self, lane: Lane, marked: int) -> None:
        if lost := lane.find_lost(marked):
            self.alarm(
                "ledger.records_lost",
                f"lane {lane.name} has lost {lost} records that were committed (a damaged log, a lying disk "
                "or an old copy put in its place); what is there is billed",
                lane=lane.name,
                records=lost,
            )

    def _recover(self, lane: Lane, now: float) -> list[Transition]:
        if lane.meta(_HOLDER) == self._holder:
            return []  # we closed it and nobody had it since: its streams and attempts are still ours
        lane.tell_time(now)
        changed = lane.recover(now=now)
        lane.set_meta(_HOLDER, self._holder)
        return changed

    def _make(self, now: float) -> str:
        for _ in range(5):
            name = self._new_id()
            files.create_lane(self.folder, name, self._connect)
            if self._take(name, now):
                return name
        raise LedgerError(f"each new lane in {self.folder} was taken by another process at once")

    def _take_idle(self, now: float) -> str:
        """Take a free lane of modest size in which nothing waits; "" if there is none."""
        for name in files.lane_names(self.folder):
            if name in self._held or name in self._left_alone or not self._seems_idle(name):
                continue
            if self._take(name, now):
                held = self._held.get(name)
                if held is not None and not held.lane.has_work():
                    return name
                self.let_go(name)  # it is for whoever delivers
        return ""

    def _seems_idle(self, name: str) -> bool:
        path = files.lane_path(self.folder, name)
        with suppress(OSError, sqlite3.Error):
            if path.stat().st_size <= _IDLE_UP_TO:
                with closing(files.read_lane(path)) as db:
                    return not has_work(db)
        return False

    def _has_nothing_to_do(self, name: str) -> bool:
        """Whether nothing went on by itself when we had it, and nobody had it since."""
        return self._nothing_to_do.get(name) == _signature(files.lane_path(self.folder, name))

    def _long_free(self, name: str, now: float) -> bool:
        if self._adopt_after_s <= 0:
            return True
        fd = files.lock(self.folder, name)
        if fd is None:
            self._free_since.pop(name, None)
            return False
        os.close(fd)
        return now - self._free_since.setdefault(name, now) >= self._adopt_after_s

    def _leave_alone(self, name: str, alarm: str, problem: str) -> None:
        self._left_alone.add(name)
        self.alarm(alarm, f"lane {name} is left alone: {problem}", lane=name)

    def _set_apart(self, name: str, size: int, exc: sqlite3.Error, now: float) -> None:
        target = files.set_apart(self.folder, name, now=now)
        self.alarm(
            "ledger.damaged",
            f"lane {name} ({size} bytes) is damaged ({exc}) and was moved to {target}; what it held and "
            "had not been sent is not billed until it is salvaged",
            lane=name,
            bytes=size,
            path=str(target),
        )


def _foreign(db: sqlite3.Connection) -> tuple[str, str] | None:
    """Why a lane is not ours to touch: the alarm's name and what to say."""
    version = schema.version_of(db)
    if version is None:
        raise sqlite3.DatabaseError("it has no tables of ours")
    if version > schema.VERSION:
        return "ledger.newer_schema", f"a newer version of llm_metering wrote it (schema {version})"
    return None


def _check(db: sqlite3.Connection) -> None:
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(str(found))


def _is_damage(exc: sqlite3.DatabaseError) -> bool:
    # A plain DatabaseError is SQLITE_CORRUPT or SQLITE_NOTADB; full disks and the like are subclasses.
    return type(exc) is sqlite3.DatabaseError


def _signature(path: Path) -> object:
    with suppress(FileNotFoundError):
        found = path.stat()
        return (found.st_ino, found.st_size, found.st_mtime_ns)
    return None


def _let_go(held: _Held) -> None:
    _drop(held.lane.db, held.lock)


def _drop(db: sqlite3.Connection | None, fd: int) -> None:
    # The file first: a lane without its lock is free for others.
    _close(db)
    os.close(fd)


def _close(db: sqlite3.Connection | None) -> None:
    if db is not None:
        with suppress(sqlite3.Error):
            db.close()


def _watch_forks(lanes: Lanes) -> None:
    if not _after_fork_registered:
        os.register_at_fork(after_in_child=_after_fork)
        _after_fork_registered.append(True)
    _watched.add(lanes)


_after_fork_registered: list[bool] = []


def _after_fork() -> None:
    for lanes in _watched:
        lanes.abandon()


def _keep_for_ever(lane: Lane) -> None:
    """Never let the connection be closed, not even when the interpreter ends."""
    import ctypes

    _abandoned.append(lane)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(lane.db))
