"""Penalties, reward scaling and normalisation, KL estimators, token rewards, the KL controller."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppomax.rl.moments import RunningMoments
from ppomax.rl.rewards import KLController, kl_estimate, last_index, penalise, shape_scores, token_rewards

quick = settings(max_examples=60, deadline=None)
small = st.floats(-5, 5, allow_nan=False, width=32)


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# ---------------------------------------------------------------------------------- score, details 4, 5


def test_penalise_by_hand() -> None:
    # 1 - .1 * 3 = .7;  2 - .5 - .1 * 4 = 1.1
    scores, lengths, finished = f64(1, 2), torch.tensor([3, 4]), torch.tensor([True, False])
    out = penalise(scores, lengths, finished, missing_eos_penalty=0.5, length_penalty=0.1)
    assert out.tolist() == pytest.approx([0.7, 1.1], rel=1e-14)
    assert penalise(scores, lengths, finished).tolist() == [1.0, 2.0]
    assert penalise(scores, lengths, finished, missing_eos_penalty=0.5).tolist() == [1.0, 1.5]


def test_shape_scores_by_hand() -> None:
    """Eq. 18 with history: after 1, 3 and the batch 8 itself the mean is 4 and the std sqrt(26 / 2)."""
    moments = RunningMoments()
    moments.update(f64(1, 3))
    moments.update(f64(8))
    std = math.sqrt(13)
    batch = f64(8, 1)
    assert shape_scores(batch, moments).tolist() == [8.0, 1.0]
    assert shape_scores(batch, moments, normalise=True).tolist() == pytest.approx([4 / std, -3 / std], rel=1e-14)
    assert shape_scores(batch, moments, scale=True).tolist() == pytest.approx([8 / std, 1 / std], rel=1e-14)
    # 4 / 3.606 = 1.109 is clipped to .8 and -3 / 3.606 = -.832 to -.8, after the division, not before
    assert shape_scores(batch, moments, normalise=True, clip=0.8).tolist() == [0.8, -0.8]
    assert shape_scores(batch, moments, scale=True, clip=0.8).tolist() == pytest.approx([0.8, 1 / std], rel=1e-14)
    assert shape_scores(f64(-8, 0.5), moments, clip=0.8).tolist() == [-0.8, 0.5]
    assert moments == RunningMoments(3, moments.mean, moments.m2)  # shaping takes nothing in


def test_shape_scores_refuses_both_details_at_once() -> None:
    with pytest.raises(ValueError, match="exclude"):
        shape_scores(f64(1.0), RunningMoments(), scale=True, normalise=True)


@quick
@given(st.lists(small, min_size=2, max_size=20), st.sampled_from([0.3, 0.8, 5.0]))
def test_normalised_scores_are_bounded_and_keep_their_order(scores: list[float], clip: float) -> None:
    moments = RunningMoments()
    moments.update(f64(*scores))
    out = shape_scores(f64(*scores), moments, normalise=True, clip=clip)
    assert out.abs().max().item() <= clip
    by_score = out[torch.tensor(scores).sort(stable=True).indices]
    assert bool((by_score.diff() >= 0).all())
    std = np.std(scores, ddof=1)
    if std > 1e-6:
        expected = np.clip((np.array(scores) - np.mean(scores)) / std, -clip, clip)
        assert out.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_equal_scores_become_zero_when_normalised_and_stay_when_scaled() -> None:
    scores, moments = f64(0.1, 0.1, 0.1), RunningMoments()
    moments.update(scores)
    assert shape_scores(scores, moments, normalise=True).tolist() == pytest.approx([0.0] * 3, abs=1e-15)
    assert shape_scores(scores, moments, scale=True).tolist() == [0.1] * 3


# ----------------------------------------------------------------------------------- KL estimators


def test_kl_estimators_by_hand() -> None:
    # log pi = log .5, log ref = log .25: k1 = log 2; k2 = log(2)^2 / 2; k3 = .5 - 1 + log 2
    pi, ref = f64(math.log(0.5), math.log(0.25)), f64(math.log(0.25), math.log(0.5))
    log2 = math.log(2)
    assert kl_estimate(pi, ref).tolist() == pytest.approx([log2, -log2], rel=1e-14)
    assert kl_estimate(pi, ref, "k2").tolist() == pytest.approx([log2**2 / 2] * 2, rel=1e-14)
    # the other way round k3 = 2 - 1 - log 2
    assert kl_estimate(pi, ref, "k3").tolist() == pytest.approx([log2 - 0.5, 1 - log2], rel=1e-14)
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(pi, ref, "k4")  # type: ignore[arg-type]


@st.composite
def distributions(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    n = draw(st.integers(2, 8))
    weights = st.lists(st.floats(0.01, 1.0), min_size=n, max_size=n)
    p, q = draw(weights), draw(weights)
    return [w / math.fsum(p) for w in p], [w / math.fsum(q) for w in q]


@quick
@given(distributions())
def test_k1_and_k3_are_unbiased_over_the_whole_vocabulary(pair: tuple[list[float], list[float]]) -> None:
    """Drawn from the policy, the expectation of k1 and of k3 is KL(policy || reference) itself."""
    p, q = pair
    kl = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    for kind in ("k1", "k3"):
        estimate = kl_estimate(f64(*p).log(), f64(*q).log(), kind)  # type: ignore[arg-type]
        assert (f64(*p) * estimate).sum().item() == pytest.approx(kl, rel=1e-10, abs=1e-13)


def test_k2_is_close_for_close_distributions_and_biased_for_others() -> None:
    p = torch.softmax(f64(0.3, -0.2, 0.9, 0.0), 0)
    direction = f64(1.0, -1.0, 0.5, 0.2)
    for step, tolerance in ((0.1, 0.1), (0.01, 0.01)):  # the relative error is of the order of the step
        q = torch.softmax(p.log() + step * direction, 0)
        kl = (p * (p / q).log()).sum().item()
        assert (p * kl_estimate(p.log(), q.log(), "k2")).sum().item() == pytest.approx(kl, rel=tolerance)
    q = torch.softmax(p.log() + 3 * direction, 0)
    kl = (p * (p / q).log()).sum().item()
    assert (p * kl_estimate(p.log(), q.log(), "k2")).sum().item() != pytest.approx(kl, rel=0.1)


@quick
@given(st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=20))
def test_k2_and_k3_are_never_negative(gaps: list[float]) -> None:
    x = torch.tensor(gaps)
    x = torch.cat([x, x * 1e-3, x * 1e-6, x * 1e-9])  # where k3 loses its digits to cancellation
    for kind in ("k2", "k3"):
        assert bool((kl_estimate(x, torch.zeros_like(x), kind) >= 0).all())  # type: ignore[arg-type]


def test_k3_of_a_token_that_the_policy_cannot_mean_is_large_but_finite() -> None:
    out = kl_estimate(torch.tensor([-200.0, -20.0, 200.0]), torch.zeros(3), "k3")
    assert out.tolist() == pytest.approx([math.exp(20) - 21, math.exp(20) - 21, 199.0], rel=1e-6)


# ------------------------------------------------------------------------------------ token rewards


def test_token_rewards_oracle() -> None:
    kl = torch.tensor([[-0.1] * 3, [-0.2] * 3, [-0.3] * 3])
    out = token_rewards(torch.tensor([1.0, 2.0, 3.0]), kl, torch.ones(3, 3, dtype=torch.bool), 0.5)
    expected = torch.tensor([[0.05, 0.05, 1.05], [0.1, 0.1, 2.1], [0.15, 0.15, 3.15]])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_token_rewards_by_hand() -> None:
    """eta .5. The score lands on the last *valid* token, never on a pad; a gap between the turns gets nothing."""
    nan = math.nan
    kl = torch.tensor([[0.2, 0.4, nan, nan], [nan, 1.0, nan, -0.6], [nan, nan, nan, 0.5]])
    mask = torch.tensor([[True, True, False, False], [False, True, False, True], [False, False, False, True]])
    out = token_rewards(torch.tensor([1.0, 2.0, -3.0]), kl, mask, 0.5)
    # -.5 * .2;  -.5 * .4 + 1   |   -.5 * 1;  -.5 * -.6 + 2   |   -.5 * .5 - 3
    expected = torch.tensor([[-0.1, 0.8, 0, 0], [0, -0.5, 0, 2.3], [0, 0, 0, -3.25]])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-7)


Row = list[tuple[float, bool]]


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[float], list[Row]]:
    """Scores, and rows of (kl, valid) that each have a valid token."""
    length = draw(st.integers(1, 8))
    token = st.tuples(small, st.booleans())
    line = st.lists(token, min_size=length, max_size=length).filter(lambda row: any(m for _, m in row))
    rows = draw(st.lists(line, min_size=1, max_size=4))
    return draw(st.lists(small, min_size=len(rows), max_size=len(rows))), rows


def tensors(rows: list[Row]) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor([[k for k, _ in row] for row in rows], dtype=torch.float64),
        torch.tensor([[m for _, m in row] for row in rows]),
    )


@quick
@given(batches(), st.sampled_from([0.0, 0.05, 0.5]))
def test_token_rewards_equal_a_loop(batch: tuple[list[float], list[Row]], coef: float) -> None:
    scores, rows = batch
    kl, mask = tensors(rows)
    out = token_rewards(f64(*scores), kl, mask, coef)
    for b, row in enumerate(rows):
        expected = [0.0] * len(row)
        last = -1
        for t, (k, valid) in enumerate(row):
            if valid:
                expected[t] = -coef * k
                last = t
        assert last_index(mask)[b].item() == last
        expected[last] += scores[b]
        assert out[b].tolist() == pytest.approx(expected, rel=1e-13, abs=1e-13)
        # what the episode earns in all: the score less the KL of the whole response (eq. 3)
        total = scores[b] - coef * sum(k for k, valid in row if valid)
        assert out[b].sum().item() == pytest.approx(total, rel=1e-11, abs=1e-11)


@quick
@given(batches(), st.lists(st.integers(0, 8), max_size=4), st.sampled_from([math.nan, math.inf, 1e30]))
def test_padding_and_gaps_never_matter(batch: tuple[list[float], list[Row]], places: list[int], garbage: float) -> None:
    scores, rows = batch
    spoilt = [[(k if m else garbage, m) for k, m in row] for row in rows]
    for place in places:
        spoilt = [[*row[:place], (garbage, False), *row[place:]] for row in spoilt]
    (kl, mask), (dirty, other) = tensors(rows), tensors(spoilt)
    out = token_rewards(f64(*scores), dirty, other, 0.5)
    assert torch.equal(out[other], token_rewards(f64(*scores), kl, mask, 0.5)[mask])
    assert not out[~other].any()


def test_a_response_without_tokens_is_an_error() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match="no valid token"):
        last_index(mask)
    with pytest.raises(ValueError, match="no valid token"):
        token_rewards(torch.ones(2), torch.ones(2, 2), mask, 0.1)


# ------------------------------------------------------------------------------------ KL controller


def test_controller_by_hand() -> None:
    # 12 / 6 - 1 = 1, clipped to .2: .1 * (1 + .2 * 128 / 10000) = .100256
    controller = KLController(0.1, adaptive=True, target=6.0, horizon=10000)
    controller.update(12.0, 128)
    assert controller.coef == pytest.approx(0.100256, rel=1e-14)
    # 5.4 / 6 - 1 = -.1: * (1 - .1 * 128 / 10000) = * .99872
    controller.update(5.4, 128)
    assert controller.coef == pytest.approx(0.100256 * 0.99872, rel=1e-14)
    # a negative estimate (k1) is clipped to -.2: * (1 - .2 * 500 / 10000) = * .99
    controller.update(-100.0, 500)
    assert controller.coef == pytest.approx(0.100256 * 0.99872 * 0.99, rel=1e-14)


def test_fixed_controller_does_not_move() -> None:
    controller = KLController(0.05)
    controller.update(1000.0, 10000)
    assert controller.coef == 0.05


@quick
@given(st.floats(-50, 50), st.floats(0.1, 20), st.integers(1, 1000))
def test_controller_pushes_towards_its_target(kl: float, target: float, samples: int) -> None:
    controller = KLController(0.1, adaptive=True, target=target, horizon=10000)
    controller.update(kl, samples)
    change = controller.coef / 0.1 - 1
    assert abs(change) <= 0.2 * samples / 10000 + 1e-12
    error = kl / target - 1
    assert change * error >= 0 and (abs(error) < 1e-9 or change != 0)


def test_controller_steers_a_response_to_the_target() -> None:
    """A policy whose KL is 1 / coef settles where the KL is the target, so at coef 1 / 6."""
    controller = KLController(0.05, adaptive=True, target=6.0, horizon=1000)
    for _ in range(400):
        controller.update(1 / controller.coef, 128)
    assert controller.coef == pytest.approx(1 / 6, rel=1e-3)


def test_controller_state_comes_back_bit_for_bit() -> None:
    controller, restored = KLController(0.1, adaptive=True), KLController(7.0, adaptive=True)
    controller.update(7.1, 33)
    restored.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert restored.coef == controller.coef


def test_small_types_are_widened() -> None:
    k3 = kl_estimate(torch.tensor([-30.0]).half(), torch.tensor([-1.0]).half(), "k3")
    assert k3.item() == pytest.approx(math.exp(20) - 1 - 20, rel=1e-6)
    found = token_rewards(torch.tensor([100.3]), torch.zeros(1, 2).bfloat16(), torch.ones(1, 2, dtype=torch.bool), 0.1)
    assert found.tolist() == [[0.0, pytest.approx(100.3, rel=1e-7)]]
