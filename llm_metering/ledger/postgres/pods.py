"""Takes in what the lanes of a fleet's hosts offer, each record once.

For each lane the ledger notes how many groups it has taken, in the transaction that takes them; the note, a
hundred bytes, stays for good. A lane that was told of more than that tells of a ledger that went back; so
does one that knows of a mark that the ledger does not. Every function works inside a transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from .. import rows
from ..offers import Answer, Offer, OfferAgain, Taken
from ..states import EXPIRY_S
from . import marks
from .connecting import Db
from .desk import set_meta
from .intake import Intake
from .marks import Marked
from .workers import STREAMS_S, Post

LISTEN_S = 15.0
"""So long after a server has begun nothing is frozen or sent before all known lanes were heard: one of them
may know that it was restored from a backup. They say something every five seconds."""
_POD = "pod:"
_HELD = 11
_USED_AT = 7
_UNHEARD = """
    SELECT EXISTS (SELECT 1 FROM meta
        WHERE name >= 'pod:' AND name < 'pod;' AND (value::json ->> 1)::float8 < %(since)s)
"""


def take_in(db: Db, intake: Intake, post: Post, offer: Offer, now: float) -> tuple[Answer, Marked | None]:
    """Commit a group, or say why it is not; and the mark that was set, if its lane tells of a loss."""
    number = _number(db, offer.lane)
    known = marks.marks(db)
    latest = known[-1].id if known else ""
    if why := _lost(offer, number, [mark.id for mark in known]):
        marked = marks.set_mark_once(db, now, why, offer.mark)
        latest = marked.mark.id if marked else latest
        return OfferAgain(number, latest, why), marked
    if bool(number) != bool(offer.number):
        return OfferAgain(number, latest, "it does not know how far it had come"), None
    if offer.mark != latest and (offer.number or offer.was_offered):
        return OfferAgain(number, latest, known[-1].why), None
    post.touch(db, now)
    much = _much_is_lost(known, now)
    cut = {**_forgotten_streams(db, offer, much), **_cut_streams(db, offer)} if known else {}
    _end_streams(db, offer)
    keys = {n: intake.keys.number(key) for n, key in offer.keys.items()}
    records = [_translated(row, keys, now) for row in offer.records]
    if offer.again and known:
        records = [_held(_doubted(row, known), much) for row in records]
    records = [_held(row, cut.get(row[0])) for row in records]
    progress = [_held(_translated(row, keys, now), cut.get(row[0])) for row in offer.progress]
    new = intake.take(records, progress, offer.lane)
    taken = max(number, offer.number) + 1
    set_meta(db, f"{_POD}{offer.lane}", json.dumps([taken, now]))
    return Taken(taken, latest, new), None


def may_know_better(db: Db, now: float) -> bool:
    """Whether the server has just begun, and a lane is yet to be heard."""
    return 0 <= now - db.up_since < LISTEN_S and bool(db.one(_UNHEARD, since=db.up_since)[0])


def _number(db: Db, lane: str) -> int:
    """How many groups of a lane were taken."""
    query = "SELECT value FROM meta WHERE name = %(name)s FOR UPDATE"
    row = db.run(query, name=f"{_POD}{lane}").fetchone()
    return 0 if row is None else int(json.loads(row[0])[0])


def _lost(offer: Offer, number: int, known: Sequence[str]) -> str | None:
    """Why the ledger must have gone back without anybody's notice, None if it need not have."""
    if offer.mark and offer.mark not in known:
        return f"lane {offer.lane} knows of a mark that the ledger does not: it is older than that"
    latest = known[-1] if known else ""
    if offer.mark == latest and number < offer.number:
        return f"lane {offer.lane} was told of {offer.number} groups, and the ledger has {number} of them"
    return None


def _cut_streams(db: Db, offer: Offer) -> dict[str, str]:
    """Streams of the lane that may have become usage, and have been sent, before the ledger went back, and
    why they are held. Whatever they come to is held, too."""
    found = db.run(
        "SELECT id, held FROM progress WHERE worker = %(lane)s AND starts_with(held, %(kept)s)",
        lane=offer.lane,
        kept=marks.KEPT,
    )
    return dict(found.fetchall())


def _much_is_lost(known: Sequence[marks.Mark], now: float) -> str | None:
    """The reason for which is held what may have been a stream when the ledger went back, None where too
    little was forgotten: a stream is ended, and sent, while its host is silent for long."""
    lost = (m.reason for m in reversed(known) if m.at - m.since >= STREAMS_S and now - m.at < EXPIRY_S)
    return next(lost, None)


def _forgotten_streams(db: Db, offer: Offer, why: str | None) -> dict[str, str]:
    """Streams that the ledger was told of and does not know any more, and why they are held."""
    if why is None or not offer.retold:
        return {}
    query = "SELECT id FROM progress WHERE worker = %(lane)s AND id = ANY(%(ids)s::text[])"
    there = {id_ for (id_,) in db.run(query, lane=offer.lane, ids=list(offer.retold))}
    return dict.fromkeys(set(offer.retold) - there, why)


def _end_streams(db: Db, offer: Offer) -> None:
    """Streams of the lane that are under way no more: what they came to is among its records, or was counted
    elsewhere."""
    if offer.streams is not None:
        db.run(
            "DELETE FROM progress WHERE worker = %(lane)s AND id <> ALL(%(ids)s::text[])",
            lane=offer.lane,
            ids=list(offer.streams),
        )


def _translated(row: rows.Row, keys: Mapping[int, int], now: float) -> rows.Row:
    """A lane's row with the ledger's numbers of line keys, and its time."""
    pairs = json.loads(row[10])
    lines = ",".join(f"[{keys[n]},{v}]" if type(v) is int else f'[{keys[n]},"{v}"]' for n, v in pairs)
    return (*row[:10], f"[{lines}]", row[_HELD], now)


def _doubted(row: rows.Row, known: Sequence[marks.Mark]) -> rows.Row:
    """The row, held where it may have been frozen and sent before the ledger went back."""
    until = max(mark.doubt_until for mark in known)
    return row if row[_USED_AT] >= until else _held(row, known[-1].reason)


def _held(row: rows.Row, why: str | None) -> rows.Row:
    return row if why is None or row[_HELD] is not None else (*row[:_HELD], why, *row[_HELD + 1 :])
