"""Weights divided among ranks change nothing: 1, 2 and 4 ranks agree after 5 iterations, whatever is divided."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ppomax.config import RewardConfig, SFTConfig
from ppomax.data.records import PreferencePair
from ppomax.models.loading import settle
from ppomax.train import ppo, reward
from ppomax.train.reward import train_reward
from ppomax.train.sft import train_sft

sys.path.insert(0, str(Path(__file__).parent))
from kill_tools import forget_to_sync, start_script
from ppo_tools import QUESTIONS, dialogues, make_critic, make_policy, make_tokenizer, merged, run, timeless
from rank_tools import flat_weights, run_ranks, worst
from test_shared_base import write_models

TRAINING: dict[str, Any] = {
    "model": "memory", "data": ["memory"], "device": "cpu", "max_length": 64, "epochs": 1.0, "eval_every": 2,
    "optim": {"lr": 3e-3, "eps": 1e-3},
}  # fmt: skip
STAGES: dict[str, dict[str, Any]] = {
    "sft": {**TRAINING, "batch_size": 3, "micro_batch_tokens": 64, "packing": False},
    "bf16": {**TRAINING, "batch_size": 3, "micro_batch_tokens": 64, "packing": False, "precision": "bf16"},
    "reward": {**TRAINING, "batch_tokens": 100, "min_pairs": 2, "max_pairs": 3, "micro_batch_tokens": 100},
    "ppo": {
        "iterations": 5, "rollout_batch": 7, "minibatch": 4, "advantage.normalise": True, "micro_batch_tokens": 80,
        "watch.eval_prompts": 1, "watch.every": 5,
    },
    "everything": {
        "iterations": 5, "rollout_batch": 6, "minibatch": 5, "buffer_iterations": 2, "critic.pretrain_iterations": 1,
        "entropy": {"coef": 0.1, "target": 5.0}, "ptx": {"coef": 0.5, "batch_ratio": 0.4}, "watch.eval_prompts": 1,
        "kl": {"controller": "adaptive", "target": 0.3, "horizon": 60}, "grad_clip.joint": True,
    },
    "adapters": {"iterations": 5, "rollout_batch": 5, "minibatch": 5, "lora": {"rank": 2}, "watch.eval_prompts": 1},
    "shared": {
        "iterations": 5, "rollout_batch": 5, "minibatch": 5, "lora": {"rank": 2, "shared_base": True},
        "watch.eval_prompts": 1,
    },
}  # fmt: skip
MODES: dict[str, dict[str, Any]] = {
    "none": {},
    "zero2": {"shard": "zero2", "frozen": "offload", "activation_checkpointing": True},
    "zero3": {"shard": "zero3", "frozen": "shard"},
}
FAST = [
    "ppo none 4", "ppo zero2 2", "ppo zero3 4", "sft none 4", "sft zero3 2", "reward zero3 2", "shared zero3 2",
]  # fmt: skip


def pairs() -> list[PreferencePair]:
    return [
        PreferencePair(
            ({"role": "user", "content": q},),
            ({"role": "assistant", "content": "the egg" * (i % 3 + 1)},),
            ({"role": "assistant", "content": "狐狸" * (i % 4 + 1)},),
        )
        for i, q in enumerate(QUESTIONS)
    ]


def train_stage(
    stage: str, out: Path, changes: dict[str, Any], *, reward_model: Path | None = None, resume: bool = False
) -> list[Any]:
    """Trained models of one run of a stage; a stage that shares its base reads ``reward_model``."""
    settings = merged(STAGES[stage], changes)
    if stage in ("sft", "bf16", "reward"):
        settings |= {"output_dir": str(out)}
        given: dict[str, Any] = {"model": settle(make_policy(), "cpu"), "tokenizer": make_tokenizer(), "resume": resume}
        if stage == "reward":
            config = RewardConfig.model_validate(settings)
            return [train_reward(config, pairs=pairs(), eval_pairs=pairs()[:3], **given).model]
        data = dialogues()
        return [train_sft(SFTConfig.model_validate(settings), records=data * 2, eval_records=data[:3], **given).model]
    source: list[Any] = [make_critic(5)]
    if reward_model is not None:
        settings, source = settings | {"reward": str(reward_model)}, []
    result = run(out, {**settings, "critic.init": "reward"}, ptx=dialogues(), reward=source, resume=resume)
    return [result.policy, result.critic]


def train(folder: Path, name: str, rank: int) -> int:
    """One rank of one case; the main one leaves what it saw."""
    stage, mode, _ = name.split()
    out = folder / name
    fresh: list[Any] = []
    gather = ppo.gather

    def keep(ranks: Any, mine: Any, total: int) -> Any:
        fresh.append(gather(ranks, mine, total))
        return fresh[-1]

    ppo.gather = keep  # type: ignore[assignment]
    shared = folder / "models" / "reward" / "final" if stage == "shared" else None
    weights = [
        flat_weights(m) for m in train_stage(stage, out, {"parallel": MODES[mode]}, reward_model=shared)
    ]  # fmt: skip
    if rank == 0:
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        seen = {
            "metrics": timeless(lines), "weights": weights, "advantages": [e.advantages.tolist() for e in fresh],
        }  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(seen), encoding="utf-8")
    return 0


def draw_no_figures() -> None:
    """The reward model's figures take longer than its training."""
    for figure in ("draw_gap_histogram", "draw_calibration", "draw_accuracy"):
        setattr(reward, figure, lambda *args: None)


def script(folder: Path) -> None:
    import torch._dynamo  # FSDP asks for it: once here, and not in every child

    forget_to_sync()
    torch.set_num_threads(1)
    draw_no_figures()
    write_models(folder / "models")
    names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    codes = {}
    for name in names:
        codes[name] = run_ranks(functools.partial(train, folder, name), int(name.split()[2]), folder / f"{name}.log")
    (folder / "results.json").write_text(json.dumps(codes), encoding="utf-8")


def compare(names: list[str], folder: Path) -> dict[str, dict[str, float]]:
    """Largest differences of each case from one rank with nothing divided."""
    alone = sorted({f"{name.split()[0]} none 1" for name in names})
    (folder / "names.json").write_text(json.dumps([*alone, *(n for n in names if n not in alone)]), encoding="utf-8")
    codes = start_script(__file__, folder)
    found: dict[str, dict[str, float]] = {}
    for name in names:
        assert set(codes[name]) == {0}, (folder / f"{name}.log").read_text(encoding="utf-8")[-4000:]
        one, other = (
            json.loads((folder / f"{n}.json").read_text(encoding="utf-8")) for n in (f"{name.split()[0]} none 1", name)
        )
        tensors = [[torch.tensor(w) for w in seen["weights"]] for seen in (one, other)]
        found[name] = {
            "metrics": worst(other["metrics"], one["metrics"], 1e-2),
            "advantages": worst(other["advantages"], one["advantages"], 1e-2),
            "weights": max(float((b - a).norm() / a.norm()) for a, b in zip(*tensors, strict=True)),
        }
        shutil.rmtree(folder / name, ignore_errors=True)
    return found


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    return compare(FAST, tmp_path_factory.mktemp("sharding"))


def check(name: str, differences: dict[str, float]) -> None:
    """Rounding of float32, amplified by five iterations of Adam: docs/distributed.md has what was measured."""
    if name.startswith("bf16"):  # layers are gathered in bf16, norms among them
        assert differences["weights"] < 1e-3
        return
    assert differences["metrics"] < 2e-4
    assert differences["advantages"] < 2e-4
    assert differences["weights"] < 1e-5


@pytest.mark.parametrize("name", FAST)
def test_ranks_agree(name: str, fast: dict[str, dict[str, float]]) -> None:
    check(name, fast[name])


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_ranks_agree_in_every_mode(stage: str, tmp_path: Path) -> None:
    names = [f"{stage} {m} {n}" for m in MODES for n in (1, 2, 4) if f"{m} {n}" != "none 1"]
    for name, differences in compare(names, tmp_path).items():
        print(f"{name:22} " + " ".join(f"{k} {v:.1e}" for k, v in differences.items()))
        check(name, differences)


if __name__ == "__main__":
    script(Path(sys.argv[1]))
