"""`setup`, `plan` and `apply`: show what an account lacks of a catalog, and make it match."""

from __future__ import annotations

import dataclasses
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from ..billing import Applied, Catalog, FlatFeeWithOverages, PayAsYouGo, Plan
from ..billing import apply as apply_plan
from ..billing import plan as make_plan
from ..billing.guides import FLAT_FEE, PAY_AS_YOU_GO
from ..billing.planning import SIGNS
from ..errors import BillingError
from .catalogs import (
    Aggregation,
    Currency,
    EventName,
    Interval,
    LicenseBilled,
    MeterName,
    flags_of,
    given,
    named,
)
from .options import ApiBase, ApiKey, Json, Live, Sandbox, Target
from .screen import Screen, row, table

if TYPE_CHECKING:
    from rich.progress import Progress

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")]
Replace = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="Allow new prices to take over from prices with other amounts; subscribers keep the old ones.",
    ),
]
Archive = Annotated[
    bool,
    typer.Option(
        "--archive",
        help="The catalog is all that is sold: switch off what is ours, not in it, and bills nobody.",
    ),
]
ALERT_LIMITS = (
    "An alert sends a webhook, once in a customer's life. It never limits usage: who must not use more "
    "has to be stopped before the model is called."
)
File = Annotated[str, typer.Argument(metavar="CATALOG", help="A catalog in TOML, or the name of a guide.")]

_COLOURS = {
    "create": "green", "adopt": "cyan", "reactivate": "cyan", "update": "yellow", "replace": "yellow",
    "unchanged": "dim", "conflict": "red", "archive": "magenta", "leave": "dim",
}  # fmt: skip


def pay_as_you_go(
    amount: Annotated[
        str | None, typer.Option("--amount", help="For one package, such as 0.04 (default: 0.04).")
    ] = None,
    package_size: Annotated[
        int | None, typer.Option("--package-size", help="Tokens in a package (default: 100).")
    ] = None,
    product_name: Annotated[
        str | None, typer.Option("--product-name", help='On invoices (default: "Hypernian tokens").')
    ] = None,
    currency: Currency = None,
    interval: Interval = None,
    event_name: EventName = None,
    meter_name: MeterName = None,
    aggregation: Aggregation = None,
    dry_run: DryRun = False,
    replace: Replace = False,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Charge for every package of tokens begun: 0.04 USD per 100, monthly, in arrears."""
    catalog = PayAsYouGo(
        **given(
            amount=amount,
            package_size=package_size,
            product_name=product_name,
            currency=currency,
            interval=interval,
            event_name=event_name,
            meter_name=meter_name,
            aggregation=aggregation,
        )
    )
    target = Target(api_key, api_base, sandbox, live)
    name = flags_of(PAY_AS_YOU_GO, currency=currency, interval=interval, event_name=event_name)
    _set_up(catalog, target, name, dry_run=dry_run, replace=replace, as_json=as_json)


def flat_fee(
    license_amount: Annotated[
        str | None, typer.Option("--license-amount", help="The fee, for each seat (default: 100).")
    ] = None,
    included: Annotated[
        int | None, typer.Option("--included", help="Tokens without charge (default: 1000).")
    ] = None,
    overage_amount: Annotated[
        str | None, typer.Option("--overage-amount", help="For tokens above (default: 0.04).")
    ] = None,
    overage_per: Annotated[
        int | None,
        typer.Option("--overage-per", help="Tokens that the overage amount is for (default: 1)."),
    ] = None,
    license_billed: LicenseBilled = None,
    usage_name: Annotated[
        str | None,
        typer.Option("--usage-name", help='The overage on invoices (default: "Hypernian Usage").'),
    ] = None,
    license_name: Annotated[
        str | None,
        typer.Option("--license-name", help='The fee on invoices (default: "Hypernian License fee").'),
    ] = None,
    currency: Currency = None,
    interval: Interval = None,
    event_name: EventName = None,
    meter_name: MeterName = None,
    aggregation: Aggregation = None,
    dry_run: DryRun = False,
    replace: Replace = False,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Charge a fee in advance and tokens above those included: 100 USD, 1000 tokens, then 0.04 USD each."""
    catalog = FlatFeeWithOverages(
        **given(
            license_amount=license_amount,
            included=included,
            overage_amount=overage_amount,
            overage_per=overage_per,
            license_billed=license_billed,
            usage_name=usage_name,
            license_name=license_name,
            currency=currency,
            interval=interval,
            event_name=event_name,
            meter_name=meter_name,
            aggregation=aggregation,
        )
    )
    target = Target(api_key, api_base, sandbox, live)
    name = flags_of(
        FLAT_FEE,
        currency=currency,
        interval=interval,
        event_name=event_name,
        license_billed=license_billed,
    )
    _set_up(catalog, target, name, dry_run=dry_run, replace=replace, as_json=as_json)


def plan(
    catalog: File,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if the account does not match.")
    ] = False,
    archive: Archive = False,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Compare a catalog with the account and show what would be done. Changes nothing."""
    wanted = named(catalog)
    screen = Screen(as_json=as_json)
    with Target(api_key, api_base, sandbox, live).client() as client:
        made = make_plan(wanted, client, archive=archive)
    screen.document({"plan": made.as_dict()})
    show_plan(screen, made)
    screen.say(f"{made.summary[:1].upper()}{made.summary[1:]}.")
    if check and not made.done:
        raise typer.Exit(1)


def apply(
    catalog: File,
    dry_run: DryRun = False,
    replace: Replace = False,
    archive: Archive = False,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Make the account match a catalog. May be run again, after anything."""
    target = Target(api_key, api_base, sandbox, live)
    _set_up(
        named(catalog),
        target,
        quote(catalog),
        dry_run=dry_run,
        replace=replace,
        archive=archive,
        as_json=as_json,
    )


def _set_up(
    catalog: Catalog,
    target: Target,
    name: str,
    *,
    dry_run: bool,
    replace: bool,
    archive: bool | None = None,
    as_json: bool,
) -> None:
    """`archive=None`: a guide is rarely all that is sold, so what else there is is not spoken of."""
    screen = Screen(as_json=as_json)
    with target.client() as client:
        plan = make_plan(catalog, client, archive=bool(archive))
        if archive is None:
            plan = dataclasses.replace(plan, changes=tuple(c for c in plan.changes if c.action != "leave"))
        show_plan(screen, plan)
        if dry_run:
            screen.document({"dry_run": True, "plan": plan.as_dict(), "applied": None})
            screen.say(f"Nothing was changed: {plan.summary}.")
            return
        _refuse_unasked(plan, replace)
        with screen.progress(
            "Setting up", sum(c.action not in ("unchanged", "leave") for c in plan.changes)
        ) as bar:
            applied = apply_plan(plan, client, on_change=lambda *_: _advance(bar))
    screen.document({"dry_run": False, "plan": plan.as_dict(), "applied": applied.as_dict()})
    _show_applied(screen, applied)
    if any((c.action, c.kind) == ("replace", "price") for c in applied.changes):
        screen.say(
            f"Who subscribes to an old price keeps it. To see and move them: "
            f"llm-metering migrate {name}{target.flags}"
        )
    screen.say(
        f"Next: llm-metering subscribe {name}{_offer(catalog)} --new-customer 'John Doe'{target.flags}"
    )


def _offer(catalog: Catalog) -> str:
    return "" if len(catalog.offers) < 2 else f" --offer {quote(catalog.offers[0].name)}"


def _advance(bar: Progress | None) -> None:
    if bar is not None:
        bar.advance(bar.task_ids[0])


def _refuse_unasked(plan: Plan, replace: bool) -> None:
    changes = [c for c in plan.changes if (c.action, c.kind) == ("replace", "price")]
    if changes and not replace:
        differs = "; ".join(f"{d.field} {d.found} -> {d.wanted}" for d in changes[0].differences)
        raise BillingError(
            f"price {changes[0].key!r} is there with other figures ({differs}), and a price is never edited. "
            f"Add --replace to sell at the new one from now on; who subscribes to {changes[0].id} keeps it"
        )


def show_plan(screen: Screen, plan: Plan) -> None:
    """The plan as a diff. What is not in the catalog is spelled out only where it is to be archived."""
    others = [] if plan.archive else [f"{c.kind} {c.key}" for c in plan.changes if c.action == "leave"]
    for change in plan.changes:
        if change.action == "leave" and others:
            continue
        was = f"  ({change.id})" if change.id else ""
        head = f"{SIGNS[change.action]} {change.action:<10} {change.kind:<8} {change.key}{was}"
        screen.say(head, _COLOURS[change.action])
        screen.say(f"      {change.summary}", "dim" if change.action == "unchanged" else "")
        for difference in change.differences:
            screen.say(f"      {difference.field}: {difference.found} -> {difference.wanted}", "yellow")
        if change.note:
            screen.say(f"      {change.note}")
    if others:
        screen.say(f"{SIGNS['leave']} ours, but not in this catalog: {', '.join(others)}", "dim")
        screen.say(
            "      They stay as they are; --archive shows which of them bill nobody and could go.", "dim"
        )


def _show_applied(screen: Screen, applied: Applied) -> None:
    if not applied.changes:
        screen.say("Everything was there already; nothing was changed.")
    ids = table("what", "name", "Stripe id")
    for kind, names in (
        ("meter", applied.meters),
        ("product", applied.products),
        ("price", applied.prices),
        ("alert", applied.alerts),
    ):
        for name, id_at_stripe in names.items():
            row(ids, kind, name, id_at_stripe)
    screen.table(ids)
    for change in applied.left:
        screen.say(f"{change.kind} {change.key} stays: {change.note}")
    if applied.alerts:
        screen.say(ALERT_LIMITS)
