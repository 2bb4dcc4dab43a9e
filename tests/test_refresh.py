"""The loop from policy to new preference data, two rounds: recipes/refresh.yaml, made very small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ppomax.pipeline import read_pipeline, run_pipeline

RECIPE = str(Path(__file__).parents[1] / "recipes" / "refresh.yaml")
POLICIES, REWARDS = ("ppo_0", "ppo_1", "ppo_2"), ("reward_0", "reward_1", "reward_2")


def words(root: Path) -> list[str]:
    small: dict[str, dict[str, Any]] = {
        "world": {
            "size": "small",
            "texts": 20,
            "dialogues": 20,
            "train_prompts": 12,
            "heldout_prompts": 16,
            "pairs": 12,
        },
        "fresh": {"vocab_size": 400},
        "base": {"epochs": 1, "max_length": 64, "batch_size": 8},
        "sft": {"epochs": 1, "max_length": 64, "batch_size": 8},
        "duel": {"sampling.max_new_tokens": 6, "resamples": 100},
    }
    small |= {name: {"epochs": 1, "max_length": 96} for name in REWARDS}
    small |= {
        name: {"iterations": 1, "rollout_batch": 4, "minibatch": 4, "critic.pretrain_iterations": 0,
               "sampling.max_new_tokens": 6, "watch.eval_prompts": 2}
        for name in POLICIES
    }  # fmt: skip
    small |= {f"{name}_{side}": {"sampling.max_new_tokens": 6} for name in ("check",) for side in "ab"}
    small |= {f"answers_{i}{side}": {"sampling.max_new_tokens": 6} for i in "12" for side in "ab"}
    # so small a model says nothing that is better or worse: its people look at length alone
    people = {"people": 3, "biased": 1.0, "length_bonus": 50, "temperature": 0.01}
    people_fields = {f"annotators.{name}": value for name, value in people.items()}
    small |= {f"people_{name}": {**people_fields, "resamples": 100} for name in ("1", "2", "check")}
    given = [f"--{stage}.{field}={value}" for stage, fields in small.items() for field, value in fields.items()]
    return [f"--output_dir={root}", *given]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_two_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = words(tmp_path)
    run_pipeline(RECIPE, given)
    _, stages = read_pipeline(RECIPE, given)
    uses = {stage.name: set(stage.uses) for stage in stages}
    for i in (1, 2):
        last, new = f"ppo_{i - 1}", tmp_path / f"people_{i}"
        assert last in uses[f"answers_{i}a"] and {f"answers_{i}a", f"answers_{i}b"} < uses[f"people_{i}"]
        assert {"world", *(f"people_{k}" for k in range(1, i + 1))} < uses[f"reward_{i}"]
        assert f"reward_{i}" in uses[f"ppo_{i}"]
        # every pair is two answers of that policy to a training prompt, as its people chose them
        answers = {side: rows(tmp_path / f"answers_{i}{side}" / "answers.jsonl") for side in "ab"}
        known = {
            json.dumps(a["prompt"]): {a["response"], b["response"]} for a, b in zip(*answers.values(), strict=True)
        }
        pairs = rows(new / "pairs.jsonl")
        for pair in pairs:
            assert {pair["chosen"], pair["rejected"]} == known[json.dumps(pair["prompt"])]
        result = json.loads((new / "people" / "result.json").read_text())
        assert result["items"]["all"] == 12 and result["items"]["open"] == 0
        assert result["pairs"]["pairs"] == len(pairs)
    duel = json.loads((tmp_path / "duel" / "result.json").read_text())
    assert len(duel["systems"]) == 4 and len(duel["pairs"]) == 6
    found = json.loads((tmp_path / "rewards" / "result.json").read_text())
    assert len(found["models"]) == 3 and len(found["agreement"]) == 3
    capsys.readouterr()
    run_pipeline(RECIPE, given)  # all of it is there
    assert capsys.readouterr().err.count("finished, skipped") == len(stages)
