"""Paused collection: a subscription goes on, and what becomes of its invoices meanwhile is chosen."""

from __future__ import annotations

from typing import Any

from .errors import invalid
from .invoices import close, finalize, settle
from .items import items_of
from .store import Doc
from .subscription_times import next_due
from .world import Call


def pause(call: Call, subscription: Doc, wanted: dict[str, Any]) -> None:
    """Carry out `pause_collection`; an empty one ends the pause. Invoices that exist stay as they are."""
    if not wanted:
        subscription["pause_collection"] = None
    else:
        resumes = wanted.get("resumes_at")
        if resumes is not None and resumes <= call.world.time_of(call.account, subscription):
            raise invalid("resumes_at must be in the future.", "pause_collection[resumes_at]")
        subscription["pause_collection"] = {"behavior": wanted["behavior"], "resumes_at": resumes}
    call.store.set_due(call.account, subscription, next_due(subscription, items_of(call, subscription["id"])))


def hold(call: Call, invoice: Doc, subscription: Doc) -> None:
    """Keep a new invoice of a paused subscription from being collected."""
    behavior = subscription["pause_collection"]["behavior"]
    invoice.update(auto_advance=False, _paused=behavior)
    if behavior == "keep_as_draft":
        invoice["automatically_finalizes_at"] = None
        call.store.set_due(call.account, invoice, None)
    call.store.save(call.account, invoice)


def finish(call: Call, invoice: Doc, now: int) -> None:
    """Finalise an invoice that nobody is to pay, and close it."""
    finalize(call, invoice, now)
    if invoice["_paused"] == "void":
        close(call, invoice, "void", now)
    elif invoice["amount_due"] == 0:
        settle(call, invoice, now)
    else:
        close(call, invoice, "uncollectible", now)
