"""`migrate`: move those who subscribe to a price that was replaced, after it was shown."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from ..billing import Migrated, Migration, Move, plan_migration
from ..billing import migrate as carry_out
from ..billing.moves import Proration, lines
from ..errors import ConfigurationError
from .applying import DryRun, File
from .asking import Yes, confirm
from .catalogs import Currency, EventName, Interval, LicenseBilled, set_up
from .options import ApiBase, ApiKey, Json, Live, Sandbox, Target
from .screen import Screen


def migrate(
    catalog: File,
    price: Annotated[
        list[str] | None,
        typer.Option(
            "--price",
            metavar="OLD=KEY",
            help="From an old price (id or lookup key) to a key of the catalog; may be repeated. "
            "Default: all prices that were replaced under a key of the catalog.",
        ),
    ] = None,
    customer: Annotated[
        list[str] | None, typer.Option("--customer", help="Only this one; may be repeated.")
    ] = None,
    proration: Annotated[
        str,
        typer.Option(
            "--proration",
            help="A licence's rest of the period: create_prorations (difference on the next invoice), "
            "always_invoice (at once) or none (new price from the next period on).",
        ),
    ] = "create_prorations",
    to_flexible: Annotated[
        bool,
        typer.Option(
            "--to-flexible",
            help="Move subscriptions in classic billing to flexible billing first, for good; usage so far "
            "keeps its price then.",
        ),
    ] = False,
    forfeit_usage: Annotated[
        bool,
        typer.Option(
            "--forfeit-usage",
            help="Move subscriptions in classic billing all the same: their usage so far is never billed.",
        ),
    ] = False,
    amounts: Annotated[
        bool, typer.Option("--amounts", help="Show what each next invoice comes to, without and with it.")
    ] = False,
    currency: Currency = None,
    interval: Interval = None,
    event_name: EventName = None,
    license_billed: LicenseBilled = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    api_key: ApiKey = None,
    api_base: ApiBase = None,
    sandbox: Sandbox = None,
    live: Live = False,
    as_json: Json = False,
) -> None:
    """Show who has a price that was replaced, and move them to the new one. May be run again."""
    wanted, exact = set_up(
        catalog, currency=currency, interval=interval, event_name=event_name, license_billed=license_billed
    )
    prices = dict(map(_pair, price or []))
    screen = Screen(as_json=as_json)
    with Target(api_key, api_base, sandbox, live).client() as client:
        migration = plan_migration(
            wanted,
            client,
            prices=prices,
            customers=customer or (),
            proration=cast("Proration", proration),
            to_flexible=to_flexible,
            forfeit_usage=forfeit_usage,
            amounts=amounts,
            exact=exact,
        )
        show_migration(screen, migration)
        if dry_run or not migration.ready:
            _end(screen, migration, None, dry_run=dry_run)
            return
        question = f"Move {len(migration.ready)} now? It takes effect at once"
        confirm(screen, question, yes=yes, changes="what customers pay")
        with screen.progress("Moving", len(migration.ready)) as bar:

            def advance(*_: object) -> None:
                if bar is not None:
                    bar.advance(bar.task_ids[0])

            done = carry_out(migration, client, on_move=advance)
    _end(screen, migration, done, dry_run=False)


def show_migration(screen: Screen, migration: Migration) -> None:
    """Who goes from which price to which, and what becomes of this period."""
    for move in migration.moves:
        for line in lines(move):
            screen.say(line, "" if line.startswith(" ") else _colour(move))


def _colour(move: Move) -> str:
    return "cyan" if move.blocked is None else "yellow"


def _end(screen: Screen, migration: Migration, done: Migrated | None, *, dry_run: bool) -> None:
    """Say what was done; exit with 1 if anybody stays who was to be moved."""
    screen.document(
        {"dry_run": dry_run, "migration": migration.as_dict(), "migrated": done and done.as_dict()}
    )
    summary = f"{migration.summary[:1].upper()}{migration.summary[1:]}"
    if done is None:
        screen.say(f"{summary}. Nothing was changed." if migration.moves else f"{summary}.")
    else:
        screen.say(f"{len(done.moved)} moved.", "green" if done.moved else "")
        for move, why in done.refused:
            screen.say(f"{move.subscription} of {move.customer} stays as it is: {why}", "yellow")
    if not dry_run and (migration.blocked if done is None else done.refused):
        raise typer.Exit(1)


def _pair(text: str) -> tuple[str, str]:
    old, found, key = text.partition("=")
    if not found or not old or not key:
        raise ConfigurationError(f"--price {text!r} must be written as OLD=KEY")
    return old, key
