"""The parameter tables against Stripe's own: all that it has is known here, and no more is taken."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from llm_metering.sandbox.app import ROUTES
from llm_metering.sandbox.forms import Array, Hash, Required

DOCUMENT = json.loads(
    (Path(__file__).parent.parent / "data" / "stripe" / "openapi-subset.json").read_text(encoding="utf-8")
)
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = {
    (method.upper(), re.sub(r"\{[^}]*\}", "{}", path)): operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
KNOWN = [route for route in ROUTES if (route.method, route.path) in OPERATIONS]
CURSORS_OF_V2 = {"page"}
"""In the links that v2's lists give out; no schema names it."""


def parameters(route):
    operation = OPERATIONS[route.method, route.path]
    if route.method in ("GET", "DELETE"):
        return operation["x-query-schema"]
    return next(iter(operation["requestBody"]["content"].values()))["schema"]


def resolved(schema):
    """The object or array that a schema stands for, whichever of its forms that is."""
    while "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rsplit("/", 1)[1]]
    for option in schema.get("anyOf", ()):
        found = resolved(option)
        if "properties" in found or "items" in found:
            return found
    return schema


def differences(table, schema, path=""):
    schema = resolved(schema)
    theirs = schema.get("properties", {})
    ours = {name: one.read if isinstance(one, Required) else one for name, one in table.items()}
    for name in theirs.keys() - ours.keys():
        yield f"{path}{name} is unknown here"
    for name in ours.keys() - theirs.keys() - CURSORS_OF_V2:
        yield f"{path}{name} is unknown to Stripe"
    for name in ours.keys() & theirs.keys():
        reader, below = ours[name], resolved(theirs[name])
        if isinstance(reader, Array):
            reader, below = reader.item, resolved(below.get("items", {}))
        if isinstance(reader, Hash):
            yield from differences(reader.table, below, f"{path}{name}.")


@pytest.mark.parametrize("route", KNOWN, ids=lambda route: f"{route.method} {route.path}")
def test_parameters_are_those_that_stripe_has(route):
    assert sorted(differences(route.params, parameters(route))) == []


@pytest.mark.parametrize("route", KNOWN, ids=lambda route: f"{route.method} {route.path}")
def test_what_stripe_requires_is_required(route):
    required = set(resolved(parameters(route)).get("required", ()))
    here = {name for name, reader in route.params.items() if isinstance(reader, Required)}
    assert required <= here


def test_every_route_but_three_is_in_the_schema_file():
    known = {(route.method, route.path) for route in KNOWN}
    others = {(route.method, route.path) for route in ROUTES} - known
    attach = ("POST", "/v1/payment_methods/{}/attach")
    assert others == {("GET", "/v1/account"), ("GET", "/v1/balance"), attach}
