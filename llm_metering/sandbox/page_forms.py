"""What the forms do: each makes the call of the API that a program would make, and says where to go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .faults import read_fault
from .page_desk import Denied, Desk
from .page_views import Form
from .page_words import minor, typed_time
from .store import Doc

Action = Callable[[Desk, tuple[str, ...], Form], str]


def create_meter(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    params: dict[str, Any] = {
        "display_name": form.get("display_name"),
        "event_name": form.get("event_name"),
        "default_aggregation": {"formula": form.get("formula")},
        "event_time_window": form.text("event_time_window"),
    }
    if form.text("customer_key"):
        params["customer_mapping"] = {"type": "by_id", "event_payload_key": form.get("customer_key")}
    if form.text("value_key"):
        params["value_settings"] = {"event_payload_key": form.get("value_key")}
    return f"/meters/{desk.ask('POST', '/v1/billing/meters', params)['id']}?done=created"


def switch_meter(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    desk.ask("POST", f"/v1/billing/meters/{ids[0]}/{ids[1]}")
    return f"/meters/{ids[0]}?done=saved"


def add_usage(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    meter = desk.get(f"/v1/billing/meters/{ids[0]}")
    payload = {meter["customer_mapping"]["event_payload_key"]: form.get("customer")}
    if meter["default_aggregation"]["formula"] != "count" or form.text("value"):
        payload[meter["value_settings"]["event_payload_key"]] = form.get("value")
    for line in filter(None, map(str.strip, form.get("dimensions").splitlines())):
        name, equals, value = line.partition("=")
        if not equals:
            raise Denied(400, f"{line!r} is not name=value.", "dimensions")
        payload[name.strip()] = value.strip()
    at = form.text("timestamp")
    desk.ask(
        "POST",
        "/v1/billing/meter_events",
        {
            "event_name": meter["event_name"],
            "payload": payload,
            "identifier": form.text("identifier"),
            "timestamp": at and typed_time(at),
        },
    )
    return f"/meters/{ids[0]}?done=used"


def create_product(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    # One call makes both, so that a price that is refused leaves no product behind.
    price = desk.ask("POST", "/v1/prices", {**_price(form), "product_data": {"name": form.get("name")}})
    if form.text("description"):
        desk.ask("POST", f"/v1/products/{price['product']}", {"description": form.get("description")})
    return f"/products/{price['product']}?done=created"


def create_price(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    desk.ask("POST", "/v1/prices", {**_price(form), "product": ids[0]})
    return f"/products/{ids[0]}?done=created"


def switch_price(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    price = desk.ask("POST", f"/v1/prices/{ids[0]}", {"active": ids[1] == "activate"})
    return f"/products/{price['product']}?done=saved"


def create_customer(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    params: dict[str, Any] = {
        "name": form.get("name"),
        "email": form.text("email"),
        "test_clock": form.text("test_clock"),
    }
    if form.text("card"):
        params["payment_method"] = form.get("card")
        params["invoice_settings"] = {"default_payment_method": form.get("card")}
    return f"/customers/{desk.ask('POST', '/v1/customers', params)['id']}?done=created"


def delete_customer(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    desk.ask("DELETE", f"/v1/customers/{ids[0]}")
    return "/customers?done=deleted"


def create_subscription(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    items = []
    for price in form.all("price"):
        quantity = form.text(f"quantity_{price}")
        items.append({"price": price, "quantity": quantity} if quantity else {"price": price})
    how = form.get("collection")
    start = form.text("start")
    params: dict[str, Any] = {
        "customer": form.get("customer"),
        "items": items or None,
        "billing_mode": {"type": form.get("mode", "flexible")},
        "collection_method": "send_invoice" if how == "send_invoice" else "charge_automatically",
        "days_until_due": form.get("days_until_due", "30") if how == "send_invoice" else None,
        "payment_behavior": "default_incomplete" if how == "default_incomplete" else None,
        "backdate_start_date": start and typed_time(start),
        "trial_period_days": form.text("trial"),
        "discounts": [{"coupon": form.get("coupon")}] if form.text("coupon") else None,
    }
    return f"/subscriptions/{desk.ask('POST', '/v1/subscriptions', params)['id']}?done=created"


def cancel_subscription(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    when = form.get("when")
    if when in ("end", "keep"):
        desk.ask("POST", f"/v1/subscriptions/{ids[0]}", {"cancel_at_period_end": when == "end"})
    else:
        desk.ask("DELETE", f"/v1/subscriptions/{ids[0]}", {"invoice_now": True})
    return f"/subscriptions/{ids[0]}?done=saved"


def act_on_invoice(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    desk.ask("POST", f"/v1/invoices/{ids[0]}/{ids[1]}")
    return f"/invoices/{ids[0]}?done=saved"


def delete_webhook(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    desk.ask("DELETE", f"/v1/webhook_endpoints/{ids[0]}")
    return "/webhooks?done=deleted"


def make_webhook(desk: Desk, form: Form) -> Doc:
    """A new endpoint, with the secret that is shown this once."""
    wanted = form.get("events", "*").replace(",", " ").split() or ["*"]
    return desk.ask("POST", "/v1/webhook_endpoints", {"url": form.get("url"), "enabled_events": wanted})


def create_clock(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    params = {"name": form.text("name"), "frozen_time": typed_time(form.get("frozen_time"))}
    desk.ask("POST", "/v1/test_helpers/test_clocks", params)
    return "/clocks?done=created"


def advance_clock(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    clock = desk.get(f"/v1/test_helpers/test_clocks/{ids[0]}")
    step = form.get("step")
    target = clock["frozen_time"] + int(step) if step.isdigit() else typed_time(form.get("frozen_time"))
    desk.ask("POST", f"/v1/test_helpers/test_clocks/{ids[0]}/advance", {"frozen_time": target})
    return "/clocks?done=advanced"


def delete_clock(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    desk.ask("DELETE", f"/v1/test_helpers/test_clocks/{ids[0]}")
    return "/clocks?done=deleted"


def add_fault(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    given: dict[str, Any] = {"kind": form.get("kind")}
    given["match"] = {name: form.text(name) for name in ("method", "path", "customer")}
    try:
        for name in ("after", "rate", "seconds", "status"):
            if form.text(name):
                given[name] = json.loads(form.get(name))
        given["count"] = None if "forever" in form else json.loads(form.get("count") or "1")
        desk.app.faults.add(read_fault(given))
    except ValueError as exc:
        raise Denied(400, f"No such fault: {exc}.", None) from exc
    return "/faults?done=created"


def clear_faults(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    desk.app.faults.clear()
    return "/faults?done=cleared"


def settle(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    desk.app.settle()
    return "/?done=settled"


def reset(desk: Desk, ids: tuple[str, ...], form: Form) -> str:
    desk.app.reset()
    return "/?done=reset"


def _price(form: Form) -> dict[str, Any]:
    """The parameters of a price, from the fields that its model has."""
    currency = form.get("currency", "usd")
    metered = form.get("usage_type", "metered") == "metered"
    scheme = form.get("scheme", "per_unit") if metered else "per_unit"
    params: dict[str, Any] = {
        "currency": currency,
        "nickname": form.text("nickname"),
        "recurring": {
            "interval": form.get("interval", "month"),
            "usage_type": "metered" if metered else "licensed",
            "meter": form.text("meter") if metered else None,
        },
    }
    if scheme in ("graduated", "volume"):
        tiers = _tiers(form, currency)
        return {**params, "billing_scheme": "tiered", "tiers_mode": scheme, "tiers": tiers or None}
    params["unit_amount_decimal"] = minor(form.get("amount" if metered else "fee"), currency)
    if scheme == "package":
        params["transform_quantity"] = {"divide_by": form.get("package_size"), "round": "up"}
    return params


def _tiers(form: Form, currency: str) -> list[dict[str, str]]:
    """The rows that were filled in. A last row without a last unit has no end."""
    tiers = []
    for up_to, unit, flat in zip(
        form.all("tier_up_to"), form.all("tier_unit"), form.all("tier_flat"), strict=False
    ):
        if not any(text.strip() for text in (up_to, unit, flat)):
            continue
        last = up_to.strip().replace(",", "")
        tier = {"up_to": "inf" if last in ("", "∞", "inf") else last}
        if unit.strip():
            tier["unit_amount_decimal"] = minor(unit, currency)
        if flat.strip():
            tier["flat_amount_decimal"] = minor(flat, currency)
        tiers.append(tier)
    return tiers
