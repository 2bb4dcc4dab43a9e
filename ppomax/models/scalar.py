"""Reward model and critic: a language-model backbone with one linear unit (section 3.1).

Both are transformers sequence-classification models with one label. A reward model reads the unit at the last token;
a critic reads it at every token. A calibration offset lives in ``config.reward_offset`` and is subtracted by whoever
reads the unit (`score_sequences`, `response_values`): the stock loader ignores it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from ppomax.data.batches import pad_sequences, token_budget
from ppomax.errors import UserError
from ppomax.models.logprobs import hidden_states, inner_model
from ppomax.models.passes import device_of, even_passes, whole_pass


def on_backbone(causal: Any, *, pad_id: int) -> Any:
    """Sequence-classification model with one label on the backbone of ``causal``, whose weights it shares.

    Its linear unit is all zeros until `reset_unit`. ``pad_id`` goes into the config: the stock forward pass reads the
    last token that is not a pad, so it must differ from every token that can end a sequence.
    """
    config = copy.deepcopy(causal.config)
    config.num_labels = 1
    config.pad_token_id = pad_id
    config.reward_offset = 0.0
    try:
        with torch.device("meta"):  # the backbone it draws is thrown away
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise UserError(f"{type(causal).__name__} has no sequence-classification form in transformers") from None
    prefix = model.base_model_prefix
    unit = getattr(model, "score", None)
    if not isinstance(unit, nn.Linear) or not hasattr(causal, prefix) or causal.base_model_prefix != prefix:
        raise UserError(f"{type(model).__name__} has no `score` layer on the backbone of {type(causal).__name__}")
    setattr(model, prefix, getattr(causal, prefix))
    model.score = nn.Linear(unit.in_features, 1, bias=unit.bias is not None, device=causal.device)
    nn.init.zeros_(model.score.weight)
    if model.score.bias is not None:
        nn.init.zeros_(model.score.bias)
    return model.eval()


def unit_outputs(model: nn.Module, hidden: Tensor) -> Tensor:
    """Float32 output of the linear unit for hidden states (..., D): shape (...,).

    Computed outside autocast: a bf16 scalar has 3 digits, and rewards are compared with each other.
    """
    head = inner_model(model).score
    with torch.autocast(hidden.device.type, enabled=False):
        weight = next(head.parameters())
        return head(hidden.to(weight.dtype)).float().squeeze(-1)


@whole_pass
def rewards_at_end(model: nn.Module, ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Reward model: uncalibrated reward (B,), float32, at the last token that the *mask* keeps."""
    lengths = attention_mask.sum(dim=1)
    hidden = hidden_states(model, ids, lengths)
    return unit_outputs(model, hidden[torch.arange(ids.shape[0], device=ids.device), lengths - 1])


def reward_offset(model: nn.Module) -> float:
    return float(getattr(inner_model(model).config, "reward_offset", 0.0) or 0.0)


@torch.no_grad()
def score_sequences(
    model: nn.Module, sequences: Sequence[Sequence[int] | np.ndarray], *, pad_id: int, micro_batch_tokens: int = 8192
) -> Tensor:
    """Calibrated rewards (N,) on the CPU of whole token sequences, in their order; does not depend on the batching."""
    device = device_of(model)
    scores = torch.empty(len(sequences))
    for rows in even_passes(token_budget([len(s) for s in sequences], micro_batch_tokens), model):
        ids, mask = pad_sequences([sequences[i] for i in rows] or [[0]], pad_id)
        scores[rows] = rewards_at_end(model, ids.to(device), mask.to(device))[: len(rows)].cpu()
    return scores - reward_offset(model)


def reset_unit(model: Any, seed: int) -> None:
    """Give the linear unit fresh small weights (std 1 / sqrt(D + 1)) from its own generator."""
    generator = torch.Generator().manual_seed(seed)
    weight = inner_model(model).score.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) / (weight.shape[-1] + 1) ** 0.5)
