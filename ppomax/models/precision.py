"""bf16 arithmetic with float32 weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
