"""Answers that look as others did, but for their numbers and names: recognised without being decoded.

A service sees a handful of forms: the same keys in the same order, for each provider and model. The first
answer of a form is decoded, and gives two patterns, of its beginning and of its end; what fits them would be
decoded to the same, with other values in the same places. Whatever fits no pattern is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

from .._values import maker
from ..usage import MAX_TOKENS, Reading
from .dialects import dialect_of
from .ends import plain_head
from .numbers import Arithmetic, arithmetic, parts_of
from .shapes import Shape

Path = tuple[str, ...]

MOST_FORMS = 8
MOST_LEARNED = 64
"""Learning costs a millisecond: what never repeats itself is decoded instead."""

_MOST_BYTES = 4096
_CHARS = rb"[ !#-\[\]-~]"
"""Of a string without escapes that is the same in every encoding."""
_STRING = rb'"' + _CHARS + rb'{0,256}"'
_NAME = rb'"(' + _CHARS + rb'{1,256})"'
_COUNT = rb"(0|[1-9][0-9]{0,18})"
_NUMBER = rb"-?(?:0|[1-9][0-9]{0,18})(?:\.[0-9]{1,19})?"
_SPACE = rb"[ \t\r\n]"
_TOKEN = re.compile(_SPACE + rb"+|" + _STRING + rb"|" + _NUMBER + rb"(?![0-9.eE])|true|false|null|[{}\[\]:,]")
_OBJECTS_FOLLOW = re.compile(
    rb'"' + _CHARS + rb'{1,64}"' + _SPACE + rb"{0,8}:" + _SPACE + rb"{0,8}\[" + _SPACE + rb"{0,64}\{"
)
"""What ends the plain pairs at the beginning of an answer, such as `"choices": [{`."""


class Form(NamedTuple):
    """The form of an answer, and which groups of its patterns hold what."""

    head: re.Pattern[bytes]
    tail: re.Pattern[bytes]
    model: int
    id: int | None
    counts: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]
    """The groups that hold numbers: one for each of those that `usage` takes."""
    usage: Arithmetic
    total: int | None
    provider: str
    api: str


class Forms:
    """The forms that were seen lately, of answers that are read with the same options."""

    __slots__ = ("_known", "_left")

    def __init__(self) -> None:
        self._known: tuple[Form, ...] = ()
        self._left = MOST_LEARNED

    def read(self, head: bytes, tail: bytes) -> Reading | None:
        """The reading of an answer with these ends; None where its form is not known."""
        if not self._known:
            return None
        at = tail.rfind(b'"usage')
        if at <= 0 or tail[at - 1] == 0x5C:
            return None
        for form in self._known:
            begun = form.head.match(head)
            if begun is None or (tail is head and at < begun.end()):
                continue
            ended = form.tail.fullmatch(tail, at)
            if ended is not None:
                return _reading(form, begun.groups() + ended.groups())
        return None

    def learn(self, head: bytes, tail: bytes, answer: dict[str, Any], shape: Shape, reading: Reading) -> None:
        """Remember the form of an answer that was decoded, and read as this."""
        if self._left > 0:
            self._left -= 1
            form = _form_of(head, tail, answer, shape, reading)
            if form is not None:
                self._known = (form, *self._known)[:MOST_FORMS]


_found = maker(Reading)


def _reading(form: Form, values: tuple[bytes, ...]) -> Reading | None:
    counts = [*map(int, form.counts(values))]
    if max(counts) > MAX_TOKENS:
        return None
    usage = form.usage(counts, None if form.total is None else int(values[form.total]))
    if usage is None:
        return None
    id_ = None if form.id is None else values[form.id].decode()
    return _found(usage, values[form.model].decode(), id_, "reported", form.provider, form.api)


def _form_of(head: bytes, tail: bytes, answer: dict[str, Any], shape: Shape, reading: Reading) -> Form | None:
    if shape.model != (("model",),) or shape.id != (("id",),) or shape.usage[0] != ("usage",):
        return None
    plain = plain_head(head)
    follows = _OBJECTS_FOLLOW.match(head, len(plain))
    if follows is None or b'"model"' not in plain or reading.provider is None or reading.api is None:
        return None
    reported = answer.get("usage")
    dialect = dialect_of(reported)
    planned = None if dialect is None else parts_of(reported, dialect)
    if dialect is None or planned is None:
        return None
    names, parts = planned
    paths = [("usage", *name) for name in names]
    wanted: dict[Path, bytes] = {("model",): _NAME, ("id",): _NAME, **dict.fromkeys(paths, _COUNT)}
    total = None if dialect.total is None else ("usage", dialect.total)
    if total is not None:
        wanted[total] = _COUNT
    end = tail[tail.rfind(b'"usage') :]
    found = _patterns(plain, end, wanted)
    if found is None:
        return None
    first, second, groups = found
    if ("model",) not in groups or any(path not in groups for path in paths):
        return None
    if total not in groups and total is not None and dialect.total in (reported or ()):
        return None
    return Form(
        re.compile(first + re.escape(follows.group())),
        re.compile(second),
        groups["model",],
        groups.get(("id",)),
        _getter([groups[path] for path in paths]),
        arithmetic(parts, dialect.beyond),
        None if total is None else groups.get(total),
        reading.provider,
        reading.api,
    )


def _patterns(
    plain: bytes, end: bytes, wanted: dict[Path, bytes]
) -> tuple[bytes, bytes, dict[Path, int]] | None:
    """Patterns for both ends of an object, with a group for each wanted value, in order.

    None where it holds what a pattern cannot stand for: escapes, other alphabets, a key twice.
    """
    text = plain + end
    if len(text) > _MOST_BYTES:
        return None
    made: list[list[bytes]] = [[], []]
    groups: dict[Path, int] = {}
    seen: set[Path] = set()
    path: list[str] = []
    at, is_key = 0, False
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return None
        piece = token.group()
        kind = piece[:1]
        pattern = re.escape(piece)
        if kind in b"{[":
            path.append("")
            is_key = kind == b"{"
        elif kind in b"}]":
            path.pop()
        elif kind == b",":
            is_key = True
        elif kind == b'"' and is_key:
            path[-1] = piece[1:-1].decode()
            is_key = False
            if tuple(path) in seen:
                return None
            seen.add(tuple(path))
        elif kind not in b": \t\r\n":
            pattern = _value(piece, tuple(path), wanted, groups)
        made[at >= len(plain)].append(pattern)
        at = token.end()
    return b"".join(made[0]), b"".join(made[1]) + _SPACE + rb"*", groups


def _value(piece: bytes, path: Path, wanted: dict[Path, bytes], groups: dict[Path, int]) -> bytes:
    pattern = wanted.get(path)
    if pattern is not None and re.fullmatch(pattern, piece):
        groups[path] = len(groups)
        return pattern
    if path in (("object",), ("type",)) or piece in (b"true", b"false", b"null"):
        return piece if piece.isalpha() else re.escape(piece)
    return _STRING if piece.startswith(b'"') else _NUMBER


def _getter(groups: list[int]) -> Callable[[tuple[bytes, ...]], tuple[bytes, ...]]:
    """As `itemgetter`, with a tuple for one, too."""
    if len(groups) == 1:
        (only,) = groups
        return lambda values: (values[only],)
    return itemgetter(*groups)


def forms_of(provider: str | None, api: str | None) -> Forms:
    """The forms of answers that are read with these options."""
    found = _forms.get((provider, api))
    if found is None:
        found = Forms() if len(_forms) >= MOST_LEARNED else _forms.setdefault((provider, api), Forms())
    return found


_forms: dict[tuple[str | None, str | None], Forms] = {}
