"""Minutes on a CPU, from nothing to an aligned policy: `make quickstart`, or

    python recipes/quickstart.py [--language zh] [--output-dir DIR] [--STAGE.FIELD VALUE ...]

Writes a small invented world (quickstart_data.py), trains the stages of quickstart.yaml, and prints what came out: the
reward that PPO was trained on, and the win rate against SFT by a judge that knows the truth and was never trained on.
Run again, it goes on where it stopped; finished stages are kept. Needs neither network nor GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from quickstart_data import LANGUAGES, write_data

from ppomax.errors import UserError
from ppomax.pipeline import run_pipeline

RECIPE = Path(__file__).with_name("quickstart.yaml")
HOME = "runs/quickstart"
COLUMNS = {
    "reward": "reward/mean",
    "kl": "kl/ref_sequence",
    "length": "response/length",
    "perplexity": "policy/perplexity",
}
WORDS: dict[str, list[str]] = {"en": [], "zh": ["--fresh.vocab_size=512"]}
"""by language: with more entries, a Chinese token is a whole clause, creature and fact in one, and nothing is learned"""
AVERAGED = 5
"""last iterations behind a figure of the end"""


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summarise(out: Path, name: str) -> dict[str, Any]:
    """What one PPO run did: figures of its samples at the start (SFT itself) and at the end, and the judgement."""
    metrics = rows(out / name / "metrics.jsonl")
    last = metrics[-AVERAGED:]
    duel = json.loads((out / f"duel_{name}" / "result.json").read_text(encoding="utf-8"))
    return {
        "start": {key: metrics[0][metric] for key, metric in COLUMNS.items()},
        "end": {key: sum(m[metric] for m in last) / len(last) for key, metric in COLUMNS.items()},
        "judged": {key: duel["overall"][key] for key in ("prompts", "win", "tie", "lose", "win_rate", "length_controlled")},
        "true_quality": {"policy": duel["mean_score_a"], "sft": duel["mean_score_b"]},
    }  # fmt: skip


def table(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    head = f"{'':8} {'reward':>15} {'KL':>6} {'length':>13} {'perplexity':>13}   judged against SFT, win/tie/lose"
    lines = [head]
    for name, run in summary.items():
        a, b, judged = run["start"], run["end"], run["judged"]
        rate = judged["win_rate"]
        lines.append(
            f"{name:8} {a['reward']:6.2f} -> {b['reward']:5.2f} {b['kl']:6.2f} {a['length']:5.1f} -> {b['length']:4.1f} "
            f"{a['perplexity']:5.2f} -> {b['perplexity']:4.2f}   {judged['win']}/{judged['tie']}/{judged['lose']}, "
            f"win rate {rate['value']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}], "
            f"true quality {run['true_quality']['sft']:.2f} -> {run['true_quality']['policy']:.2f}"
        )
    note = "reward: of the reward model; KL: nats a response; length: tokens; win rate: ties as half, 95% interval"
    return "\n".join([*lines, note])


def dialogues(out: Path, count: int = 3) -> str:
    """Held-out prompts, evenly spaced and not picked, with both answers."""
    judged = rows(out / "duel_ppo_max" / "judgements.jsonl")
    chosen = judged[:: max(len(judged) // count, 1)][:count]
    form = "\nprompt   {}\nSFT      {}  ({:.1f} of 2)\nPPO-max  {}  ({:.1f} of 2)"
    return "\n".join(
        form.format(j["prompt"][-1]["content"], j["response_b"], j["score_b"], j["response_a"], j["score_a"])
        for j in chosen
    )


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", choices=list(LANGUAGES), default="en")
    parser.add_argument("--output-dir", type=Path, help="default: runs/quickstart, or runs/quickstart_zh")
    given, options = parser.parse_known_args(words)
    out: Path = given.output_dir or Path(HOME if given.language == "en" else f"{HOME}_{given.language}")
    counts = write_data(out / "data", given.language)  # always the same, so a second run finds what it knows
    print(f"{out / 'data'}: " + ", ".join(f"{n} {name}" for name, n in counts.items()), flush=True)
    pipeline = out / "pipeline.yaml"  # the recipe, with this run's folder in it
    pipeline.write_text(RECIPE.read_text(encoding="utf-8").replace(HOME, out.as_posix()), encoding="utf-8")
    try:
        run_pipeline(str(pipeline), [*WORDS[given.language], *options])
    except UserError as error:
        print(f"quickstart: error: {error}", file=sys.stderr)
        return 2
    summary = {name: summarise(out, name) for name in ("ppo_max", "vanilla")}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(summary)}\n{dialogues(out)}\n")
    print(f"written to {out / 'summary.json'}; talk to it: ppomax chat {out}/ppo_max/final --against {out}/sft/final")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
