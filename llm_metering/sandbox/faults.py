"""Faults on demand: what goes wrong, with which requests, and how often."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args, get_type_hints

Kind = Literal[
    "accept_then_hang",  # carried out, never answered
    "accept_then_reset",  # carried out, then the connection is reset
    "500_before",  # not carried out
    "500_after",  # carried out; under v1 the idempotency key remembers the 500
    "429",  # not carried out; rate limit, with its header
    "429_lock",  # not carried out; lock_timeout, with stripe-should-retry: true
    "409",  # not carried out; concurrency clash
    "401",  # not carried out
    "403",  # not carried out
    "slow",  # carried out after `seconds`
    "truncated",  # carried out; the answer breaks off in the middle
    "html",  # a page instead of JSON; with a status of 400 or more, not carried out
    "refuse",  # the port is closed for `seconds`, to every request
    "webhook_lost",  # a webhook is not sent, and taken for delivered; `path` matches its URL
    "webhook_twice",  # a webhook is sent twice
]
KINDS: tuple[str, ...] = get_args(Kind)
WEBHOOKS = frozenset({"webhook_lost", "webhook_twice"})
BEFORE = frozenset({"500_before", "429", "429_lock", "409", "401", "403"})
"""Kinds under which the request is not carried out."""


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a fault meets. None is any."""

    method: str | None = None
    path: str | None = None
    """Exact, or with `*`: "/v1/billing/meter_event*"."""
    customer: str | None = None
    """The customer that the request's parameters or payload name."""

    def fits(self, method: str, path: str, customer: str | None) -> bool:
        return (
            self.method in (None, method)
            and (self.path is None or fnmatchcase(path, self.path))
            and self.customer in (None, customer)
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, `count` times."""

    kind: Kind
    match: Match = Match()
    count: int | None = 1
    """How often; None for ever."""
    after: int = 0
    """How many matching requests pass unharmed first."""
    rate: float = 1.0
    """The share of matching requests that it meets."""
    seconds: float | None = None
    """How long a hang, a slow answer or a closed port lasts; None is until the client gives up (10 s for a
    slow answer, 1 s for a closed port)."""
    status: int | None = None
    """The status of an `html` answer; 200 if not given."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers to add to the answer, such as Retry-After."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Faults:
    """The faults that are waiting for a request to meet."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._lock = threading.Lock()
        self._random = random.Random(0)  # noqa: S311 -- repeatable, not secret

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._waiting += faults

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()

    def waiting(self) -> list[Fault]:
        with self._lock:
            return list(self._waiting)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take_refusals(self) -> list[Fault]:
        """The faults that close the port, taken out."""
        with self._lock:
            taken = [fault for fault in self._waiting if fault.kind == "refuse"]
            self._waiting = [fault for fault in self._waiting if fault.kind != "refuse"]
        return taken

    def meet(self, method: str, path: str, customer: str | None) -> Fault | None:
        """The fault that this request meets, used up by one."""
        return self._meet(method, path, customer, webhooks=False)

    def meet_webhook(self, url: str) -> Kind | None:
        """What goes wrong with a webhook to this URL."""
        fault = self._meet("POST", url, None, webhooks=True)
        return None if fault is None else fault.kind

    def _meet(self, method: str, path: str, customer: str | None, *, webhooks: bool) -> Fault | None:
        with self._lock:
            for n, fault in enumerate(self._waiting):
                if fault.kind == "refuse" or (fault.kind in WEBHOOKS) is not webhooks:
                    continue
                if not fault.match.fits(method, path, customer):
                    continue
                if fault.after:
                    self._waiting[n] = replace(fault, after=fault.after - 1)
                    continue
                if self._random.random() >= fault.rate:
                    continue
                if fault.count is not None and fault.count <= 1:
                    del self._waiting[n]
                elif fault.count is not None:
                    self._waiting[n] = replace(fault, count=fault.count - 1)
                return fault
        return None


def read_fault(given: Any) -> Fault:
    """A fault from its JSON form; `ValueError` says what cannot be."""
    if not isinstance(given, dict):
        raise ValueError(f"a fault is an object with a kind, not {given!r}")
    _check_names(given, Fault)
    if given.get("kind") not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {given.get('kind')!r}")
    match = given.get("match") or {}
    _check_names(match, Match)
    for name in ("seconds", "rate", "count", "after", "status"):
        value = given.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0
        ):
            raise ValueError(f"{name} must be a number of 0 or more, not {value!r}")
    return Fault(**{**given, "match": Match(**match)})


def parse_fault(text: str) -> Fault:
    """A fault in one line, such as "500_after;path=/v1/billing/*;count=3"; `ValueError` says what cannot be.

    Names are those of `Fault` and `Match`; `count=forever` does not end.
    """
    kind, *options = (part.strip() for part in text.split(";"))
    given: dict[str, Any] = {"kind": kind}
    match: dict[str, str] = {}
    for option in filter(None, options):
        name, equals, value = (part.strip() for part in option.partition("="))
        if not equals or name not in _IN_LINE:
            raise ValueError(f"{option!r} is not name=value with one of {', '.join(_IN_LINE)}")
        if name in get_type_hints(Match):
            match[name] = value.upper() if name == "method" else value
        else:
            given[name] = _number(name, value)
    return read_fault({**given, "match": match})


def shown_fault(fault: Fault) -> str:
    """A fault as `parse_fault` reads it."""
    parts: list[str] = [fault.kind]
    parts += [f"{name}={value}" for name, value in asdict(fault.match).items() if value is not None]
    default = Fault(fault.kind)
    for name in ("count", "after", "rate", "seconds", "status"):
        value = getattr(fault, name)
        if value != getattr(default, name):
            parts.append(f"{name}={'forever' if value is None else value}")
    return ";".join(parts)


def header_fault(text: str) -> Fault | None:
    """A fault from a request's `Sandbox-Fault: slow; seconds=2` header; None where it names none."""
    kind, *options = (part.strip() for part in text.split(";"))
    given: dict[str, Any] = {"kind": kind}
    try:
        for option in options:
            name, _, value = option.partition("=")
            given[name] = int(value) if name == "status" else float(value)
        fault = read_fault(given)
    except ValueError:
        return None
    return None if fault.kind == "refuse" or fault.kind in WEBHOOKS else fault


_IN_LINE = ("method", "path", "customer", "count", "after", "rate", "seconds", "status")


def _number(name: str, value: str) -> float | int | None:
    if name == "count" and value in ("forever", "inf"):
        return None
    try:
        return float(value) if name in ("rate", "seconds") else int(value)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {value!r}") from None


def _check_names(given: Mapping[str, Any], form: type) -> None:
    unknown = given.keys() - get_type_hints(form).keys()
    if unknown:
        raise ValueError(f"{form.__name__.lower()} has no {', '.join(sorted(unknown))}")
