"""Everything a run needs to go on, written whole or not at all, without pickle.

A checkpoint is a directory ``step-000100`` with, for each part, ``NAME.safetensors`` (its tensors) and ``NAME.json``
(its numbers, strings and structure). It is written beside its place and renamed, so a kill leaves it whole or absent.

Tensors that are divided among ranks (DTensor) lie in the folder ``divided``, where every rank writes its own parts with
PyTorch's distributed checkpoint, as safetensors too. Any number of ranks can read them: see `placed`.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor

from ppomax.errors import UserError
from ppomax.train.parallel import Ranks

DIVIDED = "divided"


@dataclass(frozen=True)
class Divided:
    """A tensor that lies in parts in a checkpoint; `placed` reads it."""

    checkpoint: Path
    name: str


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill, sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def _split(value: Any, tensors: dict[str, Tensor], divided: dict[str, DTensor], path: str) -> Any:
    """Structure of ``value`` as JSON, its tensors moved to ``tensors`` and ``divided``."""
    if isinstance(value, DTensor):
        divided[path] = cast(DTensor, value.detach())
        return {"divided": path}
    if isinstance(value, Tensor):
        while path in tensors:  # keys "a/b" and "a" > "b", or 1 and "1", would meet here
            path += "'"
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        if bad := [k for k in value if not isinstance(k, str | int)]:
            raise TypeError(f"cannot save a {type(bad[0]).__name__} as a key at {path}")
        return {"map": [[k, _split(v, tensors, divided, f"{path}/{k}")] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_split(v, tensors, divided, f"{path}/{i}") for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"cannot save a {type(value).__name__} at {path}")


def _join(node: dict[str, Any], tensors: dict[str, Tensor], part: Path) -> Any:
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "divided" in node:
        return Divided(part.parent, part.name + node["divided"])
    if "map" in node:
        return {k: _join(v, tensors, part) for k, v in node["map"]}
    if "list" in node:
        return [_join(v, tensors, part) for v in node["list"]]
    if "tuple" in node:
        return tuple(_join(v, tensors, part) for v in node["tuple"])
    return node["value"]


def save_part(directory: Path, name: str, state: Any) -> None:
    """Write one nested state (dicts, lists, tuples, tensors, plain values); divided tensors are left to `_save_divided`."""
    tensors: dict[str, Tensor] = {}
    structure = _split(state, tensors, {}, "")
    # clone: two names for one storage (tied weights) must not alias in a safetensors file
    tensors = {path: value.detach().cpu().clone().contiguous() for path, value in tensors.items()}
    save_file(tensors, directory / f"{name}.safetensors")
    (directory / f"{name}.json").write_text(json.dumps(structure), encoding="utf-8")


def load_part(directory: Path, name: str) -> Any:
    """Read what `save_part` wrote; tensors on the CPU, divided ones still to be `placed`.

    A missing or damaged file is a `UserError`.
    """
    try:
        structure = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        return _join(structure, load_file(directory / f"{name}.safetensors"), directory / name)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _damaged(directory, name, error) from None


def _damaged(directory: Path, name: str, error: BaseException) -> UserError:
    told = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return UserError(
        f"{directory}: part {name!r} is missing or damaged ({told}); remove this checkpoint to use an older one"
    )


# ---------------------------------------------------------------------------------------- divided tensors


def _divided(parts: Mapping[str, Any]) -> dict[str, DTensor]:
    found: dict[str, DTensor] = {}
    for name, state in parts.items():
        in_part: dict[str, DTensor] = {}
        _split(state, {}, in_part, "")
        found |= {name + path: tensor for path, tensor in in_part.items()}
    return found


def _save_divided(directory: Path, tensors: Mapping[str, DTensor]) -> None:
    """Every rank writes its parts; all ranks must call it together."""
    writer = dcp.HuggingFaceStorageWriter(str(directory / DIVIDED), save_distributed=True)
    dcp.save(dict(tensors), storage_writer=writer)


def placed(state: Any, like: Any) -> Any:
    """``state`` of a checkpoint with its tensors in the form of their counterparts: whole, or this rank's part.

    ``like`` has tensors under the same keys as ``state``; what it lacks stays as it is. It does not matter how many
    ranks wrote the checkpoint, or whether its tensors were divided. All ranks must call it together.
    """
    wanted: dict[str, Tensor] = {}
    checkpoints: set[Path] = set()

    def place(value: Any, model: Any) -> Any:
        if isinstance(value, Divided):
            checkpoints.add(value.checkpoint)
            wanted[value.name] = torch.empty_like(model.detach())
            return wanted[value.name]
        if isinstance(value, Tensor) and isinstance(model, DTensor):  # each rank has all of it, and nothing is sent
            whole = value.to(model.device)
            return distribute_tensor(whole, model.device_mesh, model.placements, src_data_rank=None)
        if isinstance(value, dict):
            return {k: place(v, model[k]) if isinstance(model, Mapping) and k in model else v for k, v in value.items()}
        return value

    result = place(state, like)
    for checkpoint in checkpoints:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that a single process loads it alone, which is meant
                dcp.load(wanted, storage_reader=dcp.HuggingFaceStorageReader(str(checkpoint / DIVIDED)))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, CheckpointException) as error:
            raise _damaged(checkpoint, DIVIDED, error) from None
    return result


def rng_state(device: torch.device) -> dict[str, Any]:
    """Random generators of Python and PyTorch (CPU, and the device's)."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hide(checkpoint: Path) -> Path:
    """Rename before deleting, since a kill half-way must leave no half checkpoint under a checkpoint's name."""
    return checkpoint.replace(checkpoint.with_name(f".{checkpoint.name}.old"))


def save_checkpoint(
    folder: Path, step: int, parts: Mapping[str, Any], keep: int, protected: Collection[int] = (), ranks: Ranks | None = None
) -> Path:  # fmt: skip
    """Write ``folder/step-XXXXXX`` atomically, then remove all but the newest ``keep`` (at least 1) and ``protected`` steps.

    All ``ranks`` call it; each writes its parts of divided tensors, and the main one does everything else.
    """
    ranks = ranks or Ranks()
    target = folder / f"step-{step:06d}"
    temporary = folder / f".step-{step:06d}.part"
    if ranks.is_main:
        for leftover in folder.glob(".step-*"):  # of a killed run
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
    if divided := _divided(parts):
        ranks.barrier()
        _save_divided(temporary, divided)
        ranks.barrier()
    if not ranks.is_main:
        return target
    for name, state in parts.items():
        save_part(temporary, name, state)
    for file in temporary.rglob("*"):
        _sync(file)
    _sync(temporary)
    doomed = [_hide(target)] if target.exists() else []
    temporary.replace(target)
    _sync(folder)
    doomed += [
        _hide(old) for old in list_checkpoints(folder)[:-keep] if old != target and step_of(old) not in protected
    ]
    for hidden in doomed:
        shutil.rmtree(hidden)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    # by number: as words, step-1000000 would come before step-999999
    return sorted((p for p in folder.iterdir() if re.fullmatch(r"step-\d+", p.name) and p.is_dir()), key=step_of)


def latest_checkpoint(folder: Path) -> Path | None:
    found = list_checkpoints(folder)
    return found[-1] if found else None


def step_of(checkpoint: Path) -> int:
    try:
        return int(checkpoint.name.removeprefix("step-"))
    except ValueError:
        raise UserError(f"{checkpoint}: not a checkpoint directory (expected a name such as step-000100)") from None
