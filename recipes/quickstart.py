"""Minutes on a CPU, from a small SFT model to an aligned policy: `make quickstart`, or

    python recipes/quickstart.py [--language zh] [--output-dir DIR] [--from-scratch] [--STAGE.FIELD VALUE ...]

Runs quickstart.yaml: an invented world (docs/world.md), a base model, SFT, a reward model, PPO-max and vanilla PPO. SFT and
reward model lie in models/, made by this very recipe; with --from-scratch (make quickstart-from-scratch), or with options
that change how they come about, everything is trained here. Then it says what happened by the world's judge, which knows
the truth and which nothing was trained on, in a table, three dialogues and a page. Run again, it goes on where it stopped;
finished stages are kept. Needs neither network nor GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppomax.commands.terminal import visible
from ppomax.errors import UserError
from ppomax.pipeline import run_pipeline
from ppomax.report.comparison import RULE, Compared, compare_runs, dialogues, sentences
from ppomax.report.comparison_page import comparison_page, note, table
from ppomax.train.checkpoint import write_atomic
from ppomax.world import fingerprint

RECIPE = Path(__file__).with_name("quickstart.yaml")
MODELS = Path(__file__).with_name("models")
"""LANGUAGE/sft, LANGUAGE/reward and LANGUAGE/made.json, written by keep_models.py"""
PPO_STAGES = ("ppo_max", "vanilla", "sft_answers", "duel_ppo_max", "duel_vanilla", "exam")
"""an option of any other stage changes what the models in MODELS were made from"""
HOME = "runs/quickstart"
RUNS = ("ppo_max", "vanilla")
WORDS: dict[str, list[str]] = {"en": [], "zh": ["--world.language=zh"]}
FROM_SCRATCH: dict[str, list[str]] = {"en": [], "zh": ["--pairs.language=zh", "--fresh.vocab_size=640"]}
"""by language; with more entries a Chinese token would be a whole clause, thing and fact in one, and little is learned"""
HEADS = {"perplexity": "perpl.", "wins": "wins\nall"}
"""shorter names in the terminal's table"""


def terminal_table(rows: Sequence[Compared]) -> Table:
    """A line a model."""
    measures = table(rows)
    out = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)  # fits 80 columns
    out.add_column("", no_wrap=True)
    for name, _ in measures:
        out.add_column(HEADS.get(name, name.replace(", ", "\n")), justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        out.add_row(
            row.title.replace(" ", "\n"), *(cells[i].replace(" [", "\n[").replace("[", r"\[") for _, cells in measures)
        )
    return out


def show(
    console: Console, rows: Sequence[Compared], said: Sequence[str], shown: Sequence[dict[str, Any]], chance: float
) -> None:
    """All of it for a terminal."""
    console.print(terminal_table(rows))
    console.print(Text(note(rows, chance), style="dim"))
    console.print()
    for sentence in said:
        console.print(Text(f"* {sentence}"))
    console.print(Text(f"\nBefore and after, {RULE.format(title=rows[1].title)}; the judge's score in brackets:"))
    for d in shown:
        console.print(Text(f"\n{d['category']}", style="bold"))
        for turn in d["turns"]:
            console.print(Text(visible(f"  {turn['role']:13} {turn['content']}")))
        for a in d["answers"]:
            console.print(Text(visible(f"  {a['title']:13} {a['text']}") + f"  ({a['score']:.2f})"))


def from_here(path: Path) -> Path:
    """As a command in this directory would name it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def command() -> str:
    """How to call ppomax from here: the virtual environment of `make quickstart` is not active in the caller's shell."""
    beside = Path(sys.executable).with_name("ppomax")
    return str(from_here(beside)) if beside.exists() else "ppomax"


def ready(language: str, out: Path, options: Sequence[str]) -> Path | None:
    """Where SFT and reward model lie ready for a run like this one; None: it makes its own."""
    anew = None
    for option in options:
        stage, dot, _ = option.removeprefix("--").partition(".")
        if option.startswith("--") and not dot:
            raise UserError(
                f"unknown option {option}; models of your own: ppomax run {from_here(RECIPE)} --sft PLACE ..."
            )
        if option.startswith("--") and stage not in PPO_STAGES:
            anew = option
    if (out / "fresh").exists():  # as it did before
        return None
    if anew is not None:
        if (out / "ppo_max").exists():
            raise UserError(f"{out}: began with models that were there, and {anew} changes these: add --output-dir")
        print(f"quickstart: SFT and reward model are trained here, as {anew} may change them", file=sys.stderr)
        return None
    place = from_here(MODELS / language)
    made = json.loads((place / "made.json").read_text(encoding="utf-8"))["world"]["hash"]
    if made != fingerprint():
        raise UserError(
            f"{place}: made in a world of hash {made}, and this one has {fingerprint()}: add --from-scratch"
        )
    print(f"SFT and reward model: {place}; make quickstart-from-scratch trains them too", file=sys.stderr)
    return place


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", choices=list(WORDS), default="en")
    parser.add_argument("--output-dir", type=Path, help=f"default: {HOME}, with _from_scratch and _zh where they apply")
    parser.add_argument("--from-scratch", action="store_true", help="train base, SFT and reward model here")
    given, options = parser.parse_known_args(words)
    ending = "_from_scratch" * given.from_scratch + (f"_{given.language}" if given.language != "en" else "")
    out: Path = given.output_dir or Path(HOME + ending)
    began = time.monotonic()
    try:
        place = None if given.from_scratch else ready(given.language, out, options)
        start = [f"--{name}={place / name}" for name in ("sft", "reward")] if place else FROM_SCRATCH[given.language]
        run_pipeline(str(RECIPE), ["--output_dir", str(out), *WORDS[given.language], *start, *options])
        rows = compare_runs(out, RUNS)
        said, shown = sentences(rows), dialogues(out, rows)
    except UserError as error:
        print(f"quickstart: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nquickstart: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    world = json.loads((out / "world" / "world.json").read_text(encoding="utf-8"))
    exam = json.loads((out / "exam" / "result.json").read_text(encoding="utf-8"))
    chance = next(iter(exam["models"].values()))["overall"]["chance"]
    facts = {key: world[key] for key in ("name", "version", "hash")}
    summary = {"world": facts, "models": {row.name: row.numbers() for row in rows}, "sentences": said}
    write_atomic(out / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    about = (
        f"World {facts['name']}, version {facts['version']}, hash {facts['hash']}; SFT and reward model "
        f"{'made in this run' if place is None else 'as they came'}. Settings: config.yaml in each stage's folder."
    )
    title = "Quickstart: PPO-max and vanilla PPO from one start"
    write_atomic(out / "report.html", comparison_page(title, about, rows, said, shown, chance))
    console = Console(highlight=False, soft_wrap=False)
    show(console, rows, said, shown, chance)
    sft = out / "sft" / "final" if place is None else place / "sft"
    question = shown[0]["turns"][-1]["content"] if shown else ""
    minutes = (time.monotonic() - began) / 60
    for line in (
        f"\n{minutes:.1f} minutes. The page: {out / 'report.html'}; the numbers: {out / 'summary.json'}",
        f"Next, talk to it: {command()} chat {out}/ppo_max/final --against {from_here(sft)}",
        f"(it knows its world alone; ask: {question})",
    ):
        console.print(Text(visible(line)), soft_wrap=True)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(min(2, torch.get_num_threads()))  # more get in each other's way in models this small
    sys.exit(main(sys.argv[1:]))
