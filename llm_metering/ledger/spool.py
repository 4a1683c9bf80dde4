"""Decisions on their way to the process that holds the lane they are about.

Only the holder of a lane writes to it. Whoever decides leaves a file, `decisions/<lane>.<id>.json`; the
holder carries it out with its next upkeep and removes it. A file that was carried out but not removed is
known by its id and does nothing.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from .._failpoints import failpoint
from ..decisions import Decision, Pause, decision_from_json, decision_to_json
from ..errors import LedgerError
from ..protocols import Alarm
from . import folder as files
from .lane import Lane

_FOLDER = "decisions"
_ENDING = ".json"
_MAX_BYTES = 4 * 1024 * 1024


def post(folder: Path, lane: str, decision: Decision) -> Path:
    """Leave a decision for whoever holds the lane; it is on disk when this returns."""
    place = folder / _FOLDER
    target = place / f"{lane}.{decision.id}{_ENDING}"
    draft = place / f".{decision.id}"
    try:
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)
        files.write_durably(draft, decision_to_json(decision))
        draft.rename(target)
        files.sync(place)
    except OSError as exc:
        with suppress(OSError):
            draft.unlink()
        raise LedgerError(f"the decision cannot be written to {place}: {exc.strerror}") from exc
    failpoint("decision_posted")
    return target


def posted(folder: Path) -> list[tuple[str, Path]]:
    """The lanes that decisions wait for, and where those are, the oldest first."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / _FOLDER) as entries:
        for entry in entries:
            lane, dot, _ = entry.name.removesuffix(_ENDING).rpartition(".")
            if entry.name.endswith(_ENDING) and dot and lane:
                with suppress(FileNotFoundError):
                    at = entry.stat(follow_symlinks=False).st_mtime_ns
                    found.append((at, lane, Path(entry.path)))
    return [(lane, path) for _, lane, path in sorted(found)]


def take_up(folder: Path, lane_of: Callable[[str], Lane | None], *, now: float, alarms: list[Alarm]) -> None:
    """Carry out what was left for the lanes that are ours."""
    for name, path in posted(folder):
        lane = lane_of(name)
        if lane is None:
            continue
        try:
            decision = read(path)
        except FileNotFoundError:
            continue  # its author took it back
        except (OSError, ValueError) as exc:
            _set_aside(path)
            alarms.append(
                Alarm("ledger.decision_unreadable", f"{path.name} is no decision and was set aside: {exc}")
            )
            continue
        try:
            lane.carry_out(decision, now=now)
        except (sqlite3.Error, LedgerError) as exc:
            message = f"{path.name} cannot be carried out now, and will be tried again: {exc}"
            alarms.append(Alarm("ledger.decision_failed", message))
            continue
        with suppress(FileNotFoundError):
            path.unlink()


def read(path: Path) -> Decision:
    """A decision from its file. One that others could have written is refused."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
            raise ValueError("it is not a file of this user's")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError("others can write to it")
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError("it is too large")
    decision = decision_from_json(text.decode())
    if not path.name.endswith(f".{decision.id}{_ENDING}"):
        raise ValueError("its name is not that of its id")
    return decision


def _set_aside(path: Path) -> None:
    with suppress(OSError):
        path.rename(path.with_suffix(".refused"))


# ---- a person's pause, which is for all lanes and for those to come


def pause_of(folder: Path) -> Pause | None:
    """The pause that stands. One that cannot be read is one: nothing is sent on a doubt."""
    path = f"{folder}/paused"  # asked for every turn: a path of its own costs more than to look
    try:
        lines = _lines(path)
        at, who, why = next(lines), next(lines), next(lines)
        return Pause(who, why, float(at))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, StopIteration) as exc:
        return Pause("unknown", f"the file {path} cannot be read ({exc}); resume removes it", 0.0)


def set_pause(folder: Path, pause: Pause | None) -> None:
    """Let it stand, or lift it."""
    path = folder / "paused"
    try:
        if pause is None:
            with suppress(FileNotFoundError):
                path.unlink()
        else:
            draft = folder / f".paused-{os.getpid()}-{os.urandom(4).hex()}"
            files.write_durably(draft, f"{pause.at!r}\n{pause.who}\n{pause.why}\n")
            draft.rename(path)
        files.sync(folder)
    except OSError as exc:
        raise LedgerError(f"{path} cannot be changed: {exc.strerror}") from exc


def _lines(path: str | Path) -> Iterator[str]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, encoding="utf-8") as file:
        return iter(file.read(10_000).splitlines())
