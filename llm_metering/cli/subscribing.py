"""`subscribe`: put a customer onto a plan."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, cast

import typer

from ..billing import Catalog, Offer, Subscription, check_prices, create_customer
from ..billing import subscribe as subscribe_customer
from ..billing.guides import EVENT_NAME, FLAT_FEE, PAY_AS_YOU_GO
from ..billing.subscriptions import BillingMode, Collection
from ..errors import ConfigurationError
from .asking import moment_of
from .catalogs import Currency, EventName, Interval, LicenseBilled, set_up
from .options import ApiBase, ApiKey, Json, Live, Sandbox, Target
from .screen import Screen, moment, row, table


def subscribe(
    plan: Annotated[
        str, typer.Argument(metavar="PLAN", help=f"{PAY_AS_YOU_GO}, {FLAT_FEE} or a catalog in a .toml file.")
    ],
    customer: Annotated[str | None, typer.Option("--customer", help="Stripe customer id.")] = None,
    new_customer: Annotated[
        str | None, typer.Option("--new-customer", metavar="NAME", help="Make a customer of this name.")
    ] = None,
    offer: Annotated[
        str | None, typer.Option("--offer", help="Which offer of a catalog with several.")
    ] = None,
    seats: Annotated[
        int | None, typer.Option("--seats", help="Quantity of the licence (default: 1).")
    ] = None,
    quantity: Annotated[
        list[str] | None,
        typer.Option(
            "--quantity", metavar="KEY=N", help="Quantity of one licence of several; may be repeated."
        ),
    ] = None,
    billing_mode: Annotated[str, typer.Option("--billing-mode", help="flexible or classic.")] = "flexible",
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection",
            help="charge_automatically, send_invoice or default_incomplete (default: send_invoice where "
            "a fee is due at first, else charge_automatically).",
        ),
    ] = None,
    days_until_due: Annotated[
        int, typer.Option("--days-until-due", help="To pay a sent invoice.", min=0)
    ] = 30,
    anchor: Annotated[
        str | None,
        typer.Option(
            "--anchor",
            metavar="TIME",
            help="Begin of the first full period, such as 2026-12-01; licences pay their share until then.",
        ),
    ] = None,
    backdate: Annotated[
        str | None,
        typer.Option(
            "--backdate",
            metavar="TIME",
            help="When it began, such as 2026-09-01; past periods are invoiced (flexible billing only).",
        ),
    ] = None,
    currency: Currency = None,
    interval: Interval = None,
    event_name: EventName = None,
    license_billed: LicenseBilled = None,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Subscribe a customer to a plan that was set up. Run again, it finds the subscription it made."""
    if (customer is None) == (new_customer is None):
        raise ConfigurationError("say who subscribes: --customer cus_… or --new-customer NAME")
    catalog, exact = set_up(
        plan, currency=currency, interval=interval, event_name=event_name, license_billed=license_billed
    )
    chosen = catalog.offer(offer)
    quantities = _seats(catalog, chosen, seats) | dict(map(_quantity, quantity or []))
    starts = _time(anchor, "--anchor"), _time(backdate, "--backdate")
    screen = Screen(as_json=as_json)
    target = Target(api_key, api_base, sandbox, live)
    with target.client() as client:
        if customer is None:
            check_prices(client, catalog, offer=chosen.name, exact=exact)
            customer = create_customer(client, str(new_customer))
        made = subscribe_customer(
            client,
            customer,
            catalog,
            offer=chosen.name,
            quantities=quantities,
            billing_mode=cast("BillingMode", billing_mode),
            collection=cast("Collection | None", collection),
            days_until_due=days_until_due,
            anchor=starts[0],
            backdate=starts[1],
            exact=exact,
        )
    screen.document({"subscription": made})
    _show(screen, made)
    name = _meter_of(catalog, chosen)
    if name is not None:
        event = "" if name == EVENT_NAME else f" --event-name {name}"
        who = f"--customer {made.customer} --value 3000{event}"
        screen.say(f"Next: llm-metering test-event {who}{target.flags}")


def _seats(catalog: Catalog, offer: Offer, seats: int | None) -> dict[str, int]:
    if seats is None:
        return {}
    licences = [item.price for item in offer.items if not catalog.price(item.price).metered]
    if len(licences) != 1:
        raise ConfigurationError(
            f"--seats needs a plan with a licence fee in advance; {offer.name} has {len(licences)}"
        )
    return {licences[0]: seats}


def _quantity(text: str) -> tuple[str, int]:
    key, found, number = text.rpartition("=")
    if not found or not key or not number.isdecimal():
        raise ConfigurationError(f"--quantity {text!r} must be written as KEY=N")
    return key, int(number)


def _time(text: str | None, option: str) -> datetime | None:
    seconds = moment_of(text, option)
    return None if seconds is None else datetime.fromtimestamp(int(seconds), timezone.utc)


def _meter_of(catalog: Catalog, offer: Offer) -> str | None:
    return next((m for item in offer.items if (m := catalog.price(item.price).meter) is not None), None)


def _show(screen: Screen, made: Subscription) -> None:
    verb = "is subscribed" if made.created else "was subscribed already"
    screen.say(f"{made.customer} {verb}: {made.id} ({made.status}, {made.billing_mode})")
    items = table("price", "Stripe id", "quantity", "next invoice", right=["quantity"])
    for item in made.items:
        quantity = "metered" if item.meter else item.quantity
        row(items, item.lookup_key, item.price, quantity, moment(item.period_end))
    screen.table(items)
    if made.collection_method == "send_invoice":
        screen.say(
            "Invoices are sent, not charged; --collection charge_automatically needs a payment method."
        )
