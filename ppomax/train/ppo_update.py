"""One PPO update: a minibatch through ratio, clip, value, entropy, ptx, backward, clip, step.

Losses are divided by the tokens of the whole minibatch over all micro-batches and ranks, so the result does not depend
on how it was split. Statistics of the minibatch (whitening) are computed on all of it, on every rank alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppomax.config import PPOConfig
from ppomax.data.batches import pad_sequences, token_budget
from ppomax.models.logprobs import hidden_states, token_logprobs
from ppomax.models.passes import even_passes, whole_pass
from ppomax.models.precision import precision
from ppomax.models.responses import ResponseBatch, response_logprobs, response_values
from ppomax.rl.importance import truncated_importance
from ppomax.rl.losses import MAX_LOG_RATIO, entropy_loss, importance_ratio, penalty_loss, surrogate_loss, value_loss
from ppomax.rl.moments import masked_mean, whiten
from ppomax.rollout.experience import Experience
from ppomax.train.optim import clip_gradients
from ppomax.train.parallel import Ranks


@dataclass
class Tally:
    """Sums of per-token numbers over the updates of an iteration, to be averaged."""

    sums: dict[str, float] = field(default_factory=dict)
    updates: int = 0

    def add(self, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.updates += 1

    def means(self) -> dict[str, float]:
        return {name: value / max(self.updates, 1) for name, value in self.sums.items()}


def to_batch(experience: Experience, device: torch.device) -> ResponseBatch:
    return ResponseBatch(
        experience.ids.to(device), experience.lengths.to(device), experience.prompt_lengths.to(device),
        experience.response_mask.to(device),
    )  # fmt: skip


def sampling_temperature(config: PPOConfig) -> float:
    """What the logits are divided by before log-probabilities are taken (`logprobs` = raw: nothing)."""
    return config.sampling.temperature if config.logprobs == "scaled" and config.sampling.temperature > 0 else 1.0


def whitened_advantages(batch: Experience, config: PPOConfig) -> Tensor:
    """Detail 6 without its clip: whitened over the valid tokens of the whole minibatch, as asked; (B, T)."""
    if not config.advantage.normalise:
        return batch.advantages
    biased = config.advantage.std == "biased"
    return whiten(batch.advantages, batch.response_mask, unbiased=not biased, eps=1e-6 if biased else 1e-8)


def minibatch_advantages(batch: Experience, config: PPOConfig) -> Tensor:
    """Detail 6: whitened and clipped, as asked; (B, T)."""
    advantages, limit = whitened_advantages(batch, config), config.advantage.clip
    return advantages if limit is None else advantages.clamp(-limit, limit)


def policy_token_losses(
    logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, advantages: Tensor, config: PPOConfig
) -> tuple[Tensor, Tensor]:
    """Surrogate loss of each token (details 2 and 11), and the ratio it was made from; any shape."""
    s = config.surrogate
    ratio = importance_ratio(logprobs, ref_logprobs if s.denominator == "reference" else old_logprobs)
    if s.kind == "penalty":
        return penalty_loss(ratio, logprobs - old_logprobs, advantages, penalty_coef=s.penalty_coef), ratio
    low = s.clip_range if s.kind == "clip" else None
    high = low if s.clip_range_high is None or low is None else s.clip_range_high
    return surrogate_loss(ratio, advantages, clip_low=low, clip_high=high, dual_clip=s.dual_clip), ratio


@whole_pass
def _trained_nll(model: Any, ids: Tensor, attention: Tensor, learn: Tensor) -> Tensor:
    """Sum of the NLL of the tokens that ``learn`` marks, a scalar; all arguments (B, S)."""
    hidden = hidden_states(model, ids, attention.sum(dim=1))
    row, column = learn[:, 1:].nonzero(as_tuple=True)
    logprobs, _ = token_logprobs(model, hidden[row, column], ids[row, column + 1])
    return -logprobs.sum()


class Updater:
    """Policy, critic and their optimisers, and the step that changes them."""

    def __init__(self, config: PPOConfig, ranks: Ranks, policy: Any, critic: Any, optimizers: dict[str, Any]) -> None:
        self.config, self.ranks, self.policy, self.critic, self.optimizers = config, ranks, policy, critic, optimizers
        self.temperature = sampling_temperature(config)

    def update(
        self, minibatch: Experience, ptx: list[tuple[list[int], list[bool]]], *, policy: bool
    ) -> dict[str, float]:
        """One optimiser step on critic and, unless it is frozen (detail 8), policy. Returns means over the minibatch."""
        config, device = self.config, self.ranks.device
        tokens = int(minibatch.response_mask.sum())
        advantages = minibatch_advantages(minibatch, config)
        mine = self.ranks.share(range(len(minibatch)))
        micro_batches = [
            [mine[i] for i in rows] for rows in token_budget(minibatch.lengths[mine].tolist(), config.micro_batch_tokens)
        ] if mine else []  # fmt: skip
        micro_batches = even_passes(micro_batches, self.policy, self.critic)
        pull = self._entropy_pull(minibatch, micro_batches, tokens) if policy else 0.0
        sums = torch.zeros(6, dtype=torch.float64)  # value, policy, clipped, approx kl, entropy, ratio deviation
        clipped_v = 0.0
        for mine in micro_batches:
            part, batch, mask = self._micro_batch(minibatch, mine)
            with precision(device, config.precision):
                values = response_values(self.critic, batch)
            old_values = part.values.to(device)
            loss_v = value_loss(values, old_values, part.returns.to(device), clip=config.critic.value_clip)
            loss_v = torch.where(mask, loss_v, 0).sum() / tokens
            loss_v.backward()
            sums[0] += loss_v.item()
            if (limit := config.critic.value_clip) is not None:
                clipped_v += (mask & ((values.detach() - old_values).abs() > limit)).sum().item() / tokens
        joint = policy and config.grad_clip.joint
        norms = {} if joint else self._step("critic")  # now: its gradients are gone before the policy's come

        for mine in micro_batches if policy else []:
            part, batch, mask = self._micro_batch(minibatch, mine)
            old, ref = part.logprobs.to(device), part.ref_logprobs.to(device)
            with precision(device, config.precision):
                logprobs, entropy = response_logprobs(self.policy, batch, temperature=self.temperature, entropy=True)
            assert entropy is not None
            adv = advantages[mine or [0]][:, : mask.shape[1]].to(device)
            losses, ratio = policy_token_losses(logprobs, old, ref, adv, config)
            if (cut := config.rollout.importance_clip) is not None:  # another engine drew the samples (docs/vllm.md)
                losses = losses * truncated_importance(old, part.sampler_logprobs.to(device), cut)
            loss_p = torch.where(mask, losses, 0).sum() / tokens
            total = loss_p
            if config.entropy.coef > 0:  # sum over micro-batches of mean entropy, pulled up or down
                total = total + pull * torch.where(mask, entropy, 0).sum() / tokens
            total.backward()
            with torch.no_grad():
                low, high = (
                    1 - config.surrogate.clip_range,
                    1 + (config.surrogate.clip_range_high or config.surrogate.clip_range),
                )
                log_ratio = (logprobs - old).clamp(max=MAX_LOG_RATIO)  # a metric must not overflow and end the run
                clipped = mask & ((ratio < low) | (ratio > high))
                sums[1:] += torch.stack([
                    loss_p, clipped.sum() / tokens, torch.where(mask, torch.expm1(log_ratio) - log_ratio, 0).sum() / tokens,
                    torch.where(mask, entropy, 0).sum() / tokens, torch.where(mask, (ratio - 1).abs(), 0).sum() / tokens,
                ]).double().cpu()  # fmt: skip

        loss_ptx = self._ptx(ptx) if policy and ptx else 0.0
        if policy:
            norms |= self._step("policy", "critic") if joint else self._step("policy")
        others = torch.tensor([loss_ptx, clipped_v], dtype=torch.float64)
        totals = self.ranks.sum(torch.cat([sums, others]).to(device)).tolist()
        numbers = {"loss/value": totals[0], "grad_norm/critic": norms["critic"]}
        if config.critic.value_clip is not None:
            numbers["value/clip_fraction"] = totals[7]
        if (limit := config.grad_clip.norm) > 0:  # one norm for both, where they are clipped together
            judged = {name: math.hypot(*norms.values()) if joint else norm for name, norm in norms.items()}
            numbers |= {f"grad_norm/{name}_clipped": float(norm > limit) for name, norm in judged.items()}
        if policy:
            numbers |= {
                "loss/policy": totals[1], "policy/clip_fraction": totals[2], "policy/approx_kl": totals[3],
                "policy/entropy_update": totals[4], "policy/ratio_deviation": totals[5], "grad_norm/policy": norms["policy"],
                "loss/entropy": entropy_loss(
                    torch.tensor(totals[4]), coef=config.entropy.coef, target=config.entropy.target
                ).item(),
            }  # fmt: skip
            if config.ptx.coef > 0:
                numbers["loss/ptx"] = totals[6]
            if config.advantage.clip is not None:
                cut_off = (advantages != whitened_advantages(minibatch, config)).double()
                numbers["advantage/clip_fraction"] = masked_mean(cut_off, minibatch.response_mask).item()
        return numbers

    def _micro_batch(self, minibatch: Experience, mine: list[int]) -> tuple[Experience, ResponseBatch, Tensor]:
        """Samples, what models read of them, and the mask (B, T) of tokens that count.

        No samples: beside ranks that are not done yet, the first one stands in, and counts for nothing.
        """
        part = minibatch.select(mine or [0])
        batch = to_batch(part, self.ranks.device)
        return part, batch, batch.mask & bool(mine)

    def _step(self, *names: str) -> dict[str, float]:
        """Clip the gradients of the named models (by their common norm, if several) and step; returns their norms."""
        models = {name: getattr(self, name) for name in names}
        for model in models.values():
            self.ranks.sum_gradients(model.parameters())
        norms = clip_gradients(*models.values(), max_norm=self.config.grad_clip.norm, joint=len(names) > 1)
        for name in names:
            self.optimizers[name].step()
            self.optimizers[name].zero_grad(set_to_none=True)
        return dict(zip(names, norms, strict=True))

    def _entropy_pull(self, minibatch: Experience, micro_batches: list[list[int]], tokens: int) -> float:
        """Derivative of the entropy loss by the minibatch's mean entropy (detail 3).

        With a target its sign depends on the mean over *all* micro-batches and ranks, so that mean is found first.
        """
        config = self.config.entropy
        if config.coef == 0 or config.target is None:
            return -config.coef
        total = torch.zeros((), device=self.ranks.device)
        with torch.no_grad(), precision(self.ranks.device, self.config.precision):
            for rows in micro_batches:
                batch = to_batch(minibatch.select(rows or [0]), self.ranks.device)
                _, entropy = response_logprobs(self.policy, batch, temperature=self.temperature, entropy=True)
                assert entropy is not None
                total += torch.where(batch.mask & bool(rows), entropy, 0).sum()
        mean = (self.ranks.sum(total) / tokens).requires_grad_()
        with torch.enable_grad():
            entropy_loss(mean, coef=config.coef, target=config.target).backward()
        assert mean.grad is not None
        return mean.grad.item()

    def _ptx(self, records: list[tuple[list[int], list[bool]]]) -> float:
        """PPO-ptx (eq. 17): backward of coef * mean NLL over the trained tokens; returns this rank's share of the loss."""
        config, device = self.config, self.ranks.device
        trained = sum(sum(mask) for _, mask in records)
        mine = self.ranks.share(records)
        total = 0.0
        for rows in even_passes(token_budget([len(ids) for ids, _ in mine], config.micro_batch_tokens), self.policy):
            part = [mine[i] for i in rows] or records[:1]
            ids, attention = pad_sequences([ids for ids, _ in part], pad_id=0)
            learn, _ = pad_sequences([[int(m) for m in mask] for _, mask in part], pad_id=0)
            ids, attention, learn = ids.to(device), attention.to(device), learn.to(device).bool()
            with precision(device, config.precision):
                loss = _trained_nll(self.policy, ids, attention, learn) * bool(rows) / trained
            (config.ptx.coef * loss).backward()
            total += loss.item()
        return total
