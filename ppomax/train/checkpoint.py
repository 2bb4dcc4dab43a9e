"""Everything a run needs to go on, written whole or not at all, without pickle.

A checkpoint is a directory ``step-000100`` with, for each part, ``NAME.safetensors`` (its tensors) and ``NAME.json``
(its numbers, strings and structure). It is written beside its place and renamed, so a kill leaves it whole or absent.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppomax.errors import UserError


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill, sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def _split(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """Structure of ``value`` as JSON, its tensors moved to ``tensors``."""
    if isinstance(value, Tensor):
        # clone: two names for one storage (tied weights) must not alias in a safetensors file
        while path in tensors:  # keys "a/b" and "a" > "b", or 1 and "1", would meet here
            path += "'"
        tensors[path] = value.detach().cpu().clone().contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        if bad := [k for k in value if not isinstance(k, str | int)]:
            raise TypeError(f"cannot save a {type(bad[0]).__name__} as a key at {path}")
        return {"map": [[k, _split(v, tensors, f"{path}/{k}")] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_split(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"cannot save a {type(value).__name__} at {path}")


def _join(node: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "map" in node:
        return {k: _join(v, tensors) for k, v in node["map"]}
    if "list" in node:
        return [_join(v, tensors) for v in node["list"]]
    if "tuple" in node:
        return tuple(_join(v, tensors) for v in node["tuple"])
    return node["value"]


def save_part(directory: Path, name: str, state: Any) -> None:
    """Write one nested state (dicts, lists, tuples, tensors, plain values)."""
    tensors: dict[str, Tensor] = {}
    structure = _split(state, tensors, "")
    save_file(tensors, directory / f"{name}.safetensors")
    (directory / f"{name}.json").write_text(json.dumps(structure), encoding="utf-8")


def load_part(directory: Path, name: str) -> Any:
    """Read what `save_part` wrote; tensors on the CPU. A missing or damaged file is a `UserError`."""
    try:
        structure = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        return _join(structure, load_file(directory / f"{name}.safetensors"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{directory}: part {name!r} is missing or damaged ({error}); remove this checkpoint to use an older one"
        ) from None


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
    folder: Path, step: int, parts: Mapping[str, Any], keep: int, protected: Collection[int] = ()
) -> Path:
    """Write ``folder/step-XXXXXX`` atomically, then remove all but the newest ``keep`` (at least 1) and ``protected`` steps."""
    target = folder / f"step-{step:06d}"
    temporary = folder / f".step-{step:06d}.part"
    for leftover in folder.glob(".step-*"):  # of a killed run
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    for name, state in parts.items():
        save_part(temporary, name, state)
    for file in temporary.iterdir():
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
