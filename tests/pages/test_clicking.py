"""A stranger follows Stripe's two guides by clicking, in a real browser."""

from __future__ import annotations

import json
import time
from urllib.parse import urlsplit

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chromium")]


def make_meter(person) -> None:
    person.go("Meters")
    person.click("Create meter")
    person.fill(display_name="Hypernian tokens", event_name="hypernian_tokens")
    person.click("Create meter")
    assert "Created." in person.sees()


def make_customer(person, name: str) -> None:
    person.go("Customers")
    person.click("Create customer")
    person.fill(name=name)
    person.click("Create customer")


def use(person, name: str, value: str) -> None:
    person.go("Meters")
    person.click("Hypernian tokens")
    person.click("Add usage")
    person.fill(customer=name, value=value)
    person.click("Submit")
    assert "Usage added." in person.sees()


def test_the_pay_as_you_go_guide_ends_at_1_20(person):
    person.open()
    make_meter(person)
    person.go("Products")
    person.click("Create product")
    person.fill(name="Hypernian", scheme="Per package", amount="0.04", package_size="100")
    person.click("Add product")
    assert "$0.04 per 100 units / month" in person.sees()
    make_customer(person, "John Doe")
    person.go("Subscriptions")
    person.click("Create subscription")
    person.fill(customer="John Doe")
    person.tick("Hypernian")
    person.click("Create subscription")
    use(person, "John Doe", "3000")

    person.go("Subscriptions")
    person.click("John Doe")
    assert "$1.20 USD" in person.sees(".amount")
    person.click("View full invoice")
    assert person.sees("#amount-due") == "$1.20 USD"
    shown = person.sees()
    for said in ("Customer\nJohn Doe", "Billing method\nCharge automatically", "Creation date\n"):
        assert said in shown
    for said in (
        "Subscription\nsub_",
        "3000 × Hypernian (at",
        "$0.04 per 100 units / month",
        "Usage: 3,000",
    ):
        assert said in shown


def test_the_flat_fee_guide_ends_at_180(person):
    person.open()
    make_meter(person)
    person.open("/products/new")
    person.fill(name="Hypernian Usage", scheme="Per tier, graduated")
    [_, above] = person.chromium.find_elements("name", "tier_unit")
    above.send_keys("0.04")
    assert person.sees("[data-tiers] tbody tr:nth-child(2) [data-first]") == "1,001"
    person.click("Add product")
    assert "Graduated: $0.00 to 1,000, $0.04 above / month" in person.sees()
    person.open("/products/new")
    person.fill(name="Hypernian License fee")
    person.choose("usage_type", "licensed")
    person.fill(fee="100")
    person.click("Add product")
    assert "$100.00 / month" in person.sees()
    make_customer(person, "Jenny Rosen")
    person.open("/subscriptions/new")
    person.fill(customer="Jenny Rosen")
    person.tick("Hypernian Usage")
    person.tick("Hypernian License fee")
    person.click("Create subscription")
    use(person, "Jenny Rosen", "3000")

    person.go("Subscriptions")
    person.click("Jenny Rosen")
    person.click("View full invoice")
    assert person.sees("#amount-due") == "$180.00 USD"
    groups = [one.text for one in person.chromium.find_elements("css selector", ".lines .group")]
    assert any("Hypernian Usage" in one and one.endswith("$80.00") for one in groups)
    assert any("Hypernian License fee" in one and one.endswith("$100.00") for one in groups)


def test_the_preview_pane_adds_sample_events_up_in_all_three_ways(person):
    person.open("/meters/new")
    assert person.sees("#tried").split() == ["Sum", "3,000", "Count", "3", "Last", "1,500"]
    person.fill(sample="10\n0.5\n-3")
    person.wait_for(lambda: person.sees("#tried").split() == ["Sum", "7.5", "Count", "3", "Last", "-3"])
    person.fill(formula="Last: the last value reported")
    person.wait_for(lambda: person.sees("#tried .chosen") == "Last\n-3")
    person.fill(sample="10 13:05\n20 13:50\n5 14:00")
    person.click("Advanced settings")
    person.fill(event_time_window="Hour: the last event of each hour counts")
    person.wait_for(lambda: person.sees("#tried").split() == ["Sum", "25", "Count", "2", "Last", "5"])
    person.fill(sample="many")
    person.wait_for(lambda: "is not a number" in person.sees("#tried"))


def test_a_clocks_hand_brings_the_invoice(person, sandbox):
    person.open("/clocks")
    person.chromium.execute_script("document.querySelector('[name=frozen_time]').value = '2026-01-15T12:00'")
    person.fill(name="January")
    person.click("Create clock")
    assert "15 Jan 2026, 12:00 UTC" in person.sees()
    [clock] = sandbox.client().v1.test_helpers.test_clocks.list().data
    customer = a_shop(sandbox, test_clock=clock.id)
    event = {"stripe_customer_id": customer, "value": "3000"}
    sandbox.client().v1.billing.meter_events.create({"event_name": "hypernian_tokens", "payload": event})
    person.open("/clocks")
    person.click("+31 days")
    assert "15 Feb 2026, 12:00 UTC" in person.sees()
    person.click("+1 day")
    person.go("Invoices")
    assert "$1.20 USD" in person.sees()
    assert "paid" in person.sees()


def test_usage_is_drawn_by_hour_and_by_day_and_stands_in_a_table(person, sandbox):
    customer = a_shop(sandbox)
    now = int(time.time())
    for hours, value in ((0, 5), (3, 7), (48, 100)):
        event = {"stripe_customer_id": customer, "value": str(value)}
        sandbox.client().v1.billing.meter_events.create(
            {"event_name": "hypernian_tokens", "payload": event, "timestamp": now - hours * 3600}
        )
    person.open("/meters")
    person.click("Hypernian tokens")
    assert drawn(person)["labels"] == 24
    assert drawn(person)["sum"] == 12
    assert drawn(person)["pixels"] > 100
    person.click("By day")
    assert drawn(person) == {**drawn(person), "labels": 30, "sum": 112}
    person.click("As a table")
    assert "112" in person.sees("details[open] table") or "100" in person.sees("details[open] table")
    person.fill(customer="John Doe")
    person.wait_for(lambda: f"customer={customer}" in person.chromium.current_url)
    assert drawn(person)["sum"] == 112


def test_what_is_refused_is_told_in_stripes_words_and_nothing_typed_is_lost(person, sandbox):
    a_shop(sandbox)
    person.open("/meters/new")
    person.fill(display_name="Another", event_name="hypernian_tokens")
    person.click("Create meter")
    assert "There is already a meter" in person.sees("[role=alert]")
    assert person.chromium.find_element("name", "display_name").get_attribute("value") == "Another"
    person.open("/products/new")
    person.fill(name="Bad", amount="0.1234567890123456")
    person.click("Add product")
    assert "12 decimal places" in person.sees("[role=alert]")
    person.complaints()  # the browser notes that these answers were 400
    assert [one.name for one in sandbox.client().v1.products.list().data] == ["Hypernian"]


def every_page(sandbox) -> list[str]:
    """Each view with something on it, events that were refused and a fault among it."""
    customer = a_shop(sandbox)
    api = sandbox.client().v1
    event = {"stripe_customer_id": customer, "value": "many"}
    api.billing.meter_events.create({"event_name": "hypernian_tokens", "payload": event})
    sandbox.settle()
    api.webhook_endpoints.create({"url": "http://127.0.0.1:9/hook", "enabled_events": ["*"]})
    api.test_helpers.test_clocks.create({"frozen_time": 1_768_478_400, "name": "January"})
    api.invoice_items.create({"customer": customer, "amount": 500, "currency": "usd"})
    drafted = {"customer": customer, "pending_invoice_items_behavior": "include"}
    invoice = api.invoices.create(drafted).id
    [subscription] = api.subscriptions.list({"customer": customer}).data
    [meter], [product] = api.billing.meters.list().data, api.products.list().data
    [happened, *_] = api.events.list().data
    sandbox.fault("429", path="/v1/billing/*")
    lists = "meters products customers subscriptions invoices events webhooks clocks faults"
    made = "meters products customers subscriptions"
    return [
        "/",
        *(f"/{name}" for name in lists.split()),
        *(f"/{name}/new" for name in made.split()),
        f"/meters/{meter.id}",
        f"/meters/{meter.id}?window=day",
        f"/meters/{meter.id}/usage",
        f"/products/{product.id}",
        f"/customers/{customer}",
        f"/subscriptions/{subscription.id}",
        f"/subscriptions/{subscription.id}/upcoming",
        f"/invoices/{invoice}",
        f"/events/{happened.id}",
        "/meters/none",
    ]


def test_a_phone_shows_every_page_without_scrolling_sideways(person, sandbox):
    phone = {"width": 375, "height": 720, "deviceScaleFactor": 1, "mobile": True}
    person.chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    wide = []
    for page in every_page(sandbox):
        person.open(page)
        wide += [(page, one) for one in person.chromium.execute_script(BEYOND)]
    person.complaints()  # the browser notes that one page was not found
    assert wide == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_of_every_page_can_be_read(person, sandbox, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    person.chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    faint = set()
    for page in every_page(sandbox):
        person.open(page)
        for text, colour, behind in person.chromium.execute_script(TEXTS):
            if contrast(colour, behind) < 4.5:
                faint.add((page, text, colour, behind))
    person.complaints()  # the browser notes that one page was not found
    person.chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert faint == set()


def test_the_keyboard_alone_makes_a_customer(person, sandbox):
    from selenium.webdriver.common.keys import Keys

    def press(*keys: str) -> None:
        person.chromium.switch_to.active_element.send_keys(*keys)

    def tab_to(name: str) -> None:
        for _ in range(40):
            press(Keys.TAB)
            here = person.chromium.switch_to.active_element
            if name in (here.get_attribute("name"), here.text):
                return
        raise AssertionError(f"{name} is not reached by Tab")

    person.open("/customers/new")
    press(Keys.TAB)
    assert person.chromium.switch_to.active_element.text == "Skip to content"
    tab_to("name")
    press("Jane Roe")
    tab_to("Create customer")
    press(Keys.ENTER)
    person.wait_for(lambda: "Created." in person.sees())
    assert [one.name for one in sandbox.client().v1.customers.list().data] == ["Jane Roe"]


def test_no_page_asks_anybody_else_for_anything(person, sandbox):
    a_shop(sandbox)
    [meter] = sandbox.client().v1.billing.meters.list().data
    person.chromium.get_log("performance")
    for page in ("/", f"/meters/{meter.id}", "/meters/new", "/products/new"):
        person.open(page)
    messages = [json.loads(one["message"])["message"] for one in person.chromium.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert any(url.endswith("/static/chart.umd.min.js") for url in asked)
    assert {urlsplit(url).netloc for url in asked if url.startswith("http")} == {urlsplit(sandbox.url).netloc}


def a_shop(sandbox, **customer) -> str:
    """The pay-as-you-go guide, as far as John Doe's subscription; his id."""
    api = sandbox.client().v1
    meter = api.billing.meters.create(
        {
            "display_name": "Hypernian tokens",
            "event_name": "hypernian_tokens",
            "default_aggregation": {"formula": "sum"},
        }
    )
    price = api.prices.create(
        {
            "currency": "usd",
            "unit_amount": 4,
            "transform_quantity": {"divide_by": 100, "round": "up"},
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
            "product_data": {"name": "Hypernian"},
        }
    )
    card = {
        "payment_method": "pm_card_visa",
        "invoice_settings": {"default_payment_method": "pm_card_visa"},
    }
    made = api.customers.create({"name": "John Doe", **card, **customer})
    api.subscriptions.create({"customer": made.id, "items": [{"price": price.id}]})
    return made.id


def drawn(person) -> dict[str, float]:
    """What the chart shows, and how many of its pixels are coloured."""
    script = """
      const canvas = document.querySelector("canvas[data-chart]"), chart = Chart.getChart(canvas);
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      let pixels = 0;
      for (let i = 3; i < data.length; i += 4) pixels += data[i] > 0;
      const values = chart.data.datasets.flatMap((one) => one.data);
      return {labels: chart.data.labels.length, sum: values.reduce((a, b) => a + b, 0), pixels};
    """
    found: dict[str, float] = person.chromium.execute_script(script)
    return found


BEYOND = """
  const beyond = [...document.querySelectorAll("main *")].filter((one) => {
    if (one.closest(".scroll, pre, .skip, canvas") || !one.checkVisibility()) return false;
    const {left, right, width} = one.getBoundingClientRect();
    return width && (right > innerWidth + 1 || left < -1);
  });
  const cells = [...document.querySelectorAll(".stack td")];
  const clipped = cells.filter((one) => one.scrollWidth > one.clientWidth + 1);
  const sideways = document.documentElement.scrollWidth > innerWidth ? ["the page"] : [];
  return [...sideways, ...[...beyond, ...clipped].map((one) => one.outerHTML.slice(0, 120))];
"""
"""What reaches beyond the screen, but for what scrolls in a frame of its own; and cells that are cut off."""

TEXTS = """
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].filter((node) => node.nodeType === 3);
    const text = own.map((node) => node.data.trim()).join("");
    if (!text || !one.checkVisibility() || one.closest(".skip, script, noscript, option")) continue;
    let behind = "rgba(0, 0, 0, 0)";
    for (let at = one; at && behind === "rgba(0, 0, 0, 0)"; at = at.parentElement)
      behind = getComputedStyle(at).backgroundColor;
    found.push([text.slice(0, 40), getComputedStyle(one).color, behind]);
  }
  return found;
"""
"""Every text that is seen, with its colour and what lies behind it."""


def contrast(colour: str, behind: str) -> float:
    """The contrast of two colours, as WCAG counts it."""
    a, b = sorted((luminance(colour), luminance(behind)))
    return (b + 0.05) / (a + 0.05)


def luminance(colour: str) -> float:
    parts = [float(one) / 255 for one in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
