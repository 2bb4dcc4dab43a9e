"""Metrics by hand."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise
from typing import Any

import pytest
import torch

from ppomax.train.run import plain
from ppomax.watch.metrics import (
    experience_metrics,
    perplexity,
    perplexity_moss,
    position_metrics,
    repetition,
    response_metrics,
    reward_shape,
)

MASK = torch.tensor([[True, True, False], [True, False, True]])  # a short answer, and one with a gap
LOGPROBS = torch.tensor([[-1.0, -2.0, 9.0], [-0.5, 9.0, -0.5]])
REF = torch.tensor([[-1.5, -2.0, 5.0], [-0.25, 5.0, -1.0]])  # differences .5, 0, -.25, .5


def metrics(**changes: Any) -> dict[str, float]:
    given: dict[str, Any] = {
        "scores": torch.tensor([1.0, 4.0]), "shaped": torch.tensor([-0.5, 0.25]), "logprobs": LOGPROBS, "ref_logprobs": REF,
        "entropy": torch.tensor([[1.0, 2.0, 99.0], [3.0, 99.0, 4.0]]), "sequence_nll": torch.tensor([1.2, 0.8]),
        "values": torch.tensor([[0.0, 1.0, 99.0], [2.0, 99.0, 3.0]]),
        "returns": torch.tensor([[1.0, 1.0, -99.0], [2.0, -99.0, 4.0]]), "mask": MASK, "finished": torch.tensor([True, False]),
        "advantages": torch.tensor([[1.0, 2.0, 99.0], [6.0, -99.0, -1.0]]),
    }  # fmt: skip
    return experience_metrics(**{**given, **changes})


def test_by_hand() -> None:
    found = metrics()
    wanted = {
        "reward/mean": 2.5, "reward/std": 3 / math.sqrt(2), "reward/shaped_mean": -0.125,
        "kl/ref": 0.75 / 4, "kl/ref_k2": (0.125 + 0 + 0.03125 + 0.125) / 4,
        "kl/ref_k3": (2 * (math.exp(-0.5) - 0.5) + 0 + (math.exp(0.25) - 1.25)) / 4, "kl/ref_sequence": (0.5 + 0.25) / 2,
        "response/length": 2.0, "response/length_std": 0.0, "response/truncated": 0.5,
        "policy/perplexity": math.exp(4 / 4), "policy/perplexity_moss": math.exp(2 / 4), "policy/entropy": 2.5,
        "value/mean": 1.5,
        # errors 1, 0, 0, 1: variance 1/3; returns 1, 1, 2, 4: variance 2
        "value/explained_variance": 1 - (1 / 3) / 2,
        "advantage/mean": 2.0, "advantage/std": math.sqrt((1 + 0 + 16 + 9) / 3),
        "reward/p5": 1.15, "reward/p50": 2.5, "reward/p95": 3.85, "reward/skewness": 0.0,
        # two tokens each: the first lies in the first third, the second in the middle one
        "kl/first_third": (0.5 - 0.25) / 2, "kl/middle_third": (0 + 0.5) / 2,
    }  # fmt: skip
    assert found == pytest.approx(wanted, rel=1e-6)


def test_the_released_perplexity_is_not_one() -> None:
    """Uniform over 50 tokens: the true figure is 50 whatever the length; theirs falls with the length."""
    for length, theirs in ((1, 50.0), (10, 50**0.1), (100, 50**0.01)):
        mask = torch.ones(3, length, dtype=torch.bool)
        assert perplexity(torch.full((3, length), -math.log(50)), mask) == pytest.approx(50, rel=1e-5)
        assert perplexity_moss(torch.full((3,), math.log(50)), mask) == pytest.approx(theirs, rel=1e-5)


def test_impossible_tokens_do_not_raise() -> None:
    assert perplexity(torch.full((1, 2), -1e4), torch.ones(1, 2, dtype=torch.bool)) == math.inf
    assert perplexity_moss(torch.tensor([1e4]), torch.ones(1, 1, dtype=torch.bool)) == math.inf


def test_one_sample_has_no_spread() -> None:
    rows: dict[str, Any] = {
        "scores": torch.tensor([2.0]),
        "shaped": torch.tensor([0.0]),
        "sequence_nll": torch.tensor([1.0]),
    }
    one = torch.tensor([[1.0]])
    found = metrics(
        **rows, logprobs=-one, ref_logprobs=-one, entropy=one, values=one, returns=one, mask=torch.tensor([[True]]),
        finished=torch.tensor([True]), advantages=one,
    )  # fmt: skip
    assert (
        found["response/truncated"] == 0
        and found["reward/std"] == 0
        and found["response/length_std"] == 0
        and found["advantage/std"] == 0
        and found["value/explained_variance"] == 0
    )
    assert all(math.isfinite(v) for v in found.values())


def test_what_is_outside_the_mask_never_matters() -> None:
    broken = {
        name: torch.where(MASK, value, float("nan"))
        for name, value in (
            ("logprobs", LOGPROBS),
            ("ref_logprobs", REF),
            ("values", torch.arange(6.0).view(2, 3)),
            ("advantages", torch.arange(6.0).view(2, 3)),
        )
    }
    clean = {name: torch.where(MASK, value, 0) for name, value in broken.items()}
    assert metrics(**broken) == metrics(**clean)


def test_json_has_no_nan() -> None:
    line = plain({"a": math.nan, "b": [math.inf, 1.0], "c": {"d": -math.inf}, "e": (1, "x"), "f": None, "g": True})
    assert line == {"a": None, "b": [None, 1.0], "c": {"d": None}, "e": [1, "x"], "f": None, "g": True}
    assert json.loads(json.dumps(line, allow_nan=False)) == line


def test_thirds_of_a_response_with_a_gap() -> None:
    mask = torch.tensor([[True, True, False, True, True, True, True], [True, False, False, False, False, False, False]])
    differences = torch.tensor([[1.0, 2.0, 99.0, 3.0, 4.0, 5.0, 6.0], [10.0, 0, 0, 0, 0, 0, 0]])
    found = position_metrics(differences, torch.zeros_like(differences), mask)
    wanted = {"kl/first_third": (1 + 2 + 10) / 3, "kl/middle_third": (3 + 4) / 2, "kl/last_third": (5 + 6) / 2}
    assert found == pytest.approx(wanted, rel=1e-12)


def test_skewness_by_hand() -> None:
    found = reward_shape(torch.tensor([0.0, 0.0, 0.0, 4.0]))  # deviations -1, -1, -1, 3: moments 3 and 6
    assert found["reward/skewness"] == pytest.approx(6 / 3**1.5, rel=1e-12)
    assert reward_shape(torch.ones(3))["reward/skewness"] == 0
    for n in (3, 7, 64):  # a mean that is off by rounding
        assert reward_shape(torch.full((n,), 0.1, dtype=torch.double))["reward/skewness"] == 0


def test_responses_by_hand() -> None:
    ids = [[1, 2, 1, 2, 1, 2], [1, 2, 1, 2, 1, 2], [3], [4, 5]]
    found = response_metrics(ids, ["ababab", "ababab", "c", "de"])
    assert found["response/distinct"] == 3 / 4
    assert found["response/distinct_2"] == 3 / 11  # (1, 2), (2, 1), (4, 5) of 5 + 5 + 0 + 1 pairs
    assert found["response/repeated_ngram_rate"] == 2 / 6  # 1212 2121 1212, twice: one of three is a repeat
    assert found["response/length_p5"] == pytest.approx(1.15) and found["response/length_p95"] == pytest.approx(6.0)
    assert "response/distinct_2" not in response_metrics([[1], [2]], ["a", "b"])


def slow_repetition(ids: list[list[int]]) -> tuple[int, int, int, int]:
    pairs = [pair for row in ids for pair in pairwise(row)]
    repeats, grams = 0, 0
    for row in ids:
        own = list(zip(row, row[1:], row[2:], row[3:], strict=False))
        grams += len(own)
        repeats += len(own) - len(set(own))
    return len(set(pairs)), len(pairs), repeats, grams


@pytest.mark.parametrize("tokens", [2, 5, 40, 2**31])
def test_repetition_is_the_slow_loops(tokens: int) -> None:
    """Rows of 0 to 30 tokens; the largest ids of a vocabulary that four of which fit into no integer."""
    pick = random.Random(tokens)
    for rows in (1, 2, 3, 30):
        for _ in range(20):
            some = [pick.randrange(tokens) for _ in range(6)] + [tokens - 1]
            ids = [[pick.choice(some) for _ in range(pick.randint(0, 30))] for _ in range(rows)]
            assert repetition(ids) == slow_repetition(ids)
    assert repetition([]) == repetition([[], []]) == (0, 0, 0, 0)
    assert repetition([[1], [1], [1], [1]]) == (0, 0, 0, 0)


def test_repetition_compresses() -> None:
    loops = response_metrics([[1, 2] * 50] * 4, ["ab" * 50] * 4)["response/compression"]
    words = ["the sky is blue because air scatters it", "a fox ran to a river", "boil an egg", "七乘八是五十六"]
    assert loops < 0.1 < 0.8 < response_metrics([[1]] * 4, words)["response/compression"]


def test_impossible_scores_are_told_and_do_not_raise() -> None:
    assert math.isnan(reward_shape(torch.tensor([1.0, math.nan]))["reward/p50"])


def test_skewness_of_tiny_scores() -> None:
    plain, tiny = (reward_shape(torch.tensor([1.0, 2.0, 5.0], dtype=torch.double) * unit) for unit in (1.0, 1e-160))
    assert (
        tiny["reward/skewness"] == pytest.approx(plain["reward/skewness"], rel=1e-9) == pytest.approx(0.528, abs=1e-3)
    )
