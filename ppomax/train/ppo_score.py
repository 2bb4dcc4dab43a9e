"""What the frozen models, policy and critic say of sampled responses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ppomax.config import PPOConfig
from ppomax.data.batches import token_budget
from ppomax.models.passes import even_passes
from ppomax.models.precision import precision
from ppomax.models.responses import response_logprobs, response_values, sequence_nll
from ppomax.rollout.engine import Completion
from ppomax.rollout.experience import Experience
from ppomax.rollout.reward_sources import Sample, combine
from ppomax.train.parallel import Ranks
from ppomax.train.ppo_setup import EncodedPrompt, Setup
from ppomax.train.ppo_update import sampling_temperature, to_batch


def to_samples(setup: Setup, prompts: Sequence[EncodedPrompt], completions: Sequence[Completion]) -> list[Sample]:
    """Responses as reward sources and judges read them."""
    return [
        Sample(
            p.messages, setup.chat_format.decode(c.response_ids), c.prompt_ids, c.response_ids, c.finished, p.metadata
        )
        for p, c in zip(prompts, completions, strict=True)
    ]


@torch.no_grad()
def score(
    setup: Setup, config: PPOConfig, ranks: Ranks, prompts: Sequence[EncodedPrompt], completions: Sequence[Completion],
    *, critic: bool = True,
) -> tuple[Experience, dict[str, list[float]]]:  # fmt: skip
    """Experience with scores (B,), logprobs, ref_logprobs, entropy, values (B, T); also each reward source by itself.

    ``critic`` False: the values stay 0, where nothing is trained on the samples.
    """
    experience = Experience.from_completions(completions)
    total, by_source = combine(setup.sources, to_samples(setup, prompts, completions))
    experience.scores = total.float().cpu()
    temperature = sampling_temperature(config)
    micro_batches = token_budget(experience.lengths.tolist(), config.micro_batch_tokens)
    for rows in even_passes(micro_batches, setup.policy, setup.critic, setup.reference):
        rows = rows or [0]  # once more, beside ranks that are not done
        batch = to_batch(experience.select(rows), ranks.device)
        index, width = torch.tensor(rows), batch.mask.shape[1]
        with precision(ranks.device, config.precision):
            logprobs, entropy, nll = sequence_nll(setup.policy, batch, temperature=temperature)
            with setup.as_reference() as reference:
                ref_logprobs, _ = response_logprobs(reference, batch, temperature=temperature)
            values = response_values(setup.critic, batch) if critic else torch.zeros(batch.mask.shape)
        experience.logprobs[index, :width] = logprobs.cpu()
        experience.entropy[index, :width] = entropy.cpu()
        experience.ref_logprobs[index, :width] = ref_logprobs.cpu()
        experience.values[index, :width] = values.cpu()
        experience.sequence_nll[index] = nll.cpu()
    if completions[0].logprobs is None:  # drawn by the policy itself
        experience.sampler_logprobs = experience.logprobs.clone()
    setup.frozen_go_home()
    return experience, {name: values.tolist() for name, values in by_source.items()}
