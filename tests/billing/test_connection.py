"""The client is pointed where it should be, with a key that may be used; errors say what to do."""

from __future__ import annotations

import socket
import threading

import pytest
import stripe
from llm_metering.billing import PayAsYouGo, apply, connect, create_customer, plan, preview_invoice
from llm_metering.billing.refusals import explain, is_passing
from llm_metering.errors import BillingError, ConfigurationError
from llm_metering.sandbox import running_sandbox


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (None, "no Stripe API key: set STRIPE_API_KEY to a test key (sk_test_…)"),
        ("  ", "no Stripe API key"),
        ("pk_test_abc", "this is a publishable key"),
        ("sk_live_4eC39HqLyjWDarjtT1zdp7dc", "this is a live key, and a test key is meant"),
        ("rk_live_4eC39HqLyjWDarjtT1zdp7dc", "this is a live key, and a test key is meant"),
    ],
)
def test_a_key_that_may_not_be_used_is_refused_and_never_shown(key, sentence) -> None:
    with pytest.raises(ConfigurationError) as refused:
        connect(key)
    assert sentence in str(refused.value)
    assert "4eC39HqLyjWDarjtT1zdp7dc" not in str(refused.value)


def test_a_live_key_is_taken_where_it_is_meant_and_never_sent_unencrypted() -> None:
    assert isinstance(connect("sk_live_x", live=True), stripe.StripeClient)
    with pytest.raises(ConfigurationError, match=r"a live key is not sent to http://127.0.0.1:1"):
        connect("sk_live_x", live=True, api_base="http://127.0.0.1:1")


def test_a_base_that_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'localhost:12111' is not a URL"):
        connect("sk_test_x", api_base="localhost:12111")


def test_the_client_reaches_a_sandbox_directly_whatever_proxy_is_set(sandbox, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    client = connect(" sk_test_sandbox ", api_base=sandbox.url + "/")
    assert create_customer(client).startswith("cus_")


def test_where_nothing_listens_the_error_says_how_to_start_a_sandbox() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = connect("sk_test_x", api_base=f"http://127.0.0.1:{port}", retries=0)
    with pytest.raises(BillingError) as refused:
        plan(PayAsYouGo(), client)
    assert f"Stripe cannot be reached (127.0.0.1:{port}: connection refused)" in str(refused.value)
    assert "llm-metering sandbox" in str(refused.value)


def test_a_server_that_never_answers_is_given_up_on() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = connect(
            "sk_test_x", api_base=f"http://127.0.0.1:{silent.getsockname()[1]}", retries=0, timeout_s=0.2
        )
        with pytest.raises(BillingError, match="no answer in time"):
            create_customer(client)


def test_a_server_that_hangs_up_is_told_as_such() -> None:
    def hang_up(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        connection.close()

    with socket.socket() as rude:
        rude.bind(("127.0.0.1", 0))
        rude.listen()
        thread = threading.Thread(target=hang_up, args=[rude])
        thread.start()
        client = connect("sk_test_x", api_base=f"http://127.0.0.1:{rude.getsockname()[1]}", retries=0)
        with pytest.raises(BillingError, match="the connection was cut"):
            create_customer(client)
        thread.join()


def test_a_wrong_key_is_told_as_such_without_showing_it() -> None:
    with running_sandbox(keys=["sk_test_right"]) as strict:
        client = connect("sk_test_wrong0000secret", api_base=strict.url)
        for step in (lambda: plan(PayAsYouGo(), client), lambda: apply(PayAsYouGo(), client)):
            with pytest.raises(BillingError) as refused:
                step()
            assert "Stripe does not accept this API key" in str(refused.value)
            assert "Check STRIPE_API_KEY" in str(refused.value)
            assert "wrong0000secret" not in str(refused.value)


def test_a_key_without_the_permission_is_told_what_it_needs(sandbox, client) -> None:
    sandbox.fault("403", method="POST")
    with pytest.raises(BillingError, match=r"this API key may not do that .* or use a secret key"):
        apply(PayAsYouGo(), client)


def test_being_too_fast_is_told_as_such(sandbox, client) -> None:
    sandbox.fault("429")
    with pytest.raises(BillingError, match="Stripe asks to slow down"):
        preview_invoice(client, customer="cus_1")


@pytest.mark.parametrize("status", [200, 502])
def test_an_answer_that_is_no_json_is_an_error_in_one_line(sandbox, client, status) -> None:
    sandbox.fault("html", status=status)
    with pytest.raises(BillingError) as refused:
        create_customer(client)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("No such price: 'price_1'", "there is no price 'price_1' on this Stripe account and mode"),
        ("No such customer: 'cus_1'", "a customer is made with create_customer()"),
        (
            "You cannot combine currencies on a single customer. This customer has cad.",
            "the customer is billed in another currency",
        ),
        ("Something  new.\nIndeed.", "Something new. Indeed"),
        ("Invalid API Key provided: sk_test_abcdefgh1234", "sk_test_…1234"),
    ],
)
def test_what_stripe_says_becomes_one_line_that_says_what_to_do(said, sentence) -> None:
    told = explain(stripe.InvalidRequestError(said, param=None, http_status=400))
    assert sentence in told
    assert "\n" not in told


def test_errors_that_pass_are_told_from_those_that_stay() -> None:
    def error(status: int, code: str | None = None, **headers: str) -> stripe.StripeError:
        return stripe.StripeError("x", http_status=status, code=code, headers=headers)

    assert is_passing(error(500))
    assert is_passing(error(409))
    assert is_passing(error(429, "lock_timeout"))
    assert is_passing(error(400, **{"Idempotent-Replayed": "true"}))
    assert not is_passing(error(400))
    assert not is_passing(error(429, "rate_limit"))
