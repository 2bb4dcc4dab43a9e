"""What a page says of settings: the twelve details, differences, versions, data, and the command that repeats a run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ppomax import __version__
from ppomax.config import PPOConfig
from ppomax.details import DETAILS, preset_configs
from ppomax.report.sections import option
from ppomax.report.stages import Stage, card_lines, flat

Runs = Mapping[str, Stage]
PLACES = {"output_dir", "model", "reference", "reward", "prompts", "preset"}
"""what a run must say for itself, or says elsewhere on the page: no difference from a preset"""
LARGEST_DIGESTED = 64 * 2**20
"""bytes of a data file beyond which it is not read for its digest"""
SHARED_LIBRARIES = ("torch", "transformers", "numpy")


def read_settings(run: Stage) -> PPOConfig | None:
    """None where this version cannot read them: an older run's, with fields that are gone."""
    try:
        return PPOConfig.model_validate(run.config)
    except ValidationError:
        return None


def details(runs: Runs) -> dict[str, Any]:
    """The twelve details: ``head`` and ``rows`` [(number, name, state of each run)]; a single run beside its preset."""
    configs = {name: config for name, run in runs.items() if (config := read_settings(run)) is not None}
    if not configs:
        return {"head": [], "rows": []}
    if len(configs) == 1:
        config = next(iter(configs.values()))
        configs[f"preset {config.preset}"] = preset_configs()[config.preset]
    rows = [(d.number + ("*" if d.starred else ""), d.name, [d.state(c) for c in configs.values()]) for d in DETAILS]
    return {"head": list(configs), "rows": rows}


def from_preset(run: Stage) -> list[tuple[str, str, str]] | None:
    """(option, preset, run) where they differ; None where the settings cannot be read."""
    config = read_settings(run)
    if config is None:
        return None
    ours, preset = (flat(c.model_dump(mode="json")) for c in (config, preset_configs()[config.preset]))
    return [
        (name, option(preset.get(name)), option(value))
        for name, value in ours.items()
        if value != preset.get(name) and name.split(".")[0] not in PLACES
    ]


def between(runs: Runs) -> list[tuple[str, list[str]]]:
    """(option, value in each run) where the runs differ."""
    configs = [flat(run.config) for run in runs.values()]
    names = [name for name in dict.fromkeys(n for c in configs for n in c) if name != "output_dir"]
    return [
        (name, [_cell(c, name) for c in configs])
        for name in names
        if len({json.dumps(c.get(name)) for c in configs}) > 1
    ]


def _cell(config: Mapping[str, Any], name: str) -> str:
    value = config.get(name)
    if name not in config:
        return "–"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else option(value)


# --------------------------------------------------------------------------------------- made again


def versions() -> str:
    """Of the programs that make the page; at the end of a run they are those that trained it."""
    found = [f"ppomax {__version__}", f"Python {platform.python_version()}"]
    return ", ".join([*found, *(f"{name} {metadata.version(name)}" for name in SHARED_LIBRARIES)])


def trained_with(run: Stage) -> str:
    """The version that the model card names."""
    card = run.path / "final" / "README.md"
    match = re.search(r"made with ppomax (\d[\w.+-]*\w)", card.read_text(encoding="utf-8")) if card.exists() else None
    return match[1] if match else ""


def command(run: Stage, verb: str) -> str:
    """What repeats the run."""
    return f"ppomax {verb} {shlex.quote(str(run.path / 'config.yaml'))} --output_dir ELSEWHERE"


def data(run: Stage) -> list[str]:
    """What the run wrote down of its data, and digests of the files that its settings name, as they are now."""
    lines = card_lines(run)
    for name, path in _files(run.config):
        lines.append(f"{name}: {path}, {_digest(Path(os.path.expandvars(path)).expanduser())}")
    return lines


def _files(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, path) of models and data that the settings name."""
    for name in ("model", "reference"):
        if isinstance(config.get(name), str):
            yield name, config[name]
    for name in ("reward", "data", "prompts", "eval_data", "calibration_data"):
        for source in config.get(name) or ():
            found = source.get("path") or source.get("model") if isinstance(source, dict) else source
            for path in found if isinstance(found, list) else [found]:
                if isinstance(path, str):
                    yield name, path


def _digest(path: Path) -> str:
    """12 hex digits of a file's bytes, or of a model directory's weights."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    try:
        if not files or sum(file.stat().st_size for file in files) > LARGEST_DIGESTED:
            return "no digest: a folder of data, or too large" if path.exists() else "not here now"
        digest = hashlib.blake2b(digest_size=6)
        for file in files:
            digest.update(file.read_bytes())
    except OSError:
        return "not here now"
    return f"digest {digest.hexdigest()}"
