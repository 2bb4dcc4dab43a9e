"""Numbers that tell how PPO is going, from one iteration's experience. Defined in docs/metrics.md.

Everything here is arithmetic on tensors: no model, no configuration.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppomax.rl.advantages import explained_variance
from ppomax.rl.moments import masked_mean
from ppomax.rl.rewards import kl_estimate


def perplexity(logprobs: Tensor, mask: Tensor) -> float:
    """True perplexity of the policy on its own responses: exp(sum NLL / response tokens), from (B, T)."""
    return torch.exp(-masked_mean(logprobs.double(), mask)).item()  # a tensor overflows to inf, math.exp raises


def perplexity_moss(sequence_nll: Tensor, mask: Tensor) -> float:
    """The released code's figure: exp(sum over samples of mean NLL, prompt included / response tokens of the batch).

    ``sequence_nll`` (B,) holds those means. It is not a perplexity: it falls as responses grow.
    """
    return torch.exp(sequence_nll.double().sum() / mask.sum()).item()


def experience_metrics(
    *, scores: Tensor, shaped: Tensor, logprobs: Tensor, ref_logprobs: Tensor, entropy: Tensor, sequence_nll: Tensor,
    values: Tensor, returns: Tensor, mask: Tensor, finished: Tensor,
) -> dict[str, float]:  # fmt: skip
    """Metrics of one iteration's samples; (B,) and (B, T) tensors as in `Experience`, ``shaped`` after details 4, 5."""
    lengths = mask.sum(dim=1).double()
    k1 = kl_estimate(logprobs.double(), ref_logprobs.double(), "k1")
    k2 = kl_estimate(logprobs.double(), ref_logprobs.double(), "k2")
    k3 = kl_estimate(logprobs.double(), ref_logprobs.double(), "k3")
    return {
        "reward/mean": scores.double().mean().item(),
        "reward/std": scores.double().std().item() if scores.numel() > 1 else 0.0,
        "reward/shaped_mean": shaped.double().mean().item(),
        "kl/ref": masked_mean(k1, mask).item(),
        "kl/ref_k2": masked_mean(k2, mask).item(),
        "kl/ref_k3": masked_mean(k3, mask).item(),
        "kl/ref_sequence": torch.where(mask, k1, 0).sum(dim=1).mean().item(),
        "response/length": lengths.mean().item(),
        "response/length_std": lengths.std().item() if lengths.numel() > 1 else 0.0,
        "response/truncated": (~finished).double().mean().item(),
        "policy/perplexity": perplexity(logprobs, mask),
        "policy/perplexity_moss": perplexity_moss(sequence_nll, mask),
        "policy/entropy": masked_mean(entropy.double(), mask).item(),
        "value/mean": masked_mean(values.double(), mask).item(),
        "value/explained_variance": explained_variance(values, returns, mask),
    }
