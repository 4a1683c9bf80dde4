"""The v1 sender on real sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import stripe
from llm_metering.errors import ConfigurationError
from llm_metering.protocols import Outcome, OutcomeKind
from llm_metering.senders import connection as connections
from llm_metering.senders import stripe_v1
from llm_metering.senders.stripe_v1 import STRIPE_VERSION, StripeSender, form_of
from llm_metering.senders.threads import no_byte_after
from llm_metering.usage import MeterEvent

Raw = SimpleNamespace


def send(sender: StripeSender, event: MeterEvent) -> Outcome:
    (outcome,) = sender.send([event])
    return outcome


# What goes over the wire.


def test_the_request_is_the_one_the_official_sdk_makes(server: Any, sender: StripeSender, raw: Raw) -> None:
    event = raw.meter_event("id 1/ü&=", value="0.000001")
    assert send(sender, event).kind == "accepted"
    client = stripe.StripeClient(
        "sk_test_key", base_addresses={"api": server.url}, http_client=stripe.UrllibClient()
    )
    stripe.enable_telemetry = False
    client.v1.billing.meter_events.create(
        {
            "event_name": event.event_name,
            "identifier": event.identifier,
            "timestamp": event.timestamp,
            "payload": dict(event.payload),
        }
    )
    ours, theirs = server.requests
    assert ours.line == theirs.line == "POST /v1/billing/meter_events HTTP/1.1"
    assert ours.form == theirs.form
    for name in ("authorization", "stripe-version", "content-type", "host"):
        assert ours.headers[name] == theirs.headers[name], name
    assert ours.headers["stripe-version"] == STRIPE_VERSION


def test_the_body_is_the_same_for_the_same_event_and_the_idempotency_key_is_not(
    server: Any, sender: StripeSender, raw: Raw
) -> None:
    for _ in range(3):
        sender.send([raw.meter_event()])
    assert len({r.body for r in server.requests}) == 1
    assert len({r.headers["idempotency-key"] for r in server.requests}) == 3
    assert server.requests[0].form == {
        "event_name": "hypernian_tokens",
        "identifier": "id1",
        "timestamp": "1750000000",
        "payload[stripe_customer_id]": "cus_1",
        "payload[value]": "3000",
        "payload[model]": "gpt-5-mini",
        "payload[token_type]": "input",
    }


def test_a_forked_child_makes_idempotency_keys_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its counter stands where the parent's stood, and the clock may not have moved."""
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    keys = []
    for pid in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        monkeypatch.setattr(stripe_v1, "_numbers", count())
        keys += [stripe_v1.fresh_key() for _ in range(100)]
    assert len(set(keys)) == 200


def test_hostile_text_cannot_add_fields_or_headers(server: Any, sender: StripeSender) -> None:
    nasty = "a&identifier=evil\r\nX-Evil: 1\x00[b]=%00+ü"
    payload = {"stripe_customer_id": nasty, "value": "1", nasty: "k"}
    event = MeterEvent("id1", nasty, nasty, Decimal(1), 1_750_000_000, payload)
    assert send(sender, event).kind == "accepted"
    (request,) = server.requests
    assert request.form["identifier"] == "id1"
    assert request.form["event_name"] == request.form["payload[stripe_customer_id]"] == nasty
    assert "x-evil" not in request.headers
    assert form_of(event).isascii()


def test_one_outcome_for_each_event_in_order(server: Any, sender: StripeSender, raw: Raw) -> None:
    server.script = [raw.accepts, raw.refuses(409), raw.refuses(500)]
    outcomes = sender.send([raw.meter_event(f"id{i}") for i in range(4)])
    assert [o.kind for o in outcomes] == ["accepted", "not_sent", "ambiguous", "accepted"]
    assert outcomes[0].request_id == "req_1"
    assert len(server.requests) == 4, "no retries of its own"


# Connections.


def test_a_connection_is_kept_for_the_next_event(server: Any, sender: StripeSender, raw: Raw) -> None:
    server.script = [raw.accepts, raw.refuses(400), raw.refuses(429), raw.accepts]
    for i in range(4):
        send(sender, raw.meter_event(f"id{i}"))
    assert server.connections == 1


def test_threads_that_send_at_a_time_have_a_connection_each(
    server: Any, sender: StripeSender, raw: Raw
) -> None:
    together = threading.Barrier(4)

    def slow(sock: socket.socket, request: Any) -> bool:
        together.wait(5)
        return raw.accepts(sock, request)

    server.otherwise = slow
    kinds: list[OutcomeKind] = []

    def work(n: int) -> None:
        for i in range(3):
            kinds.append(send(sender, raw.meter_event(f"id{n}.{i}")).kind)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds == ["accepted"] * 12
    assert server.connections == 4
    assert len({r.form["identifier"] for r in server.requests}) == 12


@pytest.mark.parametrize("headers", [["Connection: close"], ["Connection: Close, x"]])
def test_a_connection_that_the_server_ends_is_not_used_again(
    server: Any, sender: StripeSender, raw: Raw, headers: list[str]
) -> None:
    server.script = [raw.says(raw.answer(b"{}", 200, *headers))]
    assert [send(sender, raw.meter_event()).kind for _ in range(2)] == ["accepted"] * 2
    assert server.connections == 2


def test_a_connection_closed_while_idle_is_replaced_without_a_doubt(
    server: Any, sender: StripeSender, raw: Raw
) -> None:
    for i in range(3):
        assert send(sender, raw.meter_event(f"id{i}")).kind == "accepted"
        server.drop()
        time.sleep(0.02)  # the end travels through the kernel
    assert server.connections == 3
    assert len(server.requests) == 3


def test_a_reused_connection_that_dies_before_the_answer_is_ambiguous_and_not_tried_again(
    server: Any, sender: StripeSender, raw: Raw
) -> None:
    server.script = [raw.accepts, raw.closes, raw.accepts, raw.resets]
    kinds = [send(sender, raw.meter_event(f"id{i}")).kind for i in range(5)]
    assert kinds == ["accepted", "ambiguous", "accepted", "ambiguous", "accepted"]
    assert [r.form["identifier"] for r in server.requests] == [f"id{i}" for i in range(5)]


def test_stray_bytes_on_an_idle_connection_are_no_answer(server: Any, sender: StripeSender, raw: Raw) -> None:
    """A balancer says 408 on an idle connection; taken for the answer it would shift all that follow."""
    timed_out = raw.answer(b"", 408, "Connection: close")
    said = threading.Event()

    def then_stray(sock: socket.socket, request: Any) -> bool:
        raw.accepts(sock, request)
        sock.sendall(timed_out)
        said.set()
        return True

    server.script = [then_stray]
    assert send(sender, raw.meter_event("id1")).kind == "accepted"
    assert said.wait(10)
    time.sleep(0.02)  # the bytes travel through the kernel
    assert send(sender, raw.meter_event("id2")).kind == "accepted"
    assert server.connections == 2


def test_bytes_behind_an_answer_end_the_connection(server: Any, sender: StripeSender, raw: Raw) -> None:
    server.script = [raw.says(raw.answer(b"{}") + b"HTTP/1.1 200 OK\r\n")]
    assert send(sender, raw.meter_event("id1")).kind == "accepted"
    assert send(sender, raw.meter_event("id2")).kind == "accepted"
    assert server.connections == 2


@pytest.mark.parametrize("status", [408, 500, 503])
def test_after_a_fault_of_the_server_the_connection_is_not_used_again(
    server: Any, sender: StripeSender, raw: Raw, status: int
) -> None:
    server.script = [raw.refuses(status)]
    assert [send(sender, raw.meter_event()).kind for _ in range(2)] == ["ambiguous", "accepted"]
    assert server.connections == 2


def test_a_connection_idle_for_long_is_not_trusted(
    server: Any, sender: StripeSender, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(sender, raw.meter_event())
    monkeypatch.setattr(connections, "MAX_IDLE_S", -1.0)
    assert send(sender, raw.meter_event()).kind == "accepted"
    assert server.connections == 2


class Dying:
    """An idle connection that looks well, takes so many bytes of a request, and then fails."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.closed = False

    def settimeout(self, seconds: float) -> None: ...

    def recv(self, n: int) -> bytes:
        raise BlockingIOError

    def send(self, data: bytes) -> int:
        if not self.takes:
            raise BrokenPipeError
        taken, self.takes = self.takes, 0
        return taken

    def close(self) -> None:
        self.closed = True


REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 14\r\n\r\nidentifier=id1"


def dying(url: str, takes: int) -> tuple[connections.Connection, Dying]:
    link = connections.Connection(connections.endpoint_of(url), lambda: None)  # type: ignore[arg-type, return-value]
    sock = Dying(takes)
    link._sock, link._used_at = sock, time.monotonic()  # type: ignore[assignment]
    return link, sock


def test_a_write_of_which_nothing_was_taken_is_made_on_a_new_connection(server: Any) -> None:
    link, dead = dying(server.url, takes=0)
    assert link.exchange(REQUEST, 5).status == 200
    link.close()
    assert dead.closed
    assert len(server.requests) == 1


def test_a_write_of_which_a_byte_was_taken_is_not_made_again(server: Any) -> None:
    link, dead = dying(server.url, takes=1)
    with pytest.raises(connections.NoAnswer) as caught:
        link.exchange(REQUEST, 5)
    assert caught.value.sent
    assert dead.closed
    assert server.connections == 0


def test_under_tls_a_write_that_fails_may_have_sent() -> None:
    link, _ = dying("https://127.0.0.1:1", takes=0)
    with pytest.raises(connections.NoAnswer) as caught:
        link.exchange(REQUEST, 5)
    assert caught.value.sent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_does_not_write_on_its_parents_connection(
    server: Any, sender: StripeSender, raw: Raw
) -> None:
    send(sender, raw.meter_event("parent"))
    pid = os.fork()
    if not pid:
        ok = send(sender, raw.meter_event("child")).kind == "accepted"
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert send(sender, raw.meter_event("parent again")).kind == "accepted"
    by = {r.form["identifier"]: r.connection for r in server.requests}
    assert by["parent"] == by["parent again"] != by["child"]


# Failures without an answer.


def test_a_refused_connection_is_surely_not_sent(raw: Raw) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    outcome = send(StripeSender("sk_test_x", api_base=f"http://127.0.0.1:{port}"), raw.meter_event())
    assert (outcome.kind, outcome.status) == ("not_sent", None)
    assert "refused" in (outcome.message or "")


def test_an_unknown_host_is_surely_not_sent(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    outcome = send(StripeSender("sk_test_x", api_base="http://localhost"), raw.meter_event())
    assert outcome.kind == "not_sent"


def test_a_dead_address_leaves_time_for_the_next(
    server: Any, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        dead = taken.getsockname()
    stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    addresses = [(*stream, dead), (*stream, ("127.0.0.1", server.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    sender = StripeSender("sk_test_x", api_base="http://localhost")
    assert send(sender, raw.meter_event()).kind == "accepted"
    sender.close()


@pytest.mark.parametrize(
    "act",
    [
        lambda raw: raw.closes,
        lambda raw: raw.resets,
        lambda raw: raw.says(b"HTTP/1.1 200 OK\r\nContent-", then_close=True),
        lambda raw: raw.says(b"HTTP/1.1 200 OK", then_close=True),
        lambda raw: raw.says(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", then_close=True),
        lambda raw: raw.says(b"HTTP/2 200\r\n\r\n", then_close=True),
        lambda raw: raw.says(b"HTTP/1.1 2000 OK\r\n\r\n", then_close=True),
        lambda raw: raw.says(b"HTTP/1.1 103 Early Hints\r\n\r\n", then_close=True),
        lambda raw: raw.says(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, then_close=True),
    ],
    ids=["close", "reset", "half head", "half line", "garbage", "h2", "status", "interim", "endless head"],
)
def test_once_sent_no_answer_is_ambiguous(
    server: Any, sender: StripeSender, raw: Raw, act: Callable[[Raw], Any]
) -> None:
    server.script = [act(raw)]
    outcome = send(sender, raw.meter_event())
    assert (outcome.kind, outcome.status) == ("ambiguous", None)
    assert outcome.message
    assert send(sender, raw.meter_event()).kind == "accepted", "the next one starts afresh"
    assert len(server.requests) == 2


def quick(server: Any) -> StripeSender:
    return StripeSender("sk_test_x", api_base=server.url, timeout_s=0.3)


def test_a_server_that_hangs_is_left_after_the_time_out(server: Any, raw: Raw) -> None:
    server.script = [server.hangs]
    began = time.monotonic()
    outcome = send(quick(server), raw.meter_event())
    assert outcome.kind == "ambiguous"
    assert 0.25 < time.monotonic() - began < 10


def test_a_server_that_drips_does_not_stretch_the_time_out(server: Any, raw: Raw) -> None:
    def drips(sock: socket.socket, request: Any) -> bool:
        for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 10_000:
            sock.sendall(bytes([byte]))
            if server.over.wait(0.03):
                break
        return False

    server.script = [drips]
    began = time.monotonic()
    assert send(quick(server), raw.meter_event()).kind == "ambiguous"
    assert time.monotonic() - began < 10


# Answers that are not as they should be.

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: "
CLASH = b"HTTP/1.1 409 X\r\nContent-Length: 0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda raw: raw.says(raw.answer(b"x" * 50)[:-20], then_close=True), "accepted"),
        (lambda raw: raw.says(raw.answer(b"<html>", 200)), "accepted"),
        (lambda raw: raw.says(b"HTTP/1.1 204 No Content\r\n\r\n"), "accepted"),
        (lambda raw: raw.says(b"HTTP/1.1 200 OK\r\n\r\n{}", then_close=True), "accepted"),
        (lambda raw: raw.says(b"HTTP/1.0 200 OK\r\n\r\n{}", then_close=True), "accepted"),
        (lambda raw: raw.says(LENGTH + b"soon\r\n\r\n{}", then_close=True), "accepted"),
        (lambda raw: raw.says(CHUNKED + b"zz\r\n"), "accepted"),
        (lambda raw: raw.says(CHUNKED + b"-5\r\n"), "accepted"),
        (lambda raw: raw.says(raw.answer(b'{"error": {}}', 400)[:-3], then_close=True), "not_sent"),
        (lambda raw: raw.says(b"HTTP/1.1 500 X\r\n\r\n", then_close=True), "ambiguous"),
        (lambda raw: raw.says(raw.answer(b"<html>", 404)), "refused_config"),
        (lambda raw: raw.says(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n", raw.answer()), "accepted"),
        (lambda raw: raw.says(CONTINUE + CLASH), "not_sent"),
    ],
)  # fmt: skip
def test_an_odd_answer_means(
    server: Any, sender: StripeSender, raw: Raw, act: Callable[[Raw], Any], kind: OutcomeKind
) -> None:
    server.script = [act(raw)]
    assert send(sender, raw.meter_event()).kind == kind
    assert send(sender, raw.meter_event()).kind == "accepted"
    assert [r.form["identifier"] for r in server.requests] == ["id1", "id1"]


def test_an_answer_that_hangs_in_its_body_counts_as_its_status_says(server: Any, raw: Raw) -> None:
    def half(sock: socket.socket, request: Any) -> bool:
        sock.sendall(raw.answer(b"x" * 100)[:-50])
        return server.hangs(sock, request)

    server.script = [half]
    outcome = send(quick(server), raw.meter_event())
    assert (outcome.kind, outcome.status) == ("accepted", 200)
    assert "cut short" in (outcome.message or "")


@pytest.mark.parametrize("cuts", [1, 2, 3, 7, 1000])
def test_a_chunked_answer_is_read_however_it_is_cut(
    server: Any, sender: StripeSender, raw: Raw, cuts: int
) -> None:
    message = b'{"error": {"type": "x", "message": "An event already exists with identifier id1."}}'
    chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(c), c) for c in (message[:5], message[5:60], message[60:]))
    whole = b"HTTP/1.1 400 X\r\nTransfer-Encoding: Chunked\r\n\r\n" + chunks + b"0\r\nTrailer: t\r\n\r\n"
    server.script = [raw.says(*(whole[i : i + cuts] for i in range(0, len(whole), cuts)))] * 2
    assert [send(sender, raw.meter_event()).kind for _ in range(2)] == ["duplicate"] * 2
    assert server.connections == 1


def test_an_endless_body_is_not_read_to_its_end(server: Any) -> None:
    def endless(sock: socket.socket, request: Any) -> bool:
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not server.over.is_set():
            sock.sendall(b"x" * 2**16)
        return False

    server.script = [endless]
    link = connections.Connection(connections.endpoint_of(server.url), lambda: None)  # type: ignore[arg-type, return-value]
    answer = link.exchange(REQUEST, 20)
    assert (answer.status, answer.whole) == (200, False)
    assert len(answer.body) <= connections.MAX_BODY_BYTES + 2**16


def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(
    server: Any, sender: StripeSender, raw: Raw
) -> None:
    with raw.RawServer() as elsewhere:
        server.script = [raw.says(raw.answer(b"", 307, f"Location: {elsewhere.url}/v1/x"))]
        assert send(sender, raw.meter_event()).kind == "refused_config"
        assert not elsewhere.requests


# The key.


@pytest.mark.parametrize(
    "key", ["", "  ", "sk_test_a\r\nX-Evil: 1", "sk_test_a b", "sk_tést", "pk_test_a", "whsec_a"]
)
def test_a_key_that_cannot_work_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ConfigurationError, match="STRIPE_API_KEY") as caught:
        StripeSender(key)
    assert key.strip() not in str(caught.value) or not key.strip()


def test_a_key_may_have_blanks_round_it(server: Any, raw: Raw) -> None:
    sender = StripeSender(" sk_test_key\n", api_base=server.url)
    send(sender, raw.meter_event())
    sender.close()
    assert server.requests[0].headers["authorization"] == "Bearer sk_test_key"


def test_the_hint_tells_keys_and_servers_apart_and_shows_neither() -> None:
    keys = ["sk_test_SECRET1", "sk_test_SECRET2", "rk_live_SECRET1", "strange_SECRET"]
    hints = [StripeSender(k).key_hint for k in keys]
    assert [h.split(":")[0] for h in hints] == ["test", "test", "live", "live"]
    hints += [StripeSender(keys[0], api_base="http://localhost:1").key_hint]
    assert len(set(hints)) == 5
    assert hints[0] == StripeSender(keys[0]).key_hint
    assert "SECRET" not in "".join(hints) + repr(StripeSender(keys[0]))


def test_a_live_key_does_not_cross_the_network_in_the_clear() -> None:
    with pytest.raises(ConfigurationError, match="https://"):
        StripeSender("sk_live_x", api_base="http://stripe.internal:8080")
    StripeSender("sk_live_x", api_base="http://localhost:8080")
    StripeSender("sk_test_x", api_base="http://sandbox:12111")


@pytest.mark.parametrize(
    "url",
    ["", "api.stripe.com", "ftp://x", "https://", "https://x:y", "https://u:p@x", "https://x/?q=1",
     "https://x/\r\nX: y", "https://x y", "https://ü"],
)  # fmt: skip
def test_a_base_url_that_cannot_work_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        StripeSender("sk_test_x", api_base=url)


def test_a_base_url_may_have_a_path(server: Any, raw: Raw) -> None:
    sender = StripeSender("sk_test_x", api_base=f"{server.url}/stripe/")
    send(sender, raw.meter_event())
    sender.close()
    assert server.requests[0].line == "POST /stripe/v1/billing/meter_events HTTP/1.1"


# Whose key it is.

ACCOUNT = b'{"id": "acct_1AbCdEfGhIjKlMnO", "object": "account"}'
LONG_KEY = "rk_test_51AbCdEfGhIjKlMnOqrstuvwxyzQRSTUVWXYZ0123456789"


def test_check_says_the_account_and_the_mode(server: Any, sender: StripeSender, raw: Raw) -> None:
    server.script = [raw.says(raw.answer(ACCOUNT))]
    assert sender.check() == Outcome("accepted", 200, message="acct_1AbCdEfGhIjKlMnO (test)")
    assert server.requests[0].line == "GET /v1/account HTTP/1.1"
    assert "idempotency-key" not in server.requests[0].headers


def test_a_restricted_key_names_its_account_by_itself(server: Any, raw: Raw) -> None:
    sender = StripeSender(LONG_KEY, api_base=server.url)
    server.script = [raw.refuses(403), raw.says(raw.answer(b'{"data": []}'))]
    assert sender.check() == Outcome("accepted", 200, message="acct_1AbCdEfGhIjKlMnO (test)")
    assert server.requests[1].line == "GET /v1/billing/meters?limit=1 HTTP/1.1"
    sender.close()


def test_a_key_that_names_nothing_stands_for_itself(server: Any, sender: StripeSender, raw: Raw) -> None:
    server.script = [raw.refuses(403), raw.says(raw.answer(b'{"data": []}'))]
    digest = sender.key_hint.partition(":")[2]
    assert sender.check().message == f"key {digest} (test)"


@pytest.mark.parametrize(
    ("acts", "kind"),
    [
        (lambda raw: [raw.refuses(401, "Invalid API Key provided: sk_test_key")], "refused_config"),
        (lambda raw: [raw.refuses(403), raw.refuses(403)], "refused_config"),
        (lambda raw: [raw.refuses(403), raw.refuses(500)], "ambiguous"),
        (lambda raw: [raw.refuses(429)], "throttled"),
        (lambda raw: [raw.refuses(503)], "ambiguous"),
        (lambda raw: [raw.says(raw.answer(b"<html>"))], "refused_config"),
        (lambda raw: [raw.says(raw.answer(b'{"id": 7}'))], "refused_config"),
        (lambda raw: [raw.says(raw.answer(b"<html>", 404))] * 2, "refused_config"),
        (lambda raw: [raw.closes], "ambiguous"),
    ],
)
def test_check_says_what_is_wrong(
    server: Any, sender: StripeSender, raw: Raw, acts: Callable[[Raw], Any], kind: OutcomeKind
) -> None:
    server.script = acts(raw)
    outcome = sender.check()
    assert outcome.kind == kind
    assert outcome.message
    assert "sk_test_key" not in outcome.message


# Proxies.


def test_a_proxy_is_used_for_plain_http(server: Any, raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://us%40er:p4ss@127.0.0.1:{server.port}")
    sender = StripeSender("sk_test_x", api_base="http://sandbox.invalid:12111")
    assert [send(sender, raw.meter_event()).kind for _ in range(2)] == ["accepted"] * 2
    request = server.requests[1]
    assert request.line == "POST http://sandbox.invalid:12111/v1/billing/meter_events HTTP/1.1"
    assert request.headers["host"] == "sandbox.invalid:12111"
    assert request.headers["proxy-authorization"] == "Basic dXNAZXI6cDRzcw=="
    sender.close()


def test_no_proxy_is_honoured(server: Any, raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    sender = StripeSender("sk_test_x", api_base=server.url)
    assert send(sender, raw.meter_event()).kind == "accepted"
    sender.close()


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, raw: Raw) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(raw.TLS / "ca.pem"))


@pytest.fixture
def tunnel(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A proxy that opens a tunnel to whatever it is asked for."""

    def opens(sock: socket.socket, request: Any) -> bool:
        host, _, port = request.line.split()[1].rpartition(":")
        with socket.create_connection((host, int(port))) as far:
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pump, args=(far, sock), daemon=True)
            back.start()
            pump(sock, far)
            back.join(5)
        return False

    with raw.RawServer(otherwise=opens) as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
        yield proxy


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.mark.usefixtures("trusted")
def test_https_goes_through_a_tunnel_and_the_proxy_sees_no_key(raw: Raw, tunnel: Any) -> None:
    with raw.RawServer(tls="localhost") as server:
        sender = StripeSender("sk_test_x", api_base=server.url)
        assert send(sender, raw.meter_event()).kind == "accepted"
        assert [r.line for r in tunnel.requests] == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"]
        assert "authorization" not in tunnel.requests[0].headers
        sender.close()


@pytest.mark.usefixtures("trusted")
def test_a_tunnel_that_is_refused_is_surely_not_sent(raw: Raw, tunnel: Any) -> None:
    tunnel.script = [raw.says(raw.answer(b"", 407)), raw.closes, raw.says(b"HTTP/1.1 100 Continue\r\n\r\n")]
    sender = StripeSender("sk_test_x", api_base="https://127.0.0.1:9")
    outcomes = [send(sender, raw.meter_event()) for _ in range(3)]
    assert [o.kind for o in outcomes] == ["not_sent"] * 3
    assert "HTTP 407" in (outcomes[0].message or "")


def test_a_proxy_of_another_kind_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://user:hunter2@proxy:1080")
    with pytest.raises(ConfigurationError, match="only http:// proxies") as caught:
        StripeSender("sk_test_x")
    assert "hunter2" not in str(caught.value)


# TLS.


@pytest.mark.usefixtures("trusted")
def test_tls_with_a_certificate_of_a_trusted_root(raw: Raw) -> None:
    with raw.RawServer(tls="localhost") as server:
        sender = StripeSender("sk_test_x", api_base=server.url, timeout_s=5)
        assert [send(sender, raw.meter_event()).kind for _ in range(3)] == ["accepted"] * 3
        assert server.connections == 1, "session tickets are not taken for stray bytes"
        server.drop()
        time.sleep(0.02)
        assert send(sender, raw.meter_event()).kind == "accepted"
        server.script = [raw.closes]
        assert send(sender, raw.meter_event()).kind == "ambiguous"
        sender.close()


def test_tls_with_an_unknown_root_is_refused_before_a_byte_is_sent(raw: Raw) -> None:
    with raw.RawServer(tls="localhost") as server:
        outcome = send(StripeSender("sk_test_x", api_base=server.url), raw.meter_event())
        assert outcome.kind == "not_sent"
        assert "certificate" in (outcome.message or "").lower()
        assert not server.requests


@pytest.mark.usefixtures("trusted")
def test_tls_with_a_certificate_of_another_name_is_refused(raw: Raw) -> None:
    with raw.RawServer(tls="elsewhere") as server:
        outcome = send(StripeSender("sk_test_x", api_base=server.url), raw.meter_event())
        assert outcome.kind == "not_sent"
        assert "127.0.0.1" in (outcome.message or "")
        assert not server.requests


@pytest.mark.usefixtures("trusted")
def test_a_handshake_that_hangs_is_surely_not_sent(raw: Raw) -> None:
    with raw.RawServer(tls="localhost", silent=True) as server:
        began = time.monotonic()
        assert send(quick(server), raw.meter_event()).kind == "not_sent"
        assert time.monotonic() - began < 10


def test_the_usual_roots_are_trusted() -> None:
    import certifi
    from llm_metering.senders.stripe_v1 import tls_context

    context = tls_context()
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"
    assert context.minimum_version.name == "TLSv1_2"
    with open(certifi.where()) as roots:
        assert len(context.get_ca_certs()) >= roots.read().count("BEGIN CERTIFICATE")


# Dying.


def test_a_process_can_be_killed_in_the_middle_of_a_request(server: Any, raw: Raw) -> None:
    code = f"""
from decimal import Decimal
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.usage import MeterEvent
payload = {{"stripe_customer_id": "cus_1", "value": "1"}}
StripeSender("sk_test_x", api_base={server.url!r}).send(
    [MeterEvent("id1", "m", "cus_1", Decimal(1), 1, payload)])
"""
    env = {**os.environ, "LLM_METERING_FAILPOINT": "sender_mid_body"}
    died = subprocess.run([sys.executable, "-c", code], env=env, timeout=30, check=False)
    assert died.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while not server.partial and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.partial[0].startswith(b"POST /v1/billing/meter_events")
    assert not server.requests


def test_a_process_stopped_while_it_connects_sends_nothing_once_too_late(
    server: Any, sender: StripeSender, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is new, so that only the clock can tell."""
    until = time.time() + 60
    dial = connections.Connection._dial

    def stopped(self: Any, deadline: float) -> Any:
        sock = dial(self, deadline)
        monkeypatch.setattr("llm_metering.senders.connection.time.time", lambda: until + 1)
        return sock

    monkeypatch.setattr(connections.Connection, "_dial", stopped)
    with no_byte_after(until):
        outcome = send(sender, raw.meter_event())
    assert (outcome.kind, outcome.status) == ("not_sent", None)
    assert server.requests == []
    outcome = send(sender, raw.meter_event())
    assert outcome.kind == "accepted"
