"""Faults on demand, on real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time

import pytest
import requests
import stripe
from llm_metering.sandbox import parse_fault, shown_fault

EVENTS = "/v1/billing/meter_events"


@pytest.fixture
def raw(sandbox):
    """A plain connection, so that what a socket sees is seen."""
    made = []

    def post(form: str, path: str = EVENTS, timeout: float = 5, **headers: str):
        connection = http.client.HTTPConnection(sandbox.host, sandbox.port, timeout=timeout)
        made.append(connection)
        connection.request(
            "POST",
            path,
            form,
            {
                "Authorization": f"Bearer {sandbox.api_key}",
                "Content-Type": "application/x-www-form-urlencoded",
                **headers,
            },
        )
        return connection.getresponse()

    yield post
    for connection in made:
        connection.close()


@pytest.fixture
def form(shop):
    return (
        f"event_name=hypernian_tokens&identifier=one&payload[stripe_customer_id]={shop.customer.id}"
        "&payload[value]=7"
    )


def test_accept_then_hang_counts_the_event_and_never_answers(sandbox, raw, form):
    sandbox.fault("accept_then_hang", path=EVENTS)
    with pytest.raises(TimeoutError):
        raw(form, timeout=0.3)
    assert sandbox.books().total() == 7
    assert raw(form).status == 400  # the retry learns that it arrived


def test_a_hang_of_some_seconds_ends_in_a_reset(sandbox, raw, form):
    sandbox.fault("accept_then_hang", path=EVENTS, seconds=0.2)
    started = time.monotonic()
    with pytest.raises(ConnectionResetError):
        raw(form)
    assert time.monotonic() - started >= 0.2


def test_accept_then_reset_counts_the_event_and_resets_the_connection(sandbox, raw, form):
    sandbox.fault("accept_then_reset", path=EVENTS)
    with pytest.raises(ConnectionResetError):
        raw(form)
    assert sandbox.books().total() == 7


def test_500_before_does_nothing(sandbox, raw, form):
    sandbox.fault("500_before", path=EVENTS)
    assert raw(form).status == 500
    assert list(sandbox.books()) == []
    assert raw(form).status == 200


def test_500_after_counts_the_event(sandbox, raw, form):
    sandbox.fault("500_after", path=EVENTS)
    answer = raw(form)
    assert answer.status == 500
    assert json.loads(answer.read())["error"]["type"] == "api_error"
    assert sandbox.books().total() == 7


@pytest.mark.parametrize(
    ("kind", "status", "code", "header"),
    [
        ("429", 429, "rate_limit", ("Stripe-Rate-Limited-Reason", "endpoint-rate")),
        ("429_lock", 429, "lock_timeout", ("Stripe-Should-Retry", "true")),
        ("409", 409, None, None),
        ("401", 401, None, None),
        ("403", 403, None, None),
    ],
)
def test_refusals_do_nothing_and_look_like_stripes(sandbox, raw, form, kind, status, code, header):
    sandbox.fault(kind, path=EVENTS)
    answer = raw(form)
    error = json.loads(answer.read())["error"]
    assert (answer.status, error.get("code"), error["type"]) == (status, code, "invalid_request_error")
    assert header is None or answer.headers[header[0]] == header[1]
    assert list(sandbox.books()) == []


def test_the_sdk_sees_a_lock_clash_as_a_rate_limit_error(sandbox, shop, refused):
    sandbox.fault("429_lock", path=EVENTS)
    assert isinstance(refused(shop.use, 1), stripe.RateLimitError)


def test_a_fault_may_add_headers(sandbox, raw, form):
    sandbox.fault("429", path=EVENTS, headers={"Retry-After": "7"})
    assert raw(form).headers["Retry-After"] == "7"


def test_a_slow_answer_comes_late_and_whole(sandbox, raw, form):
    sandbox.fault("slow", path=EVENTS, seconds=0.2)
    started = time.monotonic()
    assert raw(form).status == 200
    assert time.monotonic() - started >= 0.2


def test_a_truncated_answer_breaks_off_after_the_event_was_counted(sandbox, raw, form):
    sandbox.fault("truncated", path=EVENTS)
    answer = raw(form)
    assert answer.status == 200
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    assert sandbox.books().total() == 7


def test_an_html_answer_hides_an_event_that_was_counted(sandbox, raw, form):
    sandbox.fault("html", path=EVENTS)
    answer = raw(form)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html")
    assert sandbox.books().total() == 7


def test_an_html_error_page_comes_from_before_stripe(sandbox, raw, form):
    sandbox.fault("html", path=EVENTS, status=502)
    assert raw(form).status == 502
    assert list(sandbox.books()) == []


def test_a_refused_port_opens_again(sandbox, raw, form):
    began = time.monotonic()
    sandbox.refuse(1)
    with pytest.raises(ConnectionRefusedError):
        raw(form)
    assert opened_at(sandbox) >= began + 1
    assert raw(form).status == 200
    assert sandbox.books().total() == 7


def opened_at(sandbox):
    """When the port takes connections again. Asking all the while: a late look misses nothing."""
    wait_until(sandbox, True)
    return time.monotonic()


def wait_until(sandbox, is_open):
    deadline = time.monotonic() + 20
    while answers(sandbox) is not is_open:
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.01)


def answers(sandbox):
    try:
        return requests.get(f"{sandbox.url}/_sandbox/health", timeout=10).ok
    except requests.ConnectionError:
        return False


def test_a_refused_port_resets_open_connections(sandbox):
    with socket.create_connection((sandbox.host, sandbox.port)) as connection:
        sandbox.refuse(0.1)
        connection.settimeout(10)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert opened_at(sandbox)


def test_a_port_that_is_refused_again_stays_closed_longer(sandbox, raw, form):
    sandbox.refuse(0.2)
    began = time.monotonic()
    sandbox.refuse(0.6)
    assert opened_at(sandbox) >= began + 0.6
    assert raw(form).status == 200


def test_a_fault_meets_as_many_requests_as_it_is_told(sandbox, shop):
    sandbox.fault("500_before", path=EVENTS, count=2, after=1)
    statuses = []
    for _ in range(5):
        try:
            shop.use(1)
            statuses.append(200)
        except stripe.APIError as error:
            statuses.append(error.http_status)
    assert statuses == [200, 500, 500, 200, 200]


def test_a_fault_without_end_lasts_until_it_is_cleared(sandbox, shop, refused):
    sandbox.fault("500_before", path=EVENTS, count=None)
    for _ in range(3):
        refused(shop.use, 1)
    sandbox.clear_faults()
    shop.use(1)


def test_a_fault_meets_a_share_of_requests(sandbox, shop):
    sandbox.fault("500_before", path=EVENTS, count=None, rate=0.5)
    failed = 0
    for _ in range(60):
        try:
            shop.use(1)
        except stripe.APIError:
            failed += 1
    assert 10 < failed < 50
    assert sandbox.books().events() == 60 - failed


def test_a_fault_can_be_for_one_customer_or_method(sandbox, shop, refused):
    other = shop.api.customers.create({})
    sandbox.fault("500_before", customer=other.id, count=None)
    shop.use(1)
    refused(shop.use, 1, customer=other.id)
    refused(shop.api.customers.retrieve, other.id)
    sandbox.clear_faults()
    sandbox.fault("500_before", method="GET")
    shop.use(1)
    refused(shop.api.customers.list)


def test_paths_match_by_pattern(sandbox, shop, refused):
    sandbox.fault("500_before", path="/v1/billing/*")
    shop.api.customers.list()
    refused(shop.use, 1)


def test_faults_never_meet_the_sandboxs_own_api(sandbox):
    sandbox.fault("500_before", count=None)
    assert requests.get(f"{sandbox.url}/_sandbox/health").status_code == 200


def test_a_request_can_ask_for_a_fault_by_header(sandbox, raw, form):
    assert raw(form, **{"Sandbox-Fault": "500_after"}).status == 500
    assert sandbox.books().total() == 7
    assert raw(form, **{"Sandbox-Fault": "html; status=503"}).status == 503
    assert raw(form, **{"Sandbox-Fault": "nonsense"}).status == 400  # ignored: the identifier is a duplicate


def control(sandbox, method, path, body=None):
    return requests.request(method, f"{sandbox.url}/_sandbox/{path}", json=body)


def test_faults_are_set_listed_and_deleted_over_http(sandbox, shop, refused):
    fault = {"kind": "500_before", "match": {"method": "POST", "path": EVENTS}, "count": 2}
    assert control(sandbox, "POST", "faults", [fault]).status_code == 200
    refused(shop.use, 1)
    [waiting] = control(sandbox, "GET", "faults").json()["faults"]
    assert (waiting["kind"], waiting["count"], waiting["match"]["path"]) == ("500_before", 1, EVENTS)
    assert control(sandbox, "DELETE", "faults").json() == {"faults": []}
    shop.use(1)


def test_a_refused_port_can_be_asked_for_over_http(sandbox, raw, form):
    assert control(sandbox, "POST", "faults", {"kind": "refuse", "seconds": 1}).status_code == 200
    wait_until(sandbox, False)  # the answer comes first
    assert opened_at(sandbox)
    assert raw(form).status == 200


@pytest.mark.parametrize(
    "fault",
    [
        {},
        {"kind": "unicorn"},
        {"kind": "slow", "seconds": "many"},
        {"kind": "slow", "colour": "red"},
        {"kind": "slow", "match": {"colour": "red"}},
        {"kind": "slow", "count": -1},
        3,
    ],
)
def test_a_fault_that_cannot_be_is_refused_with_a_sentence(sandbox, fault):
    answer = control(sandbox, "POST", "faults", [fault])
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_clash_of_two_events_of_one_customer_and_meter_gets_409(sandbox, shop, refused):
    sandbox.set_switches(meter_event_latency_s=1)
    slow = threading.Thread(target=shop.use, args=(1,))
    slow.start()
    while not sandbox.app.under_way:
        time.sleep(0.001)
    error = refused(shop.use, 2)
    assert (error.http_status, error.code) == (409, None)
    other = shop.api.customers.create({})
    shop.use(4, customer=other.id)  # another customer's events do not wait
    slow.join()
    assert sandbox.books().total(customer=shop.customer.id) == 1
    assert sandbox.books().total() == 5


def test_a_clash_can_be_switched_to_429(sandbox, shop, refused):
    sandbox.set_switches(meter_event_latency_s=1, clash_answer="429")
    slow = threading.Thread(target=shop.use, args=(1,))
    slow.start()
    while not sandbox.app.under_way:
        time.sleep(0.001)
    error = refused(shop.use, 2)
    slow.join()
    assert (error.http_status, error.json_body["error"]["code"]) == (429, "lock_timeout")


@pytest.mark.parametrize(
    "text",
    [
        "429",
        "500_after;path=/v1/billing/*;count=3",
        "slow;method=POST;customer=cus_1;count=forever;after=2;rate=0.5;seconds=0.25",
        "html;status=502",
    ],
)
def test_a_fault_in_one_line_is_written_as_it_was_read(text):
    assert shown_fault(parse_fault(text)) == text
