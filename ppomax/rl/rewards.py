"""From one score a response to one reward a token: penalties, details 4 and 5, and the KL penalty (detail 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ppomax.rl.losses import MAX_LOG_RATIO
from ppomax.rl.moments import RunningMoments


def penalise(
    scores: Tensor, lengths: Tensor, finished: Tensor, *, missing_eos_penalty: float = 0.0, length_penalty: float = 0.0
) -> Tensor:
    """Scores (B,) less a fixed amount where no end of sequence came and an amount for each token."""
    return scores - missing_eos_penalty * (~finished).to(scores.dtype) - length_penalty * lengths.to(scores.dtype)


def shape_scores(
    scores: Tensor, moments: RunningMoments, *, scale: bool = False, normalise: bool = False, clip: float | None = None
) -> Tensor:
    """Details 4 and 5 on scores (B,), by historical moments that already contain this batch (eq. 18).

    ``normalise``: clip((r - mean) / std, -delta, delta); ``scale``: the mean is not subtracted. Neither: only the clip.
    """
    if scale and normalise:
        raise ValueError("scale and normalise exclude each other")
    if normalise:
        scores = (scores - moments.mean) / moments.std
    elif scale:
        scores = scores / moments.std
    return scores if clip is None else scores.clamp(-clip, clip)


def _at_least_float32(x: Tensor) -> Tensor:
    """Small types lose what is added or raised here: float16 ends at 65504, and bf16 has three digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: Literal["k1", "k2", "k3"] = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens drawn from the policy; any shape.

    k1 = log pi - log ref: unbiased, can be negative. k2 = k1^2 / 2: biased, never negative.
    k3 = exp(-k1) - 1 + k1: unbiased and never negative; exp stays below exp(20), so that one token cannot make it inf.
    """
    k1 = _at_least_float32(logprobs) - _at_least_float32(ref_logprobs)
    if kind == "k1":
        return k1
    if kind == "k2":
        return k1.square() / 2
    if kind == "k3":
        return torch.expm1((-k1).clamp(max=MAX_LOG_RATIO)) + k1.clamp(min=-MAX_LOG_RATIO)
    raise ValueError(f"unknown KL estimator {kind!r}")


def last_index(mask: Tensor) -> Tensor:
    """Column (B,) of the last True in each row of ``mask`` (B, T); rows without one are an error."""
    if not bool(mask.any(dim=1).all()):
        raise ValueError("a response has no valid token")
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, columns, -1).max(dim=1).values


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Rewards (B, T): ``-kl_coef * kl`` at every response token, plus the score at the last one (eq. 3, 19)."""
    kind = torch.promote_types(_at_least_float32(scores).dtype, kl.dtype)
    rewards = torch.where(mask, -kl_coef * kl.to(kind), 0)
    return rewards.scatter_add(1, last_index(mask)[:, None], scores.to(kind)[:, None])


@dataclass
class KLController:
    """kl_coef, fixed or steered towards ``target`` nats a response in proportion to the error.

    Adaptive: coef *= 1 + clip(kl / target - 1, -.2, .2) * samples / horizon. Part of every checkpoint.
    """

    coef: float
    adaptive: bool = False
    target: float = 6.0
    horizon: int = 10000

    def update(self, sequence_kl: float, samples: int) -> None:
        """Take in the mean KL a response (nats) of ``samples`` responses."""
        if self.adaptive:
            error = min(max(sequence_kl / self.target - 1.0, -0.2), 0.2)
            self.coef *= 1.0 + error * samples / self.horizon

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = float(state["coef"])
