"""Hidden states, token log-probabilities and entropy at chosen positions, never a B x T x V float32 tensor.

Sequences are packed tightly to the left (no left padding), so positions are 0, 1, 2, ... and the pad token's id never
matters. The same functions serve policy and reference, old and new: on the first update the ratio is 1 to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppomax.models.attention import WORTH, in_one_row

CHUNK_ELEMENTS = 2**25
"""largest positions x vocabulary matrix of logits held at once (64 MiB in bf16)"""
BLOCK_ELEMENTS = 2**18
"""largest part of it that is float32 at once, on a CPU: 1 MiB, which stays in cache"""
LEAST = -1000.0
"""a log-probability below it is of a probability that is 0 in float32 and float64, which times -inf would be NaN"""


def inner_model(model: Any) -> Any:
    """The transformers model inside, with or without adapters around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone_of(model: Any) -> Any:
    """The decoder inside, without the head."""
    inner = inner_model(model)
    return getattr(inner, inner.base_model_prefix)


def takes_rows_in_one(model: Any) -> bool:
    """Whether `hidden_states` leaves pads out of passes of ``model``."""
    backbone = backbone_of(model)
    return getattr(backbone, "takes_rows_in_one", False) and backbone.config._attn_implementation == "sdpa"


def hidden_states(model: nn.Module, ids: Tensor, lengths: Tensor | None, position_ids: Tensor | None = None) -> Tensor:
    """Last hidden states (B, S, D) of the backbone, without unembedding; at pads they mean nothing.

    ``lengths`` (B,): how many tokens of each row are no pads; None: all. With ``position_ids`` that start again within a row
    attention stays within each packed record. The model reads no attention mask: it is causal, and pads lie on the right,
    where no token sees them. Without a mask attention is faster.
    """
    backbone = backbone_of(model)
    if lengths is not None and takes_rows_in_one(model) and int(lengths.sum()) <= WORTH * ids.numel():
        return in_one_row(backbone, ids, lengths)
    output = backbone(input_ids=ids, position_ids=position_ids, use_cache=False)
    return output.last_hidden_state


def unembed(model: nn.Module, hidden: Tensor) -> Tensor:
    """Float32 logits (..., V) as the model's own forward pass would give them (soft-capping and scaling included)."""
    return _logits(model, hidden).float()


def _logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """As `unembed`, but as the model's arithmetic leaves them: bf16 under autocast, unless they are scaled or capped."""
    inner = inner_model(model)
    logits = inner.get_output_embeddings()(hidden)
    config = inner.config.get_text_config()
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits.float() * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        logits = logits.float() / scaling
    if (multiplier := getattr(config, "lm_head_multiplier", None)) is not None:
        logits = logits.float() * multiplier
    for name in ("final_logit_softcapping", "logits_soft_cap"):
        if (cap := getattr(config, name, None)) is not None:
            logits = cap * torch.tanh(logits.float() / cap)
    return logits


@torch.no_grad()
def unembeds_alike(model: Any) -> bool:
    """Whether `unembed` gives the logits of the model's own forward pass, to 1%, on a few tokens.

    Families scale and cap their logits under settings of many names; one that is not known here would be trained and
    sampled at another temperature than its own, and greedy text would not show it.
    """
    inner = inner_model(model)
    embeddings = inner.get_input_embeddings().weight
    if embeddings.is_meta:
        return True
    ids = (torch.arange(8, device=embeddings.device) % len(embeddings))[None]
    expected = inner(input_ids=ids, use_cache=False).logits.float()
    found = unembed(model, hidden_states(model, ids, None))
    # "not above", since weights that are not finite are told where they are used
    return not (found - expected).norm() > 0.01 * expected.norm()


class _LogSoftmax(torch.autograd.Function):
    """Log-probabilities of targets and, if asked, entropies; the backward pass is written out.

    With p = softmax(z / T) and H its entropy, d log p_y / d z_j = (1[j = y] - p_j) / T and
    dH / d z_j = -p_j (log p_j + H) / T. Works in blocks of rows that stay in a processor's cache, in float32 (float64 for
    float64); what is kept for the backward pass and the gradient have the type of ``logits`` (N, V).
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        kind = torch.promote_types(logits.dtype, torch.float32)
        logprobs = torch.empty(len(logits), dtype=kind, device=logits.device)
        spread = torch.empty_like(logprobs) if entropy else None
        for rows in _blocks(logits):
            log_p = _log_softmax(logits[rows], temperature)
            logprobs[rows] = log_p.gather(-1, targets[rows, None]).squeeze(-1)
            if spread is not None:
                p = log_p.exp()  # where a logit is -inf p is 0, and so is p log p
                spread[rows] = -p.mul_(log_p.clamp_(min=LEAST)).sum(dim=-1)
        ctx.save_for_backward(logits, targets, spread)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprobs, spread

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        logits, targets, entropy = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for rows in _blocks(logits):
            log_p = _log_softmax(logits[rows], ctx.temperature)
            part = log_p.exp()
            weight = torch.zeros((), device=logits.device)
            if grad_entropy is not None:
                weight = log_p.clamp_(min=LEAST).add_(entropy[rows, None]).mul_(-grad_entropy[rows, None])
            if grad_logprobs is not None:
                weight = weight - grad_logprobs[rows, None]
            part *= weight
            if grad_logprobs is not None:
                part.scatter_add_(-1, targets[rows, None], grad_logprobs[rows, None])
            grad[rows] = part if ctx.temperature == 1 else part.div_(ctx.temperature)
        return grad, None, None, None


def _blocks(logits: Tensor) -> list[slice]:
    step = max(1, BLOCK_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))
    return [slice(start, start + step) for start in range(0, len(logits), step)]


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return (logits if temperature == 1 else logits / temperature).log_softmax(dim=-1)


def _chunk(model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Any, ...]:
    return _LogSoftmax.apply(_logits(model, hidden), targets, temperature, entropy)


def _two_temperatures(model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Any, ...]:
    logits = _logits(model, hidden)
    scaled = _LogSoftmax.apply(logits, targets, temperature, True)
    return *scaled, scaled[0] if temperature == 1 else _LogSoftmax.apply(logits, targets, 1.0, False)[0]


def _by_chunks(function: Any, model: nn.Module, hidden: Tensor, targets: Tensor, *options: Any) -> list[Tensor | None]:
    """``function`` over blocks of positions; with gradients, a block's logits are made again in the backward pass when
    there is more than one."""
    rows = max(1, CHUNK_ELEMENTS // inner_model(model).config.get_text_config().vocab_size)
    parts: list[tuple[Any, ...]] = []
    for start in range(0, max(hidden.shape[0], 1), rows):  # at least once, so that no positions still reach the weights
        block = model, hidden[start : start + rows], targets[start : start + rows], *options
        if torch.is_grad_enabled() and hidden.shape[0] > rows:
            parts.append(checkpoint(function, *block, use_reentrant=False))
        else:
            parts.append(function(*block))
    return [None if numbers[0] is None else torch.cat(numbers) for numbers in zip(*parts, strict=True)]


def token_logprobs(
    model: nn.Module, hidden: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (N,) of ``targets`` (N,) and, if asked, entropies (N,) in nats, from hidden states (N, D)."""
    logprobs, entropies = _by_chunks(_chunk, model, hidden, targets, temperature, entropy)
    assert logprobs is not None
    return logprobs, entropies


def logprobs_and_raw(
    model: nn.Module, hidden: Tensor, targets: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `token_logprobs` with entropy, and the log-probabilities (N,) at temperature 1, from one unembedding."""
    logprobs, entropies, raw = _by_chunks(_two_temperatures, model, hidden, targets, temperature)
    assert logprobs is not None and entropies is not None and raw is not None
    return logprobs, entropies, raw
