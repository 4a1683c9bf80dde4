"""`setup` and `subscribe`: put a pricing guide into an account, and a customer onto it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..billing import (
    Applied,
    Catalog,
    FlatFeeWithOverages,
    PayAsYouGo,
    Plan,
    Subscription,
    check_prices,
    create_customer,
    subscribe,
)
from ..billing import apply as apply_plan
from ..billing import plan as make_plan
from ..billing.guides import FLAT_FEE, PAY_AS_YOU_GO
from ..billing.planning import SIGNS
from ..billing.subscriptions import BillingMode, Collection
from ..errors import BillingError, ConfigurationError
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
Currency = Annotated[str | None, typer.Option("--currency", help="Three letters (default: usd).")]
Interval = Annotated[
    str | None, typer.Option("--interval", help="day, week, month or year (default: month).")
]
EventName = Annotated[
    str | None, typer.Option("--event-name", help="The meter's event name (default: hypernian_tokens).")
]
MeterName = Annotated[
    str | None, typer.Option("--meter-name", help='Shown in the Dashboard (default: "Hypernian tokens").')
]
Aggregation = Annotated[str | None, typer.Option("--aggregation", help="sum, count or last (default: sum).")]
LicenseBilled = Annotated[
    str | None,
    typer.Option("--license-billed", help="in_advance, or with_usage in arrears (default: in_advance)."),
]

_COLOURS = {
    "create": "green", "adopt": "cyan", "reactivate": "cyan", "update": "yellow", "replace": "yellow",
    "unchanged": "dim", "conflict": "red",
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
        **_given(
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
    _set_up(catalog, target, PAY_AS_YOU_GO, dry_run=dry_run, replace=replace, as_json=as_json)


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
        **_given(
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
    _set_up(catalog, target, FLAT_FEE, dry_run=dry_run, replace=replace, as_json=as_json)


def subscribe_command(
    offer: Annotated[str, typer.Argument(metavar="PLAN", help=f"{PAY_AS_YOU_GO} or {FLAT_FEE}.")],
    customer: Annotated[str | None, typer.Option("--customer", help="Stripe customer id.")] = None,
    new_customer: Annotated[
        str | None, typer.Option("--new-customer", metavar="NAME", help="Make a customer of this name.")
    ] = None,
    seats: Annotated[
        int | None, typer.Option("--seats", help="Quantity of the licence (default: 1).")
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
    catalog = _guide(offer, currency, interval, event_name, license_billed)
    quantities = _seats(catalog, seats)
    screen = Screen(as_json=as_json)
    target = Target(api_key, api_base, sandbox, live)
    with target.client() as client:
        if customer is None:
            check_prices(client, catalog, exact=False)
            customer = create_customer(client, str(new_customer))
        made = subscribe(
            client,
            customer,
            catalog,
            quantities=quantities,
            billing_mode=cast("BillingMode", billing_mode),
            collection=cast("Collection | None", collection),
            days_until_due=days_until_due,
            exact=False,
        )
    screen.document({"subscription": made})
    _show_subscription(screen, made)
    screen.say(f"Next: llm-metering test-event --customer {made.customer} --value 3000{target.flags}")


def _given(**arguments: Any) -> dict[str, Any]:
    """Only what was said; the guides' own defaults stand for the rest."""
    return {name: value for name, value in arguments.items() if value is not None}


def _guide(
    offer: str, currency: str | None, interval: str | None, event_name: str | None, license_billed: str | None
) -> Catalog:
    """The catalog whose prices have the keys of that plan; its amounts do not matter here."""
    said = _given(currency=currency, interval=interval, event_name=event_name)
    if offer == PAY_AS_YOU_GO:
        if license_billed is not None:
            raise ConfigurationError(f"--license-billed belongs to {FLAT_FEE}")
        return PayAsYouGo(amount=1, **said)
    if offer == FLAT_FEE:
        said |= _given(license_billed=license_billed)
        return FlatFeeWithOverages(license_amount=1, overage_amount=1, **said)
    raise ConfigurationError(f"there is no plan {offer!r}; there are {PAY_AS_YOU_GO} and {FLAT_FEE}")


def _seats(catalog: Catalog, seats: int | None) -> dict[str, int]:
    if seats is None:
        return {}
    licences = [price.key for price in catalog.prices if not price.metered]
    if not licences:
        raise ConfigurationError("--seats needs a plan with a licence fee in advance")
    return {licences[0]: seats}


def _set_up(
    catalog: Catalog, target: Target, name: str, *, dry_run: bool, replace: bool, as_json: bool
) -> None:
    screen = Screen(as_json=as_json)
    with target.client() as client:
        plan = make_plan(catalog, client)
        show_plan(screen, plan)
        if dry_run:
            screen.document({"dry_run": True, "plan": plan.as_dict(), "applied": None})
            screen.say(f"Nothing was changed: {plan.summary}.")
            return
        _refuse_unasked(plan, replace)
        with screen.progress("Setting up", sum(c.action != "unchanged" for c in plan.changes)) as bar:
            applied = apply_plan(plan, client, on_change=lambda *_: _advance(bar))
    screen.document({"dry_run": False, "plan": plan.as_dict(), "applied": applied.as_dict()})
    _show_applied(screen, applied)
    screen.say(f"Next: llm-metering subscribe {name} --new-customer 'John Doe'{target.flags}")


def _advance(bar: Progress | None) -> None:
    if bar is not None:
        bar.advance(bar.task_ids[0])


def _refuse_unasked(plan: Plan, replace: bool) -> None:
    changes = [change for change in plan.changes if change.action == "replace"]
    if changes and not replace:
        differs = "; ".join(f"{d.field} {d.found} -> {d.wanted}" for d in changes[0].differences)
        raise BillingError(
            f"price {changes[0].key!r} is there with other figures ({differs}), and a price is never edited. "
            f"Add --replace to sell at the new one from now on; who subscribes to {changes[0].id} keeps it"
        )


def show_plan(screen: Screen, plan: Plan) -> None:
    """The plan as a diff."""
    for change in plan.changes:
        was = f"  ({change.id})" if change.id else ""
        head = f"{SIGNS[change.action]} {change.action:<10} {change.kind:<8} {change.key}{was}"
        screen.say(head, _COLOURS[change.action])
        screen.say(f"      {change.summary}", "dim" if change.action == "unchanged" else "")
        for difference in change.differences:
            screen.say(f"      {difference.field}: {difference.found} -> {difference.wanted}", "yellow")
        if change.note:
            screen.say(f"      {change.note}")


def _show_applied(screen: Screen, applied: Applied) -> None:
    if not applied.changes:
        screen.say("Everything was there already; nothing was changed.")
    ids = table("what", "name", "Stripe id")
    for kind, names in (("meter", applied.meters), ("product", applied.products), ("price", applied.prices)):
        for name, id_at_stripe in names.items():
            row(ids, kind, name, id_at_stripe)
    screen.table(ids)


def _show_subscription(screen: Screen, made: Subscription) -> None:
    verb = "is subscribed" if made.created else "was subscribed already"
    screen.say(f"{made.customer} {verb}: {made.id} ({made.status}, {made.billing_mode})")
    items = table("price", "Stripe id", "quantity", right=["quantity"])
    for item in made.items:
        row(items, item.lookup_key, item.price, "metered" if item.meter else item.quantity)
    screen.table(items)
    if made.collection_method == "send_invoice":
        screen.say(
            "Invoices are sent, not charged; --collection charge_automatically needs a payment method."
        )
