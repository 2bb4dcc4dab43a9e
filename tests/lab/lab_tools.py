"""A lab that takes seconds: small world, untrained small models, two iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

COMMON: dict[str, Any] = {
    "seeds": [1, 2],
    "iterations": 2,
    "start": {
        "defaults": {"device": "cpu", "checkpoint": {"every": 0, "keep": 1}},
        "stages": [
            {
                "name": "world", "kind": "world", "seed": 0, "size": "small", "texts": 60, "dialogues": 60,
                "train_prompts": 40, "heldout_prompts": 12, "pairs": 60,
            },
            {
                "name": "fresh", "kind": "new-model", "size": "1m", "vocab_size": 400,
                "tokenizer_from": ["${world}/text.jsonl"],
            },
            {
                "name": "sft", "kind": "sft", "model": "${fresh}", "data": [{"path": "${world}/dialogues.jsonl", "limit": 20}],
                "epochs": 1, "max_length": 96, "batch_size": 4, "optim": {"lr": 1e-3},
            },
            {
                "name": "reward", "kind": "reward", "model": "${sft}", "data": [{"path": "${world}/pairs.jsonl", "limit": 30}],
                "max_length": 96, "batch_tokens": 2048,
            },
        ],
    },
    "variants": {"early": {"reward": {"epochs": 0.5}}},
    "ppo": {
        "model": "${sft}", "reward": "${reward}", "prompts": "${world}/prompts_train.jsonl", "device": "cpu",
        "rollout_batch": 4, "minibatch": 4, "sampling": {"max_new_tokens": 6}, "checkpoint": {"every": 1, "keep": 1},
        "watch": {
            "prompts": "${world}/prompts_heldout.jsonl", "eval_prompts": 2, "judge": "world", "judge_every": 1,
            "judge_prompts": 6, "keep_best": False,
        },
    },
    "bases": {"vanilla": {"preset": "vanilla"}, "ppo_max": {"preset": "ppo_max", "critic": {"pretrain_iterations": 1}}},
    "endpoint": {
        "prompts": "${world}/prompts_heldout.jsonl", "limit": 8, "draws": 2, "entropy_prompts": 8,
        "second_judge": "${reward}", "exam": "${world}/exam.jsonl", "opponent": True,
    },
    "fast": {"iterations": 1, "seeds": 1},
}  # fmt: skip

COLLAPSE = {
    "arm": "vanilla", "rise": 1.0, "peak": 0.5, "end": 0.45, "share": 0.8, "steady": "ppo_max", "steady_win_rate": 0.6,
    "beside": [],
}  # fmt: skip
CLAIMS: dict[str, dict[str, Any]] = {
    "C1": {
        "claim": "Vanilla PPO collapses.", "figure": "4", "seeds": 2,
        "arms": {"vanilla": {"base": "vanilla"}, "ppo_max": {"base": "ppo_max"}},
        "rule": {"words": "It falls.", "function": "collapse", "seeds": 2, "thresholds": COLLAPSE},
        "fast": {"arms": ["vanilla"]},
    },
    "C2": {
        "claim": "Scaling does not prevent it.", "figure": "6", "seeds": 1,
        "arms": {
            "scaling": {"base": "vanilla", "ppo": {"reward_shaping": {"scale": True}}}, "plain": {"base": "vanilla"},
        },
        "rule": {
            "words": "It falls too.", "function": "collapse", "seeds": 1,
            "thresholds": {**COLLAPSE, "arm": "scaling", "steady": None},
        },
    },
}  # fmt: skip


def write_lab(
    folder: Path, common: dict[str, Any] | None = None, claims: dict[str, dict[str, Any]] | None = None
) -> Path:
    """lab/ with these files; its path."""
    lab = folder / "lab"
    lab.mkdir(parents=True, exist_ok=True)
    for name, value in {"common": common or COMMON, **(claims or CLAIMS)}.items():
        (lab / f"{name}.yaml").write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return lab
