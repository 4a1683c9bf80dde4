"""What the sandbox refuses, in Stripe's words. Each function makes one kind of refusal."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """An error answer of Stripe: status, body and headers.

    `stored` says whether an idempotency key remembers it: requests that fail validation and those that
    clash with another may be tried again under the same key.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        stored: bool = True,
        **extra: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.headers = headers or {}
        self.stored = stored
        self.extra = extra

    def body(self, *, v2: bool = False) -> dict[str, Any]:
        """The answer's body, in the form of v1 or of v2."""
        if v2:
            error = {"code": self.code or _V2_CODES.get(self.status, "api_error"), "message": self.message}
            if self.type in _V2_TYPES:
                error["type"] = self.type
            return {"error": {**error, **self.extra}}
        error = {"type": self.type, "message": self.message}
        if self.code:
            error["code"] = self.code
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        if self.param:
            error["param"] = self.param
        return {"error": {**error, **self.extra}}


_V2_TYPES = frozenset({"temporary_session_expired", "rate_limit"})
_V2_CODES = {400: "invalid_parameters", 401: "unauthorized", 403: "forbidden", 404: "not_found"}


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """400: the request is well formed, and cannot be carried out."""
    return Refusal(400, message, code=code, param=param)


def unreadable(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """400: a parameter cannot be read. The idempotency key stays free."""
    return Refusal(400, message, code=code, param=param, stored=False)


def unknown_parameter(path: str) -> Refusal:
    return unreadable(f"Received unknown parameter: {path}", path, "parameter_unknown")


def missing_parameter(path: str) -> Refusal:
    return unreadable(f"Missing required param: {path}.", path, "parameter_missing")


def not_played(path: str) -> Refusal:
    """A parameter of Stripe's that would change what is billed and that the sandbox does not play."""
    return unreadable(
        f"The sandbox knows the parameter {path} but does not play it; leave it out, or test this part "
        "against Stripe itself.",
        path,
        "sandbox_not_played",
    )


def call_not_played(method: str, path: str) -> Refusal:
    """A call of Stripe's that the sandbox does not play at all."""
    return Refusal(
        400,
        f"The sandbox knows {method} {path} but does not play it; test this part against Stripe itself.",
        code="sandbox_not_played",
        stored=False,
    )


def missing_resource(kind: str, id: str, param: str, *, in_path: bool = False) -> Refusal:
    """404 for an id in the path, 400 for one in a parameter."""
    label = {"billing.meter": "billing meter"}.get(kind, kind.rsplit(".", 1)[-1])
    return Refusal(404 if in_path else 400, f"No such {label}: '{id}'", code="resource_missing", param=param)


def unknown_url(method: str, path: str) -> Refusal:
    return Refusal(
        404,
        f"Unrecognized request URL ({method}: {path}). If you are trying to list objects, remove the "
        "trailing slash. If you are trying to retrieve an object, make sure you passed a valid "
        "(non-empty) identifier in your code.",
        stored=False,
    )


def no_key() -> Refusal:
    return Refusal(
        401,
        "You did not provide an API key. You need to provide your API key in the Authorization header, "
        "using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
        stored=False,
    )


def bad_key(key: str) -> Refusal:
    return Refusal(401, f"Invalid API Key provided: {redacted(key)}", stored=False)


def redacted(key: str) -> str:
    """A key with its secret part replaced by stars."""
    parts = key.split("_")
    if len(parts) >= 3 and parts[0] in ("sk", "rk", "pk"):
        return f"{parts[0]}_{parts[1]}_***"
    return "***"


def clash(answer: str) -> Refusal:
    """Another event of the same customer and meter is being created."""
    if answer == "429":
        return Refusal(
            429,
            "This object cannot be accessed right now because another API request or Stripe process is "
            "currently accessing it.",
            code="lock_timeout",
            headers={"Stripe-Should-Retry": "true"},
            stored=False,
        )
    return Refusal(
        409,
        "There are too many concurrent requests for this customer and meter. Try again.",
        stored=False,
    )


def rate_limited(reason: str) -> Refusal:
    return Refusal(
        429,
        "Request rate limit exceeded. Learn more about rate limits at https://stripe.com/docs/rate-limits.",
        code="rate_limit",
        headers={"Stripe-Rate-Limited-Reason": reason},
        stored=False,
    )


def server_fault() -> Refusal:
    return Refusal(500, "An unknown error occurred.", type="api_error")
