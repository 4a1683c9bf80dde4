"""Resolvers: the customer as the server knows it, never as a client claims it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llm_metering.customers import begin, checked, from_api_key, from_auth, from_header, from_state, is_async
from llm_metering.errors import ConfigurationError


def connection(*headers: tuple[str, str], **scope: Any) -> dict[str, Any]:
    return {"type": "http", "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers], **scope}


class State:
    stripe_customer_id = "cus_object"


@pytest.mark.parametrize(
    ("state", "customer"),
    [
        ({"stripe_customer_id": "cus_1"}, "cus_1"),
        ({"other": "cus_1"}, None),
        ({}, None),
        (None, None),
        (State(), "cus_object"),
    ],
)
def test_from_state_reads_the_request_state(state, customer):
    assert begin(from_state(), connection(state=state)) == customer


def test_from_state_without_any_state_is_nobody():
    assert begin(from_state(), connection()) is None


def test_from_state_reads_the_attribute_that_was_asked_for():
    assert begin(from_state("tenant"), connection(state={"tenant": "cus_t"})) == "cus_t"


@pytest.mark.parametrize("user", [{"stripe_customer_id": "cus_object"}, State()])
def test_from_auth_reads_the_user_as_object_or_mapping(user):
    assert begin(from_auth(), connection(user=user)) == "cus_object"


@pytest.mark.parametrize("scope", [{}, {"user": None}, {"user": object()}, {"user": {}}])
def test_from_auth_without_a_user_is_nobody(scope):
    assert begin(from_auth(), connection(**scope)) is None


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([("authorization", "Bearer k")], "k"),
        ([("authorization", "bearer   k  ")], "k"),
        ([("x-api-key", "k")], "k"),
        ([("api-key", "k")], "k"),
        ([("x-goog-api-key", "k")], "k"),
        ([("authorization", "Bearer first"), ("x-api-key", "second")], "first"),
        ([("authorization", "Basic dTpw"), ("x-api-key", "second")], "second"),
        ([("authorization", "Bearer "), ("x-api-key", "")], None),
        ([("authorization", "Basic dTpw")], None),
        ([], None),
    ],
)
def test_from_api_key_looks_up_the_key_wherever_providers_carry_it(headers, key):
    asked: list[str] = []

    def lookup(given: str) -> str:
        asked.append(given)
        return "cus_" + given

    assert begin(from_api_key(lookup), connection(*headers)) == (f"cus_{key}" if key else None)
    assert asked == ([key] if key else [])


def test_from_api_key_takes_an_async_lookup():
    async def lookup(key: str) -> str:
        return "cus_" + key

    answer = begin(from_api_key(lookup), connection(("x-api-key", "k")))
    assert is_async(answer)
    assert asyncio.run(answer) == "cus_k"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_key_that_means_nothing_hides_nobody_who_is_let_in_by_another(is_async):
    asked: list[str] = []

    def plain(key: str) -> str | None:
        asked.append(key)
        return {"mine": "cus_1"}.get(key)

    async def slow(key: str) -> str | None:
        await asyncio.sleep(0)
        return plain(key)

    def resolve(*given: tuple[str, str]) -> Any:
        found: Any = begin(from_api_key(slow if is_async else plain), connection(*given))

        async def waited() -> Any:
            return await found

        return asyncio.run(waited()) if is_async and found is not None else found

    assert (
        resolve(("authorization", "Bearer nothing"), ("x-api-key", "mine"), ("api-key", "other")) == "cus_1"
    )
    assert asked == ["nothing", "mine"]
    assert resolve(("authorization", "Bearer x"), ("x-api-key", "x"), ("api-key", "y")) is None
    assert asked == ["nothing", "mine", "x", "y"]
    assert resolve() is None
    if is_async:  # as where it is not waited for yet: nothing may warn of it
        begin(from_api_key(slow), connection(("x-api-key", "x"), ("api-key", "y"))).close()


def test_from_header_trusts_no_values_that_a_proxy_has_joined():
    assert begin(from_header("x-customer"), connection(("x-customer", "cus_1,cus_2"))) is None


def test_from_header_takes_the_one_value_that_a_gateway_sets():
    resolver = from_header("X-Customer")
    assert begin(resolver, connection(("x-customer", "cus_1"))) == "cus_1"
    assert begin(resolver, connection()) is None
    assert begin(resolver, connection(("x-customer", "cus_1"), ("x-customer", "cus_evil"))) is None


@pytest.mark.parametrize("make", [from_state, from_auth, from_header])
@pytest.mark.parametrize("name", ["", None, 7])
def test_a_name_that_is_none_is_refused_with_an_example(make, name):
    with pytest.raises(ConfigurationError, match="such as"):
        make(name)


def test_a_lookup_that_cannot_be_called_is_refused():
    with pytest.raises(ConfigurationError, match="from_api_key takes a function"):
        from_api_key({"k": "cus_1"})  # type: ignore[arg-type]


@pytest.mark.parametrize("nobody", [None, ""])
def test_nobody_is_none(nobody):
    assert checked(nobody) is None


@pytest.mark.parametrize("customer", ["cus_123", "c", "a" * 255, "tenant/7:x"])
def test_a_customer_id_is_kept_as_it_is(customer):
    assert checked(customer) == customer


@pytest.mark.parametrize(
    "odd",
    [
        7,
        b"cus_1",
        ["cus_1"],
        "a" * 256,
        "cus 1",
        " cus_1",
        "cus_1\n",
        "cus\0",
        "cüs",
        "cus\u202e",
        "😀",
        "\x7f",
    ],
)
def test_what_can_be_no_customer_id_is_refused(odd):
    with pytest.raises(ValueError, match="customer id"):
        checked(odd)
