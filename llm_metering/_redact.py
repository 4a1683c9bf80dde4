"""Text that came from outside, made fit for a log line: no secrets, no line breaks, no great length."""

from __future__ import annotations

import re

_SECRETS = re.compile(
    r"""
    \b(?P<stripe>[a-z]{2,5}_(?:live|test|org)_(?:live_|test_)?)[A-Za-z0-9_*.]+  # sk_test_…, rk_live_…
    | \b(?P<hook>whsec_)[A-Za-z0-9+/=_]+
    | \b(?P<model>sk-(?:ant-|proj-|svcacct-|or-)?)[A-Za-z0-9_-]{8,}           # OpenAI, Anthropic, others
    | (?P<scheme>\b(?:Bearer|Basic)\s+)[A-Za-z0-9+/=._~-]{6,}
    | (?P<url>://)[^/\s:@]*:[^/\s@]*@                                         # user:password@ in a URL
    """,
    re.VERBOSE | re.IGNORECASE,
)


def mask(text: str) -> str:
    """`text` with API keys, tokens and passwords replaced by `***`."""
    return _SECRETS.sub(_masked, text)


def one_line(text: str, limit: int = 300) -> str:
    """`text` without secrets, on one line, at most `limit` characters."""
    text = mask(text[: limit * 8])
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _masked(match: re.Match[str]) -> str:
    kept = match[match.lastgroup] if match.lastgroup else ""
    return f"{kept}***" if match.lastgroup != "url" else f"{kept}***@"
