"""`apply`: make a Stripe account match a catalog, whatever was done before, by whomever, however far.

It works in rounds: look, do what is missing, look again. Nothing depends on having been told what an
earlier run did, so it may be interrupted at any call, run twice, or run from two places at once.

What keeps two runs from making two: products have fixed ids, meters one event name, prices one lookup key,
and each creating call an idempotency key made of what it creates and what it replaces. The try is part of
that key, since Stripe replays what it stored under a key for a day: also an error 500, and also a product
that was deleted since.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from ..errors import BillingError
from .account import KEY, MARK, MARK_VALUE, Account, fetch
from .alerts import alert_params, keep_first
from .bodies import meter_params, price_params, product_params
from .catalog import Catalog, MeterSpec, ProductSpec
from .grants import AlertSpec
from .planning import Change, Plan, compare
from .prices import PriceSpec
from .refusals import doing, explain, is_passing

if TYPE_CHECKING:
    from stripe import StripeClient, StripeError

_ROUNDS = 6

OnChange = Callable[[Change, str], object]
"""Called after each change with the change and Stripe's id of the object."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A catalog that stands in an account, and the ids that Stripe gave it."""

    catalog: Catalog
    meters: Mapping[str, str]
    """Stripe's id by event name."""
    products: Mapping[str, str]
    """Stripe's id by our id; they are the same."""
    prices: Mapping[str, str]
    """Stripe's id by lookup key."""
    changes: tuple[Change, ...] = ()
    """What this run did; empty if the account matched already."""
    left: tuple[Change, ...] = ()
    """With `archive`: what is ours and not in the catalog, and had to stay. `note` says why."""
    alerts: Mapping[str, str] = field(default_factory=dict)
    """Stripe's id by title."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "meters": dict(self.meters),
            "products": dict(self.products),
            "prices": dict(self.prices),
            "alerts": dict(self.alerts),
            "changes": Plan(self.catalog, self.changes).as_dict()["changes"],
            "left": Plan(self.catalog, self.left).as_dict()["changes"],
        }


def apply(
    wanted: Catalog | Plan,
    client: StripeClient,
    *,
    archive: bool = False,
    on_change: OnChange = lambda *_: None,
) -> Applied:
    """Make the account match, and look again to be sure that it does.

    A `Plan` is carried out as it was reviewed: where the account has changed since so that something else
    would have to be done, nothing more is done and `BillingError` says what.

    Args:
        wanted: A catalog, or the plan that was reviewed.
        client: A Stripe client, such as `connect()` makes.
        archive: The catalog is all that is sold in this account: switch off what is ours and not in it,
            unless it bills someone. A `Plan` brings its own.
        on_change: Told of each change once it is done, for a progress display.
    """
    catalog = wanted.catalog if isinstance(wanted, Plan) else wanted
    archive = wanted.archive if isinstance(wanted, Plan) else archive
    done: list[Change] = []
    tries: Counter[tuple[str, str]] = Counter()
    failure: tuple[Change, StripeError] | None = None
    for _ in range(_ROUNDS):
        account = fetch(catalog, client, leftovers=archive)
        current = compare(catalog, account, archive=archive)
        if current.done:
            return _applied(current, account, done)
        if failure and failure[0] in current.changes and not is_passing(failure[1]):
            break
        _refuse_conflicts(current)
        if isinstance(wanted, Plan):
            _refuse_the_unseen(wanted, current)
        failure = _carry_out(current, account, client, tries, done, on_change)
    raise _hopeless(failure, current) from (failure[1] if failure else None)


def _applied(plan: Plan, account: Account, done: list[Change]) -> Applied:
    return Applied(
        plan.catalog,
        account.ids("meter"),
        account.ids("product"),
        account.ids("price"),
        tuple(done),
        tuple(change for change in plan.changes if change.action == "leave"),
        account.ids("alert"),
    )


def _hopeless(failure: tuple[Change, StripeError] | None, current: Plan) -> BillingError:
    if failure:
        change, exc = failure
        return BillingError(f"to {change.action} {change.kind} {change.key!r} failed: {explain(exc)}")
    return BillingError(
        f"the account still differs from the catalog ({current.summary}); someone else may be changing it "
        f"at the same time. Look at a new plan, then run it again"
    )


def _refuse_conflicts(plan: Plan) -> None:
    if not plan.conflicts:
        return
    change = plan.conflicts[0]
    differs = "; ".join(f"{d.field} is {d.found}, wanted {d.wanted}" for d in change.differences)
    raise BillingError(
        f"{change.kind} {change.key!r} ({change.id}) stands in the way: {differs}. {change.note}"
    )


def _refuse_the_unseen(reviewed: Plan, current: Plan) -> None:
    """What another run did meanwhile is welcome; what nobody has reviewed is not.

    With `archive`, to archive a price follows from having replaced it, as the plan says."""
    seen = set(reviewed.changes)
    replaced = {change.id for change in reviewed.changes if change.action == "replace"}
    unseen = [
        change
        for change in current.changes
        if _acts(change) and change not in seen and not (change.action == "archive" and change.id in replaced)
    ]
    if unseen:
        change = unseen[0]
        raise BillingError(
            f"the account has changed since this plan was made: {change.kind} {change.key!r} is now to "
            f"{change.action}. Make a new plan and review it"
        )


def _acts(change: Change) -> bool:
    """Whether carrying it out calls Stripe. A meter cannot be marked, so adopting one needs no call."""
    if change.action == "adopt" and change.kind == "meter":
        return bool(change.differences)
    return change.action not in ("unchanged", "leave")


def _carry_out(
    plan: Plan,
    account: Account,
    client: StripeClient,
    tries: Counter[tuple[str, str]],
    done: list[Change],
    on_change: OnChange,
) -> tuple[Change, StripeError] | None:
    """Do the changes in order; stop at the first that fails and say why."""
    import stripe

    meters = account.ids("meter")
    for change in plan.changes:
        if not _acts(change) or _waits(change, plan):
            continue
        salt = tries[change.kind, change.key]
        tries[change.kind, change.key] += 1
        try:
            made = _do(change, plan.catalog, client, meters, salt)
        except (stripe.AuthenticationError, stripe.PermissionError, stripe.APIConnectionError):
            with doing(f"to {change.action} {change.kind} {change.key!r}"):
                raise
        except stripe.StripeError as exc:
            return change, exc
        if change.kind == "meter":
            meters[change.key] = made
        done.append(change)
        on_change(change, made)
    return None


def _waits(change: Change, plan: Plan) -> bool:
    """A meter is switched off only after a look at who is billed, once nobody can subscribe any more."""
    return (change.action, change.kind) == ("archive", "meter") and any(
        (other.action, other.kind) == ("archive", "price") for other in plan.changes
    )


def _do(change: Change, catalog: Catalog, client: StripeClient, meters: dict[str, str], salt: int) -> str:
    if change.action == "archive":
        return _archive(change, client)
    if change.kind == "meter":
        return _do_meter(change, catalog.meter(change.key), client, salt)
    if change.kind == "product":
        return _do_product(change, catalog.product(change.key), client, salt)
    if change.kind == "alert":
        return _do_alert(change, catalog.alert(change.key), client, meters, salt)
    return _do_price(change, catalog.price(change.key), client, meters, salt)


def _archive(change: Change, client: StripeClient) -> str:
    assert change.id is not None  # noqa: S101 - what is archived is there
    if change.kind == "meter":
        return client.v1.billing.meters.deactivate(change.id).id
    if change.kind == "product":
        return client.v1.products.update(change.id, {"active": False}).id
    return client.v1.prices.update(change.id, {"active": False}).id


def _do_meter(change: Change, meter: MeterSpec, client: StripeClient, salt: int) -> str:
    meters = client.v1.billing.meters
    if change.action == "create":
        params = meter_params(meter)
        return meters.create(cast("Any", params), _once(change, params, salt)).id
    assert change.id is not None  # noqa: S101 - only "create" has no object
    if change.action == "reactivate":
        meters.reactivate(change.id)
    if any(d.field == "display_name" for d in change.differences):
        meters.update(change.id, {"display_name": meter.display_name})
    return change.id


def _do_product(change: Change, product: ProductSpec, client: StripeClient, salt: int) -> str:
    params = product_params(product)
    if change.action == "create":
        params["id"] = product.id
        return client.v1.products.create(cast("Any", params), _once(change, params, salt)).id
    return client.v1.products.update(product.id, cast("Any", {**params, "active": True})).id


def _do_price(
    change: Change, price: PriceSpec, client: StripeClient, meters: Mapping[str, str], salt: int
) -> str:
    prices = client.v1.prices
    if change.action in ("create", "replace"):
        params = price_params(price, meters)
        params["transfer_lookup_key"] = change.action == "replace"
        return prices.create(cast("Any", params), _once(change, params, salt)).id
    assert change.id is not None  # noqa: S101 - only "create" has no object
    edits: dict[str, Any] = {"active": True, "metadata": {MARK: MARK_VALUE, KEY: price.key}}
    if price.nickname is not None:
        edits["nickname"] = price.nickname
    return prices.update(change.id, cast("Any", edits)).id


def _do_alert(
    change: Change, alert: AlertSpec, client: StripeClient, meters: Mapping[str, str], salt: int
) -> str:
    alerts = client.v1.billing.alerts
    if change.action == "reactivate" and change.id is not None:
        return alerts.activate(change.id).id
    if change.id is not None:
        alerts.archive(change.id)
    params = alert_params(alert, meters[alert.meter])
    made = alerts.create(cast("Any", params), _once(change, params, salt))
    return keep_first(client, alert, made)


def _once(change: Change, params: Mapping[str, Any], salt: int) -> Any:
    """The same key for everyone who is about to make the same thing in place of the same thing."""
    what = json.dumps([change.kind, change.key, change.id, params, salt], sort_keys=True)
    return {"idempotency_key": "llm_metering-" + hashlib.sha256(what.encode()).hexdigest()[:48]}
