"""What happens to subscriptions and invoices at their times: renewal, finalisation, the end."""

from __future__ import annotations

from . import credit_grants
from .billing import cycle_lines
from .events import emit
from .invoices import (
    Draft,
    collect,
    finalize,
    invoice_document,
    keep_invoice,
    pending_items,
    style_of,
    subscription_of,
)
from .items import items_of
from .store import Doc
from .subscription_documents import shown_subscription
from .tariffs import item_value, usage_of
from .world import Call


def live(call: Call, clock: Doc | None, until: int) -> None:
    """Let everything happen that is due not later than `until`, in order of time."""
    name = "" if clock is None else clock["id"]
    while (found := call.store.next_due(call.account, name, until)) is not None:
        doc, at = found
        if clock is not None:
            clock["frozen_time"] = max(clock["frozen_time"], at)
            call.store.save(call.account, clock)
        if doc["object"] == "subscription":
            _turn(call, doc, at)
        elif doc["object"] == "invoice":
            _finalize(call, doc, at)
        elif doc["object"] == credit_grants.GRANT:
            credit_grants.run_out(call, doc, at)


def end(call: Call, subscription: Doc, now: int, reason: str) -> None:
    """End a subscription for good."""
    subscription.update(status="canceled", ended_at=now, canceled_at=subscription["canceled_at"] or now)
    subscription["cancellation_details"]["reason"] = reason
    call.store.save(call.account, subscription)
    call.store.set_due(call.account, subscription, None)
    emit(call, "customer.subscription.deleted", shown_subscription(call, subscription))


def cycle_draft(
    call: Call,
    customer: Doc,
    subscription: Doc,
    docs: list[Doc],
    at: int,
    reason: str,
    *,
    final: bool = False,
) -> Draft:
    """The invoice at a period's end, as usage stands now."""
    items = [item_value(call.world, call.account, doc) for doc in docs]
    usage = usage_of(call.world, call.account, customer["id"])
    ending = [item for item in items if item.end == at or final]
    return Draft(
        customer,
        subscription,
        subscription["currency"],
        cycle_lines(items, at, usage, style_of(call), final=final),
        reason,
        created=at,
        start=min(item.start for item in ending),
        end=at,
        pending=pending_items(call, customer["id"], subscription["id"]),
        collection_method=subscription["collection_method"],
        days_until_due=subscription["days_until_due"],
        recipe={"items": docs, "at": at, "final": final},
    )


def bill(call: Call, draft: Draft, subscription: Doc, due: int | None) -> Doc | None:
    """Make a draft the subscription's latest invoice; none where there is nothing to put on it."""
    if not draft.lines and not draft.pending:
        return None
    invoice = invoice_document(call, draft, call.new_id("in_"), "il_")
    invoice["automatically_finalizes_at"] = due
    keep_invoice(call, invoice, due)
    subscription["latest_invoice"] = invoice["id"]
    return invoice


def _turn(call: Call, subscription: Doc, at: int) -> None:
    """A period ends: bill what was used, and begin the next one."""
    if subscription["status"] == "incomplete":
        subscription["status"] = "incomplete_expired"
        call.store.save(call.account, subscription)
        call.store.set_due(call.account, subscription, None)
        emit(call, "customer.subscription.updated", shown_subscription(call, subscription), {})
        return
    customer = call.find("customer", subscription["customer"], "customer")
    docs = items_of(call, subscription["id"])
    over = subscription["cancel_at"] is not None and at >= subscription["cancel_at"]
    draft = cycle_draft(call, customer, subscription, docs, at, "subscription_cycle", final=over)
    bill(call, draft, subscription, at + call.switches.finalize_after_s)
    if over:
        end(call, subscription, at, "cancellation_requested")
        return
    ends = []
    for doc in items_of(call, subscription["id"]):
        if doc["current_period_end"] == at:
            _, until = item_value(call.world, call.account, doc).period_after(at)
            doc.update(current_period_start=at, current_period_end=until, _since=at, _earlier=[])
            call.store.save(call.account, doc)
        ends.append(doc["current_period_end"])
    call.store.save(call.account, subscription)
    call.store.set_due(call.account, subscription, min(ends))
    emit(call, "customer.subscription.updated", shown_subscription(call, subscription), {})


def _finalize(call: Call, invoice: Doc, at: int) -> None:
    """The grace period is over: fix the invoice, and have it paid or leave it open."""
    finalize(call, invoice, at)
    charges = invoice["collection_method"] == "charge_automatically"
    if collect(call, invoice, at, attempt=charges) or not charges:
        return
    subscription = subscription_of(call, invoice)
    if subscription is not None and subscription["status"] == "active":
        subscription["status"] = "past_due"
        call.store.save(call.account, subscription)
        emit(call, "customer.subscription.updated", shown_subscription(call, subscription), {})
