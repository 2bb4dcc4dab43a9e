"""GAE, reward-to-go and explained variance: by hand, against the sums of eq. 9, 11 and 16, and over gaps."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppomax.rl.advantages import explained_variance, gae, reward_to_go

quick = settings(max_examples=60, deadline=None)
small = st.floats(-5, 5, allow_nan=False, width=32)
share = st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.95, 1.0])
Row = list[tuple[float, float, bool]]
"""(reward, value, valid) by position"""


@st.composite
def batches(draw: st.DrawFn) -> list[Row]:
    """1 to 4 rows of one length, any mask, rows without a valid token included."""
    length = draw(st.integers(1, 9))
    token = st.tuples(small, small, st.booleans())
    return draw(st.lists(st.lists(token, min_size=length, max_size=length), min_size=1, max_size=4))


def tensors(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    rewards = torch.tensor([[r for r, _, _ in row] for row in rows], dtype=torch.float64)
    values = torch.tensor([[v for _, v, _ in row] for row in rows], dtype=torch.float64)
    return rewards, values, torch.tensor([[m for _, _, m in row] for row in rows])


def exact_advantages(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Eq. 9 as printed, a double sum in fractions, for one response without gaps; V after the end is 0."""
    r, v, g, w = [*map(Fraction, rewards)], [*map(Fraction, values)], Fraction(gamma), Fraction(gamma) * Fraction(lam)
    n = len(r)
    deltas = [r[t] + (g * v[t + 1] if t + 1 < n else 0) - v[t] for t in range(n)]
    return [float(sum((w**k * deltas[t + k] for k in range(n - t)), Fraction(0))) for t in range(n)]


# ----------------------------------------------------------------------------------------------- GAE


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float32)


def test_gae_oracles() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    _, returns = gae(row(0, 0, 0, 1), row(0, 0, 0, 1), mask, gamma=0.9, lam=0.95)
    assert returns[0].tolist() == pytest.approx([0.6579, 0.7695, 0.9, 1.0], abs=1e-4)
    advantages, _ = gae(row(0, 0, 5), row(1, 2, 3), mask[:, :3], gamma=1.0, lam=0.0)
    assert advantages[0].tolist() == pytest.approx([1, 1, 2], abs=1e-6)


def test_gae_by_hand() -> None:
    # deltas from the end: 3 - 2 = 1;  2 + .5 * 2 - 1 = 2;  1 + .5 * 1 - .5 = 1;  gamma lam = .25
    # advantages: 1;  2 + .25 * 1 = 2.25;  1 + .25 * 2.25 = 1.5625.  returns: 1 + 2, 2.25 + 1, 1.5625 + .5
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(row(1, 2, 3), row(0.5, 1, 2), mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[1.5625, 2.25, 1.0]]
    assert returns.tolist() == [[2.0625, 3.25, 3.0]]


def test_gae_steps_over_a_gap_by_hand() -> None:
    """The numbers of the last test with padding to the left and right, and a gap, all full of NaN."""
    nan = math.nan
    mask = torch.tensor([[False, True, False, False, True, True, False]])
    rewards, values = row(nan, 1, nan, 9, 2, 3, nan), row(nan, 0.5, 9, nan, 1, 2, nan)
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0, 1.5625, 0, 0, 2.25, 1.0, 0]]
    assert returns.tolist() == [[0, 2.0625, 0, 0, 3.25, 3.0, 0]]


@quick
@given(batches(), share, share)
def test_gae_equals_the_printed_sum(rows: list[Row], gamma: float, lam: float) -> None:
    advantages, returns = gae(*tensors(rows), gamma=gamma, lam=lam)
    for b, line in enumerate(rows):
        places = [t for t, (_, _, m) in enumerate(line) if m]
        rewards, values = [line[t][0] for t in places], [line[t][1] for t in places]
        expected = exact_advantages(rewards, values, gamma, lam)
        assert advantages[b, places].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert returns[b, places].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, values, strict=True)], rel=1e-12, abs=1e-12
        )
        outside = [t for t in range(len(line)) if t not in places]
        assert not advantages[b, outside].any() and not returns[b, outside].any()


@quick
@given(batches(), share, share, st.lists(st.integers(0, 9), max_size=4), st.sampled_from([math.nan, math.inf, 1e9]))
def test_padding_and_gaps_never_matter(
    rows: list[Row], gamma: float, lam: float, places: list[int], garbage: float
) -> None:
    """Masked columns put in anywhere, and garbage in every masked place: bitwise the same at the valid tokens."""
    spoilt = [[(r, v, True) if m else (garbage, -garbage, False) for r, v, m in line] for line in rows]
    for place in places:
        spoilt = [[*line[:place], (garbage, garbage, False), *line[place:]] for line in spoilt]
    mask, other = tensors(rows)[2], tensors(spoilt)[2]
    for clean, dirty in zip(
        gae(*tensors(rows), gamma=gamma, lam=lam), gae(*tensors(spoilt), gamma=gamma, lam=lam), strict=True
    ):
        assert torch.equal(clean[mask], dirty[other])
        assert not dirty[~other].any()


@quick
@given(batches(), share)
def test_lam_zero_is_td_and_lam_one_is_monte_carlo(rows: list[Row], gamma: float) -> None:
    rewards, values, mask = tensors(rows)
    td, mc = (gae(rewards, values, mask, gamma=gamma, lam=lam)[0] for lam in (0.0, 1.0))
    for b, line in enumerate(rows):
        places = [t for t, (_, _, m) in enumerate(line) if m]
        for i, t in enumerate(places):
            bootstrap = gamma * line[places[i + 1]][1] if i + 1 < len(places) else 0.0
            assert td[b, t].item() == pytest.approx(line[t][0] + bootstrap - line[t][1], rel=1e-12, abs=1e-12)  # eq. 10
            to_go = sum(gamma**k * line[u][0] for k, u in enumerate(places[i:]))
            assert mc[b, t].item() == pytest.approx(to_go - line[t][1], rel=1e-11, abs=1e-11)  # eq. 11
    # at lam 1 the return A + V does not depend on the critic: it is the reward-to-go
    returns = gae(rewards, values, mask, gamma=gamma, lam=1.0)[1]
    torch.testing.assert_close(returns, reward_to_go(rewards, mask, gamma=gamma), rtol=1e-11, atol=1e-11)


@quick
@given(batches(), share, share, st.randoms(use_true_random=False))
def test_rows_are_independent(rows: list[Row], gamma: float, lam: float, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    whole = gae(*tensors(rows), gamma=gamma, lam=lam)
    shuffled = gae(*tensors([rows[i] for i in order]), gamma=gamma, lam=lam)
    for a, b in zip(whole, shuffled, strict=True):
        assert torch.equal(a[order], b)


def test_a_perfect_critic_has_no_advantage() -> None:
    # gamma 1, the reward 2 at the end, V = 2 everywhere: every delta is 0
    mask = torch.ones(1, 5, dtype=torch.bool)
    advantages, returns = gae(row(0, 0, 0, 0, 2), row(2, 2, 2, 2, 2), mask, gamma=1.0, lam=0.9)
    assert advantages.tolist() == [[0.0] * 5] and returns.tolist() == [[2.0] * 5]


def test_gae_leaves_its_inputs_alone() -> None:
    rewards, values, mask = torch.randn(2, 4), torch.randn(2, 4), torch.rand(2, 4) > 0.5
    copies = rewards.clone(), values.clone(), mask.clone()
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.9)
    assert all(torch.equal(a, b) for a, b in zip((rewards, values, mask), copies, strict=True))
    assert advantages.dtype == returns.dtype == torch.float32 and advantages.shape == returns.shape == (2, 4)


def test_whole_numbers_and_half_precision_are_not_truncated() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    rewards, values = row(0, 0, 0, 1), row(0, 0, 0, 1)
    expected = gae(rewards, values, mask, gamma=0.9, lam=0.95)
    for dtype in (torch.int64, torch.bfloat16):
        for a, b in zip(gae(rewards.to(dtype), values.to(dtype), mask, gamma=0.9, lam=0.95), expected, strict=True):
            assert a.dtype == torch.float32 and torch.equal(a, b)
    assert gae(rewards.double(), values, mask, gamma=0.9, lam=0.95)[0].dtype == torch.float64


# -------------------------------------------------------------------------------------- reward-to-go


def test_reward_to_go_by_hand() -> None:
    # 3;  2 + .5 * 3 = 3.5;  1 + .5 * 3.5 = 2.75
    assert reward_to_go(row(1, 2, 3), torch.ones(1, 3, dtype=torch.bool), gamma=0.5).tolist() == [[2.75, 3.5, 3.0]]
    # with the middle masked: 3;  1 + .5 * 3 = 2.5: the gap costs no discount
    gap = torch.tensor([[True, False, True]])
    assert reward_to_go(row(1, math.nan, 3), gap, gamma=0.5).tolist() == [[2.5, 0.0, 3.0]]


@quick
@given(batches(), share)
def test_reward_to_go_equals_its_sum(rows: list[Row], gamma: float) -> None:
    rewards, _, mask = tensors(rows)
    out = reward_to_go(rewards, mask, gamma=gamma)
    for b, line in enumerate(rows):
        valid = [r for r, _, m in line if m]
        expected = [sum(gamma**k * r for k, r in enumerate(valid[t:])) for t in range(len(valid))]
        assert out[b][mask[b]].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


# -------------------------------------------------------------------------------- explained variance


def test_explained_variance_by_hand() -> None:
    mask = torch.tensor([[True, False, True]])
    # returns 1, 3: variance 2; residuals 0, 1: variance .5; 1 - .5 / 2 = .75. The masked NaN is not looked at
    assert explained_variance(row(1, math.nan, 2), row(1, 7, 3), mask) == pytest.approx(0.75, rel=1e-12)
    # residuals 2, 6: variance 8; 1 - 8 / 2 = -3
    assert explained_variance(row(-1, 0, -3), row(1, 0, 3), mask) == pytest.approx(-3.0, rel=1e-12)
    # a constant offset is not counted against the critic
    assert explained_variance(row(6, 0, 8), row(1, 0, 3), mask) == pytest.approx(1.0, rel=1e-12)


def test_explained_variance_without_spread_is_zero() -> None:
    assert explained_variance(row(1, 2, 3), row(0.1, 0.1, 0.1), torch.ones(1, 3, dtype=torch.bool)) == 0.0
    assert explained_variance(row(1, 2, 3), row(1, 2, 3), torch.tensor([[True, False, False]])) == 0.0
    assert explained_variance(row(1, 2, 3), row(1, 2, 3), torch.zeros(1, 3, dtype=torch.bool)) == 0.0


def test_explained_variance_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    values, returns, mask = rng.normal(size=(3, 7)), rng.normal(size=(3, 7)), rng.random((3, 7)) > 0.3
    expected = 1 - np.var((returns - values)[mask], ddof=1) / np.var(returns[mask], ddof=1)
    got = explained_variance(torch.tensor(values), torch.tensor(returns), torch.tensor(mask))
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_returns_that_are_constant_but_for_rounding_explain_nothing(kind: torch.dtype) -> None:
    """gamma = lam = 1 and one score for all: returns are that score, put together again from advantages and values."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(8, 200, generator=generator, dtype=kind) * 0.1 + 0.5
    mask = torch.arange(200)[None] < torch.randint(3, 201, (8, 1), generator=generator)
    rewards = torch.zeros(8, 200, dtype=kind).scatter(1, mask.sum(1, keepdim=True) - 1, 0.8)
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert returns[mask].double().var() > 0
    assert explained_variance(values, returns, mask) == 0
    returns = torch.where(mask, 0.8 + 1e-4 * values, 0)  # small differences are none of rounding
    assert explained_variance(returns, returns, mask) == 1.0
