"""What docs/plan.md says of real runs: the plan of today beside the file of what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import plan_memory

ROOT = Path(__file__).parents[2]
KNOWN = json.loads((ROOT / "docs" / "results" / "plan_memory.json").read_text(encoding="utf-8"))
ROWS: list[dict[str, Any]] = KNOWN["rows"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "{size}-{precision}-{micro_batch_tokens}".format(**row))
def test_memory_is_within_15_percent_of_what_was_measured(row: dict[str, Any]) -> None:
    parts = plan_memory.planned(row)
    assert sum(parts.values()) == pytest.approx(row["measured"] - KNOWN["baseline"], rel=0.15)
    assert sum(parts.values()) - parts["heap"] == pytest.approx(row["given_back"] - KNOWN["baseline"], rel=0.15)


def test_every_case_was_measured_and_is_on_the_page() -> None:
    assert len(ROWS) == len(plan_memory.CASES)
    for case in plan_memory.CASES:
        assert any(case.items() <= row.items() for row in ROWS), case
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    assert plan_memory.table(ROWS, KNOWN["baseline"]) in page
