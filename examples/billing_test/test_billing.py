from app import app
from llm_metering import billing
from llm_metering.testing import capture_usage
from starlette.testclient import TestClient


def test_a_summary_of_3000_tokens_costs_1_20(stripe_sandbox):
    stripe = stripe_sandbox.stripe
    customer = billing.create_customer(stripe, "John Doe")
    billing.subscribe(stripe, customer, billing.apply(billing.PayAsYouGo(), stripe))
    with capture_usage(sender=stripe_sandbox.sender()) as used, TestClient(app) as client:
        client.post("/summary", headers={"x-test-customer": customer})
        assert (used.total(customer=customer), len(used.events)) == (3000, 2)  # input, output
    stripe_sandbox.clock.move(days=31)
    [invoice] = stripe.v1.invoices.list({"customer": customer}).data
    assert invoice.total == 120
