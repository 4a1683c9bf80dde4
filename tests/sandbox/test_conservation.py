"""Whatever comes in, in whatever order and by whatever way: counted once, and billed as counted."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from math import ceil
from urllib.parse import urlencode

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from llm_metering.sandbox import create_app
from llm_metering.sandbox.wire import Request

START = 1_768_478_400
KEY = {b"authorization": b"Bearer sk_test_x"}
values = st.integers(-50, 5000).map(str) | st.decimals(0, 100, places=3, allow_nan=False).map(str)
identifiers = st.integers(0, 30).map(str)
customers = st.integers(0, 2)


class Books(RuleBasedStateMachine):
    """A model that knows what it sent, beside a sandbox."""

    @initialize()
    def open(self):
        self.time = float(START)
        self.app = create_app(now=lambda: self.time, seed=1)
        meter = self.call(
            "/v1/billing/meters",
            **{
                "display_name": "T",
                "event_name": "tokens",
                "default_aggregation[formula]": "sum",
            },
        )
        price = self.call(
            "/v1/prices",
            **{
                "currency": "usd",
                "unit_amount": "4",
                "transform_quantity[divide_by]": "100",
                "transform_quantity[round]": "up",
                "recurring[interval]": "month",
                "recurring[usage_type]": "metered",
                "recurring[meter]": meter["id"],
                "product_data[name]": "T",
            },
        )
        self.customers = [self.call("/v1/customers")["id"] for _ in range(3)]
        self.subscriptions = [
            self.call("/v1/subscriptions", **{"customer": one, "items[0][price]": price["id"]})["id"]
            for one in self.customers
        ]
        self.standing: dict[str, tuple[int, Decimal]] = {}
        self.seen: set[str] = set()

    def teardown(self):
        self.app.close()

    def answer(self, path, body, **headers):
        request = Request("POST", path, "", {**KEY, **headers}, body)
        answer = self.app.service.answer(request)
        return answer.status, json.loads(answer.body)

    def call(self, path, **form):
        status, body = self.answer(path, urlencode(form).encode())
        assert status == 200, body
        return body

    def note(self, identifier, customer, value):
        if identifier not in self.seen:
            self.seen.add(identifier)
            self.standing[identifier] = (customer, Decimal(value))

    @rule(identifier=identifiers, customer=customers, value=values)
    def send_v1(self, identifier, customer, value):
        form = {
            "event_name": "tokens",
            "identifier": identifier,
            "payload[stripe_customer_id]": self.customers[customer],
            "payload[value]": value,
        }
        status, _ = self.answer("/v1/billing/meter_events", urlencode(form).encode())
        assert status == (400 if identifier in self.seen else 200)
        self.note(identifier, customer, value)

    @rule(identifier=identifiers, customer=customers, value=values)
    def send_v2(self, identifier, customer, value):
        event = self.event(identifier, customer, value)
        status, _ = self.answer("/v2/billing/meter_events", json.dumps(event).encode())
        assert status == (400 if identifier in self.seen else 200)
        self.note(identifier, customer, value)

    @rule(events=st.lists(st.tuples(identifiers, customers, values), min_size=1, max_size=8))
    def send_stream(self, events):
        _, session = self.answer("/v2/billing/meter_event_session", b"{}")
        body = json.dumps({"events": [self.event(*one) for one in events]}).encode()
        token = session["authentication_token"].encode()
        request = Request(
            "POST", "/v2/billing/meter_event_stream", "", {b"authorization": b"Bearer " + token}, body
        )
        assert self.app.service.answer(request).status == 200
        for one in events:
            self.note(*one)

    @rule(identifier=identifiers)
    def cancel(self, identifier):
        form = {"event_name": "tokens", "type": "cancel", "cancel[identifier]": identifier}
        status, _ = self.answer("/v1/billing/meter_event_adjustments", urlencode(form).encode())
        assert status == (200 if identifier in self.standing else 400)
        self.standing.pop(identifier, None)

    @rule(delay=st.sampled_from([0, 30]))
    def lag(self, delay):
        self.app.set_switches(aggregation_delay_s=delay)

    @rule(seconds=st.integers(0, 60))
    def wait(self, seconds):
        self.time += seconds

    @invariant()
    def books_hold_what_was_accepted(self):
        for n, customer in enumerate(self.customers):
            wanted = [value for who, value in self.standing.values() if who == n]
            assert self.app.books().total(customer=customer) == sum(wanted)
            assert self.app.books().events(customer=customer) == len(wanted)

    @rule()
    def once_settled_the_previews_bill_it(self):
        self.app.settle()
        for n, subscription in enumerate(self.subscriptions):
            used = sum((Fraction(value) for who, value in self.standing.values() if who == n), Fraction(0))
            invoice = self.call("/v1/invoices/create_preview", subscription=subscription)
            assert invoice["total"] == ceil(max(used, 0) / 100) * 4

    def event(self, identifier, customer, value):
        payload = {"stripe_customer_id": self.customers[customer], "value": value}
        return {"event_name": "tokens", "identifier": identifier, "payload": payload}


Books.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_every_event_is_counted_once_and_billed_as_counted = Books.TestCase
