"""What a PPO run works with: four models, prompts, reward sources and the ptx mix, loaded and checked.

``train/ppo.py`` reads like the algorithm because everything that can be wrong before the first sample is found here.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppomax.config import PPOConfig, RewardSourceConfig, check_judges
from ppomax.data.chat import ChatFormat, fit_dialogue
from ppomax.data.records import Dialogue, Message, Prompt, Text, split_key, unit_hash
from ppomax.data.sources import load_mixture
from ppomax.errors import UserError
from ppomax.evaluate.llm_judge import LLMJudge
from ppomax.models.adapters import adapter
from ppomax.models.loading import (
    add_lora,
    check_fits,
    check_tokenizer,
    cpu_copy,
    freeze,
    load_causal_lm,
    load_scalar_model,
    load_tokenizer,
    quicken,
    scalar_from_causal,
)
from ppomax.models.passes import device_of
from ppomax.models.precision import halve_linears
from ppomax.regular_file import expand_path
from ppomax.rollout.reward_sources import RewardSource, make_source
from ppomax.train.parallel import Ranks
from ppomax.train.ppo_shared import shared_models
from ppomax.train.sharding import Offloaded, divide, first_device, go_home, halve_layers, in_turn, put_aside

CPU = torch.device("cpu")
RewardFunction = Callable[..., Sequence[float]]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as messages, which reward sources and readers see, and as the ids that the policy continues."""

    messages: tuple[Message, ...]
    ids: list[int]
    metadata: dict[str, Any]
    source: str = "memory"

    @property
    def category(self) -> str:
        """What win rates are told apart by."""
        return str(self.metadata.get("category") or self.source)

    @property
    def key(self) -> str:
        """As the key of the record it came from: equal keys never stand on both sides of a split."""
        return split_key(self.messages)


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
    judges: list[RewardSource]
    """what gives scores to held-out answers; empty: nothing does"""
    judge_prompts: list[EncodedPrompt]
    """what is judged; empty: nothing is"""
    ptx: list[tuple[list[int], list[bool]]]
    """ids and trained-token masks"""
    bench: list[Offloaded] = field(default_factory=list)
    """frozen models that are on the device only while they score"""
    llm_judge: LLMJudge | None = None
    """compares held-out answers, in place of `judges`"""

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[Any]:
        """The reference model, ready for a forward pass."""
        if self.reference is not None:
            yield self.reference
        else:
            with adapter(self.policy, None):
                yield self.policy

    @property
    def models(self) -> list[Any]:
        """Every model whose passes the ranks may have to make together."""
        members = [member for source in [*self.sources, *self.judges] for member in getattr(source, "members", [])]
        return [self.policy, self.critic, self.reference, *(member.model for member in members)]

    def frozen_go_home(self) -> None:
        """Scoring is over: free the device of frozen models, where they are offloaded."""
        go_home(self.bench)


def prepare(
    config: PPOConfig, ranks: Ranks, *, policy: Any = None, tokenizer: Any = None, reference: Any = None, critic: Any = None,
    reward: Any = None, prompts: Sequence[Prompt] | None = None, ptx: Sequence[Dialogue | Text] | None = None,
) -> Setup:  # fmt: skip
    """Load what is not given in memory; every mistake is a UserError before anything is written."""
    trust = config.trust_remote_code
    if config.rollout_batch % config.sampling.samples_per_prompt:
        raise UserError(
            f"rollout_batch = {config.rollout_batch}: not a multiple of sampling.samples_per_prompt = "
            f"{config.sampling.samples_per_prompt}"
        )
    if config.rollout_batch < ranks.size:
        raise UserError(f"rollout_batch = {config.rollout_batch}: smaller than the number of ranks, {ranks.size}")
    check_judges(config.watch.judge, "watch.judge")
    llm_judge = _llm_judge(config)
    given: list[Any] = [] if reward is None else list(reward) if isinstance(reward, list) else [reward]
    if not given and not config.reward:
        raise UserError("reward: no source is given; name a reward model directory, module:function or an http address")
    tokenizer = check_tokenizer(tokenizer) if tokenizer is not None else load_tokenizer(config.model, trust)
    chat_format = ChatFormat(tokenizer, config.chat_template)
    training, held_out = _prompts(config, chat_format, prompts, ranks)
    mixed = _ptx(config, chat_format, ptx, ranks)

    with in_turn(ranks):
        policy, critic, reference, sources, judges, bench = _models(
            config, ranks, tokenizer, chat_format, policy, critic, reference, given, [*training, *held_out], mixed
        )
    return Setup(
        policy, critic, reference, chat_format, sources, training, held_out[: config.watch.eval_prompts],
        judges, held_out[: config.watch.judge_prompts] if config.watch.judge else [], mixed, bench, llm_judge,
    )  # fmt: skip


def _llm_judge(config: PPOConfig) -> LLMJudge | None:
    """The language model that compares, where one is named. Its replies are kept beside the reference's answers."""
    model = next((judge.llm for judge in config.watch.judge if judge.llm is not None), None)
    if model is None:
        return None
    folder = Path(expand_path(config.output_dir)) / "judge"
    # one process asks, whatever the number of ranks; on a terminal the run's own panel has the place of a second bar
    return LLMJudge(model, config.watch.llm, folder, Ranks(), section="watch.llm", quiet=sys.stderr.isatty())


def _score_judges(config: PPOConfig) -> list[RewardSourceConfig]:
    return [judge for judge in config.watch.judge if judge.llm is None]


def _models(
    config: PPOConfig, ranks: Ranks, tokenizer: Any, chat_format: ChatFormat, policy: Any, critic: Any, reference: Any,
    given: Sequence[Any], prompts: Sequence[EncodedPrompt], mixed: Sequence[tuple[list[int], list[bool]]],
) -> tuple[Any, Any, Any | None, list[RewardSource], list[RewardSource], list[Offloaded]]:  # fmt: skip
    """Policy, critic, reference, reward sources and judges, each where it belongs; the last: models on the CPU.

    What will be halved is loaded on the CPU and halved there: in float32 it might not fit the device.
    """
    trust = config.trust_remote_code
    shared = config.lora is not None and config.lora.shared_base
    device = CPU if shared else first_device(config.parallel, ranks)
    in_memory = policy is not None
    # models of the caller, to be used elsewhere: their weights keep their type
    callers = {id(m[0] if isinstance(m, tuple) else m) for m in (reference, *given)}
    if policy is None:
        policy = load_causal_lm(config.model, device, trust)
    else:
        policy = policy.to(device, torch.float32).eval()
    policy.config.use_cache = False
    if getattr(policy.config, "ppomax_stage", None) == "base":
        ranks.say(f"warning: {config.model} was never fine-tuned (detail 9): without SFT, PPO usually fails")
    sources, judges = (
        [
            make_source(
                (source, tokenizer) if isinstance(source, nn.Module) else source, chat_format, device=CPU,
                precision=config.precision, micro_batch_tokens=config.micro_batch_tokens, trust_remote_code=trust,
            )
            for source in group
        ]
        for group in ([] if shared else given or config.reward, _score_judges(config))
    )  # fmt: skip
    frozen = [member.model for source in [*sources, *judges] for member in getattr(source, "members", [])]
    if shared:
        if critic is not None or reference is not None:
            raise UserError("lora.shared_base: critic and reference in memory have bases of their own: leave them out")
        _fit_contexts(config, tokenizer, {"policy": policy}, prompts, mixed)
        policy, critic, reference, sources = shared_models(
            config, policy, chat_format, ranks, given, in_memory=in_memory
        )
    else:
        policy, critic, reference = _own_models(
            config, tokenizer, policy, critic, reference, sources, frozen, ranks, prompts, mixed
        )
    bench: list[Offloaded] = []
    halve = halve_layers if config.parallel.frozen == "shard" and ranks.size > 1 else halve_linears
    for model in {id(model): model for model in frozen}.values():
        if config.precision == "bf16" and id(model) not in callers:
            halve(model)
        put_aside(model, config.parallel, ranks, config.precision, bench)
    return policy, critic, reference, sources, judges, bench


def _own_models(
    config: PPOConfig, tokenizer: Any, policy: Any, critic: Any, reference: Any, sources: Sequence[RewardSource],
    frozen: list[Any], ranks: Ranks, prompts: Sequence[EncodedPrompt], mixed: Sequence[tuple[list[int], list[bool]]],
) -> tuple[Any, Any, Any | None]:  # fmt: skip
    """Policy, critic and reference with weights of their own; the reference joins ``frozen``. None: the policy's base."""
    device, trust = first_device(config.parallel, ranks), config.trust_remote_code
    if critic is None:
        critic = _critic(config, policy, tokenizer, sources, device, trust)
    if any(critic is model for model in frozen):  # the critic is trained, the reward model it starts from is not
        critic = copy.deepcopy(critic)
    if not config.critic.calibrate:
        critic.config = copy.deepcopy(critic.config)  # one given in memory may be a reward model, too
        critic.config.reward_offset = 0.0
    critic = critic.to(device, torch.float32).eval()
    if reference is None and config.reference is not None:
        reference = load_causal_lm(config.reference, CPU, trust)
        _same_tokens(tokenizer, config.reference, "reference", trust)
    if reference is policy or (reference is None and config.lora is None):
        reference = cpu_copy(policy)
    if reference is not None:
        frozen.append(freeze(reference))
    models = {"policy": policy, "critic": critic, "reference": reference}
    for model in models.values():  # also those given in memory: policy and reference must not differ in rounding
        if model is not None:
            quicken(model, device_of(model))
    _fit_contexts(config, tokenizer, models, prompts, mixed)
    policy.requires_grad_(True)
    critic.requires_grad_(True)
    if config.lora is not None:
        policy = add_lora(policy, config.lora, "CAUSAL_LM")
        critic = add_lora(critic, config.lora, "SEQ_CLS")
    for model in (policy, critic):
        divide(model, config.parallel, ranks, config.precision)
    return policy, critic, reference


def _critic(
    config: PPOConfig, policy: Any, tokenizer: Any, sources: Sequence[RewardSource], device: Any, trust: bool
) -> Any:
    """Detail 8: from the (first) reward model, from the policy's start with a fresh head, or from a directory."""
    init = config.critic.init
    if init == "policy":
        return scalar_from_causal(policy, config.seed)
    if init != "reward":
        critic = load_scalar_model(init, device, trust)
        _same_tokens(tokenizer, init, "critic.init", trust)
        return critic
    members = [member for source in sources for member in getattr(source, "members", [])]
    if not members:
        raise UserError(
            "critic.init = reward: no reward source is a model; set critic.init to policy or to a model directory"
        )
    _compare_tokens(tokenizer, members[0].chat.tokenizer, members[0].path, "critic.init = reward")
    return members[0].model


def _same_tokens(tokenizer: Any, path: str, field: str, trust: bool) -> None:
    """Critic and reference read the policy's token ids: refuse a model whose own tokenizer gives them another meaning."""
    try:
        other = load_tokenizer(path, trust)
    except UserError:  # a model may be saved without its tokenizer; its size is still checked
        return
    _compare_tokens(tokenizer, other, path, field)


def _compare_tokens(tokenizer: Any, other: Any, path: str, field: str) -> None:
    theirs = other.get_vocab()
    differing = sum(theirs.get(token) != i for token, i in tokenizer.get_vocab().items())
    if differing:
        raise UserError(
            f"{field}: {path} has another tokenizer than the policy ({differing} tokens differ), but reads the policy's "
            f"tokens: {'set critic.init to policy' if field.startswith('critic') else 'name a model with the same one'}"
        )


def _fit_contexts(
    config: PPOConfig, tokenizer: Any, models: dict[str, Any], prompts: Sequence[EncodedPrompt],
    mixed: Sequence[tuple[list[int], list[bool]]],
) -> None:  # fmt: skip
    """Refuse what would not fit a model's context, or its embeddings, before the first sample is drawn."""
    longest = max(len(p.ids) for p in prompts)
    new = config.sampling.max_new_tokens
    for name, model in models.items():
        if model is not None:
            where = f"{name}: max_prompt_length or sampling.max_new_tokens (longest prompt {longest}, answer {new})"
            check_fits(model, tokenizer, longest + new, where)
    check_fits(models["policy"], tokenizer, max((len(ids) for ids, _ in mixed), default=0), "ptx.max_length")


def _prompts(
    config: PPOConfig, chat_format: ChatFormat, given: Sequence[Prompt] | None, ranks: Ranks
) -> tuple[list[EncodedPrompt], list[EncodedPrompt]]:
    """Training prompts and the fixed held-out ones, none of whose keys is trained on."""
    watched: list[Any] | None
    if given is None:
        records, report = load_mixture(config.prompts, "prompt", split_seed=config.split_seed)
        ranks.say(*report.lines())
    else:
        records = list(given)
    if config.watch.prompts:
        watched, report = load_mixture(config.watch.prompts, "prompt", split_seed=config.split_seed, once=True)
        ranks.say(*report.lines())
    else:
        watched = None
    training = encode_prompts(records, chat_format, config, ranks, "prompts")
    if watched is None:
        distinct = {p.key: p for p in reversed(training)}  # one prompt for each first turn
        held_out = sorted(distinct.values(), key=lambda p: unit_hash(p.key, config.split_seed + 1))
    else:
        held_out = encode_prompts(watched, chat_format, config, ranks, "watch.prompts")
    option = "judge_prompts" if config.watch.judge else "eval_prompts"
    wanted = max(config.watch.eval_prompts, config.watch.judge_prompts if config.watch.judge else 0)
    if config.watch.judge and not held_out:
        raise UserError(
            f"watch.prompts: none is left to be judged; raise max_prompt_length = {config.max_prompt_length}"
        )
    held_out = held_out[:wanted]
    keys = {p.key for p in held_out}
    kept = [p for p in training if p.key not in keys]
    if not kept:
        remedy = "lower it, or name held-out prompts in watch.prompts" if training else "raise max_prompt_length"
        raise UserError(
            f"prompts: none is left to train on: of {len(records)}, {len(records) - len(training)} are over "
            f"max_prompt_length = {config.max_prompt_length} and {len(training)} are held out by watch.{option} = "
            f"{getattr(config.watch, option)}; {remedy}"
        )
    ranks.say(
        f"{len(kept)} prompts to train on; {len(held_out)} held out to be watched, and {len(training) - len(kept)} "
        "with their first turn taken out of training",
    )
    return kept, held_out


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
        kept.append(EncodedPrompt(tuple(record.messages), ids, dict(record.metadata), record.source))
    if overlong:
        did = "dropped" if config.overlong == "drop" else "cut from the left"
        ranks.say(
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
        ranks.say(*report.lines())
    else:
        records = list(given)
    encoded: list[tuple[list[int], list[bool]]] = []
    for record in records:
        if isinstance(record, Text):
            ids = chat_format.encode_text(record.text)
            step = config.ptx.max_length - 1  # a piece's last token begins the next one, which does not learn it
            for start in range(0, max(len(ids) - 1, 0), step):
                piece = ids[start : start + step + 1]
                encoded.append((piece, [False] + [True] * (len(piece) - 1)))
        elif isinstance(record, Dialogue):
            fitted = fit_dialogue(
                *chat_format.encode_dialogue(record.messages, record.untrained),
                config.ptx.max_length,
                "truncate",
                chat_format.bos_id,
            )
            if fitted is not None:
                encoded.append((fitted.ids, [False, *fitted.trained[1:]]))
    encoded = [e for e in encoded if any(e[1])]
    if not encoded:
        raise UserError("ptx.data: no record with a token to train on")
    return encoded
