"""`migrate`: move those who subscribe to a price that was replaced to the one that took its place.

A step of its own, since it changes what people pay: each subscription is looked at again before it is
changed, and all its items move in one call. A second run, or one beside it, finds what is done already, and
an update to the price that is there changes nothing at Stripe. So it may be interrupted at any call, and be
run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from .leftovers import ENDED
from .migrations import changed_items, used_of
from .moves import ItemMove, Migration, Move
from .refusals import doing, explain, is_passing
from .subscriptions import Subscription, parse_subscription

if TYPE_CHECKING:
    from stripe import StripeClient

_TRIES = 4

OnMove = Callable[[Move, str | None], object]
"""Called after each move, with why it was left out, if it was."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a run did."""

    moved: tuple[Move, ...]
    """Those that this run moved, or found moved already."""
    refused: tuple[tuple[Move, str], ...]
    """Those that stay as they are, each with the reason."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "moved": [move.subscription for move in self.moved],
            "refused": [{"subscription": move.subscription, "reason": why} for move, why in self.refused],
        }


def migrate(migration: Migration, client: StripeClient, *, on_move: OnMove = lambda *_: None) -> Migrated:
    """Carry out what was shown, at once. What has changed since is left alone and told.

    One customer's refusal does not keep the others from being moved; a key that is not accepted, or a
    network that is gone, ends the run. Run it again then.
    """
    moved: list[Move] = []
    refused = [(move, str(move.blocked)) for move in migration.blocked]
    for move in migration.ready:
        why = _carry_out(move, migration, client)
        if why is None:
            moved.append(move)
        else:
            refused.append((move, why))
        on_move(move, why)
    return Migrated(tuple(moved), tuple(refused))


def _carry_out(move: Move, migration: Migration, client: StripeClient) -> str | None:
    """Move one subscription; say why it stays, if it does."""
    import stripe

    tries = _TRIES
    while True:
        tries -= 1
        try:
            return _once(move, migration, client)
        except (stripe.AuthenticationError, stripe.PermissionError, stripe.APIConnectionError):
            with doing(f"moving {move.subscription} of {move.customer}"):
                raise
        except stripe.StripeError as exc:
            if not is_passing(exc) or not tries:
                return explain(exc)


def _once(move: Move, migration: Migration, client: StripeClient) -> str | None:
    standing = parse_subscription(client.v1.subscriptions.retrieve(move.subscription))
    if standing.status in ENDED:
        return f"it has ended since ({standing.status})"
    left, why = _left(move, standing)
    if why is not None or not left:
        return why
    if standing.billing_mode == "classic" and move.turns_flexible:
        _turn_flexible(move, client)
    elif standing.billing_mode == "classic" and not migration.forfeit_usage:
        why = _used_since(left, standing, client)
    if why is not None:
        return why
    params = {"items": changed_items(left), "proration_behavior": migration.proration}
    after = parse_subscription(client.v1.subscriptions.update(move.subscription, cast("Any", params)))
    left, why = _left(move, after)
    return why or (f"Stripe answered, but {left[0].item} still has {left[0].old_price}" if left else None)


def _left(move: Move, standing: Subscription) -> tuple[list[ItemMove], str | None]:
    """What is still to be moved, or what has changed since it was shown."""
    prices = {item.id: item.price for item in standing.items}
    left = []
    for item in move.items:
        price = prices.get(item.item)
        if price == item.old_price:
            left.append(item)
        elif price != item.new_price:
            now = "is gone" if price is None else f"has {price} now"
            return [], f"{item.item} {now}; it was changed since this was shown. Look at it again"
    return left, None


def _turn_flexible(move: Move, client: StripeClient) -> None:
    """Stripe refuses it the second time, so another run that was faster is no failure."""
    import stripe

    try:
        client.v1.subscriptions.migrate(move.subscription, {"billing_mode": {"type": "flexible"}})
    except stripe.InvalidRequestError:
        if client.v1.subscriptions.retrieve(move.subscription).billing_mode.type != "flexible":
            raise


def _used_since(left: Iterable[ItemMove], standing: Subscription, client: StripeClient) -> str | None:
    """What nobody has seen when it was shown must not be given away."""
    items = {item.id: item for item in standing.items}
    for item in left:
        now = items[item.item]
        if now.meter is None:
            continue
        if used := used_of(client, now.meter, standing.customer, now.period_start, now.period_end):
            return f"it has used {used} since this was shown, which classic billing would never bill"
    return None
