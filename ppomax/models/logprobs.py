"""Hidden states, token log-probabilities and entropy at chosen positions, never a B x T x V float32 tensor.

Sequences are packed tightly to the left (no left padding), so positions are 0, 1, 2, ... and the pad token's id never
matters. The same functions serve policy and reference, old and new: on the first update the ratio is 1 to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**25
"""largest positions x vocabulary block held at once (128 MiB in float32)"""


def inner_model(model: Any) -> Any:
    """The transformers model inside, with or without adapters around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(
    model: nn.Module, ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None = None
) -> Tensor:
    """Last hidden states (B, S, D) of the backbone, without unembedding.

    With ``position_ids`` that start again within a row and no mask, attention stays within each packed record.
    """
    inner = inner_model(model)
    backbone = getattr(inner, inner.base_model_prefix)
    output = backbone(input_ids=ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
    return output.last_hidden_state


def unembed(model: nn.Module, hidden: Tensor) -> Tensor:
    """Float32 logits (..., V) as the model's own forward pass would give them (soft-capping and scaling included)."""
    inner = inner_model(model)
    logits = inner.get_output_embeddings()(hidden).float()
    config = inner.config.get_text_config()
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / scaling
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits


def _chunk(model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, ...]:
    logits = unembed(model, hidden) / temperature
    log_z = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - log_z
    if not entropy:
        return (logprobs,)
    # H = log Z - E[logit]; p = 0 tokens give 0 * finite, unlike p log p
    return logprobs, log_z - ((logits - log_z[:, None]).exp() * logits).sum(-1)


def token_logprobs(
    model: nn.Module, hidden: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (N,) of ``targets`` (N,) and, if asked, entropies (N,) in nats, from hidden states (N, D).

    Works through the vocabulary in chunks of positions; with gradients, a chunk's logits are made again in the
    backward pass when there is more than one chunk.
    """
    vocabulary = inner_model(model).config.get_text_config().vocab_size
    rows = max(1, CHUNK_ELEMENTS // vocabulary)
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, hidden.shape[0], rows):
        h, t = hidden[start : start + rows], targets[start : start + rows]
        if torch.is_grad_enabled() and hidden.shape[0] > rows:
            parts.append(checkpoint(_chunk, model, h, t, temperature, entropy, use_reentrant=False))
        else:
            parts.append(_chunk(model, h, t, temperature, entropy))
    if not parts:
        empty = hidden.sum(dim=-1).float()
        return empty, empty if entropy else None
    logprobs = torch.cat([p[0] for p in parts])
    return logprobs, torch.cat([p[1] for p in parts]) if entropy else None
