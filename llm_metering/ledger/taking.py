"""Takes one lane: is it free, ours to understand, sound, the original, and does it remember all it sent?

What its last holder left under way is tidied up; a damaged file is salvaged into a fresh one under the same
name; a copy gets a name of its own, and nothing of it goes out by itself.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .._failpoints import failpoint
from ..errors import LedgerError
from ..protocols import Transition
from . import folder as files
from . import homes, migrating, salvage, schema, soundness, suspicion
from .clocks import ReadBoot
from .lane import Lane, latest_known
from .room import MIB, Room

FOR_GOOD = float("inf")
TRY_AGAIN_S = 60.0
HOME = "home"
"""The meta row that says where a lane's file is at home."""
_HOLDER, _NAME = "holder", "name"
_CHECK_UP_TO = 512 * 1024 * 1024
"""Larger files are not read through at the start (a second a gigabyte)."""
_CHECK_CLOSELY_UP_TO = 64 * 1024 * 1024
"""In larger files indexes are not held against their tables, and not every text is read."""


@dataclass(slots=True)
class Held:
    """A lane whose lock is ours."""

    lane: Lane
    lock: int
    inode: int
    changed: list[Transition]
    """What taking it changed."""


class Taker:
    """Takes lanes of one folder.

    Args:
        alarm: Called with the name, message and data of each alarm.
        leave_alone: Called with the name of a lane that is not to be touched, and until when.
    """

    def __init__(
        self,
        folder: Path,
        *,
        new_id: Callable[[], str],
        random: Callable[[], float],
        connect: files.Connect,
        boot: ReadBoot,
        room: Room,
        alarm: Callable[..., None],
        leave_alone: Callable[[str, float], None],
    ) -> None:
        self._folder = folder
        self._new_id = new_id
        self._random = random
        self._connect = connect
        self._boot = boot
        self._room = room
        self._alarm = alarm
        self._leave_alone = leave_alone
        self.holder = ""
        """Names this process: what it left under way in a lane is still its own."""
        self._put_off: set[str] = set()
        """Lanes that could not be taken for a reason that passes; each is an alarm once."""

    def take(self, name: str, now: float, *, again: bool = False) -> Held | None:
        """Take a lane if it is free and ours; it may have another name afterwards."""
        fd = files.lock(self._folder, name)
        if fd is None:
            return None
        db: sqlite3.Connection | None = None
        copy: Lane | None = None
        path = files.lane_path(self._folder, name)
        size = 0
        try:
            _finish_salvage(self._folder, name, fd)
            size = path.stat().st_size  # opening an empty file makes it grow
            db = files.open_lane(path, self._connect)
            if self._is_ours(name, db, size, now, salvaged=again):
                copy = self._opened(name, db, fd)
                if held := self._original(copy, fd, now):
                    self._put_off.discard(name)
                    return held
                self._suspect_copy(copy, now)
        except sqlite3.DatabaseError as exc:
            if not _is_damage(exc) or again:
                drop(db, fd)
                if self._room.strike(exc, [name]):
                    return self.take(name, now)  # the ballast that was kept with it
                raise
            close(db)
            db = None
            try:
                repaired = self._repaired(name, fd, size, exc, now)
            except BaseException:
                os.close(fd)
                raise
            if repaired:
                os.close(fd)
                return self.take(name, now, again=True)
        except BaseException:
            drop(db, fd)
            raise
        drop(db, fd)
        return self.take(self._renamed(name), now) if copy and path.exists() else None

    def finish_salvages(self) -> None:
        """Put salvaged lanes in their places that a crash kept from it."""
        for name, path in list(salvage.salvaged_files(self._folder)):
            fd = files.lock(self._folder, name)
            if fd is not None:
                try:
                    if files.lane_path(self._folder, name).exists():
                        path.unlink()  # the damaged one is still there, and will be salvaged again
                    else:
                        _finish_salvage(self._folder, name, fd)
                finally:
                    os.close(fd)

    # ---- is it ours, and sound?

    def _is_ours(self, name: str, db: sqlite3.Connection, size: int, now: float, *, salvaged: bool) -> bool:
        version = schema.version_of(db)
        if version is None:
            raise sqlite3.DatabaseError("it has no tables of ours")
        if version > schema.VERSION:
            said = f"a newer version of llm_metering wrote it (schema {version})"
            self._leave(name, "ledger.newer_schema", said)
            return False
        try:
            migrating.migrate(self._folder, name, db)
        except (OSError, LedgerError, sqlite3.OperationalError, sqlite3.IntegrityError) as exc:
            if isinstance(exc, sqlite3.Error) and self._room.is_full(exc):
                raise
            if migrating.is_passing(exc):
                said = f"lane {name} cannot be brought up to date now, and is tried again: {exc}"
                self.put_off(name, now, said)
                return False
            said = (
                f"it could not be brought from schema {version} to {schema.VERSION}, and is as it was: {exc}"
            )
            self._leave(name, "ledger.migration_failed", said)
            return False
        if size <= _CHECK_UP_TO:
            closely = size <= _CHECK_CLOSELY_UP_TO
            # What was just salvaged was read text by text.
            soundness.check(db, indexes=closely, texts=closely and not salvaged)
        return True

    def put_off(self, name: str, now: float, said: str) -> None:
        """Leave a lane alone for a while; an alarm the first time."""
        self._leave_alone(name, now + TRY_AGAIN_S)
        if name not in self._put_off:
            self._put_off.add(name)
            self._alarm("ledger.lane_put_off", said, lane=name)

    def _leave(self, name: str, alarm: str, said: str) -> None:
        self._leave_alone(name, FOR_GOOD)
        self._alarm(alarm, f"lane {name} is left alone: {said}", lane=name)

    def _opened(self, name: str, db: sqlite3.Connection, fd: int) -> Lane:
        return Lane(
            name,
            db,
            new_id=self._new_id,
            random=self._random,
            boot=self._boot,
            mark=partial(files.set_mark, fd),
            mark_sends=partial(files.set_send_marks, fd),
        )

    # ---- the original, or a copy?

    def _original(self, lane: Lane, fd: int, now: float) -> Held | None:
        """Tidy up the lane, unless it is a copy."""
        path = files.lane_path(self._folder, lane.name)
        noted, here = homes.from_json(lane.meta(HOME)), homes.home_of(path, homes.this_machine())
        if noted is not None and here.is_copy_of(noted):
            return None
        self._check_records(lane, files.mark(fd))
        self._check_sends(lane, files.send_marks(fd), now)
        changed = self._recover(lane, now)
        if noted != here:
            lane.set_meta(HOME, homes.to_json(here))
        if lane.meta(_NAME) != lane.name:
            lane.set_meta(_NAME, lane.name)
        lane.mark_all()
        files.sign(fd, here)
        return Held(lane, fd, here.inode, changed)

    def _suspect_copy(self, lane: Lane, now: float) -> None:
        """A copy: the original may still be at work elsewhere, or have been until a moment ago."""
        name, original = lane.name, lane.meta(_NAME)
        path = files.lane_path(self._folder, name)
        if original and original != name and files.lane_path(self._folder, original).exists():
            close(lane.db)
            target = files.set_apart(self._folder, name, now=now, into="copies")
            said = f"lane {name} is a copy of {original}, which is here too; it was moved to {target}"
            self._alarm("ledger.copied", said, lane=name, original=original, path=str(target))
            return
        here = homes.to_json(homes.home_of(path, homes.this_machine()))
        why = f"{suspicion.COPIED}: the original may have sent it, or may yet"
        kept = lane.suspect(why, now=now, **{HOME: here, _NAME: name})
        failpoint("after_suspicion")
        self._alarm(
            "ledger.copied",
            f"lane {name} is a copied file or a restored backup: {kept.records} records are held and "
            f"{kept.events} meter events are in doubt, since the original may bill them; what it holds goes "
            "out by a person's decision only",
            lane=name,
            records=kept.records,
            events=kept.events,
        )

    def _renamed(self, name: str) -> str:
        """Give a copy a name of its own, so that nothing that is meant for the original reaches it."""
        old, new = files.lane_path(self._folder, name), self._new_id()
        if Path(f"{old}-wal").exists():
            return name  # somebody reads it just now: it keeps its name
        old.rename(files.lane_path(self._folder, new))
        files.sync(self._folder)
        return new

    # ---- does it remember?

    def _check_records(self, lane: Lane, marked: int) -> None:
        if lost := lane.find_lost(marked):
            self._alarm(
                "ledger.records_lost",
                f"lane {lane.name} has lost {lost} records that were committed (a damaged log, a lying disk "
                "or an old copy put in its place); what is there is billed",
                lane=lane.name,
                records=lost,
            )

    def _check_sends(self, lane: Lane, marked: tuple[int, int], now: float) -> None:
        """A lane that forgot what it froze or sent would do it again under other names."""
        freezes, tries = marked
        if lane.freezes >= freezes and lane.tries >= tries:
            return
        lost = f"{max(freezes - lane.freezes, 0)} freezes and {max(tries - lane.tries, 0)} attempts to send"
        kept = lane.suspect(f"{suspicion.FORGETFUL}: it is not known what of it was sent", now=now)
        self._alarm(
            "ledger.sends_lost",
            f"lane {lane.name} has lost {lost} that were committed (a damaged log, a lying disk or an old "
            f"copy put in its place): {kept.records} records are held and {kept.events} meter events are in "
            "doubt",
            lane=lane.name,
            records=kept.records,
            events=kept.events,
        )

    def _recover(self, lane: Lane, now: float) -> list[Transition]:
        if lane.meta(_HOLDER) == self.holder:
            return []  # we closed it and nobody had it since: its streams and attempts are still ours
        if lag := lane.tell_time(now, latest=self._latest_known):
            self._alarm(
                "ledger.clock_went_back",
                f"since lane {lane.name} was last used {lag}",
                by_s=lag.s,
                lane=lane.name,
            )
        changed = lane.recover(now=now)
        lane.set_meta(_HOLDER, self.holder)
        return changed

    def _latest_known(self) -> float:
        """The latest time that any lane of the folder knows of."""
        latest = 0.0
        for name in files.lane_names(self._folder):
            path = files.lane_path(self._folder, name)
            with suppress(sqlite3.Error), closing(files.read_lane(path)) as db:
                latest = max(latest, latest_known(db, self._boot()))
        return latest

    # ---- damage

    def _repaired(self, name: str, fd: int, size: int, exc: sqlite3.Error, now: float) -> bool:
        """Set a damaged lane apart and put what is readable of it in its place; whether there is a lane."""
        path = files.lane_path(self._folder, name)
        draft = self._folder / f"salvaging-{name}.db"
        marked = files.mark(fd)
        later = f"lane {name} is damaged ({exc}), and is salvaged once there is room for it"
        if not self._has_room_beside(path):
            self.put_off(name, now, later)
            return False
        found: salvage.Salvaged | None = None
        try:
            found = salvage.salvage(
                path,
                draft,
                records=marked,
                sends=files.send_marks(fd),
                noted_home=files.signed_home(fd),
                new_id=self._new_id,
                now=now,
            )
            draft.rename(self._folder / f"salvaged-{name}.db")
            files.sync(self._folder)
            said = str(found)
            failpoint("after_salvage")
        except (OSError, sqlite3.Error, ValueError, LedgerError) as failed:
            draft.unlink(missing_ok=True)
            if _is_want_of_room(failed):
                self.put_off(name, now, f"{later}: {failed}")
                return False
            said = f"nothing could be salvaged ({failed}); up to {marked} records are not billed"
        target = files.set_apart(self._folder, name, now=now)
        failpoint("after_set_apart")
        self._alarm(
            "ledger.damaged",
            f"lane {name} ({size} bytes) is damaged ({exc}) and was moved to {target}; {said}",
            lane=name,
            bytes=size,
            path=str(target),
            records=found.records if found else 0,
            lost_records=found.lost_records if found else marked,
            events=found.events if found else 0,
            lost_events=found.lost_events if found else None,
        )
        if found:
            _finish_salvage(self._folder, name, fd)
        return found is not None

    def _has_room_beside(self, path: Path) -> bool:
        """Whether a lane can be copied, and written anew. What a full disk hides would be taken for lost."""
        free = files.free_bytes(self._folder)
        size = sum(each.stat().st_size for each in (path, Path(f"{path}-wal")) if each.exists())
        return free is None or free >= 2 * size + MIB


def drop(db: sqlite3.Connection | None, fd: int) -> None:
    """Let a lane go. The file first: a lane without its lock is free for others."""
    close(db)
    os.close(fd)


def close(db: sqlite3.Connection | None) -> None:
    if db is not None:
        with suppress(sqlite3.Error):
            db.close()


def _finish_salvage(folder: Path, name: str, fd: int) -> None:
    """Put a salvaged lane in the place of the damaged one, which was set apart."""
    path, salvaged = files.lane_path(folder, name), folder / f"salvaged-{name}.db"
    if path.exists() or not salvaged.exists():
        return
    # What was lost is told; from here on the marks speak of what is there.
    files.set_mark(fd, 0)
    files.set_send_marks(fd, 0, 0)
    salvaged.rename(path)
    files.sync(folder)


def _is_want_of_room(exc: Exception) -> bool:
    if isinstance(exc, OSError):
        return exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return isinstance(exc, sqlite3.OperationalError) and "full" in str(exc)


def _is_damage(exc: sqlite3.DatabaseError) -> bool:
    # A plain DatabaseError is SQLITE_CORRUPT or SQLITE_NOTADB; full disks and the like are subclasses.
    return type(exc) is sqlite3.DatabaseError
