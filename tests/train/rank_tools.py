"""Jobs on several ranks: forked children of a process that has imported everything, joined over gloo on this machine."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kill_tools import begin, end

from ppomax.train.sharding import to_save


def free_port() -> int:
    """Below those that the system gives away by itself, so that nobody is given it before it is used."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def start_ranks(job: Callable[[int], int], size: int, log: Path) -> list[int]:
    """Process ids of ``size`` ranks that do ``job(rank)``; what they print goes to ``log``."""
    port = free_port()

    def one(rank: int) -> int:
        if size > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        code = job(rank)
        if size > 1:
            torch.distributed.destroy_process_group()
        return code

    return [begin(lambda rank=rank: one(rank), log) for rank in range(size)]  # type: ignore[misc]


def run_ranks(job: Callable[[int], int], size: int, log: Path) -> list[int]:
    """Exit codes of all ranks."""
    return [end(pid) for pid in start_ranks(job, size, log)]


def flat_weights(model: Any) -> list[float]:
    """All weights of a model, divided or not, in the order of their names; on ranks other than the main one []."""
    whole = to_save(model)
    if whole is None:
        return []
    named = dict(whole.named_parameters())
    return torch.cat([named[name].detach().flatten().cpu() for name in sorted(named)]).tolist()


def worst(found: Any, wanted: Any, absolute: float) -> float:
    """Largest |a - b| / (|b| + absolute) over nested lists and mappings of numbers; anything else must be equal."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), (found.keys(), wanted.keys())
        return max((worst(found[k], wanted[k], absolute) for k in wanted), default=0.0)
    if isinstance(wanted, list):
        assert len(found) == len(wanted)
        return max((worst(a, b, absolute) for a, b in zip(found, wanted, strict=True)), default=0.0)
    if isinstance(wanted, float) and isinstance(found, float):
        return abs(found - wanted) / (abs(wanted) + absolute)
    assert found == wanted, (found, wanted)
    return 0.0
