"""What usage will cost as one HTML page that needs nothing else: no script, no font, no other file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from html import escape

from ..billing import Catalog, Estimate, PriceSpec, RatedLine
from ..billing.money import show
from .screen import number

COLOURS = ("#635bff", "#0ca678", "#f08c00", "#e64980", "#1c7ed6", "#868e96")
"""Of the prices, in the order of their offers; readable on white and on black."""


def words_of(price: PriceSpec, line: RatedLine) -> str:
    """What a line charges, such as "1,001 and above at 0.04 USD each"."""
    currency = price.currency
    if line.tier is None:
        amount = show(_decimal(price.amount), currency)
        if price.package_size is not None:
            return f"{amount} per {price.package_size:,}, rounded {price.package_round}"
        return f"{amount} each" if price.metered else f"{amount} every {price.interval}, in advance"
    tier = price.tiers[line.tier - 1]
    if line.flat:
        return f"flat fee of tier {line.tier}"
    first = _first_unit(price, line.tier)
    if price.tiers_mode == "volume":
        span = "any number" if tier.up_to == "inf" and first == 1 else f"all, as they reach tier {line.tier}"
    else:
        span = f"{first:,} and above" if tier.up_to == "inf" else f"{first:,} to {tier.up_to:,}"
    return f"{span} at {show(_decimal(tier.unit_amount), currency)} each"


def costs_by_price(one: Estimate) -> dict[str, Decimal]:
    """What each price adds to an estimate."""
    costs: dict[str, Decimal] = {}
    for line in one.lines:
        costs[line.price] = costs.get(line.price, Decimal(0)) + line.amount
    return costs


def page_of(catalog: Catalog, estimates: Sequence[Estimate]) -> str:
    """Totals, a bar for each customer, and below it every tier."""
    keys = list(dict.fromkeys(line.price for one in estimates for line in one.lines))
    colours = {key: COLOURS[min(i, len(COLOURS) - 1)] for i, key in enumerate(keys)}
    body = [
        "<h1>What usage will cost</h1>",
        *_totals(estimates),
        "<ul class=legend>",
        *(f'<li><i style="background:{colours[key]}"></i>{escape(key)}' for key in keys),
        "</ul>",
        *_customers(catalog, estimates, colours),
        _NOTE,
    ]
    return _PAGE.replace("BODY", "\n".join(body))


def _totals(estimates: Sequence[Estimate]) -> Iterator[str]:
    yield "<dl class=totals>"
    for offer, currency in dict.fromkeys((one.offer, one.currency) for one in estimates):
        some = [one for one in estimates if (one.offer, one.currency) == (offer, currency)]
        total = sum((one.total for one in some), Decimal(0))
        who = len({one.customer for one in some})
        customers = f"{who:,} customer{'s' * (who != 1)}"
        yield f"<div><dt>{escape(offer)}<dd>{escape(show(total, currency))}<small>{customers}</small></div>"
    yield "</dl>"


def _customers(catalog: Catalog, estimates: Sequence[Estimate], colours: Mapping[str, str]) -> Iterator[str]:
    most = max((one.total for one in estimates), default=Decimal(0))
    for one in sorted(estimates, key=lambda one: one.total, reverse=True):
        who = escape(one.customer or "(unresolved)")
        what = " · ".join(escape(part) for part in (one.period, one.offer) if part)
        yield f"<details><summary><span>{who}<small>{what}</small></span>"
        yield f"<span class=bar aria-hidden=true>{''.join(_bar(one, most, colours))}</span>"
        yield f"<b>{escape(show(one.total, one.currency))}</b></summary>"
        yield "<table><thead><tr><th>Price<th>Charge<th class=n>Quantity<th class=n>Amount</thead><tbody>"
        yield from _rows(catalog, one)
        yield "</tbody></table></details>"


def _bar(one: Estimate, most: Decimal, colours: Mapping[str, str]) -> Iterator[str]:
    for key, cost in costs_by_price(one).items():
        if cost and most:
            width = f"{cost * 100 / most:.3f}"
            title = escape(f"{key}: {show(cost, one.currency)}", quote=True)
            yield f'<i style="width:{width}%;background:{colours[key]}" title="{title}"></i>'


def _rows(catalog: Catalog, one: Estimate) -> Iterator[str]:
    for line in one.lines:
        cells = (
            f"<td>{escape(line.price)}<td>{escape(words_of(catalog.price(line.price), line))}",
            f"<td class=n>{'' if line.flat else number(line.quantity)}",
            f"<td class=n>{escape(show(line.amount, one.currency))}",
        )
        yield "<tr>" + "".join(cells)


def _first_unit(price: PriceSpec, tier: int) -> int:
    before = price.tiers[tier - 2].up_to if tier > 1 else 0
    return before + 1 if isinstance(before, int) else 1


def _decimal(amount: object) -> Decimal:
    return Decimal(0) if amount is None else Decimal(str(amount))


def bar_of(costs: Iterable[tuple[str, Decimal]], most: Decimal, width: int) -> list[tuple[str, str]]:
    """Blocks for a terminal, an eighth of a column fine: what each price adds, in its turn."""
    drawn, sum_so_far, blocks = 0, Decimal(0), []
    for key, cost in costs:
        sum_so_far += cost
        eighths = int(sum_so_far * width * 8 / most) if most else 0
        full, rest = divmod(eighths - drawn, 8)
        text = "█" * full
        drawn += full * 8
        blocks.append((key, text))
        last_rest = rest
    if blocks and last_rest:
        key, text = blocks[-1]
        blocks[-1] = (key, text + "▏▎▍▌▋▊▉"[last_rest - 1])
    return blocks


_NOTE = (
    "<p class=note>List prices, reckoned as Stripe's invoices are: before tax, discounts, credits and "
    "prorations. All usage of a customer and period counts as one billing period.</p>"
)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What usage will cost</title>
<style>
:root { color-scheme: light dark;
  --text: #1a1f36; --soft: #586174; --line: #e3e8ee; --ground: #fff; --track: #f1f3f7 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9f0; --soft: #9aa4b8; --line: #2b3245; --ground: #12151f; --track: #1d2231 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1rem 4rem; color: var(--text);
  background: var(--ground); font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 1rem }
small { display: block; color: var(--soft); font-size: .8rem; font-weight: 400 }
.totals { display: flex; flex-wrap: wrap; gap: 1rem; margin: 0 0 1rem }
.totals div { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem }
.totals dt { color: var(--soft); font-size: .85rem }
.totals dd { margin: 0; font-size: 1.4rem; font-weight: 600; font-variant-numeric: tabular-nums }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1rem; list-style: none; margin: 0 0 1rem; padding: 0;
  color: var(--soft); font-size: .85rem; overflow-wrap: anywhere }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .4rem }
details { border-top: 1px solid var(--line) }
summary { display: grid; grid-template-columns: 14rem 1fr 10rem; gap: 1rem;
  align-items: center; padding: .5rem 0; cursor: pointer; overflow-wrap: anywhere }
summary > span:first-child::before { content: "▸ "; color: var(--soft) }
details[open] > summary > span:first-child::before { content: "▾ " }
summary b { text-align: right; font-variant-numeric: tabular-nums }
.bar { display: flex; height: 1rem; background: var(--track); border-radius: 3px; overflow: hidden }
.bar i { display: block; min-width: 1px }
table { border-collapse: collapse; width: 100%; margin: 0 0 1rem; font-size: .9rem }
th, td { text-align: left; padding: .3rem .6rem; border-top: 1px solid var(--line); overflow-wrap: anywhere }
th { color: var(--soft); font-weight: 500 }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.note { color: var(--soft); font-size: .85rem; margin-top: 2rem }
@media (max-width: 40rem) {
  summary { grid-template-columns: 1fr auto } .bar { grid-column: 1 / -1; grid-row: 2 }
  th, td { padding: .3rem .2rem }
}
@media print { details { break-inside: avoid } }
</style></head>
<body>
BODY
</body></html>
"""
