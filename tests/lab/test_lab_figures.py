"""Figures of the lab: the numbers that are drawn, by hand; and that each is drawn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab_results import made, part

from ppomax.lab.figures import claim_figure, over_optimisation, scores_over_kl, shown, zoom
from ppomax.lab.paper_figures import (
    EXTRAS,
    counted,
    duels_with_opponent,
    duels_with_sft,
    exam_scores,
)
from ppomax.lab.results import Result

UP = [0.5, 0.6, 0.7]


def ended(seed: int, **endpoint: Any) -> Result:
    return made(seed, UP, endpoint={"draws": 2, "prompts": 100, **endpoint})


def test_counts_of_several_seeds_add_up() -> None:
    one, two = part(0.6, win=0.5, lose=0.25), {**part(0.5, win=0.1235, lose=0.8765), "prompts": 1000}
    assert counted([(one, 2)]) == {"win": 100, "tie": 50, "lose": 50}
    assert counted([(two, 1)]) == {"win": 124, "tie": 0, "lose": 876}, "rounded, and still 1000"
    assert counted([(one, 2), ({**one, "win": None}, 2)]) == {"win": 100, "tie": 50, "lose": 50}
    assert counted([]) == {"win": 0, "tie": 0, "lose": 0}


def test_bars_by_category_and_judge() -> None:
    groups = duels_with_sft({
        "m": {s: ended(s, second_judge={"agree": 0.7, "win_rate": 0.8}) for s in (1, 2)},
        "v": {1: ended(1)},
    })  # fmt: skip
    assert list(groups) == ["helpful", "harmful", "unanswerable", "all"]
    assert set(groups["helpful"]) == {"m: the truth", "v: the truth"}
    assert groups["harmful"]["m: the truth"] == {
        "win": 280,
        "tie": 0,
        "lose": 120,
    }  # .7 of 100 prompts, 2 draws, 2 seeds
    assert groups["all"]["m: second judge"] == {"win": 160, "tie": 0, "lose": 40}  # .8 of 100 prompts, 1 draw, 2 seeds
    assert "v: second judge" not in groups["all"]


def test_bars_against_the_opponent() -> None:
    against = {
        who: {**part(rate), "by_category": {"harmful": part(rate)}} for who, rate in (("policy", 0.4), ("sft", 0.1))
    }
    groups = duels_with_opponent({"m": {1: ended(1, opponent=against)}})
    assert groups["harmful"] == groups["all"]
    assert groups["all"] == {
        "SFT, start of m": {"win": 20, "tie": 0, "lose": 180}, "m": {"win": 80, "tie": 0, "lose": 120},
    }  # fmt: skip


def exam(policy: float, sft: float) -> dict[str, Any]:
    def scores(value: float) -> dict[str, float]:
        return {"STEM": value, "other": value / 2, "all": value - 0.1, "chance": 0.25, "n": 65}

    return {"policy": scores(policy), "sft": scores(sft)}


def test_the_exam_by_group() -> None:
    arms = {
        "m": {s: ended(s, exam=exam(0.4 + 0.1 * s, 0.8)) for s in (1, 2)},
        "x": {1: ended(1, exam=exam(0.9, 0.8))},
    }
    scores = exam_scores(arms)
    assert list(scores) == ["SFT", "m", "x"] and list(scores["m"]) == ["STEM", "other", "all"]
    assert scores["SFT"]["STEM"] == [0.8, 0.8], "SFT once a seed, whatever the number of arms"
    assert scores["m"]["other"] == pytest.approx([0.25, 0.3])
    assert exam_scores({"m": {1: ended(1)}}) == {}


def start(early: bool) -> dict[str, Any]:
    facts = {"accuracy": 0.7, "curve": {"update": [10, 20], "accuracy": [0.5, 0.7]}}
    return {"reward-0123abcd": facts if early else {"accuracy": 0.7}, "reward_second-0123abcd": facts}


def test_every_figure_is_drawn_or_left_out(tmp_path: Path) -> None:
    against = {who: {**part(0.4), "by_category": {"harmful": part(0.4)}} for who in ("policy", "sft")}
    full = {"m": {1: ended(1, exam=exam(0.5, 0.6), opponent=against)}}
    full["m"][1].header["start"] = start(True)
    bare = {"m": {1: ended(1)}}
    bare["m"][1].header["start"] = start(False)
    for name, extra in EXTRAS.items():
        assert extra.draw(full, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        if name != "beats":
            assert not extra.draw(bare, tmp_path / f"{name}_not.png")
            assert not (tmp_path / f"{name}_not.png").exists()
    # one arm with the course of its accuracy, one with the end alone
    assert EXTRAS["early_model"].draw({**full, "late": bare["m"]}, tmp_path / "both.png")
    assert not list(tmp_path.glob("*.svg")), "the page shows one file each"


def test_scores_over_kl_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    result = made(
        1,
        [0.5] * 4,
        reward=[0.0, 1.0, 2.0, 3.0],
        evals={"eval/kl": [-0.1, 4.0, 9.0, 16.0], "eval/judge": [0.5, 0.6, 0.7, 0.8]},
    )
    assert scores_over_kl(result)[0] == ([0.0, 2.0, 3.0, 4.0], [0.0, 0.5, 1.0, 1.5])
    result.evaluations[1]["eval/kl"] = None
    result.evaluations[2]["eval/judge"] = None
    result.evaluations[3]["eval/reward_sampled_std"] = None
    proxy, truth = scores_over_kl(result)
    assert proxy == ([0.0, 3.0], [0.0, 1.0])
    assert truth[0] == [0.0, 4.0] and truth[1] == pytest.approx([0.0, 0.3])
    over_optimisation({"v": {1: result}}, tmp_path / "over.png")
    assert (tmp_path / "over.png").stat().st_size > 5000


def test_near_sft_the_axis_fits_what_is_there() -> None:
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    axis.plot([0.0, 1.0, 9.0], [0.0, 2.0, -50.0])
    zoom(axis, 2.0)
    assert axis.get_xlim() == pytest.approx((-0.04, 2.0))
    assert axis.get_ylim() == pytest.approx((-0.1, 2.1))


def test_a_legend_says_what_is_compared_with_its_own_start(tmp_path: Path) -> None:
    own = made(1, UP, header={"overrides": {"base": "v", "ppo": {"model": "${base}"}}})
    assert shown("pretrained", {1: own}) == "pretrained (n = 1, against its own start)"
    assert shown("vanilla", {1: made(1, UP), 2: made(2, UP)}) == "vanilla (n = 2)"
    own.evaluations[2]["eval/kl"] = None
    claim_figure({"pretrained": {1: own}}, ["eval/win_rate", "eval/kl", "reward/p5"], tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 5000
