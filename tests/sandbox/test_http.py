"""The HTTP side: keys, forms, errors, headers, expand and lists."""

from __future__ import annotations

import base64
import json

import pytest
import requests
import stripe

KEY = {"Authorization": "Bearer sk_test_sandbox"}


def test_every_answer_of_the_guides_was_held_against_the_schema(shop, inspector):
    shop.preview(shop.subscribe(shop.price))
    assert inspector.seen == 5


def test_the_inspector_finds_a_wrong_answer(contract):
    body = {"object": "billing.meter_event", "created": 1, "surprise": True}
    assert contract.check("POST", "/v1/billing/meter_events", {"event_name": "a", "payload": {}}, 200, body)


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer sk_test_sandbox",
        "bearer sk_test_sandbox",
        "Basic " + base64.b64encode(b"sk_test_sandbox:").decode(),
    ],
)
def test_keys_come_by_bearer_or_basic(sandbox, authorization):
    answer = requests.get(f"{sandbox.url}/v1/account", headers={"Authorization": authorization})
    assert answer.status_code == 200
    assert answer.json()["id"] == requests.get(f"{sandbox.url}/v1/account", headers=KEY).json()["id"]


@pytest.mark.parametrize("key", ["", "wrong", "sk_test_", "pk_test_abc", "sk_prod_abc"])
def test_a_key_that_is_none_gets_401(sandbox, key, refused):
    client = sandbox.client(key or "nokey")
    error = refused(client.v1.customers.list)
    assert isinstance(error, stripe.AuthenticationError)
    assert error.http_status == 401
    assert error.json_body["error"]["type"] == "invalid_request_error"


def test_a_refused_key_is_not_shown(sandbox, refused):
    error = refused(sandbox.client("sk_test_$secret").v1.customers.list)
    assert error.user_message == "Invalid API Key provided: sk_test_***"


def test_no_key_at_all_gets_401(sandbox):
    answer = requests.get(f"{sandbox.url}/v1/customers")
    assert answer.status_code == 401
    assert "You did not provide an API key" in answer.json()["error"]["message"]


def test_accounts_and_modes_share_nothing(sandbox):
    def names(key):
        return [customer.name for customer in sandbox.client(key).v1.customers.list().data]

    for key in ("sk_test_a", "sk_live_a", "sk_test_b"):
        sandbox.client(key).v1.customers.create({"name": key})
    assert names("sk_test_a") == names("rk_test_a") == ["sk_test_a"]
    assert names("sk_live_a") == ["sk_live_a"]
    assert names("sk_test_b") == ["sk_test_b"]


def test_the_account_id_follows_from_the_key_whatever_its_mode(sandbox):
    def account(key):
        answer = requests.get(f"{sandbox.url}/v1/account", headers={"Authorization": f"Bearer {key}"}).json()
        return answer["id"]

    assert account("sk_test_a") == account("sk_live_a") == account("rk_test_a")
    assert account("sk_test_a") != account("sk_test_b")


def test_a_connected_account_has_its_own_books(sandbox):
    client = sandbox.client()
    client.v1.customers.create({"name": "theirs"}, {"stripe_account": "acct_connected"})
    assert client.v1.customers.list().data == []
    there = client.v1.customers.list({}, {"stripe_account": "acct_connected"})
    assert [one.name for one in there.data] == ["theirs"]


def test_live_keys_make_live_objects(sandbox):
    assert sandbox.client("sk_live_a").v1.customers.create({}).livemode is True
    assert sandbox.client("sk_test_a").v1.customers.create({}).livemode is False


def test_the_balance_tells_the_mode(api, sandbox):
    assert api.balance.retrieve().livemode is False
    assert sandbox.client("sk_live_a").v1.balance.retrieve().livemode is True


def test_an_unknown_parameter_is_refused_by_name(api, refused):
    error = refused(api.customers.create, {"nmae": "typo"})
    assert isinstance(error, stripe.InvalidRequestError)
    assert (error.http_status, error.code, error.param) == (400, "parameter_unknown", "nmae")
    assert error.user_message == "Received unknown parameter: nmae"


def test_an_unknown_nested_parameter_is_named_with_its_path(api, refused):
    error = refused(
        api.prices.create,
        {"currency": "usd", "unit_amount": 1, "product": "p", "recurring": {"interval": "month", "x": 1}},
    )
    assert error.param == "recurring[x]"


def test_a_missing_parameter_is_named(api, refused):
    error = refused(api.products.create, {})
    assert (error.http_status, error.code, error.param) == (400, "parameter_missing", "name")
    assert error.user_message == "Missing required param: name."


def test_a_required_parameter_cannot_be_empty(api, refused):
    assert refused(api.products.create, {"name": ""}).code == "parameter_invalid_empty"


def test_a_parameter_that_the_sandbox_does_not_play_is_refused_and_says_so(api, shop, refused):
    error = refused(shop.subscribe, shop.price, billing_thresholds={"amount_gte": 100})
    assert (error.http_status, error.code) == (400, "sandbox_not_played")


def test_an_unknown_id_in_the_path_gets_404(api, refused):
    error = refused(api.prices.retrieve, "price_x")
    assert (error.http_status, error.code, error.param) == (404, "resource_missing", "price")
    assert error.user_message == "No such price: 'price_x'"


def test_an_unknown_id_in_a_parameter_gets_400(api, shop, refused):
    error = refused(api.subscriptions.create, {"customer": "cus_x", "items": [{"price": shop.price.id}]})
    assert (error.http_status, error.code, error.param) == (400, "resource_missing", "customer")


def test_an_unknown_url_gets_404(sandbox):
    answer = requests.get(f"{sandbox.url}/v1/unicorns", headers=KEY)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].startswith("Unrecognized request URL (GET: /v1/unicorns)")


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v1/customers", b"name=%ff"),
        ("/v1/customers", b"\xff\xfe"),
        ("/v1/customers", b"metadata=1&metadata[a]=2"),
        ("/v1/customers", b"metadata[a]=2&metadata[a][b]=3"),
        ("/v1/customers", b"balance=9" + b"9" * 40),
        ("/v1/products", b"name[]=x"),
        ("/v1/subscriptions", b"customer=c&items=3"),
        ("/v1/subscriptions", b"customer=c&items[x]=3"),
    ],
)
def test_a_body_that_cannot_be_read_gets_400(sandbox, path, form):
    answer = requests.post(f"{sandbox.url}{path}", data=form, headers=KEY)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_nested_without_end_gets_400(sandbox):
    form = "metadata" + "[a]" * 100_000 + "=1"
    answer = requests.post(f"{sandbox.url}/v1/customers", data=form, headers=KEY)
    assert answer.status_code == 400


def test_answers_carry_a_request_id_and_echo_version_and_idempotency_key(sandbox):
    headers = {**KEY, "Stripe-Version": "2026-10-28.endive", "Idempotency-Key": "k1"}
    answer = requests.post(f"{sandbox.url}/v1/customers", headers=headers)
    assert answer.headers["Request-Id"].startswith("req_")
    assert answer.headers["Stripe-Version"] == "2026-10-28.endive"
    assert answer.headers["Idempotency-Key"] == "k1"


def test_errors_carry_a_request_id_too(api, refused):
    assert refused(api.prices.retrieve, "price_x").request_id.startswith("req_")


@pytest.mark.parametrize("expand", ["expand[]=tiers", "expand[0]=tiers", "expand%5B0%5D=tiers"])
def test_expand_is_understood_in_all_its_spellings(sandbox, shop, expand):
    price = shop.metered(
        billing_scheme="tiered", tiers_mode="volume", tiers=[{"up_to": "inf", "unit_amount": 1}]
    )
    shown = requests.get(f"{sandbox.url}/v1/prices/{price.id}?{expand}", headers=KEY).json()
    assert shown["tiers"] == [
        {
            "flat_amount": None,
            "flat_amount_decimal": None,
            "unit_amount": 1,
            "unit_amount_decimal": "1",
            "up_to": None,
        }
    ]


def test_expand_reaches_through_lists_and_objects(shop):
    subscription = shop.subscribe(shop.price)
    found = shop.api.subscriptions.list({"expand": ["data.customer", "data.items.data.price.product"]})
    assert found.data[0].id == subscription.id
    assert found.data[0].customer.name == "John Doe"
    assert found.data[0]["items"].data[0].price.product.name == "Hypernian tokens"


def test_expand_of_a_null_stays_null(shop):
    subscription = shop.subscribe(shop.price, expand=["latest_invoice"])
    assert subscription.latest_invoice is None


@pytest.mark.parametrize("path", ["name", "metadata", "customer", "unicorn", "default_price.tiers.x.y.z"])
def test_what_cannot_be_expanded_is_refused(api, refused, path):
    product = api.products.create({"name": "p"})
    error = refused(api.products.retrieve, product.id, {"expand": [path]})
    assert (error.http_status, error.param) == (400, "expand")


def test_lists_are_newest_first_and_page_through(api):
    made = [api.customers.create({"name": str(n)}).id for n in range(25)]
    first = api.customers.list()
    assert len(first.data) == 10
    assert first.has_more
    assert first.url == "/v1/customers"
    assert not api.customers.list({"limit": 25}).has_more, "the last one is on the page"
    assert [one.id for one in api.customers.list({"limit": 7}).auto_paging_iter()] == made[::-1]


def test_lists_page_backwards_too(api):
    made = [api.customers.create({}).id for n in range(5)][::-1]
    page = api.customers.list({"limit": 2, "ending_before": made[4]})
    assert [one.id for one in page.data] == made[2:4]
    assert page.has_more
    last = api.customers.list({"limit": 2, "ending_before": made[1]})
    assert [one.id for one in last.data] == made[:1]
    assert not last.has_more


def test_a_cursor_that_is_unknown_is_refused(api, refused):
    error = refused(api.customers.list, {"starting_after": "cus_x"})
    assert (error.http_status, error.param) == (400, "starting_after")


@pytest.mark.parametrize("limit", [0, 101, "many"])
def test_a_limit_outside_1_to_100_is_refused(api, refused, limit):
    assert refused(api.customers.list, {"limit": limit}).param == "limit"


def test_lists_filter_by_time_of_creation(api, clock):
    old = api.customers.create({})
    clock.time += 100
    new = api.customers.create({})
    newer = api.customers.list({"created": {"gt": old.created}})
    assert [one.id for one in newer.data] == [new.id]


def test_metadata_keys_are_merged_and_removed_by_empty_values(api):
    customer = api.customers.create({"metadata": {"a": "1", "b": "2"}})
    customer = api.customers.update(customer.id, {"metadata": {"b": "", "c": "3"}})
    assert customer.metadata.to_dict() == {"a": "1", "c": "3"}
    assert api.customers.update(customer.id, {"metadata": ""}).metadata.to_dict() == {}


def test_ids_are_repeatable_under_a_seed():
    from llm_metering.sandbox import create_app
    from llm_metering.sandbox.wire import Request

    def made():
        app = create_app(seed=7)
        request = Request("POST", "/v1/customers", "", {b"authorization": b"Bearer sk_test_x"}, b"name=a")
        try:
            return json.loads(app.service.answer(request).body)["id"]
        finally:
            app.close()

    assert made() == made()


def test_a_deleted_customer_says_so(api):
    customer = api.customers.create({"name": "gone"})
    assert api.customers.delete(customer.id).deleted
    found = api.customers.retrieve(customer.id)
    assert found.deleted
    assert found.id not in [one.id for one in api.customers.list().data]


def test_a_body_of_more_than_4_megabytes_is_refused(sandbox):
    answer = requests.post(f"{sandbox.url}/v1/customers", data=b"name=" + b"x" * 5_000_000, headers=KEY)
    assert answer.status_code == 413
    assert requests.get(f"{sandbox.url}/v1/customers", headers=KEY).json()["data"] == []
