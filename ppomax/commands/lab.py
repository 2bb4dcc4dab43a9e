"""``ppomax lab run|plan|report``: the claims of the paper, tested."""

from __future__ import annotations

import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from ppomax.commands.stage import sort_words
from ppomax.config import PPOConfig, Section
from ppomax.errors import UserError
from ppomax.lab.claims import Claim, Common, choose, read_claims, read_common
from ppomax.lab.plan import Mode, Planner, Run
from ppomax.lab.results import Result, cached, read_results
from ppomax.lab.verdicts import check_rule
from ppomax.layers import words_to_layers
from ppomax.options import resolve

HELP = """usage: ppomax lab run [C1 C4 ...] [--seeds N] [--jobs N] [--fast] [--dry-run] [--field value ...]
       ppomax lab plan [C1 C4 ...]        what would run, what is there already, and how long it may take
       ppomax lab report                  docs/results/claims.md from the finished runs

The claims of the paper (section 6; lab/C1.yaml, ...) with their arms, rules and verdicts. Without names: all claims. Runs
are cached by configuration, resumed after Ctrl-C, spread over the cores; each finished one is a file in lab/results.
Settings that all arms share are in lab/common.yaml; --ppo.FIELD VALUE sets one for this call."""
EXAMPLES = """
examples:
  ppomax lab run C1 C4 --jobs 2
  ppomax lab run --fast
  ppomax lab run C1 --dev                       development seeds 101, 102, ...: never counted
  ppomax lab run C1 --model runs/sft/final --reward runs/reward/final --data prompts.jsonl --heldout heldout.jsonl \\
      --judge runs/judge/final --results lab/results_mine --ppo.policy_optim.lr 1e-6
  ppomax lab report"""


class LabConfig(Section):
    """The claims of the paper, tested."""

    seeds: int | None = Field(None, ge=1)
    """how many of the counted seeds; null: as many as each claim says"""
    jobs: int | None = Field(None, ge=1)
    """runs at a time, which share the cores; null: one a core, with `model`: one"""
    arms: list[str] = Field([])
    """only these arms; empty: all"""
    fast: bool = False
    """a look at some arms in minutes; its results are kept apart and not counted"""
    dev: bool = False
    """development seeds, from 101; their results are kept apart and not counted"""
    keep: bool = False
    """keep checkpoints and weights of finished runs"""
    dry_run: bool = False
    """say what would run"""
    lab: str = "lab"
    """folder of the claims"""
    common: str | None = None
    """settings that all arms share; null: common.yaml in the claims' folder"""
    results: str | None = None
    """folder of results; null: results in the claims' folder, or below `work` for --fast and --dev"""
    work: str = "runs/lab"
    """folder for starts, runs, logs"""
    out: str | None = None
    """report: page to write; null: docs/results/claims.md, or claims.md beside the results of --fast and --dev"""
    model: str | None = None
    """a real model: the SFT model that all arms start from, instead of a start made in the world"""
    reward: str | None = None
    """with `model`: the reward model"""
    data: str | None = None
    """with `model`: training prompts"""
    heldout: str | None = None
    """with `model`: held-out prompts; null: a tenth of `data` by hash"""
    judge: str | None = None
    """with `model`: what judges: a reward model, module:function, or an address"""
    given: list[str] = Field([])
    """with `model`: further stages, as NAME=PLACE (base=runs/base/final): arms that need others are left out"""


def places(config: LabConfig) -> tuple[Path, Path]:
    """(folder of results, page of the report)."""
    kind = "fast" if config.fast else "dev" if config.dev else ""
    results = Path(config.results or (f"{config.work}/results-{kind}" if kind else f"{config.lab}/results"))
    apart = kind or config.results
    return results, Path(config.out or (results / "claims.md" if apart else "docs/results/claims.md"))


def given_start(config: LabConfig) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
    """(stage -> place, PPO settings, endpoint settings) where a real model takes the world's place."""
    asked = {name: getattr(config, name) for name in ("model", "reward", "data", "judge")}
    if not any([*asked.values(), config.heldout, config.given]):
        return {}, {}, {}
    missing = [name for name, value in asked.items() if value is None]
    if missing:
        raise UserError(f"--{missing[0]} is missing: with a real model, --model --reward --data --judge are needed")
    if config.results is None:
        raise UserError("--results is missing: results of a real model are kept apart from the world's; name a folder")
    places: dict[str, str] = {"sft": asked["model"], "reward": asked["reward"]}
    for pair in config.given:
        name, equals, place = pair.partition("=")
        if not equals or not name or not place:
            raise UserError(f"--given {pair}: NAME=PLACE is expected, such as base=runs/base/final")
        places[name] = place
    data: Any = asked["data"]
    held: Any = config.heldout or {"path": data, "split": "90%:100%"}
    train = data if config.heldout else {"path": data, "split": "0%:90%"}
    ppo = {"prompts": [train], "watch": {"prompts": [held], "judge": asked["judge"]}}
    endpoint = {"prompts": held, "judge": asked["judge"], "second_judge": None, "exam": None, "opponent": False}
    return places, ppo, endpoint


def ppo_words(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """(words of the lab, settings of ``--ppo.FIELD VALUE``)."""
    own: list[str] = []
    theirs: list[str] = []
    current = own
    for word in words:
        if word.startswith("--"):
            current = theirs if word.startswith("--ppo.") else own
            word = f"--{word[6:]}" if current is theirs else word
        current.append(word)
    settings: dict[str, Any] = {}
    for layer in words_to_layers(PPOConfig, theirs, prefix="ppo."):
        settings |= layer.tree.value
    return own, settings


class Lab:
    """What one call works with."""

    def __init__(self, config: LabConfig, names: Sequence[str], ppo: Mapping[str, Any]) -> None:
        folder = Path(config.lab)
        self.config = config
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: run this in the repository, or name the claims' folder with --lab")
        self.common: Common = read_common(Path(config.common or folder / "common.yaml"))
        self.claims: dict[str, Claim] = read_claims(folder, self.common)
        for name, claim in self.claims.items():
            check_rule(str(folder / f"{name}.yaml"), claim)
        self.chosen = choose(self.claims, names)
        self.results, self.page = places(config)
        from ppomax.lab.claims import overlay

        given, given_ppo, endpoint = given_start(config)
        self.planner = Planner(self.common, Mode(config.fast, given, overlay(given_ppo, ppo), endpoint))
        if config.fast and config.dev:
            raise UserError("--fast and --dev: choose one of them")
        if config.arms:
            known = {arm for name in self.chosen for arm in self.claims[name].arms}
            if unknown := [arm for arm in config.arms if arm not in known]:
                raise UserError(
                    f"--arms: no chosen claim has an arm {unknown[0]!r}: choose from {', '.join(sorted(known))}"
                )

    def seeds(self) -> list[int] | None:
        """None: each claim's own."""
        count = self.config.seeds
        if self.config.dev:
            return [101 + i for i in range(count or 1)]
        if count is None:
            return None
        if count > len(self.common.seeds):
            raise UserError(f"--seeds {count}: there are {len(self.common.seeds)} counted seeds (common.yaml)")
        return self.common.seeds[:count]

    def seeds_given(self) -> list[int] | None:
        """As `seeds`, None where the command line says nothing: a report then takes what there is."""
        return None if self.config.seeds is None else self.seeds()

    def runs(self) -> list[Run]:
        """Of the chosen claims and arms, each once, the first seeds of all claims first."""
        found = self.planner.runs(self.claims, self.chosen, self.seeds())
        wanted = {
            run.key: run
            for arms in found.values()
            for arm, by_seed in arms.items()
            for run in by_seed.values()
            if not self.config.arms or arm in self.config.arms
        }
        return sorted(wanted.values(), key=lambda run: run.seed)


def plan_lines(runs: Sequence[Run], results: Mapping[str, Result], jobs: int) -> list[str]:
    """What is there, what would run, and how long it may take."""
    missing = [run for run in runs if cached(run, results) is None]
    lines = []
    for run in runs:
        state = "there" if cached(run, results) is not None else "outdated" if run.key in results else "to do"
        lines.append(f"{state:8}  {run.name}  {run.iterations} iterations  for {', '.join(run.claims)}")
    iterations = sum(run.iterations for run in missing)
    lines.append(
        f"{len(runs) - len(missing)} of {len(runs)} runs are there; {len(missing)} to do, {iterations} iterations"
    )
    told = [r.header["seconds"] for r in results.values()]
    if missing and told:
        each = statistics.median(
            r.header["seconds"]["iterations"] / max(1, sum(m["iterations"] for m in r.metrics))
            for r in results.values()
        )
        beside = statistics.median(s["training"] - min(s["training"], s["iterations"]) + s["endpoint"] for s in told)
        hours = (iterations * each + len(missing) * beside) / jobs / 3600
        lines.append(
            f"about {hours:.1f} hours with {jobs} at a time, at {each:.1f} s an iteration and {beside:.0f} s for judging "
            "(medians of the finished runs), and the starts besides"
        )
    elif missing:
        lines.append("no finished run to estimate the time from")
    return lines


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run_lab(lab: Lab) -> int:
    """Run what is not there yet. 0, or 1 if something failed."""
    from ppomax.lab.schedule import Workshop, jobs_for, usable_cores

    config = lab.config
    jobs = config.jobs or (1 if config.model else usable_cores())
    runs = lab.runs()
    for line in lab.planner.left_out:
        say(f"left out: {line}")
    results = read_results(lab.results)
    lines = plan_lines(runs, results, jobs)
    if config.dry_run:
        print("\n".join(lines))
        return 0
    say("\n".join(lines[len(runs) :]))
    missing = [run for run in runs if cached(run, results) is None]
    work = Path(config.work)
    workshop = Workshop(work, jobs, say, spread=config.fast)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)  # or the children would live on
    try:
        workshop.run(jobs_for(missing, work, lab.results, keep=config.keep))
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if workshop.failed:
        say(f"{len(workshop.failed)} jobs failed; the same command tries them again")
    return 1 if workshop.failed else 0


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, ["--print-config"])
    action, names = (given.leading[0], given.leading[1:]) if given.leading else ("", [])
    if "--help" in given.switches or not action:
        from ppomax.options_help import help_text

        print("\n".join([HELP, *help_text(LabConfig, verb).split("\n")[1:], EXAMPLES]))
        return 0 if "--help" in given.switches else 2
    if action not in ("run", "plan", "report"):
        raise UserError(f"lab: unknown action {action!r}: choose from run, plan, report")
    own, ppo = ppo_words(given.options)
    config = resolve(LabConfig, own, words_alone=True)
    if action == "plan":
        config = config.model_copy(update={"dry_run": True})
    lab = Lab(config, names, ppo)
    if action in ("run", "plan"):
        return run_lab(lab)
    from ppomax.lab.report import write_report

    if config.results and not lab.results.is_dir():
        raise UserError(f"--results {config.results}: no such folder: name one that holds results of `ppomax lab run`")
    apart = "fast" if config.fast else "dev" if config.dev else ""
    notes = Path(config.lab) / "notes.md"
    for line in write_report(
        lab.planner, lab.claims, lab.chosen, lab.results, lab.page, apart=apart, seeds=lab.seeds_given(), notes=notes
    ):
        print(line)
    return 0
