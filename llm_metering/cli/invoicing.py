"""`test-event` and `preview`: send usage by hand, and see what it will cost."""

from __future__ import annotations

from typing import Annotated

import typer

from ..billing import InvoicePreview, preview_invoice, send_test_event
from ..billing.guides import EVENT_NAME
from ..billing.money import show
from ..errors import ConfigurationError
from .options import ApiBase, ApiKey, Json, Live, Sandbox, Target
from .screen import Screen, moment, number, row, table


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
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Show the next invoice: its lines, each price added up, and what is due. Stores nothing."""
    if (subscription is None) == (customer is None):
        raise ConfigurationError("say whose invoice: --subscription sub_… or --customer cus_…")
    screen = Screen(as_json=as_json)
    with Target(api_key, api_base, sandbox, live).client() as client:
        invoice = preview_invoice(client, subscription=subscription, customer=customer)
    document = {name: getattr(invoice, name) for name in (*invoice.__slots__, "by_price")}
    screen.document(document)
    show_invoice(screen, invoice)


def show_invoice(screen: Screen, invoice: InvoicePreview) -> None:
    """An upcoming invoice in full, as the Dashboard shows it."""
    currency = invoice.currency
    facts = table("upcoming invoice", "")
    row(facts, "customer", invoice.customer)
    row(facts, "subscription", invoice.subscription)
    row(facts, "billing method", invoice.collection_method)
    row(facts, "created", moment(invoice.created))
    row(facts, "usage from", moment(invoice.period_start))
    row(facts, "usage until", moment(invoice.period_end))
    screen.table(facts)
    lines = table("line", "quantity", "unit price", "amount", right=["quantity", "unit price", "amount"])
    for line in invoice.lines:
        unit = "" if line.unit_amount is None else show(line.unit_amount, currency)
        row(lines, line.description, number(line.quantity), unit, show(line.amount, currency))
    screen.table(lines)
    totals = table("each price", "product", "quantity", "amount", right=["quantity", "amount"])
    for total in invoice.by_price:
        row(totals, total.price, total.product, number(total.quantity), show(total.amount, currency))
    screen.table(totals)
    screen.say(f"Subtotal    {show(invoice.subtotal, currency)}")
    screen.say(f"Total       {show(invoice.total, currency)}")
    screen.say(f"Amount due  {show(invoice.amount_due, currency)}", "bold")


def _pair(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found or not key:
        raise ConfigurationError(f"--dimension {text!r} must be written as KEY=VALUE")
    return key, value
