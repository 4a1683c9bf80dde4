"""Which of the app's own routes answer like a provider, told from the path alone."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence

from ..errors import ConfigurationError
from .paths import plain_path

SURE_PATHS = (
    # OpenAI and everybody who is compatible
    "*/chat/completions",
    "*/completions",
    "*/responses",
    "*/embeddings",
    # Anthropic
    "*/messages",
    # Gemini
    "*/models/*:generateContent",
    "*/models/*:streamGenerateContent",
)
"""Paths that nobody has but for a model: an answer that is not understood there is kept for a person."""

SHARED_PATHS = (
    # OpenAI: what may report no tokens, and what is usual elsewhere too
    "*/responses/compact",
    "*/images/generations",
    "*/images/edits",
    "*/audio/transcriptions",
    "*/audio/translations",
    "*/audio/speech",
    "*/threads/runs",
    "*/threads/*/runs",
    "*/submit_tool_outputs",
    # Gemini and Vertex
    "*/models/*:embedContent",
    "*/models/*:batchEmbedContents",
    "*/models/*:predict",
    "*/models/*:rawPredict",
    "*/models/*:streamRawPredict",
    "*/interactions",
    # Bedrock
    "*/model/*/converse",
    "*/model/*/converse-stream",
    "*/model/*/invoke",
    "*/model/*/invoke-with-response-stream",
    # Cohere, Voyage and Jina
    "*/v1/chat",
    "*/v2/chat",
    "*/v1/generate",
    "*/v1/embed",
    "*/v2/embed",
    "*/rerank",
    # Mistral
    "*/conversations",
    "*/conversations/*",
    # Ollama
    "*/api/chat",
    "*/api/generate",
    "*/api/embed",
    # watsonx
    "*/text/chat",
    "*/text/chat_stream",
    "*/text/generation",
    "*/text/generation_stream",
    # Hugging Face's server
    "/generate",
    "*/generate_stream",
)
"""Paths that apps have for other things, too: what is no answer of a provider's passes unnoticed."""

DEFAULT_PATHS = (*SURE_PATHS, *SHARED_PATHS)
"""Paths whose answers the middleware reads; `*` stands for anything, slashes too."""

EMBEDDING_PATHS = ("/embeddings", "/embed", ":embedContent", ":batchEmbedContents", ":predict")
"""Ends of paths that bring embeddings, and no words to count."""

DEFAULT_PUBLIC_PATHS = ("*/health", "*/healthz", "*/live", "*/livez", "*/ready", "*/readyz", "*/ping")
"""Paths that are served without a customer even where a missing one is rejected: probes of the platform."""


_MOST_REMEMBERED = 1024
_LONGEST_REMEMBERED = 200


class Remembered(dict[str, bool]):
    """What a test says of a path, by the path: apps have few, and one that was seen is told in one step.

    Clients choose paths, so that neither many nor long ones are kept.
    """

    def __init__(self, test: Callable[[str], bool]) -> None:
        self._test = test

    def __missing__(self, path: str) -> bool:
        found = self._test(path)
        if len(path) <= _LONGEST_REMEMBERED:
            if len(self) >= _MOST_REMEMBERED:
                self.clear()
            self[path] = found
        return found


def path_matcher(
    patterns: Sequence[str], *, name: str = "paths", surely: bool = False
) -> Callable[[str], bool]:
    """A quick test whether a path matches one of `patterns`, as it is or as `plain_path` has it.

    Args:
        surely: Whether it has to match in both ways.

    Raises:
        ConfigurationError: A pattern is not a path.
    """
    patterns = _checked(patterns, name)
    matches, matches_plain = _matcher(patterns), _matcher([pattern.lower() for pattern in patterns])

    def matches_either(path: str) -> bool:
        return matches(path) or ((plain := plain_path(path)) is not None and matches_plain(plain))

    def matches_both(path: str) -> bool:
        return matches(path) and ((plain := plain_path(path)) is None or matches_plain(plain))

    return Remembered(matches_both if surely else matches_either).__getitem__


def _checked(patterns: Sequence[str], name: str) -> tuple[str, ...]:
    if isinstance(patterns, str):
        raise ConfigurationError(f"{name}={patterns!r} is one string; give a list: [{patterns!r}]")
    patterns = tuple(patterns)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern.startswith(("/", "*")):
            raise ConfigurationError(
                f"{name} holds {pattern!r}; a pattern begins with / or *, such as '*/chat/completions'"
            )
    return patterns


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    by_tail: dict[str, list[str]] = {}
    loose: list[str] = []
    for pattern in patterns:
        tail = _tail(pattern)
        by_tail.setdefault(tail, []).append(pattern) if tail and not _is_wild(tail) else loose.append(pattern)
    tests = {tail: _test(each) for tail, each in by_tail.items()}
    is_loose = _test(loose)
    # What every path that only a search can tell has in common, where there is such a thing.
    shared = _longest_part(loose[0]) if len(loose) == 1 else "/" if loose else "\0"

    def matches(path: str) -> bool:
        # The common case is a path that matches nothing: it is told by its last word.
        tail = path.rpartition("/")[2]
        if tail in tests and tests[tail](path):
            return True
        if ":" in tail and (verb := tail.rpartition(":")[2]) in tests and tests[verb](path):
            return True
        if shared in path and is_loose(path):
            return True
        # A trailing slash is the same route.
        return not tail and len(path) > 1 and path[-1] == "/" and matches(path.rstrip("/"))

    return matches


def _tail(path: str) -> str:
    """What stands after the last slash or colon."""
    return path[max(path.rfind("/"), path.rfind(":")) + 1 :]


def _test(patterns: Sequence[str]) -> Callable[[str], bool]:
    suffixes = tuple(p[1:] for p in patterns if p.startswith("*") and not _is_wild(p[1:]))
    others = [p for p in patterns if not p.startswith("*") or _is_wild(p[1:])]
    if not others:
        return lambda path: path.endswith(suffixes)
    match = re.compile("|".join(map(fnmatch.translate, others))).match
    return lambda path: path.endswith(suffixes) or match(path) is not None


def _longest_part(pattern: str) -> str:
    """What every path that matches holds."""
    return max(re.split(r"[*?]|\[.*\]", pattern), key=len)


def _is_wild(pattern: str) -> bool:
    return any(c in pattern for c in "*?[]")
