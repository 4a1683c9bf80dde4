"""Reading an SDK's stream with a tap on it. Most events add a piece of text and nothing else; those are told
apart here, in the fewest steps that are sure, and everything else goes to the tally."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from .streams import EVENTS_BETWEEN_LOOKS

if TYPE_CHECKING:
    from .streams import StreamTap

Plain = Callable[[Any], "str | None"]
"""The text of an event that adds nothing else, None for any other; may raise for what it does not know."""


def read(inner: Iterator[Any], tap: StreamTap, *, api: str | None, hide_usage: bool) -> Iterator[Any]:
    """Give the events on as they come, and finish the tap when they end or fail."""
    feed, tally = tap.feed, cast("Any", tap.tally)
    keep, quick, plain = _quick(tally, api)
    left, due = 0, 0.0
    try:
        for event in inner:
            try:
                text = plain(event)
            except Exception:
                text = None
            if text is None:
                feed(event)
                if plain is not quick and tally.id is not None:
                    plain = quick
                if hide_usage and is_usage_only(event):
                    continue
            else:
                keep(text)
            left -= 1
            if left < 0 or monotonic() >= due:
                left, due = EVENTS_BETWEEN_LOOKS, tap.look()
            yield event
    except GeneratorExit:
        # Nobody reads on; the tap itself sees to it when it dies, or when the stream is closed.
        raise
    except BaseException:
        tap.finish(complete=False)
        raise
    tap.finish()


async def read_async(
    inner: AsyncIterator[Any], tap: StreamTap, *, api: str | None, hide_usage: bool
) -> AsyncIterator[Any]:
    """As `read`."""
    feed, tally = tap.feed, cast("Any", tap.tally)
    keep, quick, plain = _quick(tally, api)
    left, due = 0, 0.0
    try:
        async for event in inner:
            try:
                text = plain(event)
            except Exception:
                text = None
            if text is None:
                feed(event)
                if plain is not quick and tally.id is not None:
                    plain = quick
                if hide_usage and is_usage_only(event):
                    continue
            else:
                keep(text)
            left -= 1
            if left < 0 or monotonic() >= due:
                left, due = EVENTS_BETWEEN_LOOKS, tap.look()
            yield event
    except GeneratorExit:
        raise
    except BaseException:
        tap.finish(complete=False)
        raise
    tap.finish()


def _quick(tally: Any, api: str | None) -> tuple[Callable[[str], None], Plain, Plain]:
    """What takes plain text, what tells it apart once the tally knows whose stream it is, and until then."""
    if not hasattr(tally, "add_plain"):
        return _nothing, _nothing, _nothing
    return tally.add_plain, _PLAIN.get(api or "", _nothing), _nothing


def is_usage_only(chunk: Any) -> bool:
    """Whether a chat chunk holds the usage and nothing that was said."""
    return getattr(chunk, "usage", None) is not None and not chunk.choices


def _chat(event: Any) -> str | None:
    chunk = event.__dict__
    (choice,) = chunk["choices"]
    choice = choice.__dict__
    delta = choice["delta"]
    text = delta.__dict__["content"]
    if (
        text
        and chunk["usage"] is None
        and choice["finish_reason"] is None
        and not choice["index"]
        and len(delta.__pydantic_fields_set__) == 1
        and not delta.__pydantic_extra__
    ):
        return text if type(text) is str else None
    return None


def _message(event: Any) -> str | None:
    if event.__dict__["type"] != "content_block_delta":
        return None
    delta = event.__dict__["delta"].__dict__
    return delta["text"] if delta["type"] == "text_delta" else None


def _response(event: Any) -> str | None:
    fields = event.__dict__
    return fields["delta"] if fields["type"] == "response.output_text.delta" else None


def _nothing(event: Any) -> None:
    return None


_PLAIN: dict[str, Plain] = {"chat": _chat, "messages": _message, "responses": _response}
