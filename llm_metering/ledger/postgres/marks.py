"""What becomes of a ledger that went back in time: a standby that was behind took over, or a backup was
restored. It has forgotten what was recorded, frozen and sent after the moment that it is of.

Services offer again what they recorded, and what is known by its id changes nothing. But usage that the
ledger holds as not frozen, or does not hold at all, may have been frozen and sent, under an identifier that
is lost: frozen once more it would be billed twice. So a *mark* is set, in one transaction, before anything
else is done. Events that are not settled may have been sent and are AMBIGUOUS: the same bytes are sent again
while Stripe still knows their identifiers. Usage that could have been frozen is held; once everybody has had
time to offer again it becomes events IN_DOUBT, which Stripe's summaries or a person settle.

Every function but `restore_mark` works inside a transaction.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone

from ..._values import dataclass
from .. import states
from . import migrating
from .connecting import SCHEMA, Db, Link
from .desk import set_meta
from .workers import STREAMS_S

KEPT = "perhaps billed already"
"""How the reason begins for which usage is held after a mark."""
GATHER_S = 60.0
"""How long after a mark services may offer again before what is held becomes events in doubt."""
SKEW_S = 5.0
"""How far the clocks of two servers may be apart."""
_FENCES = 10**12
"""So many fences are passed over: more than anyone can have been given that is not known any more."""
EARLY_S = 10.0
"""How old the note has to be that somebody froze buckets before they ended, before any of their events is
sent: a standby that is less far behind then has it, too."""
_EARLY_FOR_S = states.DAY_S
_RENEW_S = _EARLY_FOR_S / 2
_MAX_MARKS = 50
_WHO = "llm_metering"
_SERVER, _MARKS, _EARLY = "server", "marks", "frozen_early"

_KNOWN = """
    SELECT greatest((SELECT max(seen_at) FROM worker), (SELECT value::float8 FROM meta WHERE name = 'clock'))
"""
_BUCKET = 'SELECT min(bucket_s) FROM (SELECT bucket_s FROM "freeze" ORDER BY id DESC LIMIT 1000) f'
_UNSETTLED = """
    WITH open AS (
        UPDATE meter_event SET
            state = %(state)s, reason = %(why)s, lease_until = NULL, fence = nextval('fence'),
            attempts = attempts + CASE state WHEN 'PENDING' THEN 1 ELSE 0 END,
            first_ambiguous_at = coalesce(first_ambiguous_at,
                CASE state WHEN 'SENDING' THEN attempt_started_at END, %(since)s),
            attempt_started_at = %(now)s, next_attempt_at = %(next)s
        WHERE state IN ('PENDING', 'SENDING', 'AMBIGUOUS') RETURNING identifier, attempts, fence
    ), ended AS (
        INSERT INTO attempt AS a (identifier, number, fence, started_at, ended_at, outcome, message)
        SELECT identifier, attempts, fence, %(since)s, %(now)s, 'ambiguous', %(why)s FROM open
        ON CONFLICT (identifier, number) DO UPDATE SET
            ended_at = excluded.ended_at, outcome = excluded.outcome, message = excluded.message
        WHERE a.ended_at IS NULL
    )
    SELECT count(*) FROM open
"""
_HELD = """
    UPDATE usage SET held = %(why)s WHERE "freeze" IS NULL AND held IS NULL AND used_at < %(until)s
"""
# A stream becomes usage when its host is silent for long. One that was heard shortly before cannot have been.
_STREAMS = """
    UPDATE progress p SET held = %(why)s WHERE held IS NULL AND NOT EXISTS (
        SELECT 1 FROM worker w JOIN meta m ON m.name = 'pod:' || w.id
        WHERE w.id = p.worker AND w.seen_at > %(heard)s)
"""
_ACTION = """
    INSERT INTO action (at, who, why, what, subject, before, after)
    VALUES (%(now)s, %(who)s, %(why)s, 'restore_mark', %(id)s, NULL, %(after)s)
"""
# One that is recent stays as it is: it grows older with each flush, and is known to more and more standbys.
_NOTE_EARLY = """
    INSERT INTO meta AS m (name, value) VALUES (%(name)s, %(value)s) ON CONFLICT (name) DO UPDATE SET value =
        CASE WHEN %(now)s - m.value::float8 BETWEEN 0 AND %(renew_s)s THEN m.value ELSE excluded.value END
    RETURNING value
"""
# Everybody may see that there are any, if not how far they are.
_FOLLOWED = """
    SELECT EXISTS (SELECT 1 FROM pg_stat_replication)
        OR EXISTS (SELECT 1 FROM pg_replication_slots WHERE slot_type = 'physical')
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """The ledger is older than it was."""

    id: str
    at: float
    """When that was noticed."""
    since: float
    """The latest moment that it knows of. What was done after it may be forgotten."""
    doubt_until: float
    """Usage from before this may have been frozen and sent."""
    why: str

    @property
    def reason(self) -> str:
        """For which usage is held."""
        return f"{KEPT}: {self.why}"


@dataclass(frozen=True, slots=True)
class Marked:
    """A mark that was set, and what that changed."""

    mark: Mark
    events: int
    """Meter events that may have been sent."""
    records: int
    """Records that are held."""


def meet(db: Db, now: float) -> Marked | None:
    """Look whether this is the server that the ledger was on when it was last written to. Sets a mark if it
    is another, or another life of the same."""
    system = db.one("SELECT system_identifier FROM pg_control_system()")[0]
    here = f"{system}:{db.timeline}"
    db.run(
        "INSERT INTO meta (name, value) VALUES (%(name)s, %(here)s) ON CONFLICT DO NOTHING",
        name=_SERVER,
        here=here,
    )
    noted = _locked(db)
    if noted == here:
        return None
    set_meta(db, _SERVER, here)
    why = f"another server took over ({noted} → {here}), and may lack what was written last"
    return set_mark(db, now, why, resend=True)


def restore_mark(url: str, *, schema: str = SCHEMA, who: str, why: str) -> Marked:
    """A person says that this ledger was restored from a backup.

    Raises:
        LedgerError: The server failed, or has no ledger of this version.
    """
    link = Link(url, schema=schema, keep=False)
    link.watches = link.can_watch()

    def body(db: Db) -> Marked:
        migrating.check(db, link)
        met = meet(db, db.began_at) if link.watches else None
        return met or set_mark(db, db.began_at, f"restored from a backup: {why}", who=who)

    return link.run(body)


def set_mark(db: Db, now: float, why: str, *, who: str = _WHO, resend: bool = False) -> Marked:
    """Let nothing go out of which the ledger may have forgotten that it went out before.

    Args:
        resend: Nothing was written since the ledger went back, so that the age of its doubts is known: events
            are sent again under their identifiers while that is safe. Else they are IN_DOUBT at once.
    """
    known = db.one(_KNOWN)[0]
    known = now if known is None else float(known)
    since = min(known, now)
    mark = Mark(os.urandom(16).hex(), now, since, _doubt_until(db, now, known), why)
    db.run("SELECT setval('fence', nextval('fence') + %(far)s)", far=_FENCES)
    state, next_ = ("AMBIGUOUS", now) if resend else ("IN_DOUBT", None)
    (events,) = db.one(_UNSETTLED, state=state, why=why, since=since, now=now, next=next_)
    records = db.run(_HELD, why=mark.reason, until=mark.doubt_until).rowcount
    heard = max(known, now) - STREAMS_S + SKEW_S
    db.run(_STREAMS, why=mark.reason, heard=heard)
    set_meta(db, _MARKS, json.dumps([asdict(m) for m in [*marks(db), mark]][-_MAX_MARKS:]))
    after = f"{events} events may have been sent, {records} records held"
    db.run(_ACTION, now=now, who=who, why=why, id=mark.id, after=after)
    return Marked(mark, events, records)


def set_mark_once(db: Db, now: float, why: str, known: str) -> Marked | None:
    """As `set_mark`, unless another was set since whoever asks looked last.

    Args:
        known: The id of the latest mark that they know, "" for none.
    """
    _locked(db)
    there = [mark.id for mark in marks(db)]
    if known in ["", *there][:-1]:
        return None
    return set_mark(db, now, why)


def set_mark_after(db: Db, now: float, why: str, after: float) -> Marked | None:
    """As `set_mark`, unless one was set after whoever asks spoke to the ledger last."""
    _locked(db)
    return None if any(mark.at > after for mark in marks(db)) else set_mark(db, now, why)


def moment(at: float) -> str:
    """For people."""
    return f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def marks(db: Db) -> list[Mark]:
    """The latest of those that were set, in their order."""
    row = db.run("SELECT value FROM meta WHERE name = %(name)s", name=_MARKS).fetchone()
    return [] if row is None else [Mark(**given) for given in json.loads(row[0])]


def note_early(db: Db, now: float) -> float:
    """Buckets are frozen before they have ended, as `flush` does, and then the time says nothing of them.
    From when on their events may be sent: a standby that took over without the note would let them be frozen,
    and sent, once more."""
    (noted,) = db.one(_NOTE_EARLY, name=_EARLY, value=repr(now), now=now, renew_s=_RENEW_S)
    is_followed = db.timeline is not None and db.one(_FOLLOWED)[0]
    return max(now, float(noted) + EARLY_S) if is_followed else now


def ripe(db: Db, now: float) -> Sequence[Mark]:
    """Marks whose held usage becomes events in doubt by now."""
    return [mark for mark in marks(db) if now - mark.at >= GATHER_S]


def _locked(db: Db) -> str | None:
    """The server that is on record; nobody else sets a mark until this transaction ends."""
    row = db.run("SELECT value FROM meta WHERE name = %(name)s FOR UPDATE", name=_SERVER).fetchone()
    return None if row is None else str(row[0])


def _doubt_until(db: Db, now: float, known: float) -> float:
    """Usage is frozen once its bucket has ended. What lies in buckets that are open still was not.

    Args:
        known: The latest time that is noted. One that is still to come is of a clock that was ahead of ours,
            by which buckets had ended that are open now.
    """
    until = now + SKEW_S
    if known > now:
        return until
    row = db.run("SELECT value FROM meta WHERE name = %(name)s", name=_EARLY).fetchone()
    if row is not None and now - float(row[0]) < _EARLY_FOR_S:
        return until
    bucket_s = int(db.one(_BUCKET)[0] or 1)
    return until - until % bucket_s
