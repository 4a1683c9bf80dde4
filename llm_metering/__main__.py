"""Entry point of `llm-metering` and `python -m llm_metering`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_EXTRA = ("typer", "rich", "click", "shellingham")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 (failed, or not so) or 2 (used wrongly)."""
    try:
        from .cli.app import run
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        from .errors import MissingExtra

        print(f"llm-metering: {MissingExtra(missing, 'cli')}", file=sys.stderr)
        return 2
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
