"""Several stages in sequence from one file (``ppomax run PIPELINE.yaml``)::

    output_dir: runs/hh
    defaults: {seed: 1, device: cpu}           # for every stage that has the field
    stages:
      - {name: base, kind: new-model, size: 6m, tokenizer_from: [dialogues.jsonl]}
      - {name: sft, kind: sft, model: "${base}", data: dialogues.jsonl}
      - {name: rm, kind: reward, model: "${sft}", data: pairs.jsonl}
      - {name: ppo, kind: ppo, model: "${sft}", reward: "${rm}", prompts: prompts.jsonl}

A stage works in ``output_dir/NAME``. ``${sft}`` is the model that an earlier stage leaves (of ``generate`` the file of
answers, of ``world``, ``duel``, ``annotate``, ``evaluate`` and ``exam`` the folder), ``${sft.dir}`` its directory. A finished stage is
skipped, an interrupted one resumed; a stage whose settings changed, or whose inputs were made anew since, is refused:
remove its directory to run it again. All stages are checked before the first one runs.

``--sft PLACE`` gives what a stage would leave: it is not run, nor are stages that only it needs.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppomax import yaml_tree
from ppomax.config import Section
from ppomax.errors import UserError
from ppomax.layers import COMMAND_LINE, Layer, did_you_mean, words_to_layers
from ppomax.options import build, differences, load_yaml
from ppomax.regular_file import expand_path
from ppomax.yaml_tree import Tree


@dataclass(frozen=True)
class Kind:
    """What a stage of this kind is made of; modules are imported when needed."""

    config: str
    """module:class"""
    function: str
    """module:function, called as f(config, resume=bool) or, with ``resumes`` off, f(config)"""
    product: str
    """what later stages get, below the stage's directory"""
    resumes: bool = True
    on_all_ranks: bool = True
    proof: str | None = "config.json"
    """file below the product that only a finished stage has; None: a stage that finds nothing left to do ends at once"""
    place: str = "output_dir"
    """field that says where to write, set by the pipeline: ``output_dir`` is the stage's directory, ``out`` its product"""


KINDS: dict[str, Kind] = {
    "world": Kind(
        "ppomax.world.make:WorldConfig", "ppomax.world.make:write_world", ".", False, False, proof="world.json"
    ),
    "new-model": Kind(
        "ppomax.commands.new_model:NewModelConfig", "ppomax.commands.new_model:make_new_model", ".", False, False
    ),
    "sft": Kind("ppomax.config:SFTConfig", "ppomax.train.sft:train_sft", "final"),
    "reward": Kind("ppomax.config:RewardConfig", "ppomax.train.reward:train_reward", "final"),
    "ppo": Kind("ppomax.config:PPOConfig", "ppomax.train.ppo:train_ppo", "final"),
    "generate": Kind(
        "ppomax.commands.generate:GenerateConfig",
        "ppomax.commands.generate:generate_stage",
        "answers.jsonl",
        proof=None,
        place="out",
    ),
    "duel": Kind("ppomax.evaluate.duel:DuelConfig", "ppomax.evaluate.duel:run_duel", ".", proof="result.json"),
    "annotate": Kind(
        "ppomax.annotate.simulated:SimulateConfig",
        "ppomax.annotate.simulated:simulate",
        ".",
        on_all_ranks=False,
        proof="pairs.jsonl",
    ),
    "evaluate": Kind(
        "ppomax.evaluate.reward_evaluation:EvaluateConfig",
        "ppomax.evaluate.reward_evaluation:run_evaluation",
        ".",
        proof="result.json",
    ),
    "exam": Kind("ppomax.evaluate.exam:ExamConfig", "ppomax.evaluate.exam:run_exam", ".", proof="result.json"),
}
HARMLESS = {
    "device", "checkpoint.every", "checkpoint.keep", "micro_batch_tokens", "sampling.batch_size", "trackers",
    "tracker_project", "tracker_name",
}  # fmt: skip
"""fields that do not change what a finished stage would be, but for rounding"""
STATE = "pipeline.json"
NAME = re.compile(r"[A-Za-z0-9_-]+")
REFERENCE = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")


@dataclass
class Stage:
    """One resolved stage."""

    name: str
    kind: Kind
    config: Section
    directory: Path
    uses: list[str] = field(default_factory=list)
    """earlier stages that its values refer to"""
    given: Path | None = None
    """what it would leave, where that is there already"""
    refused: list[str] = field(default_factory=list)
    """why it could not run: what it refers to is not there"""

    @property
    def product(self) -> Path:
        return self.given or self.directory / self.kind.product


def load(name: str) -> Any:
    """``module:attribute``."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


# -------------------------------------------------------------------------------------------- reading


def read_pipeline(path: str, words: Sequence[str] = ()) -> tuple[Path, list[Stage]]:
    """(output_dir, stages to run) of a file and ``--stage.field value`` words, everything resolved and checked."""
    tree = yaml_tree.read(path)
    top = tree.value if isinstance(tree.value, dict) else {}
    for key in top:
        if key not in ("output_dir", "defaults", "stages"):
            hint = did_you_mean(key, ["output_dir", "defaults", "stages"])
            raise UserError(f"{path}:{tree.lines[(key,)]}: unknown field {key!r}{hint}")
    entries = top.get("stages")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: `stages` must be a list with at least one stage")
    names = [_stage_name(entry, i, path, tree) for i, entry in enumerate(entries)]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{path}:{tree.lines[('stages', i)]}: a second stage called {name!r}: names must differ")
    root, by_stage, given = _sort_words(words, names)
    root = root or top.get("output_dir")
    if not isinstance(root, str):
        raise UserError(f"{path}: `output_dir` is missing: the folder in which every stage gets its own")
    root = expand_path(root)
    shared = top.get("defaults") or {}
    if not isinstance(shared, dict):
        raise UserError(f"{path}:{tree.lines[('defaults',)]}: `defaults` must be a mapping of fields to values")

    stages: list[Stage] = []
    used_defaults: set[str] = set()
    fields: set[str] = set()
    for i, (entry, name) in enumerate(zip(entries, names, strict=True)):
        kind = _kind(entry, tree.lines[("stages", i)], path)
        cls = load(kind.config)
        fields |= set(cls.model_fields)
        directory = Path(root) / name
        defaults = Layer(path, _below(tree, ("defaults",), keep=set(cls.model_fields)))
        used_defaults |= {key.replace("-", "_") for key in defaults.tree.value}
        own = Layer(path, _below(tree, ("stages", i), drop={"name", "kind"}))
        where = directory / kind.product if kind.place == "out" else directory
        if kind.place in own.tree.value:
            raise UserError(f"{own.place((kind.place,))}: {kind.place}: this stage writes to {where}; leave it out")
        layers = [defaults, own, *words_to_layers(cls, by_stage.get(name, []), prefix=f"{name}.")]
        layers.append(Layer(path, Tree({kind.place: str(where)}, {}, {})))
        uses: set[str] = set()
        refused: list[str] = []
        for layer in layers:
            layer.tree = _substitute(layer, {stage.name: stage for stage in stages}, names, uses, refused)
        try:
            config = build(cls, layers)
        except UserError as error:
            raise UserError(f"stage {name}: {error}") from None
        stages.append(Stage(name, kind, config, directory, sorted(uses), given.get(name), refused))
    for key in shared:
        if key.replace("-", "_") not in used_defaults:
            hint = did_you_mean(key, sorted(fields))
            raise UserError(f"{path}:{tree.lines[('defaults', key)]}: no stage has a field {key!r}{hint}")
    kept = _needed(stages)
    if not kept:
        raise UserError(f"{path}: no stage is left to run, with {' and '.join(f'--{name}' for name in given)} given")
    for stage in kept:
        if stage.refused:
            raise UserError(stage.refused[0])
    for name in by_stage:
        if name not in [stage.name for stage in kept]:
            raise UserError(f"--{name}...: stage {name} is not run, with {' and '.join(f'--{g}' for g in given)} given")
    return Path(root), kept


def _needed(stages: Sequence[Stage]) -> list[Stage]:
    """All but those that were given, and those that only serve these."""
    kept: list[Stage] = []
    for stage in reversed(stages):  # what uses a stage comes after it
        users = [other for other in stages if stage.name in other.uses]
        if stage.given is None and (not users or any(stage.name in other.uses for other in kept)):
            kept.insert(0, stage)
    return kept


def _stage_name(entry: Any, i: int, path: str, tree: Tree) -> str:
    where = f"{path}:{tree.lines[('stages', i)]}"
    if not isinstance(entry, dict):
        raise UserError(f"{where}: a stage must be a mapping with name, kind and the fields of that kind")
    name = entry.get("name")
    if name is None:
        raise UserError(f"{where}: this stage has no name")
    name = tree.texts.get(("stages", i, "name"), "")
    if not NAME.fullmatch(name) or name in ("defaults", "output_dir"):
        raise UserError(f"{where}: stage name {name!r}: letters, digits, - and _ only")
    return name


def _kind(entry: Mapping[str, Any], line: int, path: str) -> Kind:
    name = str(entry.get("kind", "")).replace("_", "-")
    if name not in KINDS:
        hint = did_you_mean(name, list(KINDS)) or f"; choose from {', '.join(KINDS)}"
        raise UserError(f"{path}:{line}: stage {entry['name']}: unknown kind {name!r}{hint}")
    return KINDS[name]


def _sort_words(words: Sequence[str], names: Sequence[str]) -> tuple[str | None, dict[str, list[str]], dict[str, Path]]:
    """``--sft.optim.lr 1e-4`` as words of the stage sft, ``--sft PLACE``; ``--output_dir DIR`` for the pipeline."""
    root: str | None = None
    by_stage: dict[str, list[str]] = {}
    given: dict[str, Path] = {}
    current: list[str] | None = None
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if current is None:
                raise UserError(f"unexpected word {word!r} on the command line: options are --stage.field value")
            current.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        of_all = name.replace("-", "_") == "output_dir"
        if of_all or name in names:
            if not equals and not rest:
                raise UserError(f"--{name} needs a value")
            value, current = (value if equals else rest.pop(0)), None
            if of_all:
                root = value
            elif not Path(expand_path(value)).exists():
                raise UserError(
                    f"--{name} {value}: no such file or folder; it stands for what stage {name} would leave"
                )
            else:
                given[name] = Path(expand_path(value))
            continue
        stage, dot, field_name = name.partition(".")
        if not dot or stage not in names:
            known = ", ".join(names)
            raise UserError(
                f"unknown option --{name}: options are --stage.field value or --stage PLACE, and the stages are {known}"
            )
        current = by_stage.setdefault(stage, [])
        current.append(f"--{field_name}{equals}{value}")
    return root, by_stage, given


def _below(tree: Tree, root: tuple[str | int, ...], keep: set[str] | None = None, drop: set[str] = frozenset()) -> Tree:  # type: ignore[assignment]
    """The part of a tree under ``root``, with its places, as a document of its own."""
    value: Any = tree.value
    for part in root:
        value = value.get(part) if isinstance(value, dict) else value[part]
    kept = {
        key: item
        for key, item in (value or {}).items()
        if key not in drop and (keep is None or key.replace("-", "_") in keep)
    }

    def inside(table: Mapping[Any, Any]) -> dict[Any, Any]:
        size = len(root)
        return {path[size:]: x for path, x in table.items() if len(path) > size and path[:size] == root}

    return Tree(kept, inside(tree.lines), inside(tree.texts))


def _substitute(
    layer: Layer, made: Mapping[str, Stage], names: Sequence[str], uses: set[str], refused: list[str]
) -> Tree:
    """``${stage}`` in every text of a layer; variables of the environment are left to whoever reads the path."""

    def one(text: str, place: str) -> str:
        def replace(match: re.Match[str]) -> str:
            name, dot, part = match[1].partition(".")
            if name in made and part in ("", "dir"):
                if made[name].given is None:
                    uses.add(name)
                elif dot:
                    refused.append(f"{place}: ${{{match[1]}}}: stage {name} was given, and has no folder of its own")
                return str(made[name].directory if dot else made[name].product)
            if name in made:
                raise UserError(f"{place}: ${{{match[1]}}}: a stage has ${{{name}}} (its model) and ${{{name}.dir}}")
            if name in names:
                raise UserError(f"{place}: ${{{match[1]}}}: stage {name} does not come before this one")
            if name == "PPOMAX_DATA" or name in os.environ:
                return match[0]
            hint = did_you_mean(name, list(made)) or "; earlier stages are " + (", ".join(made) or "none")
            raise UserError(f"{place}: ${{{match[1]}}} is no earlier stage and no environment variable{hint}")

        return REFERENCE.sub(replace, text)

    def walk(value: Any, path: tuple[str | int, ...]) -> Any:
        if isinstance(value, str):
            return one(value, layer.place(path) or COMMAND_LINE)
        if isinstance(value, dict):
            return {key: walk(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, (*path, i)) for i, item in enumerate(value)]
        return value

    return Tree(walk(layer.tree.value, ()), layer.tree.lines, layer.tree.texts)


# -------------------------------------------------------------------------------------------- running


def run_pipeline(path: str, words: Sequence[str] = ()) -> None:
    """Run what is not finished yet, stage by stage, each where it stopped."""
    root, stages = read_pipeline(path, words)
    ranks = _join(stages)
    state = _read_state(root)
    for stage in stages:  # before the first one runs
        status_of(stage, state)
    for number, stage in enumerate(stages, 1):
        state = _read_state(root)
        status = status_of(stage, state)
        _barrier(ranks)  # every rank has looked before the stage begins to write
        head = f"[{number}/{len(stages)}] {stage.name}"
        if status == "finished":
            _say(f"{head}: finished, skipped ({stage.product})")
            continue
        _say(f"{head}: {'resuming in' if status == 'interrupted' else 'running in'} {stage.directory}")
        if _is_main():
            state[stage.name] = {"from": {name: state.get(name, {}).get("made") for name in stage.uses}}
            _write_state(root, state)
        began = time.monotonic()
        function = load(stage.kind.function)
        try:
            if stage.kind.on_all_ranks or _is_main():
                function(stage.config, resume=status == "interrupted") if stage.kind.resumes else function(stage.config)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from error
        if _is_main():
            state[stage.name]["made"] = time.time_ns()
            _write_state(root, state)
        _barrier(ranks)
        _say(f"{head}: done in {time.monotonic() - began:.0f} s")


def status_of(stage: Stage, state: Mapping[str, Any]) -> str:
    """ "new", "interrupted" or "finished"; a stage that was made otherwise than it would be now is a UserError."""
    saved = stage.directory / "config.yaml"
    if not saved.exists():
        return "new"
    again = f"remove {stage.directory} to run the stage again, or choose another output_dir"
    before = load_yaml(type(stage.config), saved)
    changed = [name for name in differences(before, stage.config) if name not in HARMLESS]
    if changed:
        first = changed[0]
        others = f" (also {', '.join(changed[1:])})" if changed[1:] else ""
        raise UserError(
            f"stage {stage.name}: {first} was {_look(before, first)!r} in {saved} and is now "
            f"{_look(stage.config, first)!r}{others}: change it back, or {again}"
        )
    entry = state.get(stage.name, {})
    for name, made in entry.get("from", {}).items():
        if state.get(name, {}).get("made") != made:
            raise UserError(f"stage {stage.name}: its input, stage {name}, has been made anew since: {again}")
    if entry and "made" not in entry and stage.kind.resumes:
        return "interrupted"
    # a stage that was run by its own verb has no entry: what it left says that it is finished
    proven = stage.kind.proof is not None and (stage.product / stage.kind.proof).exists()
    return "finished" if "made" in entry or proven else "interrupted"


def _look(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _read_state(root: Path) -> dict[str, Any]:
    """stage -> {"from": {stage: token}, "made": token}."""
    file = root / STATE
    if not file.exists():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError:
        raise UserError(
            f"{file}: not readable JSON; remove it (finished stages are then trusted as they are)"
        ) from None


def _write_state(root: Path, state: Mapping[str, Any]) -> None:
    from ppomax.train.checkpoint import write_atomic

    root.mkdir(parents=True, exist_ok=True)
    write_atomic(root / STATE, json.dumps(state, indent=1) + "\n")


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _say(line: str) -> None:
    if _is_main():
        print(line, file=sys.stderr, flush=True)


def _join(stages: Sequence[Stage]) -> Any:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from ppomax.train.parallel import join

    # the process group is made once, for the device that the stages will use
    return join(next((d for stage in stages if (d := getattr(stage.config, "device", None))), "auto"))


def _barrier(ranks: Any) -> None:
    if ranks is not None:
        ranks.barrier()
