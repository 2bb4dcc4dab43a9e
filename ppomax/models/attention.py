"""The attention function that transformers' models call here, in place of its own "sdpa": two things are quicker.

Rows of unequal length, padded to the longest, cost as much as if all were that long. Everything in a decoder but attention
works on each token alone, so pads can be left out there: the tokens of all rows in one, with attention within each of
theirs. The function pads queries, keys and values, rows of about one length together, calls the stock one without a mask (pads
lie on the right, where no token sees them), and takes the pads out again. Which tokens belong together travels in the place
of the attention mask: a 4D mask is handed through as it is, to recomputed layers (activation checkpointing) too.

On a CPU the backward pass of bf16 attention takes two to three times as long as that of float32 (torch 2.13, sequences of
64 to 128 tokens), which is more than bf16 saves in all the matrix products around it; a query of one token, as in decoding,
takes six times as long. Under autocast it is made float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

WORTH = 0.9
"""share of tokens that are no pads from which on these are not worth taking out"""
ALIKE = 0.8
"""rows at least this long, as a share of the longest of their group, are padded and attended to together"""
PROBE = (7, 2, 5)
"""lengths of the rows that a decoder is tried with"""


@dataclass(frozen=True)
class _Group:
    """Rows that follow each other in the one row: their tokens, and where these lie when padded to (rows, width)."""

    tokens: slice
    rows: int
    width: int
    places: Tensor

    @property
    def full(self) -> bool:
        """Whether no pads are needed."""
        return len(self.places) == self.rows * self.width


class _Groups(Tensor):
    """A 4D "mask" that carries the groups."""

    groups: list[_Group]


class _Spread(torch.autograd.Function):
    """x (N, ...) at the places (N,) of a tensor (size, ...) that is 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, places, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


class _Gather(torch.autograd.Function):
    """x (size, ...) at the places (N,), each of them once: (N, ...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, places, grad), None


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Queries (B, H, S, D) and keys and values to (B, S, H, D), with the masks that transformers' function takes; or
    queries (1, H, N, D) of all rows and the "mask" of `in_one_row`, to (1, N, H, D)."""
    if not isinstance(attention_mask, _Groups):
        return _stock(module, query, key, value, attention_mask, **kwargs)
    for name in ("sliding_window", "position_bias", "softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"{type(module).__name__}: {name} with all rows in one")
    outputs = []
    for group in attention_mask.groups:
        q, k, v = (_padded(x, group) for x in (query, key, value))
        output, _ = _stock(module, q, k, v, None, **kwargs)
        output = output.flatten(0, 1)
        outputs.append(output if group.full else _Gather.apply(output, group.places))
    return torch.cat(outputs)[None], None


def _padded(x: Tensor, group: _Group) -> Tensor:
    """(1, H, N, D) to (rows, H, width, D)."""
    if group.full:
        return x[0, :, group.tokens].unflatten(1, (group.rows, group.width)).transpose(0, 1)
    spread: Tensor = _Spread.apply(x[0, :, group.tokens].transpose(0, 1), group.places, group.rows * group.width)
    return spread.unflatten(0, (group.rows, group.width)).transpose(1, 2)


def _stock(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' "sdpa", but in float32 where autocast would make it bf16 on a CPU."""
    if query.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
    return output, None


AttentionInterface.register("sdpa", _attention)


def _grouped(lengths: Tensor) -> _Groups:
    """Groups of rows whose ``lengths`` (B,) fall."""
    counts = [count for count in lengths.tolist() if count]  # none of them empty
    starts = [0]
    for i, count in enumerate(counts):
        if count < ALIKE * counts[starts[-1]]:
            starts.append(i)
    carrier = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=lengths.device)  # so it is neither cast nor moved
    mask = carrier.as_subclass(_Groups)
    mask.groups = []
    begin = 0
    for first, last in zip(starts, [*starts[1:], len(counts)], strict=True):
        end, width = begin + sum(counts[first:last]), counts[first]
        real = torch.arange(width, device=lengths.device) < lengths[first:last, None]
        mask.groups.append(_Group(slice(begin, end), last - first, width, real.flatten().nonzero().squeeze(-1)))
        begin = end
    return mask


def in_one_row(backbone: Any, ids: Tensor, lengths: Tensor) -> Tensor:
    """Last hidden states (B, S, D) of ids (B, S) with ``lengths`` (B,), 0 at pads, from one pass over all other tokens."""
    falling, order = lengths.sort(descending=True, stable=True)
    row, column = (torch.arange(ids.shape[1], device=ids.device) < falling[:, None]).nonzero(as_tuple=True)
    places = order[row] * ids.shape[1] + column
    output = backbone(
        input_ids=ids.flatten()[places][None],
        attention_mask=_grouped(falling),
        position_ids=column[None],
        use_cache=False,
    )
    hidden: Tensor = _Spread.apply(output.last_hidden_state[0], places, ids.numel())
    return hidden.unflatten(0, tuple(ids.shape))


def _looks_at_all(config: Any) -> bool:
    """Whether every layer's attention reaches back to the first token, as far as the settings say."""
    windows = ("sliding_window", "attention_chunk_size", "attention_types", "window_size")
    kinds = getattr(config, "layer_types", None) or ()
    return all(getattr(config, name, None) is None for name in windows) and set(kinds) <= {"full_attention"}


@torch.no_grad()
def allow_rows_in_one(backbone: Any) -> None:
    """Let `hidden_states` take pads out for this decoder, if that gives the same numbers: not where layers look at a
    window of tokens, mix neighbours in other ways, or hand no mask through."""
    backbone.takes_rows_in_one = False
    config, embeddings = backbone.config, backbone.get_input_embeddings().weight
    if config._attn_implementation != "sdpa" or embeddings.is_meta or not _looks_at_all(config.get_text_config()):
        return
    lengths = torch.tensor(PROBE, device=embeddings.device)
    ids = torch.arange(len(PROBE) * max(PROBE), device=embeddings.device).view(len(PROBE), -1) % len(embeddings)
    real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    try:
        expected = backbone(input_ids=ids, use_cache=False).last_hidden_state[real]
        found = in_one_row(backbone, ids, lengths)[real]
    except Exception:  # an encoder, or whatever a decoder that cannot do it raises
        return
    backbone.takes_rows_in_one = torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
