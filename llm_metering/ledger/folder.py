"""The folder of a SQLite ledger: is it fit to hold money, which lanes are in it, who holds them.

A lane is `lane-<name>.db` and its lock `lane-<name>.lock`. The lock is a file of its own because closing any
descriptor of a database file drops the locks that SQLite itself holds on it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import sqlite3
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path
from urllib.parse import quote

from ..errors import AccountMismatch, LedgerError
from . import schema
from .homes import Home, from_json

Connect = Callable[..., sqlite3.Connection]

_PREFIX, _SUFFIX = "lane-", ".db"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_BUSY_S = 5.0
_MARK_AT, _SEND_MARKS_AT, _MARK_BYTES = 256, 277, 21
_WAL_LIMIT = 64 * 1024 * 1024


def prepare(folder: Path) -> None:
    """Make the folder if there is none, and refuse one that others could tamper with."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as exc:
        raise LedgerError(
            f"the ledger folder {folder} cannot be made: {exc.strerror}; create it, or set "
            "LLM_METERING_LEDGER to a folder that this user can write"
        ) from exc
    if problem := _problem(folder, found):
        raise LedgerError(f"the ledger folder {folder} {problem}")
    _try_writing(folder)


def devote(folder: Path, *, forwards: bool) -> None:
    """Keep apart what a folder is for: lanes from which usage is billed, or lanes that forward it to a ledger
    elsewhere. What is forwarded would be billed twice by a process that took it for a ledger.

    Raises:
        LedgerError: It is for the other.
    """
    mark = folder / "forwards"
    if mark.is_file() and not forwards:
        raise LedgerError(
            f"{folder} holds what is on its way to a ledger in PostgreSQL; name that one in "
            "LLM_METERING_LEDGER"
        )
    if mark.is_file() or not forwards:
        return
    if (folder / "account").exists() or lane_names(folder):
        raise LedgerError(
            f"{folder} is the ledger of a single host: deliver what it holds first, with 'llm-metering "
            f"deliver --once --ledger {folder}', and name another folder in LLM_METERING_LANE_FOLDER"
        )
    write_durably(mark, "")


def lane_path(folder: Path, name: str) -> Path:
    return folder / f"{_PREFIX}{name}{_SUFFIX}"


def lane_names(folder: Path) -> list[str]:
    """Lanes in the folder, the latest used first. A symbolic link is not a lane."""
    found = []
    try:
        with os.scandir(folder) as files:
            for file in files:
                if file.name.startswith(_PREFIX) and file.name.endswith(_SUFFIX):
                    with suppress(FileNotFoundError):
                        if file.is_file(follow_symlinks=False):
                            used = file.stat(follow_symlinks=False).st_mtime
                            found.append((used, file.name[len(_PREFIX) : -len(_SUFFIX)]))
    except OSError as exc:
        raise LedgerError(f"the ledger folder {folder} cannot be read: {exc.strerror}") from exc
    return [name for _, name in sorted(found, reverse=True)]


def lock(folder: Path, name: str) -> int | None:
    """Take a lane: the descriptor that holds its lock, None if another process holds it."""
    path = folder / f"{_PREFIX}{name}.lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise LedgerError(f"the lock {path} cannot be opened: {exc.strerror}") from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(fd)
        if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise LedgerError(
            f"{path} cannot be locked: {exc.strerror}; a ledger needs a local disk that knows flock"
        ) from exc
    return fd


def sign(fd: int, home: Home) -> None:
    """Write into a lock who holds it, for people who look, and where its lane is at home."""
    note = json.dumps({"pid": os.getpid(), "host": os.uname().nodename[:60], "home": asdict(home)})
    with suppress(OSError):  # a full disk must not stop the start
        os.pwrite(fd, note.encode().ljust(_MARK_AT - 1) + b"\n", 0)


def signed_home(fd: int) -> Home | None:
    """Where its lane was at home when it was last held."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return from_json(json.dumps(json.loads(os.pread(fd, _MARK_AT, 0))["home"]))
    return None


def set_mark(fd: int, records: int) -> None:
    """Note in a lane's lock how many records its file holds, once they are on disk.

    A log that is cut or has a bit flipped loses its last records in silence; the mark shows it.
    """
    with suppress(OSError):
        os.pwrite(fd, b"%020d\n" % records, _MARK_AT)


def mark(fd: int) -> int:
    """The number that was noted last, 0 if none was."""
    text = os.pread(fd, 20, _MARK_AT)
    return int(text) if text.isdigit() else 0


def set_send_marks(fd: int, freezes: int, attempts: int) -> None:
    """Note how many freezes and attempts to send the file holds. A file that holds fewer has forgotten what
    it froze or sent, and would do it again under other names."""
    with suppress(OSError):
        os.pwrite(fd, b"%020d\n%020d\n" % (freezes, attempts), _SEND_MARKS_AT)


def send_marks(fd: int) -> tuple[int, int]:
    """The numbers of freezes and attempts that were noted last, 0 where none were."""
    texts = [os.pread(fd, 20, _SEND_MARKS_AT + at) for at in (0, _MARK_BYTES)]
    freezes, attempts = (int(text) if text.isdigit() else 0 for text in texts)
    return freezes, attempts


def create_lane(folder: Path, name: str, connect: Connect) -> None:
    """Make an empty lane under its name in one step, so that a file without tables is a damaged one."""
    if not _NAME.fullmatch(name):
        raise LedgerError(
            f"new_id made {name[:50]!r}, which cannot be the name of a lane: it takes 1 to 100 letters, "
            "digits, '-' and '_'"
        )
    made = folder / f"new-{name}{_SUFFIX}"
    try:
        db = connect(str(made), isolation_level=None)
        try:
            made.chmod(0o600)
            db.execute("PRAGMA synchronous = FULL")
            schema.create(db)
        finally:
            db.close()
        made.rename(lane_path(folder, name))
        sync(folder)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


def open_lane(path: Path, connect: Connect) -> sqlite3.Connection:
    """The writing connection of a lane whose lock is ours."""
    db = connect(
        _uri(path, "rw"),
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_BUSY_S,
    )
    try:
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA cell_size_check = ON")
        db.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        db.close()
        raise
    return db


def read_lane(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, beside the one that does."""
    return sqlite3.connect(
        _uri(path, "ro"),
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_BUSY_S,
    )


def set_apart(folder: Path, name: str, *, now: float, into: str = "damaged") -> Path:
    """Move a lane out of the way, with its log, for a person to look at. Nothing is deleted."""
    apart = subfolder(folder, into)
    numbers = chain((f"{int(now)}",), (f"{int(now)}-{n}" for n in count(2)))
    # Of a clock that went back, or two within a second, neither takes the other's place.
    target = next(t for n in numbers if not (t := apart / f"{_PREFIX}{name}-{n}{_SUFFIX}").exists())
    for ending in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            Path(f"{lane_path(folder, name)}{ending}").rename(f"{target}{ending}")
    sync(folder)
    return target


def subfolder(folder: Path, name: str) -> Path:
    """A folder within, made if there is none. A link is not followed."""
    place = folder / name
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    if not stat.S_ISDIR(place.lstat().st_mode):
        raise LedgerError(f"{place} is not a folder; remove what is in its place")
    return place


def bind(folder: Path, account: str) -> None:
    """Tie the folder to an account, once and for all processes."""
    if (bound := bound_account(folder)) is None:
        draft = folder / f"account.{os.getpid()}"
        try:
            write_durably(draft, account)
            with suppress(FileExistsError):
                # A link, unlike a rename, never replaces what another process wrote first.
                os.link(draft, folder / "account")
            sync(folder)
        except OSError as exc:
            raise LedgerError(f"the account of {folder} cannot be written: {exc.strerror}") from exc
        finally:
            with suppress(OSError):
                draft.unlink()
        bound = bound_account(folder)
    if bound != account:
        raise AccountMismatch(bound_to=str(bound), key_of=account)


def bound_account(folder: Path) -> str | None:
    try:
        return (folder / "account").read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise LedgerError(f"the account of {folder} cannot be read: {exc.strerror}") from exc


def sync(folder: Path) -> None:
    """Make names in the folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def free_bytes(folder: Path) -> int | None:
    """Room on the disk for this user, None where it cannot be told."""
    with suppress(OSError):
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize
    return None


def takes_writes(folder: Path, name: str) -> bool:
    """Whether the disk can be written, tried with the time of a lane's lock. Only for who holds the lane.

    A file system that turned read-only after an error may still look as before.
    """
    try:
        os.utime(folder / f"{_PREFIX}{name}.lock")
    except OSError as exc:
        return exc.errno not in (errno.EROFS, errno.EIO)
    return True


def write_durably(path: Path, text: str) -> None:
    """Write a file that only this user can read; it is on disk when this returns."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        data = text.encode()
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path.absolute()))}?mode={mode}"


def _problem(folder: Path, found: os.stat_result) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link, which is not followed; name the folder it points to"
    if not stat.S_ISDIR(found.st_mode):
        return "is not a folder; name one, or remove the file that is in its place"
    if found.st_uid != os.geteuid():
        return (
            f"belongs to user {found.st_uid}, but this process runs as user {os.geteuid()}; run as its "
            "owner, or set LLM_METERING_LEDGER to a folder of this user"
        )
    if found.st_mode & stat.S_IWOTH:
        return f"can be written by everyone; run: chmod 700 {folder}"
    return None


def _try_writing(folder: Path) -> None:
    probe = folder / f".probe-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        probe.unlink()
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return  # a full disk is met by the writer, which waits for it to drain
        raise LedgerError(
            f"the ledger folder {folder} cannot be written: {exc.strerror}; give this user the right to, "
            "or set LLM_METERING_LEDGER to a folder that it can write"
        ) from exc
