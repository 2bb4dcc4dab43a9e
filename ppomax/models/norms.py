"""Root-mean-square norms for bf16 arithmetic on a CPU.

Under autocast the norm of a transformers layer works in float32 through seven passes over memory, its backward pass
through about twice as many, and each linear map that reads it makes a bf16 copy of the result. Here the norm itself
hands on bf16: the same numbers, rounded once, in fewer passes. Without autocast, and on other devices, nothing changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PRE_NORMS = ("input_layernorm", "post_attention_layernorm")
"""names, within a layer, of norms that only linear maps read"""
POST_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
"""a layer with one of these uses the names above for norms that are added to the residual stream: left alone"""


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm (N, D) in bf16, and r (N, 1)."""
    r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * r).mul_(weight).to(torch.bfloat16), r


class _RMSNorm(torch.autograd.Function):
    """y = bf16(w * x / sqrt(mean(x^2) + eps)) for x (N, D) and w (D,), both float32.

    With r = 1 / sqrt(mean(x^2) + eps) and g the gradient by y: dw = sum_n g x r, and
    dx = r (g w - x r^2 sum_d(g w x) / D).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, r = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, r)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, r = ctx.saved_tensors
        grad = grad.float()
        product = grad * x
        along = (product @ weight).unsqueeze_(-1).mul_(r.pow(3)).div_(-x.shape[-1])
        by_weight = r.squeeze(-1) @ product if ctx.needs_input_grad[1] else None
        return grad.mul_(weight).mul_(r).addcmul_(x, along), by_weight, None


class _Quick:
    """Mixed into a norm's class by `quicken_norms`."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        x, weight = hidden_states, self.weight.float()  # bf16 where ranks divide it and gather it so
        if x.dtype != torch.float32 or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)  # type: ignore[misc]
        flat, eps = x.reshape(-1, x.shape[-1]), self.variance_epsilon
        normed: Tensor = _RMSNorm.apply(flat, weight, eps) if torch.is_grad_enabled() else _normed(flat, weight, eps)[0]
        return normed.view(x.shape)


_made: dict[type[nn.Module], type[nn.Module]] = {}


def _quick(kind: type[nn.Module]) -> type[nn.Module]:
    """The class ``kind`` with our forward pass; made once, since it is the class that models share."""
    return _made.setdefault(kind, type(kind.__name__, (_Quick, kind), {"__module__": kind.__module__}))


@torch.no_grad()
def _is_plain(norm: nn.Module) -> bool:
    """Whether ``norm`` computes w * x / sqrt(mean(x^2) + eps) and nothing else: tried, since a class's name may lie."""
    names = [name for name, _ in norm.named_parameters()]
    eps, weight = getattr(norm, "variance_epsilon", None), getattr(norm, "weight", None)
    if isinstance(norm, _Quick) or names != ["weight"] or not isinstance(eps, float):
        return False
    assert isinstance(weight, Tensor)
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or weight.dim() != 1:
        return False
    x = torch.linspace(-1, 2, 2 * len(weight)).view(2, -1)
    return torch.allclose(norm(x), weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt(), rtol=1e-5, atol=1e-6)


def quicken_norms(model: nn.Module) -> None:
    """Let the norms before attention and before the feed-forward part hand on bf16 under autocast on a CPU."""
    for layer in model.modules():
        if any(hasattr(layer, name) for name in POST_NORMS):
            continue
        for norm in (getattr(layer, name, None) for name in PRE_NORMS):
            if norm is not None and _is_plain(norm):
                norm.__class__ = _quick(type(norm))
