"""Which lanes this process holds: takes a free one, adopts those of dead processes, lets go of empty ones."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from weakref import WeakSet

from ..errors import LedgerError
from ..protocols import Alarm, Transition
from . import folder as files
from . import spool
from .clocks import ReadBoot
from .lane import Lane, has_work
from .room import Room
from .taking import FOR_GOOD, TRY_AGAIN_S, Held, Taker, drop

_IDLE_UP_TO = 64 * 1024 * 1024
"""A file is read through when it is taken, and usage waits for that."""
_abandoned: list[object] = []
_watched: WeakSet[Lanes] = WeakSet()


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
        boot: ReadBoot,
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
        self._adopt_after_s = adopt_after_s
        self._connect = connect
        self._held: dict[str, Held] = {}
        self._holder = ""
        self._free_since: dict[str, float] = {}
        self._nothing_to_do: dict[str, object] = {}
        self._left_alone: dict[str, float] = {}
        """Lanes that are not to be touched, and until when."""
        self._taker = Taker(
            folder,
            new_id=new_id,
            random=random,
            connect=connect,
            boot=boot,
            room=room,
            alarm=self.alarm,
            leave_alone=self._left_alone.__setitem__,
        )
        _watch_forks(self)

    def __bool__(self) -> bool:
        return bool(self.own)

    def open(self, *, now: float) -> None:
        """Continue in a free lane, or make a new one."""
        files.prepare(self.folder)
        self.forked = False
        self._holder = self._holder or os.urandom(8).hex()
        self._taker.finish_salvages()
        for name in files.lane_names(self.folder):
            if taken := self._take_if_it_can_be(name, now):
                self.own = taken
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
            if name in self._held or self._is_left_alone(name, now):
                continue
            if name not in asked_for and self._has_nothing_to_do(name):
                continue
            if self._is_long_free(name, now):
                self._free_since.pop(name, None)
                self._take_if_it_can_be(name, now)

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

    def take(self, name: str, *, now: float) -> Lane | None:
        """A lane that nobody else holds, until `release`."""
        if name not in self._held and not self._is_left_alone(name, now):
            self._take(name, now)
        return self.get(name)

    def let_go(self, name: str) -> None:
        """Let another process take it."""
        if held := self._held.pop(name, None):
            _let_go(held)

    def release(self, has_work: Callable[[Lane], bool] = Lane.has_work) -> None:
        """Let go of adopted lanes in which nothing goes on by itself; a new process may continue there."""
        for name, held in list(self._held.items()):
            if name != self.own and not has_work(held.lane):
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
            try:
                self.open(now=now)
            finally:
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

    def _take(self, name: str, now: float) -> str:
        """Take a lane if it is free and sound; the name it has then, "" if it was not."""
        self._taker.holder = self._holder
        held = self._taker.take(name, now)
        if held is None:
            return ""
        self.recovered += held.changed
        self._held[held.lane.name] = held
        return held.lane.name

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
            if name in self._held or self._is_left_alone(name, now) or not self._seems_idle(name):
                continue
            if self._take_if_it_can_be(name, now):
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

    def _is_left_alone(self, name: str, now: float) -> bool:
        until = self._left_alone.get(name)
        # A clock that went back does not make it longer.
        return until is not None and (until == FOR_GOOD or 0 < until - now <= TRY_AGAIN_S)

    def _has_nothing_to_do(self, name: str) -> bool:
        """Whether nothing went on by itself when we had it, and nobody had it since."""
        return self._nothing_to_do.get(name) == _signature(files.lane_path(self.folder, name))

    def _take_if_it_can_be(self, name: str, now: float) -> str:
        """As `_take`; a file that cannot be read or locked now keeps nobody from the others, nor from their
        own work. It is tried again."""
        try:
            return self._take(name, now)
        except (sqlite3.Error, LedgerError) as exc:
            if isinstance(exc, sqlite3.Error) and self.is_full(exc):
                raise
            self._taker.put_off(name, now, f"lane {name} cannot be taken now, and is tried again: {exc}")
            return ""

    def _is_long_free(self, name: str, now: float) -> bool:
        if self._adopt_after_s <= 0:
            return True
        try:
            fd = files.lock(self.folder, name)
        except LedgerError:
            return True  # who takes it says what is wrong
        if fd is None:
            self._free_since.pop(name, None)
            return False
        os.close(fd)
        return now - self._free_since.setdefault(name, now) >= self._adopt_after_s


def _signature(path: Path) -> object:
    with suppress(FileNotFoundError):
        found = path.stat()
        return (found.st_ino, found.st_size, found.st_mtime_ns)
    return None


def _let_go(held: Held) -> None:
    drop(held.lane.db, held.lock)


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
