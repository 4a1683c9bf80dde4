"""The pages by plain HTTP: who may use them, what they say, and that they add no rules of their own."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import httpx
import llm_metering
import pytest
from llm_metering.sandbox import create_app
from llm_metering.sandbox.pages import DONE

PACKAGE = Path(llm_metering.__file__).parent / "sandbox"
METER = {"display_name": "Hypernian tokens", "event_name": "hypernian_tokens", "formula": "sum"}


def made(http: httpx.Client, path: str, **form: str | list[str]) -> str:
    """The id of what a form made."""
    answer = http.post(path, data=form)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"].split("/")[2].partition("?")[0]


def meters(sandbox) -> list[str]:
    return [one.event_name for one in sandbox.client().v1.billing.meters.list().data]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {},
    ],
)
def test_a_form_from_any_other_page_is_refused(sandbox, headers):
    answer = httpx.post(f"{sandbox.url}/meters", data=METER, headers=headers)
    assert answer.status_code == 403
    assert meters(sandbox) == []


def test_a_form_of_the_page_itself_is_taken(sandbox, http):
    assert http.post("/meters", data=METER).status_code == 303
    own = {"Sec-Fetch-Site": "same-origin"}
    other = {**METER, "event_name": "other"}
    assert httpx.post(f"{sandbox.url}/meters", data=other, headers=own).status_code == 303
    assert meters(sandbox) == ["other", "hypernian_tokens"]


def test_a_page_elsewhere_cannot_use_the_sandboxs_own_api_either(sandbox, http):
    http.post("/meters", data=METER)
    foreign = {"Origin": "http://elsewhere.example"}
    assert httpx.post(f"{sandbox.url}/_sandbox/reset", headers=foreign).status_code == 403
    assert meters(sandbox) == ["hypernian_tokens"]
    assert httpx.post(f"{sandbox.url}/_sandbox/reset").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("elsewhere.example", 403),
        ("127.0.0.1.nip.example:80", 403),
        ("localhost", 200),
        ("sandbox", 200),
        ("[::1]", 200),
    ],
)
def test_a_public_name_that_points_here_sees_nothing(sandbox, host, status):
    assert httpx.get(f"{sandbox.url}/", headers={"Host": host}).status_code == status


def test_pages_forbid_everything_from_elsewhere(http):
    for path in ("/", "/meters/new", "/static/page.js", "/no-such"):
        answer = http.get(path)
        if path == "/no-such":
            assert answer.json()["error"]["message"]  # the API's
            continue
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
    text = "\n".join(path.read_text(encoding="utf-8") for path in (PACKAGE / "templates").glob("*.html"))
    assert re.findall(r"""(?:src|href|action)=["'](?:https?:)?//""", text) == []
    assert re.findall(r"<script(?![^>]*src=)|\sstyle=|\son\w+=", text) == []


def test_what_was_typed_is_text_and_never_markup(sandbox, http):
    evil = "<script>alert(1)</script>\"'><img src=x>"
    customer = made(http, "/customers", name=evil)
    meter = made(http, "/meters", **{**METER, "display_name": evil})
    http.post(f"/meters/{meter}/usage", data={"customer": customer, "value": "1", "dimensions": f"a={evil}"})
    refused = http.post("/meters", data={**METER, "display_name": evil})
    assert refused.status_code == 400
    pages = [f"/customers/{customer}", f"/meters/{meter}", "/customers", "/meters", f"/meters/{meter}/usage"]
    pages += ["/subscriptions/new", f"/events?type={evil}", "/?done=<script>", f"/meters/try?sample={evil}"]
    for text in [refused.text, *(http.get(page).text for page in pages)]:
        assert "<script>alert" not in text
        assert "<img src=x" not in text


def test_without_jinja_the_page_says_what_to_install_and_the_api_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    app = create_app()

    async def ask() -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://localhost"
        ) as client:
            key = {"Authorization": "Bearer sk_test_a"}
            return await client.get("/"), await client.get("/v1/customers", headers=key)

    page, api = asyncio.run(ask())
    app.close()
    assert page.status_code == 501
    assert "pip install 'llm_metering[sandbox]'" in page.text
    assert api.status_code == 200


def test_amounts_are_typed_in_whole_units_and_refused_by_the_api_alone(sandbox, http):
    meter = made(http, "/meters", **METER)
    price = {"name": "P", "usage_type": "metered", "scheme": "per_unit", "meter": meter, "interval": "month"}
    for typed, currency, kept in (("0.04", "usd", "4"), ("0.0001", "usd", "0.01"), ("4", "jpy", "4")):
        made(http, "/products", **price, amount=typed, currency=currency)
        [newest] = sandbox.client().v1.prices.list({"limit": 1}).data
        assert (str(newest.unit_amount_decimal), newest.currency) == (kept, currency)
    for typed, told in (
        ("much", "Invalid decimal: much"),
        ("-1", "greater than or equal to 0"),
        ("", "Invalid"),
    ):
        answer = http.post("/products", data={**price, "amount": typed, "currency": "usd"})
        assert answer.status_code == 400
        assert told in answer.text
        assert 'name="name" type="text" value="P"' in answer.text
    assert len(sandbox.client().v1.products.list().data) == 3


def test_a_volume_price_and_an_hourly_meter_are_made_as_they_were_typed(sandbox, http):
    meter = made(http, "/meters", **METER, event_time_window="hour", value_key="tokens")
    found = sandbox.client().v1.billing.meters.retrieve(meter)
    assert (found.event_time_window, found.value_settings.event_payload_key) == ("hour", "tokens")
    tiers = {"tier_up_to": ["1,000", "", ""], "tier_unit": ["0.05", "0.04", ""], "tier_flat": ["1", "", ""]}
    made(
        http, "/products", name="P", usage_type="metered", scheme="volume", meter=meter, currency="usd",
        interval="month", **tiers,
    )  # fmt: skip
    [price] = sandbox.client().v1.prices.list({"expand": ["data.tiers"]}).data
    assert price.tiers_mode == "volume"
    assert [(t.up_to, t.unit_amount, t.flat_amount) for t in price.tiers] == [(1000, 5, 100), (None, 4, None)]


def test_a_customer_without_a_card_gets_stripes_refusal_and_what_to_do(http):
    customer = made(http, "/customers", name="J", card="")
    made(http, "/products", name="Fee", usage_type="licensed", fee="100", currency="usd", interval="month")
    price = re.findall(r"price_\w+", http.get("/subscriptions/new").text)[0]
    form = {"customer": customer, "price": price, f"quantity_{price}": "2", "mode": "flexible"}
    refused = http.post("/subscriptions", data={**form, "collection": "charge_automatically"})
    assert refused.status_code == 400
    assert "This customer has no attached payment source" in refused.text
    assert "Send an invoice" in refused.text
    subscription = made(
        http, "/subscriptions", **form, collection="send_invoice", days_until_due="30", start=""
    )
    page = http.get(f"/subscriptions/{subscription}").text
    assert "$200.00" in page
    assert "due in 30 days" in page


def test_other_accounts_can_be_looked_at_once_they_hold_something(sandbox, http):
    assert 'name="account"' not in http.get("/").text
    sandbox.client().v1.customers.create({"name": "Mine"})
    sandbox.client("sk_test_other").v1.customers.create({"name": "Theirs"})
    page = http.get("/customers").text
    assert "Mine" in page
    assert "Theirs" not in page
    [_, theirs] = re.findall(r'<option value="(acct_\w+:test)"', page)
    http.post("/account", data={"account": theirs})
    page = http.get("/customers").text
    assert "Theirs" in page
    assert "Mine" not in page


def test_a_lone_account_is_shown_whatever_its_key(sandbox, http):
    sandbox.client("sk_test_only").v1.customers.create({"name": "Somebody"})
    assert "Somebody" in http.get("/customers").text


def test_webhooks_are_added_and_their_secret_is_shown_once(sandbox, http):
    answer = http.post("/webhooks", data={"url": "http://127.0.0.1:9/hook", "events": "invoice.paid, *"})
    [secret] = re.findall(r"whsec_\w+", answer.text)
    assert secret not in http.get("/webhooks").text
    [endpoint] = sandbox.client().v1.webhook_endpoints.list().data
    assert endpoint.enabled_events == ["invoice.paid", "*"]
    assert http.post(f"/webhooks/{endpoint.id}/delete").status_code == 303
    assert sandbox.client().v1.webhook_endpoints.list().data == []


def test_faults_are_added_and_cleared_and_spare_the_pages(sandbox, http):
    http.post("/faults", data={"kind": "500_before", "path": "/*", "forever": "on"})
    assert "500_before;path=/*;count=forever" in http.get("/faults").text
    [fault] = sandbox.app.faults.waiting()
    assert (fault.count, fault.match.method) == (None, None)
    assert http.post("/faults", data={"kind": "slow", "seconds": "soon"}).status_code == 400
    assert http.post("/meters", data=METER).status_code == 303
    http.post("/faults/clear")
    assert sandbox.app.faults.waiting() == []


def test_rate_limits_neither_meet_the_pages_nor_count_them(sandbox, http):
    sandbox.set_switches(rate_limits=True)
    try:
        for _ in range(10):
            assert http.get("/subscriptions/new").status_code == 200
        assert sandbox.client(max_network_retries=0).v1.customers.list().data == []
    finally:
        sandbox.set_switches(rate_limits=False)


def test_life_goes_on_by_the_buttons(sandbox, http):
    customer = made(http, "/customers", name="J", card="pm_card_visa")
    made(http, "/products", name="Fee", usage_type="licensed", fee="100", currency="usd", interval="month")
    price = re.findall(r"price_\w+", http.get("/subscriptions/new").text)[0]
    subscription = made(http, "/subscriptions", customer=customer, price=price, mode="flexible")
    api = sandbox.client().v1
    http.post(f"/subscriptions/{subscription}/cancel", data={"when": "end"})
    assert api.subscriptions.retrieve(subscription).cancel_at_period_end is True
    http.post(f"/subscriptions/{subscription}/cancel", data={"when": "keep"})
    assert api.subscriptions.retrieve(subscription).cancel_at_period_end is False
    http.post(f"/subscriptions/{subscription}/cancel", data={"when": "now"})
    assert api.subscriptions.retrieve(subscription).status == "canceled"
    http.post(f"/prices/{price}/archive")
    assert api.prices.retrieve(price).active is False
    http.post(f"/customers/{customer}/delete")
    assert http.get(f"/customers/{customer}").status_code == 404
    http.post("/reset")
    assert "None yet" in http.get("/").text


@pytest.mark.parametrize("path", ["/meters/none", "/products/none", "/customers/none", "/subscriptions/none"])
def test_what_is_not_there_is_told_in_stripes_words(http, path):
    answer = http.get(path)
    assert answer.status_code == 404
    assert "No such " in answer.text
    assert http.get("/meters/a/b/c").status_code == 404


def test_every_sentence_after_a_step_is_one_of_ours(http):
    assert all(DONE[key] in http.get(f"/?done={key}").text for key in DONE)


def test_the_charting_library_ships_with_its_licence():
    assert (PACKAGE / "static/chart.umd.min.js").read_text(encoding="utf-8").startswith("/*!\n * Chart.js v")
    assert "The MIT License" in (PACKAGE / "static/chart.LICENSE.md").read_text(encoding="utf-8")


def test_a_subscription_can_start_with_a_trial_and_a_coupon(sandbox, http):
    api = sandbox.client().v1
    api.coupons.create({"percent_off": 25, "duration": "once", "name": "Friends"})
    meter = made(http, "/meters", **METER)
    price = {"name": "Usage", "meter": meter, "scheme": "per_unit", "amount": "0.04", "usage_type": "metered"}
    made(http, "/products", **price)
    customer = made(http, "/customers", name="John Doe")
    assert "Friends: 25% off, once" in http.get("/subscriptions/new").text
    [coupon], [listed] = api.coupons.list().data, api.prices.list().data
    form = {"customer": customer, "price": listed.id, "trial": "14", "coupon": coupon.id}
    subscription = made(http, "/subscriptions", **form)
    page = http.get(f"/subscriptions/{subscription}").text
    for said in ("trialing", "Trial ends", "Friends: 25% off, once"):
        assert said in page
    api.subscriptions.update(subscription, {"trial_end": "now", "pause_collection": {"behavior": "void"}})
    event = {"stripe_customer_id": customer, "value": "1000"}
    api.billing.meter_events.create({"event_name": "hypernian_tokens", "payload": event})
    assert "Collection paused" in http.get(f"/subscriptions/{subscription}").text
    invoice = http.get(f"/subscriptions/{subscription}/upcoming").text
    assert re.search(r"Discount</th><td class=\"num\">-\$10.00", invoice)
    assert "$30.00 USD" in invoice
