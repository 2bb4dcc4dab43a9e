"""Truncated importance weights and the gap between sampler and policy, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ppomax.rl.importance import sampler_metrics, truncated_importance

MASK = torch.ones(1, 4, dtype=torch.bool)


def log(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def test_weights_by_hand() -> None:
    # pi / mu = 0.3/0.2, 0.6/0.2 (cut at 2), 0.1/0.2, 0.2/0.2
    weights = truncated_importance(log(0.3, 0.6, 0.1, 0.2), log(0.2, 0.2, 0.2, 0.2), clip=2.0)
    assert weights.tolist() == pytest.approx([1.5, 2.0, 0.5, 1.0], abs=1e-12)


def test_a_cut_below_one_cuts_equal_probabilities_too() -> None:
    assert truncated_importance(log(0.2), log(0.2), clip=0.8).tolist() == pytest.approx([0.8])


def test_the_same_probabilities_weigh_exactly_one() -> None:
    logprobs = torch.tensor([-0.1, -3.7, -12.25])
    assert truncated_importance(logprobs, logprobs.clone(), clip=2.0).tolist() == [1.0, 1.0, 1.0]


def test_uncut_weights_turn_the_samplers_expectation_into_the_policys() -> None:
    mu, pi, f = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.45, 0.15]), torch.tensor([1.0, -2.0, 5.0])
    weights = truncated_importance(pi.log(), mu.log(), clip=10.0)
    assert (mu * weights * f).sum().item() == pytest.approx((pi * f).sum().item(), abs=1e-6)  # 0.4 - 0.9 + 0.75 = 0.25
    assert (mu * weights * f).sum().item() == pytest.approx(0.25, abs=1e-6)


def test_no_gradient_and_no_overflow() -> None:
    logprobs = torch.tensor([-1.0, -900.0], requires_grad=True)
    weights = truncated_importance(logprobs, torch.tensor([-800.0, -1.0]), clip=5.0)
    assert not weights.requires_grad
    assert weights[0].item() == 5.0 and 0 <= weights[1].item() < 1e-8


def test_metrics_by_hand() -> None:
    # tokens as mu = (1/2, 1/4, 1/4) would draw them of four; pi = (1/4, 1/4, 1/2)
    mu, pi = log(0.5, 0.5, 0.25, 0.25)[None], log(0.25, 0.25, 0.25, 0.5)[None]
    numbers = sampler_metrics(pi, mu, MASK, clip=1.5)
    assert numbers["rollout/logprob_gap"] == pytest.approx(0.75 * math.log(2), abs=1e-12)
    assert numbers["rollout/logprob_gap_max"] == pytest.approx(math.log(2), abs=1e-12)
    # sum of mu log(mu / pi) = 1/2 log 2 + 0 - 1/4 log 2; the samples are mu to the dot, so the estimate is exact
    assert numbers["rollout/kl"] == pytest.approx(0.25 * math.log(2), abs=1e-12)
    assert numbers["rollout/importance_mean"] == pytest.approx((0.5 + 0.5 + 1 + 1.5) / 4, abs=1e-12)
    assert numbers["rollout/importance_clipped"] == pytest.approx(0.25, abs=1e-12)


def test_what_lies_outside_the_mask_does_not_matter() -> None:
    mu, pi = log(0.5, 0.25, 0.5, 0.5)[None], log(0.25, 0.25, 0.001, 0.9)[None]
    mask = torch.tensor([[True, True, False, False]])
    numbers = sampler_metrics(pi, mu, mask, clip=2.0)
    assert numbers == sampler_metrics(pi[:, :2], mu[:, :2], mask[:, :2], clip=2.0)
    assert numbers["rollout/logprob_gap"] == pytest.approx(math.log(2) / 2, abs=1e-12)


def test_without_a_cut_no_weights_are_told() -> None:
    numbers = sampler_metrics(log(0.5)[None], log(0.5)[None], torch.ones(1, 1, dtype=torch.bool), clip=None)
    assert numbers == {"rollout/logprob_gap": 0.0, "rollout/logprob_gap_max": 0.0, "rollout/kl": 0.0}
