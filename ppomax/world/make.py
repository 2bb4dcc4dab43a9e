"""``ppomax world OUT``: a world as ordinary files that every command takes."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ppomax.config import Section
from ppomax.data.records import Message
from ppomax.errors import UserError
from ppomax.options import dump_yaml
from ppomax.regular_file import expand_path, require_place
from ppomax.train.progress import ProgressLine
from ppomax.world.annotators import Annotators, AnnotatorsConfig
from ppomax.world.judge import Judge
from ppomax.world.prompts import Task
from ppomax.world.world import MIXES, VERSION, World, fingerprint


class WorldConfig(Section):
    """The embedded world as files: text, dialogues, prompts, preference pairs, exam; its judge is ppomax.world.reward:score."""

    output_dir: str
    """folder to make; one that exists and is not empty is refused"""
    language: Literal["en", "zh"] = "en"
    """English or Chinese"""
    seed: int = Field(0, ge=0)
    """draws everything: facts, texts, annotators"""
    size: Literal["small", "standard", "large"] = "standard"
    """24, 40 or 80 invented things, with four facts and three steps each"""
    texts: int = Field(4000, ge=1)
    """passages of plain text (about 45 words each)"""
    dialogues: int = Field(6000, ge=1)
    """demonstrations of mixed quality"""
    train_prompts: int = Field(1400, ge=1)
    """prompts for PPO; of many more, some kinds would run out"""
    heldout_prompts: int = Field(1200, ge=1)
    """prompts that ask what no training prompt asks"""
    pairs: int = Field(6000, ge=1)
    """preference pairs"""
    mix: Literal["broad", "narrow"] = "broad"
    """writers of the pairs' answers: all kinds of failure, or only right and wrong facts"""
    answers: list[str] = Field([])
    """files of a model's answers to train prompts (prompt, response), which then make up part of the pairs"""
    annotators: AnnotatorsConfig = AnnotatorsConfig()
    """the people who compare"""


def write_world(config: WorldConfig) -> dict[str, Any]:
    """Write the files and return what world.json says. The folder appears whole, or, after a kill, not at all."""
    out = Path(expand_path(config.output_dir))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{config.output_dir} already exists and is not empty: choose another folder for the world")
    require_place(out, "output_dir")
    world = World(config.language, config.seed, config.size)
    samples = [row for path in config.answers for row in read_samples(Path(expand_path(path)), world)]
    demonstrations = world.demonstrations(config.dialogues)
    heldout = world.demonstrations(max(1, config.dialogues // 20), "heldout")
    with ProgressLine("world, pairs", config.pairs) as bar:
        people = _Watched(world.truth, config.annotators, bar)
        pairs = world.pairs(config.pairs, people, mix=MIXES[config.mix], samples=samples)
    texts = world.text(config.texts)
    known = set(texts)
    drawn = dict.fromkeys(world.text(max(1, config.texts // 10), "heldout"))
    other_texts = [text for text in drawn if text not in known]  # short passages may be the same
    rows: dict[str, list[dict[str, Any]]] = {
        "text": [{"text": text} for text in texts],
        "text_heldout": [{"text": text} for text in other_texts],
        "dialogues": [{"messages": d.messages, "source": d.source} for d in demonstrations],
        "dialogues_heldout": [{"messages": d.messages, "source": d.source} for d in heldout],
        **{
            f"prompts_{split}": [
                {"prompt": p.messages, "source": p.source, **dict(p.metadata)} for p in world.prompts(split, n)
            ]
            for split, n in (("train", config.train_prompts), ("heldout", config.heldout_prompts))
        },
        "pairs": [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected, "source": p.source} for p in pairs],
        "exam": world.exam(),
    }
    part = out.resolve().with_name(f".{out.resolve().name}.part")
    if part.exists():  # of a kill
        shutil.rmtree(part)
    part.mkdir(parents=True)
    hashes = {name: _write(part / f"{name}.jsonl", lines) for name, lines in rows.items()}
    facts = {
        "version": VERSION,
        "hash": fingerprint(),
        "name": world.name,
        "language": config.language,
        "seed": config.seed,
        "size": config.size,
        "entities": len(world.facts.entities),
        "records": {name: len(lines) for name, lines in rows.items()},
        "sha256": hashes,
        "mix": config.mix,
        "samples": len(samples),
        "demonstrations": quality(world, demonstrations),
        "annotators": {**config.annotators.model_dump(), **people.tally.summary()},
        "judge": "ppomax.world.reward:score",
    }
    (part / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    (part / "world.json").write_text(json.dumps(facts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if out.exists():
        out.rmdir()
    part.replace(out)
    return facts


class _Watched(Annotators):
    """Annotators whose work is shown: judging the pairs is most of what a world takes."""

    def __init__(self, judge: Judge, config: AnnotatorsConfig, bar: ProgressLine) -> None:
        super().__init__(judge, config)
        self.bar = bar

    def prefer(self, task: Task, a: str, b: str, rng: random.Random) -> bool:
        self.bar.step()
        return super().prefer(task, a, b, rng)


def quality(world: World, demonstrations: Sequence[Any]) -> dict[str, float]:
    """Category -> share of demonstrations that the judge accepts."""
    counts: dict[str, list[int]] = {}
    for d in demonstrations:
        task = world.task(d.messages[:-1])
        n = counts.setdefault(task.category, [0, 0])
        n[0] += 1
        n[1] += world.judge(task, d.messages[-1]["content"]).acceptable
    return {category: round(good / n, 4) for category, (n, good) in sorted(counts.items())}


def read_samples(path: Path, world: World) -> list[tuple[Task, str]]:
    """Answers of a model to prompts of this world, from a file of ``ppomax generate`` or ``duel``."""
    if not path.is_file():
        raise UserError(f"answers: no file {path}")
    out: list[tuple[Task, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, response = row["prompt"], row["response"]
            if not isinstance(response, str):
                raise TypeError
            turns: list[Message] | str = prompt if isinstance(prompt, str) else [*prompt]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}:{number}: expected an object with `prompt` and `response`") from None
        try:
            out.append((world.task(turns), response))
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
    return out


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Write JSON lines and return their hash."""
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()[:16]


def report(facts: dict[str, Any], out: str) -> list[str]:
    """What was made, in lines."""
    people = facts["annotators"]
    return [
        f"{out}: world {facts['name']}, version {facts['version']}, hash {facts['hash']}",
        "  " + ", ".join(f"{name} {n:,}" for name, n in facts["records"].items()),
        "  demonstrations that the judge accepts: "
        + ", ".join(f"{category} {share:.0%}" for category, share in facts["demonstrations"].items()),
        f"  annotators: accuracy {people['accuracy']:.3f}, agreement {people['agreement']:.3f}, "
        f"the longer answer preferred in {people['longer_preferred']:.0%}",
    ]
