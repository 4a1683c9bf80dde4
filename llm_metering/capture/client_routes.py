"""Which paths of the providers' APIs bring usage, as the SDKs spell them."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple
from urllib.parse import unquote

from .paths import plain_path


class Route(NamedTuple):
    """What a path of an API brings."""

    api: str | None
    """None where the answer's own shape says it."""
    counted: bool = True
    """Whether usage that is not reported is counted by us."""
    lookup: bool = False
    """Whether it gives an answer that was made earlier."""
    lasting: bool = False
    """Whether the answer goes on without us, and may be asked for again and again: it is one record still."""


_ROUTES = {
    "/chat/completions": Route("chat"),
    "/agents/completions": Route("chat"),  # Mistral
    "/fim/completions": Route("chat"),
    "/completions": Route("completions"),
    "/responses": Route("responses"),
    "/responses/compact": Route("responses"),
    "/embeddings": Route("embeddings"),
    "/v1/messages": Route("messages"),
    "/images/generations": Route("images", counted=False),
    "/images/edits": Route("images", counted=False),
    "/audio/transcriptions": Route("audio", counted=False),
    "/audio/translations": Route("audio", counted=False),
    "/audio/speech": Route("audio", counted=False),
    "/chat": Route("chat"),  # Cohere, Writer, Ollama, watsonx
    "/text/chat_stream": Route("chat"),
    "/generate": Route("completions"),  # Cohere, Ollama, TGI
    "/generate_stream": Route("completions"),
    "/text/generation": Route("completions"),
    "/text/generation_stream": Route("completions"),
    "/embed": Route("embeddings"),
    "/rerank": Route("rerank", counted=False),
    ":generateContent": Route("generate_content"),
    ":streamGenerateContent": Route("generate_content"),
    ":embedContent": Route("embeddings"),
    ":batchEmbedContents": Route("embeddings"),
    ":rawPredict": Route(None),  # Claude and Mistral on Vertex
    ":streamRawPredict": Route(None),
    "/interactions": Route("interactions"),
    "/conversations": Route("conversations"),
    ":predict": Route("embeddings", counted=False),
    "/converse": Route("converse"),
    "/converse-stream": Route("converse"),
    "/invoke": Route(None),
    "/invoke-with-response-stream": Route(None),
}

_PLAIN_ROUTES = {suffix.lower(): route for suffix, route in _ROUTES.items()}

_CONVERSATION = re.compile(r"/conversations/[^/]+(?:/restart)?$")  # one that is gone on with
_LOOKUP = Route("responses", lookup=True)
_RUN = Route("assistants", counted=False, lookup=True, lasting=True)
_RUNS = re.compile(r"/threads/(?:[^/]+/)?runs(?:/[^/]+(?:/cancel|/submit_tool_outputs)?)?$")


@functools.lru_cache(maxsize=1024)
def route_of(method: str, url: str) -> Route | None:
    """What a request brings; None where it brings no usage."""
    path = url.partition("?")[0].rstrip("/")
    found = _route_of(method, path)
    if found is not None or (plain := plain_path(path)) is None:
        return found
    return _route_of(method, plain, _PLAIN_ROUTES)


def _route_of(method: str, path: str, routes: dict[str, Route] = _ROUTES) -> Route | None:
    if "/threads/" in path and _RUNS.search(path) and method.lower() in ("get", "post"):
        return _RUN
    if method.lower() == "post":
        if _CONVERSATION.search(path):
            return Route("conversations")
        for suffix, route in routes.items():
            if path.endswith(suffix):
                return route
        is_cancel = path.endswith("/cancel")
        return _LOOKUP if is_cancel and _is_response(path.removesuffix("/cancel")) else None
    return _LOOKUP if method.lower() == "get" and _is_response(path) else None


def model_of(path: str) -> str | None:
    """The model that a path names, as Gemini's, Vertex's and Bedrock's do."""
    found = _MODEL.search(path)
    return unquote(found.group(1)) if found else None


_MODEL = re.compile(r"/models?/([^/]+?)(?::[A-Za-z]+|/(?:converse|invoke)[a-z-]*)$")


def _is_response(path: str) -> bool:
    parent, _, name = path.rpartition("/")
    return parent.endswith("/responses") and name.startswith("resp")
