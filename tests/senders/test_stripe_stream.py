"""The v2 event stream's sender on real sockets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import stripe
from llm_metering.errors import ConfigurationError
from llm_metering.protocols import Outcome
from llm_metering.senders.stripe_stream import StripeStream
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.usage import MeterEvent

Raw = SimpleNamespace
SESSION = "/v2/billing/meter_event_session"
STREAM = "/v2/billing/meter_event_stream"
EXPIRED = {
    "error": {
        "type": "temporary_session_expired",
        "code": "billing_meter_event_session_expired",
        "message": "Session expired.",
    }
}


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


class Stripe:
    """Gives out sessions t1, t2, …; `script` holds what to do with the requests for the stream to come,
    `sessions` with those for sessions."""

    def __init__(self, server: Any, raw: Raw) -> None:
        self.raw = raw
        self.server = server
        self.script: list[Any] = []
        self.sessions: list[Any] = []
        self.otherwise: Any = raw.says(raw.answer(b"{}", 200, "Request-Id: req_9"))
        self.made = 0
        server.otherwise = self.act

    def act(self, sock: Any, request: Any) -> bool:
        if SESSION in request.line:
            return bool((self.sessions.pop(0) if self.sessions else self.gives)(sock, request))
        return bool((self.script.pop(0) if self.script else self.otherwise)(sock, request))

    def gives(self, sock: Any, request: Any) -> bool:
        self.made += 1
        return self.says(session(f"t{self.made}"))(sock, request)

    def says(self, content: Any, status: int = 200, *headers: str) -> Any:
        return self.raw.says(self.raw.answer(json.dumps(content).encode(), status, *headers))

    def refuses(self, status: int, message: str = "No.", **fields: str) -> Any:
        return self.says({"error": {"message": message, **fields}}, status)

    def requests(self, path: str = STREAM) -> list[Any]:
        return [r for r in self.server.requests if path in r.line]

    def identifiers(self) -> list[list[str]]:
        return [[e["identifier"] for e in json.loads(r.body)["events"]] for r in self.requests()]


def session(token: object, expires_at: str = "2026-01-15T12:15:00.000Z") -> dict[str, object]:
    return {
        "object": "v2.billing.meter_event_session",
        "id": "mes_1",
        "authentication_token": token,
        "created": "2026-01-15T12:00:00.000Z",
        "expires_at": expires_at,
        "livemode": False,
    }


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def there(server: Any, raw: Raw) -> Stripe:
    return Stripe(server, raw)


@pytest.fixture
def stream(server: Any, clock: Clock) -> Iterator[StripeStream]:
    stream = StripeStream(
        "sk_test_key", api_base=server.url, meter_events_base=server.url, timeout_s=5, monotonic=clock
    )
    yield stream
    stream.close()


@pytest.fixture
def some(raw: Raw) -> Callable[..., list[MeterEvent]]:
    return lambda n, bad=(): [raw.meter_event(f"bad{i}" if i in bad else f"id{i}") for i in range(n)]


Some = Callable[..., list[MeterEvent]]


def kinds(outcomes: list[Outcome]) -> list[str]:
    return [outcome.kind for outcome in outcomes]


# What goes over the wire.


def test_the_requests_are_those_that_the_official_sdk_makes(
    server: Any, there: Stripe, stream: StripeStream, raw: Raw
) -> None:
    events = [raw.meter_event("id 1/ü", value="0.000001"), raw.meter_event("id2", customer="cus_2")]
    assert kinds(stream.send(events)) == ["accepted", "accepted"]
    stripe.enable_telemetry = False
    client = stripe.StripeClient(
        "sk_test_key",
        base_addresses={"api": server.url, "meter_events": server.url},
        http_client=stripe.UrllibClient(),
    )
    token = client.v2.billing.meter_event_session.create().authentication_token
    client.v2.billing.meter_event_stream.create(
        {
            "events": [
                {
                    "event_name": e.event_name,
                    "identifier": e.identifier,
                    "payload": dict(e.payload),
                    "timestamp": "2025-06-15T15:06:40.000Z",
                }
                for e in events
            ]
        },
        {"api_key": token},
    )
    for path, keys in ((SESSION, ["sk_test_key"] * 2), (STREAM, ["t1", "t2"])):
        ours, theirs = there.requests(path)
        assert ours.line == theirs.line == f"POST {path} HTTP/1.1"
        assert json.loads(ours.body) == json.loads(theirs.body)
        assert [r.headers["authorization"] for r in (ours, theirs)] == [f"Bearer {key}" for key in keys]
        for name in ("stripe-version", "content-type", "host"):
            assert ours.headers[name] == theirs.headers[name], name
        assert ours.headers["idempotency-key"] != theirs.headers["idempotency-key"]


def test_a_hundred_go_in_one_request_and_the_bytes_are_the_same_again(
    there: Stripe, stream: StripeStream, some: Some
) -> None:
    assert stream.max_batch == 100
    for _ in range(2):
        outcomes = stream.send(some(100))
        assert kinds(outcomes) == ["accepted"] * 100
        assert {o.request_id for o in outcomes} == {"req_9"}
    first, second = there.requests()
    assert first.body == second.body
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]
    assert {type(v) for e in json.loads(first.body)["events"] for v in e["payload"].values()} == {str}


def test_text_of_all_kinds_arrives(there: Stripe, stream: StripeStream, raw: Raw) -> None:
    event = raw.meter_event('a"b\\c\r\n€😀')
    stream.send([event])
    assert there.identifiers() == [[event.identifier]]


def test_whose_key_it_is_is_asked_and_hinted_at_as_under_v1(
    server: Any, there: Stripe, stream: StripeStream, raw: Raw
) -> None:
    there.script = [raw.says(raw.answer(b'{"id": "acct_1", "object": "account"}'))]
    assert stream.check() == Outcome("accepted", 200, message="acct_1 (test)")
    assert stream.key_hint == StripeSender("sk_test_key", api_base=server.url).key_hint
    assert "sk_test_key" not in repr(stream)


@pytest.mark.parametrize("base", ["http://example.org", "ftp://x", "https://u:p@x"])
def test_a_base_that_cannot_or_must_not_be_used_is_refused(base: str) -> None:
    with pytest.raises(ConfigurationError):
        StripeStream("sk_live_key", meter_events_base=base)


# Sessions.


def test_a_session_serves_until_two_thirds_of_its_life_are_over(
    there: Stripe, stream: StripeStream, clock: Clock, some: Some
) -> None:
    for at in (0, 1, 300, 599, 601, 1200, 1202):
        clock.time = 1000.0 + at
        assert kinds(stream.send(some(1))) == ["accepted"]
    tokens = [r.headers["authorization"].removeprefix("Bearer ") for r in there.requests()]
    assert tokens == ["t1", "t1", "t1", "t1", "t2", "t2", "t3"]


@pytest.mark.parametrize(
    ("expires_at", "renewed_after"),
    [
        ("2026-01-15T12:03:00Z", 120),
        ("2026-01-15T13:03:00+01:00", 120),
        ("2026-01-15T18:00:00.000Z", 600),
        ("soon", 600),
        ("2026-99-99T12:00:00Z", 600),
    ],
)
def test_the_life_of_a_session_is_what_its_answer_says_and_at_most_15_minutes(
    there: Stripe, stream: StripeStream, clock: Clock, some: Some, expires_at: str, renewed_after: int
) -> None:
    there.sessions = [there.says(session("a", expires_at)), there.says(session("b"))]
    for at in (0, renewed_after - 1, renewed_after + 1):
        clock.time = 1000.0 + at
        stream.send(some(1))
    tokens = [r.headers["authorization"] for r in there.requests()]
    assert tokens == ["Bearer a", "Bearer a", "Bearer b"]


def test_a_session_that_cannot_be_renewed_is_used_to_its_end_and_not_beyond(
    there: Stripe, stream: StripeStream, clock: Clock, some: Some
) -> None:
    stream.send(some(1))
    there.sessions = [there.refuses(500)] * 100
    found = []
    for at in (601, 602, 640, 880, 901):
        clock.time = 1000.0 + at
        found += kinds(stream.send(some(1)))
    assert found == ["accepted"] * 4 + ["not_sent"]
    assert len(there.requests(SESSION)) == 5, "not asked for with every request"
    assert len(there.requests()) == 5


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, "refused_config") for status in (400, 401, 403, 404)),
        *((status, "not_sent") for status in (409, 500, 503)),
        (429, "throttled"),
    ],
)
def test_without_a_session_nothing_is_sent_and_nothing_is_in_doubt(
    there: Stripe, stream: StripeStream, some: Some, status: int, kind: str
) -> None:
    there.sessions = [there.refuses(status, type="x")] * 2
    outcomes = stream.send(some(3))
    assert kinds(outcomes) == [kind] * 3
    assert (outcomes[0].message or "").startswith("no session: ")
    assert there.requests() == []
    there.sessions = []
    assert kinds(stream.send(some(3))) == ["accepted"] * 3


@pytest.mark.parametrize(
    "content", [{}, [], "x", session(None), session("a b"), session("a\r\nX: y"), session("ü"), session("")]
)
def test_an_answer_without_a_token_is_no_session(
    there: Stripe, stream: StripeStream, some: Some, content: Any
) -> None:
    there.sessions = [there.says(content)]
    assert kinds(stream.send(some(1))) == ["not_sent"]
    assert there.requests() == []


def test_a_session_that_never_comes_leaves_nothing_in_doubt(
    server: Any, there: Stripe, raw: Raw, some: Some
) -> None:
    there.sessions = [server.hangs, raw.resets, raw.closes]
    stream = StripeStream("sk_test_key", api_base=server.url, meter_events_base=server.url, timeout_s=0.2)
    assert kinds([stream.send(some(2))[0] for _ in range(3)]) == ["not_sent"] * 3
    stream.close()


@pytest.mark.parametrize("status", [401, 400])
def test_an_expired_session_is_replaced_and_the_request_made_again(
    there: Stripe, stream: StripeStream, some: Some, status: int
) -> None:
    stream.send(some(1))
    there.script = [there.says(EXPIRED, status)]
    assert kinds(stream.send(some(2))) == ["accepted"] * 2
    assert [r.headers["authorization"] for r in there.requests()] == ["Bearer t1", "Bearer t1", "Bearer t2"]
    _, refused, again = there.requests()
    assert refused.body == again.body
    assert refused.headers["idempotency-key"] != again.headers["idempotency-key"]


def test_an_event_that_holds_the_words_of_an_expired_session_holds_up_no_other(
    there: Stripe, stream: StripeStream, some: Some
) -> None:
    stream.send(some(1))
    message = "Invalid value: 'temporary_session_expired'"

    def act(sock: Any, request: Any) -> bool:
        is_bad = b"bad1" in request.body
        says = there.refuses(400, message, type="invalid_request_error") if is_bad else there.says({})
        return bool(says(sock, request))

    there.otherwise = act
    assert kinds(stream.send(some(3, bad=[1]))) == ["accepted", "refused_data", "accepted"]
    assert {r.headers["authorization"] for r in there.requests()} == {"Bearer t1"}


def test_an_unclear_answer_stays_unclear_though_it_speaks_of_an_expired_session(
    there: Stripe, stream: StripeStream, some: Some
) -> None:
    stream.send(some(1))
    there.script = [there.says(EXPIRED, 500)]
    assert kinds(stream.send(some(2))) == ["ambiguous"] * 2


def test_sessions_that_expire_at_once_hurt_no_event(there: Stripe, stream: StripeStream, some: Some) -> None:
    there.otherwise = there.says(EXPIRED, 401)
    assert kinds(stream.send(some(2))) == ["not_sent"] * 2
    assert len(there.requests()) == 2, "no endless round"


def test_a_session_that_is_not_known_any_more_is_replaced(
    there: Stripe, stream: StripeStream, some: Some
) -> None:
    stream.send(some(1))
    there.script = [there.refuses(401, type="invalid_request_error")]
    assert kinds(stream.send(some(1))) == ["accepted"]
    there.otherwise = there.refuses(401, type="invalid_request_error")
    assert kinds(stream.send(some(1))) == ["refused_config"]


# What an answer means for the hundred.


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, "accepted") for status in (200, 202)),
        *((status, "ambiguous") for status in (408, 500, 502, 503)),
        (403, "refused_config"),
        (409, "not_sent"),
        (429, "throttled"),
    ],
)
def test_an_answer_is_for_all_of_them(
    there: Stripe, stream: StripeStream, some: Some, status: int, kind: str
) -> None:
    there.script = [there.says({} if status < 300 else {"error": {"message": "x"}}, status)]
    assert kinds(stream.send(some(100))) == [kind] * 100
    assert len(there.requests()) == 1


@pytest.mark.parametrize("body", [b"", b"{", b"<html>", b"[]", b"null"])
def test_any_body_of_a_200_is_taken_for_one(
    there: Stripe, stream: StripeStream, raw: Raw, some: Some, body: bytes
) -> None:
    there.script = [raw.says(raw.answer(body))]
    assert kinds(stream.send(some(2))) == ["accepted"] * 2


def test_a_request_without_an_answer_leaves_all_of_them_in_doubt(
    server: Any, there: Stripe, raw: Raw, some: Some
) -> None:
    stream = StripeStream("sk_test_key", api_base=server.url, meter_events_base=server.url, timeout_s=0.3)
    for act in (raw.closes, raw.resets, server.hangs, raw.says(b"HTTP/1.1 2", then_close=True)):
        there.script = [act]
        assert kinds(stream.send(some(100))) == ["ambiguous"] * 100
    stream.close()
    assert {len(batch) for batch in there.identifiers()} == {100}, "none was sent again by itself"


def test_a_stream_that_cannot_be_reached_leaves_none_in_doubt(
    server: Any, there: Stripe, raw: Raw, some: Some
) -> None:
    with raw.RawServer() as gone:
        url = gone.url
    stream = StripeStream("sk_test_key", api_base=server.url, meter_events_base=url, timeout_s=2)
    assert kinds(stream.send(some(3))) == ["not_sent"] * 3
    stream.close()


# A request that is refused as a whole.


def refusing(there: Stripe, word: bytes, **fields: str) -> Any:
    """Refuses a request that holds this word, takes any other."""
    taken, refused = there.otherwise, there.refuses(400, **(fields or {"message": "Invalid."}))
    return lambda sock, request: (refused if word in request.body else taken)(sock, request)


@pytest.mark.parametrize("before", [True, False], ids=["in use", "first"])
@pytest.mark.parametrize("bad", [(0,), (57,), (99,), (3, 4, 80), (0, 1)])
def test_one_that_stripe_will_not_have_is_found_and_the_others_are_sent(
    there: Stripe, stream: StripeStream, some: Some, bad: tuple[int, ...], before: bool
) -> None:
    if before:
        stream.send(some(1))
    there.otherwise = refusing(there, b"bad")
    outcomes = stream.send(some(100, bad))
    assert [i for i, o in enumerate(outcomes) if o.kind == "refused_data"] == list(bad)
    assert kinds(outcomes).count("accepted") == 100 - len(bad)
    assert len(there.requests()) < 15 * len(bad) + 8


def test_a_duplicate_or_a_missing_meter_is_that_of_one(
    there: Stripe, stream: StripeStream, some: Some
) -> None:
    otherwise = there.otherwise
    for kind, message in (
        ("duplicate", "An event already exists with identifier bad1."),
        ("not_sent", 'No active meter found for event name "x".'),
    ):
        there.otherwise = otherwise
        there.otherwise = refusing(there, b"bad", message=message)
        assert kinds(stream.send(some(4, bad=(1,)))) == ["accepted", kind, "accepted", "accepted"]


@pytest.mark.parametrize("n", [1, 2, 100])
def test_a_stream_that_takes_nothing_at_all_refuses_us_and_not_the_events(
    there: Stripe, stream: StripeStream, some: Some, n: int
) -> None:
    there.otherwise = there.refuses(400, "Not here.")
    outcomes = stream.send(some(n))
    assert kinds(outcomes) == ["refused_config"] * n
    assert "Not here." in str(outcomes[0].message)
    assert "live mode only" in str(outcomes[0].message)
    assert len(there.requests()) <= 4


def test_an_outcome_met_while_looking_for_the_bad_one_is_kept(
    there: Stripe, stream: StripeStream, some: Some, raw: Raw
) -> None:
    stream.send(some(1))
    there.script = [there.refuses(400), raw.resets, there.refuses(400), there.refuses(400)]
    assert kinds(stream.send(some(4))) == ["ambiguous", "ambiguous", "refused_data", "accepted"]
    assert there.identifiers()[1:] == [
        ["id0", "id1", "id2", "id3"],
        ["id0", "id1"],
        ["id2", "id3"],
        ["id2"],
        ["id3"],
    ]


def test_an_outcome_met_before_anything_was_taken_is_kept(
    there: Stripe, stream: StripeStream, some: Some, raw: Raw
) -> None:
    there.script = [there.refuses(400), there.refuses(400), raw.resets, there.refuses(400)]
    there.otherwise = there.refuses(400)
    outcomes = stream.send(some(4))
    assert kinds(outcomes) == ["refused_config", "ambiguous", "refused_config", "refused_config"]
    assert there.identifiers() == [["id0", "id1", "id2", "id3"], ["id0"], ["id1"], ["id2"], ["id3"]]


def test_looking_for_the_bad_one_has_an_end(
    there: Stripe, stream: StripeStream, some: Some, clock: Clock
) -> None:
    stream.send(some(1))
    refuse = there.refuses(400)

    def slowly(sock: Any, request: Any) -> bool:
        clock.time += 4
        return bool(refuse(sock, request))

    there.otherwise = slowly
    outcomes = stream.send(some(100))
    assert set(kinds(outcomes)) == {"not_sent"}
    assert len(there.requests()) < 8
