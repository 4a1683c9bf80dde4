"""Customers, and the account itself."""

from __future__ import annotations

from .errors import invalid
from .events import emit
from .forms import (
    CREATED,
    EXPAND,
    LIST,
    METADATA,
    Required,
    Table,
    anything,
    array,
    boolean,
    choice,
    hash_of,
    integer,
    refused,
    text,
)
from .lists import created_within, merged_metadata, page, public, unset
from .renewals import end
from .store import Doc
from .world import Call, Route


def create(call: Call) -> Doc:
    given = call.params
    clock = unset(given.get("test_clock"))
    if clock:
        call.find("test_helpers.test_clock", clock, "test_clock")
    customer: Doc = {
        "id": call.new_id("cus_"),
        "object": "customer",
        "address": unset(given.get("address")),
        "balance": given.get("balance", 0),
        "created": 0,
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "description": unset(given.get("description")),
        "discount": None,
        "email": unset(given.get("email")),
        "invoice_prefix": given.get("invoice_prefix") or call.world.new_id("", 8).upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": call.account.livemode,
        "metadata": merged_metadata({}, given.get("metadata", {})),
        "name": unset(given.get("name")),
        "next_invoice_sequence": given.get("next_invoice_sequence", 1),
        "phone": unset(given.get("phone")),
        "preferred_locales": given.get("preferred_locales", []),
        "shipping": unset(given.get("shipping")),
        "tax_exempt": unset(given.get("tax_exempt", "none")),
        "test_clock": clock,
        "_payment_methods": [given["payment_method"]] if given.get("payment_method") else [],
    }
    customer["created"] = call.world.time_of(call.account, customer)
    _set_invoice_settings(customer, given.get("invoice_settings", {}))
    call.store.insert(call.account, customer, clock=clock or "", owner=customer["email"] or "")
    emit(call, "customer.created", public(customer))
    return public(customer)


def retrieve(call: Call) -> Doc:
    customer = call.fetch("customer", "id")
    return _gone(customer) if customer.get("deleted") else public(customer)


def update(call: Call) -> Doc:
    customer = call.fetch("customer", "id")
    if customer.get("deleted"):
        raise invalid(f"No such customer: '{customer['id']}'; it was deleted.", "id", "resource_missing")
    given = call.params
    for name in _FIELDS & given.keys():
        customer[name] = unset(given[name])
    if "metadata" in given:
        customer["metadata"] = merged_metadata(customer["metadata"], given["metadata"])
    _set_invoice_settings(customer, given.get("invoice_settings", {}))
    call.store.save(call.account, customer)
    emit(call, "customer.updated", public(customer), {})
    return public(customer)


def delete(call: Call) -> Doc:
    """The id stays known; usage that names it is found to have no customer."""
    customer = call.fetch("customer", "id")
    for subscription in call.store.owned(call.account, "subscription", customer["id"]):
        if subscription["status"] != "canceled":
            end(call, subscription, call.now, "cancellation_requested")
    customer["deleted"] = True
    call.store.save(call.account, customer)
    emit(call, "customer.deleted", public(customer))
    return _gone(customer)


def list_customers(call: Call) -> Doc:
    wanted = call.params

    def keep(customer: Doc) -> bool:
        return (
            wanted.get("email", customer["email"]) == customer["email"]
            and wanted.get("test_clock", customer["test_clock"]) == customer["test_clock"]
            and created_within(customer["created"], wanted.get("created"))
        )

    return page(call, "customer", "/v1/customers", lambda _, doc: public(doc), keep)


def attach(call: Call) -> Doc:
    """Give a customer a test payment method. It keeps its name, which says whether it pays."""
    method = call.args[0]
    customer = call.find("customer", call.params["customer"], "customer")
    if method not in customer["_payment_methods"]:
        customer["_payment_methods"].append(method)
        call.store.save(call.account, customer)
    return {
        "id": method,
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": dict.fromkeys(("address", "email", "name", "phone", "tax_id")),
        "created": call.world.time_of(call.account, customer),
        "customer": customer["id"],
        "livemode": call.account.livemode,
        "metadata": {},
        "type": "card",
    }


def retrieve_account(call: Call) -> Doc:
    """The account that the key belongs to. Its id follows from the key."""
    return {
        "id": call.account.id,
        "object": "account",
        "business_profile": {"name": "Sandbox"},
        "business_type": None,
        "capabilities": {},
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "email": None,
        "payouts_enabled": True,
        "settings": {"dashboard": {"display_name": "Sandbox", "timezone": "Etc/UTC"}},
        "type": "standard",
    }


def retrieve_balance(call: Call) -> Doc:
    """The account's balance, always empty. It is the one harmless call that tells the mode."""
    nothing = [{"amount": 0, "currency": "usd", "source_types": {"card": 0}}]
    return {
        "object": "balance",
        "available": nothing,
        "livemode": call.account.livemode,
        "pending": nothing,
    }


def _gone(customer: Doc) -> Doc:
    return {"id": customer["id"], "object": "customer", "deleted": True}


def _set_invoice_settings(customer: Doc, given: Doc) -> None:
    method = given.get("default_payment_method")
    if method and method not in customer["_payment_methods"]:
        raise invalid(
            f"The payment method {method} is not attached to this customer. Give it as payment_method when "
            "you create the customer, or attach it first.",
            "invoice_settings[default_payment_method]",
            "resource_missing",
        )
    customer["invoice_settings"].update({name: unset(value) for name, value in given.items()})


_FIELD_NAMES = (
    "address balance description email invoice_prefix name next_invoice_sequence phone preferred_locales "
    "shipping tax_exempt"
)
_FIELDS = frozenset(_FIELD_NAMES.split())
_UPDATE: Table = {
    "address": anything,
    "balance": integer(),
    "business_name": anything,
    "cash_balance": refused,
    "description": text(),
    "email": text(512),
    "expand": EXPAND,
    "individual_name": anything,
    "invoice_prefix": text(12),
    "invoice_settings": hash_of(
        {
            "custom_fields": anything,
            "default_payment_method": text(),
            "footer": text(),
            "rendering_options": anything,
        }
    ),
    "metadata": METADATA,
    "name": text(256),
    "next_invoice_sequence": integer(1),
    "phone": text(),
    "preferred_locales": array(text()),
    "shipping": anything,
    "source": refused,
    "tax": refused,
    "tax_exempt": choice("exempt", "none", "reverse", ""),
    "validate": boolean,
}
_CREATE: Table = {**_UPDATE, "payment_method": text(), "tax_id_data": refused, "test_clock": text()}
_LIST: Table = {**LIST, "created": CREATED, "email": text(), "test_clock": text()}
_ID: Table = {"expand": EXPAND}

ROUTES = (
    Route("POST", "/v1/customers", create, _CREATE),
    Route("GET", "/v1/customers", list_customers, _LIST),
    Route("GET", "/v1/customers/{}", retrieve, _ID),
    Route("POST", "/v1/customers/{}", update, {**_UPDATE, "default_source": refused}),
    Route("DELETE", "/v1/customers/{}", delete, {}),
    Route("POST", "/v1/payment_methods/{}/attach", attach, {**_ID, "customer": Required(text())}),
    Route("GET", "/v1/account", retrieve_account, _ID),
    Route("GET", "/v1/balance", retrieve_balance, _ID),
)
