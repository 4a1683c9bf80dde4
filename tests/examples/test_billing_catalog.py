"""The example catalog is planned, applied, subscribed to and estimated as its README says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llm_metering.__main__ import main
from llm_metering.billing import load_catalog
from llm_metering.sandbox import running_sandbox

pytestmark = pytest.mark.once

FOLDER = Path(__file__).parents[2] / "examples/billing_catalog"
CATALOG = str(FOLDER / "catalog.toml")


def test_the_readmes_commands_end_in_its_figures(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    with running_sandbox() as sandbox:

        def run(*argv: str):
            capsys.readouterr()
            assert main([*argv, "--sandbox", sandbox.url, "--json"]) == 0
            return json.loads(capsys.readouterr().out)

        assert run("plan", CATALOG)["plan"]["counts"] == {"create": 8}
        run("apply", CATALOG)
        made = run("subscribe", CATALOG, "--offer", "team", "--seats", "3", "--new-customer", "Ada")
        customer = made["subscription"]["customer"]
        run("credits", "grant", "--catalog", CATALOG, "--key", "welcome", "--customer", customer)
        run("test-event", "--customer", customer, "--event-name", "acme_output", "--value", "12000000")
        preview = run("preview", "--customer", customer)
        assert (preview["subtotal"], preview["credits"], preview["total"]) == ("171.00", "5.00", "166.00")
        assert run("plan", CATALOG)["plan"]["done"]


def test_its_usage_is_priced_per_customer_and_month(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(["estimate", CATALOG, "--usage", str(FOLDER / "usage.csv"), "--offer", "usage", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)["estimates"]
    assert {(one["customer"], one["period"]): one["total"] for one in found} == {
        ("cus_ada", "2026-10"): "120.00",
        ("cus_ben", "2026-10"): "1.60",
        ("cus_ada", "2026-11"): "12.20",
    }


@pytest.mark.parametrize("offer", ["usage", "team"])
def test_the_catalog_holds_what_its_readme_says(offer: str) -> None:
    catalog = load_catalog(CATALOG)
    assert catalog.offer(offer).items
    assert (len(catalog.meters), len(catalog.prices)) == (2, 3)
    assert (catalog.credit("welcome").minor, len(catalog.alerts)) == (500, 1)
