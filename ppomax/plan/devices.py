"""What is assumed of a device: its memory, and how fast it multiplies, reads and sends.

Rates are the makers' own, dense (no sparsity); what a run reaches of them is a share, `Shares`. Every number may be given
instead: what you measured is better.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from ppomax.config import Section
from ppomax.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Kind:
    """A kind of device."""

    memory_gib: float
    """0: the machine's own"""
    bf16_tflops: float
    float32_tflops: float
    memory_gb_s: float
    """reading its memory, GB/s (10^9 bytes)"""
    link_gb_s: float
    """to the other devices of its node, GB/s in one direction"""
    network_gb_s: float
    """its share of the network between nodes, GB/s in one direction"""
    about: str


KINDS = {
    "a100": Kind(80, 312, 19.5, 2039, 300, 25, "A100 80 GB SXM, NVLink 3, 200 Gb/s a device"),
    "a100-40gb": Kind(40, 312, 19.5, 1555, 300, 25, "A100 40 GB SXM, NVLink 3, 200 Gb/s a device"),
    "h100": Kind(80, 989, 67, 3350, 450, 50, "H100 80 GB SXM, NVLink 4, 400 Gb/s a device"),
    "h200": Kind(141, 989, 67, 4800, 450, 50, "H200 SXM, NVLink 4, 400 Gb/s a device"),
    "b200": Kind(180, 2250, 75, 8000, 900, 50, "B200 SXM, NVLink 5, 400 Gb/s a device"),
    "l40s": Kind(48, 362, 91.6, 864, 25, 12.5, "L40S, PCIe 4"),
    "rtx-4090": Kind(24, 165, 82.6, 1008, 12, 3, "RTX 4090, PCIe 4 without peer access"),
    "cpu": Kind(0, 0.7, 0.18, 20, 5, 1, "2 cores with AMX (measured: 180 GFLOP/s in float32, 700 in bf16)"),
}
BY_MEMORY = {24: "rtx-4090", 40: "a100-40gb", 48: "l40s", 80: "a100", 141: "h200", 180: "b200"}
"""what a bare memory size stands for"""


class Rates(Section):
    """Rates of one device, in place of its kind's."""

    bf16_tflops: float | None = Field(None, gt=0)
    """dense bf16 matrix products, 10^12 operations a second"""
    float32_tflops: float | None = Field(None, gt=0)
    """the same in float32"""
    memory_gb_s: float | None = Field(None, gt=0)
    """reading its own memory, GB/s"""
    link_gb_s: float | None = Field(None, gt=0)
    """to the other devices of a node, GB/s in one direction"""
    network_gb_s: float | None = Field(None, gt=0)
    """its share of the network between nodes, GB/s in one direction"""


class Shares(Section):
    """What is reached of the rates, and what is lost."""

    update: float = Field(0.4, gt=0, le=1)
    """of the matrix rate, forward and backward"""
    score: float = Field(0.4, gt=0, le=1)
    """of the matrix rate, forward passes, also over the prompts before sampling"""
    decode: float = Field(0.6, gt=0, le=1)
    """of the memory's rate, while tokens are drawn"""
    link: float = Field(0.7, gt=0, le=1)
    """of the links' rates"""
    layer_us: float = Field(400.0, ge=0)
    """microseconds a layer and decoding step cannot be shorter than, whatever the device (the Python around it)"""
    reserve_gib: float = Field(1.5, ge=0)
    """a GPU's memory that the driver, the library handles and the communication take before the first tensor"""
    fragmentation: float = Field(0.05, ge=0, lt=1)
    """share of a GPU's memory that the allocator cannot hand out"""


@dataclass(frozen=True)
class Devices:
    """All devices of a run: ``nodes`` x ``per_node``, alike."""

    nodes: int
    per_node: int
    kind: str
    """key of `KINDS`, whose rates hold where `Rates` gives none"""
    memory: int
    """bytes of each"""
    bf16_flops: float
    float32_flops: float
    memory_rate: float
    """bytes/s"""
    link_rate: float
    network_rate: float

    @property
    def count(self) -> int:
        return self.nodes * self.per_node

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"

    @property
    def slowest_link(self) -> float:
        """Bytes a second that a device sends in a collective over all of them; infinite where it is alone."""
        if self.count == 1:
            return float("inf")
        return self.link_rate if self.nodes == 1 else min(self.link_rate, self.network_rate * self.per_node)

    def usable(self, shares: Shares) -> int:
        """Bytes of one device that tensors may fill."""
        if self.is_cpu:
            return self.memory
        return max(int(self.memory * (1 - shares.fragmentation) - shares.reserve_gib * GIB), 0)

    def flops(self, precision: str) -> float:
        """Operations a second of matrix products in ``precision``."""
        return self.bf16_flops if precision == "bf16" else self.float32_flops


def parse_devices(text: str, rates: Rates | None = None, kind: str | None = None) -> Devices:
    """``8x80GB``, ``8xh100``, ``8x8x80GB`` (nodes x devices x memory), ``cpu``, ``1x16GB`` with a ``kind``."""
    wanted = "--devices 8x80GB (devices x memory), 8xh100, 8x8x80GB (nodes x devices x memory) or cpu"
    parts = re.fullmatch(r"(?:(\d+)x)?(?:(\d+)x)?([a-z0-9.-]+)", text.lower().replace(" ", ""))
    counts = [int(c) for c in parts.groups()[:2] if c] if parts else []
    if parts is None or 0 in counts:
        raise UserError(f"devices = {text!r}: not understood; write {wanted}")
    last = parts[3]
    sized = re.fullmatch(r"(\d+(?:\.\d+)?)(?:gi?b)", last)
    if kind is not None and kind not in KINDS:
        raise UserError(f"device_type = {kind!r}: unknown; choose from {', '.join(KINDS)}")
    if sized:
        gib = float(sized[1])
        if kind is None and gib not in BY_MEMORY:
            sizes = ", ".join(f"{size}GB" for size in BY_MEMORY)
            raise UserError(
                f"devices = {text!r}: no kind of device is known with {last}; add --device_type (one of {', '.join(KINDS)}) "
                f"for its speed, or choose from {sizes}"
            )
        kind = kind or BY_MEMORY[int(gib)]
    elif last in KINDS:
        if kind is not None and kind != last:
            raise UserError(f"devices = {text!r} and device_type = {kind!r} contradict each other; give one")
        kind, gib = last, KINDS[last].memory_gib
    else:
        raise UserError(
            f"devices = {text!r}: {last!r} is neither a memory size nor one of {', '.join(KINDS)}; write {wanted}"
        )
    numbers = [1] * (2 - len(counts)) + counts
    memory = int(gib * GIB) or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // numbers[1]
    base = KINDS[kind]

    def rate(name: str, unit: float) -> float:
        given: Any = getattr(rates, name) if rates is not None else None
        return float(getattr(base, name) if given is None else given) * unit

    return Devices(
        numbers[0], numbers[1], kind, memory, rate("bf16_tflops", 1e12), rate("float32_tflops", 1e12),
        rate("memory_gb_s", 1e9), rate("link_gb_s", 1e9), rate("network_gb_s", 1e9),
    )  # fmt: skip
