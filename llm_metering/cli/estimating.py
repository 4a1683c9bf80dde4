"""`estimate`: what usage will cost under a catalog, reckoned here, without Stripe."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.text import Text

from ..billing import Catalog, Estimate, MeteredUsage
from ..billing import estimate as estimate_usage
from ..billing.money import show
from ..errors import ConfigurationError
from .catalogs import named
from .estimate_page import COLOURS, bar_of, costs_by_price, page_of, words_of
from .options import Json
from .screen import Screen, number, row, table
from .standing import Folder, open_ledger

if TYPE_CHECKING:
    from ..ledger.places import View

_BAR = 30
_NOBODY = "(unresolved)"
_PERIODS = {"month": "%Y-%m", "day": "%Y-%m-%d"}
_NEVER_BILLED = ("DEAD", "CLOSED")
_FOR_EVER = 1e11


def estimate(
    catalog: Annotated[
        str, typer.Argument(metavar="CATALOG", help="A catalog in TOML, or the name of a guide.")
    ],
    usage: Annotated[
        str | None,
        typer.Option(
            "--usage", metavar="FILE", help="CSV with customer, value, event_name, period; - is stdin."
        ),
    ] = None,
    ledger: Folder = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="month or day (UTC): the ledger's usage of each is a billing period of its own.",
        ),
    ] = None,
    offer: Annotated[
        str | None, typer.Option("--offer", help="Only this offer of a catalog with several.")
    ] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write a page with the chart here, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Price usage locally, per customer, tier by tier. Without --usage it is the ledger's own."""
    if usage is not None and ledger is not None:
        raise ConfigurationError("--usage and --ledger exclude each other")
    if usage is not None and by is not None:
        raise ConfigurationError("--by is for the ledger's own usage; give the CSV a column period instead")
    wanted = named(catalog)
    offers = [wanted.offer(offer).name] if offer is not None else [o.name for o in wanted.offers]
    if not offers:
        raise ConfigurationError(f"{catalog} has no offers; add one that names the prices to reckon with")
    used = tuple(_from_ledger(ledger, by, wanted) if usage is None else _from_csv(usage, wanted))
    estimates = [one for name in offers for one in estimate_usage(wanted, used, offer=name)]
    screen = Screen(as_json=as_json)
    screen.document({"estimates": [{**_fields(one), "total": one.total} for one in estimates]})
    _show(screen, wanted, estimates)
    if html is not None:
        _write(html, page_of(wanted, estimates))
        screen.say(f"Written to {html}.")


def _from_ledger(folder: str | None, by: str | None, catalog: Catalog) -> Iterator[MeteredUsage]:
    _, view = open_ledger(folder)
    if by is not None:
        yield from _by_period(view, by, catalog)
        return
    for used in view.usage_sums():
        yield MeteredUsage(used.customer, used.event_name, used.value)


def _by_period(view: View, by: str, catalog: Catalog) -> Iterator[MeteredUsage]:
    """Meter events by their own time: those that Stripe has, and those that it is still to have."""
    if by not in _PERIODS:
        raise ConfigurationError(f"--by {by} must be month or day")
    if last := [meter.event_name for meter in catalog.meters if meter.aggregation == "last"]:
        raise ConfigurationError(f"--by adds up, and meter {last[0]!r} bills the last value")
    for found in view.event_sums(since=0, until=_FOR_EVER):
        start = datetime.fromtimestamp(found.start, timezone.utc)
        value = sum((v for state, v in found.values.items() if state not in _NEVER_BILLED), Decimal(0))
        if value:
            yield MeteredUsage(found.customer, found.event_name, value, start.strftime(_PERIODS[by]))


def _from_csv(name: str, catalog: Catalog) -> Iterator[MeteredUsage]:
    only = catalog.meters[0].event_name if len(catalog.meters) == 1 else None
    with ExitStack() as stack:
        rows = csv.DictReader(_opened(name, stack))
        missing = {"customer", "value"} - set(rows.fieldnames or ())
        if missing:
            raise ConfigurationError(f"{name} has no column {min(missing)}; its first line must name them")
        for line in rows:
            yield _usage(line, f"{name} line {rows.line_num}", only)


def _opened(name: str, stack: ExitStack) -> TextIO:
    if name == "-":
        return sys.stdin
    try:
        return stack.enter_context(Path(name).open(encoding="utf-8", newline=""))
    except OSError as exc:
        raise ConfigurationError(f"{name} cannot be read: {exc.strerror}") from exc


def _usage(line: dict[str, Any], at: str, only: str | None) -> MeteredUsage:
    event_name = line.get("event_name") or only
    if event_name is None:
        raise ConfigurationError(f"{at}: event_name is empty, and the catalog has several meters")
    try:
        value = Decimal((line["value"] or "").strip())
    except InvalidOperation:
        raise ConfigurationError(f"{at}: value={line['value']!r} is not a number") from None
    if not value.is_finite() or value.adjusted() > 30 or len(value.as_tuple().digits) > 40:
        raise ConfigurationError(f"{at}: value={line['value']!r} is not a number that a meter takes")
    return MeteredUsage(line["customer"] or None, event_name, value, line.get("period") or None)


def _write(name: str, page: str) -> None:
    try:
        Path(name).write_text(page, encoding="utf-8")
    except OSError as exc:
        raise ConfigurationError(f"{name} cannot be written: {exc.strerror}") from exc


def _fields(one: Estimate) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}


def _show(screen: Screen, catalog: Catalog, estimates: list[Estimate]) -> None:
    if not estimates:
        screen.say("No usage, no cost.")
        return
    _show_costs(screen, estimates)
    _show_tiers(screen, catalog, estimates)
    for currency in dict.fromkeys(one.currency for one in estimates):
        for name in dict.fromkeys(one.offer for one in estimates if one.currency == currency):
            total = sum((o.total for o in estimates if (o.offer, o.currency) == (name, currency)), Decimal(0))
            screen.say(f"{name}: {show(total, currency)} in all", "bold")


def _show_costs(screen: Screen, estimates: list[Estimate]) -> None:
    """A bar for each, in which every price has its colour."""
    most = max(one.total for one in estimates)
    keys = list(dict.fromkeys(line.price for one in estimates for line in one.lines))
    colours = {key: COLOURS[min(i, len(COLOURS) - 1)] for i, key in enumerate(keys)}
    costs = table("customer", "period", "offer", "cost", "", right=["cost"])
    for one in estimates:
        bar = Text()
        for key, blocks in bar_of(costs_by_price(one).items(), most, _BAR):
            bar.append(blocks, style=colours[key])
        cells = (one.customer or _NOBODY, one.period, one.offer, show(one.total, one.currency))
        costs.add_row(*(Text(cell or "") for cell in cells), bar)
    screen.table(costs)


def _show_tiers(screen: Screen, catalog: Catalog, estimates: list[Estimate]) -> None:
    lines = table(
        "customer", "period", "offer", "price", "charge", "quantity", "amount", right=["quantity", "amount"]
    )
    for one in estimates:
        for line in one.lines:
            words = words_of(catalog.price(line.price), line)
            quantity = "" if line.flat else number(line.quantity)
            amount = show(line.amount, one.currency)
            who = one.customer or _NOBODY
            row(lines, who, one.period, one.offer, line.price, words, quantity, amount)
    screen.table(lines)
