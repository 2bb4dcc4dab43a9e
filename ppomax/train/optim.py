"""AdamW, learning-rate courses and the global gradient norm clip (detail 12)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ppomax.config import OptimConfig
from ppomax.train.checkpoint import placed


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay acts on matrices only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    for p in trained:
        # as AdamW would in its first step, when activations have come and gone: moments strewn among what they left keep
        # a twentieth of a small model's memory on a CPU from being used again (docs/results/speed.md)
        optimizer.state[p] = {
            "step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p),
        }  # fmt: skip
    return optimizer


def learning_rate(config: OptimConfig, update: int, total: int) -> float:
    """Learning rate of update number ``update`` (from 0) among ``total``.

    Warm-up rises linearly over the first ``warmup`` share; then constant, linear or cosine to ``min_lr_ratio`` of the
    peak, or sqrt(warm-up / update) (inverse_sqrt, released code).
    """
    warmup = round(config.warmup * total)
    if update < warmup:
        return config.lr * (update + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "inverse_sqrt":
        return config.lr * math.sqrt(max(warmup, 1) / max(update + 1, 1))
    done = min((update - warmup) / max(total - 1 - warmup, 1), 1.0)
    fall = done if config.schedule == "linear" else (1.0 - math.cos(math.pi * done)) / 2
    return config.lr * (1.0 - (1.0 - config.min_lr_ratio) * fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """State of a checkpoint, whatever number of ranks wrote it."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    like = {i: {"exp_avg": p, "exp_avg_sq": p} for i, p in enumerate(trained)}
    optimizer.load_state_dict(placed(state, {"state": like}))


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm over all gradients, a scalar; 0 where there are none. Of divided ones it is the norm of all ranks' parts."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    norm = torch.nn.utils.get_total_norm([_here(g) for g in grads])
    if isinstance(grads[0], DTensor):
        squared = norm.square()
        dist.all_reduce(squared)
        norm = squared.sqrt()
    return norm


def _here(gradient: Tensor) -> Tensor:
    """This rank's part, which shares its memory with the whole."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def clip_gradients(*models: nn.Module, max_norm: float, joint: bool = False) -> list[float]:
    """Clip each model's gradients to ``max_norm``, or all of them by one common norm; 0 leaves them alone.

    Returns each model's own norm before clipping. As in PyTorch, the factor is max_norm / (norm + 1e-6), at most 1.
    """
    groups = [[p for p in m.parameters() if p.grad is not None] for m in models]
    # as numbers: a model without gradients has its norm on the CPU, wherever the other one lives
    norms = [gradient_norm(g).item() for g in groups]
    if max_norm > 0:
        for group, norm in zip(groups, norms, strict=True):
            common = torch.tensor(math.hypot(*norms) if joint else norm)
            factor = (max_norm / (common + 1e-6)).clamp(max=1.0)
            grads = [_here(p.grad) for p in group if p.grad is not None]
            for g in grads:
                g.mul_(factor.to(g.device))
    return norms
