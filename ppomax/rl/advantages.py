"""Generalised advantage estimation and the critic's targets (detail 10)."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns A + V, both (B, T) and 0 outside the mask (eq. 9; lam 0 = eq. 10, lam 1 = eq. 11).

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t);  A_t = delta_t + gamma lam A_{t+1}. The next state of the last token is
    terminal. Gaps in the mask are stepped over: t + 1 is the next *valid* token, and what stands in a gap, NaN
    included, never matters. Computed in float32 or better, whatever comes in.
    """
    # whole numbers or bf16 would otherwise truncate every advantage in silence
    dtype = torch.promote_types(torch.promote_types(rewards.dtype, values.dtype), torch.float32)
    rewards, values = rewards.to(dtype), values.to(dtype)
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        valid = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = torch.where(valid, advantage, 0)
        next_advantage = torch.where(valid, advantage, next_advantage)
        next_value = torch.where(valid, values[:, t], next_value)
    return advantages, torch.where(mask, advantages + values, 0)


def reward_to_go(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """Discounted sum of rewards from each valid token on, (B, T), 0 outside the mask (eq. 16)."""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)[0]


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over valid tokens; 0 when the returns are constant.

    Returns are advantages + values, rounded: constant ones differ by as much as a number of their type can.
    """
    rounding = 4 * torch.finfo(torch.promote_types(values.dtype, returns.dtype)).eps
    v, r = values[mask].double(), returns[mask].double()
    if r.numel() < 2 or r.std() <= rounding * max(r.abs().max(), v.abs().max()):
        return 0.0
    return 1.0 - ((r - v).var() / r.var()).item()
