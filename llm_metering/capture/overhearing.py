"""An adapter sees a call from outside, often without the provider's response id: what was recorded while the
call was under way, with the same counts, is the same answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..usage import NOTHING, Reading, Surface
from .context import Heard, Listening, Opened

if TYPE_CHECKING:
    from .context import Scope
    from .recorder import Recorder

_MAX_HEARD = 256


def tell(listeners: Iterable[Listening], reading: Reading, surface: Surface) -> None:
    """Note a record for the adapters that listen."""
    heard = Heard(reading, surface)
    for each in listeners:
        if len(each.records) < _MAX_HEARD:
            each.records.append(heard)


def tell_opened(listeners: Iterable[Listening], tally: object) -> Opened:
    """Note a stream that is being read, for the adapters that listen."""
    opened = Opened(tally)
    for each in listeners:
        if len(each.streams) < _MAX_HEARD:
            each.streams.append(opened)
    return opened


class WatchedCall:
    """One call that an adapter is told of when it begins and when it ends.

    The scope is the one in which the call began, wherever it ends: callbacks run on threads of others.

    Args:
        recorder: Where the record goes.
        surface: The adapter.
        scope: Default: the current one.
    """

    __slots__ = ("_heard", "_recorder", "_surface", "scope")

    def __init__(self, recorder: Recorder, surface: Surface, *, scope: Scope | None = None) -> None:
        self._recorder = recorder
        self._surface: Surface = surface
        self.scope = recorder.scope_here() if scope is None else scope
        self._heard = Listening()
        self.scope.sightings.listen(self._heard)

    def forget(self) -> None:
        """The call came to nothing."""
        self.scope.sightings.unlisten(self._heard)

    def answered(
        self,
        reading: Reading,
        *,
        request: Any = None,
        model: str | None = None,
        dimensions: Mapping[str, str] = NOTHING,
        own_id: bool = False,
        lasting: str | None = None,
    ) -> None:
        """Record the answer, unless something inside has. Never raises.

        Args:
            reading: What the adapter was told.
            request: The call's arguments, for counting what was not reported.
            model: Where the reading names none.
            dimensions: The adapter's.
            own_id: The response id may have been made up on the way, or be another by the time that the app
                answers; the counts decide where the ids differ.
            lasting: The record id of an answer that may be asked for again.
        """
        self.forget()
        if not (reading.usage or reading.problem or reading.text or reading.written or reading.response_id):
            self._recorder.telemetry.count(f"{self._surface}.unread")
            return
        if self._was_heard(reading, own_id) or (reading.provenance == "partial" and self._is_open(reading)):
            return
        self._recorder.record(
            reading,
            surface=self._surface,
            request=request,
            model=model,
            dimensions=dimensions,
            id=lasting,
            closes=lasting,
            scope=self.scope,
        )

    def _was_heard(self, reading: Reading, own_id: bool) -> bool:
        if reading.response_id is not None and any(
            heard.reading.response_id == reading.response_id for heard in self._heard.records
        ):
            return False  # known by its id: then the recorder knows how often it is to be counted
        for heard in self._heard.records:
            if heard.surface == self._surface or self._surface in heard.claimed:
                continue
            if _is_same(heard.reading, reading, own_id):
                heard.claimed.add(self._surface)
                return True
        return False

    def _is_open(self, reading: Reading) -> bool:
        """Whether what broke off is a stream that somebody inside has not closed yet, and records then."""
        for opened in self._heard.streams:
            text = getattr(opened.tally, "text", None)
            is_other = isinstance(text, str) and not text.startswith(reading.text or "")
            if not (opened.is_over or is_other or self._surface in opened.claimed):
                opened.claimed.add(self._surface)
                return True
        return False


def _is_same(heard: Reading, reading: Reading, own_id: bool) -> bool:
    if heard.response_id is not None and reading.response_id is not None and not own_id:
        return False  # then the ids decide
    if not reading.usage or not heard.usage:
        # One of the two was not told any counts; they saw one call all the same if they are of a kind.
        return (heard.api == "embeddings") == (reading.api == "embeddings")
    return (heard.usage.input_total, heard.usage.output_total) == (
        reading.usage.input_total,
        reading.usage.output_total,
    )
