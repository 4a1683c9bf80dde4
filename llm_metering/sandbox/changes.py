"""Changes of a subscription's items: prices, quantities, added and removed ones.

Metered items: in flexible mode every event is billed at the price in force when it happened; in classic
mode only what is used from the change on. Licensed ones are prorated.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from .billing import Item, usage_lines
from .errors import invalid, not_played
from .invoice_items import Pending, add_pending
from .invoices import style_of
from .items import check_quantity, check_together, is_metered, items_of, new_item, price_for
from .lists import merged_metadata
from .prorations import elapsed, past_time, prorated, remaining_time, share, unused_time
from .prorations import price_for as full_price
from .store import Doc
from .subscription_times import next_due
from .tariffs import item_value, usage_of
from .world import Call


def change_items(
    call: Call, customer: Doc, subscription: Doc, wanted: Sequence[dict[str, Any]], behavior: str, now: int
) -> None:
    """Carry out what `items` asks for. `behavior` is "none" where nothing is to be prorated."""
    change = _Change(call, customer, subscription, behavior != "none", now)
    for n, given in enumerate(wanted):
        path = f"items[{n}]"
        if "id" not in given:
            change.add(given, path)
            continue
        item = call.store.get(call.account, "subscription_item", given["id"])
        if item is None or item["subscription"] != subscription["id"]:
            raise invalid(f"No such subscription item: '{given['id']}'", f"{path}[id]", "resource_missing")
        if given.get("deleted"):
            change.remove(item)
        else:
            change.alter(item, given, path)
    docs = items_of(call, subscription["id"])
    if not docs:
        raise invalid("A subscription must have at least one item; cancel it instead.", "items")
    prices = [call.find("price", doc["price"], "items") for doc in docs]
    check_together(customer, prices, subscription["billing_mode"]["type"], subscription["currency"])
    call.store.set_due(call.account, subscription, next_due(subscription, docs))


def charge_rest(call: Call, customer: Doc, subscription: Doc, item: Doc, prorates: bool, now: int) -> None:
    """Put a licensed item's share of a period that is under way on the next invoice."""
    _Change(call, customer, subscription, prorates, now).charge(item)


def charge_past(call: Call, customer: Doc, subscription: Doc, item: Doc, since: int, now: int) -> None:
    """Put a licensed item's time from a backdated start until now on the next invoice, in one amount."""
    quantity = item["quantity"]
    if quantity is None:
        return
    value = item_value(call.world, call.account, item)
    tariff = value.tariff
    pending = Pending(
        elapsed(tariff, quantity, since, now),
        Decimal(quantity),
        tariff.rate.unit,
        tariff,
        past_time(tariff, quantity, since, now),
        since,
        now,
        proration=True,
    )
    add_pending(call, customer, subscription, item["id"], pending, now)


class _Change:
    """One update, with what all its steps need."""

    def __init__(self, call: Call, customer: Doc, subscription: Doc, prorates: bool, now: int) -> None:
        self.call = call
        self.customer = customer
        self.subscription = subscription
        self.prorates = prorates
        self.now = now
        self.flexible = subscription["billing_mode"]["type"] == "flexible"

    def add(self, given: dict[str, Any], path: str) -> None:
        price = price_for(self.call, given, path)
        anchor = self.subscription["billing_cycle_anchor"]
        item = new_item(self.call, self.subscription["id"], price, given, anchor, self.now, starts=False)
        if self.subscription["status"] == "trialing":
            item.update(current_period_end=self.subscription["trial_end"], _free=True)
        self.call.store.insert(self.call.account, item, owner=self.subscription["id"])
        self.charge(item)

    def remove(self, item: Doc) -> None:
        if item["quantity"] is None:
            self._bill_usage(item)
        else:
            self._refund(item)
        self.call.store.remove(self.call.account, item)

    def alter(self, item: Doc, given: dict[str, Any], path: str) -> None:
        if "metadata" in given:
            item["metadata"] = merged_metadata(item["metadata"], given["metadata"])
        old = self.call.find("price", item["price"], path)
        price = old
        if "price" in given or "price_data" in given:
            price = price_for(self.call, given, path)
        check_quantity(price, given, path)
        if price["id"] != old["id"]:
            self._check_swap(old, price, path)
        if item["quantity"] is None:
            self._swap_metered(item, price)
        elif price["id"] != old["id"] or given.get("quantity", item["quantity"]) != item["quantity"]:
            self._refund(item)
            item.update(price=price["id"], quantity=given.get("quantity", item["quantity"]))
            self.call.store.save(self.call.account, item)
            self.charge(item)
        self.call.store.save(self.call.account, item)

    def _check_swap(self, old: Doc, new: Doc, path: str) -> None:
        interval = ("interval", "interval_count")
        if is_metered(old) != is_metered(new) or any(
            old["recurring"][name] != new["recurring"][name] for name in interval
        ):
            raise not_played(f"{path}[price]")

    def _swap_metered(self, item: Doc, price: Doc) -> None:
        if price["id"] == item["price"]:
            return
        if self.flexible:
            item["_earlier"].append({"price": item["price"], "start": item["_since"], "end": self.now})
        item.update(price=price["id"], _since=self.now)

    def _bill_usage(self, item: Doc) -> None:
        """Flexible mode bills the usage of an item that goes; classic mode lets it go."""
        if not self.flexible or not self.prorates:
            return
        call = self.call
        # Ends are outside of a period, and what was used in this very second is to be billed.
        value = item_value(call.world, call.account, {**item, "current_period_end": self.now + 1})
        usage = usage_of(call.world, call.account, self.customer["id"])
        for line in [] if value.free else usage_lines(value, usage, style_of(call)):
            pending = Pending(
                line.amount,
                line.quantity,
                line.unit,
                line.tariff,
                line.description,
                line.start,
                line.end,
                proration=False,
            )
            add_pending(call, self.customer, self.subscription, item["id"], pending, self.now)

    def _refund(self, item: Doc) -> None:
        value = self._value(item)
        quantity = item["quantity"]
        self._prorate(value, -quantity, unused_time(value, quantity, self.now))

    def charge(self, item: Doc) -> None:
        if item["quantity"] is not None:
            value = self._value(item)
            description = remaining_time(value.tariff, item["quantity"], self.now)
            self._prorate(value, item["quantity"], description)

    def _prorate(self, item: Item, quantity: int, description: str) -> None:
        """Put the rest of the period on the next invoice; a negative quantity gives it back."""
        left, whole = share(item, self.now)
        if item.free or not self.prorates or not left or not quantity:
            return
        amount = prorated(full_price(item.tariff, abs(quantity)), left, whole)
        pending = Pending(
            amount if quantity > 0 else -amount,
            Decimal(abs(quantity)),
            item.tariff.rate.unit,
            item.tariff,
            description,
            self.now,
            item.end,
            proration=True,
        )
        add_pending(self.call, self.customer, self.subscription, item.id, pending, self.now)

    def _value(self, item: Doc) -> Item:
        return item_value(self.call.world, self.call.account, item)
