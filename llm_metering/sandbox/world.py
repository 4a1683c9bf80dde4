"""What handlers act on: the store, the time, new ids and the switches; and one call with its parameters."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .errors import missing_resource
from .forms import Table
from .store import Account, Doc, Store
from .switches import Switches

SESSION = "v2.billing.meter_event_session"
API_VERSION = "2026-10-28.endive"
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class World:
    """The sandbox's state and surroundings."""

    def __init__(
        self, store: Store, *, now: Callable[[], float], switches: Switches, seed: int | str | None
    ) -> None:
        self.store = store
        self.now = now
        self.switches = switches
        self.wake: Callable[[], None] = lambda: None
        """Called when a webhook is to be sent."""
        # A seeded sandbox that continues an old file must not give out the same ids again.
        self._letters = random.Random(None if seed is None else f"{seed}:{store.documents()}")  # noqa: S311
        self._requests = random.Random()  # noqa: S311 -- seeded ids must not depend on how often one reads

    def new_id(self, prefix: str, length: int = 14) -> str:
        """A fresh id: a prefix and random letters, such as "cus_NffrFeUfNV2Hib"."""
        return f"{prefix}{''.join(self._letters.choices(_LETTERS, k=length))}"

    def new_request_id(self) -> str:
        return f"req_{self._requests.getrandbits(80):020x}"

    def time_of(self, account: Account, customer: Doc | None) -> int:
        """The time that a customer lives in: its test clock's, else the real one."""
        if customer is not None and customer.get("test_clock"):
            clock = self.store.get(account, "test_helpers.test_clock", customer["test_clock"])
            if clock is not None:
                return int(clock["frozen_time"])
        return int(self.now())


@dataclass(slots=True)
class Call:
    """One request, read and allowed: what a handler is given."""

    world: World
    account: Account
    params: dict[str, Any]
    args: tuple[str, ...] = ()
    """The ids in the path."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers to put on the answer."""

    @property
    def store(self) -> Store:
        return self.world.store

    @property
    def switches(self) -> Switches:
        return self.world.switches

    @property
    def now(self) -> int:
        return int(self.world.now())

    def new_id(self, prefix: str) -> str:
        return self.world.new_id(prefix)

    def find(self, kind: str, id: str, param: str) -> Doc:
        """The document that a parameter names, or 400."""
        doc = self.store.get(self.account, kind, id)
        if doc is None or doc.get("deleted"):
            raise missing_resource(kind, id, param)
        return doc

    def fetch(self, kind: str, param: str = "id") -> Doc:
        """The document that the path names, or 404."""
        doc = self.store.get(self.account, kind, self.args[0])
        if doc is None:
            raise missing_resource(kind, self.args[0], param, in_path=True)
        return doc


Handler = Callable[[Call], Doc]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation: method, path (ids as `{}`), what carries it out and which parameters it takes."""

    method: str
    path: str
    handler: Handler
    params: Table
    by_session: bool = False
    """The key is a meter event session's token."""
    catches_up: bool = True
    """Whether what is due by now happens first. Taking events in does not wait for that."""


def account_id(key: str) -> str:
    """The account that a key belongs to: what follows the mode. `sk_test_a`, `rk_test_a` and `sk_live_a`
    are keys of one account; `sk_test_b` is another's."""
    name = key.split("_", 2)[2]
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:12], "big")
    letters = []
    for _ in range(16):
        digest, rest = divmod(digest, len(_LETTERS))
        letters.append(_LETTERS[rest])
    return "acct_" + "".join(letters)
