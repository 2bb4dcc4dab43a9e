"""Keep what a quickstart from scratch made, for those that start from it: models/LANGUAGE/sft and reward.

    make quickstart-from-scratch                        # ARGS="--language zh" for the Chinese one
    python recipes/keep_models.py runs/quickstart_from_scratch

Weights become bf16, half their size; they train in float32 from there. made.json says what they were made from.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import ppomax
from ppomax.errors import UserError
from ppomax.report.stages import read_json, read_lines
from ppomax.train.checkpoint import write_atomic

MODELS = Path(__file__).with_name("models")
KEPT = ("sft", "reward")


def keep(run: Path, models: Path = MODELS) -> Path:
    """Copy from a finished run of quickstart.yaml; returns the folder of its language."""
    world = read_json(run / "world" / "world.json")
    evaluation = read_json(run / "reward" / "evaluation.json")
    if not world or not evaluation:
        raise UserError(f"{run}: no world, or no reward model, of a quickstart from scratch")
    place = models / world["language"]
    for name in KEPT:
        _halve(run / name / "final", place / name)
    facts = {key: world[key] for key in ("name", "version", "hash")}
    last = read_lines(run / "sft" / "metrics.jsonl")[-1]
    made: dict[str, Any] = {
        "world": facts,
        "ppomax": ppomax.__version__,
        "torch": torch.__version__,
        "sft": {"held-out perplexity": last["eval/perplexity"]},
        "reward": {"held-out accuracy": evaluation["held_out"]["overall"]["model"]["accuracy"]},
    }
    write_atomic(place / "made.json", json.dumps(made, indent=1) + "\n")
    return place


def _halve(source: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copyfile(file, place / file.name)
    weights = {name: weight.to(torch.bfloat16) for name, weight in load_file(source / "model.safetensors").items()}
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    config = read_json(place / "config.json")
    write_atomic(place / "config.json", json.dumps(config | {"dtype": "bfloat16"}, indent=2) + "\n")


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    try:
        print(keep(parser.parse_args(words).run))
    except UserError as error:
        print(f"keep_models: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
