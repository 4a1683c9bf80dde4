"""Products."""

from __future__ import annotations

from typing import Any

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
    filled,
    hash_of,
    refused,
    text,
)
from .lists import created_within, merged_metadata, page, public, unset
from .store import Doc
from .world import Call, Route


def create(call: Call) -> Doc:
    return public(make_product(call, call.params))


def make_product(call: Call, given: dict[str, Any]) -> Doc:
    """A new product, of its own call or of `product_data`."""
    id = given.get("id") or call.new_id("prod_")  # noqa: A001
    if call.store.get(call.account, "product", id) is not None:
        raise invalid(f"Product already exists: {id}", "id", "resource_already_exists")
    now = call.now
    product = {
        "id": id,
        "object": "product",
        "active": given.get("active", True),
        "created": now,
        "default_price": None,
        "description": unset(given.get("description")),
        "images": given.get("images", []),
        "livemode": call.account.livemode,
        "marketing_features": given.get("marketing_features", []),
        "metadata": merged_metadata({}, given.get("metadata", {})),
        "name": given["name"],
        "package_dimensions": None,
        "shippable": given.get("shippable"),
        "statement_descriptor": unset(given.get("statement_descriptor")),
        "tax_code": unset(given.get("tax_code")),
        "type": given.get("type", "service"),
        "unit_label": unset(given.get("unit_label")),
        "updated": now,
        "url": unset(given.get("url")),
    }
    call.store.insert(call.account, product)
    emit(call, "product.created", public(product))
    return product


def retrieve(call: Call) -> Doc:
    return public(call.fetch("product"))


def update(call: Call) -> Doc:
    product = call.fetch("product")
    changes = {name: unset(value) for name, value in call.params.items() if name != "expand"}
    if "metadata" in changes:
        changes["metadata"] = merged_metadata(product["metadata"], call.params["metadata"])
    if changes.get("default_price"):
        price = call.find("price", changes["default_price"], "default_price")
        if price["product"] != product["id"]:
            raise invalid("The default price must belong to this product.", "default_price")
    product.update(changes, updated=call.now)
    call.store.save(call.account, product)
    emit(call, "product.updated", public(product), {})
    return public(product)


def list_products(call: Call) -> Doc:
    wanted = call.params

    def keep(product: Doc) -> bool:
        return (
            wanted.get("active", product["active"]) == product["active"]
            and ("ids" not in wanted or product["id"] in wanted["ids"])
            and wanted.get("type", product["type"]) == product["type"]
            and created_within(product["created"], wanted.get("created"))
        )

    return page(call, "product", "/v1/products", lambda _, doc: public(doc), keep)


def delete(call: Call) -> Doc:
    product = call.fetch("product")
    if call.store.owned(call.account, "price", product["id"]):
        raise invalid("This product cannot be deleted because it has one or more user-created prices.")
    call.store.remove(call.account, product)
    emit(call, "product.deleted", public(product))
    return {"id": product["id"], "object": "product", "deleted": True}


_PRODUCT: Table = {
    "active": boolean,
    "description": text(),
    "expand": EXPAND,
    "images": array(text(), 8),
    "marketing_features": array(hash_of({"name": Required(text(80))}), 15),
    "metadata": METADATA,
    "package_dimensions": anything,
    "shippable": boolean,
    "statement_descriptor": text(22),
    "tax_code": text(),
    "tax_details": anything,
    "unit_label": text(12),
    "url": text(),
}
_NEW_PRODUCT: Table = {
    **_PRODUCT,
    "id": text(255),
    "name": Required(text()),
    "type": choice("good", "service"),
    "default_price_data": refused,
}
PRODUCT_DATA: Table = {
    name: _NEW_PRODUCT[name]
    for name in (
        "active",
        "id",
        "metadata",
        "name",
        "statement_descriptor",
        "tax_code",
        "tax_details",
        "unit_label",
    )
}
_PRODUCTS: Table = {
    **LIST,
    "active": boolean,
    "created": CREATED,
    "ids": array(text()),
    "shippable": boolean,
    "type": choice("good", "service"),
    "url": text(),
}


ROUTES = (
    Route("POST", "/v1/products", create, _NEW_PRODUCT),
    Route("GET", "/v1/products", list_products, _PRODUCTS),
    Route("GET", "/v1/products/{}", retrieve, {"expand": EXPAND}),
    Route("POST", "/v1/products/{}", update, {**_PRODUCT, "name": filled(text()), "default_price": text()}),
    Route("DELETE", "/v1/products/{}", delete, {}),
)
