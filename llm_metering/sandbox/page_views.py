"""What each page shows. A view takes the desk, the ids in its path and the query, and gives a template with
what it needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from .faults import KINDS, shown_fault
from .page_charts import recent_events, try_out, usage_chart
from .page_desk import PAGE_LENGTH, Denied, Desk
from .page_words import coupon_words, is_metered
from .prices import CURRENCY_CODES
from .store import Doc

SAMPLE_EVENTS = "1000\n500\n1500"


class Form:
    """What a form or a query holds."""

    def __init__(self, text: str = "") -> None:
        self._values = parse_qs(text, keep_blank_values=True)

    def get(self, name: str, default: str = "") -> str:
        return self._values.get(name, [default])[0].strip()

    def text(self, name: str) -> str | None:
        """A value that was typed; None where the field was left empty."""
        return self.get(name) or None

    def all(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def __contains__(self, name: str) -> bool:
        return name in self._values


Page = tuple[str, dict[str, Any]]
View = Callable[[Desk, tuple[str, ...], Form], Page]


def overview(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    kinds = {
        "meters": "billing.meter",
        "products": "product",
        "customers": "customer",
        "subscriptions": "subscription",
        "invoices": "invoice",
    }
    counts = {
        name: desk.store.db.execute(
            "SELECT COUNT(*) FROM document WHERE account=? AND kind=?", (desk.account.n, kind)
        ).fetchone()[0]
        for name, kind in kinds.items()
    }
    states: dict[str, int] = dict(
        desk.store.db.execute(
            "SELECT state, COUNT(*) FROM meter_event WHERE account=? GROUP BY state", (desk.account.n,)
        ).fetchall()
    )
    return "overview.html", {
        "counts": counts,
        "states": states,
        "events": desk.get("/v1/events", limit=8)["data"],
        "faults": len(desk.app.faults.waiting()),
    }


def meters(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    return "meters.html", _listed(desk, "/v1/billing/meters", query)


def new_meter(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    return "meter_new.html", {"sample": SAMPLE_EVENTS, "tried": _tried(desk, SAMPLE_EVENTS, query)}


def try_meter(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    """The preview pane by itself."""
    return "_tried.html", {"tried": _tried(desk, query.get("sample"), query)}


def meter(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    found = desk.get(f"/v1/billing/meters/{ids[0]}")
    window = "day" if query.get("window") == "day" else "hour"
    customers = desk.all("/v1/customers")
    return "meter.html", {
        "meter": found,
        "window": window,
        "customers": customers,
        "names": _names(customers),
        "chosen": query.get("customer"),
        "chart": usage_chart(desk, found, window, query.text("customer")),
        "recent": recent_events(desk, found),
    }


def add_usage(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    found = desk.get(f"/v1/billing/meters/{ids[0]}")
    return "usage_new.html", {"meter": found, "customers": desk.all("/v1/customers")}


def products(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    shown = _listed(desk, "/v1/products", query)
    return "products.html", {**shown, "prices": _prices_by_product(desk)}


def new_product(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    return "product_new.html", _price_choices(desk)


def product(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    found = desk.get(f"/v1/products/{ids[0]}")
    prices = desk.all("/v1/prices", product=found["id"], expand=["data.tiers"])
    names = {one["id"]: one["display_name"] for one in desk.all("/v1/billing/meters")}
    return "product.html", {"product": found, "prices": prices, "meter_names": names, **_price_choices(desk)}


def customers(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    return "customers.html", _listed(desk, "/v1/customers", query)


def new_customer(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    return "customer_new.html", {"clocks": _clocks(desk)}


def customer(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    found = desk.get(f"/v1/customers/{ids[0]}")
    if found.get("deleted"):
        raise Denied(404, f"The customer {ids[0]} was deleted.", None)
    return "customer.html", {
        "customer": found,
        "subscriptions": desk.all("/v1/subscriptions", customer=ids[0], status="all"),
        "invoices": desk.all("/v1/invoices", customer=ids[0]),
        "usage": [row for row in desk.app.books(account=desk.account.id) if row.customer == ids[0]],
    }


def subscriptions(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    shown = _listed(desk, "/v1/subscriptions", query, status="all", expand=["data.customer"])
    return "subscriptions.html", shown


def new_subscription(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    prices = desk.all("/v1/prices", type="recurring", active=True, expand=["data.tiers"])
    return "subscription_new.html", {
        "customers": desk.all("/v1/customers"),
        "prices": prices,
        "products": {one["id"]: one for one in desk.all("/v1/products")},
        "chosen_customer": query.get("customer"),
        "coupons": _coupons(desk),
    }


def subscription(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    found = desk.get(f"/v1/subscriptions/{ids[0]}", expand=["customer", "discounts.source.coupon"])
    prices = {item["price"]["id"]: _price(desk, item["price"]["id"]) for item in found["items"]["data"]}
    return "subscription.html", {
        "subscription": found,
        "prices": prices,
        "coupons": [coupon_words(one["source"]["coupon"]) for one in found["discounts"]],
        "products": _products_of(desk, list(prices.values())),
        "invoices": desk.all("/v1/invoices", subscription=ids[0]),
        **_upcoming(desk, ids[0]),
    }


def upcoming(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    found = desk.get(f"/v1/subscriptions/{ids[0]}", expand=["customer"])
    shown = _upcoming(desk, ids[0])
    if shown["refused"]:
        raise Denied(404, shown["refused"], None)
    return "invoice.html", {"subscription": found, **shown}


def invoices(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    return "invoices.html", _listed(desk, "/v1/invoices", query)


def invoice(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    found = desk.get(f"/v1/invoices/{ids[0]}")
    lines = desk.all(f"/v1/invoices/{ids[0]}/lines")
    parent = found["parent"]
    owner = None
    if parent is not None:
        name = parent["subscription_details"]["subscription"]
        owner = desk.get(f"/v1/subscriptions/{name}", expand=["customer"])
    return "invoice.html", {"subscription": owner, **_with_prices(desk, {**found, "lines": {"data": lines}})}


def events(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    shown = _listed(desk, "/v1/events", query, type=query.text("type"))
    return "events.html", {**shown, "type": query.get("type")}


def event(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    found = desk.get(f"/v1/events/{ids[0]}")
    return "event.html", {"event": found, "text": json.dumps(found, indent=2, ensure_ascii=False)}


def webhooks(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    rows = desk.store.db.execute(
        "SELECT n, endpoint, event, url, due, attempts, state, status, body FROM delivery "
        "WHERE account=? ORDER BY n DESC LIMIT ?",
        (desk.account.n, PAGE_LENGTH),
    ).fetchall()
    names = ("n", "endpoint", "event", "url", "due", "attempts", "state", "status", "body")
    deliveries = [dict(zip(names, row, strict=True)) for row in rows]
    for one in deliveries:
        one["type"] = json.loads(one["body"])["type"]
    url = "webhook_endpoint.url"
    return "webhooks.html", {
        "endpoints": desk.all("/v1/webhook_endpoints"),
        "destinations": desk.get("/v2/core/event_destinations", include=[url], limit=100)["data"],
        "deliveries": deliveries,
    }


def clocks(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    docs = _clocks(desk)
    living = {one["id"]: desk.all("/v1/customers", test_clock=one["id"]) for one in docs}
    return "clocks.html", {"clocks": docs, "living": living}


def faults(desk: Desk, ids: tuple[str, ...], query: Form) -> Page:
    waiting = [(fault, shown_fault(fault)) for fault in desk.app.faults.waiting()]
    return "faults.html", {"faults": waiting, "kinds": KINDS}


def _listed(desk: Desk, path: str, query: Form, **params: Any) -> dict[str, Any]:
    """A page of a list, and where the next begins."""
    found = desk.get(path, limit=PAGE_LENGTH, starting_after=query.text("after"), **params)
    docs: list[Doc] = found["data"]
    return {"docs": docs, "older": docs[-1]["id"] if found["has_more"] else None}


def _tried(desk: Desk, sample: str, query: Form) -> dict[str, Any]:
    window = query.get("event_time_window")
    return try_out(sample, window if window in ("hour", "day") else None, desk.world.switches)


def _price_choices(desk: Desk) -> dict[str, Any]:
    return {"meters": desk.all("/v1/billing/meters", status="active"), "currencies": CURRENCY_CODES}


def _clocks(desk: Desk) -> list[Doc]:
    return [] if desk.account.livemode else desk.all("/v1/test_helpers/test_clocks")


def _coupons(desk: Desk) -> list[tuple[str, str]]:
    """What can be chosen, with nothing first; empty where there is no coupon."""
    valid = [one for one in desk.all("/v1/coupons") if one["valid"]]
    return [("", "None"), *((one["id"], coupon_words(one)) for one in valid)] if valid else []


def _names(docs: list[Doc]) -> dict[str, str]:
    return {one["id"]: one["name"] or one["email"] or one["id"] for one in docs}


def _prices_by_product(desk: Desk) -> dict[str, list[Doc]]:
    found: dict[str, list[Doc]] = {}
    for one in desk.all("/v1/prices", expand=["data.tiers"]):
        found.setdefault(one["product"], []).append(one)
    return found


def _price(desk: Desk, id: str) -> Doc:
    return desk.get(f"/v1/prices/{id}", expand=["tiers"])


def _products_of(desk: Desk, prices: list[Doc]) -> dict[str, Doc]:
    return {one["product"]: desk.get(f"/v1/products/{one['product']}") for one in prices}


def _upcoming(desk: Desk, subscription: str) -> dict[str, Any]:
    try:
        found = desk.ask("POST", "/v1/invoices/create_preview", {"subscription": subscription})
    except Denied as exc:
        return {"invoice": None, "refused": exc.message}
    return {"refused": None, "upcoming": True, **_with_prices(desk, found)}


def _with_prices(desk: Desk, found: Doc) -> dict[str, Any]:
    """An invoice, its lines added up by price: how many lines a price has says nothing."""
    groups: dict[str, dict[str, Any]] = {}
    for line in found["lines"]["data"]:
        details = (line["pricing"] or {}).get("price_details") or {}
        id = details.get("price") or ""  # noqa: A001
        group = groups.setdefault(id, {"price": None, "product": None, "lines": [], "amount": 0, "used": 0})
        if id and group["price"] is None:
            group["price"] = _price(desk, id)
            group["product"] = desk.get(f"/v1/products/{details['product']}")
        group["lines"].append(line)
        group["amount"] += line["amount"]
        group["used"] += line["quantity"] or 0
        group["metered"] = bool(group["price"]) and is_metered(group["price"])
    return {"invoice": found, "groups": list(groups.values())}
