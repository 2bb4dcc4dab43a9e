"""How well the SFT models of the lab's starts answer: share of acceptable answers by the world's judge, and perplexity.

    ppomax lab run C1 --seeds 3                          # makes the starts, and trains from them
    python benchmarks/world_answers.py runs/lab/starts/seed-{2,3,4}

All held-out prompts, greedily and at temperature .8 without top-p, as in docs/world.md: a minute a start and core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppomax.world.prompts import Task
from ppomax.world.world import world_named


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{folder}: {len(found)} of {pattern}, one is wanted")
    return found[0]


def shares(prompts: Path, answers: Path) -> dict[str, float]:
    """Group (helpful, harmful, ..., and each kind of helpful prompt) -> share of its answers that are acceptable."""
    found: dict[str, list[bool]] = defaultdict(list)
    for prompt, answer in zip(rows(prompts), rows(answers), strict=True):
        assert prompt["prompt"] == answer["prompt"]
        good = world_named(prompt["world"]).judge(Task.from_metadata(prompt), answer["response"]).acceptable
        found[prompt["category"]].append(good)
        if prompt["category"] == "helpful":
            found[f"helpful: {prompt['kind']}"].append(good)
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("starts", type=Path, nargs="+", help="folders of starts")
    args = parser.parse_args()
    table: dict[tuple[str, str], list[float]] = defaultdict(list)
    for start in args.starts:
        prompts, sft = only(start, "world-*/prompts_heldout.jsonl"), only(start, "sft-*/final")
        held_out = json.loads((sft.parent / "evaluation.json").read_text(encoding="utf-8"))["trained"]
        table["perplexity of held-out dialogues", ""].append(held_out["perplexity"])
        table["next tokens right", ""].append(held_out["token_accuracy"])
        for name, temperature in (("greedy", "0"), ("temperature .8", "0.8")):
            with tempfile.TemporaryDirectory() as folder:
                answers = Path(folder) / "answers.jsonl"
                subprocess.run(
                    [sys.executable, "-m", "ppomax", "generate", str(sft), "--prompts", str(prompts), "--out", str(answers),
                     "--sampling.temperature", temperature, "--sampling.repetition_penalty", "1", "--sampling.top_p", "1",
                     "--sampling.max_new_tokens", "64"],
                    check=True, stdout=subprocess.DEVNULL,
                )  # fmt: skip
                for group, share in shares(prompts, answers).items():
                    table[group, name].append(share)
    for (group, name), values in table.items():
        each = " ".join(f"{value:.3f}" for value in values)
        print(f"{group + ', ' + name if name else group}: mean {sum(values) / len(values):.3f} of {each}")


if __name__ == "__main__":
    main()
