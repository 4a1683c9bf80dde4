"""Every setting in one frozen value. Each has an environment variable; arguments win over it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field, fields
from types import MappingProxyType
from typing import Any, Literal, get_args, get_type_hints

from ._values import dataclass
from .errors import ConfigurationError
from .usage import Provenance

DEFAULT_API_BASE = "https://api.stripe.com"
DEFAULT_METER_EVENTS_BASE = "https://meter-events.stripe.com"
BILL_ALL: Mapping[Provenance, Literal["bill", "hold"]] = MappingProxyType(
    {"reported": "bill", "partial": "bill", "counted": "bill", "estimated": "bill"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How metering behaves. Times are in seconds, sizes in bytes.

    `Settings()` holds the defaults, `Settings.from_env()` reads the environment. A value that cannot work
    raises `ConfigurationError`.
    """

    stripe_api_key: str | None = field(default=None, repr=False)
    """STRIPE_API_KEY: secret or restricted key; without one usage is kept and nothing is sent."""
    stripe_api_base: str = DEFAULT_API_BASE
    """STRIPE_API_BASE: where Stripe is; the URL of a sandbox while you develop."""
    stripe_meter_events_base: str = DEFAULT_METER_EVENTS_BASE
    """STRIPE_METER_EVENTS_BASE: where Stripe's v2 event stream is. Left alone while `stripe_api_base` is a
    sandbox, it is that sandbox, which serves both."""
    sender: Literal["v1", "stream"] = "v1"
    """LLM_METERING_SENDER: "v1" sends one event a request, "stream" up to 100 through Stripe's v2 event
    stream, for volume and in live mode; it needs `reconcile_every_s`."""
    ledger: str = field(default=".llm_metering", repr=False)
    """LLM_METERING_LEDGER: folder of the ledger; "postgresql://…" for a fleet; "memory:" for tests."""
    lane_folder: str = ".llm_metering/lanes"
    """LLM_METERING_LANE_FOLDER: with a ledger in PostgreSQL, where usage is kept on its way there; it may be
    on a disk that vanishes with its host."""
    forward_every_s: float = 0.5
    """LLM_METERING_FORWARD_EVERY_S: how often what is in `lane_folder` is forwarded: the most that is lost
    when a host is killed and its disk with it."""
    reoffer_s: float = 900.0
    """LLM_METERING_REOFFER_S: how long usage stays in `lane_folder` after it was forwarded, to be offered
    again should a standby that was behind take over."""
    durability: Literal["commit", "memory", "ledger"] = "commit"
    """LLM_METERING_DURABILITY: "commit" holds back the last message of a response until its usage is on
    disk; "memory" does not wait; "ledger" waits until a ledger in PostgreSQL has it."""
    commit_timeout_s: float = 5.0
    """LLM_METERING_COMMIT_TIMEOUT_S: the longest that a response's last message waits for the disk."""
    deliver: Literal["thread", "external"] = "thread"
    """LLM_METERING_DELIVER: "thread" delivers from this process, "external" leaves it to another."""
    flush_every_s: float = 10.0
    """LLM_METERING_FLUSH_EVERY_S: how often closed buckets are frozen and sent."""
    bucket_s: int = 60
    """LLM_METERING_BUCKET_S: usage of one customer, meter and set of dimensions within this many seconds
    becomes one meter event; 1 to 3600, a divisor of 3600."""
    max_in_flight: int = 8
    """LLM_METERING_MAX_IN_FLIGHT: requests to Stripe at a time; it bounds what can be in doubt."""
    send_timeout_s: float = 30.0
    """LLM_METERING_SEND_TIMEOUT_S: how long one request to Stripe may take."""
    reconcile_every_s: float = 900.0
    """LLM_METERING_RECONCILE_EVERY_S: how often accepted and doubtful events are held against Stripe's
    summaries, in a thread of its own; 0 for never."""
    archive_after_days: int = 0
    """LLM_METERING_ARCHIVE_AFTER_DAYS: whoever delivers from a ledger in PostgreSQL archives, beside its
    work, what nobody moves any more after so many days; at least 40, or 0 for never."""
    drain_s: float = 5.0
    """LLM_METERING_DRAIN_S: how long a shutdown waits for requests that are under way."""
    on_missing_customer: Literal["keep", "reject"] = "keep"
    """LLM_METERING_ON_MISSING_CUSTOMER: "keep" records the usage as unresolved, "reject" answers 401
    before the app runs."""
    bill: Mapping[Provenance, Literal["bill", "hold"]] = field(default_factory=lambda: BILL_ALL)
    """LLM_METERING_BILL: which provenances are billed, such as "estimated=hold,partial=bill"."""
    tokens_from: Literal["provider", "tiktoken"] = "provider"
    """LLM_METERING_TOKENS_FROM: "provider" takes what it reports and counts where it says nothing;
    "tiktoken" counts every call ourselves."""
    audit: float = 0.0
    """LLM_METERING_AUDIT: share (0 to 1) of reported answers that tiktoken counts too; an alarm is raised
    where the two differ beyond the published bound."""
    encodings: tuple[str, ...] = ("o200k_base",)
    """LLM_METERING_ENCODINGS: tiktoken encodings loaded at start, comma-separated; others on first use."""
    progress_every_s: float = 2.0
    """LLM_METERING_PROGRESS_EVERY_S: how often a stream under way is noted in the ledger."""
    progress_every_tokens: int = 500
    """LLM_METERING_PROGRESS_EVERY_TOKENS: a stream is noted after about this many tokens, too."""
    max_stream_s: float = 600.0
    """LLM_METERING_MAX_STREAM_S: with `deliver="external"`, how long a stream under way may keep back what
    was recorded beside it; then what it produced is billed as partial and the rest as a further part. 0 for
    until it ends."""
    on_disconnect: Literal["partial", "drain"] = "partial"
    """LLM_METERING_ON_DISCONNECT: a provider's stream that nobody reads to its end: "partial" bills what
    came, "drain" reads the rest in the background, to learn the provider's own count."""
    disconnect_drain_s: float = 60.0
    """LLM_METERING_DISCONNECT_DRAIN_S: the longest that such a rest is read; then what came is billed."""
    disconnect_drain_bytes: int = 4 * 1024 * 1024
    """LLM_METERING_DISCONNECT_DRAIN_BYTES: the most that is read of such a rest."""
    max_body_bytes: int = 16 * 1024 * 1024
    """LLM_METERING_MAX_BODY_BYTES: a larger answer of the app is passed on and counted as unread; the prompt
    of a larger request is not counted."""
    max_ledger_bytes: int = 0
    """LLM_METERING_MAX_LEDGER_BYTES: the most that the ledger's folder may take up; 0 for no cap."""
    min_free_bytes: int = 16 * 1024 * 1024
    """LLM_METERING_MIN_FREE_BYTES: no usage is taken while less than this is free on the ledger's disk."""
    at_capacity: Literal["reject", "block", "allow_unmetered"] = "reject"
    """LLM_METERING_AT_CAPACITY: what becomes of metered requests while usage cannot be written: "reject"
    answers 503 before the model is called, "block" waits up to `commit_timeout_s` first,
    "allow_unmetered" serves them, counts them and raises an alarm."""

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise ConfigurationError(problem)

    @property
    def stream_base(self) -> str:
        """Where the v2 event stream is."""
        if self.stripe_meter_events_base == DEFAULT_METER_EVENTS_BASE:
            return (
                self.stripe_api_base
                if self.stripe_api_base != DEFAULT_API_BASE
                else DEFAULT_METER_EVENTS_BASE
            )
        return self.stripe_meter_events_base

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read the environment; keyword arguments win over it.

        Args:
            environ: Instead of `os.environ`.
            overrides: Fields of this class.
        """
        environ = os.environ if environ is None else environ
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        for f in fields(cls):
            text = environ.get(variable(f.name))
            if text is not None and text.strip():
                values[f.name] = _parse(f.name, text.strip(), hints[f.name])
        return cls(**{**values, **overrides})


def is_postgres(ledger: str) -> bool:
    """Whether it names a database rather than a folder."""
    return ledger.startswith(("postgresql://", "postgres://"))


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return name.upper() if name.startswith("stripe_") else f"LLM_METERING_{name.upper()}"


def _parse(name: str, text: str, hint: Any) -> Any:
    try:
        if name == "bill":
            return _parse_bill(text)
        if hint == tuple[str, ...]:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if hint in (int, float):
            return hint(text)
    except ValueError as exc:
        raise ConfigurationError(f"{variable(name)}={text!r} cannot be read: {exc}") from exc
    return text


def _parse_bill(text: str) -> dict[str, str]:
    chosen = dict(part.split("=", 1) for part in text.replace(" ", "").split(",") if "=" in part)
    if len(chosen) != len([part for part in text.split(",") if part.strip()]):
        raise ValueError('write it like "estimated=hold,partial=bill"')
    return {**dict.fromkeys(BILL_ALL, "bill"), **chosen}


_ABOVE_ZERO = (
    "commit_timeout_s",
    "forward_every_s",
    "flush_every_s",
    "send_timeout_s",
    "progress_every_s",
    "progress_every_tokens",
    "max_body_bytes",
    "disconnect_drain_s",
    "disconnect_drain_bytes",
)


_LEAST_ARCHIVE_DAYS = 40


def _problems(s: Settings) -> list[str]:
    found = []
    hints = get_type_hints(Settings)
    choices = ("sender", "durability", "deliver", "on_missing_customer", "tokens_from", "at_capacity")
    for name in (*choices, "on_disconnect"):
        allowed = get_args(hints[name])
        if getattr(s, name) not in allowed:
            found.append(f"{name}={getattr(s, name)!r} must be one of {', '.join(allowed)}")
    found += [f"{n}={getattr(s, n)!r} must be above 0" for n in _ABOVE_ZERO if not getattr(s, n) > 0]
    if not 1 <= s.bucket_s <= 3600 or 3600 % s.bucket_s:
        found.append(f"bucket_s={s.bucket_s} must divide an hour: 1, 5, 10, 60, 300, 3600, …")
    if not 1 <= s.max_in_flight <= 64:
        found.append(f"max_in_flight={s.max_in_flight} must be from 1 to 64")
    none_below_zero = (
        "drain_s", "reconcile_every_s", "max_stream_s", "max_ledger_bytes", "min_free_bytes", "reoffer_s",
    )  # fmt: skip
    found += [f"{n}={getattr(s, n)!r} must be 0 or more" for n in none_below_zero if not getattr(s, n) >= 0]
    if s.archive_after_days and s.archive_after_days < _LEAST_ARCHIVE_DAYS:
        found.append(
            f"archive_after_days={s.archive_after_days} must be at least {_LEAST_ARCHIVE_DAYS}, or 0 for "
            "never: Stripe takes usage of up to 35 days, and what is younger may be needed"
        )
    if not 0 <= s.audit <= 1:
        found.append(f"audit={s.audit!r} is a share and must be from 0 to 1")
    found += [
        f"{name}={base!r} must begin with https:// (or http:// for a sandbox)"
        for name in ("stripe_api_base", "stripe_meter_events_base")
        if not (base := getattr(s, name)).startswith(("https://", "http://"))
    ]
    if s.sender == "stream" and s.reconcile_every_s == 0:
        found.append(
            "sender='stream' needs reconcile_every_s above 0: the stream finds bad events only after it has "
            "accepted them, and only Stripe's summaries show which; or set sender='v1'"
        )
    if unknown := set(s.bill) - set(BILL_ALL) or set(s.bill.values()) - {"bill", "hold"}:
        found.append(
            f"bill holds {', '.join(sorted(map(str, unknown)))}; it maps "
            f"{', '.join(BILL_ALL)} to bill or hold"
        )
    return found
