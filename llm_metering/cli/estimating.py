"""`estimate`: what usage will cost under a catalog, reckoned here, without Stripe."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from decimal import Decimal, InvalidOperation
from html import escape
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from ..billing import Catalog, Estimate, MeteredUsage
from ..billing import estimate as estimate_usage
from ..billing.money import show
from ..errors import ConfigurationError
from .catalogs import named
from .options import Json
from .screen import Screen, number, row, table
from .standing import Folder, open_ledger

_BAR = 30


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
    wanted = named(catalog)
    offers = [wanted.offer(offer).name] if offer is not None else [o.name for o in wanted.offers]
    if not offers:
        raise ConfigurationError(f"{catalog} has no offers; add one that names the prices to reckon with")
    used = tuple(_from_ledger(ledger) if usage is None else _from_csv(usage, wanted))
    estimates = [one for name in offers for one in estimate_usage(wanted, used, offer=name)]
    screen = Screen(as_json=as_json)
    screen.document({"estimates": [{**_fields(one), "total": one.total} for one in estimates]})
    _show(screen, estimates)
    if html is not None:
        Path(html).write_text(page_of(estimates), encoding="utf-8")
        screen.say(f"Written to {html}.")


def _from_ledger(folder: str | None) -> Iterator[MeteredUsage]:
    _, view = open_ledger(folder)
    for used in view.usage_sums():
        yield MeteredUsage(used.customer, used.event_name, used.value)


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


def _fields(one: Estimate) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}


def _show(screen: Screen, estimates: list[Estimate]) -> None:
    if not estimates:
        screen.say("No usage, no cost.")
        return
    most = max(one.total for one in estimates)
    costs = table("customer", "period", "offer", "cost", "", right=["cost"])
    for one in estimates:
        bar = "█" * _share(one.total, most, _BAR)
        row(costs, one.customer or "(unresolved)", one.period, one.offer, show(one.total, one.currency), bar)
    screen.table(costs)
    lines = table("customer", "offer", "price", "tier", "quantity", "amount", right=["quantity", "amount"])
    for one in estimates:
        for line in one.lines:
            tier = "" if line.tier is None else f"{line.tier}{' flat' if line.flat else ''}"
            amount = show(line.amount, one.currency)
            row(
                lines,
                one.customer or "(unresolved)",
                one.offer,
                line.price,
                tier,
                number(line.quantity),
                amount,
            )
    screen.table(lines)
    for currency in dict.fromkeys(one.currency for one in estimates):
        for name in dict.fromkeys(one.offer for one in estimates if one.currency == currency):
            total = sum((o.total for o in estimates if (o.offer, o.currency) == (name, currency)), Decimal(0))
            screen.say(f"{name}: {show(total, currency)} in all", "bold")


def _share(part: Decimal, whole: Decimal, width: int) -> int:
    return int(part * width / whole) if whole else 0


def page_of(estimates: Iterable[Estimate]) -> str:
    """The costs as one HTML page that needs nothing else."""
    estimates = list(estimates)
    most = max((one.total for one in estimates), default=Decimal(0))
    rows = "\n".join(
        f"<tr><td>{escape(one.customer or '(unresolved)')}<td>{escape(one.period or '')}"
        f"<td>{escape(one.offer)}<td class=n>{escape(show(one.total, one.currency))}"
        f'<td><div class=bar style="width:{_share(one.total, most, 100)}%"></div>'
        for one in estimates
    )
    return _PAGE.replace("ROWS", rows)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What usage will cost</title>
<style>
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884 }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.bar { height: 1rem; min-width: 1px; background: #635bff; border-radius: 2px }
th:last-child { width: 40% }
</style>
<h1>What usage will cost</h1>
<table><thead><tr><th>Customer<th>Period<th>Offer<th class=n>Cost<th></thead><tbody>
ROWS
</tbody></table>
</html>
"""
