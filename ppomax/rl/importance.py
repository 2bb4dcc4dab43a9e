"""When another engine than the policy draws the samples: how far its probabilities are off, and a correction.

The sampler mu and the policy pi hold the same weights, but not the same arithmetic (kernels, precision, batch shapes), so
that log mu and log pi of a token differ a little. Samples are then not quite those of the policy that PPO takes them for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppomax.rl.losses import MAX_LOG_RATIO
from ppomax.rl.moments import masked_mean


def truncated_importance(logprobs: Tensor, sampler_logprobs: Tensor, clip: float) -> Tensor:
    """Weight of each token's policy loss, any shape: w = min(pi_old / mu, clip) = min(exp(log pi_old - log mu), clip).

    E_mu[w f] = E_pi_old[f] where no weight is cut (importance sampling); the cut bounds the variance at the price of a bias
    towards tokens that the sampler draws too rarely. A constant to the gradient.
    """
    return torch.exp((logprobs - sampler_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)).clamp(max=clip).detach()


def sampler_metrics(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, clip: float | None) -> dict[str, float]:
    """Metrics of the gap, from (B, T) log-probabilities of the drawn tokens by policy and sampler.

    rollout/logprob_gap: mean over tokens of |log mu - log pi|, in nats; rollout/logprob_gap_max: the largest;
    rollout/kl: KL(mu || pi) a token by k3 on mu's samples, E[r - 1 - log r] with r = pi / mu, never negative; and with
    ``clip`` the mean of `truncated_importance` and the share of tokens that it cuts.
    """
    log_ratio = torch.where(mask, logprobs.double() - sampler_logprobs.double(), 0.0)
    bounded = log_ratio.clamp(max=MAX_LOG_RATIO)
    numbers = {
        "rollout/logprob_gap": masked_mean(log_ratio.abs(), mask).item(),
        "rollout/logprob_gap_max": log_ratio.abs().max().item(),
        "rollout/kl": masked_mean(torch.expm1(bounded) - bounded, mask).item(),
    }
    if clip is not None:
        weights = truncated_importance(logprobs.double(), sampler_logprobs.double(), clip)
        numbers["rollout/importance_mean"] = masked_mean(weights, mask).item()
        numbers["rollout/importance_clipped"] = masked_mean((log_ratio.exp() > clip).double(), mask).item()
    return numbers
