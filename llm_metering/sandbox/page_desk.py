"""How the pages reach the sandbox: by the same calls as everybody, and by looking at what has no call."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from .store import Account, Doc, Store
from .wire import Request
from .world import World, account_id

if TYPE_CHECKING:
    from .app import SandboxApp

PAGE_LENGTH = 50


class Denied(Exception):
    """Stripe's own refusal of what a page asked for."""

    def __init__(self, status: int, message: str, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param


@dataclass(frozen=True, slots=True)
class Desk:
    """One account, as the pages see it."""

    app: SandboxApp
    account: Account

    @property
    def store(self) -> Store:
        return self.app.store

    @property
    def world(self) -> World:
        return self.app.world

    def ask(self, method: str, path: str, params: Mapping[str, Any] | None = None) -> Doc:
        """Make a call of the API; `Denied` if it is refused."""
        pairs = urlencode(list(_pairs(params or {})))
        v2 = path.startswith("/v2/")
        body = b"" if method != "POST" else json.dumps(params or {}).encode() if v2 else pairs.encode()
        headers = {
            b"authorization": f"Bearer {self._key()}".encode(),
            b"stripe-account": self.account.id.encode(),
        }
        request = Request(method, path, "" if method == "POST" else pairs, headers, body)
        answer = self.app.service.answer(request, limited=False)
        doc: Doc = json.loads(answer.body)
        if answer.status >= 400:
            error = doc["error"]
            raise Denied(answer.status, error["message"], error.get("param"))
        return doc

    def get(self, path: str, **params: Any) -> Doc:
        return self.ask("GET", path, params)

    def all(self, path: str, **params: Any) -> list[Doc]:
        """The newest hundred of a list, to choose from."""
        return list(self.get(path, limit=100, **params)["data"])

    def _key(self) -> str:
        mode = "live" if self.account.livemode else "test"
        keys = self.app.service.keys or ()
        return next((key for key in sorted(keys) if key.split("_")[1] == mode), f"sk_{mode}_sandbox")


def desk_for(app: SandboxApp, wanted: str) -> Desk:
    """The desk of the account that a cookie names; else of the first that has anything in it."""
    own = app.store.account(account_id("sk_test_sandbox"), False)
    accounts = accounts_in_use(app, own)
    chosen = next((one for one in accounts if spelled(one) == wanted), None)
    return Desk(app, chosen or accounts[0])


def accounts_in_use(app: SandboxApp, own: Account | None = None) -> list[Account]:
    """Accounts that hold anything, the sandbox's own key's first; that one alone where nobody has any."""
    own = own or app.store.account(account_id("sk_test_sandbox"), False)
    rows = app.store.db.execute("SELECT DISTINCT account FROM document").fetchall()
    used = {n for (n,) in rows}
    found = [one for one in app.store.accounts() if one.n in used]
    return sorted(found, key=lambda one: one.n != own.n) or [own]


def spelled(account: Account) -> str:
    """An account and its mode as a cookie holds them."""
    return f"{account.id}:{'live' if account.livemode else 'test'}"


def _pairs(tree: Mapping[str, Any] | list[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A tree as a form: nested names in brackets. What is None is left out."""
    entries = enumerate(tree) if isinstance(tree, list) else tree.items()
    for name, value in entries:
        key = f"{prefix}[{name}]" if prefix else str(name)
        if isinstance(value, (Mapping, list)):
            yield from _pairs(value, key)
        elif value is not None:
            yield key, str(value).lower() if isinstance(value, bool) else str(value)
