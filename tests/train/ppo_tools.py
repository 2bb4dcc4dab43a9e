"""A PPO problem small enough for hundreds of runs: tokenizer, models of two layers, prompts and rewards."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._pytree import tree_map
from transformers import LlamaConfig, LlamaForCausalLM

from ppomax.config import PPOConfig
from ppomax.data.records import Dialogue, Message, Prompt
from ppomax.models.fresh import train_tokenizer
from ppomax.models.loading import scalar_from_causal
from ppomax.report import page
from ppomax.rollout.experience import Experience
from ppomax.train import ppo
from ppomax.train.ppo import PPOResult, train_ppo
from ppomax.train.ppo_update import Updater

QUESTIONS = [
    "why is the sky blue", "name a red fruit", "how do I boil an egg", "is this mushroom safe to eat",
    "tell me a story about a fox and a river", "what is seven times eight", "write a poem", "我今天很累，怎么办",
    "苹果是什么颜色", "怎么煮鸡蛋", "讲一个关于狐狸的故事", "hello there", "where does the river end",
]  # fmt: skip


@functools.cache
def shared_tokenizer() -> Any:
    return train_tokenizer([*QUESTIONS, "the fox ate the egg by the river", "狐狸在河边吃鸡蛋"], 280)


def make_tokenizer() -> Any:
    return copy.deepcopy(shared_tokenizer())


def make_policy(
    seed: int = 0, *, width: int = 16, layers: int = 2, context: int = 96, spread: float = 0.2, vocabulary: int = 0
) -> Any:
    """A Llama whose weights are large enough for its probabilities to differ."""
    tokenizer = shared_tokenizer()
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=2 * width, max_position_embeddings=context, initializer_range=spread,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():  # some answers must end by themselves
        model.lm_head.weight[tokenizer.eos_token_id] *= 5
    return model


def make_critic(seed: int = 1, **options: Any) -> Any:
    return scalar_from_causal(make_policy(seed, **options), seed)


def prompts(count: int = 13) -> list[Prompt]:
    asked: list[Message] = [{"role": "user", "content": q} for q in QUESTIONS]
    return [Prompt((asked[i % len(asked)],), metadata=(("number", i),)) for i in range(count)]


def dialogues() -> list[Dialogue]:
    answers = ["it is red", "I do not know", "七乘八是五十六", "boil it for ten minutes"]
    return [
        Dialogue(({"role": "user", "content": q}, {"role": "assistant", "content": answers[i % 4]}))
        for i, q in enumerate(QUESTIONS[:8])
    ]


def lower_share(prompts: list[Any], responses: list[str]) -> list[float]:
    """Share of small Latin letters: the best possible answer has 1."""
    return [sum("a" <= c <= "z" for c in r) / max(len(r), 1) for r in responses]


def byte_sum(prompts: list[Any], responses: list[str]) -> list[float]:
    """A rough function of the text, different for almost any two answers."""
    return [sum((i + 1) * ord(c) % 97 for i, c in enumerate(r)) / 40 - 3 for r in responses]


SMALL: dict[str, Any] = {
    "iterations": 2, "rollout_batch": 8, "minibatch": 4, "micro_batch_tokens": 120,
    "sampling": {"max_new_tokens": 6}, "critic": {"init": "policy", "pretrain_iterations": 0},
    "policy_optim": {"lr": 3e-3, "warmup": 0.0}, "critic_optim": {"lr": 3e-3, "warmup": 0.0},
    "watch": {"eval_prompts": 2, "every": 2}, "checkpoint": {"every": 0}, "device": "cpu", "prompts": ["memory"], "model": "memory",
}  # fmt: skip


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with dotted or nested ``changes``."""
    out = copy.deepcopy(base)
    for name, value in changes.items():
        *path, last = name.split(".")
        place = out
        for part in path:
            place = place.setdefault(part, {})
        place[last] = merged(place[last], value) if isinstance(value, dict) and last in place else value
    return out


def make_config(output_dir: Path | str, **changes: Any) -> PPOConfig:
    return PPOConfig.model_validate(merged(SMALL, {"output_dir": str(output_dir), **changes}))


def skip_report() -> None:
    """Leave out RUN/report.html, whose figures take longer than the training; `run` draws it on demand."""
    page.run_page = lambda folder: ""  # type: ignore[assignment]


DRAW = page.run_page


def run(
    output_dir: Path | str, changes: dict[str, Any] | None = None, *, report: bool = False, **given: Any
) -> PPOResult:
    """Train the small problem, all in memory."""
    defaults: dict[str, Any] = {
        "policy": None, "tokenizer": None, "reward": byte_sum, "prompts": prompts(),
    }  # fmt: skip
    options = {**defaults, **given}
    options["policy"] = options["policy"] or make_policy()
    options["tokenizer"] = options["tokenizer"] or make_tokenizer()
    with mock.patch.object(page, "run_page", DRAW if report else lambda folder: ""):
        return train_ppo(make_config(output_dir, **(changes or {})), **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without what no two runs share."""
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "memory/"))} for row in rows]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return tree_map(lambda t: t.detach().clone(), dict(model.named_parameters()))


class Record:
    """What a run did: fresh experience and weights of each iteration, and every minibatch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fresh: list[Experience] = []
        self.models: list[tuple[Any, Any]] = []
        self.minibatches: list[list[Experience]] = []
        self.numbers: list[list[dict[str, float]]] = []
        self._setup: Any = None
        gather, update, prepare = ppo.gather, Updater.update, ppo.prepare

        def keep_setup(*args: Any, **kwargs: Any) -> Any:
            self._setup = prepare(*args, **kwargs)
            return self._setup

        def keep_fresh(ranks: Any, mine: Experience, total: int) -> Experience:
            experience = gather(ranks, mine, total)
            self.fresh.append(experience)
            self.models.append((copy.deepcopy(self._setup.policy), copy.deepcopy(self._setup.critic)))
            self.minibatches.append([])
            self.numbers.append([])
            return experience

        def keep_minibatch(updater: Updater, minibatch: Experience, ptx: Any, *, policy: bool) -> dict[str, float]:
            self.minibatches[-1].append(copy.deepcopy(minibatch))
            numbers = update(updater, minibatch, ptx, policy=policy)
            self.numbers[-1].append(dict(numbers))
            return numbers

        monkeypatch.setattr(ppo, "prepare", keep_setup)
        monkeypatch.setattr(ppo, "gather", keep_fresh)
        monkeypatch.setattr(Updater, "update", keep_minibatch)
