"""Every option of PPO changes the run, or a warning at the start says that it cannot."""

from __future__ import annotations

import ast
import functools
import sys
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppomax.config import LLMConfig, PPOConfig, Section
from ppomax.options import warnings_for

sys.path.insert(0, str(Path(__file__).parent))
from ppo_tools import dialogues, lines, make_config, make_policy, run, timeless

ALWAYS: dict[str, Any] = {}
ADAPTIVE = {"kl": {"controller": "adaptive", "target": 0.02, "horizon": 50}, "iterations": 4}
PTX = {"ptx": {"coef": 0.5, "data": ["memory"]}}
LATER = {"iterations": 3, "ppo_epochs": 2}  # enough updates for the ratio to leave the clip range
PENALTY = {"surrogate.kind": "penalty", **LATER}
FALL = {"policy_optim.schedule": "linear", "critic_optim.schedule": "linear"}
PLATEAU = {"critic": {"pretrain_iterations": 12}, "critic_optim.lr": 0.0, "iterations": 1}

OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    # field: (another value, what else must be set for it to act)
    "seed": (3, ALWAYS), "precision": ("bf16", ALWAYS), "chat_template": ("human_assistant_en", ALWAYS),
    "overlong": ("truncate", {"max_prompt_length": 16}), "max_prompt_length": (16, ALWAYS),
    "split_seed": (5, ALWAYS), "iterations": (3, ALWAYS), "rollout_batch": (6, ALWAYS), "minibatch": (2, ALWAYS),
    "ppo_epochs": (2, ALWAYS), "buffer_iterations": (2, ALWAYS), "logprobs": ("scaled", {"sampling.temperature": 0.7}),
    "lora": ({"rank": 2}, ALWAYS), "lora.rank": (4, {"lora": {"rank": 2}}), "lora.alpha": (8.0, {"lora": {"rank": 2}}),
    "lora.target_modules": (["q_proj"], {"lora": {"rank": 2}}),
    "sampling.max_new_tokens": (4, ALWAYS), "sampling.temperature": (0.5, ALWAYS), "sampling.top_p": (0.3, ALWAYS),
    "sampling.top_k": (3, ALWAYS), "sampling.repetition_penalty": (3.0, ALWAYS),
    "sampling.repetition_scope": ("all", {"sampling.repetition_penalty": 3.0}), "sampling.stop": (["a", "e", "t"], ALWAYS),
    "sampling.samples_per_prompt": (4, ALWAYS),
    "kl.coef": (0.5, ALWAYS), "kl.estimator": ("k2", ALWAYS), "kl.controller": ("adaptive", {**ADAPTIVE, "kl.controller": "fixed"}),
    "kl.target": (3.0, ADAPTIVE), "kl.horizon": (20, ADAPTIVE),
    "reward_shaping.scale": (True, {"reward_shaping.normalise": False}), "reward_shaping.normalise": (False, ALWAYS),
    "reward_shaping.clip": (0.1, ALWAYS), "reward_shaping.missing_eos_penalty": (2.0, ALWAYS),
    "reward_shaping.length_penalty": (1.0, ALWAYS),
    "advantage.normalise": (True, ALWAYS), "advantage.clip": (0.1, ALWAYS),
    "advantage.std": ("biased", {"advantage.normalise": True}),
    "gae.gamma": (0.8, ALWAYS), "gae.lam": (0.1, ALWAYS), "gae.target": ("reward_to_go", ALWAYS),
    "surrogate.kind": ("none", LATER), "surrogate.clip_range": (0.01, LATER), "surrogate.clip_range_high": (0.01, LATER),
    "surrogate.dual_clip": (1.01, {**LATER, "surrogate.clip_range": 3.0}), "surrogate.penalty_coef": (3.0, PENALTY),
    "surrogate.denominator": ("reference", ALWAYS),
    "entropy.coef": (0.5, ALWAYS), "entropy.target": (2.0, {"entropy.coef": 0.5}),
    "critic.value_clip": (0.01, LATER), "critic.pretrain_iterations": (1, ALWAYS), "critic.pretrain_plateau": (0.9, PLATEAU),
    "grad_clip.norm": (0.1, ALWAYS), "grad_clip.joint": (True, {"grad_clip.norm": 0.3}),
    "ptx.coef": (2.0, PTX), "ptx.batch_ratio": (2.0, PTX), "ptx.max_length": (8, PTX),
    "watch.eval_prompts": (4, ALWAYS), "watch.every": (1, ALWAYS),
    **{f"{m}_optim.{f}": (v, base) for m in ("policy", "critic") for f, v, base in (
        ("lr", 1e-3, ALWAYS), ("schedule", "linear", ALWAYS), ("warmup", 1.0, ALWAYS), ("min_lr_ratio", 0.5, FALL),
        ("betas", (0.5, 0.6), ALWAYS), ("eps", 1e-2, ALWAYS), ("weight_decay", 1.0, ALWAYS),
    )},
}  # fmt: skip
ELSEWHERE = {
    "output_dir", "device", "trust_remote_code", "trackers", "tracker_project", "tracker_name", "model", "reference",
    "reward", "prompts", "preset", "critic.init", "critic.calibrate", "watch.prompts", "ptx.data", "checkpoint.every", "checkpoint.keep",
    "micro_batch_tokens", "sampling.batch_size",
    *(f"watch.{name}" for name in ("judge", "judge_every", "judge_prompts", "tie_band", "baselines", "keep_best")),
    *(f"watch.{name}" for name in ("detect", "on_collapse", "rollback_factor", "rollback_kl", "max_rollbacks", "webhook")),
    *(f"rollout.{name}" for name in ("engine", "url", "transfer", "colocated", "timeout", "retries", "first_pause")),
    *(f"watch.llm.{name}" for name in LLMConfig.model_fields),
    "rollout.importance_clip", "parallel.shard", "parallel.frozen", "parallel.activation_checkpointing", "lora.shared_base",
}  # fmt: skip
"""where a run finds and puts things, what affects memory only (tested above and in test_ppo_resume.py), what is merged
before a run begins (presets: test_options.py), the critic (test_ppo_parts.py), judging, which training does not notice
(test_ppo_judge.py, test_ppo_llm_judge.py), what is done about a collapse (test_ppo_watch_actions.py), another engine (test_vllm_ppo.py),
and where weights lie (test_sharding.py, test_shared_base.py)"""


def fields(cls: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        parts = () if typing.get_origin(field.annotation) is list else typing.get_args(field.annotation)
        sections = [a for a in (field.annotation, *parts) if isinstance(a, type) and issubclass(a, Section)]
        if sections:
            yield from fields(sections[0], f"{prefix}{name}.")
        if not sections or not isinstance(field.default, Section):
            yield prefix + name


def test_the_table_names_every_option() -> None:
    assert set(OPTIONS) | ELSEWHERE == set(fields(PPOConfig))


@functools.cache
def outcome(changes: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[float]]:
    """Metrics, samples and some weights after a run; ``changes`` is the repr of a dict, so that bases run once."""
    parsed = ast.literal_eval(changes)
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder) / "run", parsed, policy=make_policy(layers=1), ptx=dialogues())
        samples = lines(result.path / "samples.jsonl")
    final = [p.detach().double().sum().item() for m in (result.policy, result.critic) for p in m.parameters()]
    return timeless(result.metrics), samples, final


@pytest.mark.parametrize("field", list(OPTIONS))
def test_every_option_acts(field: str) -> None:
    """Under its conditions an option changes the run; under the defaults too, or else a warning says that it cannot."""
    value, base = OPTIONS[field]
    assert outcome(repr({**base, field: value})) != outcome(repr(base))
    if base and not field.startswith("lora."):
        alone = {field: value}
        if field == "reward_shaping.scale":
            return  # contradicts the default and is refused
        if field.startswith("ptx."):
            assert any(w.startswith(f"{field} does nothing") for w in warnings_for(make_config("unused", **alone))) or (
                field == "ptx.coef"
            )
            return
        warned = any(w.startswith(f"{field} does nothing") for w in warnings_for(make_config("unused", **alone)))
        acts = outcome(repr(alone)) != outcome(repr({}))
        assert warned or acts or base in (LATER, ADAPTIVE) or field == "overlong", (
            f"{field} did nothing and nothing said so"
        )
        assert not (warned and acts), f"a warning says that {field} does nothing, yet it acts"
