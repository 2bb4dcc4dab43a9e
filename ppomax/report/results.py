"""The results page of a pipeline, from the files that its stages left behind, and from nothing else.

    python -m ppomax.report.results RUNS_DIR OUT.md     writes OUT.md and the figures in OUT/

Every number is read from RUNS_DIR; every verdict is chosen by the numbers, and what did not come out as expected is
listed as such. Stages are found by name (options below), and one that is missing is named on the page.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ppomax.errors import UserError
from ppomax.evaluate.categories import HARMLESS
from ppomax.report.dialogues import dialogue_section
from ppomax.report.sections import (
    data_section,
    duel_section,
    language_section,
    matched,
    reward_section,
    settings_section,
    time_section,
    training_section,
)
from ppomax.report.stages import Pipeline, parameters, read_lines, read_pipeline
from ppomax.report.verdicts import Verdicts, compare_drift, judge_duel, judge_reward_model, judge_training


def build_page(
    p: Pipeline, out: Path, *, title: str, remake: Sequence[str], machine: str, quotes: int, harmless: str
) -> str:
    """The page as text; its figures are written beside ``out``."""
    figures = out.with_suffix("")
    figures.mkdir(parents=True, exist_ok=True)
    verdicts = Verdicts()
    for stage in p.rewards:
        judge_reward_model(stage, verdicts)
    for i, stage in enumerate(p.ppo):
        judge_training(stage, verdicts, main=i == 0)
    compare_drift(p.ppo, verdicts)
    for run, duel in matched(p):
        if duel.result:
            judge_duel(run, duel, verdicts, main=run is p.ppo[0])
    size = parameters((p.language or p.ppo)[-1].path / "final") if p.language or p.ppo else None
    blocks = [
        f"# {title}",
        f"The whole pipeline on real data: base model, SFT, reward models, PPO. **The model has "
        f"{f'{size:,}' if size else 'few'} parameters and was made from nothing on a few MB of text, so it speaks poorly: "
        "this page shows that the parts work together on real data, not that the answers are good.** All numbers and "
        "figures are made from the run's own files; the sentences below are chosen by the numbers.",
    ]
    if p.missing:
        blocks.append("Not in these files: " + ", ".join(f"`{name}`" for name in p.missing) + ".")
    blocks += ["## In short", *verdicts.blocks()]
    blocks += [*settings_section(p), *data_section(p), *language_section(p), *reward_section(p, figures)]
    blocks += [*training_section(p, figures), *duel_section(p, figures, harmless)]
    if matched(p):
        run, duel = matched(p)[0]
        judged = read_lines(duel.path / "judgements.jsonl")
        blocks += dialogue_section(judged, a=run.title, b="SFT", count=quotes, unquoted=harmless)
    blocks += time_section(p, machine)
    blocks += ["## How to make it again", "```\n" + "\n".join(remake) + "\n```"]
    return "\n\n".join(block for block in blocks if block) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ppomax.report.results", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path, help="output_dir of the pipeline")
    parser.add_argument("out", type=Path, help="page to write, .md; figures go into a folder of the same name")
    parser.add_argument("--title", default="Results: the whole pipeline on two CPU cores")
    parser.add_argument("--recipe", default="recipes/hh_cpu.yaml", help="named under 'How to make it again'")
    parser.add_argument("--machine", default="2 CPU cores", help="where it ran")
    parser.add_argument("--language", nargs="*", default=["base", "sft"], help="stages that train language models")
    parser.add_argument("--rewards", nargs="*", default=["reward", "judge"], help="reward model stages")
    parser.add_argument("--ppo", nargs="*", default=["ppo_max", "vanilla"], help="PPO stages, the main one first")
    parser.add_argument(
        "--duels", nargs="*", default=["duel_ppo_max", "duel_vanilla"], help="their duels with SFT, in order"
    )
    parser.add_argument("--dialogues", type=int, default=10, help="how many are shown")
    parser.add_argument(
        "--harmless", default=HARMLESS,
        help="sources that match are the harmless prompts (judged apart, and not shown: they mean to offend)",
    )  # fmt: skip
    given = parser.parse_args(words)
    if given.out.suffix != ".md":
        print(f"error: {given.out}: the page must end in .md", file=sys.stderr)
        return 2
    try:
        pipeline = read_pipeline(
            given.runs, language=given.language, rewards=given.rewards, ppo=given.ppo, duels=given.duels
        )
        named = list(words if words is not None else sys.argv[1:])
        remake = [f"PPOMAX_DATA=path/to/data ppomax run {given.recipe}"]
        remake.append(
            "python -m ppomax.report.results " + " ".join(f'"{w}"' if re.search(r"[\s|]", w) else w for w in named)
        )
        page = build_page(
            pipeline, given.out, title=given.title, remake=remake, machine=given.machine, quotes=given.dialogues,
            harmless=given.harmless,
        )  # fmt: skip
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    given.out.write_text(page, encoding="utf-8")
    print(f"written: {given.out} and {given.out.with_suffix('')}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
