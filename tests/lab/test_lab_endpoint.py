"""The last evaluation: comparisons by hand, the matched temperature, the entropy of what is really drawn from."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from ppo_tools import make_policy

from ppomax.config import SamplingConfig
from ppomax.lab.endpoint import (
    COLDEST,
    HOTTEST,
    Answers,
    agreement,
    compare,
    entropies,
    match_temperature,
    sampling_entropy,
)
from ppomax.rollout.engine import Completion


def test_compare_by_hand() -> None:
    a = Answers([[0.9, 0.5, 0.2], [0.9, 0.5, 0.8]])  # two draws, three prompts
    b = Answers([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    # outcomes: win tie lose / win tie win; by prompt: 1, 1/2, 1/2
    found = compare(a, b, ["x", "x", "y"], 0.05)
    assert found["win"] == pytest.approx(3 / 6)
    assert found["tie"] == pytest.approx(2 / 6)
    assert found["lose"] == pytest.approx(1 / 6)
    assert found["win_rate"] == pytest.approx(2 / 3)
    spread = math.sqrt(((1 - 2 / 3) ** 2 + 2 * (0.5 - 2 / 3) ** 2) / 2)
    assert found["se"] == pytest.approx(spread / math.sqrt(3))
    assert found["by_category"]["x"]["win_rate"] == pytest.approx(0.75)
    assert found["by_category"]["y"] == pytest.approx(
        {"win": 0.5, "tie": 0.0, "lose": 0.5, "win_rate": 0.5, "se": 0.0, "prompts": 1}
    )


def test_greedy_answers_meet_every_draw() -> None:
    drawn, greedy = Answers([[0.9, 0.1], [0.1, 0.1]]), Answers([[0.5, 0.5]])
    assert compare(drawn, greedy, ["x", "x"], 0.05)["win_rate"] == pytest.approx(1 / 4)
    assert compare(greedy, drawn, ["x", "x"], 0.05)["win_rate"] == pytest.approx(3 / 4)


def test_the_band_is_a_tie() -> None:
    assert compare(Answers([[0.55]]), Answers([[0.5]]), ["x"], 0.0501)["tie"] == 1
    assert compare(Answers([[0.56]]), Answers([[0.5]]), ["x"], 0.05)["win"] == 1


def test_agreement_where_the_truth_is_decided() -> None:
    a = Answers([[0.9, 0.1, 0.5, 0.9]], [2.0, 1.0, 1.0, 0.0])
    b = Answers([[0.1, 0.9, 0.5, 0.1]], [1.0, 2.0, 0.0, 1.0])
    found = agreement((a, b), 0.05)  # truth: win lose tie win; second: win lose win lose
    assert found == pytest.approx({"agree": 2 / 3, "decided": 3, "win_rate": 0.5})


def test_temperature_is_found_on_a_known_curve() -> None:
    temperature, entropy = match_temperature(0.49, lambda t: t * t)
    assert temperature == pytest.approx(0.7, rel=0.017)
    assert entropy == pytest.approx(temperature**2)
    assert match_temperature(0.0, lambda t: t)[0] == COLDEST
    assert match_temperature(99.0, lambda t: t)[0] == HOTTEST


def test_entropy_of_what_is_drawn_from() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    half = math.log(2)
    assert entropies(logits, SamplingConfig()).item() == pytest.approx(1.5 * half)
    # top-p .6 keeps the first two, renormalised 2/3 and 1/3
    cut = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert entropies(logits, SamplingConfig(top_p=0.6)).item() == pytest.approx(cut, rel=1e-6)
    assert entropies(logits, SamplingConfig(top_p=0.5)).item() == pytest.approx(0, abs=1e-7)
    assert entropies(logits, SamplingConfig(top_k=1)).item() == pytest.approx(0, abs=1e-7)
    # temperature .5 squares: 4/6, 1/6, 1/6
    cold = -(4 / 6 * math.log(4 / 6) + 2 / 6 * math.log(1 / 6))
    assert entropies(logits, SamplingConfig(temperature=0.5)).item() == pytest.approx(cold, rel=1e-6)


def test_entropy_over_response_tokens_against_a_loop() -> None:
    model = make_policy()
    completions = [Completion([3, 4, 5], [6, 7], True), Completion([8], [9, 10, 11], True)]
    sampling = SamplingConfig(temperature=0.7, top_p=0.8)
    values = []
    for c in completions:
        with torch.no_grad():
            logits = model(torch.tensor([c.prompt_ids + c.response_ids])).logits[0]
        for k in range(len(c.response_ids)):
            p = (logits[len(c.prompt_ids) - 1 + k] / 0.7).softmax(-1).sort(descending=True).values
            kept = p[: int((p.cumsum(0) < 0.8).sum()) + 1]
            kept = kept / kept.sum()
            values.append(float(-(kept * kept.log()).sum()))
    assert sampling_entropy(model, completions, sampling) == pytest.approx(sum(values) / 5, rel=1e-5)
    assert sampling_entropy(model, completions, SamplingConfig(temperature=0.0)) == 0
