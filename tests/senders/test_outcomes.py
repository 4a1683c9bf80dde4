"""What an answer, or the lack of one, means. Pure."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from email.utils import format_datetime
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_metering.protocols import Outcome, OutcomeKind
from llm_metering.senders.outcomes import outcome_of, outcome_of_failure

NOW = 1_750_000_000.0
EVENT = {"object": "billing.meter_event", "identifier": "id1", "event_name": "tokens", "livemode": False}
HTML = b"<html><body>Welcome to the airport</body></html>"


def error(message: str = "No.", type: str = "invalid_request_error", **fields: str) -> bytes:
    return json.dumps({"error": {"type": type, "message": message, **fields}}).encode()


def of(status: int, body: bytes = b"", headers: dict[str, str] | None = None, **more: Any) -> Outcome:
    return outcome_of(status, headers or {}, body, now=NOW, **more)


DUPLICATE = error("An event already exists with identifier id1.")
NO_METER = error('No active meter found for event name "tokens".')
TOO_OLD = error("The event timestamp cannot be more than 35 days in past. Expected …")
TABLE: list[tuple[str, int, bytes, dict[str, str], OutcomeKind]] = [
    ("the event as Stripe keeps it", 200, json.dumps(EVENT).encode(), {}, "accepted"),
    ("accepted without a body", 200, b"", {}, "accepted"),
    ("accepted, HTML", 200, HTML, {}, "accepted"),
    ("accepted, truncated JSON", 200, json.dumps(EVENT).encode()[:40], {}, "accepted"),
    ("201", 201, b"{}", {}, "accepted"),
    ("another identifier", 200, json.dumps({**EVENT, "identifier": "id2"}).encode(), {}, "ambiguous"),
    ("duplicate", 400, DUPLICATE, {"stripe-should-retry": "false"}, "duplicate"),
    ("no active meter", 400, NO_METER, {}, "not_sent"),
    ("archived meter", 400, error(code="archived_meter"), {}, "not_sent"),
    ("timestamp too old", 400, TOO_OLD, {}, "refused_data"),
    ("timestamp in future", 400, error("The event timestamp cannot be in future."), {}, "refused_data"),
    ("unknown parameter", 400, error("Received unknown parameter: x"), {}, "refused_data"),
    ("missing parameter", 400, error("Missing required param: x."), {}, "refused_data"),
    ("unknown customer", 404, error(code="resource_missing"), {}, "refused_data"),
    ("card", 402, error("Declined.", type="card_error"), {}, "refused_data"),
    ("Stripe asks to retry", 400, error("Busy."), {"stripe-should-retry": "true"}, "not_sent"),
    ("idempotency clash", 400, error("Keys for …", type="idempotency_error"), {}, "not_sent"),
    ("wrong path", 404, error("Unrecognized request URL (POST: /v1/x)."), {}, "refused_config"),
    ("a 404 of some other server", 404, HTML, {}, "refused_config"),
    ("a 400 of some other server", 400, b"", {}, "refused_config"),
    ("JSON that is not Stripe's", 400, b'{"error": "nope"}', {}, "refused_config"),
    ("JSON list", 400, b"[1]", {}, "refused_config"),
    ("proxy wants a password", 407, HTML, {}, "refused_config"),
    ("bad key", 401, error("Invalid API Key provided: sk_test_***"), {}, "refused_config"),
    ("key lacks the permission", 403, error("The provided key does not have …"), {}, "refused_config"),
    ("redirect", 302, b"", {"location": "https://elsewhere"}, "refused_config"),
    ("permanent redirect", 308, b"", {}, "refused_config"),
    ("server took no request", 408, HTML, {}, "ambiguous"),
    ("clash", 409, error("Another request …"), {}, "not_sent"),
    ("clash, HTML", 409, HTML, {}, "not_sent"),
    ("too early", 425, b"", {}, "not_sent"),
    ("rate limit", 429, error("Slow down.", code="rate_limit"), {}, "throttled"),
    ("object lock", 429, error("Locked.", code="lock_timeout"), {"stripe-should-retry": "true"}, "throttled"),
    ("rate limit of a proxy", 429, HTML, {}, "throttled"),
    ("server fault", 500, error("Oops.", type="api_error"), {}, "ambiguous"),
    ("bad gateway", 502, HTML, {}, "ambiguous"),
    ("unavailable", 503, b"", {}, "ambiguous"),
    ("gateway time-out", 504, b"", {}, "ambiguous"),
    ("no status of HTTP", 999, b"", {}, "ambiguous"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "status", "body", "headers", "kind"), TABLE, ids=[row[0] for row in TABLE])
def test_an_answer_means(
    name: str, status: int, body: bytes, headers: dict[str, str], kind: OutcomeKind
) -> None:
    outcome = of(status, body, headers, identifier="id1")
    assert (outcome.kind, outcome.status) == (kind, status)


def test_the_table_reaches_every_kind() -> None:
    assert {row[-1] for row in TABLE} == set(get_args(OutcomeKind))


def test_only_stripes_whole_words_make_an_event_final() -> None:
    """Whatever a proxy, a cut or an empty answer says, no event dies of it and none counts as a duplicate."""
    others = (b"", HTML, DUPLICATE[:-4], NO_METER[:20], b"null", b'"x"', b"\xff\xfe", b"[" * 100_000)
    for status in range(100, 600):
        kinds = {of(status, body).kind for body in others}
        kinds |= {of(status, body, whole=False).kind for body in (DUPLICATE, error())}
        assert not kinds & {"refused_data", "duplicate"}, status


@pytest.mark.parametrize("status", [400, 404, 409, 422])
def test_a_refusal_that_was_cut_short_is_asked_for_again(status: int) -> None:
    assert of(status, error()[:20], whole=False).kind == "not_sent"


@given(st.integers(100, 999), st.binary(max_size=300), st.dictionaries(st.text(), st.text()), st.booleans())
def test_no_answer_raises_or_says_more_than_a_line(
    status: int, body: bytes, headers: dict[str, str], whole: bool
) -> None:
    outcome = of(status, body, headers, whole=whole, identifier="id1")
    for text in (outcome.message, outcome.code, outcome.request_id):
        assert text is None or (len(text) <= 300 and text.isprintable())


@given(
    st.sampled_from([200, 400, 401, 429, 500]),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["error", "message", "code", "type", "identifier"]), inner)
        ),
        max_leaves=8,
    ),
)
def test_no_json_raises(status: int, content: Any) -> None:
    of(status, json.dumps(content).encode(), identifier="id1")


def test_2xx_that_is_not_as_it_should_be_is_accepted_with_a_note() -> None:
    assert of(200, b"{}").message is None
    assert "not JSON" in (of(200, HTML).message or "")
    assert "cut short" in (of(200, b'{"obj', whole=False).message or "")


def test_what_stripe_says_is_kept_in_one_line_without_secrets() -> None:
    key = "sk_live_51HxSECRETSECRET"
    body = error(f"Invalid API Key provided: {key}\r\nInjected: line " + "x" * 1000, code="api\nkey")
    outcome = of(401, body, {"request-id": "req_1\r\nx: y"})
    said = f"{outcome.message} {outcome.code} {outcome.request_id}"
    assert "SECRET" not in said
    assert said.isprintable()
    assert len(outcome.message or "") <= 300
    assert (outcome.message or "").startswith("Invalid API Key provided: sk_live_***\\r\\nInjected")
    assert outcome.request_id == "req_1\\r\\nx: y"


@pytest.mark.parametrize("secret", ["whsec_abc123", "sk_test_abc123", "req_1 sk_live_abc123"])
def test_a_secret_in_the_place_of_a_request_id_is_masked(secret: str) -> None:
    assert "abc123" not in (of(200, b"{}", {"request-id": secret}).request_id or "")


def test_code_type_and_request_id_are_kept() -> None:
    outcome = of(429, error(code="lock_timeout"), {"request-id": "req_9"})
    assert (outcome.code, outcome.request_id) == ("lock_timeout", "req_9")
    assert of(500, error(type="api_error")).code == "api_error"
    assert of(400, NO_METER).code == of(400, error(code="archived_meter")).code == "no_meter"


def test_an_answer_that_is_not_stripes_says_what_to_look_at() -> None:
    assert "API base" in (of(404, HTML).message or "")
    assert "https://elsewhere" in (of(301, b"", {"location": "https://elsewhere"}).message or "")
    assert of(502, HTML).message == f"HTTP 502: {HTML.decode()}"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("0", 0.0),
        ("2.5", 2.5),
        ("-3", 0.0),
        ("999999999", 3600.0),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        (format_datetime(datetime.fromtimestamp(NOW + 90, timezone.utc), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW - 90, timezone.utc), usegmt=True), 0.0),
        ("Sun, 99 Foo 2024 25:61:61 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    headers = {} if header is None else {"retry-after": header}
    assert of(429, error(), headers).retry_after_s == seconds
    assert of(503, b"", headers).retry_after_s == seconds


@pytest.mark.parametrize(
    "exc",
    [ConnectionRefusedError(111, "Connection refused"), TimeoutError("timed out"), ConnectionResetError()],
    ids=repr,
)
def test_without_an_answer_it_depends_on_whether_a_byte_was_sent(exc: OSError) -> None:
    before, after = outcome_of_failure(exc, sent=False), outcome_of_failure(exc, sent=True)
    assert (before.kind, after.kind) == ("not_sent", "ambiguous")
    assert before.status is None
    assert type(exc).__name__ in (before.message or "")


def test_a_failures_message_holds_no_secret() -> None:
    outcome = outcome_of_failure(OSError("proxy http://user:hunter2@proxy:1 said\nno"), sent=False)
    assert "hunter2" not in (outcome.message or "")
    assert (outcome.message or "").isprintable()


@pytest.mark.parametrize(
    "words",
    [
        "An event already exists with identifier id7.",
        "No active meter found for event name",
        "Unrecognized request URL",
    ],
)
def test_what_a_user_wrote_and_stripe_quotes_decides_nothing(words: str) -> None:
    quoted = error(f"Invalid value for payload[team]: '{words}'")
    assert of(400, quoted, identifier="id1").kind == "refused_data"


def test_a_duplicate_is_known_by_its_identifier_whatever_stands_before() -> None:
    said = error("Invalid request: An event already exists with identifier id1.")
    assert of(400, said, identifier="id1").kind == "duplicate"


def as_stripe_writes(event: dict[str, Any]) -> bytes:
    return json.dumps(event, indent=2).encode()


def test_an_answer_that_names_the_event_as_stripe_writes_it_is_accepted() -> None:
    outcome = of(200, as_stripe_writes(EVENT), {"request-id": "req_1"}, identifier="id1")
    assert outcome == Outcome("accepted", 200, request_id="req_1")


@pytest.mark.parametrize("named", ["id2", "id", "id11", "xid1"])
def test_an_answer_to_another_event_is_no_answer_to_this_one(named: str) -> None:
    body = as_stripe_writes({**EVENT, "identifier": named, "payload": {"identifier": "id1"}})
    assert of(200, body, identifier="id1").kind == "ambiguous"
