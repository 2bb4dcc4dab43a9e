"""To see the phases of `train_ppo` from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ppomax.train import ppo


class Stopped(Exception):
    """Enough iterations were seen."""


def settle(device: str) -> None:
    """Wait until the device has done what it was given, so that a clock read now tells the truth."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@contextmanager
def watched(
    lapped: Callable[[str, float], None], begun: Callable[[], None] = lambda: None, device: str = "cpu"
) -> Iterator[None]:
    """``begun()`` before each iteration, ``lapped(phase, seconds)`` after each phase; their own time is nobody's.

    ``lapped`` may raise `Stopped` to end the run here.
    """
    first, lap = ppo.Clock.__init__, ppo.Clock.lap

    def start(clock: ppo.Clock) -> None:
        begun()
        settle(device)
        first(clock)

    def next_lap(clock: ppo.Clock, name: str) -> None:
        settle(device)
        lap(clock, name)
        lapped(name, clock.laps[name])
        clock.last = time.perf_counter()

    ppo.Clock.__init__, ppo.Clock.lap = start, next_lap  # type: ignore[method-assign]
    try:
        yield
    except Stopped:
        pass
    finally:
        ppo.Clock.__init__, ppo.Clock.lap = first, lap  # type: ignore[method-assign]
