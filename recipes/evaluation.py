"""The evaluation of section 6, done for real in the embedded world, and written down: docs/results/evaluation.md.

    python recipes/evaluation.py [--page FILE]

Runs evaluation_models.yaml (SFT, two reward models, vanilla PPO, PPO-max, PPO-max with ptx; about an hour on 2 CPU cores) and
evaluation.yaml (duels by three judges, exams, loss on text, reward models against the truth), then writes the page. Run again, it
goes on where it stopped. A model that lies finished in runs/evaluation_models/NAME/final, such as one of the lab, is not
made again; where all six are there, the first part is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppomax.errors import UserError
from ppomax.evaluate.duel_report import DuelReportConfig, report_duels
from ppomax.pipeline import run_pipeline
from ppomax.report.markdown import accuracy_cell, estimate, number, table, verbatim
from ppomax.train.checkpoint import write_atomic

HERE = Path(__file__).parent
MODELS = Path("runs/evaluation_models")
HOME = Path("runs/evaluation")
SFT = "b"
SYSTEMS = {SFT: "SFT", "a": "PPO-max", "c": "PPO-max + ptx", "d": "vanilla PPO"}
"""letter in the duels -> title, in the order of the exams"""
FOLDERS = {SFT: "sft", "a": "ppo_max", "c": "ppo_max_ptx", "d": "vanilla"}
OTHERS = "acd"
JUDGES = {"duel_world": "the world's judge", "duel_reward": "reward model", "duel_reward_second": "second reward model"}
EXAMPLES = 1
"""of each kind of prompt"""
Result = dict[str, Any]


def read(path: Path) -> Result:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def turned(summary: Mapping[str, Any]) -> Result:
    """A duel's summary with the sides exchanged."""

    def rate(found: Mapping[str, float]) -> dict[str, float]:
        return {"value": 1 - found["value"], "low": 1 - found["high"], "high": 1 - found["low"]}

    return {
        **summary, "win": summary["lose"], "lose": summary["win"], "win_rate": rate(summary["win_rate"]),
        "length_controlled": rate(summary["length_controlled"]), "mean_length_a": summary["mean_length_b"],
        "mean_length_b": summary["mean_length_a"],
    }  # fmt: skip


def against_sft(duel: Result, letter: str) -> Result:
    """The pair of SFT and another system, whose wins are counted: overall, by_source."""
    (pair,) = (p for p in duel["pairs"] if {p["one"], p["other"]} == {SFT, letter})
    seen = turned if pair["one"] == SFT else dict
    return {"overall": seen(pair["overall"]), "by_source": {k: seen(v) for k, v in pair["by_source"].items()}}


# ------------------------------------------------------------------------------------------- the page


def duels_part(duels: Mapping[str, Result]) -> list[str]:
    first = against_sft(duels["duel_world"], OTHERS[0])
    kinds = list(first["by_source"])
    rows, lengths = [], []
    for letter in OTHERS:
        for name, judge in JUDGES.items():
            found = against_sft(duels[name], letter)
            o = found["overall"]
            cells = [estimate(found["by_source"][kind]["win_rate"]) for kind in kinds]
            counts = f"{o['win']} / {o['tie']} / {o['lose']}"
            rows.append(
                [SYSTEMS[letter], judge, counts, estimate(o["win_rate"]), *cells, estimate(o["length_controlled"])]
            )
        lengths.append(f"{SYSTEMS[letter]} {o['mean_length_a']:.0f}")
    n, length_sft = first["overall"]["prompts"], first["overall"]["mean_length_b"]
    return [
        "## Against SFT",
        f"{n} held-out prompts, one answer each; win rate with ties as half, 95% intervals by bootstrap over prompts. "
        f"Mean length in characters: SFT {length_sft:.0f}, {', '.join(lengths)}.",
        table(["", "judge", "win / tie / lose", "win rate", *kinds, "length-controlled"], rows),
        "![win, tie, lose](evaluation/win_tie_lose.png)",
        "PPO-max against SFT by the three judges, helpful and harmless apart, as in Fig. 10; prompts that nobody could answer "
        "count as helpful here.",
    ]


def ratings_part(duels: Mapping[str, Result]) -> list[str]:
    rows = []
    for letter, title in SYSTEMS.items():
        cells = []
        for name in JUDGES:
            r = duels[name]["ratings"]["ratings"][letter]
            cells.append(f"{r['value']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]")
        rows.append([title, *cells])
    return [
        "## All against all",
        "Bradley-Terry ratings from all six pairs (log-odds, mean 0), 95% intervals by bootstrap over prompts.",
        table(["", *JUDGES.values()], rows),
    ]


def agreement_part(reports: Mapping[str, Result]) -> list[str]:
    rows = []
    for letter, report in reports.items():
        names = dict(zip(report["judges"], JUDGES.values(), strict=True))
        for pair in report["pairs"]:
            cells = [show(pair[key]) for key in ("agreement", "agreement_decided", "kappa_linear", "alpha_ordinal")]
            rows.append([f"{SYSTEMS[letter]} - SFT", f"{names[pair['one']]} - {names[pair['other']]}", *cells])
    longer = []
    for letter, report in reports.items():
        names = dict(zip(report["judges"], JUDGES.values(), strict=True))
        cells = [estimate(found["length"]["longer_wins"]) for found in report["judges"].values()]
        longer.append([f"{SYSTEMS[letter]} - SFT", *cells])
    return [
        "## Do the judges agree?",
        "Of the same pairs of answers: share with the same outcome, the same where neither says tie, Cohen's kappa "
        "(linear), Krippendorff's alpha (ordinal).",
        table(["pairs", "judges", "agreement", "where both decide", "kappa", "alpha"], rows),
        "How often the longer answer wins:",
        table(["pairs", *JUDGES.values()], longer),
    ]


def show(found: Mapping[str, float | None]) -> str:
    if found["value"] is None or found["low"] is None:
        return "–"
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def tax_part(exam: Result, zero: Result) -> list[str]:
    parts = []
    for found, shots in ((exam, "three examples before each question"), (zero, "none")):
        models = list(found["models"].values())
        groups = list(models[0]["by_category"])
        rows = []
        for title, model, gap in zip(SYSTEMS.values(), models, [None, *found["against_first"].values()], strict=True):
            cells = [
                accuracy_cell({**part["acc"]})
                for part in [*(model["by_category"][group] for group in groups), model["overall"]]
            ]
            change = "" if gap is None else f"{gap['difference']:+.3f} (p = {gap['sign_test_p']:.2g})"
            rows.append([title, *cells, change])
        head = ["", *(group.replace("_", " ") for group in groups), "all", "change from SFT (sign test)"]
        n, chance = models[0]["overall"]["n"], models[0]["overall"]["chance"]
        parts += [f"{n} questions, {shots}; chance is {chance:.2f}, intervals are Wilson's:", table(head, rows)]
    text = exam["text"]
    rows = []
    for title, model, gap in zip(
        SYSTEMS.values(), text["models"].values(), [None, *text["against_first"].values()], strict=True
    ):
        loss, change = model["loss"], gap["loss"] if gap else None
        said = (
            ""
            if change is None
            else f"{change['value']:+.3f} [{change['interval'][0]:+.3f}, {change['interval'][1]:+.3f}]"
        )
        low, high = loss["interval"]
        rows.append([title, f"{loss['value']:.3f} [{low:.3f}, {high:.3f}]", number(model["perplexity"]), said])
    return [
        "## The alignment tax",
        "What PPO cost: the world's exam, and the loss on passages about the same facts that no model was trained on.",
        *parts,
        f"Language-modelling loss on {text['texts']} held-out passages, nats a token, intervals by bootstrap over passages:",
        table(["", "loss", "perplexity", "change from SFT"], rows),
        "![exam and loss](evaluation/exam.png)",
    ]


def rewards_part(found: Result) -> list[str]:
    rows = [
        [title, accuracy_cell(m["overall"]["model"]), accuracy_cell(m["overall"]["longer"]),
         accuracy_cell(m["better_is_longer"]), accuracy_cell(m["better_is_shorter"]), number(m["calibration"]["ece"])]
        for title, m in zip(("reward model", "second reward model"), found["models"].values(), strict=True)
    ]  # fmt: skip
    (both,) = found["agreement"]
    return [
        "## The reward models against the truth",
        f"{found['pairs']} pairs of one answer of PPO-max and one of SFT that the truth tells apart: share that a model orders "
        "rightly. PPO-max was trained on the first of the two.",
        table(
            ["", "accuracy", "the longer answer", "better is longer", "better is shorter", "calibration error"], rows
        ),
        f"They rank {both['alike']:.1%} of these pairs alike (kappa {show_plain(both['kappa'])}).",
    ]


def show_plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def examples_part(home: Path) -> list[str]:
    """The first prompts of each kind at which the systems' answers differ from SFT's: chosen by no judge."""
    answers = {
        letter: [
            json.loads(line) for line in (home / f"answers_{name}" / "answers.jsonl").read_text("utf-8").splitlines()
        ]
        for letter, name in FOLDERS.items()
    }
    shown: dict[str, int] = {}
    rows = []
    for own in zip(*answers.values(), strict=True):
        kind = own[0]["source"]
        if len({row["response"] for row in own}) < len(own) or shown.get(kind, 0) >= EXAMPLES:
            continue
        shown[kind] = shown.get(kind, 0) + 1
        asked = " / ".join(m["content"] for m in own[0]["prompt"])
        rows.append([verbatim(asked), *(verbatim(row["response"]) for row in own)])
    return [
        "## Answers",
        "The first prompt of each kind to which the four answers differ:",
        table(["prompt", *SYSTEMS.values()], rows),
    ]


def page(home: Path, reports: Mapping[str, Result]) -> str:
    duels = {name: read(home / name / "result.json") for name in JUDGES}
    best = against_sft(duels["duel_world"], OTHERS[0])["overall"]["win_rate"]
    world = read(home / "world" / "world.json")
    parts = [
        "# Results: policies evaluated in the embedded world",
        "SFT, vanilla PPO, PPO-max and PPO-max with ptx from one start (models of about a million parameters, 160 iterations "
        f"each, one seed), in the [embedded world](../world.md) `{world['name']}`, version {world['version']}: duels by the "
        "judge that knows the truth, by the reward model that PPO was trained on, and by one trained on other pairs that PPO "
        "never saw. Made by `python recipes/evaluation.py`; settings in `recipes/evaluation_models.yaml` and "
        "`recipes/evaluation.yaml`. One seed: intervals are over prompts, questions and passages, not over runs; what holds "
        "over seeds is in [claims](claims.md).",
        f"By the truth PPO-max wins {estimate(best)} against SFT.",
        *duels_part(duels), *ratings_part(duels), *agreement_part(reports),
        *tax_part(read(home / "exam" / "result.json"), read(home / "exam_zero" / "result.json")),
        *rewards_part(read(home / "rewards" / "result.json")), *examples_part(home),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def write_page(home: Path, file: Path) -> None:
    """The page, its figures and the numbers behind it."""
    folder = file.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    reports = {}
    for letter in OTHERS:
        out = home / f"agreement_{FOLDERS[letter]}"
        reports[letter] = report_duels(
            DuelReportConfig(
                duels=[str(home / name) for name in JUDGES], pair="".join(sorted(SFT + letter)), output_dir=str(out)
            )
        )
    shutil.copy(home / "agreement_ppo_max" / "win_tie_lose.png", folder)
    shutil.copy(home / "exam" / "exam.png", folder)
    for name in (*JUDGES, "exam", "exam_zero", "rewards"):
        shutil.copy(home / name / "result.json", folder / f"{name}.json")
    write_atomic(file, page(home, reports))


def evaluate(file: Path, words: Sequence[str] = ()) -> None:
    """evaluation.yaml, with ``--stage.field value`` words, and the page."""
    run_pipeline(str(HERE / "evaluation.yaml"), words)
    write_page(HOME, file)


def main() -> int:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--page", type=Path, default=Path("docs/results/evaluation.md"), help="where it is written")
    given = parser.parse_args()
    needed = (*FOLDERS.values(), "reward", "reward_second")
    try:
        if not all((MODELS / name / "final" / "config.json").exists() for name in needed):
            run_pipeline(str(HERE / "evaluation_models.yaml"))
        evaluate(given.page)
    except UserError as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 2
    print(f"written: {given.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
