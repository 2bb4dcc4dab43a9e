"""SFT and reward-model runs that were killed with SIGKILL and resumed end bit for bit as uninterrupted ones."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ppomax.cli import main
from ppomax.models.loading import load_causal_lm, load_tokenizer
from ppomax.train import reward

sys.path.insert(0, str(Path(__file__).parent))
from kill_tools import start_script, torture
from ppo_tools import QUESTIONS, dialogues, make_policy, make_tokenizer

COMMON: dict[str, Any] = {
    "device": "cpu", "max_length": 64, "eval_fraction": 0.25, "epochs": 2.0, "eval_every": 2,
    "checkpoint": {"every": 1, "keep": 2}, "optim": {"lr": 3e-3, "schedule": "cosine", "warmup": 0.2},
}  # fmt: skip
SCENARIOS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {"batch_size": 2, "packing": True}),
    "reward": ("reward", {"batch_tokens": 100, "min_pairs": 2, "max_pairs": 4}),
}


def write_inputs(folder: Path) -> None:
    make_policy().save_pretrained(folder / "start")
    make_tokenizer().save_pretrained(folder / "start")
    talk = [d for d in dialogues() for _ in range(2)]
    with (folder / "sft.jsonl").open("w", encoding="utf-8") as f:
        f.writelines(json.dumps({"messages": list(d.messages)}, ensure_ascii=False) + "\n" for d in talk)
    with (folder / "reward.jsonl").open("w", encoding="utf-8") as f:
        f.writelines(
            json.dumps({"prompt": q, "chosen": "the egg" * (i % 3 + 1), "rejected": "狐狸" * (i % 4 + 1)}) + "\n"
            for i, q in enumerate(QUESTIONS)
        )
    for name, (_, changes) in SCENARIOS.items():
        settings = {**COMMON, **changes, "model": str(folder / "start"), "data": str(folder / f"{name}.jsonl")}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def one_run(verb: str, settings: Path, directory: Path, resume: bool) -> int:
    return main([verb, str(settings), "--output_dir", str(directory), *(["--resume"] if resume else [])])


def script(folder: Path) -> None:
    write_inputs(folder)
    load_causal_lm(str(folder / "start"))(torch.tensor([[1]]))  # imports happen here, once, and not in every child
    load_tokenizer(str(folder / "start")).apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    for figure in ("draw_gap_histogram", "draw_calibration", "draw_accuracy"):
        setattr(reward, figure, lambda *args: None)  # they take longer than the training
    results = {}
    for i, (name, (verb, _)) in enumerate(SCENARIOS.items()):
        job = functools.partial(one_run, verb, folder / f"{name}.yaml")
        results[name] = torture(job, folder / name, seed=10 + i, random_kills=2, chosen_kills=4)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return start_script(__file__, tmp_path_factory.mktemp("killed"))


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_killed_and_resumed_equals_uninterrupted(name: str, killed: dict[str, Any]) -> None:
    result = killed[name]
    assert set(result["codes"]) == {0}, result["log"]
    assert result["hits"] >= 3, "the kills must hit"
    assert result["differences"] == {}, result["log"]
    assert {"final/model.safetensors", "metrics.jsonl", "evaluation.json"} <= set(result["files"])


if __name__ == "__main__":
    script(Path(sys.argv[1]))
