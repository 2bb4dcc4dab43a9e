"""From logits to tokens: repetition penalty, temperature, top-k, top-p, and a draw from one uniform number a row.

The order is that of transformers: penalty, temperature, top-k, top-p. Drawing by inverse transform from the row's own
random numbers makes a sample independent of the batch, of finished neighbours and of the number of ranks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppomax.config import SamplingConfig

NUCLEUS_GUESS = 256
"""top-p first looks at this many tokens: if they hold the nucleus, the whole vocabulary need not be sorted"""


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) with those of ``seen`` (B, V) tokens divided (positive) or multiplied (negative) by ``penalty``."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Only the k largest logits of each row survive; ties with the k-th survive too."""
    if k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def largest(probs: Tensor, count: int) -> Tensor:
    """The ``count`` largest of each row of (B, V), in descending order.

    On a CPU numpy sorts values thirty times as fast as torch (64 against 2 ms for 32 rows of 32000).
    """
    if probs.device.type != "cpu":
        return probs.topk(count, dim=-1).values
    values, size = probs.numpy(), probs.shape[-1]
    if count < size:
        values = np.partition(values, size - count, axis=-1)[:, size - count :]
    return torch.from_numpy(np.sort(values, axis=-1)).flip(-1)


def keep_nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Probabilities (B, V) with all but the nucleus set to 0 (not renormalised).

    The nucleus is the shortest run of likeliest tokens whose total reaches ``top_p``; at least one token. Of tokens that
    tie with its last member, those of the smallest ids are kept.
    """
    count = min(NUCLEUS_GUESS, probs.shape[-1])
    values = largest(probs, count)
    if count < probs.shape[-1] and bool((values.sum(dim=-1) < top_p).any()):
        values = largest(probs, probs.shape[-1])
    size = (values.cumsum(dim=-1) - values < top_p).sum(dim=-1, keepdim=True).clamp(min=1)  # (B, 1)
    last = values.gather(-1, size - 1)
    kept = probs >= last
    surplus = kept.sum(dim=-1, keepdim=True) - size  # tokens that tie with the last one and are too many
    if bool((surplus > 0).any()):
        tied = probs == last
        kept &= ~(tied & (tied.cumsum(dim=-1) > tied.sum(dim=-1, keepdim=True) - surplus))
    return probs.masked_fill(~kept, 0.0)


GREEDY_BELOW = 1e-6
"""temperature: logits divided by less need not be finite"""


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """One token (B,) a row from weights (B, V), need not sum to 1, by inverse transform of ``uniform`` (B,) in [0, 1).

    A token of weight 0 is never drawn.
    """
    cdf = probs.cumsum(dim=-1)
    drawn = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True).squeeze(-1)
    # rounding can put the point at the very end of the scale, past the last token
    return torch.where(drawn < probs.shape[-1], drawn, probs.argmax(dim=-1))


def next_tokens(logits: Tensor, uniform: Tensor, seen: Tensor | None, config: SamplingConfig) -> Tensor:
    """Next token (B,) of every row from raw logits (B, V)."""
    logits = logits.float()
    if seen is not None:
        logits = penalise_repetition(logits, seen, config.repetition_penalty)
    if config.temperature < GREEDY_BELOW:
        return logits.argmax(dim=-1)
    if config.temperature != 1:
        logits = logits / config.temperature
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    probs = logits.softmax(dim=-1)
    if config.top_p < 1:
        probs = keep_nucleus(probs, config.top_p)
    return draw(probs, uniform)
