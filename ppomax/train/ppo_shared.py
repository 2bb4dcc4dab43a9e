"""PPO's models as adapters on one base (`lora.shared_base`): who plays which role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppomax.config import PPOConfig
from ppomax.data.chat import ChatFormat
from ppomax.errors import UserError
from ppomax.models.loading import load_tokenizer
from ppomax.models.shared_base import RewardAdapter, Role, SharedBase
from ppomax.rollout.reward_sources import ModelSource, RewardSource, default_name, make_member, make_source
from ppomax.train.parallel import Ranks
from ppomax.train.sharding import divide, first_device


def shared_models(
    config: PPOConfig, causal: Any, chat_format: ChatFormat, ranks: Ranks, given: Sequence[Any], *, in_memory: bool
) -> tuple[Role, Role, Role, list[RewardSource]]:
    """Policy, critic, reference and reward sources on the base ``causal``, which lies on the CPU and is halved there.

    ``given``: reward sources in memory, which stand for those of the configuration; models among them are refused.
    """
    assert config.lora is not None
    base = SharedBase(causal, config.lora, ranks.device)
    pad_id = int(chat_format.tokenizer.pad_token_id)
    adapters: list[RewardAdapter] = []
    sources: list[RewardSource] = []
    options: dict[str, Any] = {"precision": config.precision, "micro_batch_tokens": config.micro_batch_tokens}
    for source in given or config.reward:
        paths = [source.model] if isinstance(getattr(source, "model", None), str) else getattr(source, "model", None)
        if not isinstance(paths, list):  # a function, an address, a source in memory
            if hasattr(source, "parameters"):
                raise UserError("lora.shared_base: a reward model in memory has a base of its own: give its directory")
            sources.append(make_source(source, chat_format, device=ranks.device, **options))
            continue
        members = []
        for path in paths:
            adapters.append(RewardAdapter.read(path, None if in_memory else config.model))
            role = base.scalar(f"reward{len(adapters) - 1}", adapters[-1], pad_id)
            members.append(make_member(role, load_tokenizer(path, config.trust_remote_code), chat_format, path))
        name = source.name or default_name(source)
        sources.append(ModelSource(members, name, weight=source.weight, spread_coef=source.spread_coef, **options))
    if config.critic.init == "policy":
        critic = base.fresh_critic(pad_id, config.seed)
    elif not adapters:
        raise UserError("critic.init = reward: no reward source is a model; set critic.init to policy")
    else:
        critic = base.scalar("critic", adapters[0], pad_id)
        if not config.critic.calibrate:
            critic.config.reward_offset = 0.0
    policy, reference = base.policy_role(), base.reference_role()
    base.settle(bf16=config.precision == "bf16")
    base.to(first_device(config.parallel, ranks))
    divide(base, config.parallel, ranks, config.precision)
    for role in (*base.roles.values(),):
        role.weights = getattr(base, "division", None)
    return policy, critic, reference, sources
