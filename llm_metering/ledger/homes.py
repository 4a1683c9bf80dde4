"""Where a lane's file is at home: the facts by which a copy of it is told from the original.

A copied folder, or a backup put back in place, holds the same unsent usage as the original once more, under
the same names; were both billed, it would be billed twice. A file that is moved on its disk, or whose disk
is attached to another container, is still the original.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from .._values import dataclass

_MACHINE_ID = Path("/etc/machine-id")
_CONTAINERS = (Path("/.dockerenv"), Path("/run/.containerenv"))
_AT_FDCWD, _NO_FOLLOW, _WANT_BIRTH = -100, 0x100, 0x800
_STATX_BYTES, _BIRTH_AT = 256, 80


@dataclass(frozen=True, slots=True)
class Home:
    """The facts of one file."""

    inode: int
    born: str | None
    """When its inode was made, to the nanosecond; a copy never has the same. None where the disk does not
    say."""
    machine: str | None
    """None where nothing stable is known, as in containers, whose images carry names of their own."""

    def is_copy_of(self, original: Home) -> bool:
        """Whether a file that was `original` when it was last used has been copied to here."""
        if self.machine and original.machine and self.machine != original.machine:
            return True
        if self.born and original.born:
            return self.born != original.born
        return self.inode != original.inode


def home_of(path: Path, machine: str | None) -> Home:
    """The facts of a file as it lies there now."""
    return Home(path.lstat().st_ino, _born(path), machine)


def to_json(home: Home) -> str:
    return json.dumps(asdict(home))


def from_json(text: str | None) -> Home | None:
    """What was noted, None if nothing was, or nothing that can be read."""
    with suppress(ValueError, TypeError, KeyError):
        noted = json.loads(text or "")
        if isinstance(noted["inode"], int):
            return Home(noted["inode"], noted["born"], noted["machine"])
    return None


@lru_cache(maxsize=1)
def this_machine() -> str | None:
    """A name that this machine keeps."""
    if os.environ.get("KUBERNETES_SERVICE_HOST") or any(mark.exists() for mark in _CONTAINERS):
        return None
    with suppress(OSError):
        return _MACHINE_ID.read_text(encoding="ascii", errors="replace").strip()[:32] or None
    return None


def _born(path: Path) -> str | None:
    found = path.lstat()
    birth = getattr(found, "st_birthtime_ns", None) or getattr(found, "st_birthtime", None)
    if birth is not None:
        return repr(birth)
    statx, create_string_buffer = _statx()
    if statx is None:
        return None
    buffer = create_string_buffer(_STATX_BYTES)
    if statx(_AT_FDCWD, os.fsencode(path), _NO_FOLLOW, _WANT_BIRTH, buffer):
        return None
    (mask,) = struct.unpack_from("=I", buffer, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, _BIRTH_AT)
    return f"{seconds}.{nanoseconds:09d}" if mask & _WANT_BIRTH else None


@lru_cache(maxsize=1)
def _statx() -> tuple[Callable[..., int] | None, Callable[[int], Any]]:
    """Python's `os.stat` does not tell when a file was made on Linux; glibc and musl do. With it comes the
    maker of its buffer: a lane may be opened once more while the program ends and nothing can be imported."""
    from ctypes import CDLL, create_string_buffer

    found: Callable[..., int] | None = None
    with suppress(OSError, AttributeError):
        found = CDLL(None).statx
    return found, create_string_buffer
