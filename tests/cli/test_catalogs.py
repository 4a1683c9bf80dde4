"""Catalogs in TOML from the command line: plan, apply, subscribe, estimate."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

TEXT = """
[[meters]]
event_name = "output_tokens"
display_name = "Output tokens"

[[products]]
id = "acme"
name = "Acme"

[[prices]]
key = "output"
product = "acme"
currency = "usd"
meter = "output_tokens"
tiers_mode = "graduated"
tiers = [{ up_to = 1000, unit_amount = 0 }, { up_to = inf, unit_amount = 0.01 }]

[[prices]]
key = "seat"
product = "acme"
currency = "usd"
amount = 20

[[offers]]
name = "team"
items = ["seat", "output"]

[[offers]]
name = "solo"
items = ["output"]
"""


@pytest.fixture
def catalog(tmp_path: Path) -> str:
    path = tmp_path / "catalog.toml"
    path.write_text(TEXT)
    return str(path)


def test_a_catalog_is_planned_applied_and_subscribed_to(run, at, catalog, client) -> None:
    seen = run("plan", catalog, *at)
    assert seen.code == 0
    assert (
        "graduated: 1-1000 at 0.00 USD, 1001+ at 0.01 USD; every month; metered by output_tokens" in seen.out
    )
    assert "4 to create." in seen.out
    assert client.v1.prices.list().data == []
    applied = run("apply", catalog, *at)
    assert applied.code == 0
    assert f"Next: llm-metering subscribe {catalog} --offer team --new-customer" in applied.out
    assert "4 unchanged." in run("plan", catalog, *at).out
    made = run("subscribe", catalog, "--offer", "team", "--seats", "2", "--new-customer", "A", *at, "--json")
    customer = made.document["subscription"]["customer"]
    run("test-event", "--customer", customer, "--event-name", "output_tokens", "--value", "1500", *at)
    assert run("preview", "--customer", customer, *at, "--json").document["total"] == "45.00"


def test_a_plan_can_be_checked_in_ci(run, at, catalog) -> None:
    assert run("plan", catalog, "--check", *at).code == 1
    run("apply", catalog, *at)
    assert run("plan", catalog, "--check", *at).code == 0
    assert run("plan", catalog, "--check", *at, "--json").document["plan"]["done"] is True


def test_what_left_the_catalog_is_archived_when_asked(run, at, catalog, client) -> None:
    run("setup", "pay-as-you-go", *at)
    run("apply", catalog, *at)
    assert "of ours not in the catalog" not in run("setup", "pay-as-you-go", *at).out
    seen = run("plan", catalog, *at).out
    assert "4 unchanged, 3 of ours not in the catalog." in seen
    assert "· ours, but not in this catalog: price hypernian_tokens.pay_as_you_go.usd.month, product" in seen
    assert "--archive shows which of them bill nobody" in seen
    assert (
        "- archive    price    hypernian_tokens.pay_as_you_go" in run("plan", catalog, "--archive", *at).out
    )
    assert run("plan", catalog, "--check", *at).code == 0
    assert run("plan", catalog, "--archive", "--check", *at).code == 1
    tried = run("apply", catalog, "--archive", "--dry-run", *at)
    assert "Nothing was changed: 3 to archive, 4 unchanged." in tried.out
    assert len(client.v1.prices.list({"active": True}).data) == 3
    document = run("apply", catalog, "--archive", *at, "--json").document
    assert [c["action"] for c in document["applied"]["changes"]] == ["archive"] * 3
    assert {p.lookup_key for p in client.v1.prices.list({"active": True}).data} == {"output", "seat"}


def test_apply_does_not_replace_a_price_unasked(run, at, catalog) -> None:
    run("apply", catalog, *at)
    Path(catalog).write_text(TEXT.replace("0.01", "0.02"))
    refused = run("apply", catalog, *at)
    assert refused.code == 1
    assert "tiers 1-1000 at 0.00 USD, 1001+ at 0.01 USD -> 1-1000 at 0.00 USD, 1001+ at 0.02" in refused.err
    done = run("apply", catalog, "--replace", *at)
    assert done.code == 0
    assert f"To see and move them: llm-metering migrate {catalog} --sandbox" in done.out


def test_subscribing_takes_the_catalog_at_its_word(run, at, catalog) -> None:
    run("apply", catalog, *at)
    Path(catalog).write_text(TEXT.replace("0.01", "0.02"))
    refused = run("subscribe", catalog, "--offer", "solo", "--new-customer", "A", *at)
    assert refused.code == 1
    assert "differs from the catalog" in refused.err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["plan", "missing.toml"], "missing.toml cannot be read: No such file or directory"),
        (["plan", "gold"], "there is no plan 'gold'; there are pay-as-you-go and flat-fee, and catalogs in"),
        (["subscribe", "CATALOG", "--customer", "c"], "say which offer is meant; the catalog has team, solo"),
        (
            ["subscribe", "CATALOG", "--customer", "c", "--offer", "team", "--currency", "usd"],
            "belongs to the",
        ),
        (["subscribe", "CATALOG", "--customer", "c", "--offer", "solo", "--seats", "2"], "solo has 0"),
        (["estimate", "CATALOG", "--usage", "u", "--ledger", "l"], "--usage and --ledger exclude each other"),
        (["estimate", "CATALOG", "--usage", "missing.csv"], "missing.csv cannot be read: No such file"),
        (["estimate", "CATALOG", "--usage", "u", "--offer", "gold"], "the catalog has no offer 'gold'"),
    ],
)
def test_a_command_used_wrongly_says_so(run, catalog, argv, sentence) -> None:
    ran = run(
        *[catalog if a == "CATALOG" else a for a in argv], *([] if argv[0] == "estimate" else ["--sandbox"])
    )
    assert ran.code == 2
    assert sentence in ran.err
    assert ran.err.count("\n") == 1


def test_usage_in_a_file_is_priced_per_customer_tier_by_tier(run, catalog, tmp_path) -> None:
    usage = tmp_path / "usage.csv"
    usage.write_text("customer,value,period,model\na,1500,oct,x\na,500,oct,y\nb,10,oct,x\na,1,nov,x\n")
    document = run("estimate", catalog, "--usage", str(usage), "--json").document
    assert [(e["customer"], e["period"], e["offer"], e["total"]) for e in document["estimates"]] == [
        ("a", "oct", "team", "30.00"),
        ("b", "oct", "team", "20.00"),
        ("a", "nov", "team", "20.00"),
        ("a", "oct", "solo", "10.00"),
        ("b", "oct", "solo", "0.00"),
        ("a", "nov", "solo", "0.00"),
    ]
    seen = run("estimate", catalog, "--usage", str(usage), "--offer", "team").out
    assert "█" * 30 in seen
    assert "team: 70.00 USD in all" in seen
    assert "solo" not in seen


def test_an_estimate_can_be_a_page(run, catalog, tmp_path) -> None:
    usage, page = tmp_path / "usage.csv", tmp_path / "page.html"
    usage.write_text("customer,value\n<b>a</b>,1500\n")
    assert run("estimate", catalog, "--usage", str(usage), "--html", str(page)).code == 0
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;a&lt;/b&gt;" in text
    assert "<b>a" not in text
    assert "25.00 USD" in text
    assert 'style="width:20.000%;background:' in text, "5 of 25 for use, 20 for the seat"


def test_the_ledgers_own_usage_is_priced(run, ledger, monkeypatch) -> None:
    ran = run("estimate", "pay-as-you-go", "--ledger", str(ledger.folder), "--json")
    totals = {e["customer"]: e["total"] for e in ran.document["estimates"]}
    assert totals["cus_accepted"] == "0.04"
    csv = run("usage", "--ledger", str(ledger.folder), "--csv").out
    monkeypatch.setattr("sys.stdin", io.StringIO(csv))
    piped = run("estimate", "pay-as-you-go", "--usage", "-", "--json").document
    assert {e["customer"]: e["total"] for e in piped["estimates"]} == totals


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("who,value\na,1\n", "has no column customer; its first line must name them"),
        ("", "has no column customer"),
        ("customer,value\na,many\n", "line 2: value='many' is not a number"),
        ("customer,value\na,\n", "line 2: value='' is not a number"),
        ("customer,value\na,NaN\n", "line 2: value='NaN' is not a number that a meter takes"),
        ("customer,value\na,1e99\n", "is not a number that a meter takes"),
    ],
)
def test_a_usage_file_that_cannot_be_read_is_told_by_line(run, tmp_path, text, sentence) -> None:
    usage = tmp_path / "usage.csv"
    usage.write_text(text)
    ran = run("estimate", "pay-as-you-go", "--usage", str(usage), "--json")
    assert ran.code == 2
    assert sentence in json.loads(ran.out)["error"]
