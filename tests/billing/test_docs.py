"""docs/billing.md names what there is, its code runs, and the module's own example is true."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from llm_metering import billing
from llm_metering.billing import FlatFeeWithOverages, PayAsYouGo
from llm_metering.billing.planning import MEANINGS, SIGNS

PAGE = (Path(__file__).parents[2] / "docs" / "billing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(billing.__all__) - {"SANDBOX_URL", "Amount"}))
def test_every_public_name_is_documented(name: str) -> None:
    assert re.search(rf"\b{name}\b", PAGE)


@pytest.mark.parametrize("guide", [PayAsYouGo, FlatFeeWithOverages])
def test_every_argument_of_the_guides_is_documented(guide) -> None:
    missing = [a for a in inspect.signature(guide).parameters if f"`{a}`" not in PAGE]
    assert missing == []


def test_every_action_of_a_plan_is_documented_with_its_sign() -> None:
    assert set(SIGNS) == set(MEANINGS)
    for action, sign in SIGNS.items():
        assert f"| `{sign}` | {action} |" in PAGE


def test_the_toml_of_the_page_is_a_catalog() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert [offer.name for offer in billing.parse_catalog(text).offers] == ["usage", "pay-as-you-go"]


def test_the_code_of_the_page_runs_and_prints_what_it_says(sandbox, capsys) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    assert "http://127.0.0.1:12111" in code
    exec(compile(code.replace("http://127.0.0.1:12111", sandbox.url), "docs/billing.md", "exec"), {})
    out = capsys.readouterr().out
    for shown in re.findall(r"print\(.*?\) +# (.+)", code):
        assert shown in out
    assert "1 to replace, 2 unchanged" in out
