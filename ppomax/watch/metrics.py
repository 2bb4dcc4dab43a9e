"""Numbers that tell how PPO is going, from one iteration's experience. Defined in docs/metrics.md.

Everything here is arithmetic on tensors: no model, no configuration.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import chain
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppomax.rl.advantages import explained_variance
from ppomax.rl.moments import masked_mean, masked_var
from ppomax.rl.rewards import kl_estimate

ESTIMATORS: tuple[Literal["k1", "k2", "k3"], ...] = ("k1", "k2", "k3")
REPEATED_NGRAM = 4
"""tokens of a sequence that counts as repeated when a response has it again"""


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
    values: Tensor, advantages: Tensor, returns: Tensor, mask: Tensor, finished: Tensor,
) -> dict[str, float]:  # fmt: skip
    """Metrics of one iteration's samples; (B,) and (B, T) tensors as in `Experience`, ``shaped`` after details 4, 5."""
    lengths = mask.sum(dim=1).double()
    k1, k2, k3 = (kl_estimate(logprobs.double(), ref_logprobs.double(), kind) for kind in ESTIMATORS)
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
        "advantage/mean": masked_mean(advantages.double(), mask).item(),
        "advantage/std": masked_var(advantages.double(), mask).sqrt().item(),
        **reward_shape(scores),
        **position_metrics(logprobs, ref_logprobs, mask),
    }


def reward_shape(scores: Tensor, name: str = "reward/") -> dict[str, float]:
    """Quantiles and skewness of the scores (B,): the right tail of Fig. 13. Skewness is 0 where all are equal."""
    values = scores.double()
    low, middle, high = torch.quantile(values, torch.tensor([0.05, 0.5, 0.95], dtype=torch.double)).tolist()
    unit = values.abs().max().clamp(min=torch.finfo(torch.double).tiny)  # powers of tiny scores would vanish
    centred = (values - values.mean()) / unit
    variance = (centred**2).mean()
    # the mean of equal scores is off by rounding: their variance is then not 0, and their skewness 1 or -1
    std = variance.sqrt()
    skewness = ((centred / std) ** 3).mean().item() if std > 1e-12 else 0.0
    return {f"{name}p5": low, f"{name}p50": middle, f"{name}p95": high, f"{name}skewness": skewness}


def position_metrics(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """k1 (nats a token) over the first, middle and last third of each response's own tokens, from (B, T) tensors.

    Token i of n (from 0) lies in third 3 i // n; a third that has no token in any response is left out.
    """
    k1 = kl_estimate(logprobs.double(), ref_logprobs.double(), "k1")
    place = mask.long().cumsum(dim=1) - 1
    third = 3 * place // mask.sum(dim=1, keepdim=True).clamp(min=1)
    parts = {name: mask & (third == i) for i, name in enumerate(("first", "middle", "last"))}
    return {f"kl/{name}_third": masked_mean(k1, part).item() for name, part in parts.items() if part.any()}


def response_metrics(ids: Sequence[Sequence[int]], texts: Sequence[str]) -> dict[str, float]:
    """Diversity and repetition of one iteration's responses: token ids, and the same as texts.

    Where no response has two tokens there is no distinct-2 (Li et al. 2016).
    """
    lengths = torch.tensor([float(len(row)) for row in ids], dtype=torch.double)
    low, high = torch.quantile(lengths, torch.tensor([0.05, 0.95], dtype=torch.double)).tolist()
    different, pairs, repeats, grams = repetition(ids)
    joined = "\n".join(texts).encode()
    numbers = {"response/distinct_2": different / pairs} if pairs else {}
    return numbers | {
        "response/length_p5": low,
        "response/length_p95": high,
        "response/distinct": len(set(texts)) / len(texts),
        "response/repeated_ngram_rate": repeats / max(grams, 1),
        "response/compression": len(zlib.compress(joined, 6)) / max(len(joined), 1),
    }


def repetition(ids: Sequence[Sequence[int]]) -> tuple[int, int, int, int]:
    """(different pairs, all pairs, repeated 4-token sequences, all of them) over rows of token ids (not negative).

    Pairs of neighbouring tokens differ over all rows; a 4-token sequence is a repeat where its own row had it before. None
    reaches from one row into the next.
    """
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    tokens = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=int(lengths.sum()))
    rows = np.repeat(np.arange(len(ids)), lengths)
    if len(tokens) < 2:
        return 0, 0, 0, 0
    pairs = tokens[:-1] * (tokens.max() + 1) + tokens[1:]
    within = rows[:-1] == rows[1:]
    # Four tokens of a large vocabulary do not fit into 63 bits; the numbers of two pairs and of a row do.
    numbered = np.unique(pairs, return_inverse=True)[1]
    keys = (rows[:-3] * len(pairs) + numbered[:-2]) * len(pairs) + numbered[2:]
    grams = keys[rows[:-3] == rows[3:]]
    return _different(pairs[within]), int(within.sum()), len(grams) - _different(grams), len(grams)


def _different(keys: NDArray[np.int64]) -> int:
    """How many different ones. Without return_inverse, np.unique hashes, and takes a hundred times longer than this."""
    return int(np.count_nonzero(np.diff(np.sort(keys)))) + (len(keys) > 0)
