"""The people of the embedded world annotate the answers of a duel, through the same database as people on the page.

    ppomax annotate simulate answers_a.jsonl answers_b.jsonl --world runs/world --output_dir runs/round_1

Each person gets items as the page hands them out, blind and in random order, compares the answers as the world's noisy
annotators do (``ppomax.world.annotators``), and says tie where both are worth the same to them. So the loop from a policy to
new preference data can be tried without people: ``recipes/refresh.yaml``.

Written to output_dir: config.yaml, people/ (the database, and what ``ppomax annotate export`` writes), pairs.jsonl for
``ppomax reward``.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ppomax.annotate.export import export
from ppomax.annotate.items import answer_files, duel_items
from ppomax.annotate.store import Annotator, Store, Task
from ppomax.config import Section
from ppomax.errors import UserError
from ppomax.options import dump_yaml
from ppomax.output_dir import claim
from ppomax.regular_file import expand_path
from ppomax.train.checkpoint import write_atomic
from ppomax.train.progress import ProgressLine
from ppomax.world.annotators import Annotators, AnnotatorsConfig
from ppomax.world.judge import TIE
from ppomax.world.world import World, world_named


class SimulateConfig(Section):
    """The embedded world's annotators compare answers to its prompts; in place of people on the page."""

    answers: Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = Field(min_length=1)
    """the folder of a duel, or two files of answers (JSON lines: prompt, response)"""
    world: str
    """the world that the prompts are of: a folder that `ppomax world` made"""
    output_dir: str
    """folder for the database, and pairs.jsonl for `ppomax reward`"""
    annotators: AnnotatorsConfig = AnnotatorsConfig()
    """the people who compare"""
    overlap: float = Field(0.2, ge=0, le=1)
    """share of the prompts that two people judge"""
    seed: int = 0
    """of the order, the sides and what each person thinks"""
    resamples: int = Field(1000, ge=100)
    """bootstrap resamples over prompts, for the intervals of the win rate"""


def simulate(config: SimulateConfig, *, resume: bool = False) -> dict[str, Any]:
    """Have everything annotated, and return the export's result; a killed one goes on where it stopped.

    UserError for prompts that are not of this world, and other mistakes that the caller can mend.
    """
    out, _ = claim(config, config.output_dir, "an annotation", resume=resume, may_change={"output_dir"})
    world = _world(config.world)
    items, lines = duel_items(*answer_files(config.answers))
    for item in items:
        world.task(item.prompt)  # a UserError before anything is written
    for line in lines:
        print(line, file=sys.stderr, flush=True)
    people = out / "people"
    people.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "config.yaml", dump_yaml(config))
    store = Store.begin(people / "annotation.sqlite", items, None, overlap=config.overlap, seed=config.seed)
    try:
        names = [f"person {i + 1}" for i in range(config.annotators.people)]
        _work(config, store, store.add_annotators(names), Annotators(world.truth, config.annotators), world)
    finally:
        store.close()
    return export(people, out / "pairs.jsonl", resamples=config.resamples)


def _work(config: SimulateConfig, store: Store, persons: list[Annotator], minds: Annotators, world: World) -> None:
    """Everybody takes an item in turn until nothing is left."""
    todo = sum(store.needed().values())
    done = sum(judgement.withdrawn is None for judgement in store.judgements())
    with ProgressLine("annotators", todo, done=done) as bar:
        waiting = list(enumerate(persons))
        while waiting:
            for place in list(waiting):
                index, person = place
                task = store.next(person.number)
                if task is None:
                    waiting.remove(place)
                    continue
                choice = _choice(config, minds, world, index, task)
                store.submit(person.number, task.number, f"{index}-{task.number}", choice)
                bar.step()


def _choice(config: SimulateConfig, minds: Annotators, world: World, index: int, task: Task) -> str:
    """left, tie or right of what stands before this person; always the same for the same person and item."""
    answers = (task.item.response_a, task.item.response_b)
    shown = (answers[1], answers[0]) if task.swapped else answers
    asked = world.task(task.item.prompt)
    scores = (world.truth(asked, shown[0]).overall, world.truth(asked, shown[1]).overall)
    worth = [minds.utility(index, score, answer) for score, answer in zip(scores, shown, strict=True)]
    if abs(worth[0] - worth[1]) < TIE:
        return "tie"
    rng = random.Random(f"{config.seed}\x00{index}\x00{task.item.record}")
    return "left" if minds.choose(index, scores, shown, rng) else "right"


def _world(place: str) -> World:
    file = Path(expand_path(place)) / "world.json"
    try:
        return world_named(str(json.loads(file.read_text(encoding="utf-8"))["name"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"world: {place}: no world.json in it: give a folder that `ppomax world` made") from None
