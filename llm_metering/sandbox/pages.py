"""The page to look at: what one would do in Stripe's Dashboard, at the sandbox's own address.

Pages are made on the server and load nothing from anywhere else. Their forms make the calls of the API.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from . import page_forms as forms
from . import page_views as views
from . import page_words as words
from .origins import from_here, is_near
from .page_desk import Denied, Desk, accounts_in_use, desk_for, spelled
from .page_views import Form
from .wire import Answer, Request

if TYPE_CHECKING:
    from jinja2 import Environment

    from .app import SandboxApp

_HERE = Path(__file__).parent
_ID = r"([A-Za-z0-9_.\-]+)"
_COOKIE = "sandbox_account"
_SAFE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_STATIC = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "chart.umd.min.js": "text/javascript; charset=utf-8",
    "chart.LICENSE.md": "text/plain; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
DONE = {
    "created": "Created.",
    "saved": "Saved.",
    "deleted": "Deleted.",
    "used": "Usage added.",
    "advanced": "The clock was moved; what was due has happened.",
    "cleared": "No faults any more.",
    "settled": "All waiting usage is counted.",
    "delivered": "Waiting webhooks were sent.",
    "reset": "Everything is forgotten.",
}
"""What a page may say of the step before it. A link can choose a sentence, not write one."""

_VIEWS: dict[str, views.View] = {
    "/": views.overview,
    "/meters": views.meters,
    "/meters/new": views.new_meter,
    "/meters/try": views.try_meter,
    f"/meters/{_ID}": views.meter,
    f"/meters/{_ID}/usage": views.add_usage,
    "/products": views.products,
    "/products/new": views.new_product,
    f"/products/{_ID}": views.product,
    "/customers": views.customers,
    "/customers/new": views.new_customer,
    f"/customers/{_ID}": views.customer,
    "/subscriptions": views.subscriptions,
    "/subscriptions/new": views.new_subscription,
    f"/subscriptions/{_ID}": views.subscription,
    f"/subscriptions/{_ID}/upcoming": views.upcoming,
    "/invoices": views.invoices,
    f"/invoices/{_ID}": views.invoice,
    "/events": views.events,
    f"/events/{_ID}": views.event,
    "/webhooks": views.webhooks,
    "/clocks": views.clocks,
    "/faults": views.faults,
}
_ACTIONS: dict[str, tuple[forms.Action, str]] = {
    "/meters": (forms.create_meter, "/meters/new"),
    f"/meters/{_ID}/usage": (forms.add_usage, "/meters/{}/usage"),
    f"/meters/{_ID}/(deactivate|reactivate)": (forms.switch_meter, "/meters/{}"),
    "/products": (forms.create_product, "/products/new"),
    f"/products/{_ID}/prices": (forms.create_price, "/products/{}"),
    f"/prices/{_ID}/(archive|activate)": (forms.switch_price, "/products"),
    "/customers": (forms.create_customer, "/customers/new"),
    f"/customers/{_ID}/delete": (forms.delete_customer, "/customers/{}"),
    "/subscriptions": (forms.create_subscription, "/subscriptions/new"),
    f"/subscriptions/{_ID}/cancel": (forms.cancel_subscription, "/subscriptions/{}"),
    f"/invoices/{_ID}/(finalize|pay|void)": (forms.act_on_invoice, "/invoices/{}"),
    f"/webhooks/{_ID}/delete": (forms.delete_webhook, "/webhooks"),
    "/clocks": (forms.create_clock, "/clocks"),
    f"/clocks/{_ID}/advance": (forms.advance_clock, "/clocks"),
    f"/clocks/{_ID}/delete": (forms.delete_clock, "/clocks"),
    "/faults": (forms.add_fault, "/faults"),
    "/faults/clear": (forms.clear_faults, "/faults"),
    "/settle": (forms.settle, "/"),
    "/reset": (forms.reset, "/"),
}
"""What a form does, and the page that shows it again where it was refused."""


class Pages:
    """Answers requests for pages."""

    def __init__(self, app: SandboxApp) -> None:
        self._app = app
        self._templates: Any = None

    def takes(self, request: Request) -> bool:
        """Whether this is one of ours; everything else is the API's."""
        first = request.path.split("/")[1] if request.path.startswith("/") else ""
        return first in _FIRST and request.method in ("GET", "HEAD", "POST")

    async def answer(self, request: Request) -> Answer:
        if not is_near(request):
            return _plain(403, "The sandbox's pages are for this machine: open them by its IP address.")
        if request.path.startswith("/static/"):
            return _static(request.path.removeprefix("/static/"))
        if self._templates is None:
            try:
                self._templates = _environment()
            except ImportError:
                return _plain(501, NO_JINJA)
        if request.method != "POST":
            return self._show(request)
        if not from_here(request):
            return _plain(403, "This form was not sent by the sandbox's own page.")
        return await self._act(request)

    def _show(self, request: Request) -> Answer:
        desk = self._desk(request)
        form = Form(request.query)
        try:
            return self._page(desk, request.path, form)
        except Denied as exc:
            return self._render(desk, request.path, "refused.html", {"message": exc.message}, exc.status)

    async def _act(self, request: Request) -> Answer:
        desk, form = self._desk(request), Form(request.body.decode("utf-8", "replace"))
        if request.path == "/account":
            return _redirect("/", cookie=form.get("account"))
        if request.path == "/webhooks/deliver":
            await self._app.deliver_webhooks()
            return _redirect("/webhooks?done=delivered")
        if request.path == "/webhooks":
            return self._show_secret(desk, form)
        found = _find(_ACTIONS, request.path)
        if found is None:
            return self._lost(desk, request.path)
        (action, back), ids = found
        try:
            return _redirect(action(desk, ids, form))
        except Denied as exc:
            return self._again(desk, back.format(*ids), form, exc)

    def _show_secret(self, desk: Desk, form: Form) -> Answer:
        try:
            made = forms.make_webhook(desk, form)
        except Denied as exc:
            return self._again(desk, "/webhooks", form, exc)
        return self._page(desk, "/webhooks", Form(), made=made)

    def _again(self, desk: Desk, path: str, form: Form, denied: Denied) -> Answer:
        """The page of a form that was refused, as it was filled in."""
        more = {"refusal": denied.message, "param": denied.param}
        try:
            answer = self._page(desk, path, form, **more)
        except Denied as exc:
            return self._render(desk, path, "refused.html", {"message": exc.message}, exc.status)
        answer.status = 400
        return answer

    def _page(self, desk: Desk, path: str, form: Form, **more: Any) -> Answer:
        found = _find(_VIEWS, path)
        if found is None:
            return self._lost(desk, path)
        view, ids = found
        with self._app.store.lock:
            template, shown = view(desk, ids, form)
        return self._render(desk, path, template, {"form": form, **shown, **more})

    def _render(
        self, desk: Desk, path: str, template: str, shown: dict[str, Any], status: int = 200
    ) -> Answer:
        form = shown.get("form") or Form()
        text = self._templates.get_template(template).render(
            {
                "form": form,
                "refusal": None,
                "path": path,
                "section": path.split("/")[1],
                "done": DONE.get(form.get("done")),
                "account": desk.account,
                "accounts": [(spelled(one), one) for one in accounts_in_use(self._app)],
                "chosen_account": spelled(desk.account),
                "now": int(self._app.world.now()),
                **shown,
            }
        )
        return Answer(status, text.encode(), dict(_SAFE), "text/html; charset=utf-8")

    def _lost(self, desk: Desk, path: str) -> Answer:
        return self._render(desk, path, "refused.html", {"message": "There is no such page."}, 404)

    def _desk(self, request: Request) -> Desk:
        try:
            cookies = SimpleCookie(request.header(b"cookie") or "")
        except CookieError:
            cookies = SimpleCookie()
        wanted = cookies[_COOKIE].value if _COOKIE in cookies else ""
        with self._app.store.lock:
            return desk_for(self._app, wanted)


NO_JINJA = (
    "The sandbox runs, and its API is here. Its pages need Jinja2, which is not installed:\n\n"
    "    pip install 'llm_metering[sandbox]'\n"
)


def _find(table: dict[str, Any], path: str) -> tuple[Any, tuple[str, ...]] | None:
    """The entry for a path, and the ids in it."""
    path = path if path == "/" else path.rstrip("/")
    if path in table:
        return table[path], ()
    for pattern, entry in table.items():
        match = re.fullmatch(pattern, path)
        if match is not None:
            return entry, match.groups()
    return None


def _static(name: str) -> Answer:
    if name not in _STATIC:
        return _plain(404, "There is no such file.")
    headers = {**_SAFE, "Cache-Control": "no-cache"}
    return Answer(200, (_HERE / "static" / name).read_bytes(), headers, _STATIC[name])


def _redirect(to: str, *, cookie: str | None = None) -> Answer:
    headers = {**_SAFE, "Location": to}
    if cookie is not None:
        value = re.sub(r"[^A-Za-z0-9_:]", "", cookie)
        headers["Set-Cookie"] = f"{_COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict"
    return Answer(303, b"", headers, "text/plain")


def _plain(status: int, text: str) -> Answer:
    return Answer(status, text.encode(), dict(_SAFE), "text/plain; charset=utf-8")


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "amount_due": words.amount_due,
        "day": words.day,
        "input_time": words.input_time,
        "money": words.money,
        "moment": words.moment,
        "number": words.number,
        "price_words": words.price_words,
        "query": lambda values: urlencode({k: v for k, v in values.items() if v}),
        "iso": lambda at: datetime.fromtimestamp(at, timezone.utc).isoformat(),
    }
    made.filters.update(filters)
    made.globals.update(is_metered=words.is_metered, tier_rows=words.tier_rows, tones=words.STATUS_TONES)
    return made


_FIRST = frozenset({path.split("/")[1] for path in (*_VIEWS, *_ACTIONS)} | {"static", "account"})
