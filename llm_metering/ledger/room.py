"""How much room a ledger has: a cap on its folder, a reserve of free space, and ballast.

A full disk cannot drain itself: what becomes of a meter event has to be written too, and so has the
checkpoint that would shrink the log. So each lane that is written to keeps a file of real blocks beside it,
its ballast, and gives that up when the disk strikes. From then on no new usage is taken, so that the freed
blocks go to what is under way, until there is room for the ballast again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from ..errors import LedgerFull
from .folder import free_bytes

MIB = 1024 * 1024
BALLAST_BYTES = MIB
_SOON_S = 1.0
"""How long a folder's size and a failed try at ballast are believed."""
_LONG_LOG = BALLAST_BYTES // 2
_SCARCE = 8 * MIB


class Room:
    """The room of one folder, as one process sees it.

    Args:
        max_bytes: The most that the folder may take up, ballast apart; 0 for no cap.
        min_free_bytes: The free space that is left to the rest of the disk.
        ballast_bytes: The size of each ballast; 0 for none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 0,
        min_free_bytes: int = 0,
        ballast_bytes: int = BALLAST_BYTES,
    ) -> None:
        self.struck = False
        """Whether the disk was full and has not recovered; no usage is taken meanwhile."""
        self.is_scarce = False
        """Whether little room was left when we last looked."""
        self._folder = folder
        self._max = max_bytes
        self._min_free = min_free_bytes
        self._size = ballast_bytes
        self._lane = ""
        self._has_ballast = False
        self._tried_at = float("-inf")
        self._measured_at = float("-inf")
        self._measured = 0

    def settle_in(self, lane: str) -> None:
        """Keep ballast beside this lane from now on."""
        if lane != self._lane:
            self._lane, self._has_ballast, self._tried_at = lane, False, float("-inf")

    def leave(self) -> None:
        """The lane is let go; its ballast stays with it."""
        self._lane, self._has_ballast = "", False

    def check(self, *, now: float) -> None:
        """Raise `LedgerFull` if there is no room for more usage."""
        free = free_bytes(self._folder)
        self.is_scarce = self.struck or (free is not None and free < _SCARCE + self._min_free)
        if not self._has_ballast:
            self._restore(free, now)
        if self.struck:
            raise LedgerFull(
                f"the disk of {self._folder} is full; usage is taken again once "
                f"{2 * self._size + self._min_free} bytes are free"
            )
        if free is not None and free < self._min_free:
            raise LedgerFull(
                f"{free} bytes are free on the disk of {self._folder}, fewer than min_free_bytes="
                f"{self._min_free}; free some, or lower LLM_METERING_MIN_FREE_BYTES"
            )
        if self._max and (size := self._folder_size(now)) >= self._max:
            raise LedgerFull(
                f"the ledger in {self._folder} takes up {size} bytes, and max_ledger_bytes is {self._max}; "
                "raise LLM_METERING_MAX_LEDGER_BYTES"
            )

    def may_claim(self) -> bool:
        """Whether a send may begin: what becomes of it must find room."""
        if not self.struck or not self._size:
            return True
        free = free_bytes(self._folder)
        return free is None or free >= self._size // 4

    def lacks_room(self) -> bool:
        """Whether the disk was full and the ballast still finds no room. Any thread may ask."""
        free = free_bytes(self._folder)
        return self.struck and free is not None and free < 2 * self._size + self._min_free

    def strike(self, exc: sqlite3.Error, lanes: Iterable[str]) -> bool:
        """A write failed. If that was for want of room give up the ballast; whether any was freed."""
        if not self.is_full(exc):
            return False
        self.struck, self.is_scarce = bool(self._size), True
        self._has_ballast = False
        freed = [drop_ballast(self._folder, lane) for lane in lanes]
        return any(freed)

    def is_full(self, exc: sqlite3.Error) -> bool:
        """Whether an error means that there is no room. Some file systems say so by an I/O error."""
        said = str(exc)
        if "database or disk is full" in said:
            return True
        free = free_bytes(self._folder)
        return "disk I/O error" in said and free is not None and free < max(self._size, _LONG_LOG)

    def shorten(self, db: sqlite3.Connection, path: Path) -> None:
        """Write a long log back into its file, so that its blocks are free."""
        with suppress(OSError, sqlite3.Error):
            if Path(f"{path}-wal").stat().st_size > _LONG_LOG or self.struck:
                # Without waiting for readers: they would hold up everyone else.
                db.execute("PRAGMA busy_timeout = 0")
                try:
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                finally:
                    db.execute("PRAGMA busy_timeout = 5000")

    def _restore(self, free: int | None, now: float) -> None:
        """Build the ballast where there is room for it and as much again."""
        if not self._lane or (free is not None and free < 2 * self._size + self._min_free):
            return
        if 0 <= now - self._tried_at < _SOON_S:
            return
        self._tried_at = now
        if build_ballast(self._folder, self._lane, self._size):
            self._has_ballast = True
            self.struck = False

    def _folder_size(self, now: float) -> int:
        # Between two looks little is written: a group takes longer than a look lasts.
        if not 0 <= now - self._measured_at < _SOON_S or self._measured >= self._max:
            self._measured = size_of(self._folder)
            self._measured_at = now
        return self._measured


def ballast_path(folder: Path, lane: str) -> Path:
    return folder / f"lane-{lane}.ballast"


def build_ballast(folder: Path, lane: str, size: int) -> bool:
    """Fill a file with real blocks; False if there is no room for them."""
    path = ballast_path(folder, lane)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(fd)
            if found.st_size != size or found.st_blocks * 512 < size:
                os.ftruncate(fd, 0)
                _fill(fd, size)
        finally:
            os.close(fd)
    except OSError:
        drop_ballast(folder, lane)
        return False
    return True


def drop_ballast(folder: Path, lane: str) -> bool:
    """Give its blocks back; False if there was none."""
    try:
        ballast_path(folder, lane).unlink()
    except OSError:
        return False
    return True


def size_of(folder: Path) -> int:
    """What a folder takes up on its disk, ballast apart."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            if not name.endswith(".ballast"):
                with suppress(OSError):
                    total += (Path(place) / name).lstat().st_blocks * 512
    return total


def _fill(fd: int, size: int) -> None:
    allocate: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
    if allocate is not None:
        allocate(fd, 0, size)
        return
    while size > 0:
        size -= os.write(fd, bytes(min(size, 64 * 1024)))
