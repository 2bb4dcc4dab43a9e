"""Forward passes of models whose weights are not all at hand between them: in parts on several ranks, or on the CPU.

Such a model has a `Division` under the name ``division`` (`ppomax.train.sharding` makes them). A function that is marked
with `whole_pass` runs within one pass, with the weights at hand; a model without a division knows no difference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


class Division(Protocol):
    """Brings the weights of a model together for a pass."""

    device: torch.device
    """where a pass is made, wherever the weights lie between passes"""

    def run(self, function: Callable[..., R], model: nn.Module, *args: Any, **kwargs: Any) -> R:
        """``function(model, ...)`` as one forward pass. All ranks that share the weights must make it together."""
        ...

    def most(self, count: int) -> int:
        """The largest of the ranks' counts; the own one where no other rank takes part in passes."""
        ...

    def whole(self, model: nn.Module) -> AbstractContextManager[Any]:
        """``model`` with all its weights on this rank, for any number of passes without gradient."""
        ...


def _division(model: Any) -> Division | None:
    return getattr(model, "division", None)


def whole_pass(function: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Mark a function of a model (its first argument) as one forward pass; what it returns may be differentiated."""

    @functools.wraps(function)
    def marked(model: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        division = _division(model)
        return function(model, *args, **kwargs) if division is None else division.run(function, model, *args, **kwargs)

    return marked


def even_passes(groups: Sequence[list[int]], *models: Any) -> list[list[int]]:
    """``groups`` of rows, one a pass, and empty ones after them where another rank has more of them.

    Ranks that share weights pass together, so a rank that is done goes on with any row that it has, for nothing.
    """
    divisions = [d for d in map(_division, models) if d is not None]
    wanted = max([len(groups), *(d.most(len(groups)) for d in divisions)])
    return [*groups, *([] for _ in range(wanted - len(groups)))]


def whole(model: Any) -> AbstractContextManager[Any]:
    """``with whole(model) as whole_model``: for sampling, which makes far too many passes to gather weights for each."""
    division = _division(model)
    return nullcontext(model) if division is None else division.whole(model)


def device_of(model: Any) -> torch.device:
    """Where the model's passes are made."""
    division = _division(model)
    device: torch.device = next(model.parameters()).device if division is None else division.device
    return device
