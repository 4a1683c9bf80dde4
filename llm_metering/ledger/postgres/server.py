"""Whether the server keeps what it acknowledges: its settings, with a sentence for each that is wrong.

How transactions are isolated is not among them: every transaction of ours says so itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import ConfigurationError
from .connecting import Db, Link

OLDEST = 140000
_NAMES = (
    "server_version_num", "server_encoding", "fsync", "synchronous_commit", "full_page_writes",
    "transaction_read_only", "statement_timeout", "idle_in_transaction_session_timeout",
)  # fmt: skip
_LONG_ENOUGH_MS = 30_000

REFUSED: Mapping[tuple[str, str], str] = {
    ("fsync", "off"): "fsync is off: usage that was acknowledged is lost when the server's machine stops; "
    "set fsync = on",
    ("synchronous_commit", "off"): "synchronous_commit is off: usage that was acknowledged is lost when the "
    "server stops; set it to on, or to local, remote_write or remote_apply, for this role or database",
    ("transaction_read_only", "on"): "the server takes no writes (it is a standby, or "
    "default_transaction_read_only is on): connect to the primary, with target_session_attrs=read-write",
}
"""What no ledger can stand on."""
DOUBTED: Mapping[tuple[str, str], str] = {
    ("full_page_writes", "off"): "full_page_writes is off: a machine that stops can leave half-written pages "
    "unless its file system never does; set full_page_writes = on",
}
"""What may be right where the storage sees to it."""


def check(db: Db, link: Link) -> list[str]:
    """Refuse a server that loses what it acknowledges; return what else is doubtful, a sentence each."""
    found = _settings(db)
    refused, doubtful = judge(found)
    if refused:
        raise ConfigurationError(f"the ledger cannot be at {link.place}: {'; '.join(refused)}")
    return doubtful


def recheck(db: Db) -> list[str]:
    """All that is wrong or doubtful by now."""
    refused, doubtful = judge(_settings(db))
    return refused + doubtful


def judge(settings: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What these settings rule out, and what they make doubtful."""
    refused = [said for (name, value), said in REFUSED.items() if settings.get(name) == value]
    if int(settings["server_version_num"]) < OLDEST:
        refused.append(f"PostgreSQL {OLDEST // 10_000} or newer is needed")
    if settings["server_encoding"] != "UTF8":
        refused.append(
            f"the database's encoding is {settings['server_encoding']}: make it with ENCODING 'UTF8'"
        )
    doubtful = [said for (name, value), said in DOUBTED.items() if settings.get(name) == value]
    doubtful += [
        f"{name} is {settings[name]} ms: what takes longer after an outage never ends; set it to 0 or at "
        f"least {_LONG_ENOUGH_MS} ms for this role"
        for name in ("statement_timeout", "idle_in_transaction_session_timeout")
        if 0 < int(settings[name]) < _LONG_ENOUGH_MS
    ]
    return refused, doubtful


def _settings(db: Db) -> dict[str, str]:
    # In milliseconds or plain words, where `SHOW` would add units.
    rows = db.run(
        "SELECT name, CASE name WHEN 'transaction_read_only' THEN current_setting(name) ELSE setting END "
        "FROM pg_settings WHERE name = ANY(%(names)s)",
        names=list(_NAMES),
    )
    found = dict(rows.fetchall())
    (standby,) = db.one("SELECT pg_is_in_recovery()")
    return {**found, "transaction_read_only": "on"} if standby else found
