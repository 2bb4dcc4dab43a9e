"""The losses of PPO: by hand, against cases written out one by one, and by their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppomax.rl.losses import MAX_LOG_RATIO, entropy_loss, importance_ratio, penalty_loss, surrogate_loss, value_loss
from ppomax.rl.moments import masked_mean

quick = settings(max_examples=80, deadline=None)
log_ratios = st.floats(-3, 3, allow_nan=False)
small = st.floats(-5, 5, allow_nan=False)
clips = st.one_of(st.none(), st.sampled_from([0.05, 0.2, 0.5]))


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def gradient(f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    x = at.clone().requires_grad_(True)
    return torch.autograd.grad(f(x).sum(), x)[0]


# ----------------------------------------------------------------------------------- importance ratio


def test_importance_ratio_by_hand() -> None:
    # log pi - log old = log(.6 / .3) = log 2, log(.2 / .4) = -log 2, and the same twice
    pi, old = f64(0.6, 0.2, 0.5).log(), f64(0.3, 0.4, 0.5).log()
    assert importance_ratio(pi, old).tolist() == pytest.approx([2.0, 0.5, 1.0], rel=1e-14)


def test_equal_logprobs_give_exactly_one() -> None:
    x = -20 * torch.rand(100)
    assert torch.equal(importance_ratio(x, x.clone()), torch.ones(100))


@pytest.mark.parametrize("gap", [19.9, 25.0, 100.0, 1e4, math.inf])
@pytest.mark.parametrize("advantage", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("options", [{}, {"dual_clip": 3.0}])
def test_extreme_log_ratios_have_finite_losses_and_gradients(
    gap: float, advantage: float, options: dict[str, float]
) -> None:
    """0 * inf in the branch that minimum does not take would make every gradient of the batch NaN."""
    old, advantages = torch.zeros(3), torch.full((3,), advantage)
    at = torch.tensor([gap, -gap, 0.0])

    def clipped(x: Tensor) -> Tensor:
        return surrogate_loss(importance_ratio(x, old), advantages, clip_low=0.2, clip_high=0.2, **options)

    def bare(x: Tensor) -> Tensor:
        return surrogate_loss(importance_ratio(x, old), advantages, clip_low=None, clip_high=None, **options)

    def penalised(x: Tensor) -> Tensor:
        x = x.clamp(-1e30, 1e30)  # the KL of a token of probability 0 is infinite, whatever the code
        return penalty_loss(importance_ratio(x, old), x - old, advantages, penalty_coef=1.0)

    for loss in (clipped, bare, penalised):
        assert bool(loss(at).isfinite().all())
        assert bool(gradient(loss, at).isfinite().all())


# --------------------------------------------------------------------------------- clipped surrogate


def surrogate_by_cases(ratio: float, a: float, low: float | None, high: float | None, dual: float | None) -> float:
    """Eq. 15 told case by case: what is gained beyond the clip does not count, what is lost does."""
    if a >= 0:
        counted = ratio if high is None else min(ratio, 1 + high)
    else:
        counted = ratio if low is None else max(ratio, 1 - low)
        if dual is not None:
            counted = min(counted, dual)
    return -counted * a


def test_surrogate_oracle() -> None:
    loss = surrogate_loss(f64(0.5, 1.0, 1.5), f64(1, -1, 2), clip_low=0.2, clip_high=0.2)
    assert loss.tolist() == pytest.approx([-0.5, 1.0, -2.4], abs=1e-4)
    assert loss.mean().item() == pytest.approx(-0.63333, abs=1e-4)


def test_surrogate_by_hand() -> None:
    ratio, advantages = f64(0.5, 0.5, 1.5, 1.5, 5.0, 5.0), f64(2, -2, 2, -2, 2, -2)
    # A > 0: min(r, 1.2) * 2 = 1, 2.4, 2.4.   A < 0: max(r, .8) * 2 = 1.6, 3, 10
    plain = surrogate_loss(ratio, advantages, clip_low=0.2, clip_high=0.2)
    assert plain.tolist() == pytest.approx([-1.0, 1.6, -2.4, 3.0, -2.4, 10.0], rel=1e-14)
    # dual clip 3: for A < 0 at most 3 * 2 = 6
    dual = surrogate_loss(ratio, advantages, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    assert dual.tolist() == pytest.approx([-1.0, 1.6, -2.4, 3.0, -2.4, 6.0], rel=1e-14)
    # asymmetric: .9 below (max(r, .9) * 2 = 1.8) and 1.6 above (min(r, 1.6) * 2 = 3, 3.2)
    asymmetric = surrogate_loss(ratio, advantages, clip_low=0.1, clip_high=0.6)
    assert asymmetric.tolist() == pytest.approx([-1.0, 1.8, -3.0, 3.0, -3.2, 10.0], rel=1e-14)
    # no clip: -r A
    bare = surrogate_loss(ratio, advantages, clip_low=None, clip_high=None)
    assert bare.tolist() == pytest.approx([-1.0, 1.0, -3.0, 3.0, -10.0, 10.0], rel=1e-14)
    # one side only
    above = surrogate_loss(ratio, advantages, clip_low=None, clip_high=0.2)
    assert above.tolist() == pytest.approx([-1.0, 1.0, -2.4, 3.0, -2.4, 10.0], rel=1e-14)
    below = surrogate_loss(ratio, advantages, clip_low=0.2, clip_high=None)
    assert below.tolist() == pytest.approx([-1.0, 1.6, -3.0, 3.0, -10.0, 10.0], rel=1e-14)


@quick
@given(log_ratios, small, clips, clips, st.one_of(st.none(), st.sampled_from([1.5, 3.0])))
def test_surrogate_equals_its_cases(
    log_ratio: float, a: float, low: float | None, high: float | None, dual: float | None
) -> None:
    ratio = math.exp(log_ratio)
    loss = surrogate_loss(f64(ratio), f64(a), clip_low=low, clip_high=high, dual_clip=dual)
    assert loss.item() == pytest.approx(surrogate_by_cases(ratio, a, low, high, dual), rel=1e-14, abs=1e-300)


@quick
@given(log_ratios, small, st.sampled_from([0.05, 0.2, 0.5]))
def test_clipped_surrogate_is_a_pessimistic_bound(log_ratio: float, a: float, clip: float) -> None:
    ratio, advantage = f64(math.exp(log_ratio)), f64(a)
    bare = surrogate_loss(ratio, advantage, clip_low=None, clip_high=None).item()
    clipped = surrogate_loss(ratio, advantage, clip_low=clip, clip_high=clip).item()
    assert clipped >= bare
    if 1 - clip <= ratio.item() <= 1 + clip:
        assert clipped == bare
    assert surrogate_loss(ratio, advantage, clip_low=1e9, clip_high=1e9).item() == bare  # a wide clip is none
    dual = surrogate_loss(ratio, advantage, clip_low=clip, clip_high=clip, dual_clip=3.0).item()
    assert dual <= clipped and dual <= 3.0 * abs(a)
    if a >= 0:
        assert dual == clipped


def test_gradient_of_the_surrogate() -> None:
    """With respect to log pi: -r A where the clip does not act, exactly 0 where it does."""
    ratios, clip = [0.5, 0.79, 0.8, 1.0, 1.1, 1.21, 2.0, 4.0], 0.2
    for a in (2.0, -2.0):
        got = gradient(
            lambda x, a=a: surrogate_loss(x.exp(), torch.full_like(x, a), clip_low=clip, clip_high=clip),
            f64(*ratios).log(),
        )
        expected = [0.0 if (a > 0 and r > 1 + clip) or (a < 0 and r < 1 - clip) else -r * a for r in ratios]
        # 0.8 is the edge itself, where rounding may fall on either side
        keep = [i for i, r in enumerate(ratios) if r != 0.8]
        assert [got[i].item() for i in keep] == pytest.approx([expected[i] for i in keep], rel=1e-12, abs=0)
    # a dual clip of 3 stops the push at ratio 4 and A < 0, and nothing else
    dual = gradient(
        lambda x: surrogate_loss(x.exp(), torch.full_like(x, -2.0), clip_low=clip, clip_high=clip, dual_clip=3.0),
        f64(1.0, 2.0, 4.0).log(),
    )
    assert dual.tolist() == pytest.approx([2.0, 4.0, 0.0], rel=1e-12)


def test_gradient_at_ratio_one_is_the_policy_gradient() -> None:
    """On the first update every variant pushes alike, by -A: clip, no clip, dual clip and penalty."""
    advantages, old = f64(1.5, -0.5, 0.0), f64(-1.0, -2.0, -3.0)
    variants: list[Callable[[Tensor], Tensor]] = [
        lambda x: surrogate_loss(importance_ratio(x, old), advantages, clip_low=0.2, clip_high=0.2),
        lambda x: surrogate_loss(importance_ratio(x, old), advantages, clip_low=None, clip_high=None),
        lambda x: surrogate_loss(importance_ratio(x, old), advantages, clip_low=0.1, clip_high=0.3, dual_clip=2.0),
        lambda x: penalty_loss(importance_ratio(x, old), x - old, advantages, penalty_coef=3.0),
    ]
    for loss in variants:
        torch.testing.assert_close(gradient(loss, old), -advantages, rtol=1e-14, atol=1e-14)


# ---------------------------------------------------------------------------------------- PPO-penalty


def test_penalty_by_hand() -> None:
    # ratio 2, A 1.5, coef .5: -3 + .5 * (2 - 1 - log 2);  ratio .5, A -1: .5 + .5 * (.5 - 1 + log 2)
    log_ratio = f64(math.log(2), -math.log(2))
    loss = penalty_loss(log_ratio.exp(), log_ratio, f64(1.5, -1.0), penalty_coef=0.5)
    expected = [-3 + 0.5 * (1 - math.log(2)), 0.5 + 0.5 * (math.log(2) - 0.5)]
    assert loss.tolist() == pytest.approx(expected, rel=1e-14)
    bare = penalty_loss(log_ratio.exp(), log_ratio, f64(1.5, -1.0), penalty_coef=0.0)
    assert bare.tolist() == pytest.approx([-3.0, 0.5], rel=1e-14)


def test_penalty_keeps_the_denominators_apart() -> None:
    # detail 2: the ratio is against the reference (3), the KL against pi_old (log ratio 0, so none)
    assert penalty_loss(f64(3.0), f64(0.0), f64(2.0), penalty_coef=5.0).item() == -6.0


def test_penalty_is_the_kl_from_old_to_new_in_value_and_gradient() -> None:
    """Over a whole vocabulary: E_old[k] = KL(pi_old || pi), and its gradient by the logits is pi - pi_old."""
    torch.manual_seed(0)
    old = torch.log_softmax(torch.randn(6, dtype=torch.float64), 0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    new = torch.log_softmax(logits, 0)
    per_token = penalty_loss((new - old).exp(), new - old, torch.zeros(6, dtype=torch.float64), penalty_coef=1.0)
    expected = (old.exp() * per_token).sum()
    kl = math.fsum(math.exp(o) * (o - n) for o, n in zip(old.tolist(), new.tolist(), strict=True))
    reverse = math.fsum(math.exp(n) * (n - o) for o, n in zip(old.tolist(), new.tolist(), strict=True))
    assert expected.item() == pytest.approx(kl, rel=1e-12) and abs(kl - reverse) > 0.01
    expected.backward()
    torch.testing.assert_close(logits.grad, (new.exp() - old.exp()).detach(), rtol=1e-10, atol=1e-12)


def test_penalty_is_constant_where_the_ratio_is() -> None:
    x = torch.tensor([MAX_LOG_RATIO + 1, MAX_LOG_RATIO + 70])
    loss = penalty_loss(torch.zeros(2), x, torch.zeros(2), penalty_coef=1.0)
    assert loss.tolist() == pytest.approx([math.exp(20) - 21] * 2, rel=1e-6)


# ---------------------------------------------------------------------------------------- value loss


def test_value_loss_by_hand() -> None:
    values, old, returns = f64(1, 1, 0.6, -1), f64(0.5, 0.5, 0.5, 0), f64(2, 0, 2, -3)
    # plain: 1, 1, 1.4^2 = 1.96, 4, all halved
    assert value_loss(values, old, returns, clip=None).tolist() == pytest.approx([0.5, 0.5, 0.98, 2.0], rel=1e-14)
    # clipped values .7, .7, .6, -.2: squares 1.69, .49, 1.96, 7.84; the larger of the two, halved
    assert value_loss(values, old, returns, clip=0.2).tolist() == pytest.approx([0.845, 0.5, 0.98, 3.92], rel=1e-14)


@quick
@given(small, small, small, st.one_of(st.none(), st.sampled_from([0.05, 0.2, 2.0])))
def test_value_loss_equals_its_cases(v: float, old: float, target: float, clip: float | None) -> None:
    expected = (v - target) ** 2 / 2
    if clip is not None:
        bounded = min(max(v, old - clip), old + clip)
        expected = max(expected, (bounded - target) ** 2 / 2)
    loss = value_loss(f64(v), f64(old), f64(target), clip=clip).item()
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-14)
    assert loss >= value_loss(f64(v), f64(old), f64(target), clip=None).item()
    wide = value_loss(f64(v), f64(old), f64(target), clip=1e9).item()  # a wide clip is none, but for rounding
    assert wide == pytest.approx((v - target) ** 2 / 2, rel=1e-12, abs=1e-14)


def test_gradient_of_the_value_loss() -> None:
    # inside the clip V - R; beyond it, going away from R: V - R; beyond it, having gone towards R: 0
    values, old, returns = f64(0.6, 1.0, 1.0, 0.5), f64(0.5, 0.5, 0.5, 0.5), f64(2.0, 0.0, 2.0, 0.5)
    got = gradient(lambda v: value_loss(v, old, returns, clip=0.2), values)
    assert got.tolist() == pytest.approx([-1.4, 1.0, 0.0, 0.0], rel=1e-14)
    plain = gradient(lambda v: value_loss(v, old, returns, clip=None), values)
    assert plain.tolist() == pytest.approx([-1.4, 1.0, -1.0, 0.0], rel=1e-14)


# ------------------------------------------------------------------------------------------- entropy


def test_entropy_loss_by_hand() -> None:
    # plain: -.01 * 2;  target 3.4: .01 * |2 - 3.4| = .014;  target 1.5: .01 * .5
    assert entropy_loss(f64(2.0), coef=0.01, target=None).item() == pytest.approx(-0.02, rel=1e-14)
    assert entropy_loss(f64(2.0), coef=0.01, target=3.4).item() == pytest.approx(0.014, rel=1e-14)
    assert entropy_loss(f64(2.0), coef=0.01, target=1.5).item() == pytest.approx(0.005, rel=1e-14)


def test_entropy_target_pulls_from_both_sides_and_out_of_reach_is_a_plain_bonus() -> None:
    def slope(target: float | None) -> float:
        return gradient(lambda h: entropy_loss(h, coef=0.01, target=target), f64(2.0)).item()

    assert slope(None) == -0.01  # more entropy, smaller loss
    assert slope(35.0) == slope(30.0) == -0.01  # the paper's settings: beyond ln V, so never reached
    assert slope(1.5) == 0.01


# ----------------------------------------------------------------------------------- normalisation


def test_normalisation_oracle() -> None:
    """The mean over the step, not the mean of the micro-batches' means (3.25)."""
    micro_batches, width = [[1.0, 2.0], [3.0, 4.0, 5.0, 6.0, 7.0]], 5
    padded = torch.tensor([m + [math.nan] * (width - len(m)) for m in micro_batches])
    mask = torch.tensor([[t < len(m) for t in range(width)] for m in micro_batches])
    tokens = int(mask.sum())
    parts = [torch.where(mask[i], padded[i], 0).sum().item() / tokens for i in range(2)]
    assert sum(parts) == pytest.approx(4.0, rel=1e-6)
    assert masked_mean(padded, mask).item() == 4.0


@quick
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**31), st.data())
def test_loss_and_gradient_do_not_depend_on_micro_batches(b: int, t: int, seed: int, data: st.DataObject) -> None:
    """Sum over valid tokens / tokens of the step, for any cut of the rows and any padding: one loss, one gradient."""
    g = torch.Generator().manual_seed(seed)
    logprobs, old, advantages, values, old_values, returns = (
        torch.randn(b, t, generator=g, dtype=torch.float64) for _ in range(6)
    )
    mask = torch.rand(b, t, generator=g) > 0.4
    mask[0, 0] = True
    tokens = mask.sum()

    def step(cuts: list[int], pad: int) -> tuple[float, Tensor, Tensor]:
        x, v = logprobs.clone().requires_grad_(True), values.clone().requires_grad_(True)
        total = 0.0
        for start, end in zip([0, *cuts], [*cuts, b], strict=True):

            def rows(z: Tensor, fill: float = 7.0, start: int = start, end: int = end) -> Tensor:
                return torch.nn.functional.pad(z[start:end], (pad, pad), value=fill)

            ratio = importance_ratio(rows(x), rows(old))
            loss = surrogate_loss(ratio, rows(advantages), clip_low=0.2, clip_high=0.2)
            loss = loss + value_loss(rows(v), rows(old_values), rows(returns), clip=0.2)
            valid = torch.nn.functional.pad(mask[start:end], (pad, pad), value=False)
            part = torch.where(valid, loss, 0).sum() / tokens
            if part.requires_grad:
                part.backward()
            total += part.item()
        assert x.grad is not None and v.grad is not None
        return total, x.grad, v.grad

    whole = step([], 0)
    split = step(sorted(data.draw(st.lists(st.integers(0, b), max_size=4))), data.draw(st.integers(0, 3)))
    for one, other in zip(whole, split, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-13)


def test_garbage_in_a_gap_reaches_no_gradient() -> None:
    """Finite garbage: a masked token's loss is dropped before the sum, so its log-probability gets gradient 0."""
    x = torch.tensor([[-1.0, -500.0, -2.0]], requires_grad=True)
    ratio = importance_ratio(x, torch.tensor([[-1.0, 500.0, -2.5]]))
    loss = surrogate_loss(ratio, torch.tensor([[1.0, 1e9, -1.0]]), clip_low=0.2, clip_high=0.2)
    torch.where(torch.tensor([[True, False, True]]), loss, 0).sum().backward()
    assert x.grad is not None
    assert x.grad[0].tolist() == pytest.approx([-1.0, 0.0, math.exp(0.5)], rel=1e-6)
