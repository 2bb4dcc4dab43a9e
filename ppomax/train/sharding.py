"""Weights divided among ranks with PyTorch's FSDP2, and what else saves memory (section ``parallel`` of a configuration).

    trained models   zero2: each rank keeps its part of weights, gradients and optimiser state; a layer's weights are
                     gathered before its forward pass and kept until its backward pass
                     zero3: they are given up in between, and gathered again
    frozen models    divided like zero3, or on the CPU except while they score

Each layer is gathered by itself, in bf16 where the arithmetic is; embeddings, heads and final norms together, in float32.
Gradients are *summed* in float32, as in `ppomax.train.parallel`: losses are divided by the tokens of all ranks already.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ppomax.config import ParallelConfig
from ppomax.errors import UserError
from ppomax.models.adapters import as_now, copy_switches
from ppomax.train.parallel import Ranks

R = TypeVar("R")


def layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, each of which is gathered, or computed again, by itself."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _require_layers(model: nn.Module, option: str) -> list[nn.Module]:
    found = layers(model)
    if not found:
        raise UserError(
            f"{option}: {type(model).__name__} has no layers of the kind that transformers marks; leave it out"
        )
    return found


def halve_layers(model: nn.Module) -> None:
    """Keep the layers of a frozen model that `shard` divides in bf16, in which they would be gathered anyway.

    No number changes; half of their memory is free. What lies outside the layers is gathered in float32, and stays so.
    """
    for p in (p for layer in layers(model) for p in layer.parameters()):
        p.data = p.data.to(torch.bfloat16)


# ------------------------------------------------------------------------------------------ divided weights


class Sharded:
    """The `Division` of models that were divided as one: ``root`` and the modules within it that are used by themselves."""

    def __init__(self, root: nn.Module, ranks: Ranks, *, bf16: bool) -> None:
        self.root, self.ranks, self.device, self.bf16 = root, ranks, ranks.device, bf16
        self.blueprint = _blueprint(root)
        self.within = False

    @property
    def parts(self) -> list[FSDPModule]:
        return [module for module in self.root.modules() if isinstance(module, FSDPModule)]

    def run(self, function: Callable[..., R], model: nn.Module, *args: Any, **kwargs: Any) -> R:
        if self.within:
            return function(model, *args, **kwargs)
        self.within = True
        try:
            output: R = self.root.run_pass(function, model, *args, **kwargs)  # type: ignore[operator]
        finally:
            self.within = False
        if not torch.is_grad_enabled():  # no backward pass comes to do it
            for part in self.parts:
                part.reshard()
        return output

    def most(self, count: int) -> int:
        counts = torch.tensor(count, device=self.device)
        dist.all_reduce(counts, op=dist.ReduceOp.MAX)
        return int(counts)

    @contextlib.contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """A copy with all weights on this rank's device: as in a pass, layers in bf16 where the arithmetic is."""
        yield self._assemble(model, self.device, halve=self.bf16)

    def saved(self, model: nn.Module) -> nn.Module | None:
        """A copy with all weights on the main rank's CPU, and None on the others; all ranks must ask for it.

        It is ``disposable``, as a `cpu_copy` is.
        """
        copied = self._assemble(model, torch.device("cpu"), halve=False, main_only=True)
        if copied is not None:
            copied.disposable = True
        return copied

    @torch.no_grad()
    def _assemble(self, model: nn.Module, device: torch.device, *, halve: bool, main_only: bool = False) -> Any:
        in_layers = {id(p) for layer in layers(self.blueprint) for p in layer.parameters()} if halve else set()
        memo: dict[int, Any] = {}
        for drawn, p in zip(self.blueprint.parameters(), self.root.parameters(), strict=True):
            full = p.full_tensor() if isinstance(p, DTensor) else p
            if main_only and not self.ranks.is_main:
                continue
            dtype = torch.bfloat16 if id(drawn) in in_layers else full.dtype
            memo[id(drawn)] = nn.Parameter(full.to(device, dtype), requires_grad=False)
        if main_only and not self.ranks.is_main:
            return None
        copied = copy.deepcopy(self.blueprint, memo)
        copy_switches(self.root, copied)
        path = next(name for name, module in self.root.named_modules() if module is model)
        return copied.get_submodule(path).to(device)


def _blueprint(model: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes and no data. A weight under two names stays one weight."""
    memo = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def _run_pass(root: nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What FSDP sees as the forward method of the root; views are copied, since hooks on them could be lost."""
    output = function(*args, **kwargs)
    return tree_map_only(Tensor, lambda t: t if t._base is None else t.clone(), output)


@functools.cache
def _mesh(ranks: Ranks) -> DeviceMesh:
    return init_device_mesh(ranks.device.type, (ranks.size,))


@contextlib.contextmanager
def in_turn(ranks: Ranks) -> Iterator[None]:
    """The ranks of a machine do what is within one after another: each reads whole models before it keeps its parts, and
    together they would need the machine's memory many times. No communication is possible within."""
    if ranks.size == 1 or "LOCAL_WORLD_SIZE" not in os.environ:  # torchrun sets it
        yield
        return
    _mesh(ranks)
    before, here = (int(os.environ[f"LOCAL_{name}"]) for name in ("RANK", "WORLD_SIZE"))
    turns = max(ranks.collect([here]))  # machines may have different numbers of ranks
    mistake: UserError | None = None
    for _ in range(before):
        ranks.barrier()
    try:
        yield
    except UserError as error:  # the others come to it as well, each in its turn
        mistake = error
    for _ in range(turns - before):
        ranks.barrier()
    if mistake is not None:
        raise mistake


def shard(root: nn.Module, ranks: Ranks, *, keep: bool, bf16: bool, views: Sequence[nn.Module] = ()) -> None:
    """Leave on this rank its part of every weight of ``root``, whose passes then go through `ppomax.models.passes`.

    ``keep``: gathered layers stay whole until their backward pass. ``views``: modules within ``root`` that are passed
    by themselves. The weights may lie on the CPU; the parts go to the ranks' device, layer by layer.
    """
    blocks = _require_layers(root, "parallel")
    division = Sharded(root, ranks, bf16=bf16)
    mesh = _mesh(ranks)
    # inputs of a layer are left as they are: the residual stream stays float32, as under autocast on one device
    half = (
        MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        if bf16
        else MixedPrecisionPolicy()
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=not keep, mp_policy=half)
    fully_shard(root, mesh=mesh)
    for part in division.parts:
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other reduction
    root.run_pass = types.MethodType(_run_pass, root)  # type: ignore[assignment]
    register_fsdp_forward_method(root, "run_pass")
    for module in (root, *views):
        module.division = division  # type: ignore[assignment]


def first_device(parallel: ParallelConfig, ranks: Ranks) -> torch.device:
    """Where a trained model is loaded: one that is divided need never lie on a device as a whole."""
    return torch.device("cpu") if parallel.shard != "none" and ranks.size > 1 else ranks.device


def idle(parallel: ParallelConfig, ranks: Ranks) -> list[str]:
    """What is asked for and cannot act, in words."""
    alone = parallel.shard != "none" and ranks.size == 1
    return [f"parallel.shard: {parallel.shard} does nothing on a single rank"] if alone else []


def divide(
    root: nn.Module, parallel: ParallelConfig, ranks: Ranks, precision: str, views: Sequence[nn.Module] = ()
) -> None:
    """Make a trained model, complete with its adapters, ready for many devices as the configuration asks."""
    if parallel.shard != "none" and ranks.size > 1:
        shard(root, ranks, keep=parallel.shard == "zero2", bf16=precision == "bf16", views=views)
    if parallel.activation_checkpointing:
        checkpoint_activations(root)


def to_save(model: Any) -> Any:
    """``model`` as it can be written: itself, or where its weights are divided a whole copy on the main rank (else None)."""
    saved = getattr(getattr(model, "division", None), "saved", None)
    return model if saved is None else saved(model)


# -------------------------------------------------------------------------------------- frozen models on the CPU


class Offloaded:
    """The `Division` of a frozen model that lies on the CPU and comes to the device for its passes.

    It stays there until `go_home`, or until another one of the same ``bench`` comes.
    """

    def __init__(self, model: nn.Module, device: torch.device, bench: list[Offloaded]) -> None:
        self.device, self.bench = device, bench
        self.home = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
        self.here = False

    def come(self) -> None:
        if self.here:
            return
        go_home(self.bench)
        for tensor, data in self.home:
            tensor.data = data.to(self.device, non_blocking=True)
        self.here = True

    def leave(self) -> None:
        """The copy on the CPU never changed, so nothing is copied back."""
        for tensor, data in self.home:
            tensor.data = data
        self.here = False

    def run(self, function: Callable[..., R], model: nn.Module, *args: Any, **kwargs: Any) -> R:
        self.come()
        return function(model, *args, **kwargs)

    def most(self, count: int) -> int:
        return count

    @contextlib.contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        self.come()
        yield model


def put_aside(model: nn.Module, parallel: ParallelConfig, ranks: Ranks, precision: str, bench: list[Offloaded]) -> None:
    """Make a frozen model, which was loaded on the CPU, ready as the configuration asks."""
    if parallel.frozen == "offload":
        offload(model, ranks.device, bench)
    elif parallel.frozen == "shard" and ranks.size > 1:
        shard(model, ranks, keep=False, bf16=precision == "bf16")
    else:
        model.to(ranks.device)


def offload(model: nn.Module, device: torch.device, bench: list[Offloaded]) -> None:
    """Leave a frozen model on the CPU between its passes on ``device``."""
    model.division = Offloaded(model.to("cpu"), device, bench)  # type: ignore[assignment]
    bench.append(model.division)  # type: ignore[arg-type]


def go_home(bench: Sequence[Offloaded]) -> None:
    """Free the device of whatever model of the bench is on it."""
    for offloaded in bench:
        if offloaded.here:
            offloaded.leave()


# -------------------------------------------------------------------------------------- activation checkpointing


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only each layer's input from forward to backward, and compute the rest again.

    The layer's own ``forward`` is wrapped, inside of the hooks that gather its weights. Models run in evaluation mode,
    where transformers' own switch does nothing; there is no dropout, so no random numbers have to be kept.
    """
    for layer in _require_layers(model, "parallel.activation_checkpointing"):
        layer.forward = _recomputed(layer, layer.forward)


def _recomputed(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward_again(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(as_now(layer, forward), *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return forward_again
