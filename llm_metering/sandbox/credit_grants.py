"""Credit grants: what a customer has paid or been given in advance, and what invoices take of it.

Credits apply to lines of metered prices when an invoice is finalised. They never limit usage.
"""

from __future__ import annotations

from typing import Any

from .errors import invalid
from .events import emit
from .forms import (
    EXPAND,
    LIST,
    METADATA,
    Required,
    Table,
    array,
    choice,
    either,
    hash_of,
    integer,
    refused,
    text,
)
from .lists import merged_metadata, page, public, unset
from .prices import CURRENCY
from .store import Doc
from .world import Call, Route

GRANT = "billing.credit_grant"
TRANSACTION = "billing.credit_balance_transaction"


def apply(call: Call, invoice: Doc, now: int) -> None:
    """Take what grants hold for an invoice's metered lines, after discounts, in Stripe's order."""
    taken: list[Doc] = []
    for line in invoice["_lines"]:
        line["pretax_credit_amounts"] = []
    for grant in _usable(call, invoice["customer"], invoice["currency"], now):
        for line in invoice["_lines"]:
            less = (*line["discount_amounts"], *line["pretax_credit_amounts"])
            open_amount = line["amount"] - sum(one["amount"] for one in less)
            amount = min(grant["_left"], open_amount)
            if amount <= 0 or not _covers(grant, line):
                continue
            applied = {"invoice": invoice["id"], "invoice_line_item": line["id"]}
            debit = _move(call, grant, -amount, "credits_applied", now, {"credits_applied": applied})
            credit = {
                "amount": amount,
                "credit_balance_transaction": debit["id"],
                "discount": None,
                "type": "credit_balance_transaction",
            }
            line["pretax_credit_amounts"].append(credit)
            taken.append(credit)
    invoice["total_pretax_credit_amounts"] = taken


def give_back(call: Call, invoice: Doc, now: int) -> None:
    """Return what a voided invoice had taken."""
    for line in invoice["_lines"]:
        for credit in line["pretax_credit_amounts"]:
            debit = call.find(TRANSACTION, credit["credit_balance_transaction"], "invoice")
            grant = call.find(GRANT, debit["credit_grant"], "invoice")
            voided = {"invoice": invoice["id"], "invoice_line_item": line["id"]}
            kind = "credits_application_invoice_voided"
            _move(call, grant, credit["amount"], kind, now, {kind: voided})


def run_out(call: Call, grant: Doc, now: int) -> None:
    """A grant's time is over."""
    call.store.set_due(call.account, grant, None)
    if grant["_left"]:
        _move(call, grant, -grant["_left"], "credits_expired", now)


def create(call: Call) -> Doc:
    given = call.params
    if "customer" not in given:
        raise invalid("You must pass customer.", "customer")
    customer = call.find("customer", given["customer"], "customer")
    if "monetary" not in given["amount"]:
        raise invalid("You must pass amount[monetary].", "amount[monetary]")
    scope = given["applicability_config"]["scope"]
    if ("price_type" in scope) == ("prices" in scope):
        raise invalid("The scope holds either price_type or prices.", "applicability_config[scope]")
    for n, one in enumerate(scope.get("prices", ())):
        _check_price(call, one["id"], f"applicability_config[scope][prices][{n}][id]")
    now = call.world.time_of(call.account, customer)
    expires = given.get("expires_at")
    effective = given.get("effective_at", now)
    if expires is not None and expires <= max(now, effective):
        raise invalid("expires_at must be later than now and than effective_at.", "expires_at")
    grant = {
        "id": call.new_id("credgr_"),
        "object": GRANT,
        "amount": {"monetary": given["amount"]["monetary"], "type": "monetary"},
        "applicability_config": {"scope": {"price_type": None, "prices": None} | scope},
        "category": given.get("category", "paid"),
        "created": now,
        "customer": customer["id"],
        "effective_at": effective,
        "expires_at": expires,
        "livemode": call.account.livemode,
        "metadata": merged_metadata({}, given.get("metadata", {})),
        "name": unset(given.get("name")),
        "priority": given.get("priority", 50),
        "test_clock": customer["test_clock"],
        "updated": now,
        "voided_at": None,
        "_left": 0,
    }
    clock = customer["test_clock"] or ""
    call.store.insert(call.account, grant, owner=customer["id"], clock=clock, due=expires)
    _move(call, grant, given["amount"]["monetary"]["value"], "credits_granted", now, at=effective)
    emit(call, "billing.credit_grant.created", public(grant))
    return public(grant)


def retrieve(call: Call) -> Doc:
    return public(call.fetch(GRANT))


def update(call: Call) -> Doc:
    grant = call.fetch(GRANT)
    given = call.params
    if "expires_at" in given:
        expires = unset(given["expires_at"])
        if expires is not None and expires <= call.world.time_of(call.account, grant):
            raise invalid("expires_at must be later than now.", "expires_at")
        grant["expires_at"] = expires
        call.store.set_due(call.account, grant, expires)
    if "metadata" in given:
        grant["metadata"] = merged_metadata(grant["metadata"], given["metadata"])
    return _saved(call, grant)


def expire(call: Call) -> Doc:
    grant = call.fetch(GRANT)
    now = call.world.time_of(call.account, grant)
    if grant["voided_at"] is not None or (grant["expires_at"] or now + 1) <= now:
        raise invalid("This credit grant has expired or was voided.")
    grant["expires_at"] = now
    run_out(call, grant, now)
    return _saved(call, grant)


def void(call: Call) -> Doc:
    grant = call.fetch(GRANT)
    now = call.world.time_of(call.account, grant)
    if grant["voided_at"] is not None or grant["_left"] != grant["amount"]["monetary"]["value"]:
        raise invalid("Only a credit grant of which nothing was used can be voided.")
    grant["voided_at"] = now
    call.store.set_due(call.account, grant, None)
    _move(call, grant, -grant["_left"], "credits_voided", now)
    return _saved(call, grant)


def list_grants(call: Call) -> Doc:
    customer = call.params.get("customer")
    keep = lambda grant: customer in (None, grant["customer"])  # noqa: E731
    return page(call, GRANT, "/v1/billing/credit_grants", lambda _, doc: public(doc), keep)


def retrieve_summary(call: Call) -> Doc:
    """What a customer has left, by currency."""
    if "customer" not in call.params:
        raise invalid("You must pass customer.", "customer")
    customer = call.find("customer", call.params["customer"], "customer")
    now = call.world.time_of(call.account, customer)
    wanted = _asked_for(call)
    available: dict[str, int] = {}
    ledger: dict[str, int] = {}
    for grant in call.store.owned(call.account, GRANT, customer["id"]):
        if grant["voided_at"] is None and wanted(grant):
            currency = grant["amount"]["monetary"]["currency"]
            ledger[currency] = ledger.get(currency, 0) + grant["_left"]
            usable = grant["_left"] if grant["effective_at"] <= now else 0
            available[currency] = available.get(currency, 0) + usable
    return {
        "object": "billing.credit_balance_summary",
        "balances": [
            {
                "available_balance": _monetary(available[currency], currency),
                "ledger_balance": _monetary(ledger[currency], currency),
            }
            for currency in sorted(ledger)
        ],
        "customer": customer["id"],
        "livemode": call.account.livemode,
    }


def list_transactions(call: Call) -> Doc:
    wanted = call.params

    def keep(transaction: Doc) -> bool:
        return wanted.get("customer") in (None, transaction["_customer"]) and wanted.get("credit_grant") in (
            None,
            transaction["credit_grant"],
        )

    url = "/v1/billing/credit_balance_transactions"
    return page(call, TRANSACTION, url, lambda _, doc: public(doc), keep)


def retrieve_transaction(call: Call) -> Doc:
    return public(call.fetch(TRANSACTION))


def _usable(call: Call, customer: str, currency: str, now: int) -> list[Doc]:
    grants = [
        grant
        for grant in call.store.owned(call.account, GRANT, customer)
        if grant["voided_at"] is None
        and grant["_left"] > 0
        and grant["effective_at"] <= now
        and (grant["expires_at"] is None or grant["expires_at"] > now)
        and grant["amount"]["monetary"]["currency"] == currency
    ]
    return sorted(grants, key=_turn)


def _turn(grant: Doc) -> tuple[Any, ...]:
    """When a grant's turn comes: priority, soonest to expire, promotional first, oldest."""
    return (
        grant["priority"],
        grant["expires_at"] is None,
        grant["expires_at"] or 0,
        grant["category"] != "promotional",
        grant["effective_at"],
        grant["created"],
    )


def _covers(grant: Doc, line: Doc) -> bool:
    if not line["_metered"]:
        return False
    prices = grant["applicability_config"]["scope"]["prices"]
    return prices is None or line["pricing"]["price_details"]["price"] in [one["id"] for one in prices]


def _move(
    call: Call,
    grant: Doc,
    amount: int,
    kind: str,
    now: int,
    details: Doc | None = None,
    *,
    at: int | None = None,
) -> Doc:
    """Change what a grant holds, and write the transaction."""
    grant["_left"] += amount
    call.store.save(call.account, grant)
    side = "credit" if amount >= 0 and kind in _CREDITS else "debit"
    extra = "credits_application_invoice_voided" if side == "credit" else "credits_applied"
    currency = grant["amount"]["monetary"]["currency"]
    transaction = {
        "id": call.new_id("cbtxn_"),
        "object": TRANSACTION,
        "created": now,
        "credit": None,
        "credit_grant": grant["id"],
        "debit": None,
        "effective_at": now if at is None else at,
        "livemode": call.account.livemode,
        "test_clock": grant["test_clock"],
        "type": side,
        "_customer": grant["customer"],
    }
    transaction[side] = {
        "amount": _monetary(abs(amount), currency),
        extra: None,
        "type": kind,
        **(details or {}),
    }
    call.store.insert(call.account, transaction, owner=grant["customer"])
    emit(call, "billing.credit_balance_transaction.created", public(transaction))
    return transaction


def _saved(call: Call, grant: Doc) -> Doc:
    grant["updated"] = call.world.time_of(call.account, grant)
    call.store.save(call.account, grant)
    emit(call, "billing.credit_grant.updated", public(grant), {})
    return public(grant)


def _asked_for(call: Call) -> Any:
    wanted = call.params["filter"]
    if wanted["type"] == "credit_grant":
        grant_id = wanted.get("credit_grant", "")
        call.find(GRANT, grant_id, "filter[credit_grant]")
        return lambda grant: grant["id"] == grant_id
    scope = wanted.get("applicability_scope")
    if not scope or ("price_type" in scope) == ("prices" in scope):
        raise invalid("applicability_scope holds either price_type or prices.", "filter[applicability_scope]")
    if "price_type" in scope:
        return lambda grant: grant["applicability_config"]["scope"]["price_type"] == scope["price_type"]
    ids = {one["id"] for one in scope["prices"]}
    return lambda grant: ids <= {one["id"] for one in grant["applicability_config"]["scope"]["prices"] or []}


def _check_price(call: Call, id: str, param: str) -> None:
    if (call.find("price", id, param)["recurring"] or {}).get("meter") is None:
        raise invalid("Credits apply only to prices that are backed by a meter.", param)


def _monetary(value: int, currency: str) -> Doc:
    return {"monetary": {"currency": currency, "value": value}, "type": "monetary"}


_CREDITS = ("credits_granted", "credits_application_invoice_voided")
_PRICES = array(hash_of({"id": Required(text())}), 20)
_SCOPE: Table = {"price_type": choice("metered"), "prices": _PRICES}
_MONEY = hash_of({"currency": Required(CURRENCY), "value": Required(integer(1))})
_CREATE: Table = {
    "amount": Required(hash_of({"monetary": _MONEY, "type": Required(choice("monetary"))})),
    "applicability_config": Required(hash_of({"scope": Required(hash_of(_SCOPE))})),
    "category": choice("paid", "promotional"),
    "customer": text(),
    "customer_account": refused,
    "effective_at": integer(),
    "expand": EXPAND,
    "expires_at": integer(),
    "metadata": METADATA,
    "name": text(100),
    "priority": integer(0, 100),
}
_UPDATE: Table = {"expand": EXPAND, "expires_at": either(choice(""), integer()), "metadata": METADATA}
_FILTER: Table = {
    "applicability_scope": hash_of(_SCOPE),
    "credit_grant": text(),
    "type": Required(choice("applicability_scope", "credit_grant")),
}
_ID: Table = {"expand": EXPAND}
_SUMMARY: Table = {
    "customer": text(),
    "customer_account": refused,
    "expand": EXPAND,
    "filter": Required(hash_of(_FILTER)),
}

ROUTES = (
    Route("POST", "/v1/billing/credit_grants", create, _CREATE),
    Route(
        "GET",
        "/v1/billing/credit_grants",
        list_grants,
        {**LIST, "customer": text(), "customer_account": refused},
    ),
    Route("GET", "/v1/billing/credit_grants/{}", retrieve, _ID),
    Route("POST", "/v1/billing/credit_grants/{}", update, _UPDATE),
    Route("POST", "/v1/billing/credit_grants/{}/expire", expire, _ID),
    Route("POST", "/v1/billing/credit_grants/{}/void", void, _ID),
    Route("GET", "/v1/billing/credit_balance_summary", retrieve_summary, _SUMMARY),
    Route(
        "GET",
        "/v1/billing/credit_balance_transactions",
        list_transactions,
        {**LIST, "credit_grant": text(), "customer": text(), "customer_account": refused},
    ),
    Route("GET", "/v1/billing/credit_balance_transactions/{}", retrieve_transaction, _ID),
)
