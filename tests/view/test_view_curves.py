"""What is drawn, by hand: curves, distributions of rewards, the time by phase."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from view_tools import line, make_run, write

from ppomax.train import ppo
from ppomax.view import files
from ppomax.view.curves import RIDGE_HEIGHT, RIDGE_POINTS, curve, evenly, ridge, times
from ppomax.view.live import PHASES, LiveRun
from ppomax.view.runs import find_runs

NAN = float("nan")


def look(root: Path) -> LiveRun:
    (found,) = find_runs(root)
    return LiveRun(found)


def test_curves_leave_out_what_is_no_number() -> None:
    found = curve(("m", "t", "u"), [0, 1, NAN, 3], [1.0, NAN, 2.0, 4.0])
    assert (found["x"], found["y"], found["mean"]) == ([0, 3], [1.0, 4.0], None)
    assert curve(("m", "t", "u"), [], [])["x"] == []
    steady = curve(("m", "t", "u"), list(range(40)), [2.0] * 40)
    assert set(steady["mean"][1]) == {2.0} and len(steady["x"]) == 40


def test_evenly() -> None:
    assert evenly(0, 3) == [] and evenly(2, 8) == [0, 1] and evenly(9, 3) == [0, 4, 8]


def normal(x: float, middle: float, width: float) -> float:
    return math.exp(-0.5 * ((x - middle) / width) ** 2) / (width * math.sqrt(2 * math.pi))


def test_ridge_by_a_slow_loop() -> None:
    rewards = {0: [0.0, 1.0, 2.0, 5.0], 10: [3.0, 3.5, 8.0]}
    answers = [(at, r) for at, values in rewards.items() for r in values]
    random.Random(0).shuffle(answers)
    found = ridge(*zip(*[*answers, (NAN, 1.0), (10, NAN), (10, 1e300)], strict=True))
    assert found is not None
    assert found["at"] == [0, 10] and found["counts"] == [4, 3] and found["medians"] == [1.5, 3.5]
    assert found["low"] == pytest.approx(-1.2) and found["high"] == pytest.approx(9.2), "15% of 8 on either side"
    places = [-1.2 + 10.4 * i / (RIDGE_POINTS - 1) for i in range(RIDGE_POINTS)]
    expected = []
    for values in rewards.values():
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        width = 1.06 * spread * len(values) ** -0.2
        expected.append([sum(normal(x, v, width) for v in values) / len(values) for x in places])
    most = max(map(max, expected))
    for shown, wanted in zip(found["heights"], expected, strict=True):
        assert shown == [round(RIDGE_HEIGHT * y / most) for y in wanted]
    assert max(map(max, found["heights"])) == RIDGE_HEIGHT


def test_ridge_of_few_and_of_many() -> None:
    assert ridge([], []) is None and ridge([1.0], [NAN]) is None and ridge([NAN], [1.0]) is None
    one = ridge([4, 4], [2.0, 2.0])
    assert one is not None and (one["low"], one["high"]) == pytest.approx((1.8, 2.2)) and one["at"] == [4]
    assert ridge([0], [0.0])["low"] == -1.0  # type: ignore[index]
    many = ridge([i for i in range(1000) for _ in range(20)], [float(k) for _ in range(1000) for k in range(20)])
    assert many is not None and len(many["at"]) == 8 and many["at"][0] == 0 and many["at"][-1] == 999
    assert len(json.dumps(many)) < 6000


def test_times_by_hand() -> None:
    seconds = {"time/sample": [1.0, 2.0, 3.0], "time/judge": [NAN, 1.0, NAN], "time/total": [2.0, 4.0, 4.0]}
    assert times([5, 6, 7], seconds) == {
        "x": [5, 6, 7, 8],
        "phases": [["sample", 0.6, [1.0, 2.0, 3.0]], ["judge", 0.1, [0.0, 1.0, 0.0]], ["other", 0.3, [1.0, 1.0, 1.0]]],
    }
    stage = {"time/eval": [3.0, 0.0, NAN], "time/update": [1.0, 1.0, NAN], "time/total": [NAN] * 3}
    assert times([0, 1, 2], stage) == {
        "x": [0, 1, 2],
        "phases": [["eval", 0.6, [3.0, 0.0]], ["update", 0.4, [1.0, 1.0]]],
    }
    assert times([], {"time/total": []}) is None and times([1.0], {"time/total": [NAN]}) is None
    assert times([1.0], {"time/update": [0.0]}) is None
    long = times(range(1200), {"time/update": [float(i < 600) for i in range(1200)]})
    assert long is not None and long["x"] == [*range(0, 1200, 10), 1200]
    assert long["phases"] == [["update", 1.0, [1.0] * 60 + [0.0] * 60]]


def test_phases_are_those_that_ppo_measures() -> None:
    source = Path(ppo.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'clock\.lap\("(\w+)"\)', source)) | {"total"} <= set(PHASES["ppo"])


def test_critic_time_and_rewards_of_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    live = look(tmp_path)
    shown = live.look()
    assert [p["metric"] for p in shown["critic"]] == ["value/explained_variance", "grad_norm/policy"]
    assert [p[:2] for p in shown["times"]["phases"]] == [["sample", 0.6], ["update", 0.3], ["other", 0.1]]
    assert shown["ridge"]["at"] == [2, 11] and shown["ridge"]["counts"] == [1, 1], "of samples.jsonl"
    with (run / "samples.jsonl").open("a") as f:
        f.write(json.dumps({"iteration": 20, "score": 3.0}) + "\n" + '{"iteration": 30, "sc')
    assert live.look()["ridge"]["medians"] == [0.5, 0.5, 3.0]
    write(run / "evaluations.jsonl", [
        {"iteration": 2, "eval/win_rate": 0.5},
        {"iteration": 6, "eval/win_rate": 0.625, "rewards": [1.0, 2.0, 4.0, None, "x"]}, {"iteration": 7, "rewards": 5},
    ])  # fmt: skip
    judged = live.look()["ridge"]
    assert (judged["at"], judged["counts"], judged["medians"]) == ([6], [3], [2.0]), "the judged prompts are more"


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_time_of_other_stages(tmp_path: Path, kind: str) -> None:
    run = make_run(tmp_path / "run", kind)
    write(run / "metrics.jsonl", [{"update": i, "time/eval": 0.0, "time/update": 2.0} for i in range(3)])
    shown = look(tmp_path).look()
    assert shown["times"] == {"x": [0, 1, 2, 3], "phases": [["update", 1.0, [2.0] * 3]]}
    assert shown["ridge"] is None and shown["critic"] == []


def test_rewards_wait_for_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of its lines would be parts of distributions."""
    run = make_run(tmp_path / "run")
    write(run / "samples.jsonl", [{"iteration": i, "score": float(k)} for i in range(100) for k in range(8)])
    monkeypatch.setattr(files, "AT_ONCE", 5000)
    live = look(tmp_path)
    first = live.look()
    assert first["ridge"] is None and first["sampled"] and first["panels"]
    for reader in (live.metrics._reader, live.scores._reader):
        if reader:
            reader.join(timeout=120)
    assert (later := live.look())["ridge"]["counts"] == [8] * 8 and not later["sampled"]


def test_hostile_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    huge = {"reward/mean": 1e308, "time/total": 1e308, "time/sample": -1e308, "value/explained_variance": -1e308}
    write(run / "metrics.jsonl", [line(i, **huge) for i in range(40)])
    write(run / "samples.jsonl", [{"iteration": i, "score": (-1) ** i * 1e308} for i in range(9)])
    shown = look(tmp_path).look()
    json.dumps(shown, allow_nan=False)
    assert shown["ridge"] is None
