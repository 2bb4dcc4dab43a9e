"""Options that contradict each other (refused) and options that cannot act in the chosen mode (named in a warning)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from ppomax.config import (
    JudgeConfig,
    OptimConfig,
    PPOConfig,
    RewardConfig,
    RewardSourceConfig,
    RunConfig,
    SamplingConfig,
    Section,
    SFTConfig,
    TextDataConfig,
    check_judges,
)
from ppomax.errors import UserError
from ppomax.layers import defaults, merge, preset_layer
from ppomax.rollout.vllm_sampling import refuse_unlike_vllm

PLATEAU_WINDOW = 10
"""iterations of critic pre-training, 5 beside 5, in which a plateau can show"""

Inert = tuple[str, str]
"""(dotted name of an option, why it does nothing)"""


def refuse_contradictions(config: Section, in_memory: Collection[str] = ()) -> None:
    """Raise a UserError where two options cannot both be meant.

    ``in_memory``: what the caller hands over (ptx, reward, critic) instead of what the settings name.
    """
    if isinstance(config, RewardConfig) and config.min_pairs > config.max_pairs:
        raise UserError(f"min_pairs {config.min_pairs} is above max_pairs {config.max_pairs}: exchange them")
    if isinstance(config, PPOConfig):
        _refuse_in_ppo(config, in_memory)


def _refuse_in_ppo(config: PPOConfig, in_memory: Collection[str]) -> None:
    if config.reward_shaping.scale and config.reward_shaping.normalise:
        raise UserError(
            "reward_shaping.scale and reward_shaping.normalise are both on: choose scaling (detail 4) or "
            "normalisation (detail 5) and switch the other off"
        )
    if config.ptx.coef > 0 and not config.ptx.data and "ptx" not in in_memory:
        raise UserError(f"ptx.coef is {config.ptx.coef:g} but there is no ptx.data: give some, or set --ptx.coef 0")
    if config.logprobs == "scaled" and config.sampling.temperature == 0:
        raise UserError("logprobs: scaled divides by sampling.temperature, which is 0: choose raw or raise it")
    if config.kl.controller == "adaptive" and config.kl.coef == 0:
        raise UserError("kl.controller: adaptive multiplies kl.coef, and 0 stays 0: start from a coefficient above 0")
    if config.kl.controller == "adaptive" and config.rollout_batch >= 5 * config.kl.horizon:
        raise UserError(
            f"kl.horizon {config.kl.horizon}: {config.rollout_batch} samples an iteration would turn kl.coef negative; "
            f"choose more than {config.rollout_batch // 5}, the default is 10000"
        )
    each = config.sampling.samples_per_prompt
    if config.rollout_batch % each:
        raise UserError(f"rollout_batch {config.rollout_batch} is no multiple of sampling.samples_per_prompt {each}")
    if config.rollout.engine == "vllm":
        refuse_unlike_vllm(config)
    if config.lora is not None and config.lora.shared_base:
        if config.reference is not None:
            raise UserError("lora.shared_base: the reference is the base itself: leave out `reference`")
        if config.critic.init not in ("reward", "policy"):
            raise UserError(f"lora.shared_base: critic.init is {config.critic.init}: choose `reward` or `policy`")
    if config.watch.detect and config.watch.on_collapse == "rollback" and config.checkpoint.every == 0:
        raise UserError("watch.on_collapse: rollback needs checkpoints: set checkpoint.every above 0")
    if config.watch.webhook is not None and not config.watch.webhook.startswith(("http://", "https://", "$")):
        raise UserError("watch.webhook: neither an http(s) address nor the $NAME of an environment variable")
    check_judges(config.watch.judge, "watch.judge")
    for i, source in enumerate(config.reward if "reward" not in in_memory else ()):
        given = [name for name in ("model", "function", "url") if getattr(source, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise UserError(f"reward.{i}: exactly one of model, function, url is needed, found {found}")
    named = config.reward and not {"reward", "critic"} & set(in_memory)
    if named and config.critic.init == "reward" and not any(source.model for source in config.reward):
        raise UserError("critic.init is `reward`, but no reward source is a model: choose `policy` or a directory")


def warnings_for(config: RunConfig) -> list[str]:
    """One sentence for each option that was set away from its default (or preset) and cannot act in the chosen mode."""
    baseline = defaults(type(config))
    if isinstance(config, PPOConfig):
        baseline = merge(PPOConfig, baseline, preset_layer(config.preset))
    given = config.model_dump()
    inert = dict(_inert_everywhere(config))  # a second reason for the same option adds nothing
    out = [f"{name} does nothing: {why}" for name, why in inert.items() if _look(given, name) != _look(baseline, name)]
    if isinstance(config, PPOConfig):
        out += [f"{name} does nothing: {why}" for name, why in _inert_reward_options(config)]
        out += _notes_on_batches(config) + _overridden(config)
    return out


def _overridden(config: PPOConfig) -> list[str]:
    """Switches of the preset that are set otherwise: a file may win over a ``--preset`` of the command line unnoticed."""
    tree = preset_layer(config.preset).tree
    given = config.model_dump()
    out = []
    for path in tree.texts:
        name = ".".join(str(part) for part in path)
        value = tree.value
        for part in path:
            value = value[part]
        if all(isinstance(part, str) for part in path) and _look(given, name) != value:
            out.append(
                f"{name} is {_look(given, name)}, not {value} as in preset {config.preset}: fields win over presets"
            )
    return out


def _look(values: Any, name: str) -> Any:
    for part in name.split("."):
        value = values.get(part) if isinstance(values, dict) else None
        values = value
    return (
        [dict(v) for v in values] if isinstance(values, list) and values and isinstance(values[0], Section) else values
    )


def _inert_everywhere(config: RunConfig) -> Iterator[Inert]:
    if not isinstance(config, TextDataConfig | PPOConfig):
        for section in ("checkpoint", "parallel"):
            for name in type(getattr(config, section)).model_fields:
                yield f"{section}.{name}", "nothing is trained here"
    if config.checkpoint.every == 0:
        yield "checkpoint.keep", "checkpoint.every is 0, so there is one checkpoint at the end"
    if not {"wandb", "trackio"} & set(config.trackers):
        for name in ("tracker_project", "tracker_name"):
            yield name, "trackers holds neither wandb nor trackio"
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, OptimConfig) and section.schedule in ("constant", "inverse_sqrt"):
            yield (
                f"{name}.min_lr_ratio",
                f"{name}.schedule is {section.schedule}; only cosine and linear use it",
            )
        if isinstance(section, SamplingConfig):
            yield from _inert_in_sampling(section, name)
    if isinstance(config, TextDataConfig):
        yield from _inert_in_evaluation(config)
    if not isinstance(config, PPOConfig):
        yield "parallel.frozen", "only ppo has frozen models"
        if isinstance(config, SFTConfig | RewardConfig) and config.lora is not None and config.lora.shared_base:
            yield "lora.shared_base", "only ppo has several models"
    elif config.lora is not None and config.lora.shared_base:
        yield (
            "parallel.frozen",
            "lora.shared_base leaves no frozen model but the base, which is divided as parallel.shard says",
        )
    if isinstance(config, PPOConfig):
        yield from _inert_in_ppo(config)


def _inert_in_sampling(sampling: SamplingConfig, name: str) -> Iterator[Inert]:
    if sampling.repetition_penalty == 1:
        yield f"{name}.repetition_scope", f"{name}.repetition_penalty is 1 (off)"
    if sampling.temperature == 0:
        for option in ("top_p", "top_k", "samples_per_prompt"):
            yield f"{name}.{option}", f"{name}.temperature is 0 (greedy)"


def _inert_in_evaluation(config: TextDataConfig) -> Iterator[Inert]:
    if isinstance(config, SFTConfig | RewardConfig):
        if config.eval_data:
            yield "eval_fraction", "eval_data is given"
        elif config.eval_fraction == 0:
            yield "eval_every", "there is no held-out data (eval_data is empty and eval_fraction is 0)"


def _inert_in_ppo(config: PPOConfig) -> Iterator[Inert]:
    kl, surrogate, sampling = config.kl, config.surrogate, config.sampling
    if kl.controller == "fixed":
        yield "kl.target", "kl.controller is fixed"
        yield "kl.horizon", "kl.controller is fixed"
    if kl.coef == 0:
        yield "kl.estimator", "kl.coef is 0 (all three estimates are logged anyway)"
    if not config.advantage.normalise:
        yield "advantage.std", "advantage.normalise is off"
    if surrogate.kind != "clip":
        for name in ("clip_range", "clip_range_high"):
            yield f"surrogate.{name}", f"surrogate.kind is {surrogate.kind}"
    if surrogate.kind == "penalty":
        yield "surrogate.dual_clip", "surrogate.kind is penalty"
    if surrogate.kind != "penalty":
        yield "surrogate.penalty_coef", f"surrogate.kind is {surrogate.kind}"
    if config.gae.lam == 1:
        yield "gae.target", "gae.lam is 1, where both targets are the rewards to go"
    if config.gae.gamma == 0:
        yield "gae.lam", "gae.gamma is 0"
    if config.entropy.coef == 0:
        yield "entropy.target", "entropy.coef is 0"
    if config.critic.pretrain_iterations == 0:
        yield "critic.pretrain_plateau", "critic.pretrain_iterations is 0"
    elif config.critic.pretrain_iterations <= PLATEAU_WINDOW:
        yield (
            "critic.pretrain_plateau",
            f"a plateau shows in {PLATEAU_WINDOW} iterations, and critic.pretrain_iterations is {config.critic.pretrain_iterations}",
        )
    if config.critic.init == "policy":
        yield "critic.calibrate", "critic.init is policy: its head is fresh"
    if config.grad_clip.norm == 0:
        yield "grad_clip.joint", "grad_clip.norm is 0 (off)"
    if config.ptx.coef == 0:
        for name in ("data", "batch_ratio", "max_length"):
            yield f"ptx.{name}", "ptx.coef is 0"
    if sampling.temperature == 1:
        yield "logprobs", "sampling.temperature is 1, so scaled and raw logits are the same"
    if not config.watch.prompts and config.watch.eval_prompts == 0:
        yield "watch.every", "there are no held-out prompts (watch.prompts is empty and watch.eval_prompts is 0)"
    elif config.watch.eval_prompts == 0:
        yield "watch.every", "watch.eval_prompts is 0"
        if not config.watch.judge:
            yield "watch.prompts", "watch.eval_prompts is 0 and watch.judge is empty, so they are not answered"
    if config.rollout.engine != "vllm":
        for name in type(config.rollout).model_fields:
            yield f"rollout.{name}", f"rollout.engine is {config.rollout.engine}"
    elif config.rollout.retries == 0:
        yield "rollout.first_pause", "rollout.retries is 0"
    watch = config.watch
    if not watch.detect:
        yield "watch.on_collapse", "watch.detect is off"
    if not watch.detect or watch.on_collapse != "rollback":
        for name in ("rollback_factor", "rollback_kl", "max_rollbacks"):
            yield f"watch.{name}", "watch.on_collapse is not rollback" if watch.detect else "watch.detect is off"
    if kl.coef > 0:
        yield "watch.rollback_kl", "kl.coef is above 0 and is multiplied by watch.rollback_factor"
    if not watch.judge:
        for name in ("judge_every", "judge_prompts", "tie_band", "baselines", "keep_best"):
            yield f"watch.{name}", "watch.judge is empty, so nothing is judged"
    if not any(judge.llm for judge in watch.judge):
        for name in type(watch.llm).model_fields:
            yield f"watch.llm.{name}", "watch.judge is no llm:MODEL"
    else:
        yield "watch.tie_band", "an llm:MODEL judge gives no scores and names ties itself"
        if watch.llm.rubric != "auto":
            yield "watch.llm.harmless", f"watch.llm.rubric is {watch.llm.rubric}, for every prompt"


def _reward_sources(config: PPOConfig) -> list[tuple[str, RewardSourceConfig]]:
    """Every source with its dotted name, the judges among them."""
    sections: dict[str, Sequence[RewardSourceConfig]] = {"reward": config.reward, "watch.judge": config.watch.judge}
    return [(f"{name}.{i}", source) for name, sources in sections.items() for i, source in enumerate(sources)]


def _inert_reward_options(config: PPOConfig) -> Iterator[Inert]:
    for where, source in _reward_sources(config):
        members = len(source.model) if isinstance(source.model, list) else 1
        if source.spread_coef and members < 2:
            yield f"{where}.spread_coef", "this source is no ensemble of several models"
        for name in ("timeout", "retries"):
            if not source.url and getattr(source, name) != type(source).model_fields[name].default:
                yield f"{where}.{name}", "this source is no HTTP endpoint"
        if isinstance(source, JudgeConfig) and source.llm is not None:
            if source.weight != 1:
                yield f"{where}.weight", "an llm:MODEL judge is the only one and gives no score"
        elif source.weight == 0:
            yield where, "its weight is 0"


def _notes_on_batches(config: PPOConfig) -> list[str]:
    samples = config.rollout_batch * config.buffer_iterations
    if config.buffer_iterations == 1 and config.ppo_epochs * math.ceil(samples / config.minibatch) == 1:
        inert = ["critic.value_clip (detail 7)"] if config.critic.value_clip is not None else []
        if config.surrogate.denominator == "old":
            inert.insert(0, f"surrogate.kind: {config.surrogate.kind} (detail 11)")
        if inert:
            note = f"one update an iteration: ratios are 1 and values are the old ones, so {' and '.join(inert)} can do"
            return [f"{note} nothing; lower minibatch or raise ppo_epochs to change that"]
    elif samples % config.minibatch:
        note = f"minibatch {config.minibatch} does not divide the {samples} samples of the buffer"
        return [f"{note}: the last update of each pass has {samples % config.minibatch}"]
    return []
