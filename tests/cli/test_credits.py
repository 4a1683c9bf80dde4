"""`credits` and `alerts` as typed, and what they say about limits."""

from __future__ import annotations

import pytest

NO_LIMIT = "They never limit usage: what goes beyond them is used, and billed."


@pytest.fixture
def customer(run, at) -> str:
    run("setup", "pay-as-you-go", *at)
    made = run("subscribe", "pay-as-you-go", "--new-customer", "A", *at, "--json").document
    return str(made["subscription"]["customer"])


def test_a_credit_is_granted_once_and_shown_with_what_is_left(run, at, customer) -> None:
    argv = ["credits", "grant", "--customer", customer, "--key", "welcome", "--amount", "1", *at]
    first = run(*argv)
    assert first.code == 0
    assert f"{customer} granted: 1.00 USD (credgr_" in first.out
    assert NO_LIMIT in first.out
    assert "was granted already" in run(*argv).out
    run("test-event", "--customer", customer, *at)
    seen = run("preview", "--customer", customer, *at).out
    assert "Credits     -1.00 USD" in seen
    assert "Amount due  0.20 USD" in seen
    listed = run("credits", "list", "--customer", customer, *at)
    assert "Available   1.00 USD" in listed.out
    assert NO_LIMIT in listed.out
    document = run("credits", "list", "--customer", customer, *at, "--json").document
    assert document["available"] == {"usd": "1.00"}
    (credit,) = document["credits"]
    assert "is void" in run("credits", "void", credit["id"], *at).out
    assert run("credits", "expire", credit["id"], *at).code == 1


def test_a_credit_of_a_catalog_is_granted_by_its_key(run, at, customer, tmp_path) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(
        '[pay-as-you-go]\n[[credits]]\nkey = "c"\namount = 2\ncurrency = "usd"\nexpires_days = 9\n'
    )
    argv = ["credits", "grant", "--customer", customer, "--key", "c", "--catalog", str(path), *at]
    made = run(*argv, "--json").document["credit"]
    assert (made["amount"], made["created"], made["expires_at"][:2]) == ("2.00", True, "20")
    assert run("credits", "expire", made["id"], *at).code == 0
    assert run("credits", "list", "--customer", "cus_nobody", *at).code == 1


def test_alerts_are_made_listed_and_archived(run, at, customer) -> None:
    argv = ["alerts", "create", "--title", "A lot", "--threshold", "1000", "--customer", customer, *at]
    made = run(*argv)
    assert "It never limits usage" in made.out
    assert "was there already" in run(*argv).out
    listed = run("alerts", "list", *at)
    assert "A lot" in listed.out
    assert "It never limits usage" in listed.out
    (alert,) = run("alerts", "list", *at, "--json").document["alerts"]
    assert (alert["threshold"], alert["customer"]) == (1000, customer)
    assert run("alerts", "archive", alert["id"], *at).code == 0
    assert run("alerts", "list", *at).out == "No alerts.\n"


def test_applying_a_catalog_with_alerts_says_what_they_do_not_do(run, at, tmp_path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        '[[meters]]\nevent_name = "m"\ndisplay_name = "M"\n'
        '[[alerts]]\ntitle = "Many"\nmeter = "m"\nthreshold = 10\n'
    )
    seen = run("apply", str(path), *at).out
    assert "It never limits usage" in seen
    assert "alrt_" in seen


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["credits", "grant", "--key", "k"], "say --amount, or --catalog with a credit of that key"),
        (["credits", "grant", "--key", "k", "--amount", "-1"], "is negative"),
        (["credits", "grant", "--key", "k", "--amount", "1", "--currency", "dollar"], "is not a currency"),
        (["credits", "grant", "--key", "k", "--catalog", "flat-fee"], "the catalog has no credit 'k'"),
        (
            ["credits", "grant", "--key", "k", "--catalog", "flat-fee", "--name", "n"],
            "--name belongs to a credit without --catalog",
        ),
        (["alerts", "create", "--title", "t", "--threshold", "0"], "threshold=0 must be a whole number"),
    ],
)
def test_options_that_cannot_work_are_refused(run, at, argv, sentence) -> None:
    ran = run(*argv, "--customer", "cus_1", *at)
    assert ran.code == 2
    assert sentence in ran.err
