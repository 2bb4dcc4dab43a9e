"""What a page says of settings: the twelve details, differences, versions, data, and the command that repeats a run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ppomax.config import PPOConfig
from ppomax.details import DETAILS, preset_configs
from ppomax.report.sections import option
from ppomax.report.stages import Stage, card_lines, flat
from ppomax.train.made import digest, files_of, read_starts, versions

Runs = Mapping[str, Stage]
PLACES = {"output_dir", "model", "reference", "reward", "prompts", "preset"}
"""what a run must say for itself, or says elsewhere on the page: no difference from a preset"""


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


def made(run: Stage, verb: str) -> dict[str, Any]:
    """What a page says of how a run was made: ``command``, ``with``, ``in_memory`` (a sentence or nothing), ``data``,
    ``digests``. From made.json; of a run that has none, from its card and from the files as they are now."""
    starts = read_starts(run.path)
    if not starts:
        version = _card_version(run)
        return {
            "command": command(run, verb), "with": f"Trained with ppomax {version}." if version else "", "in_memory": "",
            "data": [*card_lines(run), *(f"{field}: {path}, {digest(path)}" for field, path in files_of(run.config))],
            "digests": "The run kept no record of its start (made.json): digests are of the files as they are now.",
        }  # fmt: skip
    first, *later = starts
    given = list(map(str, first.get("in_memory") or ()))
    files = [f"{file.get('field')}: {file.get('path')}, {file.get('digest')}" for file in first.get("files") or ()]
    return {
        "command": command(run, verb, int(first.get("ranks") or 1), int(first.get("nodes") or 1)),
        "with": " ".join([f"Trained with {_words(first)}.", *(f"Went on with {_words(start)}." for start in later)]),
        "in_memory": f"Given in memory from Python: {', '.join(given)}. So config.yaml alone does not repeat this run."
        if given
        else "",
        "data": [*map(str, first.get("data") or ()), *files],
        "digests": "Digests are of the files as they were when the run began." if files else "",
    }


def _words(start: Mapping[str, Any]) -> str:
    """Versions, and what they ran on."""
    found = start.get("versions") or {}
    ranks = int(start.get("ranks") or 1)
    return f"{_named(found)}, on {f'{ranks} ranks of ' if ranks > 1 else ''}{start.get('device')}"


def _named(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{'Python' if name == 'python' else name} {version}" for name, version in found.items())


def page_versions() -> str:
    """Of the programs that make the page."""
    return _named(versions())


def _card_version(run: Stage) -> str:
    """The version that the model card names."""
    card = run.path / "final" / "README.md"
    match = re.search(r"made with ppomax (\d[\w.+-]*\w)", card.read_text(encoding="utf-8")) if card.exists() else None
    return match[1] if match else ""


def command(run: Stage, verb: str, ranks: int = 1, nodes: int = 1) -> str:
    """What repeats the run; with ``ranks`` processes, on each of ``nodes`` machines an equal number."""
    program = "ppomax"
    if ranks > 1:
        program = f"torchrun {f'--nnodes {nodes} ' if nodes > 1 else ''}--nproc_per_node {ranks // nodes} -m ppomax"
    return f"{program} {verb} {shlex.quote(str(run.path / 'config.yaml'))} --output_dir ELSEWHERE"
