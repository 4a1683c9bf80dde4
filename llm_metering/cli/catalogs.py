"""Which catalog a command means: a guide with its options, or a TOML file."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from ..billing import Catalog, FlatFeeWithOverages, PayAsYouGo, load_catalog
from ..billing.guides import FLAT_FEE, PAY_AS_YOU_GO
from ..errors import ConfigurationError

Currency = Annotated[str | None, typer.Option("--currency", help="Three letters (default: usd).")]
Interval = Annotated[
    str | None, typer.Option("--interval", help="day, week, month or year (default: month).")
]
EventName = Annotated[
    str | None, typer.Option("--event-name", help="The meter's event name (default: hypernian_tokens).")
]
MeterName = Annotated[
    str | None, typer.Option("--meter-name", help='Shown in the Dashboard (default: "Hypernian tokens").')
]
Aggregation = Annotated[str | None, typer.Option("--aggregation", help="sum, count or last (default: sum).")]
LicenseBilled = Annotated[
    str | None,
    typer.Option("--license-billed", help="in_advance, or with_usage in arrears (default: in_advance)."),
]


def given(**arguments: Any) -> dict[str, Any]:
    """Only what was said; the guides' own defaults stand for the rest."""
    return {name: value for name, value in arguments.items() if value is not None}


def is_file(name: str) -> bool:
    """Whether a PLAN names a file and not a guide."""
    return name.endswith(".toml") or (name not in (PAY_AS_YOU_GO, FLAT_FEE) and Path(name).is_file())


def named(name: str) -> Catalog:
    """A guide with its own figures, or the catalog in a file."""
    if is_file(name):
        return load_catalog(name)
    if name in (PAY_AS_YOU_GO, FLAT_FEE):
        return PayAsYouGo() if name == PAY_AS_YOU_GO else FlatFeeWithOverages()
    raise _unknown(name)


def set_up(plan: str, *, license_billed: str | None, **said: str | None) -> tuple[Catalog, bool]:
    """The catalog, and whether its prices must be as it says: a guide is named here without its amounts."""
    if not is_file(plan):
        return _keys_of(plan, license_billed=license_billed, **said), False
    for name, value in {**said, "license_billed": license_billed}.items():
        if value is not None:
            raise ConfigurationError(f"--{name.replace('_', '-')} belongs to the guides; {plan} says its own")
    return load_catalog(plan), True


def flags_of(guide: str, **said: str | None) -> str:
    """A guide's name, and what has to be said with it to find its prices again."""
    options = [f" --{name.replace('_', '-')} {quote(text)}" for name, text in given(**said).items()]
    return guide + "".join(options)


def _keys_of(name: str, *, license_billed: str | None, **said: str | None) -> Catalog:
    """A guide whose prices have the keys that were set up; what they charge does not matter here."""
    if name == PAY_AS_YOU_GO:
        if license_billed is not None:
            raise ConfigurationError(f"--license-billed belongs to {FLAT_FEE}")
        return PayAsYouGo(amount=1, **given(**said))
    if name == FLAT_FEE:
        chosen = given(**said, license_billed=license_billed)
        return FlatFeeWithOverages(license_amount=1, overage_amount=1, **chosen)
    raise _unknown(name)


def _unknown(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is no plan {name!r}; there are {PAY_AS_YOU_GO} and {FLAT_FEE}, and catalogs in .toml files"
    )
