"""Preference pairs as tokens: what is truncated, which pairs make an update, and the tensors of one forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppomax.config import RewardConfig
from ppomax.data.batches import balanced_batches, pad_sequences
from ppomax.data.chat import ChatFormat, fit_dialogue, truncate_left
from ppomax.data.records import Dialogue, PreferencePair
from ppomax.errors import UserError


@dataclass(frozen=True)
class EncodedPair:
    """One pair as tokens; both sides share the prompt, truncated alike."""

    chosen: np.ndarray
    """(L,) int32, prompt and preferred answer"""
    rejected: np.ndarray
    """(L',) int32, prompt and the other answer"""
    imitated: np.ndarray
    """(L,) bool: assistant tokens of the preferred answer"""
    margin: float
    pair: PreferencePair

    @property
    def tokens(self) -> int:
        return len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        return max(len(self.chosen), len(self.rejected))


def encode_pairs(
    pairs: Sequence[PreferencePair], chat: ChatFormat, config: RewardConfig
) -> tuple[list[EncodedPair], list[str]]:
    """Tokenise; returns the pairs that remain and lines that say what was truncated or dropped. Answers stay whole."""
    encoded: list[EncodedPair] = []
    truncated = dropped = equal = 0
    for pair in pairs:
        prompt, chosen, assistant = chat.encode_continuation(pair.prompt, pair.chosen)
        _, rejected, _ = chat.encode_continuation(pair.prompt, pair.rejected)
        if chosen == rejected:
            equal += 1
            continue
        if len(prompt) + max(len(chosen), len(rejected)) > config.max_length:
            longer = max(chosen, rejected, key=len)
            fitted = (
                truncate_left(prompt, longer, config.max_length, chat.bos_id) if config.overlong == "truncate" else None
            )
            if fitted is None:
                dropped += 1
                continue
            prompt = fitted[0]
            truncated += 1
        encoded.append(
            EncodedPair(
                np.asarray(prompt + chosen, dtype=np.int32),
                np.asarray(prompt + rejected, dtype=np.int32),
                np.asarray([False] * len(prompt) + assistant, dtype=bool),
                float(pair.margin or 0.0) if config.margin else 0.0,
                pair,
            )
        )
    lines = [f"{len(encoded)} pairs, {sum(e.tokens for e in encoded)} tokens"]
    if truncated:
        lines.append(f"{truncated} pairs over max_length {config.max_length} lost the left of their prompt")
    if dropped:
        lines.append(f"{dropped} pairs dropped: over max_length {config.max_length}")
    if equal:
        lines.append(f"{equal} pairs dropped: chosen and rejected are the same tokens")
    return encoded, lines


def make_schedule(pairs: Sequence[EncodedPair], config: RewardConfig) -> list[list[int]]:
    """Pairs of every update of the run: token-balanced batches of each epoch, the last one cut at its fraction."""
    tokens = [p.tokens for p in pairs]
    updates: list[list[int]] = []
    for epoch in range(math.ceil(config.epochs)):
        batches = balanced_batches(tokens, config.batch_tokens, config.min_pairs, config.max_pairs, config.seed, epoch)
        share = min(1.0, config.epochs - epoch)
        updates += batches[: max(1, round(share * len(batches)))]
    return updates


@dataclass(frozen=True)
class PairBatch:
    """n pairs of one forward pass: rows 0..n-1 preferred, n..2n-1 the others."""

    ids: Tensor
    """(2n, S)"""
    lengths: Tensor
    """(2n,) of the rows without pads"""
    margins: Tensor
    """(n,)"""
    before: Tensor
    """(N,) flat positions whose hidden states predict an imitated token"""
    targets: Tensor
    """(N,) those tokens"""
    owner: Tensor
    """(N,) the pair each belongs to"""


def collate(pairs: Sequence[EncodedPair], *, pad_id: int, device: torch.device) -> PairBatch:
    ids, mask = pad_sequences([p.chosen for p in pairs] + [p.rejected for p in pairs], pad_id)
    imitated, _ = pad_sequences([p.imitated for p in pairs], 0, dtype=torch.bool)
    width = ids.shape[1]  # the other side may be the longer one
    imitated = nn.functional.pad(imitated, (0, width - imitated.shape[1]))
    where = imitated.flatten().nonzero().squeeze(-1)
    return PairBatch(
        ids.to(device),
        mask.sum(dim=1).to(device),
        torch.tensor([p.margin for p in pairs], device=device),
        (where - 1).to(device),
        ids.flatten()[where].to(device),
        (where // width).to(device),
    )


def demonstration_ids(
    records: Sequence[Any], chat: ChatFormat, config: RewardConfig
) -> tuple[list[list[int]], list[str]]:
    """Dialogues up to their last assistant turn (of a weight other than 0), as ids, for the calibration offset."""
    sequences: list[list[int]] = []
    dropped = 0
    for record in records:
        if not isinstance(record, Dialogue):
            dropped += 1
            continue
        turns = (i for i, m in enumerate(record.messages) if m["role"] == "assistant")
        last = max(i for i in turns if i not in record.untrained)
        ids, mask = chat.encode_dialogue(record.messages[: last + 1])
        fitted = fit_dialogue(ids, mask, config.max_length, config.overlong, chat.bos_id)
        if fitted is None or fitted.cut == "answer":  # a model is asked for its score at an answer's end
            dropped += 1
        else:
            sequences.append(fitted.ids)
    if not sequences:
        raise UserError(f"calibration_data: none of {len(records)} records is a dialogue of at most max_length tokens")
    lines = [f"{len(sequences)} demonstrations"]
    if dropped:
        lines.append(f"{dropped} records not used: no dialogue, or over max_length {config.max_length}")
    return sequences, lines
