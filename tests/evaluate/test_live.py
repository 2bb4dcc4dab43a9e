"""Numbers of an evaluation during training, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from ppomax.evaluate.live import (
    Baseline,
    JudgedAnswer,
    comparison_numbers,
    distributions,
    evaluation_numbers,
    histogram,
    reward_numbers,
    win_rates,
)
from ppomax.evaluate.winrate import outcomes_from_scores


def answer(judge: float, **changes: Any) -> JudgedAnswer:
    given: dict[str, Any] = {
        "text": f"{judge}", "tokens": (1, 2), "finished": True, "judge": judge, "reward": 0.0, "kl": 0.0, "kl_k3": 0.0,
        "nll": 1.0, "entropy": 1.0,
    }  # fmt: skip
    return JudgedAnswer(**(given | changes))


def test_win_rates_by_hand() -> None:
    outcomes = outcomes_from_scores([0.9, 0.5, 0.2, 0.7], [0.5, 0.48, 0.6, 0.1], 0.05)  # win, tie, loss, win
    found = win_rates(outcomes, ["helpful", "harmful", "harmful", "helpful"], "w")
    # halves 1, 0.5, 0, 1: mean 0.625, squares of deviations .140625 + .015625 + .390625 + .140625 = .6875, / 3 / 4
    assert found == pytest.approx({"w": 0.625, "w_se": math.sqrt(0.6875 / 12), "w/harmful": 0.25, "w/helpful": 1.0})


def test_an_evaluation_by_hand() -> None:
    answers = [
        answer(0.9, text="a", tokens=(1, 2, 3), reward=1.0, kl=2.0, kl_k3=1.5, nll=1.0, entropy=0.6),
        answer(0.5, text="b", tokens=(1, 2), reward=2.0, kl=-1.0, kl_k3=0.25, nll=0.5, entropy=0.4, finished=False),
        answer(0.4, text="a", tokens=(3,), reward=6.0, kl=0.5, kl_k3=0.5, nll=1.5, entropy=0.5),
    ]
    baselines = {
        "sampled": Baseline((0.5, 0.45, 0.6), (1.0, 2.0, 3.0)),  # win, tie (exactly the band), loss
        "greedy": Baseline((0.95, 0.9, 0.9), (0.0, 0.0, 3.0)),  # tie, loss, loss
    }
    found = evaluation_numbers(answers, baselines, ["x", "y", "y"], 0.0501)
    assert found == pytest.approx({
        "eval/prompts": 3, "eval/win_rate": 0.5, "eval/win_rate_se": 0.5 / math.sqrt(3), "eval/win_rate/x": 1.0,
        "eval/win_rate/y": 0.25, "eval/win": 1 / 3, "eval/tie": 1 / 3, "eval/lose": 1 / 3,
        "eval/win_rate_sampled": 0.5, "eval/win_rate_sampled_se": 0.5 / math.sqrt(3), "eval/win_rate_sampled/x": 1.0,
        "eval/win_rate_sampled/y": 0.25, "eval/judge_sampled": 1.55 / 3, "eval/reward_sampled": 2.0,
        "eval/reward_sampled_std": 1.0,
        # halves .5, 0, 0: mean 1/6, unbiased variance (1/9 + 1/36 + 1/36) / 2 = 1/12
        "eval/win_rate_greedy": 1 / 6, "eval/win_rate_greedy_se": 1 / 6, "eval/win_rate_greedy/x": 0.5,
        "eval/win_rate_greedy/y": 0.0, "eval/judge_greedy": 2.75 / 3, "eval/reward_greedy": 1.0,
        "eval/reward_greedy_std": math.sqrt(3.0),
        "eval/judge": 0.6, "eval/judge/x": 0.9, "eval/judge/y": 0.45, "eval/reward": 3.0, "eval/kl": 0.5,
        # 1, 2, 6: deviations -2, -1, 3, second moment 14 / 3, third 18 / 3
        "eval/reward_std": math.sqrt(7), "eval/reward_p5": 1.1, "eval/reward_p50": 2.0, "eval/reward_p95": 5.6,
        "eval/reward_skewness": 6 / (14 / 3) ** 1.5,
        # against 1, 2, 3: equal, equal, more. The judge: win, tie, loss; both prefer one on the last alone, and not the same
        "eval/proxy_win_rate": 2 / 3, "eval/proxy_win_rate_se": math.sqrt(1 / 12 / 3), "eval/proxy_agreement": 0.0,
        "eval/kl_k3": 0.75, "eval/length": 2.0, "eval/truncated": 1 / 3,
        "eval/perplexity": math.exp(0.5),  # 3 nats over 6 tokens, not the mean over answers
        "eval/entropy": 0.25, "eval/distinct": 2 / 3,
        "eval/distinct_2": 2 / 3,  # (1, 2), (2, 3), (1, 2)
    })  # fmt: skip


def test_the_first_baseline_is_the_one_that_counts() -> None:
    low, high = Baseline((0.0,), (0.0,)), Baseline((1.0,), (0.0,))
    assert evaluation_numbers([answer(0.5)], {"greedy": high, "sampled": low}, ["x"], 0.05)["eval/win_rate"] == 0.0
    assert evaluation_numbers([answer(0.5)], {"sampled": low, "greedy": high}, ["x"], 0.05)["eval/win_rate"] == 1.0
    alone = evaluation_numbers([answer(0.5)], {"greedy": high}, ["x"], 0.05)
    assert alone["eval/win_rate"] == alone["eval/win_rate_greedy"] == 0.0 and alone["eval/lose"] == 1.0


def test_ties_are_up_to_the_band() -> None:
    def tie(difference: float, band: float) -> float:
        baselines = {"sampled": Baseline((0.0,), (0.0,))}
        return evaluation_numbers([answer(difference)], baselines, ["x"], band)["eval/tie"]

    assert [tie(0.5, 0.5), tie(-0.5, 0.5), tie(0.5000001, 0.5), tie(0.0, 0.0), tie(1e-9, 0.0)] == [1, 1, 0, 1, 0]


def test_distinct_pairs() -> None:
    def found(*tokens: tuple[int, ...]) -> float | None:
        answers = [replace(answer(0.5), tokens=row) for row in tokens]
        baseline = Baseline((0.0,) * len(answers), (0.0,) * len(answers))
        numbers = evaluation_numbers(answers, {"sampled": baseline}, ["x"] * len(answers), 0.05)
        return numbers.get("eval/distinct_2")

    assert found((1, 1, 1, 1)) == pytest.approx(1 / 3)
    assert found((1, 2), (2, 1)) == 1.0  # pairs do not reach from one answer into the next
    assert found((1,), (2,)) is None


def test_one_prompt_and_bad_scores() -> None:
    one = evaluation_numbers([answer(1.0)], {"sampled": Baseline((0.0,), (2.0,))}, ["x"], 0.05)
    assert one["eval/win_rate_se"] == 0.0 and one["eval/reward_sampled_std"] == 0.0
    with pytest.raises(ValueError, match="same length"):
        evaluation_numbers([answer(1.0)], {"sampled": Baseline((0.0, 1.0), (2.0, 1.0))}, ["x"], 0.05)
    with pytest.raises(ValueError, match="not a finite number"):
        evaluation_numbers([answer(math.nan)], {"sampled": Baseline((0.0,), (2.0,))}, ["x"], 0.05)


def test_a_prompt_without_a_verdict_counts_for_nothing() -> None:
    """Win, no verdict, tie, loss, win: (1 + .5 + 0 + 1) / 4."""
    answers = [answer(0.0) for _ in range(5)]
    baselines = {"sampled": Baseline((), (1.0, 2.0, 3.0, 4.0, 5.0))}
    found = comparison_numbers(answers, baselines, ["x", "x", "x", "y", "y"], {"sampled": [1, None, 0, -1, 1]})
    assert found["eval/win_rate"] == pytest.approx(2.5 / 4) and found["eval/win"] == 0.5 and found["eval/tie"] == 0.25
    assert (found["eval/win_rate/x"], found["eval/win_rate/y"]) == (0.75, 0.5)
    assert (found["eval/prompts"], found["eval/judge_failed"]) == (4, 1)
    with pytest.raises(ValueError, match="no verdict"):
        comparison_numbers(answers, baselines, ["x"] * 5, {"sampled": [None] * 5})


def test_proxy_against_an_llm_judge() -> None:
    """Rewards 0 against 1, -1, -1, 0, -1: the proxy says loss, win, win, tie, win; the judge loss, win, loss, win, nothing."""
    answers = [answer(0.0) for _ in range(5)]
    baselines = {"sampled": Baseline((), (1.0, -1.0, -1.0, 0.0, -1.0)), "greedy": Baseline((), (9.0,) * 5)}
    verdicts: dict[str, list[int | None]] = {"sampled": [-1, 1, -1, 1, None], "greedy": [1] * 5}
    found = comparison_numbers(answers, baselines, ["x"] * 5, verdicts)
    assert found["eval/proxy_win_rate"] == pytest.approx(3.5 / 5)
    assert found["eval/proxy_agreement"] == pytest.approx(2 / 3)
    ties = comparison_numbers(answers, baselines, ["x"] * 5, {"sampled": [0] * 5, "greedy": [0] * 5})
    assert "eval/proxy_agreement" not in ties


def test_reward_distribution_of_one_prompt_and_of_equal_ones() -> None:
    assert reward_numbers([2.0]) == {
        "eval/reward": 2.0, "eval/reward_std": 0.0, "eval/reward_p5": 2.0, "eval/reward_p50": 2.0, "eval/reward_p95": 2.0,
        "eval/reward_skewness": 0.0,
    }  # fmt: skip
    assert reward_numbers([1.0, 1.0])["eval/reward_std"] == 0.0


def test_histograms_by_hand() -> None:
    found = histogram([0.0, 0.5, 10.0, 9.9, 1.0])  # bins of half a unit; the last one holds its upper edge
    assert found["edges"] == pytest.approx([i / 2 for i in range(21)])
    assert found["counts"] == [1, 1, 1, *[0] * 16, 2]
    assert histogram([3, 5, 3]) == {"counts": [2, 0, 1], "edges": [2.5, 3.5, 4.5, 5.5]}
    wide = histogram([1, 2, 3, 4, 41])  # 41 whole numbers: three a bin
    assert wide["edges"][:3] == [0.5, 3.5, 6.5] and wide["edges"][-1] == 42.5 and len(wide["counts"]) == 14
    assert wide["counts"][:2] == [3, 1] and wide["counts"][-1] == 1 and sum(wide["counts"]) == 5
    assert histogram([7]) == {"counts": [1], "edges": [6.5, 7.5]}
    assert histogram([0.25, 0.25]) == {"counts": [2], "edges": [-0.25, 0.75]}


def test_distributions_on_disk() -> None:
    line = distributions([1 / 3, -2e-9, 123456.789], [4, 4, 5])
    assert line["rewards"] == [0.333333, -2e-9, 123457.0]
    assert line["histograms"]["eval/length"] == {"counts": [2, 1], "edges": [3.5, 4.5, 5.5]}
    assert sum(line["histograms"]["eval/reward"]["counts"]) == 3
