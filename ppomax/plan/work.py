"""From a PPO configuration to what the formulas need: shapes, lengths, batches, settings."""

from __future__ import annotations

import math
import re

from ppomax.config import PPOConfig
from ppomax.errors import UserError
from ppomax.plan.memory import Settings, Work
from ppomax.plan.shapes import Shape, shape_of


def _shape(name: str, field: str, config: PPOConfig) -> Shape:
    try:
        shape = shape_of(name, config.trust_remote_code)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    if shape.reward_model and field in ("model", "reference"):
        raise UserError(f"{field}: {name} is a reward model, not a language model; give the model it was trained from")
    return shape


def _room(shape: Shape, field: str, config: PPOConfig) -> list[int]:
    """Tokens that its context leaves to a prompt: the run refuses longer ones when it has read them. Empty: no limit."""
    response = config.sampling.max_new_tokens
    if shape.context is None:
        return []
    if response >= shape.context:
        raise UserError(
            f"{field}: responses of {response} tokens leave nothing of the context of {shape.name}, {shape.context} tokens; "
            "lower sampling.max_new_tokens"
        )
    return [shape.context - response]


def work_of(config: PPOConfig) -> Work:
    """What an iteration of ``config`` has to do. Without a reward source one reward model of the policy's shape is taken."""
    if config.rollout.colocated:
        raise UserError("rollout.colocated: cannot be planned; leave it out to plan for a server on devices of its own")
    policy = _shape(config.model, "model", config)
    names = [
        name
        for source in config.reward
        for name in (source.model if isinstance(source.model, list) else [source.model])
        if name is not None
    ]
    rewards = tuple(_shape(name, "reward", config) for name in names) if config.reward else (policy,)
    if config.critic.init == "policy":
        critic = policy
    elif config.critic.init == "reward":
        critic = rewards[0] if rewards else policy
    else:
        critic = _shape(config.critic.init, "critic.init", config)
    if config.reference is not None:
        reference = _shape(config.reference, "reference", config)
        if reference.causal != policy.causal:
            raise UserError(
                f"reference: {config.reference} has another shape than {config.model}, which cannot be planned"
            )
    rooms = [*_room(policy, "model", config), *_room(critic, "critic.init", config)]
    samples = config.rollout_batch * config.buffer_iterations
    return Work(
        policy=policy, critic=critic, rewards=rewards, reference=config.reference is not None or config.lora is None,
        prompt=min([config.max_prompt_length, *rooms]), response=config.sampling.max_new_tokens, rollout_batch=config.rollout_batch,
        minibatch=min(config.minibatch, samples), updates=config.ppo_epochs * math.ceil(samples / config.minibatch),
        precision=config.precision, penalty=config.sampling.repetition_penalty != 1,
        server=config.rollout.engine == "vllm", joint=config.grad_clip.joint,
    )  # fmt: skip


MOST_LAYERS = 200


def _means(named: str | list[str], path: str) -> bool:
    if isinstance(named, str):
        return re.fullmatch(named, path) is not None
    return any(f".{path}".endswith(f".{name}") for name in named)


def _targets(named: str | list[str]) -> tuple[str, ...]:
    """Which matrices of a layer `lora.target_modules` means, as peft reads it, in any layer; none for all."""
    if named == "all-linear":
        return ()
    attention, feed_forward = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    whole = {name: f"model.layers.{{}}.self_attn.{name}" for name in attention}
    whole |= {name: f"model.layers.{{}}.mlp.{name}" for name in feed_forward}
    try:
        found = tuple(
            name for name, path in whole.items() if any(_means(named, path.format(i)) for i in range(MOST_LAYERS))
        )
    except re.error as error:
        raise UserError(f"lora.target_modules: {named} is no regular expression: {error}") from None
    if not found:
        raise UserError(f"lora.target_modules: {named} names none of {', '.join(whole)}")
    return found


def settings_of(config: PPOConfig) -> Settings:
    """What of ``config`` changes memory and speed alone."""
    return Settings(
        micro_batch_tokens=config.micro_batch_tokens, sampling_batch=config.sampling.batch_size,
        shard=config.parallel.shard, frozen=config.parallel.frozen,
        checkpointing=config.parallel.activation_checkpointing,
        lora_rank=config.lora.rank if config.lora is not None else 0,
        lora_targets=_targets(config.lora.target_modules) if config.lora is not None else (),
        shared_base=config.lora is not None and config.lora.shared_base,
    )  # fmt: skip
