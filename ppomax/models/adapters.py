"""Which adapters a pass goes through.

peft's own switches also change what is trained, which must stay as it is: weights that are divided among ranks, and
optimisers, know it from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

R = TypeVar("R")


def _switches(model: nn.Module) -> list[Any]:
    """Adapted layers, by the mark that peft's tuner layers bear."""
    return [module for module in model.modules() if hasattr(module, "_active_adapter")]


@contextmanager
def adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Passes within go through the adapters called ``name`` alone, or through none."""
    switches = _switches(model)
    before = [switch._active_adapter for switch in switches]
    for switch in switches:
        switch._active_adapter = [] if name is None else [name]
    try:
        yield
    finally:
        for switch, names in zip(switches, before, strict=True):
            switch._active_adapter = names


def as_now(module: nn.Module, function: Callable[..., R]) -> Callable[..., R]:
    """``function`` of a module, which whenever it is called goes through the adapters that are in use now."""
    switches = _switches(module)
    names = [switch._active_adapter for switch in switches]

    def later(*args: Any, **kwargs: Any) -> R:
        before = [switch._active_adapter for switch in switches]
        for switch, name in zip(switches, names, strict=True):
            switch._active_adapter = name
        try:
            return function(*args, **kwargs)
        finally:
            for switch, name in zip(switches, before, strict=True):
                switch._active_adapter = name

    return later if switches else function


def copy_switches(source: nn.Module, target: nn.Module) -> None:
    """Make ``target``, a copy of ``source``, go through the same adapters as that does now."""
    for mine, its in zip(_switches(source), _switches(target), strict=True):
        its._active_adapter = mine._active_adapter
