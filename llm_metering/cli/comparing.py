"""`reconcile`: the ledger beside Stripe's summaries. Nothing is sent or changed on either side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from typing import Annotated

import typer

from ..billing.connection import is_loopback
from ..errors import AccountMismatch, ConfigurationError, StripeUnavailable
from ..protocols import Books
from ..reconcile import LAG_S, Difference, Report
from ..reconcile import reconcile as compare
from ..senders.reading import StripeReader
from ..senders.stripe_v1 import StripeSender
from ..senders.summaries import Summaries
from .asking import moment_of
from .options import ApiBase, ApiKey, Json, Sandbox, Target, no_sandbox
from .screen import Screen, moment, number, row, table
from .standing import Folder, open_ledger

REQUESTS_PER_S = 10.0


def reconcile(
    since: Annotated[
        str,
        typer.Option("--since", metavar="WHEN", help="Such as 24h, 7d, 2026-11-20 or 2026-11-20T08:00:00Z."),
    ] = "24h",
    until: Annotated[
        str | None, typer.Option("--until", metavar="WHEN", help="The same forms (default: now).")
    ] = None,
    customer: Annotated[str | None, typer.Option("--customer", help="Only this customer.")] = None,
    lag: Annotated[
        float,
        typer.Option("--lag", metavar="SECONDS", help="How long Stripe may take to show what it accepted."),
    ] = LAG_S,
    ledger: Folder = None,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> None:
    """Compare the ledger with what Stripe has counted, by customer, meter and hour. Corrects nothing."""
    now = time.time()
    start = moment_of(since, "--since", now=now)
    end = now if until is None else moment_of(until, "--until", now=now)
    if start >= end:
        raise ConfigurationError(f"--since {since} does not lie before the end")
    folder, view = open_ledger(ledger)
    screen = Screen(as_json=as_json)
    with _stripe(Target(api_key, api_base, sandbox, live=True), view, now) as summaries, _bar(screen) as bar:
        report = compare(
            view, summaries, since=start, until=end, customer=customer, now=now, lag_s=lag, progress=bar
        )
    screen.document({"ledger_folder": folder, "equal": report.is_equal, **_document(report)})
    _show(screen, report)
    if not report.is_equal:
        raise typer.Exit(1)


@contextmanager
def _stripe(target: Target, view: Books, now: float) -> Iterator[Summaries]:
    """Stripe's side, of the account that the ledger belongs to."""
    key, base = target.place()
    if key is None:
        raise ConfigurationError(
            "no Stripe API key: set STRIPE_API_KEY, or use a local sandbox with --sandbox"
        )
    with (
        closing(StripeSender(key, api_base=base)) as sender,
        closing(StripeReader(key, api_base=base, per_s=REQUESTS_PER_S)) as reader,
    ):
        outcome = sender.check()
        if outcome.status is None and is_loopback(base):
            raise StripeUnavailable(no_sandbox(base))
        if outcome.kind != "accepted":
            raise StripeUnavailable(f"Stripe refuses the key: {outcome.message}", status=outcome.status)
        bound_to, key_of = view.status(now=now).account, outcome.message or ""
        if bound_to and key_of.startswith("acct_") and bound_to.startswith("acct_") and bound_to != key_of:
            raise AccountMismatch(bound_to=bound_to, key_of=key_of)
        yield Summaries(reader)


@contextmanager
def _bar(screen: Screen) -> Iterator[Callable[[int, int], object]]:
    """A progress bar whose length shows itself on the way."""
    with screen.progress("Asking Stripe", 1) as bar:

        def move(done: int, total: int) -> None:
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done, total=total)

        yield move


def _document(report: Report) -> dict[str, object]:
    return {
        "since": _time(report.since),
        "until": _time(report.until),
        "hours_compared": report.hours,
        "ledger": report.ledger,
        "stripe": report.stripe,
        "differences": [
            {
                "customer": d.customer,
                "event_name": d.event_name,
                "hour": _time(d.start),
                "ledger": d.ledger,
                "stripe": d.stripe,
                "by": d.by,
                "verdict": d.verdict,
                "note": d.note,
                "events": [
                    {"identifier": e.event.identifier, "value": e.event.value, "state": e.state}
                    for e in d.events
                ],
            }
            for d in report.differences
        ],
        "skipped": report.skipped,
    }


def _show(screen: Screen, report: Report) -> None:
    numbers = ["ledger", "Stripe", "by"]
    shown = table("customer", "meter", "hour", *numbers, "what it means", right=numbers)
    for d in report.differences:
        row(
            shown, d.customer, d.event_name, moment(d.start), number(d.ledger), number(d.stripe),
            f"{'+' if d.by > 0 else ''}{number(d.by)}", _meaning(d),
        )  # fmt: skip
    if report.differences:
        screen.table(shown)
    for skipped in report.skipped:
        screen.say(f"Not compared: {skipped.event_name} of {skipped.customer}: {skipped.why}.", "yellow")
    totals = f"ledger {number(report.ledger)}, Stripe {number(report.stripe)}"
    span = f"{report.hours:,} hours from {moment(report.since)} to {moment(report.until)}"
    differ = sum(d.verdict == "differs" for d in report.differences)
    if differ:
        screen.say(f"{differ:,} of {span} differ: {totals}.", "bold red")
    else:
        screen.say(f"Equal: {span}, {totals}.", "bold green")


def _meaning(d: Difference) -> str:
    events = ", ".join(f"{e.event.identifier} ({number(e.event.value)}, {e.state})" for e in d.events[:5])
    more = f" and {len(d.events) - 5} more" if len(d.events) > 5 else ""
    return f"{d.note}: {events}{more}" if events else d.note


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, timezone.utc)
