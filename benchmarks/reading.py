"""What reading costs: an answer and a chunk beside `json.loads` of the same bytes, a count beside tiktoken.

    python benchmarks/reading.py [--json]

Prints our figure, the reference measured in the same run, and the ratio. No target is timed in tests.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_metering.counting import count_text, fill
from llm_metering.counting.vocabulary import encoding
from llm_metering.providers import StreamTally, WireTally, read_response
from llm_metering.usage import Reading

ROUNDS = 15
USAGE = {
    "prompt_tokens": 26,
    "completion_tokens": 133,
    "total_tokens": 159,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


@dataclass(frozen=True)
class Row:
    """One measurement beside its reference, in microseconds."""

    what: str
    reference: str
    ours_us: float
    reference_us: float

    @property
    def ratio(self) -> float:
        return self.ours_us / self.reference_us


def measure(ours: Callable[[], Any], reference: Callable[[], Any], n: int) -> tuple[float, float]:
    """Medians of paired, interleaved rounds."""
    found: list[tuple[float, float]] = []
    gc.disable()
    try:
        for _ in range(ROUNDS):
            found.append((once(ours, n), once(reference, n)))
            gc.collect(0)
    finally:
        gc.enable()
    return statistics.median(a for a, _ in found), statistics.median(b for _, b in found)


def once(call: Callable[[], Any], n: int) -> float:
    began = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - began) / n * 1e6


def answer(size: int) -> dict[str, Any]:
    text = ('He said: "A word, and another one." ' * (size // 30))[:size]
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "chatcmpl-ASv9hB9He94oQyZr1CDC8coqvmn5U",
        "object": "chat.completion",
        "created": 1731456253,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
        "service_tier": "default",
        "system_fingerprint": "fp_0ba0d124f1",
    }


def chunk(with_usage_key: bool = True) -> dict[str, Any]:
    event: dict[str, Any] = {
        "id": "chatcmpl-ASv9hB9He94oQyZr1CDC8coqvmn5U",
        "object": "chat.completion.chunk",
        "created": 1731456253,
        "model": "gpt-4o-mini-2024-07-18",
        "system_fingerprint": "fp_0ba0d124f1",
        "choices": [{"index": 0, "delta": {"content": " unable"}, "logprobs": None, "finish_reason": None}],
    }
    return {**event, "usage": None} if with_usage_key else event


def wire(body: bytes) -> Reading:
    tally = WireTally(content_type="application/json")
    tally.feed(body)
    return tally.result()


def rows() -> list[Row]:
    found: list[Row] = []

    def add(what: str, reference: str, ours: Callable[[], Any], theirs: Callable[[], Any], n: int) -> None:
        found.append(Row(what, reference, *measure(ours, theirs, n)))

    for size, name in ((500, "1 kB"), (50_000, "50 kB")):
        decoded = answer(size)
        body = json.dumps(decoded).encode()
        n = 4000 if size < 1000 else 1000
        add(f"answer of {name}, bytes", "json.loads", lambda b=body: wire(b), lambda b=body: json.loads(b), n)
        add(
            f"answer of {name}, decoded", "json.loads",
            lambda d=decoded: read_response(d), lambda b=body: json.loads(b), n,
        )  # fmt: skip
    for with_key, name in ((True, "with a usage key"), (False, "without")):
        event = chunk(with_key)
        line = b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
        data = line[6:]
        add(f"chunk {name}, bytes", "json.loads", WireFeeder(line), lambda d=data: json.loads(d), 3000)
        tally = StreamTally()
        add(
            f"chunk {name}, decoded", "json.loads",
            lambda t=tally, e=event: t.feed(e), lambda d=data: json.loads(d), 3000,
        )  # fmt: skip
    found += counting()
    return found


class WireFeeder:
    """Feeds one tally with a stream of ordinary length after the other."""

    def __init__(self, line: bytes) -> None:
        self._line = line
        self._left = 0
        self._tally = WireTally(content_type="text/event-stream")

    def __call__(self) -> None:
        if self._left == 0:
            self._tally = WireTally(content_type="text/event-stream")
            self._left = 1000
        self._left -= 1
        self._tally.feed(self._line)


def counting() -> list[Row]:
    encode = encoding("o200k_base").encode_ordinary
    text = 'He said: "A word, and another one." ' * 30
    unseen = iter(range(10**9))
    request = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}
    reading = Reading(model="gpt-4o", api="chat", text=text)

    def fresh() -> str:
        return f"{next(unseen)} {text}"

    return [
        Row(
            "count of 1 kB, never seen", "tiktoken",
            *measure(lambda: count_text(fresh(), model="gpt-4o"), lambda: len(encode(fresh())), 1000),
        ),
        Row(
            "count of 1 kB, again", "tiktoken",
            *measure(lambda: count_text(text, model="gpt-4o"), lambda: len(encode(text)), 1000),
        ),
        Row(
            "fill of 1 kB and 1 kB, again", "tiktoken of both",
            *measure(lambda: fill(reading, request), lambda: (len(encode(text)), len(encode(text))), 1000),
        ),
    ]  # fmt: skip


def main() -> int:
    found = rows()
    if "--json" in sys.argv:
        print(json.dumps([{**vars(row), "ratio": row.ratio} for row in found]))
        return 0
    print(f"{'':34} {'ours':>9} {'reference':>9}  ratio")
    for row in found:
        print(
            f"{row.what:34} {row.ours_us:6.2f} µs {row.reference_us:6.2f} µs  {row.ratio:5.2f}"
            f"  of {row.reference}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
