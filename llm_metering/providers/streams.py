"""Streamed answers: a tally that is fed decoded events, in order, and knows at any time what came."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..fields import fields, first, get
from ..usage import Reading, Usage, Written
from .answers import OTHER_USAGE, believed, beside, is_more_than_text, served_by
from .dialects import dialect_of
from .more_steps import other
from .shapes import MESSAGES, Shape
from .steps import Step, step_of

CHARACTERS_A_TOKEN = 4


def read_stream(
    events: Iterable[Any], *, provider: str | None = None, api: str | None = None, keep_text: bool = False
) -> Reading:
    """Read a whole stream: decoded events (mappings or an SDK's objects), in order. Never raises for
    what the events hold."""
    tally = StreamTally(provider=provider, api=api, keep_text=keep_text)
    for event in events:
        tally.feed(event)
    return tally.result()


class StreamTally:
    """Reads a stream as it comes. `feed` is cheap and never raises.

    Args:
        provider: Whose stream it is, where you know better than the shape shows.
        api: "chat", "responses", "messages", … where the events do not say.
        keep_text: Keep what the model wrote even where the usage was reported.
    """

    __slots__ = (
        "_api", "_calls", "_chars", "_deltas", "_ended_choices", "_final", "_keep_text", "_more", "_pieces",
        "_provider", "_reported", "_shape", "_step", "_summed", "_thoughts", "ended", "failed", "id",
        "last_choice", "model", "unreadable",
    )  # fmt: skip

    def __init__(
        self, *, provider: str | None = None, api: str | None = None, keep_text: bool = False
    ) -> None:
        self._provider = provider
        self._api = api
        self._keep_text = keep_text
        self._shape: Shape | None = None
        self._step: Step = _find_step
        self._deltas: list[str] = []
        self._more: dict[int, list[str]] = {}
        self._calls: dict[Any, tuple[list[str], list[str]]] = {}
        self._pieces = 0
        self._reported: dict[str, Any] | Any = None
        self._final = False
        self._ended_choices: set[int] = set()
        self._summed = 0
        self._chars = 0
        self._thoughts: list[str] = []
        self.id: str | None = None
        self.model: str | None = None
        self.last_choice = 0
        self.ended = False
        """Whether the event that ends the answer came."""
        self.failed = False
        """Whether the provider reported an error in mid-stream."""
        self.unreadable = 0
        """How many events could not be read."""

    def feed(self, event: Any) -> None:
        """Take one decoded event: a mapping or an SDK's object."""
        try:
            self._step(self, event)
        except Exception:
            self.unreadable += 1

    @property
    def complete(self) -> bool:
        """Whether the provider's final usage came."""
        return self._final

    @property
    def text(self) -> str:
        """The visible text so far, of the first choice."""
        if len(self._deltas) > 1:
            self._sum_up()
            self._deltas[:] = ["".join(self._deltas)]
            self._summed = 1
        return self._deltas[0] if self._deltas else ""

    @property
    def tokens_so_far(self) -> int:
        """About how many tokens came, for progress rows: as many as there were deltas, or one for every
        four characters, if that is more."""
        self._sum_up()
        return max(self._pieces, self._chars // CHARACTERS_A_TOKEN)

    def _sum_up(self) -> None:
        new = self._deltas[self._summed :]
        self._pieces += len(new)
        self._chars += sum(map(len, new))
        self._summed = len(self._deltas)

    def result(self) -> Reading:
        """What came so far. "partial" where neither the final usage nor the stream's end was seen."""
        usage, problem = believed(self._reported)
        over = self._final or (self.ended and not self.failed)
        words = self._written() if self._keep_text or not (self._final and (usage or problem)) else None
        is_messages = self._shape is MESSAGES
        return Reading(
            usage=usage,
            model=(served_by(self._reported) if is_messages else None) or self.model,
            response_id=self.id,
            provenance="reported" if over else "partial",
            provider=self._provider or (self._shape.provider if self._shape else None),
            api=self._api or (self._shape.api if self._shape else None),
            problem=problem,
            text="".join(words.texts) or None if words else None,
            written=words if words and is_more_than_text(words) else None,
            beside=beside(self._reported, self.id) if is_messages else (),
        )

    def so_far(self, *, at_least: int = 0) -> Reading:
        """A cheap estimate of what is to be billed should the stream break off now; for progress rows."""
        usage, problem = believed(self._reported)
        known = usage.as_dict()
        known["output"] = max(known.get("output", 0), self.tokens_so_far, at_least)
        return Reading(
            usage=Usage() if problem else Usage(**known),
            model=self.model,
            response_id=self.id,
            provenance="partial",
            provider=self._provider or (self._shape.provider if self._shape else None),
            api=self._api or (self._shape.api if self._shape else None),
            problem=problem,
        )

    @property
    def add_plain(self) -> Callable[[str], None]:
        """Takes text of the first choice, from whoever has told such events apart from all others."""
        return self._deltas.append

    # What the steps call.

    def add_text(self, piece: str, choice: int) -> None:
        if type(piece) is not str:
            return
        if choice == 0:
            self._deltas.append(piece)
        else:
            self._more.setdefault(choice, []).append(piece)
            self._note_piece(piece)

    def add_thought(self, piece: str) -> None:
        if type(piece) is str:
            self._thoughts.append(piece)
            self._note_piece(piece)

    def add_call(self, key: Any, name: str | None, arguments: str | None) -> None:
        names, pieces = self._calls.setdefault(key, ([], []))
        if isinstance(name, str):
            names.append(name)
        if isinstance(arguments, str):
            pieces.append(arguments)
            self._note_piece(arguments)

    def _note_piece(self, piece: str) -> None:
        self._pieces += 1
        self._chars += len(piece)

    def end_choice(self, choice: int) -> None:
        self._ended_choices.add(choice)
        self.ended = len(self._ended_choices) > self.last_choice

    def name(self, id: Any, model: Any) -> None:
        if self.id is None and isinstance(id, str) and id:
            self.id = id
        if isinstance(model, str) and model:
            self.model = model

    def report(self, usage: Any, *, final: bool) -> None:
        """Note a reported usage. Numbers are running totals: a later one replaces an earlier one."""
        if usage is None:
            return
        present = fields(usage)
        if not present and usage != {}:
            self._reported = usage  # not an object: `believed` says so
        elif isinstance(self._reported, dict):
            self._reported.update({k: v for k, v in present.items() if v is not None})
        else:
            self._reported = dict(present)
        self._final = self._final or (final and (not present or dialect_of(self._reported) is not None))

    def largest(self, counts: dict[str, int]) -> dict[str, int]:
        """These counts, but none lower than what was reported under the same name before."""
        before = self._reported if isinstance(self._reported, dict) else {}
        return {
            name: max(count, before[name]) if type(count) is int and type(before.get(name)) is int else count
            for name, count in counts.items()
        }

    def conclude(self) -> None:
        """Nothing more will be reported: what was is final."""
        self._final = self._final or dialect_of(self._reported) is not None

    def forget_text(self) -> None:
        """Let go of the text so far, to bound memory; `tokens_so_far` keeps what it held."""
        self._sum_up()
        self._deltas.clear()
        self._summed = 0
        self._more.clear()
        self._calls.clear()
        self._thoughts.clear()

    def start(self, shape: Shape | None, step: Step) -> None:
        self._shape = shape
        self._step = step

    @property
    def api(self) -> str | None:
        return self._api

    def _written(self) -> Written:
        texts = [self.text] if self._deltas else []
        texts += map("".join, self._more.values())
        calls = tuple(("".join(name), "".join(pieces)) for name, pieces in self._calls.values())
        return Written(tuple(texts), calls, "".join(self._thoughts))


def _find_step(tally: StreamTally, event: Any) -> None:
    """The first step of every stream: find out whose it is."""
    found = step_of(event, tally.api) or (step_of(event, None) if tally.api else None)
    if found is not None:
        tally.start(*found)
        found[1](tally, event)
    elif dialect_of(first(event, OTHER_USAGE)) is not None:
        tally.start(None, other)
        other(tally, event)
    elif get(event, "error") is not None:
        tally.failed = True
