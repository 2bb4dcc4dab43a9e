"""Learning-rate courses, AdamW's groups and the gradient norm clip, by hand."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ppomax.config import OptimConfig
from ppomax.train.optim import clip_gradients, gradient_norm, learning_rate, make_optimizer, set_learning_rate

quick = settings(max_examples=60, deadline=None)


def course(total: int, **options: object) -> list[float]:
    config = OptimConfig(lr=1.0, **options)  # type: ignore[arg-type]
    return [learning_rate(config, u, total) for u in range(total)]


# ----------------------------------------------------------------------------------------- schedules


def test_warmup_rises_in_equal_steps_to_the_peak() -> None:
    # 10% of 40 updates = 4: 1/4, 2/4, 3/4, 4/4
    assert course(40, schedule="constant", warmup=0.1) == [0.25, 0.5, 0.75, 1.0] + [1.0] * 36
    assert course(4, schedule="cosine", warmup=1.0) == [0.25, 0.5, 0.75, 1.0]
    assert course(3, schedule="constant", warmup=0.0) == [1.0] * 3


def test_cosine_by_hand() -> None:
    # 21 updates, 2 of warm-up, so update 2 + k is k / 18 of the way: k = 6 -> (1 - cos 60) / 2 = .25 of the fall of .9
    rates = course(21, schedule="cosine", warmup=0.1, min_lr_ratio=0.1)
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[8] == pytest.approx(1 - 0.9 * 0.25, rel=1e-12)
    assert rates[11] == pytest.approx(0.55, rel=1e-12)
    assert rates[14] == pytest.approx(1 - 0.9 * 0.75, rel=1e-12)
    assert rates[20] == pytest.approx(0.1, rel=1e-12)


def test_linear_by_hand() -> None:
    rates = course(21, schedule="linear", warmup=0.1, min_lr_ratio=0.1)
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[8] == pytest.approx(1 - 0.9 / 3, rel=1e-12)
    assert rates[20] == pytest.approx(0.1, rel=1e-12)
    assert course(3, schedule="linear", warmup=0.0, min_lr_ratio=0.0) == [1.0, 0.5, 0.0]


def test_inverse_square_root_by_hand() -> None:
    # warm-up 4 updates: the 4th has the peak, the 16th sqrt(4 / 16), the 36th sqrt(4 / 36)
    rates = course(40, schedule="inverse_sqrt", warmup=0.1)
    assert rates[3] == 1.0
    assert rates[15] == pytest.approx(0.5, rel=1e-12) and rates[35] == pytest.approx(1 / 3, rel=1e-12)
    assert course(4, schedule="inverse_sqrt", warmup=0.0)[3] == pytest.approx(0.5, rel=1e-12)


@quick
@given(
    st.sampled_from(["constant", "linear", "cosine", "inverse_sqrt"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 200),
)
def test_courses_rise_to_the_peak_and_never_again(schedule: str, warmup: float, floor: float, total: int) -> None:
    config = OptimConfig(lr=1.0, schedule=schedule, warmup=warmup, min_lr_ratio=floor)  # type: ignore[arg-type]
    rates = [learning_rate(config, u, total) for u in range(total + 3)]  # some past the end
    top = max(round(warmup * total) - 1, 0)
    assert rates[top] == 1.0 and max(rates) == 1.0 and min(rates) >= 0
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[top:]))
    if schedule in ("linear", "cosine"):
        assert min(rates[top:]) >= floor - 1e-12
        if total > top + 2:
            assert rates[total - 1] == rates[-1] == pytest.approx(floor, abs=1e-12)


def test_set_learning_rate_reaches_every_group() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), OptimConfig(lr=1.0))
    set_learning_rate(optimizer, 0.25)
    assert [g["lr"] for g in optimizer.param_groups] == [0.25, 0.25]


# --------------------------------------------------------------------------------------------- AdamW


def test_weight_decay_acts_on_matrices_only() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        # without a gradient only the decay acts: times 1 - .1 * .5
        torch.testing.assert_close(p.detach(), old * 0.95 if p.ndim >= 2 else old, rtol=1e-6, atol=0)


def test_first_step_by_hand() -> None:
    # Adam's first step is lr * g / (|g| + eps), whatever the betas: 1 - .1 * 2 / (2 + 2) = .95
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, eps=2.0, betas=(0.5, 0.75)))
    model.weight.grad = torch.full((1, 1), 2.0)
    optimizer.step()
    assert model.weight.item() == pytest.approx(0.95, rel=1e-6)
    # second gradient 0: m = .5 * (.5 * 2) = .5, m^ = .5 / .75; v = .75 * (.25 * 4) = .75, v^ = .75 / .4375
    model.weight.grad = torch.zeros(1, 1)
    optimizer.step()
    step = 0.1 * (0.5 / 0.75) / (math.sqrt(0.75 / 0.4375) + 2.0)
    assert model.weight.item() == pytest.approx(0.95 - step, rel=1e-6)


def test_frozen_parameters_are_left_out_and_tied_ones_counted_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    model["c"].requires_grad_(False)
    optimizer = make_optimizer(model, OptimConfig())
    held = [p for g in optimizer.param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(model["a"].weight), id(model["a"].bias), id(model["b"].bias)}
    assert len(held) == 3


def test_moments_are_there_from_the_beginning_and_steps_are_plain_adamw_to_the_bit() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(5, 3), "idle": nn.Linear(2, 2)})
    twin = copy.deepcopy(model)
    config = OptimConfig(lr=0.01, weight_decay=0.1, betas=(0.8, 0.95))
    ours = make_optimizer(model, config)
    assert all(set(ours.state[p]) == {"step", "exp_avg", "exp_avg_sq"} for p in model.parameters())
    plain = torch.optim.AdamW(  # whose moments come with the first step
        [{"params": [p for p in twin.parameters() if p.ndim >= 2], "weight_decay": 0.1},
         {"params": [p for p in twin.parameters() if p.ndim < 2], "weight_decay": 0.0}],
        lr=0.01, betas=(0.8, 0.95), eps=config.eps, fused=True,
    )  # fmt: skip
    for _ in range(3):
        x = torch.randn(4, 5)
        for each, optimizer in ((model, ours), (twin, plain)):
            each["used"](x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(model["used"].parameters(), twin["used"].parameters(), strict=True):
        assert all(torch.equal(ours.state[a][k], plain.state[b][k]) for k in ours.state[a])
    assert ours.state[model["idle"].weight]["step"] == 0, "nothing came for it: it was left alone"


# --------------------------------------------------------------------------------- gradient norm clip


def pair() -> tuple[nn.Module, nn.Module]:
    """Two models with gradients (3, 0) and (0, 4): norms 3 and 4, together 5."""
    a, b = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    a.weight.grad, b.weight.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    return a, b


def gradients(*models: nn.Module) -> list[list[float]]:
    return [p.grad.flatten().tolist() for m in models for p in m.parameters() if p.grad is not None]


def test_separate_clip_by_hand() -> None:
    a, b = pair()
    assert clip_gradients(a, b, max_norm=3.5) == [3.0, 4.0]  # norms before clipping
    first, second = gradients(a, b)
    assert first == [3.0, 0.0]  # 3 < 3.5: untouched
    assert second == pytest.approx([0.0, 3.5], rel=1e-6)


def test_joint_clip_by_hand() -> None:
    a, b = pair()
    assert clip_gradients(a, b, max_norm=3.5, joint=True) == [3.0, 4.0]
    first, second = gradients(a, b)
    assert first == pytest.approx([3 * 0.7, 0.0], rel=1e-6)  # 3.5 / 5 = .7 for both, though a alone is below 3.5
    assert second == pytest.approx([0.0, 4 * 0.7], rel=1e-6)
    a, b = pair()
    clip_gradients(a, b, max_norm=6.0, joint=True)
    assert gradients(a, b) == [[3.0, 0.0], [0.0, 4.0]]


def test_no_clip_still_measures() -> None:
    a, b = pair()
    assert clip_gradients(a, b, max_norm=0.0) == [3.0, 4.0]
    assert clip_gradients(a, b, max_norm=0.0, joint=True) == [3.0, 4.0]
    assert gradients(a, b) == [[3.0, 0.0], [0.0, 4.0]]


@pytest.mark.parametrize("joint", [False, True])
def test_a_model_without_gradients_counts_nothing(joint: bool) -> None:
    a, b = pair()
    a.weight.grad = None  # the policy while the critic is pre-trained
    assert clip_gradients(a, b, max_norm=1.0, joint=joint) == [0.0, 4.0]
    assert a.weight.grad is None
    assert gradients(b) == [pytest.approx([0.0, 1.0], rel=1e-6)]


def test_norm_over_several_parameters() -> None:
    model = nn.Linear(2, 2)
    model.weight.grad, model.bias.grad = torch.tensor([[1.0, 2.0], [2.0, 4.0]]), torch.tensor([0.0, 12.0])
    assert gradient_norm(model.parameters()).item() == pytest.approx(13.0, rel=1e-6)  # 1 + 4 + 4 + 16 + 144 = 169
    assert gradient_norm(nn.Linear(2, 2).parameters()).item() == 0.0
    clip_gradients(model, max_norm=1.3)
    assert gradient_norm(model.parameters()).item() == pytest.approx(1.3, rel=1e-6)
    torch.testing.assert_close(model.bias.grad, torch.tensor([0.0, 1.2]), rtol=1e-6, atol=0)
