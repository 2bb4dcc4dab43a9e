"""Linear maps in bf16 arithmetic on a CPU that has no instructions for it.

There PyTorch multiplies bf16 matrices by a plain loop, several times slower than float32 ones (AVX2, torch 2.13: 7 against
55 GFLOP/s on one core). The product of two bf16 numbers is exact in float32, and bf16 instructions add products up in
float32: so operands that are rounded to bf16, multiplied as float32 matrices and rounded again give the same numbers, but
for the order of the sums. A run with ``precision: bf16`` then means the same on every machine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices as fast as float32 ones, or faster (AVX512 or better; Arm with bf16)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _RoundedLinear(torch.autograd.Function):
    """y = bf16(bf16(x) bf16(w)^T + bf16(b)) for x (N, D_in), w (D_out, D_in), b (D_out,) or None; y (N, D_out) is bf16.

    Gradients, as autocast has them: products of bf16 matrices, rounded to bf16, in the type of what they are gradients of.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x16, weight16 = x.to(torch.bfloat16), weight.to(torch.bfloat16)
        ctx.save_for_backward(x16, weight16)
        ctx.types = x.dtype, weight.dtype, bias.dtype if bias is not None else None
        return _rounded(x16, weight16, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), (x_type, weight_type, bias_type) = ctx.saved_tensors, ctx.types
        grad = grad.float()
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = (grad @ weight.float()).to(torch.bfloat16).to(x_type)
        if ctx.needs_input_grad[1]:
            by_weight = (grad.T @ x.float()).to(torch.bfloat16).to(weight_type)
        if ctx.needs_input_grad[2]:
            by_bias = grad.sum(0).to(torch.bfloat16).to(bias_type)
        return by_x, by_weight, by_bias


def _rounded(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return (x.float() @ weight.float().T).to(torch.bfloat16)
    return torch.addmm(bias.to(torch.bfloat16).float(), x.float(), weight.float().T).to(torch.bfloat16)


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        flat = input.reshape(-1, input.shape[-1])
        with torch.autocast("cpu", enabled=False):
            if torch.is_grad_enabled():
                y: Tensor = _RoundedLinear.apply(flat, self.weight, self.bias)
            else:
                y = _rounded(flat.to(torch.bfloat16), self.weight.to(torch.bfloat16), self.bias)
        return y.view(*input.shape[:-1], -1)


_Linear.__name__ = _Linear.__qualname__ = "Linear"  # what a printed model calls it


def round_linears(model: nn.Module) -> None:
    """Let the linear maps of ``model`` compute as above under autocast, if this CPU needs it; else nothing changes."""
    if has_bf16():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear
