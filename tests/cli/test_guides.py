"""Both guides by typing: set up, subscribe, send 3000, preview."""

from __future__ import annotations

import json
import shlex

import pytest


def typed_through(run, at, plan: str) -> dict:
    assert run("setup", plan, *at).code == 0
    made = run("subscribe", plan, "--new-customer", "John Doe", *at, "--json").document["subscription"]
    assert run("test-event", "--customer", made["customer"], "--value", "3000", *at).code == 0
    return made


@pytest.mark.parametrize(
    ("plan", "due"), [("pay-as-you-go", "1.20"), ("flat-fee", "180.00")], ids=["pay-as-you-go", "flat-fee"]
)
def test_a_guide_typed_through_ends_in_its_invoice(run, at, plan, due) -> None:
    made = typed_through(run, at, plan)
    for whose in (["--subscription", made["id"]], ["--customer", made["customer"]]):
        seen = run("preview", *whose, *at)
        assert seen.code == 0
        assert f"Amount due  {due} USD" in seen.out
        assert seen.err == ""
        document = run("preview", *whose, *at, "--json").document
        assert (document["subtotal"], document["total"], document["amount_due"]) == (due, due, due)


def test_the_preview_shows_lines_and_each_price_added_up(run, at) -> None:
    made = typed_through(run, at, "flat-fee")
    seen = run("preview", "--subscription", made["id"], *at).out
    for shown in ("send_invoice", made["customer"], made["id"], "2,000", "80.00 USD", "100.00 USD", "3,000"):
        assert shown in seen
    document = run("preview", "--subscription", made["id"], *at, "--json").document
    assert {p["product"]: p["amount"] for p in document["by_price"]} == {
        "hypernian_tokens_usage": "80.00",
        "hypernian_tokens_license": "100.00",
    }


def test_setting_up_again_changes_nothing_and_says_so(run, at) -> None:
    first = run("setup", "flat-fee", *at, "--json").document
    again = run("setup", "flat-fee", *at, "--json").document
    assert again["applied"]["prices"] == first["applied"]["prices"]
    assert len(first["applied"]["changes"]) == 5
    assert again["applied"]["changes"] == []
    assert "Everything was there already; nothing was changed." in run("setup", "flat-fee", *at).out


def test_a_dry_run_shows_the_plan_and_touches_nothing(run, at, client) -> None:
    seen = run("setup", "pay-as-you-go", "--dry-run", *at)
    assert seen.code == 0
    assert "+ create     price    hypernian_tokens.pay_as_you_go.usd.month" in seen.out
    assert "0.04 USD per 100, rounded up; every month; metered by hypernian_tokens" in seen.out
    assert "Nothing was changed: 3 to create." in seen.out
    assert run("setup", "pay-as-you-go", "--dry-run", *at, "--json").document["plan"]["counts"] == {
        "create": 3
    }
    assert client.v1.billing.meters.list().data == []
    assert client.v1.products.list().data == []
    assert client.v1.prices.list().data == []


def test_other_figures_under_the_same_key_need_a_word_of_consent(run, at, client) -> None:
    run("setup", "pay-as-you-go", *at)
    old = client.v1.prices.list().data[0].id
    refused = run("setup", "pay-as-you-go", "--amount", "0.05", *at)
    assert refused.code == 1
    assert "amount 0.04 USD -> 0.05 USD" in refused.err
    assert (
        f"Add --replace to sell at the new one from now on; who subscribes to {old} keeps it" in refused.err
    )
    assert len(client.v1.prices.list().data) == 1
    done = run("setup", "pay-as-you-go", "--amount", "0.05", "--replace", *at, "--json").document
    assert done["applied"]["changes"][0]["action"] == "replace"
    assert len(client.v1.prices.list().data) == 2


def test_every_option_of_the_guides_reaches_stripe(run, at, client) -> None:
    options = {
        "--amount": "0.5",
        "--package-size": "10",
        "--product-name": "Tokens",
        "--currency": "CAD",
        "--interval": "week",
        "--event-name": "tokens",
        "--meter-name": "My tokens",
        "--aggregation": "last",
    }
    assert run("setup", "pay-as-you-go", *sum(options.items(), ()), *at).code == 0
    price = client.v1.prices.list().data[0]
    assert (price.currency, price.unit_amount, price.transform_quantity.divide_by) == ("cad", 50, 10)
    assert (price.recurring.interval, price.lookup_key) == ("week", "tokens.pay_as_you_go.cad.week")
    meter = client.v1.billing.meters.list().data[0]
    assert (meter.event_name, meter.display_name) == ("tokens", "My tokens")
    assert meter.default_aggregation.formula == "last"
    assert client.v1.products.list().data[0].name == "Tokens"


def test_every_option_of_the_flat_fee_reaches_stripe(run, at, client) -> None:
    options = {
        "--license-amount": "200",
        "--included": "500",
        "--overage-amount": "0.25",
        "--overage-per": "100",
        "--usage-name": "Streams",
        "--license-name": "Hosting",
        "--event-name": "streams",
    }
    assert run("setup", "flat-fee", *sum(options.items(), ()), *at).code == 0
    prices = {p.lookup_key: p for p in client.v1.prices.list({"expand": ["data.tiers"]}).data}
    assert prices["streams.flat_fee.license.usd.month"].unit_amount == 20000
    first, second = prices["streams.flat_fee.overage.usd.month"].tiers
    assert (first.up_to, str(second.unit_amount_decimal)) == (500, "0.25")
    assert {p.name for p in client.v1.products.list().data} == {"Streams", "Hosting"}
    assert run("setup", "flat-fee", "--license-billed", "with_usage", *at).code == 0
    made = run(
        "subscribe", "flat-fee", "--license-billed", "with_usage", "--new-customer", "A", *at, "--json"
    )
    assert [i["quantity"] for i in made.document["subscription"]["items"]] == [None]


def test_subscribing_again_finds_the_subscription(run, at) -> None:
    made = typed_through(run, at, "pay-as-you-go")
    again = run("subscribe", "pay-as-you-go", "--customer", made["customer"], *at, "--json").document
    assert again["subscription"]["id"] == made["id"]
    assert again["subscription"]["created"] is False
    assert (
        "was subscribed already" in run("subscribe", "pay-as-you-go", "--customer", made["customer"], *at).out
    )


def test_subscribe_takes_seats_mode_and_collection(run, at) -> None:
    run("setup", "flat-fee", *at)
    arguments = ["--seats", "3", "--billing-mode", "classic", "--collection", "default_incomplete"]
    made = run("subscribe", "flat-fee", "--new-customer", "A", *arguments, *at, "--json").document[
        "subscription"
    ]
    assert (made["billing_mode"], made["status"], made["items"][0]["quantity"]) == (
        "classic",
        "incomplete",
        3,
    )


def test_no_customer_is_made_where_nothing_was_set_up(run, at, client) -> None:
    refused = run("subscribe", "flat-fee", "--new-customer", "Orphan", *at)
    assert refused.code == 1
    assert "the account has no price 'hypernian_tokens.flat_fee.license.usd.month'" in refused.err
    assert client.v1.customers.list().data == []


def test_a_repeated_identifier_is_told_and_adds_nothing(run, at, sandbox) -> None:
    made = typed_through(run, at, "pay-as-you-go")
    event = [
        "test-event",
        "--customer",
        made["customer"],
        "--identifier",
        "once",
        "--dimension",
        "model=m=1",
        *at,
    ]
    assert run(*event, "--json").document["duplicate"] is False
    assert "Stripe had an event once already; nothing was added." in run(*event).out
    assert sandbox.books().total(customer=made["customer"]) == 6000
    assert sandbox.books().total(customer=made["customer"], model="m=1") == 3000


def test_what_to_type_next_means_the_same_account(run, at, sandbox) -> None:
    out = run("setup", "pay-as-you-go", *at).out
    assert f"subscribe pay-as-you-go --new-customer 'John Doe' --sandbox {sandbox.url}\n" in out


def test_the_environment_names_the_account(run, sandbox, monkeypatch) -> None:
    monkeypatch.setenv("STRIPE_API_BASE", sandbox.url)
    assert run("setup", "pay-as-you-go").code == 0
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_other_account")
    other = run("setup", "pay-as-you-go", "--dry-run", "--json").document
    assert other["plan"]["counts"] == {"create": 3}
    same = run("setup", "pay-as-you-go", "--dry-run", "--json", "--api-key", "sk_test_sandbox").document
    assert same["plan"]["done"] is True


def test_a_key_of_the_environment_is_not_shown_to_a_sandbox(run, at, monkeypatch) -> None:
    run("setup", "pay-as-you-go", *at)
    monkeypatch.setenv("STRIPE_API_KEY", "sk_live_real0000")
    assert run("setup", "pay-as-you-go", "--dry-run", *at, "--json").document["plan"]["done"] is True


def test_json_documents_hold_money_as_text(run, at) -> None:
    made = typed_through(run, at, "pay-as-you-go")
    out = run("preview", "--customer", made["customer"], *at, "--json").out
    floats = []
    json.loads(out, parse_float=floats.append)
    assert floats == []


@pytest.mark.parametrize(
    "figures",
    [
        ["pay-as-you-go"],
        ["pay-as-you-go", "--currency", "eur", "--event-name", "my_tokens", "--interval", "week"],
        ["flat-fee", "--currency", "jpy", "--license-amount", "10000", "--overage-amount", "4"],
        ["flat-fee", "--license-billed", "with_usage"],
    ],
    ids=" ".join,
)
def test_what_each_command_says_to_type_next_can_be_typed(run, at, figures) -> None:
    """From set-up to the preview, and to moving those who subscribed, by nothing but what is printed."""
    out = run("setup", *figures, *at).out
    for step in ("subscribe", "test-event", "preview"):
        following = next_of(out)
        assert following[0] == step
        ran = run(*following)
        assert ran.code == 0, ran.err
        out = ran.out
    assert "3,000" in out
    dearer = "--overage-amount" if figures[0] == "flat-fee" else "--amount"
    said = [f for i, f in enumerate(figures) if dearer not in (f, figures[i - 1])]
    out = run("setup", *said, dearer, "5", "--replace", *at).out
    assert out.count("llm-metering migrate") == 1
    moved = run(*after("llm-metering migrate ", out), "--yes")
    assert (moved.code, "1 moved." in moved.out) == (0, True), moved.err


def next_of(out: str) -> list[str]:
    return after("Next: llm-metering ", out, itself=True)


def after(prompt: str, out: str, *, itself: bool = False) -> list[str]:
    line = next(line for line in out.splitlines() if prompt in line)
    words = shlex.split(line.partition(prompt)[2])
    return words if itself else [prompt.split()[-1], *words]
