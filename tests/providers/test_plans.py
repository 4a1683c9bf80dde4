"""Usage objects of known keys are read by a plan; it says what reading name by name says, or nothing."""

from __future__ import annotations

import random

import pytest
from llm_metering.providers import numbers
from llm_metering.providers.dialects import DIALECTS
from llm_metering.providers.numbers import UnbelievableUsage, usage_of

PLAIN = (0, 1, 2, 5, 100, 1_000)
ODD = (-1, 2**63 - 1, 2**63, True, None, 1.0, "7", [], {}, [{"modality": "AUDIO", "tokenCount": 3}])


def made_up(names, choose, oddness):
    """A usage object of some of these names and of others, in any order."""
    chosen = choose.sample(sorted(names), choose.randint(0, min(len(names), 7)))
    present = {}
    for name in [*chosen, *choose.sample(["total_tokens", "else", "details"], 2)]:
        inner = names.get(name)
        if isinstance(inner, dict) and choose.random() > oddness:
            present[name] = made_up(inner, choose, oddness)
        else:
            present[name] = choose.choice(ODD if choose.random() < oddness else PLAIN)
    return present


def outcome(read, reported, dialect):
    try:
        return read(reported, dialect)
    except UnbelievableUsage as exc:
        return str(exc)


@pytest.mark.parametrize("oddness", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.keys[0])
def test_a_plan_reads_what_reading_name_by_name_reads(dialect, oddness):
    choose = random.Random(7)
    for _ in range(1500):
        reported = made_up(dialect.names, choose, oddness)
        if choose.random() < 0.5:  # where the total shows that reasoning stands apart
            counts = (reported.get(n) for n in ("prompt_tokens", "completion_tokens", "reasoning_tokens"))
            reported["total_tokens"] = sum(n for n in counts if type(n) is int)
        for _ in range(2):  # the second time by a plan that is known
            assert outcome(usage_of, reported, dialect) == outcome(numbers._as_found, reported, dialect)


def test_ordinary_usage_is_read_by_a_plan():
    dialect = DIALECTS[0]
    reported = {
        "prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19, "prompt_tokens_details": None,
        "completion_tokens_details": {"reasoning_tokens": 4, "audio_tokens": 0, "accepted": 1},
    }  # fmt: skip
    assert numbers._as_planned(reported, dialect) == numbers._as_found(reported, dialect)
    assert numbers._as_planned({**reported, "completion_tokens": 3.0}, dialect) is None


def test_plans_for_endless_names_are_not_kept():
    dialect = DIALECTS[0]
    before = len(dialect.plans)
    for n in range(3):
        usage_of({"prompt_tokens": 1, f"{n}" * 5000: 2}, dialect)
        usage_of({"prompt_tokens": 1, n + 1000: 2}, dialect)
    assert len(dialect.plans) == before
    for n in range(2000):
        usage_of({"prompt_tokens": 1, f"x{n}": 2}, dialect)
    assert len(dialect.plans) <= 256
