"""What a PPO run works with: four models, prompts, reward sources and the ptx mix, loaded and checked.

``train/ppo.py`` reads like the algorithm because everything that can be wrong before the first sample is found here.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ppomax.config import PPOConfig
from ppomax.data.chat import ChatFormat, fit_dialogue
from ppomax.data.records import Dialogue, Message, Prompt, Text, unit_hash
from ppomax.data.sources import load_mixture
from ppomax.errors import UserError
from ppomax.models.loading import (
    add_lora,
    check_tokenizer,
    freeze,
    load_causal_lm,
    load_scalar_model,
    load_tokenizer,
    scalar_from_causal,
)
from ppomax.rollout.reward_sources import RewardSource, make_source
from ppomax.train.parallel import Ranks

RewardFunction = Callable[..., Sequence[float]]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as messages, which reward sources and readers see, and as the ids that the policy continues."""

    messages: tuple[Message, ...]
    ids: list[int]
    metadata: dict[str, Any]


@dataclass
class Setup:
    """Models on their device, data encoded."""

    policy: Any
    critic: Any
    reference: Any | None
    """None: the reference is the policy without its adapter"""
    chat_format: ChatFormat
    sources: list[RewardSource]
    prompts: list[EncodedPrompt]
    watch_prompts: list[EncodedPrompt]
    ptx: list[tuple[list[int], list[bool]]]
    """ids and trained-token masks"""

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[Any]:
        """The reference model, ready for a forward pass."""
        if self.reference is not None:
            yield self.reference
        else:
            with self.policy.disable_adapter():
                yield self.policy


def say(ranks: Ranks, *lines: str) -> None:
    if ranks.is_main:
        for line in lines:
            print(line, file=sys.stderr, flush=True)


def prepare(
    config: PPOConfig, ranks: Ranks, *, policy: Any = None, tokenizer: Any = None, reference: Any = None, critic: Any = None,
    reward: Any = None, prompts: Sequence[Prompt] | None = None, ptx: Sequence[Dialogue | Text] | None = None,
) -> Setup:  # fmt: skip
    """Load what is not given in memory; every mistake is a UserError before anything is written."""
    device, trust = ranks.device, config.trust_remote_code
    if config.rollout_batch % config.sampling.samples_per_prompt:
        raise UserError(
            f"rollout_batch = {config.rollout_batch}: not a multiple of sampling.samples_per_prompt = "
            f"{config.sampling.samples_per_prompt}"
        )
    if config.rollout_batch < ranks.size:
        raise UserError(f"rollout_batch = {config.rollout_batch}: smaller than the number of ranks, {ranks.size}")
    tokenizer = check_tokenizer(tokenizer) if tokenizer is not None else load_tokenizer(config.model, trust)
    chat_format = ChatFormat(tokenizer, config.chat_template)
    training, watched = _prompts(config, chat_format, prompts, ranks)
    mixed = _ptx(config, chat_format, ptx, ranks)

    if policy is None:
        policy = load_causal_lm(config.model, device, trust)
    else:
        policy = policy.to(device).eval()
    policy.config.use_cache = False
    if getattr(policy.config, "ppomax_stage", None) == "base":
        say(ranks, f"warning: {config.model} was never fine-tuned (detail 9): without SFT, PPO usually fails")
    if critic is None:
        critic = _critic(config, policy, device, trust)
    else:
        critic = critic.to(device).eval()
    if reference is None and config.reference is not None:
        reference = load_causal_lm(config.reference, device, trust)
    if reference is None and config.lora is None:
        reference = copy.deepcopy(policy)
    if reference is not None:
        freeze(reference)
    policy.requires_grad_(True)
    critic.requires_grad_(True)
    if config.lora is not None:
        policy = add_lora(policy, config.lora, "CAUSAL_LM")
        critic = add_lora(critic, config.lora, "SEQ_CLS")

    given = [] if reward is None else list(reward) if isinstance(reward, list | tuple) else [reward]
    sources = [
        make_source(
            source,
            chat_format,
            device=device,
            precision=config.precision,
            micro_batch_tokens=config.micro_batch_tokens,
            trust_remote_code=trust,
        )
        for source in (given or config.reward)
    ]
    if not sources:
        raise UserError("reward: no source is given; name a reward model directory, module:function or an http address")
    return Setup(policy, critic, reference, chat_format, sources, training, watched, mixed)


def _critic(config: PPOConfig, policy: Any, device: Any, trust: bool) -> Any:
    """Detail 8: from the reward model, from the policy's start with a fresh head, or from a directory."""
    if config.critic.init == "policy":
        return scalar_from_causal(policy, config.seed)
    path = config.critic.init
    if path == "reward":
        models = [s.model for s in config.reward if s.model]
        if not models:
            raise UserError(
                "critic.init = reward: no reward source is a model; set critic.init to policy or to a model directory"
            )
        path = models[0] if isinstance(models[0], str) else models[0][0]
    critic = load_scalar_model(path, device, trust)
    if critic.config.vocab_size != policy.config.vocab_size:
        raise UserError(
            f"critic.init: {path} has a vocabulary of {critic.config.vocab_size}, the policy of {policy.config.vocab_size}; "
            "a critic reads the policy's tokens: set critic.init to policy"
        )
    return critic


def _prompts(
    config: PPOConfig, chat_format: ChatFormat, given: Sequence[Prompt] | None, ranks: Ranks
) -> tuple[list[EncodedPrompt], list[EncodedPrompt]]:
    """Training prompts and the fixed held-out ones, none of whose keys is trained on."""
    watched: list[Any]
    if given is None:
        records, report = load_mixture(config.prompts, "prompt", split_seed=config.split_seed)
        say(ranks, *report.lines())
    else:
        records = list(given)
    if config.watch.prompts:
        watched, report = load_mixture(config.watch.prompts, "prompt", split_seed=config.split_seed)
        say(ranks, *report.lines())
    else:
        watched = sorted(records, key=lambda r: unit_hash(r.key, config.split_seed + 1))
    held_out = encode_prompts(watched, chat_format, config, ranks, "watch.prompts")[: config.watch.eval_prompts]
    keys = {Prompt(p.messages).key for p in held_out}
    training = encode_prompts([r for r in records if r.key not in keys], chat_format, config, ranks, "prompts")
    if not training:
        raise UserError("prompts: none is left to train on (all too long, or all taken for watch.eval_prompts)")
    return training, held_out


def encode_prompts(
    records: Sequence[Any], chat_format: ChatFormat, config: PPOConfig, ranks: Ranks, field: str
) -> list[EncodedPrompt]:
    """Ids of prompts; over-long ones are dropped or lose their left, and are counted."""
    kept: list[EncodedPrompt] = []
    overlong = 0
    for record in records:
        ids = chat_format.encode_prompt(record.messages)
        if len(ids) > config.max_prompt_length:
            overlong += 1
            if config.overlong == "drop":
                continue
            head = ids[:1] if ids[0] == chat_format.bos_id else []
            ids = head + ids[len(ids) - config.max_prompt_length + len(head) :]
        kept.append(EncodedPrompt(tuple(record.messages), ids, dict(record.metadata)))
    if overlong:
        did = "dropped" if config.overlong == "drop" else "cut from the left"
        say(
            ranks,
            f"{field}: {overlong} of {len(records)} prompts over max_prompt_length = {config.max_prompt_length} {did}",
        )
    return kept


def _ptx(
    config: PPOConfig, chat_format: ChatFormat, given: Sequence[Dialogue | Text] | None, ranks: Ranks
) -> list[tuple[list[int], list[bool]]]:
    """Records of the ptx mix: loss on assistant tokens (dialogues) or on every token but the first (text)."""
    if config.ptx.coef == 0:
        return []
    if given is None:
        records, report = load_mixture(config.ptx.data, "dialogue", split_seed=config.split_seed)
        say(ranks, *report.lines())
    else:
        records = list(given)
    encoded: list[tuple[list[int], list[bool]]] = []
    for record in records:
        if isinstance(record, Text):
            ids = chat_format.encode_text(record.text)
            for start in range(0, len(ids), config.ptx.max_length):
                piece = ids[start : start + config.ptx.max_length]
                if len(piece) > 1:
                    encoded.append((piece, [False] + [True] * (len(piece) - 1)))
        elif isinstance(record, Dialogue):
            fitted = fit_dialogue(
                *chat_format.encode_dialogue(record.messages), config.ptx.max_length, "truncate", chat_format.bos_id
            )
            if fitted is not None:
                encoded.append((fitted[0], [False, *fitted[1][1:]]))
    encoded = [e for e in encoded if any(e[1])]
    if not encoded:
        raise UserError("ptx.data: no record with a token to train on")
    return encoded
