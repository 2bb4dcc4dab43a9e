"""How far curves of two precisions lie apart, by hand."""

from __future__ import annotations

import sys
from pathlib import Path

from ppomax.lab.results import Result

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import precision


def result(seed: int, values: list[float]) -> Result:
    rows = [{"iteration": 8 * i, "eval/reward": v, "eval/win_rate": v, "eval/kl": v} for i, v in enumerate(values)]
    return Result(Path("x"), {"seed": seed}, rows, [], [], {})


def test_distances() -> None:
    half = {2: result(2, [9.0, 1.0, 2.0, 3.0]), 3: result(3, [9.0, 4.0, 5.0, 6.0])}
    full = {2: result(2, [0.0, 1.0, 2.0, 6.0]), 3: result(3, [0.0, 4.0, 5.0, 6.0]), 4: result(4, [0.0])}
    row = precision.compare(half, full)[0]
    # seed 2: sqrt(9 / 3); bf16's seeds: 3 apart; float32's: sqrt((9 + 9 + 0) / 3)
    assert row == ["reward", "1.73, 0", "0.866", "2.72", "-1, +0", "-0.5"]
