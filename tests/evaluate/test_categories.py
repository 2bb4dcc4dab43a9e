"""Which prompts are harmless, and in which language, by the names that data sets give."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppomax.annotate.pages import criterion_of
from ppomax.config import DataSource
from ppomax.data.sources import load_mixture
from ppomax.evaluate.categories import label, prompt_category

HARMLESS = [
    "harmless-base",
    "hh-red-team",
    "HH_Harmless/train",
    "RedTeam",
    "PKU-SafeRLHF",
    "safety",
    "cvalues",
    "无害",
    "harmful",
]
HELPFUL = ["helpful-base", "oasst", "self-instruct", "harmony", "charm", "prompts", "", "memory"]


@pytest.mark.parametrize("source", HARMLESS)
def test_sources_of_harmless_prompts(source: str) -> None:
    assert prompt_category(source, {}) == "harmless" == criterion_of(source)


@pytest.mark.parametrize("source", HELPFUL)
def test_other_sources(source: str) -> None:
    assert prompt_category(source, {}) == "helpful" and criterion_of(source) != "harmless"


def test_a_category_comes_before_the_source_where_it_says_anything() -> None:
    assert prompt_category("harmless-base", {"category": "helpful"}) == "helpful"
    assert prompt_category("oasst", {"category": "harmful"}) == "harmless"
    assert prompt_category("hh-red-team", {"category": "STEM"}) == "harmless"
    assert prompt_category("oasst", {"category": "danger"}, "danger") == "harmless"
    assert label([{"role": "user", "content": "怎么偷？"}], "cvalues", {}) == "harmless zh"


@pytest.mark.parametrize(("name", "found"), [("harmless_prompts_en", "harmless en"), ("harmless_prompts_zh", "harmless zh"),
                                             ("helpful_prompts_en", "helpful en")])  # fmt: skip
def test_real_prompts(real_data: Path, name: str, found: str) -> None:
    prompts, _ = load_mixture([DataSource(path=str(real_data / f"{name}.jsonl.gz"))], "prompt", split_seed=0)
    labels = [label(p.messages, p.source, dict(p.metadata)) for p in prompts]  # type: ignore[union-attr]
    assert labels.count(found) >= 0.99 * len(labels)
