"""What docs/world.md says of the world must be true of this one."""

from __future__ import annotations

import re
from pathlib import Path

from ppomax.world import VERSION, fingerprint
from ppomax.world.world import BROAD

PAGE = (Path(__file__).parents[2] / "docs" / "world.md").read_text(encoding="utf-8")


def test_version_and_hash_are_written_down() -> None:
    assert f"**This is version {VERSION}, hash `{fingerprint()}`.**" in PAGE


def test_so_many_writers() -> None:
    assert len(BROAD) == 16 and "sixteen writers" in PAGE


def test_the_python_example_runs(capsys: object) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    judgement, outcome = capsys.readouterr().out.strip().split("\n")  # type: ignore[attr-defined]
    assert judgement.startswith("Judgement(helpfulness=") and outcome == "win"


def test_scores_of_the_example_are_the_judges() -> None:
    from ppomax.world import World

    world = World("en", 0)
    (prompt,) = re.findall(r"^\*(I wonder .*\.)\* ", PAGE, re.MULTILINE)
    table, *_ = PAGE[PAGE.index(prompt) :].split("\n## ")
    rows = re.findall(r"^\| (.+) \| (\d\.\d\d) \| (.*?) ?\|$", table, re.MULTILINE)
    assert len(rows) == 5
    for answer, score, faults in rows:
        judgement = world.judge(prompt, answer)
        assert f"{judgement.overall:.2f}" == score and ", ".join(judgement.faults) == faults
