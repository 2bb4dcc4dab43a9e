"""Data-parallel ranks through torch.distributed: everything is written for N ranks, and N = 1 needs no launcher.

Samples are exchanged, not statistics: each rank draws and scores its share, all ranks then hold the same experience and
compute rewards, moments, advantages and whitening alike. Only forward and backward passes are divided, and gradients
are *summed*, since losses are already divided by the token count of the whole step over all ranks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ppomax.errors import UserError

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""parameters of mallopt(3)"""


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, *lines: str) -> None:
        """To stderr, once for all ranks."""
        if self.is_main:
            for line in lines:
                print(line, file=sys.stderr, flush=True)

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part: every ``size``-th item from ``rank`` on. `collect` undoes it."""
        return list(items[self.rank :: self.size])

    def collect(self, mine: Sequence[T]) -> list[T]:
        """All ranks' parts, in the order of the sequence that `share` divided. Every rank gets the same list."""
        if self.size == 1:
            return list(mine)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, list(mine))
        merged: list[T] = []
        for position in range(max(len(p) for p in parts)):
            merged.extend(part[position] for part in parts if position < len(part))
        return merged

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over ranks, same shape."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks; a rank without samples contributes zeros.

        A parameter that has no gradient on any rank keeps none, as on a single rank: AdamW then leaves it alone.
        Gradients of divided weights were summed in the backward pass.
        """
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
        if not trained:
            return
        used = torch.tensor([float(p.grad is not None) for p in trained], device=self.device)
        dist.all_reduce(used)
        trained = [p for p, count in zip(trained, used.tolist(), strict=True) if count]
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
        dist.all_reduce(flat)
        offset = 0
        for p in trained:
            assert p.grad is not None
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` is cuda where there is one; `cuda` is this rank's own. A device that is not here is a UserError.

    A process that is to work on a CPU keeps the memory it frees, from here on.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # a name may be well formed and the device not there
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        told = str(error).strip().splitlines()[0]
        raise UserError(f"device: {name!r} cannot be used here ({told}); choose cpu, or auto") from None
    if device.type == "cpu":
        keep_freed_memory()
    return device


def peak_memory(ranks: Ranks) -> dict[str, float]:
    """{"memory/peak": MiB of the rank that held most}: PyTorch's tensors on a GPU, else resident memory.

    {} where the system does not tell. All ranks ask together.
    """
    if ranks.device.type == "cuda":
        held = torch.cuda.max_memory_allocated(ranks.device) / 2**20
    elif sys.platform == "win32":
        return {}
    else:
        import resource

        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on a Mac, kB elsewhere
        held /= 2**20 if sys.platform == "darwin" else 2**10
    return {"memory/peak": max(ranks.collect([held]))}


def keep_freed_memory() -> None:
    """Ask the C library not to give large blocks back to the system (glibc; elsewhere nothing is done).

    Every large tensor would be mapped and cleared anew: a tenth of an update's time goes into page faults. The peak does
    not change, since what is freed is used again.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 2**30)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


LOST = "another rank has ended, and so does this one; checkpoints are whole: mend the cause and go on with --resume"


def _told_to_end(number: int, frame: Any) -> None:
    """torchrun ends all ranks with SIGTERM when one has ended."""
    line = f"ppomax: error: rank {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}: told to end (SIGTERM): {LOST}\n"
    os.write(2, line.encode())
    os._exit(128 + number)


def lost_rank(error: BaseException) -> str | None:
    """One line, where ``error`` comes from communication with a rank that is no more; else None."""
    told = str(error).strip()
    signs = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "TCPStore")
    if not isinstance(error, dist.DistError) and not any(sign in told for sign in signs):
        return None
    where = f"rank {os.environ.get('RANK', '0')} of {os.environ.get('WORLD_SIZE', '1')}"
    reason = re.sub(r"^\[[^]]*\]\s*", "", told.splitlines()[0]).split(". ")[0] if told else type(error).__name__
    return f"{where}: {LOST} ({reason})"


def join(device: str = "auto") -> Ranks:
    """Join the group that torchrun describes in the environment; without it, be the only rank."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        return Ranks(device=chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        except ValueError as error:  # some schedulers set WORLD_SIZE alone
            told = str(error).strip().splitlines()[0]
            raise UserError(f"WORLD_SIZE is {size}, but {told}: start with torchrun, or unset WORLD_SIZE") from None
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _told_to_end)
    return Ranks(dist.get_rank(), dist.get_world_size(), chosen)
