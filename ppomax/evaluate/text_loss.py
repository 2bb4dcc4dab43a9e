"""Language-modelling loss on held-out text, beside the exam: what else did the model forget (the *alignment tax*)?

The loss is the mean negative log-probability of the text's tokens in nats, the end-of-sequence token not among them. Models
with different tokenizers can only be compared in bits a byte (UTF-8), which is given as well. A text that is longer than
the context is read in windows that follow each other, each with the last token of the one before as its context.
Intervals are 95%, by bootstrap over texts; differences between models are taken on the same resampled texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ppomax.data.chat import ChatFormat
from ppomax.evaluate.exam_scoring import Encoded, log_likelihoods

RESAMPLES = 1000


def text_windows(chat: ChatFormat, text: str, room: int | None) -> list[list[int]]:
    """Ids in windows of at most ``room``, of which all but the first id are scored: each token of the text once.

    Before the first token stands bos, or eos where the tokenizer has no bos of its own.
    """
    ids = chat.encode_text(text)[:-1]
    eos = int(chat.tokenizer.eos_token_id)
    if chat.bos_id is None or chat.bos_id == eos:
        ids = [eos, *ids]
    step = max(1, room - 1) if room is not None else max(1, len(ids))
    return [ids[start : start + step + 1] for start in range(0, len(ids) - 1, step)]


def text_losses(
    model: nn.Module, windows: Sequence[Sequence[list[int]]], device: torch.device, micro_batch_tokens: int,
    *, bf16: bool = False, step: Callable[[int], None] = lambda count: None,
) -> list[tuple[float, int]]:  # fmt: skip
    """(summed negative log-likelihood in nats, tokens) of each text; ``step`` is told the windows of each forward pass."""
    encoded = [Encoded([ids], 1, 0, False) for own in windows for ids in own]
    sums = iter(log_likelihoods(model, encoded, device, micro_batch_tokens, bf16=bf16, step=step))
    return [(-sum(next(sums)[0] for _ in own), sum(len(ids) - 1 for ids in own)) for own in windows]


def summarise_losses(
    losses: Mapping[str, Sequence[tuple[float, int]]], sizes: Sequence[int], *, seed: int = 0
) -> dict[str, Any]:
    """``models`` and ``against_first``, by model, of ``losses`` (nats, tokens) over the same texts of ``sizes`` bytes.

    Each value has a 95% interval. The difference in nats a token is None where the models cut texts into other tokens.
    """
    size = np.asarray(sizes, dtype=np.float64)
    nats = {name: np.array([nll for nll, _ in own]) for name, own in losses.items()}
    tokens = {name: np.array([n for _, n in own], dtype=np.float64) for name, own in losses.items()}
    drawn = np.random.default_rng(seed).integers(0, len(size), (RESAMPLES, len(size)))

    def value(point: float, resampled: np.ndarray) -> dict[str, Any]:
        low, high = np.quantile(resampled, [0.025, 0.975])
        return {"value": float(point), "interval": [float(low), float(high)]}

    def rates(name: str, whole: np.ndarray) -> tuple[float, np.ndarray]:
        return nats[name].sum() / whole.sum(), nats[name][drawn].sum(axis=1) / whole[drawn].sum(axis=1)

    first = next(iter(losses))
    models, against = {}, {}
    for name in losses:
        loss, bits = rates(name, tokens[name]), rates(name, size * math.log(2))
        models[name] = {
            "tokens": int(tokens[name].sum()), "loss": value(*loss), "bits_per_byte": value(*bits),
            "perplexity": math.exp(min(700.0, loss[0])),
        }  # fmt: skip
        if name != first:
            start, its_bits = rates(first, tokens[first]), rates(first, size * math.log(2))
            same = bool((tokens[name] == tokens[first]).all())
            against[name] = {
                "loss": value(loss[0] - start[0], loss[1] - start[1]) if same else None,
                "bits_per_byte": value(bits[0] - its_bits[0], bits[1] - its_bits[1]),
            }
    return {"texts": len(size), "bytes": int(size.sum()), "models": models, "against_first": against}
