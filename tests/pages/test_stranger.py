"""A stranger starts `llm-metering sandbox`, follows a guide by clicking, does the same by `plan` and `apply`,
and sees the same invoice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chromium")]

CATALOGS = {
    "pay-as-you-go": """
[pay-as-you-go]
product_name = "Hypernian"
""",
    "flat-fee": """
[flat-fee]
""",
}
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("STRIPE_")}


@pytest.fixture
def served() -> Iterator[str]:
    """The sandbox as a person starts it, in a process of its own; its address."""
    command = [sys.executable, "-m", "llm_metering", "sandbox", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=CLEAN) as process:
        assert process.stdout is not None
        try:
            told = process.stdout.readline()
            [url] = re.findall(r"http://[0-9.:]+", told)
            yield url
        finally:
            process.terminate()


def typed(*words: str) -> dict:
    """What a command prints as JSON."""
    command = [sys.executable, "-m", "llm_metering", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=CLEAN, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def click_a_meter(person) -> None:
    person.open()
    person.click("Create a meter")
    person.fill(display_name="Hypernian tokens", event_name="hypernian_tokens")
    person.click("Create meter")


def click_packages(person) -> None:
    person.open()
    person.click("Create a product")
    person.fill(name="Hypernian", scheme="Per package", amount="0.04", package_size="100")
    person.click("Add product")


def click_tiers_and_licence(person) -> None:
    person.open()
    person.click("Hypernian Usage")
    person.fill(name="Hypernian Usage", scheme="Per tier, graduated")
    [_, above] = person.chromium.find_elements("name", "tier_unit")
    above.send_keys("0.04")
    person.click("Add product")
    person.open()
    person.click("Hypernian License fee")
    person.fill(name="Hypernian License fee")
    person.choose("usage_type", "licensed")
    person.fill(fee="100")
    person.click("Add product")


def click_a_subscriber(person, name: str, *products: str) -> None:
    """A customer, a subscription, and 3000 tokens that were used, each from the overview's links."""
    person.open()
    person.click("Create a customer")
    person.fill(name=name)
    person.click("Create customer")
    person.open()
    person.click("Create a subscription")
    person.fill(customer=name)
    for product in products:
        person.tick(product)
    person.click("Create subscription")
    person.open()
    person.click("meter")
    person.click("Hypernian tokens")
    person.click("Add usage")
    person.fill(customer=name, value="3000")
    person.click("Submit")


def invoice_of(person, name: str) -> list[str]:
    """What the page shows as the upcoming invoice of somebody: each row of its table, and what is due."""
    person.open()
    person.click("subscription")
    person.click(name)
    person.click("View full invoice")
    rows = person.chromium.find_elements("css selector", ".lines tr")
    return [one.text for one in rows] + [person.sees("#amount-due")]


GUIDES = {
    "pay-as-you-go": (click_packages, ["Hypernian"], "1.20"),
    "flat-fee": (click_tiers_and_licence, ["Hypernian Usage", "Hypernian License fee"], "180.00"),
}


@pytest.mark.parametrize("guide", GUIDES)
def test_the_guide_by_clicking_and_by_code_end_at_the_same_invoice(person, served, tmp_path: Path, guide):
    click_products, products, due = GUIDES[guide]
    stranger = replace(person, url=served)
    click_a_meter(stranger)
    click_products(stranger)
    click_a_subscriber(stranger, "John Doe", *products)
    by_hand = invoice_of(stranger, "John Doe")
    assert by_hand[-1] == f"${due} USD"

    catalog = tmp_path / "catalog.toml"
    catalog.write_text(CATALOGS[guide], encoding="utf-8")
    here = ("--sandbox", served)
    planned = typed("plan", str(catalog), *here)["plan"]
    actions = {change["kind"]: change["action"] for change in planned["changes"]}
    assert actions["meter"] in ("adopt", "unchanged"), "the meter that was clicked is used"
    typed("apply", str(catalog), *here)
    assert typed("plan", str(catalog), *here)["plan"]["done"]
    made = typed("subscribe", str(catalog), "--new-customer", "Jane Roe", *here)["subscription"]
    typed("test-event", "--customer", made["customer"], "--value", "3000", *here)
    preview = typed("preview", "--customer", made["customer"], *here)
    assert preview["total"] == due
    assert sorted(invoice_of(stranger, "Jane Roe")) == sorted(by_hand)
