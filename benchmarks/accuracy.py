"""How far our own counts are from what providers reported, by family and case.

    python benchmarks/accuracy.py            print the tables
    python benchmarks/accuracy.py --write    and put them into docs/accuracy.md

Reads the recorded exchanges at ../shared/exchanges, or where LLM_METERING_EXCHANGES says.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from llm_metering.counting import recount
from llm_metering.counting.bounds import BOUNDS, SLACK_TOKENS, case_of
from llm_metering.counting.models import family_of, is_reasoning
from llm_metering.counting.requests import prompt_of
from llm_metering.providers import read_response, read_stream
from llm_metering.usage import Reading

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "accuracy.md"
MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")


@dataclass(frozen=True)
class Sample:
    """One count of ours beside the provider's."""

    family: str
    api: str
    part: str
    case: str
    reported: int
    counted: int
    bound: float | None
    uncounted: str | None

    @property
    def error(self) -> float:
        return abs(self.counted - self.reported) / max(self.reported, 1)

    @property
    def is_within(self) -> bool:
        """Whether it is within its published bound; a count without one promises nothing."""
        if self.bound is None:
            return True
        allowed = self.bound * max(self.reported, self.counted) + SLACK_TOKENS
        return abs(self.counted - self.reported) <= allowed


def exchanges() -> Iterator[dict[str, Any]]:
    folder = Path(os.environ.get("LLM_METERING_EXCHANGES", ROOT.parent / "shared" / "exchanges"))
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def samples() -> Iterator[Sample]:
    """Every reported count that we can make too."""
    for row in exchanges():
        read = read_stream if row["stream"] else read_response
        reported = read(row["response"], keep_text=True)
        if reported.usage and reported.api not in ("assistants", "rerank"):
            yield from compared(reported, row, model_of(reported, row))


def compared(reported: Reading, row: dict[str, Any], model: str) -> Iterator[Sample]:
    counted = recount(reported, row["request"], model=model)
    case = case_of(prompt_of(row["request"], reported.api))
    family = family_of(model) + (" (reasoning)" if is_reasoning(model) else "")
    prompts = (reported.usage.input_total, counted.usage.input_total)
    answers = (reported.usage.output_total, counted.usage.output_total)
    if reported.usage.reasoning is not None:
        answers = ((answers[0] or 0) - reported.usage.reasoning, counted.usage.output)
    for part, (theirs, ours) in (("prompt", prompts), ("answer", answers)):
        if theirs is not None and ours is not None:
            yield Sample(
                family, reported.api or "?", part, case, theirs, ours, counted.bound, counted.uncounted
            )


def model_of(reported: Reading, row: dict[str, Any]) -> str:
    """Bedrock and Gemini name the model in the path."""
    named = re.search(r"/models?/([^/:]+)", unquote(row["path"]))
    return reported.model or row["model"] or (named.group(1) if named else "")


def table(found: list[Sample]) -> list[str]:
    lines = [
        "| family | api | what | prompt with | n | exact | median | 9 of 10 | worst | bound |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for s in found:
        groups.setdefault((s.family, s.api, s.part, s.case), []).append(s)
    for (family, api, part, case), group in sorted(groups.items()):
        errors = sorted(s.error for s in group)
        exact = sum(s.counted == s.reported for s in group)
        bound = group[0].bound
        cells = [family, api, part, case, str(len(group)), str(exact)]
        cells += [f"{e:.1%}" for e in (statistics.median(errors), tenth(errors), errors[-1])]
        cells.append("–" if bound is None else f"{bound:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def tenth(errors: list[float]) -> float:
    return errors[min(len(errors) - 1, round(0.9 * len(errors)))]


def report() -> str:
    everything = list(samples())
    countable = [s for s in everything if s.uncounted is None]
    rest = [s for s in everything if s.uncounted is not None]
    within = sum(s.is_within for s in countable if s.bound is not None)
    bounded = sum(s.bound is not None for s in countable)
    own = [s for s in countable if s.family.startswith("openai")]
    others = [s for s in countable if not s.family.startswith("openai")]
    return "\n".join(
        [
            f"{within} of {bounded} counts that have a bound are within it.",
            "",
            "### Models whose encoding is known",
            "",
            *table(own),
            "",
            "### Other families",
            "",
            *table(others),
            "",
            "### What cannot be counted from request and answer",
            "",
            *table(rest),
        ]
    )


def main() -> int:
    text = report()
    print(text)
    if "--write" in sys.argv:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        DOCUMENT.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")
    return 0 if BOUNDS else 1


if __name__ == "__main__":
    sys.exit(main())
