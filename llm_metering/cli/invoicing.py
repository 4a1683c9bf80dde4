"""`test-event`, `preview` and `invoices`: send usage by hand, see what it will cost and what it has cost."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from typing import Annotated, Any, cast

import typer

from ..billing import (
    Invoice,
    InvoicePreview,
    fetch_invoice,
    find_invoices,
    preview_invoice,
    send_test_event,
)
from ..billing.guides import EVENT_NAME
from ..billing.invoices import InvoiceStatus
from ..billing.money import show, wire
from ..errors import ConfigurationError
from .options import ApiBase, ApiKey, Json, Live, Sandbox, Target
from .screen import Screen, moment, number, row, table

Csv = Annotated[
    bool, typer.Option("--csv", help="Print comma-separated values: a row for each price of an invoice.")
]


def send(
    customer: Annotated[str, typer.Option("--customer", help="Stripe customer id.")],
    value: Annotated[
        str, typer.Option("--value", help="Tokens used; decimals and negative corrections are taken, too.")
    ] = "3000",
    event_name: Annotated[str, typer.Option("--event-name", help="The meter's event name.")] = EVENT_NAME,
    identifier: Annotated[
        str | None,
        typer.Option("--identifier", help="Sent twice, it counts once (default: a new one)."),
    ] = None,
    timestamp: Annotated[
        int | None, typer.Option("--timestamp", help="Unix seconds, up to 35 days ago (default: now).")
    ] = None,
    dimension: Annotated[
        list[str] | None,
        typer.Option("--dimension", metavar="KEY=VALUE", help="A further payload key; may be repeated."),
    ] = None,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Send one meter event, as the guides do to try a set-up out."""
    dimensions = dict(map(_pair, dimension or []))
    screen = Screen(as_json=as_json)
    target = Target(api_key, api_base, sandbox, live)
    with target.client() as client:
        sent = send_test_event(
            client,
            customer,
            value,
            identifier=identifier,
            event_name=event_name,
            timestamp=timestamp,
            dimensions=dimensions,
        )
    screen.document(sent)
    event = sent.event
    if sent.duplicate:
        screen.say(f"Stripe had an event {event.identifier} already; nothing was added.")
    else:
        screen.say(
            f"{number(event.value)} sent to meter {event.event_name} for {customer} as {event.identifier}."
        )
    screen.say("Stripe may take a minute to add it up.")
    screen.say(f"Next: llm-metering preview --customer {customer}{target.flags}")


def preview(
    subscription: Annotated[
        str | None, typer.Option("--subscription", help="Stripe subscription id.")
    ] = None,
    customer: Annotated[
        str | None, typer.Option("--customer", help="Stripe customer id: the next invoice of all theirs.")
    ] = None,
    as_csv: Csv = False,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Show the next invoice: its lines, each price added up, and what is due. Stores nothing."""
    if (subscription is None) == (customer is None):
        raise ConfigurationError("say whose invoice: --subscription sub_… or --customer cus_…")
    screen = _screen(as_csv, as_json)
    with Target(api_key, api_base, sandbox, live).client() as client:
        invoice = preview_invoice(client, subscription=subscription, customer=customer)
    if as_csv:
        print_csv([invoice])
        return
    screen.document(document_of(invoice))
    show_preview(screen, invoice)


def invoices(
    invoice: Annotated[
        str | None, typer.Argument(metavar="[INVOICE]", help="One invoice (in_…), in full.")
    ] = None,
    subscription: Annotated[
        str | None, typer.Option("--subscription", help="Stripe subscription id.")
    ] = None,
    customer: Annotated[str | None, typer.Option("--customer", help="Stripe customer id.")] = None,
    status: Annotated[
        str | None, typer.Option("--status", help="Only draft, open, paid, uncollectible or void ones.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, the newest first.")] = 12,
    as_csv: Csv = False,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Show past invoices, each price added up: quantity, tiers, amount."""
    if sum(name is not None for name in (invoice, subscription, customer)) != 1:
        raise ConfigurationError("say which: an invoice in_…, --customer cus_… or --subscription sub_…")
    screen = _screen(as_csv, as_json)
    target = Target(api_key, api_base, sandbox, live)
    with target.client() as client:
        if invoice is not None:
            found: tuple[Invoice, ...] = (fetch_invoice(client, invoice),)
        else:
            wanted = cast("InvoiceStatus | None", status)
            found = find_invoices(
                client, customer=customer, subscription=subscription, status=wanted, limit=limit
            )
    if as_csv:
        print_csv(found)
        return
    screen.document({"invoices": [document_of(one) for one in found]})
    if not found:
        whose = f"--customer {customer}" if customer else f"--subscription {subscription}"
        screen.say(f"No invoices yet. The next one: llm-metering preview {whose}{target.flags}")
    show_invoices(screen, found)


def document_of(invoice: Invoice | InvoicePreview) -> dict[str, Any]:
    """An invoice for JSON, with the lines added up per price."""
    return {name: getattr(invoice, name) for name in (*invoice.__slots__, "by_price")}


def print_csv(found: Iterable[Invoice | InvoicePreview]) -> None:
    """One row for each price of each invoice; add up `amount` less `credits` for what it costs."""
    out = csv.writer(sys.stdout)
    out.writerow(_COLUMNS)
    for one in found:
        head = ("", "", "upcoming")
        if isinstance(one, Invoice):
            head = (one.id, one.number or "", one.status)
        period = (moment(one.period_start), moment(one.period_end))
        for total in one.by_price:
            quantity = None if total.quantity is None else wire(total.quantity)
            what = (one.currency, total.price, total.product, quantity, total.amount, total.credits)
            out.writerow([*head, one.customer, one.subscription, *period, *what])


def show_preview(screen: Screen, invoice: InvoicePreview) -> None:
    """An upcoming invoice in full, as the Dashboard shows it."""
    facts = table("upcoming invoice", "")
    row(facts, "customer", invoice.customer)
    row(facts, "subscription", invoice.subscription)
    row(facts, "billing method", invoice.collection_method)
    row(facts, "created", moment(invoice.created))
    row(facts, "usage from", moment(invoice.period_start))
    row(facts, "usage until", moment(invoice.period_end))
    screen.table(facts)
    _show_prices(screen, invoice)
    _show_sums(screen, invoice)


def show_invoices(screen: Screen, found: Iterable[Invoice]) -> None:
    """Past invoices: all in one table, then each with its prices."""
    found = list(found)
    if not found:
        return
    listed = table(
        "invoice", "number", "status", "for", "created", "subtotal", "credits", "total", "due", "paid",
        right=["subtotal", "credits", "total", "due", "paid"],
    )  # fmt: skip
    for one in found:
        amounts = (one.subtotal, one.credits, one.total, one.amount_due, one.amount_paid)
        shown = [show(amount, one.currency) for amount in amounts]
        row(listed, one.id, one.number, one.status, one.reason, moment(one.created), *shown)
    screen.table(listed)
    for one in found:
        screen.say()
        period = f"{moment(one.period_start)} to {moment(one.period_end)}"
        screen.say(f"{one.number or one.id}  {one.status}  {period}  {one.customer}", "bold")
        _show_prices(screen, one)
        _show_sums(screen, one)


def _show_prices(screen: Screen, invoice: Invoice | InvoicePreview) -> None:
    """Each price with its lines (tiers, flat fees, prorations) and their sum."""
    currency = invoice.currency
    lines = table("price", "quantity", "unit price", "amount", right=["quantity", "unit price", "amount"])
    for total in invoice.by_price:
        name = " · ".join(part for part in (total.product, total.price) if part) or "other"
        row(lines, name, number(total.quantity), "", show(total.amount, currency), style="bold")
        for line in invoice.lines:
            if (line.price, line.product) != (total.price, total.product):
                continue
            unit = "" if line.unit_amount is None else show(line.unit_amount, currency)
            row(lines, f"  {line.description}", number(line.quantity), unit, show(line.amount, currency))
    screen.table(lines)


def _show_sums(screen: Screen, invoice: Invoice | InvoicePreview) -> None:
    currency = invoice.currency
    screen.say(f"Subtotal    {show(invoice.subtotal, currency)}")
    if invoice.credits:
        screen.say(f"Credits     {show(-invoice.credits, currency)}")
    screen.say(f"Total       {show(invoice.total, currency)}")
    screen.say(f"Amount due  {show(invoice.amount_due, currency)}", "bold")


def _screen(as_csv: bool, as_json: bool) -> Screen:
    if as_csv and as_json:
        raise ConfigurationError("--csv and --json exclude each other")
    return Screen(as_json=as_json)


_COLUMNS = (
    *("invoice", "number", "status", "customer", "subscription", "period_start", "period_end"),
    *("currency", "price", "product", "quantity", "amount", "credits"),
)


def _pair(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found or not key:
        raise ConfigurationError(f"--dimension {text!r} must be written as KEY=VALUE")
    return key, value
