"""What happens to subscriptions and invoices at their times: renewal, finalisation, the end."""

from __future__ import annotations

from . import credit_grants, pauses
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
from .payments import payment_method
from .store import Doc
from .subscription_documents import shown_subscription
from .subscription_times import REMINDER_S, billed_until, next_due, reminds
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
            turn(call, doc, at)
        elif doc["object"] == "invoice":
            finalize_due(call, doc, at)
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
        recipe={"items": [dict(doc) for doc in docs], "at": at, "final": final},
    )


def bill(call: Call, draft: Draft, subscription: Doc, due: int | None) -> Doc | None:
    """Make a draft the subscription's latest invoice; none where there is nothing to put on it."""
    if not draft.lines and not draft.pending:
        return None
    invoice = invoice_document(call, draft, call.new_id("in_"), "il_")
    invoice["automatically_finalizes_at"] = due
    keep_invoice(call, invoice, due)
    subscription["latest_invoice"] = invoice["id"]
    if subscription["pause_collection"] is not None:
        pauses.hold(call, invoice, subscription)
    return invoice


def turn(call: Call, subscription: Doc, at: int) -> None:
    """What is due happens to a subscription: a period ends, or its trial, or a pause, or all of it."""
    if subscription["status"] == "incomplete":
        subscription["status"] = "incomplete_expired"
        call.store.save(call.account, subscription)
        call.store.set_due(call.account, subscription, None)
        emit(call, "customer.subscription.updated", shown_subscription(call, subscription), {})
        return
    _look_around(call, subscription, at)
    docs, over = billed_until(subscription, items_of(call, subscription["id"]), at)
    if over or any(doc["current_period_end"] <= at for doc in docs):
        customer = call.find("customer", subscription["customer"], "customer")
        if subscription["status"] == "trialing" and not _outlives_trial(call, subscription, customer, at):
            return
        draft = cycle_draft(call, customer, subscription, docs, at, "subscription_cycle", final=over)
        bill(call, draft, subscription, at + call.switches.finalize_after_s)
        if over:
            end(call, subscription, at, "cancellation_requested")
            return
        docs = _begin_periods(call, docs, at)
    call.store.save(call.account, subscription)
    call.store.set_due(call.account, subscription, next_due(subscription, docs))
    emit(call, "customer.subscription.updated", shown_subscription(call, subscription), {})


def _look_around(call: Call, subscription: Doc, at: int) -> None:
    """Remind of a trial's end, and resume collection, where their time has come."""
    if reminds(subscription) and at >= subscription["trial_end"] - REMINDER_S:
        subscription["_reminded"] = True
        emit(call, "customer.subscription.trial_will_end", shown_subscription(call, subscription))
    paused = subscription["pause_collection"]
    if paused is not None and paused["resumes_at"] is not None and at >= paused["resumes_at"]:
        subscription["pause_collection"] = None


def _outlives_trial(call: Call, subscription: Doc, customer: Doc, at: int) -> bool:
    """Let a subscription go on after its trial, unless it is to end where nobody can be charged."""
    without = subscription["trial_settings"]["end_behavior"]["missing_payment_method"]
    method = subscription["default_payment_method"] or payment_method(customer)
    if without == "cancel" and method is None and subscription["collection_method"] != "send_invoice":
        end(call, subscription, at, "payment_failed")
        return False
    subscription["status"] = "active"
    return True


def _begin_periods(call: Call, docs: list[Doc], at: int) -> list[Doc]:
    """Let the items whose period is over begin the next one."""
    for doc in docs:
        if doc["current_period_end"] == at:
            _, until = item_value(call.world, call.account, doc).period_after(at)
            doc.update(current_period_start=at, current_period_end=until, _since=at, _earlier=[], _free=False)
            call.store.save(call.account, doc)
    return docs


def finalize_due(call: Call, invoice: Doc, at: int) -> None:
    """The grace period is over: fix the invoice, and have it paid or leave it open."""
    if invoice.get("_paused"):
        pauses.finish(call, invoice, at)
        return
    finalize(call, invoice, at)
    charges = invoice["collection_method"] == "charge_automatically"
    if collect(call, invoice, at, attempt=charges) or not charges:
        return
    subscription = subscription_of(call, invoice)
    if subscription is not None and subscription["status"] == "active":
        subscription["status"] = "past_due"
        call.store.save(call.account, subscription)
        emit(call, "customer.subscription.updated", shown_subscription(call, subscription), {})
