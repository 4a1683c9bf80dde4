"""Whatever becomes of a subscription, its usage stands on its invoices once, and each invoice adds up."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from llm_metering.sandbox import create_app
from llm_metering.sandbox.wire import Request

START = 1_768_478_400
DAY = 86_400
KEY = {b"authorization": b"Bearer sk_test_x"}
STARTS = (
    {},
    {"trial_period_days": "10"},
    {"billing_cycle_anchor_config[day_of_month]": "31"},
    {"billing_cycle_anchor_config[day_of_month]": "1", "proration_behavior": "none"},
    {"backdate_start_date": str(START - 40 * DAY)},
)


class Lives(RuleBasedStateMachine):
    """One customer, one subscription of usage at a cent a token and of a licence."""

    @initialize(start=st.sampled_from(STARTS))
    def begin(self, start):
        self.time = float(START)
        self.app = create_app(now=lambda: self.time, seed=1)
        meter = self.post("/v1/billing/meters", **{
            "display_name": "T", "event_name": "tokens", "default_aggregation[formula]": "sum",
        })  # fmt: skip
        metered = {"recurring[usage_type]": "metered", "recurring[meter]": meter["id"], "unit_amount": "1"}
        self.prices = [self.price(**metered) for _ in range(2)]
        self.licence = self.price(unit_amount="999")
        self.customer = self.post("/v1/customers")["id"]
        self.subscription = self.post(
            "/v1/subscriptions",
            **{
                "customer": self.customer,
                "items[0][price]": self.prices[0],
                "items[1][price]": self.licence,
                "collection_method": "send_invoice",
                "days_until_due": "7",
                **start,
            },
        )["id"]
        self.used = 0

    def teardown(self):
        if hasattr(self, "app"):
            self.finish()
            self.app.close()

    def price(self, **form):
        shared = {"currency": "usd", "recurring[interval]": "month", "product_data[name]": "T"}
        return self.post("/v1/prices", **shared, **form)["id"]

    def answer(self, method, path, form):
        query, body = ("", urlencode(form).encode()) if method == "POST" else (urlencode(form), b"")
        answer = self.app.service.answer(Request(method, path, query, KEY, body))
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    def post(self, path, **form):
        return self.answer("POST", path, form)

    def get(self, path, **form):
        return self.answer("GET", path, form)

    def now(self):
        return self.get(f"/v1/subscriptions/{self.subscription}")

    def alive(self):
        return self.now()["status"] != "canceled"

    def change(self, **form):
        return self.post(f"/v1/subscriptions/{self.subscription}", **form)

    @rule(tokens=st.integers(1, 1000))
    def use(self, tokens):
        status = self.now()["status"]
        form = {"event_name": "tokens", "payload[stripe_customer_id]": self.customer}
        self.post("/v1/billing/meter_events", **form, **{"payload[value]": str(tokens)})
        self.used += tokens if status == "active" else 0

    @rule(seconds=st.integers(1, 3600) | st.integers(1, 40).map(lambda days: days * DAY))
    def wait(self, seconds):
        self.time += seconds

    @precondition(lambda self: self.alive())
    @rule(behavior=st.sampled_from(["", "void", "mark_uncollectible", "keep_as_draft"]))
    def pause(self, behavior):
        self.change(**({"pause_collection[behavior]": behavior} if behavior else {"pause_collection": ""}))

    @precondition(lambda self: self.alive())
    @rule(at_end=st.booleans())
    def plan_the_end(self, at_end):
        self.change(cancel_at_period_end="true" if at_end else "false")

    @precondition(lambda self: self.alive())
    @rule()
    def swap(self):
        [item] = [one for one in self.now()["items"]["data"] if one["price"]["id"] in self.prices]
        [other] = [one for one in self.prices if one != item["price"]["id"]]
        self.change(**{"items[0][id]": item["id"], "items[0][price]": other})

    @precondition(lambda self: self.alive())
    @rule(seats=st.integers(0, 4), at_once=st.booleans())
    def reseat(self, seats, at_once):
        [item] = [one for one in self.now()["items"]["data"] if one["price"]["id"] == self.licence]
        how = "always_invoice" if at_once else "create_prorations"
        self.change(**{"items[0][id]": item["id"], "items[0][quantity]": seats, "proration_behavior": how})

    @precondition(lambda self: self.alive())
    @rule(duration=st.sampled_from(["once", "forever"]), percent=st.integers(1, 100))
    def discount(self, duration, percent):
        coupon = self.post("/v1/coupons", percent_off=str(percent), duration=duration)["id"]
        self.change(**{"discounts[0][coupon]": coupon})

    @precondition(lambda self: self.now()["status"] == "trialing")
    @rule()
    def end_the_trial(self):
        self.change(trial_end="now")

    def finish(self):
        """End the life, and look at all that was billed for."""
        if self.alive():
            self.answer("DELETE", f"/v1/subscriptions/{self.subscription}", {"invoice_now": "true"})
        self.time += 2 * 3600
        billed = 0
        for invoice in self.get("/v1/invoices", limit="100")["data"]:
            lines = self.get(f"/v1/invoices/{invoice['id']}/lines", limit="100")
            assert not lines["has_more"]
            self.check(invoice, lines["data"])
            billed += sum(line["amount"] for line in lines["data"] if self.is_usage(line))
        assert billed == self.used

    def is_usage(self, line):
        return line["pricing"]["price_details"]["price"] in self.prices

    def check(self, invoice, lines):
        """An invoice adds up, and so do its discounts."""
        less = sum(one["amount"] for one in invoice["total_discount_amounts"])
        assert invoice["subtotal"] == sum(line["amount"] for line in lines)
        assert less == sum(one["amount"] for line in lines for one in line["discount_amounts"])
        assert invoice["total"] == invoice["subtotal"] - less
        assert 0 <= less <= max(0, invoice["subtotal"])


Lives.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
test_all_that_is_used_is_billed_once = Lives.TestCase
