"""bf16 arithmetic with float32 weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# On a CPU the backward pass of bf16 attention takes two to three times as long as that of float32 (torch 2.13, sequences
# of 64 to 128 tokens), which is more than bf16 saves in all the matrix products around it. A query of one token, as in
# decoding, takes six times as long in bf16.


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
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


@contextmanager
def precision(device: torch.device, name: str) -> Iterator[None]:
    """``bf16``: autocast to it; weights stay float32. ``float32``: as the weights are."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bf16"):
        yield


def halve_linears(model: nn.Module) -> None:
    """Keep the weights of linear layers in bf16, for a frozen model that runs under `precision` ``bf16`` alone.

    Autocast would make the same bf16 weights of them in every pass, so no number changes; half of their memory is free.
    Embeddings (and heads tied to them), norms and a scalar model's unit are read in float32 and stay so.
    """
    inner: nn.Module = getattr(model, "get_base_model", lambda: model)()
    kept = {id(module.weight) for module in inner.modules() if isinstance(module, nn.Embedding)}
    for module in inner.modules():
        unit = module is getattr(inner, "score", None)
        if isinstance(module, nn.Linear) and not unit and id(module.weight) not in kept:
            module.to(torch.bfloat16)
