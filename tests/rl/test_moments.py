"""Masked moments, whitening and running moments: by hand, against exact fractions, and under every split."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppomax.rl.moments import RunningMoments, masked_mean, masked_var, whiten

quick = settings(max_examples=60, deadline=None)
numbers = st.floats(-1e3, 1e3, allow_nan=False, width=32)
entries = st.lists(st.tuples(numbers, st.booleans()), min_size=2, max_size=24)
GARBAGE = [float("nan"), float("inf"), -float("inf"), 1e30]


def exact_moments(values: list[float]) -> tuple[Fraction, Fraction]:
    """Mean and sum of squared deviations, without rounding."""
    exact = [Fraction(v) for v in values]
    mean = sum(exact, Fraction(0)) / len(exact)
    return mean, sum(((v - mean) ** 2 for v in exact), Fraction(0))


def tensors(rows: list[tuple[float, bool]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([v for v, _ in rows], dtype=torch.float64), torch.tensor([m for _, m in rows])


# ------------------------------------------------------------------------------------- masked moments


def test_masked_moments_oracle() -> None:
    x, mask = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 1, 1, 0], dtype=torch.bool)
    assert masked_mean(x, mask).item() == 2.5
    assert masked_var(x, mask).item() == 0.5


def test_masked_moments_by_hand() -> None:
    # valid: 1, 2, 6 -> mean 3, deviations -2, -1, 3, squares 4 + 1 + 9 = 14; unbiased 14 / 2 = 7, biased 14 / 3
    x = torch.tensor([[1.0, 50.0, 2.0], [-9.0, 6.0, math.nan]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert masked_mean(x, mask).item() == 3.0
    assert masked_var(x, mask).item() == 7.0
    assert masked_var(x, mask, unbiased=False).item() == pytest.approx(14 / 3, rel=1e-7)


def test_one_valid_entry_has_variance_zero_and_none_has_no_mean() -> None:
    x, mask = torch.tensor([3.0, 5.0]), torch.tensor([False, True])
    assert masked_var(x, mask).item() == 0.0
    assert masked_var(x, mask, unbiased=False).item() == 0.0
    assert masked_mean(x, torch.zeros(2, dtype=torch.bool)).isnan()


@quick
@given(entries)
def test_masked_moments_equal_exact_fractions(rows: list[tuple[float, bool]]) -> None:
    valid = [v for v, m in rows if m]
    assume(len(valid) >= 2)
    x, mask = tensors(rows)
    mean, squares = exact_moments(valid)
    assert masked_mean(x, mask).item() == pytest.approx(float(mean), rel=1e-12, abs=1e-10)
    assert masked_var(x, mask).item() == pytest.approx(float(squares / (len(valid) - 1)), rel=1e-12, abs=1e-18)
    assert masked_var(x, mask, False).item() == pytest.approx(float(squares / len(valid)), rel=1e-12, abs=1e-18)


@quick
@given(entries, st.lists(st.sampled_from(GARBAGE), max_size=6), st.randoms(use_true_random=False))
def test_what_is_masked_never_matters(rows: list[tuple[float, bool]], padding: list[float], random: Random) -> None:
    assume(sum(m for _, m in rows) >= 2)
    spoilt = [(v if m else random.choice(GARBAGE), m) for v, m in rows]
    for g in padding:  # and further masked entries at any place
        spoilt.insert(random.randint(0, len(spoilt)), (g, False))
    x, mask = tensors(rows)
    y, other = tensors(spoilt)
    assert masked_mean(y, other).item() == pytest.approx(masked_mean(x, mask).item(), rel=1e-12, abs=1e-10)
    assert masked_var(y, other).item() == pytest.approx(masked_var(x, mask).item(), rel=1e-12, abs=1e-16)
    torch.testing.assert_close(whiten(y, other)[other], whiten(x, mask)[mask], rtol=1e-9, atol=1e-9)
    assert bool((whiten(y, other)[~other] == 0).all())


def test_masked_mean_has_no_gradient_from_masked_nan() -> None:
    x = torch.tensor([1.0, math.nan, 3.0], requires_grad=True)
    masked_mean(x, torch.tensor([True, False, True])).backward()
    assert x.grad is not None and x.grad.tolist() == [0.5, 0.0, 0.5]


# ------------------------------------------------------------------------------------------- whitening


def test_whiten_by_hand() -> None:
    # mean 2.5; squares 2.25 + .25 + .25 + 2.25 = 5; unbiased 5 / 3, biased 5 / 4
    x, mask = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), torch.ones(4, dtype=torch.bool)
    deviations = [-1.5, -0.5, 0.5, 1.5]
    assert whiten(x, mask, eps=0.0).tolist() == pytest.approx([d / math.sqrt(5 / 3) for d in deviations], rel=1e-14)
    # the released code: biased variance and 1e-6 under the root
    released = whiten(x, mask, unbiased=False, eps=1e-6).tolist()
    assert released == pytest.approx([d / math.sqrt(1.25 + 1e-6) for d in deviations], rel=1e-14)
    # defaults: unbiased, 1e-8 under the root
    assert whiten(x, mask).tolist() == pytest.approx([d / math.sqrt(5 / 3 + 1e-8) for d in deviations], rel=1e-14)


def test_whiten_does_not_add_the_mean_back() -> None:
    x, mask = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.ones(4, dtype=torch.bool)
    assert whiten(x, mask).mean().item() == pytest.approx(0.0, abs=1e-7)


def test_whiten_of_equal_values_and_of_one_value_is_zero() -> None:
    mask = torch.tensor([True, True, True, False])
    assert whiten(torch.full((4,), 7.0), mask).tolist() == [0.0] * 4
    assert whiten(torch.tensor([7.0, 8.0]), torch.tensor([False, True])).tolist() == [0.0, 0.0]


@quick
@given(entries)
def test_whitened_values_have_mean_zero_and_variance_one(rows: list[tuple[float, bool]]) -> None:
    valid = [v for v, m in rows if m]
    assume(len(valid) >= 2 and np.std(valid) > 0.1)
    x, mask = tensors(rows)
    for unbiased, ddof in ((True, 1), (False, 0)):
        out = whiten(x, mask, unbiased=unbiased)[mask].numpy()
        assert out.mean() == pytest.approx(0.0, abs=1e-10)
        # eps 1e-8 under the root: var / (var + 1e-8), and var > 0.01
        assert out.var(ddof=ddof) == pytest.approx(1.0, abs=2e-6)


@quick
@given(entries, st.randoms(use_true_random=False))
def test_whitening_follows_the_rows(rows: list[tuple[float, bool]], random: Random) -> None:
    assume(sum(m for _, m in rows) >= 2)
    order = list(range(len(rows)))
    random.shuffle(order)
    x, mask = tensors(rows)
    torch.testing.assert_close(whiten(x[order], mask[order]), whiten(x, mask)[order], rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------- running moments


def test_running_moments_by_hand() -> None:
    # 1, 3 -> mean 2, squares 1 + 1 = 2, std sqrt(2 / 1); then 8 -> mean 4, squares 9 + 1 + 16 = 26, std sqrt(26 / 2)
    moments = RunningMoments()
    moments.update(torch.tensor([1.0, 3.0]))
    assert (moments.count, moments.mean) == (2, 2.0)
    assert moments.std == pytest.approx(math.sqrt(2), rel=1e-15)
    moments.update(torch.tensor([[8.0]]))
    assert (moments.count, moments.mean) == (3, pytest.approx(4.0, rel=1e-15))
    assert moments.std == pytest.approx(math.sqrt(13), rel=1e-15)


@quick
@given(st.lists(numbers, min_size=2, max_size=40), st.data())
def test_running_moments_do_not_depend_on_splits(values: list[float], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=6)))
    moments = RunningMoments()
    for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True):
        moments.update(torch.tensor(values[a:b], dtype=torch.float64))  # some are empty
    mean, squares = exact_moments(values)
    assert moments.count == len(values)
    assert moments.mean == pytest.approx(float(mean), rel=1e-12, abs=1e-10)
    assert moments.m2 == pytest.approx(float(squares), rel=1e-11, abs=1e-15 * max(abs(v) for v in values) ** 2)
    std = float(np.std(values, ddof=1))
    if std > 1e-6:
        assert moments.std == pytest.approx(std, rel=1e-10)


def test_running_moments_keep_small_spread_on_a_large_offset() -> None:
    """Sums of squares would lose everything here: 1e8 squared has no digits left for a variance near 1."""
    x = torch.linspace(-1, 1, 1001, dtype=torch.float64) + 1e8
    moments = RunningMoments()
    for part in x.split(37):
        moments.update(part)
    assert moments.std == pytest.approx(np.std(x.numpy() - 1e8, ddof=1), rel=1e-7)


@quick
@given(st.floats(-1e4, 1e4, allow_nan=False), st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_std_of_equal_values_is_one(value: float, sizes: list[int]) -> None:
    """The mean of three times 0.1 is off by an ulp: without care the std were 1e-17, and scaling gave 1e16."""
    moments = RunningMoments()
    for n in sizes:
        moments.update(torch.full((n,), value, dtype=torch.float64))
    assert moments.std == 1.0


def test_std_of_nothing_and_of_one_value_is_one() -> None:
    moments = RunningMoments()
    assert moments.std == 1.0
    moments.update(torch.tensor([]))
    assert (moments.count, moments.mean, moments.std) == (0, 0.0, 1.0)
    moments.update(torch.tensor([5.0]))
    assert (moments.count, moments.mean, moments.std) == (1, 5.0, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_refused_and_changes_nothing(bad: float) -> None:
    moments = RunningMoments(3, 1.5, 2.5)
    with pytest.raises(ValueError, match="NaN"):
        moments.update(torch.tensor([1.0, bad]))
    assert moments == RunningMoments(3, 1.5, 2.5)


def test_running_moments_come_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    moments, restored = RunningMoments(), RunningMoments()
    moments.update(torch.randn(17))
    restored.load_state_dict(json.loads(json.dumps(moments.state_dict())))
    assert restored == moments and isinstance(restored.count, int)
    more = torch.randn(5)
    moments.update(more)
    restored.update(more)
    assert restored == moments and restored.std == moments.std


def test_sums_are_exact_whatever_the_type() -> None:
    everywhere = torch.ones(1, 7, dtype=torch.bool)
    assert whiten(torch.full((1, 7), 1000.1), everywhere).abs().max() < 1e-6
    assert masked_mean(torch.full((1000,), 100.0).half(), torch.ones(1000, dtype=torch.bool)) == 100
    quarters = torch.tensor([100.0, 100.25, 100.5, 100.75] * 50).to(torch.bfloat16).float()  # what bf16 makes of them
    mask = torch.ones(200, dtype=torch.bool)
    assert (
        masked_mean(quarters.bfloat16(), mask) == quarters.mean() and masked_mean(quarters, mask).dtype == torch.float32
    )
    noise = (torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) + 5).bfloat16()
    white = whiten(noise, torch.ones(64, 64, dtype=torch.bool))
    assert (
        white.dtype == torch.float32 and abs(white.double().mean()) < 1e-7 and white.std() == pytest.approx(1, abs=1e-6)
    )
