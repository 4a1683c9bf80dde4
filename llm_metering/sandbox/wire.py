"""HTTP as the sandbox sees it: requests with their body complete, answers, keys."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import Refusal, bad_key, no_key
from .forms import decode_form

_KEY = re.compile(r"(sk|rk)_(test|live)_[A-Za-z0-9_]+")


@dataclass(slots=True)
class Request:
    """One HTTP request, its body complete."""

    method: str
    path: str
    query: str
    headers: Mapping[bytes, bytes]
    body: bytes = b""

    @property
    def v2(self) -> bool:
        return self.path.startswith("/v2/")

    def header(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def params(self) -> dict[str, Any]:
        """Parameters as a tree, not yet typed."""
        if self.method != "POST":
            return decode_form(self.query)
        if self.v2:
            return self._json()
        try:
            return decode_form(self.body.decode())
        except UnicodeDecodeError as exc:
            raise Refusal(400, "Invalid request: the body is not UTF-8.", stored=False) from exc

    def customer(self) -> str | None:
        """The customer that the request is about, as far as its parameters say."""
        try:
            tree = self.params()
        except Refusal:
            return None
        payload = tree.get("payload")
        if isinstance(payload, dict) and "stripe_customer_id" in payload:
            return str(payload["stripe_customer_id"])
        if isinstance(tree.get("customer"), str):
            return str(tree["customer"])
        parts = self.path.split("/")
        return parts[3] if len(parts) > 3 and parts[2] == "customers" else None

    def _json(self) -> dict[str, Any]:
        try:
            tree = json.loads(self.body or b"{}")
            if b"\\u" in self.body:
                json.dumps(tree, ensure_ascii=False).encode()  # refuses half of a surrogate pair
        except (ValueError, RecursionError) as exc:
            raise Refusal(400, "The request body is not valid JSON.", stored=False) from exc
        if not isinstance(tree, dict):
            raise Refusal(400, "The request body must be a JSON object.", stored=False)
        return tree


@dataclass(slots=True)
class Answer:
    """One HTTP answer."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


def json_body(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def api_key(request: Request) -> str:
    """The key that a request carries, by Bearer or Basic; a `Refusal` without a well-formed one."""
    key = bearer(request)
    if _KEY.fullmatch(key) is None:
        raise bad_key(key)
    return key


def bearer(request: Request) -> str:
    """What the Authorization header carries."""
    scheme, _, rest = (request.header(b"authorization") or "").partition(" ")
    if scheme.lower() == "bearer" and rest.strip():
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            raise no_key() from None
    raise no_key()
