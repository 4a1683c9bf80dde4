"""Prices: what they may be, and how answers show them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from .errors import invalid, missing_parameter
from .events import emit
from .forms import (
    CREATED,
    EXPAND,
    LIST,
    METADATA,
    Required,
    Table,
    array,
    boolean,
    choice,
    decimal,
    either,
    hash_of,
    integer,
    refused,
    text,
)
from .lists import created_within, merged_metadata, page, public, unset
from .money import plain
from .products import PRODUCT_DATA, make_product
from .store import Doc
from .world import Call, Route


def create(call: Call) -> Doc:
    given = call.params
    if ("product" in given) == ("product_data" in given):
        raise invalid("You must specify exactly one of product and product_data.", "product")
    recurring = read_recurring(call, given.get("recurring"))
    amounts = _amounts(given)
    if "product" in given:
        product = call.find("product", given["product"], "product")
    else:
        product = make_product(call, given["product_data"])
    price = {
        "id": call.new_id("price_"),
        "object": "price",
        "active": given.get("active", True),
        "created": call.now,
        "currency": given["currency"],
        "custom_unit_amount": None,
        "livemode": call.account.livemode,
        "lookup_key": None,
        "metadata": merged_metadata({}, given.get("metadata", {})),
        "nickname": unset(given.get("nickname")),
        "product": product["id"],
        "recurring": recurring,
        "tax_behavior": given.get("tax_behavior", "unspecified"),
        "transform_quantity": given.get("transform_quantity"),
        "type": "one_time" if recurring is None else "recurring",
        **amounts,
    }
    call.store.insert(call.account, price, owner=product["id"])
    _set_lookup_key(call, price)
    emit(call, "price.created", shown_price(price))
    return shown_price(price)


def retrieve(call: Call) -> Doc:
    return shown_price(call.fetch("price", "price"))


def update(call: Call) -> Doc:
    price = call.fetch("price", "price")
    given = call.params
    if "tax_behavior" in given and price["tax_behavior"] not in ("unspecified", given["tax_behavior"]):
        raise invalid("The tax_behavior of a price cannot be changed once it is set.", "tax_behavior")
    for name in ("active", "nickname", "tax_behavior"):
        if name in given:
            price[name] = unset(given[name])
    if "metadata" in given:
        price["metadata"] = merged_metadata(price["metadata"], given["metadata"])
    _set_lookup_key(call, price)
    emit(call, "price.updated", shown_price(price), {})
    return shown_price(price)


def list_prices(call: Call) -> Doc:
    wanted = call.params
    recurring = wanted.get("recurring", {})

    def keep(price: Doc) -> bool:
        return (
            all(
                wanted.get(name, price[name]) == price[name]
                for name in ("active", "currency", "product", "type")
            )
            and ("lookup_keys" not in wanted or price["lookup_key"] in wanted["lookup_keys"])
            and all((price["recurring"] or {}).get(name) == value for name, value in recurring.items())
            and created_within(price["created"], wanted.get("created"))
        )

    return page(call, "price", "/v1/prices", lambda _, doc: shown_price(doc), keep)


def shown_price(price: Doc) -> Doc:
    """A price as answers show it: without its tiers, unless `expand` asks for them."""
    return public(price)


def read_recurring(call: Call, given: dict[str, Any] | None) -> dict[str, Any] | None:
    if given is None:
        return None
    usage_type = given.get("usage_type", "licensed")
    meter = unset(given.get("meter"))
    if usage_type == "metered":
        if meter is None:
            raise missing_parameter("recurring[meter]")
        if call.find("billing.meter", meter, "recurring[meter]")["status"] != "active":
            raise invalid(
                f"The meter {meter} is not active and cannot be attached to a price.", "recurring[meter]"
            )
    elif meter is not None:
        raise invalid("A meter can only be set on a price with usage_type=metered.", "recurring[meter]")
    limit = {"day": 1095, "week": 156, "month": 36, "year": 3}[given["interval"]]
    count = given.get("interval_count", 1)
    if count > limit:
        raise invalid("The billing interval of a price is at most three years.", "recurring[interval_count]")
    return {
        "interval": given["interval"],
        "interval_count": count,
        "meter": meter,
        "trial_period_days": given.get("trial_period_days"),
        "usage_type": usage_type,
    }


def _amounts(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("billing_scheme", "per_unit") == "tiered":
        return _tiered(given)
    for name in ("tiers", "tiers_mode"):
        if name in given:
            raise invalid(f"{name} can only be set with billing_scheme=tiered.", name)
    amount = one_amount(given, "unit_amount", "")
    if amount is None:
        raise invalid("You must specify one of unit_amount and unit_amount_decimal.", "unit_amount")
    return {"billing_scheme": "per_unit", "tiers_mode": None, **both_forms("unit_amount", amount)}


def _tiered(given: dict[str, Any]) -> dict[str, Any]:
    for name in ("unit_amount", "unit_amount_decimal"):
        if name in given:
            raise invalid(f"{name} cannot be set with billing_scheme=tiered.", name)
    if "transform_quantity" in given:
        raise invalid("transform_quantity cannot be used with tiers.", "transform_quantity")
    for name in ("tiers_mode", "tiers"):
        if not given.get(name):
            raise missing_parameter(name)
    return {
        "billing_scheme": "tiered",
        "tiers_mode": given["tiers_mode"],
        "unit_amount": None,
        "unit_amount_decimal": None,
        "_tiers": _tiers(given["tiers"]),
    }


def _tiers(given: list[dict[str, Any]]) -> list[Doc]:
    below = 0
    tiers = []
    for n, tier in enumerate(given):
        path = f"tiers[{n}]"
        up_to = tier["up_to"]
        if (up_to == "inf") != (n == len(given) - 1):
            raise invalid("The last tier, and no other, must have up_to=inf.", f"{path}[up_to]")
        if up_to != "inf" and up_to <= below:
            raise invalid("Each tier must end above the one before it.", f"{path}[up_to]")
        unit = one_amount(tier, "unit_amount", path)
        flat = one_amount(tier, "flat_amount", path)
        if unit is None and flat is None:
            raise invalid("A tier must have a unit amount, a flat amount, or both.", path)
        below = 0 if up_to == "inf" else up_to
        tiers.append(
            {
                **both_forms("flat_amount", flat),
                **both_forms("unit_amount", unit),
                "up_to": None if up_to == "inf" else up_to,
            }
        )
    return tiers


def one_amount(given: dict[str, Any], name: str, path: str) -> Decimal | None:
    exact = f"{name}_decimal"
    if name in given and exact in given:
        where = f"{path}[{name}]" if path else name
        raise invalid(f"You may only specify one of these parameters: {name}, {exact}.", where)
    if name in given:
        return Decimal(given[name])
    return given.get(exact)


def both_forms(name: str, amount: Decimal | None) -> dict[str, Any]:
    """An amount in both of its forms; the whole one is null where the amount has a fraction."""
    if amount is None:
        return {name: None, f"{name}_decimal": None}
    whole = int(amount) if amount == amount.to_integral_value() else None
    return {name: whole, f"{name}_decimal": plain(amount)}


def _set_lookup_key(call: Call, price: Doc) -> None:
    if "lookup_key" in call.params:
        key = unset(call.params["lookup_key"])
        holder = call.store.by_alias(call.account, "price", key or "")
        if holder is not None and holder["id"] != price["id"]:
            if not call.params.get("transfer_lookup_key"):
                raise invalid(f"A price (`{holder['id']}`) already uses that lookup key.", "lookup_key")
            holder["lookup_key"] = None
            call.store.save(call.account, holder)
            call.store.set_alias(call.account, holder, "")
        price["lookup_key"] = key
        call.store.set_alias(call.account, price, key or "")
    call.store.save(call.account, price)


AMOUNT = integer(0, 99_999_999_999)
_CURRENCIES = (
    "usd aed all amd aud bam bgn brl cad chf clp cny cop czk dkk eur gbp hkd huf idr ils inr isk jpy krw "
    "kwd mxn myr nok nzd php pln ron sar sek sgd thb try twd uah vnd zar"
)
CURRENCY_CODES = tuple(_CURRENCIES.split())
CURRENCY = choice(*CURRENCY_CODES)
INTERVAL = choice("day", "week", "month", "year")
TAX_BEHAVIOR = choice("exclusive", "inclusive", "unspecified")
AMOUNTS: Table = {"unit_amount": AMOUNT, "unit_amount_decimal": decimal}
_TIER: Table = {
    **AMOUNTS,
    "flat_amount": AMOUNT,
    "flat_amount_decimal": decimal,
    "up_to": Required(either(choice("inf"), integer(1))),
}
_PRICE: Table = {
    "active": boolean,
    "currency_options": refused,
    "expand": EXPAND,
    "lookup_key": text(200),
    "metadata": METADATA,
    "nickname": text(),
    "tax_behavior": TAX_BEHAVIOR,
    "transfer_lookup_key": boolean,
}
_NEW_PRICE: Table = {
    **_PRICE,
    **AMOUNTS,
    "billing_scheme": choice("per_unit", "tiered"),
    "currency": Required(CURRENCY),
    "custom_unit_amount": refused,
    "product": text(),
    "product_data": hash_of(PRODUCT_DATA),
    "recurring": hash_of(
        {
            "interval": Required(INTERVAL),
            "interval_count": integer(1),
            "meter": text(),
            "trial_period_days": integer(0, 730),
            "usage_type": choice("licensed", "metered"),
        }
    ),
    "tiers": array(hash_of(_TIER)),
    "tiers_mode": choice("graduated", "volume"),
    "transform_quantity": hash_of(
        {"divide_by": Required(integer(1)), "round": Required(choice("up", "down"))}
    ),
}
_PRICES: Table = {
    **LIST,
    "active": boolean,
    "created": CREATED,
    "currency": text(),
    "lookup_keys": array(text(), 10),
    "product": text(),
    "recurring": hash_of(
        {"interval": INTERVAL, "meter": text(), "usage_type": choice("licensed", "metered")}
    ),
    "type": choice("one_time", "recurring"),
}

ROUTES = (
    Route("POST", "/v1/prices", create, _NEW_PRICE),
    Route("GET", "/v1/prices", list_prices, _PRICES),
    Route("GET", "/v1/prices/{}", retrieve, {"expand": EXPAND}),
    Route("POST", "/v1/prices/{}", update, _PRICE),
)
