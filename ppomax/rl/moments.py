"""Means and variances over valid tokens, whitening, and moments that run over a whole training (eq. 18)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def _exact(x: Tensor) -> Tensor:
    """In float64, in which sums of many rounded numbers lose nothing; float32 on devices that have no float64."""
    return x.float() if x.device.type == "mps" else x.double()


def _kind(x: Tensor) -> torch.dtype:
    """Results are float32, or float64 for float64: a mean of many bf16 numbers is none of them."""
    return torch.promote_types(x.dtype, torch.float32)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` over True entries of ``mask`` (same shape); NaN when there is none. Values outside never matter."""
    return (torch.where(mask, _exact(x), 0).sum() / mask.sum()).to(_kind(x))


def masked_var(x: Tensor, mask: Tensor, unbiased: bool = True) -> Tensor:
    """Variance over True entries; ``unbiased`` divides by n - 1, and is 0 (not NaN) for a single entry."""
    n, exact = mask.sum(), _exact(x)
    centred = torch.where(mask, exact - masked_mean(exact, mask), 0)
    return (centred.square().sum() / ((n - 1).clamp(min=1) if unbiased else n)).to(_kind(x))


def whiten(x: Tensor, mask: Tensor, *, unbiased: bool = True, eps: float = 1e-8) -> Tensor:
    """Subtract the mean and divide by the std over valid entries; 0 elsewhere (detail 6).

    Ours: unbiased variance, eps 1e-8. The released code: ``unbiased=False, eps=1e-6``. The mean is *not* added back.
    """
    exact = _exact(x)
    scaled = (exact - masked_mean(exact, mask)) * torch.rsqrt(masked_var(exact, mask, unbiased) + eps)
    return torch.where(mask, scaled, 0).to(_kind(x))


@dataclass
class RunningMoments:
    """Mean and unbiased std of every value seen so far (eq. 18), in float64 by Chan's parallel update.

    The result does not depend on how the values were split into batches. Part of every checkpoint.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    """sum of squared deviations from the mean"""

    def update(self, values: Tensor) -> None:
        """Take in a batch of any shape. Call it before the same batch is normalised (released code).

        One NaN or infinity would spoil every later reward, so it is a ValueError and the moments stay as they were.
        """
        x = values.detach().cpu().double().flatten()  # to the CPU first: not every device has float64
        n = x.numel()
        if n == 0:
            return
        if not bool(x.isfinite().all()):
            raise ValueError("running moments were given a NaN or an infinity")
        batch_mean = x.mean().item()
        batch_m2 = (x - batch_mean).square().sum().item()
        delta = batch_mean - self.mean
        total = self.count + n
        self.m2 += batch_m2 + delta * delta * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    @property
    def std(self) -> float:
        """Unbiased standard deviation; 1 while fewer than two values, or only equal ones, have been seen."""
        if self.count < 2:
            return 1.0
        std = math.sqrt(self.m2 / (self.count - 1))
        # the mean of equal values is off by rounding: three times 0.1 would give a std of 1e-17, not 0
        return std if std > 1e-12 * abs(self.mean) else 1.0

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self.m2 = int(state["count"]), float(state["mean"]), float(state["m2"])
