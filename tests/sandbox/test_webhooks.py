"""Error reports, thin events and snapshots, and webhooks: signed, delivered, delivered again."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
import stripe

START = 1_768_478_400
SECRET = "webhook_endpoint.signing_secret"
URL = "webhook_endpoint.url"
ERRORS = "v1.billing.meter.error_report_triggered"
NO_METER = "v1.billing.meter.no_meter_found"


class Receiver:
    """A webhook endpoint that notes what it gets."""

    def __init__(self):
        self.got: list[tuple[bytes, str]] = []
        self.statuses: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((body, self.headers["Stripe-Signature"]))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?a=b"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def wait(self, count):
        deadline = time.monotonic() + 10
        while len(self.got) < count:
            assert time.monotonic() < deadline, f"{len(self.got)} of {count} came"
            time.sleep(0.01)


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def client(sandbox, checked):
    return sandbox.client(http_client=checked)


@pytest.fixture
def thin(client, receiver):
    """An event destination for thin events."""
    return client.v2.core.event_destinations.create(
        {
            "name": "errors",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": [ERRORS, NO_METER],
            "webhook_endpoint": {"url": receiver.url},
            "include": [SECRET, URL],
        }
    )


@pytest.fixture
def snapshots(client, receiver):
    """A webhook endpoint for snapshots."""
    return client.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["*"]})


def reports(client):
    listed = client.v2.core.events.list().data
    return [client.v2.core.events.retrieve(event.id) for event in listed]


def test_unusable_events_are_reported_once_the_window_is_over(shop, client, clock):
    shop.use("abc", identifier="bad-1")
    shop.use("1", identifier="good")
    shop.use("x", identifier="bad-2")
    shop.use("1", customer="cus_unknown", identifier="bad-3")
    assert reports(client) == []
    clock.time += 10
    [event] = reports(client)
    assert event.type == ERRORS
    assert event.related_object.id == shop.meter.id
    assert event.related_object.url == f"/v1/billing/meters/{shop.meter.id}"
    assert event.data.developer_message_summary == "There are 3 invalid events"
    assert event.data.reason.error_count == 3
    by_code = {one.code: one for one in event.data.reason.error_types}
    assert by_code["meter_event_invalid_value"].error_count == 2
    samples = by_code["meter_event_invalid_value"].sample_errors
    assert [one.request.identifier for one in samples] == ["bad-1", "bad-2"]
    assert by_code["meter_event_customer_not_found"].error_count == 1
    assert event.data.validation_start == "2026-01-15T12:00:00.000Z"
    assert event.data.validation_end == "2026-01-15T12:00:10.000Z"


def test_one_error_is_told_in_the_singular(shop, client, sandbox):
    shop.use("abc")
    sandbox.settle()
    [event] = reports(client)
    assert event.data.developer_message_summary == "There is 1 invalid event"


def test_a_report_names_at_most_3_samples_of_a_code(shop, client, sandbox):
    for _ in range(5):
        shop.use("abc")
    sandbox.settle()
    [event] = reports(client)
    [kind] = event.data.reason.error_types
    assert (kind.error_count, len(kind.sample_errors)) == (5, 3)


def test_the_number_of_samples_can_be_switched(shop, client, sandbox):
    sandbox.set_switches(error_samples=1)
    shop.use("abc")
    shop.use("abc")
    sandbox.settle()
    [kind] = reports(client)[0].data.reason.error_types
    assert (kind.error_count, len(kind.sample_errors)) == (2, 1)


def test_each_window_and_meter_has_its_own_report(shop, client, clock):
    other = shop.api.billing.meters.create(
        {"display_name": "O", "event_name": "other", "default_aggregation": {"formula": "sum"}}
    )
    shop.use("abc")
    shop.api.billing.meter_events.create(
        {"event_name": "other", "payload": {"stripe_customer_id": shop.customer.id, "value": "abc"}}
    )
    shop.api.customers.list()
    clock.time += 10
    shop.use("abc")
    shop.api.customers.list()
    clock.time += 10
    related = [event.related_object.id for event in reports(client)]
    assert sorted(related) == sorted([shop.meter.id, shop.meter.id, other.id])


def test_an_error_is_reported_only_once(shop, client, sandbox, clock):
    shop.use("abc")
    sandbox.settle()
    sandbox.settle()
    clock.time += 60
    assert len(reports(client)) == 1


def test_events_without_a_meter_are_reported_without_a_related_object(client, sandbox):
    session = client.v2.billing.meter_event_session.create()
    client.v2.billing.meter_event_stream.create(
        {"events": [{"event_name": "unknown", "payload": {"value": "1"}, "identifier": "lost"}]},
        {"api_key": session.authentication_token},
    )
    sandbox.settle()
    [event] = reports(client)
    assert (event.type, event.related_object) == (NO_METER, None)
    [kind] = event.data.reason.error_types
    assert (kind.code, kind.sample_errors[0].request.identifier) == ("no_meter", "lost")


def test_the_window_can_be_switched(shop, client, sandbox, clock):
    sandbox.set_switches(error_window_s=60)
    shop.use("abc")
    shop.api.customers.list()
    clock.time += 59
    assert reports(client) == []
    clock.time += 1
    assert len(reports(client)) == 1


def test_events_are_listed_by_type_object_and_time(shop, client, sandbox, clock):
    shop.use("abc")
    sandbox.settle()
    listed = client.v2.core.events.list
    assert len(listed({"types": [ERRORS]}).data) == 1
    assert listed({"types": [NO_METER]}).data == []
    assert len(listed({"object_id": shop.meter.id}).data) == 1
    assert listed({"object_id": "mtr_x"}).data == []
    assert listed({"created": {"gt": "2026-01-15T12:00:00Z"}}).data == []
    assert len(listed({"created": {"gte": "2026-01-15T12:00:00Z"}}).data) == 1


def test_v2_lists_page_by_their_next_url(shop, client, sandbox):
    for _ in range(5):
        shop.use("abc")
        sandbox.settle()
    found = list(client.v2.core.events.list({"limit": 2}).auto_paging_iter())
    assert len({event.id for event in found}) == 5


def test_thin_events_are_kept_for_30_days(shop, client, sandbox, clock, refused):
    shop.use("abc")
    sandbox.settle()
    [event] = client.v2.core.events.list().data
    assert "data" not in event.to_dict(), "a list shows them as they were delivered"
    clock.time += 30 * 86_400 - 1
    assert client.v2.core.events.retrieve(event.id).data
    clock.time += 1
    assert client.v2.core.events.list().data == []
    assert refused(client.v2.core.events.retrieve, event.id).http_status == 404


def test_an_unknown_event_gets_404(client, refused):
    assert refused(client.v2.core.events.retrieve, "evt_x").http_status == 404


def test_a_thin_event_is_delivered_signed_and_without_data(shop, client, sandbox, thin, receiver):
    shop.use("abc", identifier="bad")
    sandbox.settle()
    receiver.wait(1)
    [(body, header)] = receiver.got
    assert "data" not in json.loads(body)
    notification = client.parse_event_notification(body, header, thin.webhook_endpoint.signing_secret)
    assert notification.type == ERRORS
    assert notification.fetch_related_object().id == shop.meter.id
    event = notification.fetch_event()
    [kind] = event.data.reason.error_types
    assert kind.sample_errors[0].request.identifier == "bad"


def test_errors_reach_a_listener_without_any_further_request(shop, sandbox, thin, receiver):
    sandbox.set_switches(error_window_s=0)
    shop.use("abc")
    receiver.wait(1)


def test_a_snapshot_is_delivered_signed_with_its_object(client, snapshots, receiver):
    customer = client.v1.customers.create({"name": "John Doe"})
    receiver.wait(1)
    [(body, header)] = receiver.got
    event = client.construct_event(body, header, snapshots.secret)
    assert (event.type, event.data.object.id) == ("customer.created", customer.id)
    assert client.v1.events.retrieve(event.id).data.object.name == "John Doe"


def test_each_parser_refuses_the_others_payload(shop, client, sandbox, thin, snapshots, receiver):
    shop.use("abc")
    sandbox.settle()
    client.v1.customers.create({})
    receiver.wait(2)
    for body, header in receiver.got:
        if json.loads(body)["object"] == "v2.core.event":
            with pytest.raises(ValueError):
                client.construct_event(body, header, thin.webhook_endpoint.signing_secret)
        else:
            with pytest.raises(ValueError):
                client.parse_event_notification(body, header, snapshots.secret)


def test_a_wrong_secret_does_not_verify(client, snapshots, receiver):
    client.v1.customers.create({})
    receiver.wait(1)
    [(body, header)] = receiver.got
    with pytest.raises(stripe.SignatureVerificationError):
        client.construct_event(body, header, "whsec_other")
    with pytest.raises(stripe.SignatureVerificationError):
        client.construct_event(body + b" ", header, snapshots.secret)


def test_a_webhook_that_is_not_taken_is_sent_again_with_the_same_event(
    client, sandbox, snapshots, receiver, clock
):
    receiver.statuses = [500, 302]
    client.v1.customers.create({})
    receiver.wait(1)
    assert sandbox.deliver_webhooks() == 0
    assert sandbox.deliver_webhooks() == 1
    assert sandbox.deliver_webhooks() == 0
    assert len({json.loads(body)["id"] for body, _ in receiver.got}) == 1
    assert len(receiver.got) == 3


def noted(sandbox, attempts):
    """Wait until the sandbox has written down so many attempts of its one delivery."""
    deadline = time.monotonic() + 10
    while True:
        with sandbox.app.store.lock:
            [(made,)] = sandbox.app.store.db.execute("SELECT attempts FROM delivery").fetchall()
        if made == attempts:
            return
        assert time.monotonic() < deadline, f"{made} of {attempts} attempts"
        time.sleep(0.01)


def test_retries_wait_longer_each_time(client, sandbox, snapshots, receiver, clock):
    receiver.statuses = [500, 500]
    client.v1.customers.create({})
    noted(sandbox, 1)
    clock.time += 4.9
    time.sleep(0.3)
    assert len(receiver.got) == 1
    clock.time += 0.1
    noted(sandbox, 2)
    clock.time += 9.9
    time.sleep(0.3)
    assert len(receiver.got) == 2
    clock.time += 0.1
    noted(sandbox, 3)
    assert len(receiver.got) == 3


def test_a_webhook_is_given_up_after_so_many_attempts(client, sandbox, snapshots, receiver):
    sandbox.set_switches(webhook_attempts=2)
    receiver.statuses = [500] * 5
    client.v1.customers.create({})
    receiver.wait(1)
    sandbox.deliver_webhooks()
    sandbox.deliver_webhooks()
    assert len(receiver.got) == 2


def test_an_endpoint_that_is_gone_harms_nobody(client, sandbox, snapshots, receiver):
    client.v1.webhook_endpoints.update(snapshots.id, {"url": "http://127.0.0.1:1/nowhere"})
    client.v1.customers.create({})
    assert sandbox.deliver_webhooks() == 0


def test_a_webhook_can_be_lost_or_sent_twice(client, sandbox, snapshots, receiver):
    sandbox.fault("webhook_lost")
    client.v1.customers.create({"name": "lost"})
    sandbox.deliver_webhooks()
    deadline = time.monotonic() + 5
    while sandbox.app.faults and time.monotonic() < deadline:
        time.sleep(0.01)
    sandbox.fault("webhook_twice")
    client.v1.customers.create({"name": "twice"})
    receiver.wait(2)
    names = [json.loads(body)["data"]["object"]["name"] for body, _ in receiver.got]
    assert names == ["twice", "twice"]
    assert len(client.v1.events.list({"type": "customer.created"}).data) == 2


def test_endpoints_get_what_they_asked_for(client, receiver, sandbox):
    client.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["product.created"]})
    client.v1.customers.create({})
    client.v1.products.create({"name": "P"})
    receiver.wait(1)
    sandbox.deliver_webhooks()
    assert [json.loads(body)["type"] for body, _ in receiver.got] == ["product.created"]


def test_a_disabled_endpoint_gets_nothing(client, receiver, sandbox, snapshots):
    client.v1.webhook_endpoints.update(snapshots.id, {"disabled": True})
    client.v1.customers.create({})
    assert sandbox.deliver_webhooks() == 0
    assert receiver.got == []


def test_the_secret_of_an_endpoint_shows_only_at_its_creation(client, snapshots):
    assert snapshots.secret.startswith("whsec_")
    assert "secret" not in client.v1.webhook_endpoints.retrieve(snapshots.id).to_dict()
    [listed] = client.v1.webhook_endpoints.list().data
    assert "secret" not in listed.to_dict()
    assert client.v1.webhook_endpoints.delete(snapshots.id).deleted
    assert client.v1.webhook_endpoints.list().data == []


def test_a_destination_shows_url_and_secret_only_when_asked(client, thin, receiver):
    assert thin.webhook_endpoint.url == receiver.url
    plain = client.v2.core.event_destinations.retrieve(thin.id)
    assert (plain.webhook_endpoint.url, plain.webhook_endpoint.signing_secret) == (None, None)
    shown = client.v2.core.event_destinations.retrieve(thin.id, {"include": [URL]})
    assert shown.webhook_endpoint.url == receiver.url


def test_destinations_are_listed_changed_disabled_enabled_and_deleted(client, thin, refused):
    destinations = client.v2.core.event_destinations
    assert [one.id for one in destinations.list().data] == [thin.id]
    changed = destinations.update(thin.id, {"name": "new", "description": "d"})
    assert (changed.name, changed.description) == ("new", "d")
    assert destinations.disable(thin.id).status == "disabled"
    assert refused(destinations.ping, thin.id).http_status == 400
    assert destinations.enable(thin.id).status == "enabled"
    assert destinations.delete(thin.id).id == thin.id
    assert destinations.list().data == []


def test_a_destination_can_be_pinged(client, receiver):
    made = client.v2.core.event_destinations.create(
        {
            "name": "all",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": ["*"],
            "webhook_endpoint": {"url": receiver.url},
        }
    )
    event = client.v2.core.event_destinations.ping(made.id)
    assert event.type == "v2.core.event_destination.ping"
    receiver.wait(1)
    assert json.loads(receiver.got[0][0])["related_object"]["id"] == made.id


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://x"])
def test_an_endpoint_needs_a_url(client, refused, url):
    create = client.v1.webhook_endpoints.create
    assert refused(create, {"url": url, "enabled_events": ["*"]}).param == "url"


def test_snapshot_events_tell_what_happened_to_objects(client):
    product = client.v1.products.create({"name": "P"})
    client.v1.products.update(product.id, {"name": "Q"})
    client.v1.products.delete(product.id)
    types = [event.type for event in client.v1.events.list().data]
    assert types == ["product.deleted", "product.updated", "product.created"]
    found = client.v1.events.list({"types": ["product.deleted", "customer.created"]}).data
    assert len(found) == 1


def test_webhooks_are_delivered_over_http_on_request(client, sandbox, snapshots, receiver):
    receiver.statuses = [500]
    client.v1.customers.create({})
    receiver.wait(1)
    answer = requests.post(f"{sandbox.url}/_sandbox/webhooks/deliver")
    assert answer.json() == {"delivered": 1}


def test_a_deletion_by_v2_is_replayed_under_its_key(client, thin, refused):
    """v2 deletes under an idempotency key, too: the answer that got lost is told again."""
    destinations = client.v2.core.event_destinations
    first = destinations.delete(thin.id, {}, {"idempotency_key": "gone"})
    again = destinations.delete(thin.id, {}, {"idempotency_key": "gone"})
    assert first.id == again.id == thin.id
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert refused(destinations.delete, thin.id, {}, {"idempotency_key": "another"}).http_status == 404


def test_an_endpoint_gets_snapshots_and_a_thin_destination_thin_events_though_both_ask_for_all(
    shop, client, sandbox, snapshots, receiver
):
    destination = {
        "name": "all",
        "type": "webhook_endpoint",
        "event_payload": "thin",
        "enabled_events": ["*"],
        "webhook_endpoint": {"url": receiver.url + "&thin"},
    }
    client.v2.core.event_destinations.create(destination)
    client.v1.customers.create({})
    shop.use("abc")
    sandbox.settle()
    sandbox.deliver_webhooks()
    kinds = sorted((json.loads(body)["object"], json.loads(body)["type"]) for body, _ in receiver.got)
    assert kinds == [("event", "customer.created"), ("v2.core.event", ERRORS)]
