"""What a judge is called in a report."""

from __future__ import annotations

import pytest

from ppomax.report.verdicts import judge_words


@pytest.mark.parametrize(("names", "words", "learnt"), [
    (["world"], "the world's own", False), (["llm:gpt-x:latest"], "the language model gpt-x:latest", False),
    (["runs/judge/final"], "reward model `runs/judge/final`", True),
    (["one", "two"], "the reward models `one + two`", True), (["module:function"], "`module:function`", False),
    (["http://127.0.0.1:80/score"], "`http://127.0.0.1:80/score`", False),
])  # fmt: skip
def test_judge_words(names: list[str], words: str, learnt: bool) -> None:
    assert judge_words(names) == (words, learnt)
