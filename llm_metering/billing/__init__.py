"""Billing as code: a catalog of what is sold, a plan to review, and an account that matches it.

    from llm_metering import billing

    client = billing.connect("sk_test_…")
    applied = billing.apply(billing.PayAsYouGo(), client)
    customer = billing.create_customer(client, "John Doe")
    subscription = billing.subscribe(client, customer, applied)
    billing.send_test_event(client, customer, 3000)
    print(billing.preview_invoice(client, subscription=subscription.id).total)  # 1.20

`docs/billing.md` walks through it.
"""

from __future__ import annotations

from .applying import Applied, apply
from .catalog import Catalog, Item, MeterSpec, Offer, PriceSpec, ProductSpec, Tier
from .connection import SANDBOX_URL, connect
from .events import SentEvent, send_test_event
from .guides import FlatFeeWithOverages, PayAsYouGo
from .money import Amount
from .planning import Change, Difference, Plan, compare, plan
from .previews import InvoiceLine, InvoicePreview, PriceTotal, preview_invoice
from .subscriptions import (
    Subscription,
    SubscriptionItem,
    check_prices,
    create_customer,
    find_subscriptions,
    subscribe,
)

__all__ = [
    "SANDBOX_URL",
    "Amount",
    "Applied",
    "Catalog",
    "Change",
    "Difference",
    "FlatFeeWithOverages",
    "InvoiceLine",
    "InvoicePreview",
    "Item",
    "MeterSpec",
    "Offer",
    "PayAsYouGo",
    "Plan",
    "PriceSpec",
    "PriceTotal",
    "ProductSpec",
    "SentEvent",
    "Subscription",
    "SubscriptionItem",
    "Tier",
    "apply",
    "check_prices",
    "compare",
    "connect",
    "create_customer",
    "find_subscriptions",
    "plan",
    "preview_invoice",
    "send_test_event",
    "subscribe",
]
