"""Per-token losses of PPO. The caller sums them over valid tokens and divides by the tokens of the whole step."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp(20) = 5e8: beyond it the ratio would overflow, and 0 * inf in the clipped branch's gradient would be NaN"""


def importance_ratio(logprobs: Tensor, denominator: Tensor) -> Tensor:
    """pi(a|s) / pi_denominator(a|s), any shape. Detail 2 decides what the denominator is."""
    return torch.exp((logprobs - denominator).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))


def surrogate_loss(
    ratio: Tensor,
    advantages: Tensor,
    *,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO-clip (eq. 15, detail 11): -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A), any shape.

    ``None`` leaves that side open. ``dual_clip`` c > 1 bounds the loss for negative advantages by c |A|.
    """
    unclipped = ratio * advantages
    objective = unclipped
    if clip_low is not None or clip_high is not None:
        low = None if clip_low is None else 1.0 - clip_low
        high = None if clip_high is None else 1.0 + clip_high
        objective = torch.minimum(unclipped, ratio.clamp(low, high) * advantages)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    return -objective


def penalty_loss(ratio: Tensor, log_ratio: Tensor, advantages: Tensor, *, penalty_coef: float) -> Tensor:
    """PPO-penalty (eq. 14): -ratio A + penalty_coef * KL(pi_old || pi), any shape.

    The KL is estimated on tokens of pi_old by ratio - 1 - log ratio (k3), whose mean and gradient are unbiased.
    ``log_ratio`` and the KL's ratio are against pi_old, whatever denominator ``ratio`` has.
    Above MAX_LOG_RATIO it is constant, as the ratio is.
    """
    log_ratio = log_ratio.clamp(max=MAX_LOG_RATIO)
    return -ratio * advantages + penalty_coef * (torch.expm1(log_ratio) - log_ratio)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None) -> Tensor:
    """Half the squared error; with detail 7 the larger of plain and clipped, max((V-R)^2, (clip(V)-R)^2) / 2."""
    loss = (values - returns).square()
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, (clipped - returns).square())
    return loss / 2


def entropy_loss(mean_entropy: Tensor, *, coef: float, target: float | None) -> Tensor:
    """Detail 3 on the mean token entropy in nats: -coef * H, or coef * |H - target| (the released code's form)."""
    return -coef * mean_entropy if target is None else coef * (mean_entropy - target).abs()
