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

from .alerts import Alert, archive_alert, create_alert, find_alerts
from .applying import Applied, apply
from .catalog import Catalog, Item, MeterSpec, Offer, ProductSpec
from .connection import SANDBOX_URL, connect
from .credits import Credit, expire_credit, find_credits, grant_credit, void_credit
from .events import SentEvent, send_test_event
from .files import load_catalog, parse_catalog
from .grants import AlertSpec, CreditSpec
from .guides import FlatFeeWithOverages, PayAsYouGo
from .invoices import Invoice, InvoiceLine, PriceTotal, fetch_invoice, find_invoices
from .migrating import Migrated, migrate
from .migrations import plan_migration
from .money import Amount
from .moves import ItemMove, Migration, Move
from .planning import Change, Difference, Plan, compare, plan
from .previews import InvoicePreview, preview_invoice
from .prices import PriceSpec, Tier
from .rating import Estimate, MeteredUsage, RatedLine, estimate, rate
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
    "Alert",
    "AlertSpec",
    "Amount",
    "Applied",
    "Catalog",
    "Change",
    "Credit",
    "CreditSpec",
    "Difference",
    "Estimate",
    "FlatFeeWithOverages",
    "Invoice",
    "InvoiceLine",
    "InvoicePreview",
    "Item",
    "ItemMove",
    "MeterSpec",
    "MeteredUsage",
    "Migrated",
    "Migration",
    "Move",
    "Offer",
    "PayAsYouGo",
    "Plan",
    "PriceSpec",
    "PriceTotal",
    "ProductSpec",
    "RatedLine",
    "SentEvent",
    "Subscription",
    "SubscriptionItem",
    "Tier",
    "apply",
    "archive_alert",
    "check_prices",
    "compare",
    "connect",
    "create_alert",
    "create_customer",
    "estimate",
    "expire_credit",
    "fetch_invoice",
    "find_alerts",
    "find_credits",
    "find_invoices",
    "find_subscriptions",
    "grant_credit",
    "load_catalog",
    "migrate",
    "parse_catalog",
    "plan",
    "plan_migration",
    "preview_invoice",
    "rate",
    "send_test_event",
    "subscribe",
    "void_credit",
]
