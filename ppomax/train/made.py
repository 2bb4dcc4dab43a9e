"""RUN/made.json: with what a run was started, so that a page made years later can say it.

    {"starts": [{"versions": {"ppomax": ..., "python": ..., "torch": ..., ...}, "ranks": 8, "nodes": 1, "device": "cuda",
                 "in_memory": ["reward"], "files": [{"field": "model", "path": ..., "digest": ...}], "data": [lines]}]}

A resumed run adds its start where it differs from the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ppomax import __version__
from ppomax.config import RunConfig
from ppomax.errors import UserError
from ppomax.regular_file import expand_path
from ppomax.train.checkpoint import write_atomic
from ppomax.train.run import RunDirectory

FILE = "made.json"
FINGERPRINTS = 3
"""changes with what the loaders make of the same files: other numbers than this cannot be compared"""
LARGEST_DIGESTED = 64 * 2**20
"""bytes of a model or of data beyond which only sizes and the ends of the files are read for its digest"""
END = 2**20
"""bytes of each end that are then read"""
MOST_FILES = 1000
"""files of a folder beyond which it gets no digest"""
LIBRARIES = ("torch", "transformers", "numpy")
INSTEAD_OF = {
    "policy": "model", "critic": "critic.init", "ptx": "ptx.data", "records": "data", "pairs": "data",
    "eval_records": "eval_data", "eval_pairs": "eval_data", "demonstrations": "calibration_data",
}  # fmt: skip
"""what is given in memory -> the field that it stands for, where that has another name"""


def versions() -> dict[str, str]:
    """Of this program, of Python and of the libraries that numbers depend on."""
    found = {"ppomax": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in LIBRARIES}


def record_start(run: RunDirectory, config: RunConfig, data: Sequence[str], **given: Any) -> None:
    """Write down this start. ``data``: what is to be said of the records; ``given``: arguments, None where the settings
    say it instead. UserError, on all ranks alike, where a resumed run was begun with other records."""
    starts = read_starts(run.path) if run.ranks.is_main else []
    told = _other_records(starts[-1], data) if starts and run.latest() is not None else ""
    if told := run.ranks.collect([told])[0]:
        raise UserError(f"{run.path / FILE}: the run was begun with other data ({told}): resume with that, or begin in another "
                        "output_dir")  # fmt: skip
    if not run.ranks.is_main:
        return
    size, device = run.ranks.size, run.ranks.device
    in_memory = [name for name, value in given.items() if value is not None]
    unread = {INSTEAD_OF.get(name, name) for name in in_memory}
    start = {
        "versions": versions(), "ranks": size, "nodes": max(1, size // int(os.environ.get("LOCAL_WORLD_SIZE") or size)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type, "in_memory": in_memory,
        "files": [
            {"field": field, "path": path, "digest": digest(path)}
            for field, path in files_of(config.model_dump(mode="json")) if field not in unread
        ],
        "data": list(data), "fingerprints": FINGERPRINTS,
    }  # fmt: skip
    if not starts or starts[-1] != start:
        write_atomic(run.path / FILE, json.dumps({"starts": [*starts, start]}, indent=1, ensure_ascii=False) + "\n")


def _other_records(before: Mapping[str, Any], data: Sequence[str]) -> str:
    """What differs from the records of an earlier start. The order in which they come, and which are held out, goes on from
    the checkpoint: it holds for these alone."""
    if before.get("fingerprints") != FINGERPRINTS:
        return ""
    known, now = ([line for line in lines if "(fingerprint " in line] for lines in (before["data"], data))
    return "" if known == now else f"{', '.join(known)}; now {', '.join(now) or 'none'}"


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Of a run directory; none where it has no such file, or one that somebody else wrote."""
    try:
        starts = json.loads((path / FILE).read_text(encoding="utf-8"))["starts"]
        return [dict(start) for start in starts]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def fingerprint(items: Iterable[Any]) -> str:
    """12 hex digits that change with the items (as `repr` writes them) or their order."""
    found = hashlib.blake2b(digest_size=6)
    for item in items:
        found.update(repr(item).encode(errors="surrogatepass"))
    return found.hexdigest()


def files_of(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, path) of the models and data that settings name; what is no file, such as a function, is left out."""
    critic, ptx, watch = (config.get(name) or {} for name in ("critic", "ptx", "watch"))
    single = {"model": config.get("model"), "reference": config.get("reference"), "critic.init": critic.get("init")}
    for field, path in single.items():
        if isinstance(path, str) and not (field == "critic.init" and path in ("reward", "policy")):
            yield field, path
    several = {name: config.get(name) for name in ("reward", "data", "prompts", "eval_data", "calibration_data")}
    several |= {"ptx.data": ptx.get("data"), "watch.prompts": watch.get("prompts"), "watch.judge": watch.get("judge")}
    for field, sources in several.items():
        for source in sources or ():
            found = source.get("path") or source.get("model") if isinstance(source, dict) else source
            for path in found if isinstance(found, list) else [found]:
                if isinstance(path, str):
                    yield field, path


def digest(path: str) -> str:
    """Words with 12 hex digits: of a file, of a model directory's weights, or of all files of a folder of data."""
    try:
        return _digest(Path(expand_path(path)))
    except (OSError, UserError):
        return "not here as a file"


def _digest(place: Path) -> str:
    files = [place]
    if place.is_dir():
        files = sorted(place.glob("*.safetensors")) or sorted(file for file in place.rglob("*") if file.is_file())
        if not files or len(files) > MOST_FILES:
            return "no digest: an empty folder, or one of very many files"
    sizes = [file.stat().st_size for file in files]
    found = hashlib.blake2b(digest_size=6)
    if sum(sizes) <= LARGEST_DIGESTED:
        for file in files:
            found.update(file.read_bytes())
        return f"digest {found.hexdigest()}"
    for file, size in zip(files, sizes, strict=True):
        found.update(str(size).encode())
        with file.open("rb") as f:
            found.update(f.read(END))
            f.seek(max(0, size - END))
            found.update(f.read(END))
    return f"digest {found.hexdigest()} (of sizes, and of the first and last MiB of each file)"
