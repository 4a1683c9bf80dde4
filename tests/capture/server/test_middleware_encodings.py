"""Answers of the app in brotli and zstd, bounded as gzip is; and streams as real servers frame them."""

from __future__ import annotations

import builtins
import gzip
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from llm_metering.capture import inflating
from llm_metering.capture.bodies import Inflater
from llm_metering.capture.middleware import MeteringMiddleware

brotli = pytest.importorskip("brotli", reason="brotli is not installed")
zstd = pytest.importorskip("backports.zstd", reason="backports.zstd is not installed")
pytest.importorskip("zstandard", reason="zstandard is not installed")

pytestmark = pytest.mark.anyio

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
PACK: dict[str, Callable[[bytes], bytes]] = {
    "br": lambda plain: brotli.compress(plain, quality=5),
    "zstd": lambda plain: zstd.compress(plain[: len(plain) // 2]) + zstd.compress(plain[len(plain) // 2 :]),
}


@pytest.fixture
def _forgotten() -> Any:
    """What is installed is asked anew, before and after."""
    inflating.decompressor_of.cache_clear()
    yield
    inflating.decompressor_of.cache_clear()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch, _forgotten: Any) -> Callable[..., None]:
    """Have packages be missing."""

    def hide(*packages: str) -> None:
        real = builtins.__import__

        def importing(
            name: str, globals: Any = None, locals: Any = None, names: Any = (), level: int = 0
        ) -> Any:
            if name.partition(".")[0] in packages:
                raise ImportError(name)
            return real(name, globals, locals, names, level)

        monkeypatch.setattr(builtins, "__import__", importing)

    return hide


def answering(*chunks: bytes, content_type: str, encoding: str | None = None) -> Any:
    head = [(b"content-type", content_type.encode())]
    head += [(b"content-encoding", encoding.encode())] if encoding else []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for i, chunk in enumerate(chunks):
            await send({"type": "http.response.body", "body": chunk, "more_body": i < len(chunks) - 1})

    return app


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("encoding", ["br", "zstd"])
async def test_an_answer_is_read_and_passes_compressed(home, wire, encoding, streamed, size):
    events = b"".join(wire.events(["Hello", " there"], usage=USAGE))
    plain = events if streamed else json.dumps(wire.chat(usage=USAGE)).encode()
    packed = PACK[encoding](plain)
    pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
    kind = "text/event-stream" if streamed else "application/json"
    app = answering(*pieces, content_type=kind, encoding=encoding)
    passed = await wire.exchange(MeteringMiddleware(app, home))
    assert passed.body == packed
    record = home.books.only
    assert (record.usage.input, record.usage.output, record.provenance) == (9, 4, "reported")


@pytest.mark.parametrize("encoding", ["br", "zstd"])
async def test_a_stream_that_is_flushed_event_by_event_is_billed_where_it_breaks_off(home, wire, encoding):
    events = wire.events(["One", " two", " three"])[:2]
    if encoding == "br":
        packer = brotli.Compressor(quality=4)
        chunks = [packer.process(event) + packer.flush() for event in events]
    else:
        writer = zstd.ZstdCompressor()
        chunks = [writer.compress(event, writer.FLUSH_BLOCK) for event in events]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        head = [(b"content-type", b"text/event-stream"), (b"content-encoding", encoding.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        raise ConnectionError("the provider hung up")

    with pytest.raises(ConnectionError):
        await wire.exchange(MeteringMiddleware(app, home))
    record = home.books.only
    assert (record.usage.output, record.provenance) == (2, "partial")


@pytest.mark.parametrize("package", ["brotli", "backports.zstd", "zstandard"])
async def test_a_bomb_is_not_inflated(new_home, wire, package, without):
    if package == "zstandard":
        without("backports", "compression")
    home = new_home(customer="cus_a", max_body_bytes=1 << 20)
    plain = b" " * (256 << 20)
    encoding = "br" if package == "brotli" else "zstd"
    bomb = brotli.compress(plain, quality=2) if encoding == "br" else zstd.compress(plain)
    del plain
    app = answering(bomb, content_type="application/json", encoding=encoding)
    tracemalloc.start()
    try:
        passed = await wire.exchange(MeteringMiddleware(app, home))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert passed.body == bomb
    assert peak < 24 << 20
    assert "inflates to more than" in (home.books.only.held or "")


async def test_a_zstd_window_that_is_too_large_is_refused(home, wire):
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    writer = zstd.ZstdCompressor(options=options)
    packed = writer.compress(b'{"a":1}' * 10) + writer.flush()
    app = answering(packed, content_type="application/json", encoding="zstd")
    assert (await wire.exchange(MeteringMiddleware(app, home))).body == packed
    assert "cannot be inflated" in (home.books.only.held or "")


@pytest.mark.parametrize("encoding", ["br", "zstd"])
async def test_garbage_passes_and_is_marked(home, wire, encoding):
    body = b"\x00\x01\x02 no such thing"
    app = answering(body, content_type="application/json", encoding=encoding)
    assert (await wire.exchange(MeteringMiddleware(app, home))).body == body
    assert "cannot be inflated" in (home.books.only.held or "")


@pytest.mark.parametrize(
    ("encoding", "packages"), [("br", ["brotli"]), ("zstd", ["backports", "compression", "zstandard"])]
)
async def test_without_the_package_one_alarm_is_raised_and_each_answer_is_kept(
    new_home, wire, without, encoding, packages
):
    home = new_home(customer="cus_a")
    alarms: list[Any] = []
    home.telemetry.alarm = lambda name, message, /, **data: alarms.append((name, message))
    without(*packages)
    packed = PACK[encoding](json.dumps(wire.chat(usage=USAGE)).encode())
    app = MeteringMiddleware(answering(packed, content_type="application/json", encoding=encoding), home)
    for _ in range(3):
        assert (await wire.exchange(app)).body == packed
    assert [name for name, _ in alarms] == ["middleware.encoding"]
    assert "llm_metering[compression]" in alarms[0][1]
    assert len(home.books.records) == 3
    assert all("is not read" in (record.held or "") for record in home.books.records)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_comments_keep_alives_and_any_line_end_change_nothing(new_home, wire, end):
    plain = b"".join(wire.events(["One", " two"], usage=USAGE))
    noisy = b": open\n\n" + plain.replace(b"\n\n", b"\n\n: keep-alive\n\n").replace(
        b"data", b"retry: 9\ndata"
    )
    body = noisy.replace(b"\n", end)
    counted = []
    for size in (1, 2, 3, 5, 64, len(body)):
        home = new_home(customer="cus_a")
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        app = answering(*pieces, content_type="text/event-stream; charset=utf-8")
        assert (await wire.exchange(MeteringMiddleware(app, home))).body == body
        counted.append((home.books.only.usage, home.books.only.provenance, home.failures))
    assert counted == [counted[0]] * len(counted)
    assert (counted[0][0].input, counted[0][0].output, counted[0][1:]) == (9, 4, ("reported", {}))


EMPTY = {"gzip": gzip.compress(b""), "zstd": zstd.compress(b"")}


@pytest.mark.parametrize("encoding", EMPTY)
async def test_parts_without_number_and_without_content_are_not_gone_through(new_home, wire, encoding):
    home = new_home(customer="cus_x")
    body = EMPTY[encoding] * 10_000
    app = answering(body, content_type="application/json", encoding=encoding)
    assert (await wire.exchange(MeteringMiddleware(app, home))).body == body
    assert "compressed parts" in home.books.only.held


@pytest.mark.parametrize("encoding", EMPTY)
async def test_an_answer_in_very_many_parts_is_read(new_home, wire, encoding):
    home = new_home(customer="cus_x")
    pack = gzip.compress if encoding == "gzip" else zstd.compress
    events = wire.events(["x"] * 6000, usage=USAGE)
    parts = [pack(event) for event in events]
    app = answering(*parts, content_type="text/event-stream", encoding=encoding)
    assert (await wire.exchange(MeteringMiddleware(app, home))).body == b"".join(parts)
    assert home.counter.settle(30)
    assert home.books.only.usage.total == 13


def test_zeros_between_parts_are_no_damage_however_many():
    inflater = Inflater("gzip", 1000)
    assert inflater.feed(gzip.compress(b"a") + bytes(100_000) + gzip.compress(b"b")) == b"ab"
    assert inflater.problem is None
