"""What a command shows: tables and sentences for people, or with --json one document and nothing else."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

_WIDE = 200
"""Columns where nothing is a terminal, so that a table is not folded on its way into a file or a pipe."""


class Screen:
    """Where one command's output goes. Results on stdout, everything else on stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._out = _console(sys.stdout)
        self._err = _console(sys.stderr)

    def document(self, value: Any) -> None:
        """The command's result for programs; printed only with --json."""
        if self.as_json:
            print(json.dumps(plain(value), indent=2, ensure_ascii=False), flush=True)

    def say(self, text: str = "", style: str = "") -> None:
        """A sentence for people."""
        if not self.as_json:
            self._out.print(Text(text, style=style), soft_wrap=not self._out.is_terminal)

    def table(self, table: Table) -> None:
        if not self.as_json:
            self._out.print(table)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Progress | None]:
        """A bar on stderr while something takes its time; nothing where that is no terminal."""
        if self.as_json or not self._err.is_terminal or total == 0:
            yield None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._err, transient=True) as bar:
            bar.add_task(what, total=total)
            yield bar


def table(*columns: str, title: str | None = None, right: Iterable[str] = ()) -> Table:
    """An empty table; the columns named in `right` hold numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in set(right) else "left", overflow="fold")
    return made


def row(into: Table, *cells: object, style: str = "") -> None:
    """Add a row; cells are text as it stands, never markup."""
    into.add_row(*(Text("" if cell is None else str(cell)) for cell in cells), style=style or None)


def plain(value: Any) -> Any:
    """A value as JSON can hold it. Decimals become text, so that no reader turns money into a float."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def number(value: Decimal | int | None) -> str:
    """A count for people: digits in groups of three, no idle zeros."""
    if value is None:
        return ""
    value = Decimal(value)
    return f"{value.quantize(Decimal(1)) if value == value.to_integral_value() else value.normalize():,f}"


def moment(at: datetime | float | None) -> str:
    """A time for people, in UTC."""
    if at is None:
        return ""
    at = at if isinstance(at, datetime) else datetime.fromtimestamp(at, timezone.utc)
    return at.strftime("%Y-%m-%d %H:%M UTC")


def complain(message: str, *, as_json: bool) -> None:
    """One line on stderr; with --json also one document on stdout, so that a program always finds one."""
    line = " ".join(message.split())
    if as_json:
        print(json.dumps({"error": line}, ensure_ascii=False), flush=True)
    print(f"llm-metering: {line}", file=sys.stderr, flush=True)


def _console(stream: Any) -> Console:
    console = Console(file=stream, highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(file=stream, highlight=False, width=_WIDE)
