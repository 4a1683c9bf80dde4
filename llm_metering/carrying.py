"""Carrying the customer into a task that runs elsewhere: a queue's worker, a process pool, a cron job.

What is carried is signed, so that a task believes only what a process with the same secret said: a request
that gets its own text into a task's headers or arguments names nobody by it. It is not secret, though: the
customer's id and the dimensions can be read.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from . import customers
from .capture import context
from .errors import ConfigurationError

if TYPE_CHECKING:
    from .capture.recorder import Recorder
    from .settings import Settings

HEADER = "llm-metering"
"""What the header, or the key of a task's meta data, is called where nobody says otherwise."""

MAX_AGE_S = 30 * 86_400.0
MAX_LENGTH = 8192
_MIN_SECRET_BYTES = 16
_MAY_BE_EARLY_S = 300.0
"""How far the clock of another machine may run ahead."""


class Home(Protocol):
    """What a carrier needs of `Metering`."""

    now: Callable[[], float]

    @property
    def recorder(self) -> Recorder: ...

    @property
    def settings(self) -> Settings: ...


class Carrier:
    """Packs who is billed here into a short text, and bills them where it is unpacked.

        carrier = Carrier(metering, secret=os.environ["TASK_SECRET"])
        queue.enqueue(work, meta={"llm-metering": carrier.pack()})      # in a request
        with carrier.bound(job.meta.get("llm-metering")):               # in the worker
            ...

    Args:
        metering: The `Metering` of this process.
        secret: Known to the processes that hand tasks to each other, and to nobody else; 16 bytes or more.
        max_age_s: What is older names nobody any more.

    Raises:
        ConfigurationError: The secret is too short.
    """

    def __init__(self, metering: Home, secret: str | bytes, *, max_age_s: float = MAX_AGE_S) -> None:
        secret = secret.encode() if isinstance(secret, str) else secret
        if len(secret) < _MIN_SECRET_BYTES:
            raise ConfigurationError(
                f"Carrier(secret=...) has {len(secret)} bytes; give {_MIN_SECRET_BYTES} or more, such as "
                "those of `openssl rand -hex 32`"
            )
        self._home = metering
        self._recorder = metering.recorder
        # A key of its own: what the secret signs elsewhere is nothing here, and the other way round.
        self._key = hmac.digest(secret, b"llm_metering carries 1", "sha256")
        self._max_age_s = max_age_s

    def pack(self, *, customer: str | None = None, **dimensions: str) -> str:
        """The customer and dimensions of this place, as text for a header.

        With an async resolver that was not asked yet use `pack_async`, or name the customer.

        Args:
            customer: Default: the context's.
            dimensions: Win over the context's.
        """
        scope = self._recorder.scope_here()
        named = self._recorder.naming.now(scope) if customer is None else customer
        return self._packed(named, {**scope.all_dimensions(), **_texts(dimensions)})

    async def pack_async(self, *, customer: str | None = None, **dimensions: str) -> str:
        """As `pack`, waiting for an async resolver."""
        scope = self._recorder.scope_here()
        named = await self._recorder.naming.wait(scope) if customer is None else customer
        return self._packed(named, {**scope.all_dimensions(), **_texts(dimensions)})

    def bound(self, packed: object) -> Bound:
        """Bill what is inside this block to the customer that was packed, and wait for the disk at its end.

        What is missing, forged or too old names nobody: usage is kept without a customer, and
        `carrier.refused` is counted. Whoever was bound outside of this block is not billed inside of it.
        In an async worker use `async with`: it waits without holding up the others.
        """
        customer, dimensions = self._unpacked(packed)
        return Bound(
            self._home, context.Scope(customer=customer, dimensions=dimensions, owner=self._recorder)
        )

    def _packed(self, customer: str | None, dimensions: Mapping[str, str]) -> str:
        said = {"c": customers.checked(customer), "d": dict(dimensions), "t": int(self._home.now())}
        body = urlsafe_b64encode(json.dumps(said, separators=(",", ":")).encode()).rstrip(b"=")
        return f"{body.decode()}.{self._signature(body)}"

    def _signature(self, body: bytes) -> str:
        return urlsafe_b64encode(hmac.digest(self._key, body, hashlib.sha256)).rstrip(b"=").decode()

    def _unpacked(self, packed: object) -> tuple[str | None, Mapping[str, str]]:
        try:
            return self._believed(packed)
        except (ValueError, TypeError, KeyError, binascii.Error, RecursionError):
            self._recorder.telemetry.count("carrier.refused")
            return None, {}

    def _believed(self, packed: object) -> tuple[str | None, Mapping[str, str]]:
        if isinstance(packed, bytes):
            packed = packed.decode("ascii")
        if not isinstance(packed, str) or not packed.isascii() or len(packed) > MAX_LENGTH:
            raise ValueError("nothing was carried")
        body, _, signature = packed.partition(".")
        if not hmac.compare_digest(signature, self._signature(body.encode())):
            raise ValueError("signed by somebody else")
        said: dict[str, Any] = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        age_s = self._home.now() - said["t"]
        if not -_MAY_BE_EARLY_S <= age_s <= self._max_age_s:
            raise ValueError("too old")
        return customers.checked(said["c"]), _texts(said["d"])


class Bound:
    """The block of a task, `with` or `async with`: when it is over, its usage is on disk."""

    def __init__(self, home: Home, scope: context.Scope) -> None:
        self._home = home
        self._scope = scope
        self._waits = home.settings.durability != "memory"

    def __enter__(self) -> None:
        self._token = context.enter(self._scope)

    def __exit__(self, *_: object) -> None:
        context.leave(self._scope, self._token)
        if not self._waits:
            return
        ends_at = monotonic() + self._home.settings.commit_timeout_s
        try:
            for ticket in self._scope.tickets or ():
                ticket.wait(max(0.0, ends_at - monotonic()))
        except Exception as exc:
            self._home.recorder.telemetry.failure("carrier.commit", exc)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        context.leave(self._scope, self._token)
        try:
            if self._waits:
                await self._home.recorder.committed(self._scope)
        except Exception as exc:
            self._home.recorder.telemetry.failure("carrier.commit", exc)


def _texts(dimensions: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in dimensions.items() if value is not None}
