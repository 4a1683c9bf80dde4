"""How a subscription starts: its items and periods, its trial, its first invoice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import subscription_tables as tables
from .billing import MAX_LINES, first_lines
from .cancellations import plan_end
from .changes import charge_past, charge_rest
from .discounts import give
from .errors import invalid, missing_parameter, not_played
from .events import emit
from .invoice_items import add_once
from .invoices import (
    Draft,
    collect,
    declined,
    finalize,
    invoice_document,
    keep_invoice,
    pending_items,
    style_of,
)
from .items import check_together, new_item, price_for
from .payments import NO_PAYMENT_METHOD, declines, payment_method
from .periods import step
from .store import Doc
from .subscription_documents import shown_subscription, subscription_document
from .subscription_times import configured_anchor, next_due
from .tariffs import item_value, usage_of
from .world import Call, Route

INCOMPLETE_S = 23 * 3_600
"""How long a first payment may take."""


@dataclass(frozen=True, slots=True)
class Start:
    """When a subscription starts, and where its periods are counted from."""

    now: int
    anchor: int
    trial: bool = False
    """Everything before the anchor is a trial."""
    stub: bool = False
    """The first period is what is left until the anchor."""
    backdated: int | None = None
    """When it began, if that is past. In flexible mode the periods are counted from there, too."""


def create(call: Call) -> Doc:
    given = call.params
    customer = call.find("customer", given["customer"], "customer")
    if not given.get("items"):
        raise missing_parameter("items")
    mode = given.get("billing_mode", {}).get("type", "flexible")
    prices = [price_for(call, wanted, f"items[{n}]") for n, wanted in enumerate(given["items"])]
    check_together(customer, prices, mode, given.get("currency"))
    check_collection(given)
    start = _start(given, prices, mode, call.world.time_of(call.account, customer))
    currency = prices[0]["currency"]
    subscription = subscription_document(call, given, customer, currency, mode, start.now, start.anchor)
    items = _items(call, subscription, prices, start)
    if start.trial or start.stub:
        subscription["start_date"] = start.now
    elif start.backdated is not None:
        subscription["start_date"] = start.backdated
    if start.trial:
        subscription.update(status="trialing", trial_start=start.now, trial_end=start.anchor)
    due = next_due(subscription, items)
    call.store.insert(
        call.account, subscription, owner=customer["id"], clock=customer["test_clock"] or "", due=due
    )
    for item in items:
        call.store.insert(call.account, item, owner=subscription["id"])
    customer["currency"] = subscription["currency"]
    call.store.save(call.account, customer)
    subscription["discounts"] = give(call, given.get("discounts", ()), customer, subscription, currency)
    _add_once(call, customer, subscription)
    _bill_first(call, subscription, customer, items, start)
    plan_end(call, subscription, given, given.get("proration_behavior", "create_prorations"))
    call.store.save(call.account, subscription)
    shown = shown_subscription(call, subscription)
    emit(call, "customer.subscription.created", shown)
    return shown


def check_collection(given: dict[str, Any], *, update: bool = False) -> None:
    sends = given.get("collection_method") == "send_invoice"
    if sends and "days_until_due" not in given and not update:
        raise invalid("You must set days_until_due when collection_method is send_invoice.", "days_until_due")
    if not sends and given.get("days_until_due") is not None:
        raise invalid(
            "You can only set days_until_due when collection_method is send_invoice.", "days_until_due"
        )


def _start(given: dict[str, Any], prices: list[Doc], mode: str, now: int) -> Start:
    chosen = [name for name in _STARTS if name in given]
    if len({name.partition("_")[0] for name in chosen}) > 1:
        raise not_played(chosen[-1])
    if len(chosen) > 1:
        raise invalid(f"You may only specify one of these parameters: {', '.join(chosen)}.", chosen[-1])
    if not chosen:
        return Start(now, now)
    [name] = chosen
    if name == "backdate_start_date":
        return _backdated(given[name], mode, now)
    if name.startswith("trial"):
        return _trial(given, now)
    if name == "billing_cycle_anchor_config":
        return Start(now, configured_anchor(given[name], now), stub=True)
    return Start(now, _anchor(given[name], prices, now), stub=True)


def _backdated(at: int, mode: str, now: int) -> Start:
    if at > now:
        raise invalid("backdate_start_date must be in the past.", "backdate_start_date")
    if at == now:
        return Start(now, now)
    return Start(now, at if mode == "flexible" else now, backdated=at)


def _trial(given: dict[str, Any], now: int) -> Start:
    until: int | str = (
        given["trial_end"] if "trial_end" in given else now + given["trial_period_days"] * 86_400
    )
    if isinstance(until, str) or until == now:
        return Start(now, now)
    if until < now:
        raise invalid("Invalid timestamp: must be an integer Unix timestamp in the future.", "trial_end")
    return Start(now, until, trial=True)


def _anchor(at: int, prices: list[Doc], now: int) -> int:
    for price in prices:
        recurring = price["recurring"]
        natural = step(now, recurring["interval"], recurring["interval_count"], 1)
        if not now < at <= natural:
            raise invalid(
                "billing_cycle_anchor must be in the future, and not later than the next natural billing "
                f"date ({natural}).",
                "billing_cycle_anchor",
            )
    return at


def _items(call: Call, subscription: Doc, prices: list[Doc], start: Start) -> list[Doc]:
    items = [
        new_item(call, subscription["id"], price, wanted, start.anchor, start.now, starts=not start.stub)
        for price, wanted in zip(prices, call.params["items"], strict=True)
    ]
    if start.trial:
        for item in items:
            item.update(
                current_period_start=start.now, current_period_end=start.anchor, _since=start.now, _free=True
            )
    if start.backdated is not None and subscription["billing_mode"]["type"] == "classic":
        for item in items:
            item["_since"] = start.backdated  # what was used since then is on the first period's invoice
    return items


def _add_once(call: Call, customer: Doc, subscription: Doc) -> None:
    """Put what `add_invoice_items` names on the first invoice."""
    for n, one in enumerate(call.params.get("add_invoice_items", ())):
        add_once(call, customer, one, f"add_invoice_items[{n}]", subscription)


def _bill_first(call: Call, subscription: Doc, customer: Doc, docs: list[Doc], start: Start) -> None:
    """Make the first invoice, where there is something to put on it, and see to its payment."""
    now, prorates = start.now, call.params.get("proration_behavior") != "none"
    mode = subscription["billing_mode"]["type"]
    backdated = start.backdated if prorates and mode == "flexible" else None
    if mode == "classic" and prorates and start.backdated is not None:
        for doc in docs:
            charge_past(call, customer, subscription, doc, start.backdated, now)
    if start.stub:
        for doc in docs:
            charge_rest(call, customer, subscription, doc, prorates, now)
        docs = [doc for doc in docs if doc["quantity"] is None]
    items = [item_value(call.world, call.account, doc) for doc in docs]
    usage = usage_of(call.world, call.account, customer["id"])
    lines = first_lines(items, mode, backdated, usage, style_of(call))
    pending = pending_items(call, customer["id"], subscription["id"])
    if len(lines) > MAX_LINES:
        raise invalid(
            f"The backdated invoice would have {len(lines)} lines; at most {MAX_LINES} are allowed.",
            "backdate_start_date",
        )
    if not lines and not pending:
        return
    draft = Draft(
        customer,
        subscription,
        subscription["currency"],
        lines,
        "subscription_create",
        created=now,
        start=now if start.backdated is None else start.backdated,
        end=now,
        pending=pending,
        collection_method=subscription["collection_method"],
        days_until_due=subscription["days_until_due"],
    )
    invoice = invoice_document(call, draft, call.new_id("in_"), "il_")
    subscription["latest_invoice"] = invoice["id"]
    if subscription["collection_method"] == "send_invoice":
        due = invoice["automatically_finalizes_at"] = now + call.switches.finalize_after_s
        keep_invoice(call, invoice, due)
    else:
        _charge_first(call, subscription, customer, invoice, now)


def _charge_first(call: Call, subscription: Doc, customer: Doc, invoice: Doc, now: int) -> None:
    """Finalise the first invoice at once and have it paid, as far as `payment_behavior` wants that."""
    behavior = call.params.get("payment_behavior", "allow_incomplete")
    method = subscription["default_payment_method"] or payment_method(customer)
    waits = behavior == "default_incomplete"
    if invoice["amount_due"] and not waits:
        if method is None:
            raise invalid(NO_PAYMENT_METHOD, code="resource_missing")
        if declines(method) and behavior == "error_if_incomplete":
            raise declined()
    keep_invoice(call, invoice, None)
    finalize(call, invoice, now)
    if not collect(call, invoice, now, method=method, attempt=not waits):
        subscription["status"] = "incomplete"
        call.store.set_due(call.account, subscription, now + INCOMPLETE_S)


_STARTS = (
    "backdate_start_date",
    "billing_cycle_anchor",
    "billing_cycle_anchor_config",
    "trial_end",
    "trial_period_days",
)

ROUTES = (Route("POST", "/v1/subscriptions", create, tables.CREATE),)
