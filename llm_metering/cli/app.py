"""The commands in one place, and what becomes of their errors: one line on stderr, exit code 1 or 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from ..errors import ConfigurationError, MeteringError
from . import (
    applying,
    archiving,
    comparing,
    deciding,
    delivering,
    estimating,
    invoicing,
    looking,
    migrating,
    partitions,
    preparing,
    serving,
    standing,
    subscribing,
)
from .crediting import alerts, credit_grants
from .faulting import faults
from .options import Command
from .screen import complain

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""click's; some versions of typer carry click inside, where it has another name."""

app = typer.Typer(
    name="llm-metering",
    help="Count LLM calls, keep the counts safe, and bill them through a Stripe meter.",
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
)
setup = typer.Typer(help="Set up one of Stripe's pricing guides: meter, products, prices. May be run again.")
app.add_typer(setup, name="setup")

app.command("sandbox", cls=Command)(serving.sandbox)
app.add_typer(faults, name="faults")
setup.command("pay-as-you-go", cls=Command)(applying.pay_as_you_go)
setup.command("flat-fee", cls=Command)(applying.flat_fee)
app.command("plan", cls=Command)(applying.plan)
app.command("apply", cls=Command)(applying.apply)
app.command("migrate", cls=Command)(migrating.migrate)
app.command("subscribe", cls=Command)(subscribing.subscribe)
app.command("test-event", cls=Command)(invoicing.send)
app.command("preview", cls=Command)(invoicing.preview)
app.command("invoices", cls=Command)(invoicing.invoices)
app.add_typer(credit_grants, name="credits")
app.add_typer(alerts, name="alerts")
app.command("estimate", cls=Command)(estimating.estimate)
app.command("status", cls=Command)(standing.status)
app.command("usage", cls=Command)(standing.usage)
app.command("reconcile", cls=Command)(comparing.reconcile)

events = typer.Typer(help="Meter events: what became of each.")
dead = typer.Typer(help="Meter events that Stripe refused for good.")
doubt = typer.Typer(help="Meter events that Stripe may have or not.")
unresolved = typer.Typer(help="Usage without a customer.")
held = typer.Typer(help="Usage that is kept out of billing.")
for _name, _group in (
    ("events", events),
    ("dead", dead),
    ("doubt", doubt),
    ("unresolved", unresolved),
    ("held", held),
):
    app.add_typer(_group, name=_name)
events.command("list", cls=Command)(looking.list_events)
events.command("show", cls=Command)(looking.show)
dead.command("list", cls=Command)(looking.list_dead)
dead.command("replay", cls=Command)(deciding.replay)
dead.command("write-off", cls=Command)(deciding.write_off)
doubt.command("list", cls=Command)(looking.list_doubt)
doubt.command("resolve", cls=Command)(deciding.resolve)
unresolved.command("list", cls=Command)(looking.list_unresolved)
unresolved.command("assign", cls=Command)(deciding.assign)
held.command("list", cls=Command)(looking.list_held)
held.command("release", cls=Command)(deciding.release)
ledger = typer.Typer(help="A ledger that a fleet shares, in PostgreSQL.")
app.add_typer(ledger, name="ledger")
ledger.command("migrate", cls=Command)(preparing.migrate)
ledger.command("restore-mark", cls=Command)(preparing.restore_mark)
ledger.command("archive", cls=Command)(archiving.archive)
ledger.command("partition", cls=Command)(partitions.partition)
app.command("deliver", cls=Command)(delivering.deliver)
app.command("pause", cls=Command)(deciding.pause)
app.command("resume", cls=Command)(deciding.resume)

if find_spec("llm_metering.cli.demo") is not None:
    from .demo import demo

    app.command("demo", cls=Command)(demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            print(f"llm-metering {version('llm_metering')}")
        except PackageNotFoundError:  # run from a folder that was never installed
            print("llm-metering (not installed)")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _everything(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in args
    _forgive_terminals()
    try:
        return _invoke(args)
    except _UsageError as exc:
        complain(f"{_message(exc)}. Try: {_path(exc)} --help", as_json=as_json)
        return 2
    except ConfigurationError as exc:
        complain(str(exc), as_json=as_json)
        return 2
    except MeteringError as exc:
        complain(str(exc), as_json=as_json)
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        _close_stdout()
        return 1


def _invoke(args: list[str]) -> int:
    code: Any = typer.main.get_command(app).main(args, prog_name="llm-metering", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _forgive_terminals() -> None:
    """A terminal that cannot show a character gets a question mark, not a crash."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _message(exc: Any) -> str:
    return str(exc.format_message()).rstrip(".")


def _path(exc: Any) -> str:
    context = getattr(exc, "ctx", None)
    return context.command_path if context is not None else "llm-metering"


def _close_stdout() -> None:
    """The reader of our output is gone; keep Python from complaining about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
