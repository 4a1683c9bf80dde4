"""`credits` and `alerts`: what pays for usage in advance, and what tells of it. Neither limits usage."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from ..billing import (
    AlertSpec,
    Credit,
    CreditSpec,
    archive_alert,
    create_alert,
    expire_credit,
    find_alerts,
    find_credits,
    grant_credit,
    void_credit,
)
from ..billing.grants import Category
from ..billing.guides import EVENT_NAME
from ..billing.money import major_units, show
from ..errors import ConfigurationError
from .applying import ALERT_LIMITS
from .catalogs import given, named
from .options import ApiBase, ApiKey, Command, Json, Live, Sandbox, Target
from .screen import Screen, moment, number, row, table

CREDIT_LIMITS = (
    "Credits pay for metered prices when an invoice is finalised. They never limit usage: what goes beyond "
    "them is used, and billed."
)

credit_grants = typer.Typer(help="Credit grants. They pay for metered usage; they never limit it.")
alerts = typer.Typer(help="Usage alerts. They tell of usage; they never limit it.")

Customer = Annotated[str, typer.Option("--customer", help="Stripe customer id.")]
CreditId = Annotated[str, typer.Argument(metavar="CREDIT", help="Id of the grant (credgr_…).")]


@credit_grants.command("grant", cls=Command)
def grant(
    customer: Customer,
    key: Annotated[
        str,
        typer.Option("--key", help="Of the catalog's credits, or a name of yours; a customer has it once."),
    ],
    catalog: Annotated[
        str | None,
        typer.Option("--catalog", help="The TOML file that has the credit; without it say --amount."),
    ] = None,
    amount: Annotated[str | None, typer.Option("--amount", help="Such as 10 or 2.50.")] = None,
    currency: Annotated[str | None, typer.Option("--currency", help="Three letters (default: usd).")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Shown in the Dashboard.")] = None,
    category: Annotated[
        str | None, typer.Option("--category", help="paid or promotional (default: paid).")
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", help="0 to 100, lower ones are used up first (default: 50).")
    ] = None,
    expires_days: Annotated[
        int | None, typer.Option("--expires-days", help="Days until it expires (default: never).")
    ] = None,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Give a customer a credit, once. It does not limit usage."""
    said = given(
        amount=amount,
        currency=currency,
        name=name,
        category=cast("Category | None", category),
        priority=priority,
        expires_days=expires_days,
    )
    values = None if catalog is None else named(catalog)
    if values is not None and said:
        raise ConfigurationError(
            f"--{next(iter(said)).replace('_', '-')} belongs to a credit without --catalog"
        )
    if values is None and amount is None:
        raise ConfigurationError("say --amount, or --catalog with a credit of that key")
    credit = CreditSpec(**{"currency": "usd", **said}, key=key) if values is None else values.credit(key)
    screen = Screen(as_json=as_json)
    with Target(api_key, api_base, sandbox, live).client() as client:
        made = grant_credit(client, customer, credit, values)
    screen.document({"credit": made})
    what = show(made.amount, made.currency)
    done = "granted" if made.created else "was granted already"
    screen.say(f"{customer} {done}: {what} ({made.id}), {show(made.available, made.currency)} left.")
    screen.say(CREDIT_LIMITS)


@credit_grants.command("list", cls=Command)
def list_credits(
    customer: Customer,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Show a customer's credits and what is left of each, in the order in which they are used up."""
    screen = Screen(as_json=as_json)
    with Target(api_key, api_base, sandbox, live).client() as client:
        found = find_credits(client, customer)
    balance = {one.currency: major_units(0, one.currency) for one in found}
    for one in found:
        balance[one.currency] += one.available
    screen.document({"credits": found, "available": balance})
    if not found:
        screen.say("No credits.")
        return
    shown = table(
        "credit", "key", "category", "granted", "left", "priority", "expires", "for",
        right=["granted", "left", "priority"],
    )  # fmt: skip
    for one in found:
        expires = "voided" if one.voided else moment(one.expires_at) or "never"
        amounts = (show(one.amount, one.currency), show(one.available, one.currency))
        row(shown, one.id, one.key or one.name, one.category, *amounts, one.priority, expires, _for(one))
    screen.table(shown)
    for currency, left in balance.items():
        screen.say(f"Available   {show(left, currency)}", "bold")
    screen.say(CREDIT_LIMITS)


@credit_grants.command("void", cls=Command)
def void(
    credit: CreditId,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Take back a credit of which nothing was used."""
    screen = Screen(as_json=as_json)
    with Target(api_key, api_base, sandbox, live).client() as client:
        ended = void_credit(client, credit)
    screen.document({"credit": ended})
    screen.say(f"{ended.id} of {ended.customer} is void.")


@credit_grants.command("expire", cls=Command)
def expire(
    credit: CreditId,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """End a credit now; what was used of it stays used."""
    screen = Screen(as_json=as_json)
    with Target(api_key, api_base, sandbox, live).client() as client:
        ended = expire_credit(client, credit)
    screen.document({"credit": ended})
    screen.say(f"{ended.id} of {ended.customer} has expired.")


@alerts.command("create", cls=Command)
def create(
    title: Annotated[str, typer.Option("--title", help="How it is found again.")],
    threshold: Annotated[int, typer.Option("--threshold", help="Usage at which it fires.")],
    event_name: Annotated[str, typer.Option("--event-name", help="The meter's event name.")] = EVENT_NAME,
    customer: Annotated[
        str | None, typer.Option("--customer", help="For this customer only (default: for each).")
    ] = None,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Make a usage alert. Run again, it finds the one it made. It does not limit usage."""
    spec = AlertSpec(title=title, meter=event_name, threshold=threshold)
    screen = Screen(as_json=as_json)
    with Target(api_key, api_base, sandbox, live).client() as client:
        made = create_alert(client, spec, customer=customer)
    screen.document({"alert": made})
    screen.say(f"{made.id} {'was made' if made.created else 'was there already'}: {made.title}")
    screen.say(ALERT_LIMITS)


@alerts.command("list", cls=Command)
def list_alerts(
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Show the alerts that are not archived."""
    screen = Screen(as_json=as_json)
    with Target(api_key, api_base, sandbox, live).client() as client:
        found = find_alerts(client)
    screen.document({"alerts": found})
    if not found:
        screen.say("No alerts.")
        return
    shown = table("alert", "title", "status", "meter", "threshold", "customer", right=["threshold"])
    for one in found:
        who = one.customer or "each"
        row(shown, one.id, one.title, one.status, one.meter, number(one.threshold), who)
    screen.table(shown)
    screen.say(ALERT_LIMITS)


@alerts.command("archive", cls=Command)
def archive(
    alert: Annotated[str, typer.Argument(metavar="ALERT", help="Id of the alert (alrt_…).")],
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """End an alert for good."""
    screen = Screen(as_json=as_json)
    with Target(api_key, api_base, sandbox, live).client() as client:
        archive_alert(client, alert)
    screen.document({"archived": alert})
    screen.say(f"{alert} is archived.")


def _for(credit: Credit) -> str:
    return ", ".join(credit.prices) or "all metered prices"
