"""`llm-metering demo`: from LLM calls to both guides' invoice previews, offline, in under a minute."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json
from .screen import Screen, number, row, table

if TYPE_CHECKING:
    from ..billing import InvoicePreview
    from .demo_play import Person, Report
    from .stage import Stage

_QUESTIONS = 300


def demo(
    requests: Annotated[
        int, typer.Option("--requests", min=20, help="How many questions the two customers ask.")
    ] = _QUESTIONS,
    seed: Annotated[int, typer.Option("--seed", help="Decides the questions and the answers.")] = 1,
    as_json: Json = False,
) -> None:
    """Watch LLM calls become tokens, usage, meter events and invoice previews. No account, no network."""
    report = run(seed=seed, requests=requests, as_json=as_json)
    if not report.is_right:
        raise typer.Exit(1)


def run(
    *,
    seed: int = 1,
    requests: int = _QUESTIONS,
    as_json: bool = False,
    before_audit: Callable[[Stage], object] = lambda stage: None,
) -> Report:
    """Play the demo, show it, and return what came of it."""
    from .demo_play import play

    screen = Screen(as_json=as_json)
    with _Acts.on(screen) as acts:
        report = play(seed=seed, requests=requests, show=acts, before_audit=before_audit)
    screen.document(_document(report))
    _show_usage(screen, report)
    _show_delivery(screen, report)
    for person, preview in [*report.people, *report.guides]:
        _show_invoice(screen, person, preview)
    _show_verdict(screen, report)
    _show_way_on(screen)
    return report


class _Acts:
    """Says which act it is, with a bar while questions are asked."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._bars = ExitStack()
        self._update: Callable[[int], object] | None = None

    @classmethod
    @contextmanager
    def on(cls, screen: Screen) -> Iterator[_Acts]:
        acts = cls(screen)
        with acts._bars:
            yield acts

    def act(self, text: str) -> None:
        self._bars.close()
        self._update = None
        self._screen.say(f"· {text}", style="dim")

    def progress(self, done: int, total: int) -> None:
        if self._update is None:
            bar = self._bars.enter_context(self._screen.progress("questions", total))
            self._update = (
                (lambda n: None) if bar is None else lambda n: bar.update(bar.task_ids[0], completed=n)
            )
        self._update(done)


def _show_usage(screen: Screen, report: Report) -> None:
    names = {person.customer: person.name for person, _ in report.people}
    usage = table(
        "customer", "model", "token type", "tokens", title="Usage, as Stripe has it", right=["tokens"]
    )
    last = None
    for kind, tokens in sorted(
        report.audit.by_kind.items(), key=lambda item: (names.get(item[0].customer or ""), item[0])
    ):
        name = f"{names.get(kind.customer or '', '?')} ({kind.customer})"
        row(usage, "" if name == last else name, kind.model, kind.token_type, number(tokens))
        last = name
    screen.say()
    screen.table(usage)


def _show_delivery(screen: Screen, report: Report) -> None:
    names = {person.customer: person.name for person, _ in report.people}
    columns = ("recorded", "pending", "accepted", "in doubt", "dead")
    books = table("customer", *columns, title="The ledger's books, in tokens", right=columns)
    sums: dict[str, list[Decimal]] = {}
    for b in report.balances:
        found = sums.setdefault(names.get(b.customer or "", "not known"), [Decimal()] * len(columns))
        for n, value in enumerate((b.recorded, b.pending, b.accepted, b.in_doubt, b.dead)):
            found[n] += value
    for name, values in sorted(sums.items()):
        row(books, name, *map(number, values))
    screen.say()
    screen.table(books)
    events = ", ".join(f"{n} {state.lower().replace('_', ' ')}" for state, n in report.status.events.items())
    screen.say(f"{report.status.usage_records} calls on record; meter events: {events}.")


def _show_invoice(screen: Screen, person: Person, preview: InvoicePreview) -> None:
    currency = preview.currency.upper()
    lines = table(
        "line",
        "quantity",
        currency,
        title=f"{person.name} ({person.customer}), {person.offer}: next invoice",
        right=["quantity", currency],
    )
    for line in preview.lines:
        row(lines, line.description, number(line.quantity), f"{line.amount:,.2f}")
    row(lines, "Total", "", f"{preview.total:,.2f} {currency}")
    screen.say()
    screen.table(lines)


def _show_verdict(screen: Screen, report: Report) -> None:
    audit, kill = report.audit, report.kill
    screen.say()
    screen.say("Tokens of all answers that reached their callers in full:", style="bold")
    for label, tokens in (
        ("sent by the provider", audit.sent),
        ("in the ledger", audit.in_ledger),
        ("in Stripe's books", audit.in_stripe),
    ):
        screen.say(f"  {label:<22}{number(tokens):>12}")
    if report.is_right:
        screen.say("They are equal: nothing is lost, nothing is billed twice.", style="bold green")
    for problem in report.problems:
        screen.say(f"  {problem}", style="red")
    if not report.is_right:
        screen.say("Something is wrong.", style="bold red")
        screen.say(f"Logs and ledger are kept in {report.folder}.")
    screen.say(
        f"After {kill.after_calls} of {report.calls} questions the service was killed with kill -9, with "
        f"{kill.streams} streams and {kill.plain} plain answers under way. {audit.cut} calls broke."
    )
    screen.say(
        f"Of these, {audit.cut_recorded} had been answered by the provider, wholly or in part, and were on "
        f"record. Each is billed once, as far as it had come, and left out above: {number(audit.cut_billed)} "
        f"tokens. The provider would count {number(audit.cut_sent_at_most)} had they come to their end."
    )
    screen.say(f"Seed {report.seed}, {report.seconds:.0f} s.", style="dim")


def _show_way_on(screen: Screen) -> None:
    from .demo_play import examples_folder

    key = os.environ.get("STRIPE_API_KEY", "")
    if key.startswith(("sk_test_", "rk_test_")):
        screen.say(
            "STRIPE_API_KEY holds a test key, which the demo did not use. The same in your own account: "
            "llm-metering setup pay-as-you-go; llm-metering subscribe --help; llm-metering test-event --help"
        )
    if os.environ.get("OPENAI_API_KEY"):
        folder = examples_folder() / "fastapi_chat"
        screen.say(
            "OPENAI_API_KEY is set, and the demo did not use it. The same service with the real OpenAI: "
            f"CHAT_API_KEYS=my-key=cus_… {sys.executable} -m uvicorn --app-dir {folder} app:app"
        )


def _document(report: Report) -> dict[str, object]:
    audit = report.audit
    names = {person.customer: person.name for person, _ in report.people}
    return {
        "ok": report.is_right,
        "seed": report.seed,
        "calls": report.calls,
        "seconds": round(report.seconds, 1),
        "kill": report.kill,
        "tokens": {
            "sent_by_provider": audit.sent,
            "in_ledger": audit.in_ledger,
            "in_stripe": audit.in_stripe,
            "equal": audit.sent == audit.in_ledger == audit.in_stripe,
        },
        "answered": audit.answered,
        "cut": {
            "calls": audit.cut,
            "recorded": audit.cut_recorded,
            "billed_tokens": audit.cut_billed,
            "sent_at_most": audit.cut_sent_at_most,
        },
        "usage": [
            {**kind._asdict(), "name": names.get(kind.customer or ""), "tokens": tokens}
            for kind, tokens in sorted(audit.by_kind.items())
        ],
        "ledger": report.status,
        "balances": report.balances,
        "invoices": [
            {"name": person.name, "offer": person.offer, "preview": preview}
            for person, preview in report.people
        ],
        "guides": [
            {"name": person.name, "offer": person.offer, "preview": preview}
            for person, preview in report.guides
        ],
        "problems": report.problems,
        "folder": None if report.is_right else str(report.folder),
    }
