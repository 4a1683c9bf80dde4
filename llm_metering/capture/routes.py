"""Which of the app's own routes answer like a provider, told from the path alone."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence

from ..errors import ConfigurationError

DEFAULT_PATHS = (
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
"""Paths whose answers the middleware reads; `*` stands for anything, slashes too."""

DEFAULT_PUBLIC_PATHS = ("*/health", "*/healthz", "*/live", "*/livez", "*/ready", "*/readyz", "*/ping")
"""Paths that are served without a customer even where a missing one is rejected: probes of the platform."""


def path_matcher(
    patterns: Sequence[str], *, name: str = "paths"
) -> tuple[tuple[str, ...], Callable[[str], bool]]:
    """What every path that matches one of `patterns` ends with, and the test whether one does.

    Most paths end with nothing of the kind, and the caller can tell without a call of ours.

    Raises:
        ConfigurationError: A pattern is not a path.
    """
    if isinstance(patterns, str):
        raise ConfigurationError(f"{name}={patterns!r} is one string; give a list: [{patterns!r}]")
    patterns = tuple(patterns)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern.startswith(("/", "*")):
            raise ConfigurationError(
                f"{name} holds {pattern!r}; a pattern begins with / or *, such as '*/chat/completions'"
            )
    suffixes = tuple(p[1:] for p in patterns if p.startswith("*") and not _is_wild(p[1:]))
    others = [p for p in patterns if not p.startswith("*") or _is_wild(p[1:])]
    wild = re.compile("|".join(map(fnmatch.translate, others))).match if others else None
    ends = (*suffixes, *map(_plain_end, others), "/")

    def matches(path: str) -> bool:
        # A trailing slash is the same route.
        return path.endswith(ends) and (path.endswith(suffixes) or _is_other(path))

    def _is_other(path: str) -> bool:
        if wild is not None and wild(path) is not None:
            return True
        plain = path.rstrip("/")
        return plain != path and (plain.endswith(suffixes) or (wild is not None and wild(plain) is not None))

    return ends, matches


def _plain_end(pattern: str) -> str:
    """What every path that matches ends with."""
    return re.split(r"[*?\]]", pattern)[-1]


def _is_wild(pattern: str) -> bool:
    return any(c in pattern for c in "*?[")
