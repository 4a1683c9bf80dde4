"""Which paths of the providers' APIs bring usage, as the SDKs spell them."""

from __future__ import annotations

import functools
from typing import NamedTuple


class Route(NamedTuple):
    """What a path of an API brings."""

    api: str
    counted: bool = True
    """Whether usage that is not reported is counted by us."""
    lookup: bool = False
    """Whether it gives an answer that was made earlier."""


_ROUTES = {
    "/chat/completions": Route("chat"),
    "/completions": Route("completions"),
    "/responses": Route("responses"),
    "/responses/compact": Route("responses"),
    "/embeddings": Route("embeddings"),
    "/v1/messages": Route("messages"),
    "/images/generations": Route("images", counted=False),
    "/images/edits": Route("images", counted=False),
    "/audio/transcriptions": Route("audio", counted=False),
    "/audio/translations": Route("audio", counted=False),
}

_LOOKUP = Route("responses", lookup=True)


@functools.lru_cache(maxsize=1024)
def route_of(method: str, url: str) -> Route | None:
    """What a request brings; None where it brings no usage."""
    path = url.partition("?")[0].rstrip("/")
    if method.lower() == "post":
        for suffix, route in _ROUTES.items():
            if path.endswith(suffix):
                return route
        is_cancel = path.endswith("/cancel")
        return _LOOKUP if is_cancel and _is_response(path.removesuffix("/cancel")) else None
    return _LOOKUP if method.lower() == "get" and _is_response(path) else None


def _is_response(path: str) -> bool:
    parent, _, name = path.rpartition("/")
    return parent.endswith("/responses") and name.startswith("resp")
