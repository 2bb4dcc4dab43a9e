"""One PPO update against a slow reference: loops over samples and tokens, stock forward passes, float64, autograd."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppomax.config import LoraConfig, PPOConfig
from ppomax.models.loading import add_lora
from ppomax.rollout.experience import Experience
from ppomax.train.parallel import Ranks
from ppomax.train.ppo_update import Tally, Updater, minibatch_advantages, to_batch

sys.path.insert(0, str(Path(__file__).parent))
from ppo_tools import make_config, make_critic, make_policy, make_tokenizer

PtxRecord = tuple[list[int], list[bool]]
BATCH = 7
POLICY, CRITIC = make_policy(0), make_critic(1)
VOCABULARY = POLICY.config.vocab_size


class Recorder:
    """Stands in for an optimiser: keeps the gradients that reach it and changes nothing."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.gradients: dict[str, Tensor] = {}
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        self.gradients = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.model.zero_grad(set_to_none=set_to_none)


def make_minibatch(seed: int = 0, *, size: int = BATCH, gaps: bool = True, spread: float = 0.25) -> Experience:
    """Random samples: old and reference log-probabilities lie ``spread`` around the policy's own."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    prompt = torch.randint(1, 6, (size,), generator=generator)
    length = prompt + torch.randint(1, 9, (size,), generator=generator)
    ids = torch.randint(0, VOCABULARY, (size, int(length.max())), generator=generator)
    width = int((length - prompt).max())
    mask = torch.arange(width)[None, :] < (length - prompt)[:, None]
    if gaps:
        holes = torch.rand(mask.shape, generator=generator) < 0.25
        holes[:, 0] = False
        mask &= ~holes
    zeros = torch.zeros(mask.shape)
    batch = Experience(
        ids=ids, prompt_lengths=prompt, lengths=length, response_mask=mask, finished=torch.ones(size, dtype=torch.bool),
        logprobs=zeros, ref_logprobs=zeros, entropy=zeros, sequence_nll=torch.zeros(size), values=zeros,
        scores=torch.zeros(size), rewards=zeros, advantages=normal(*mask.shape) * mask, returns=normal(*mask.shape) * mask,
    )  # fmt: skip
    own, values = torch.zeros(mask.shape), torch.zeros(mask.shape)
    with torch.no_grad():
        for b in range(size):
            row = ids[b : b + 1, : length[b]]
            logprobs = POLICY(row).logits[0].log_softmax(-1)
            state = CRITIC.score(CRITIC.model(row).last_hidden_state)[0, :, 0]
            for t in range(int(length[b] - prompt[b])):
                at = int(prompt[b]) + t
                own[b, t], values[b, t] = logprobs[at - 1, ids[b, at]], state[at - 1]
    batch.logprobs = (own + spread * normal(*mask.shape)) * mask
    batch.ref_logprobs = (own + spread * normal(*mask.shape)) * mask
    batch.values = (values + 0.3 * normal(*mask.shape)) * mask
    return batch


def ptx_records(seed: int = 0, count: int = 3) -> list[PtxRecord]:
    picker = random.Random(seed)
    records = []
    for _ in range(count):
        n = picker.randint(2, 9)
        learn = [False] + [picker.random() < 0.6 for _ in range(n - 1)]
        learn[-1] = True
        records.append(([picker.randrange(VOCABULARY) for _ in range(n)], learn))
    return records


# ---------------------------------------------------------------------------------------- the reference


def reference_advantages(batch: Experience, config: PPOConfig) -> dict[tuple[int, int], float]:
    places = [(int(b), int(t)) for b, t in batch.response_mask.nonzero()]
    advantages = {place: float(batch.advantages[place]) for place in places}
    if config.advantage.normalise:
        n = len(places)
        mean = sum(advantages.values()) / n
        squares = sum((a - mean) ** 2 for a in advantages.values())
        if config.advantage.std == "biased":
            std = math.sqrt(squares / n + 1e-6)
        else:
            std = math.sqrt(squares / (n - 1) + 1e-8)
        advantages = {place: (a - mean) / std for place, a in advantages.items()}
    if (limit := config.advantage.clip) is not None:
        advantages = {place: min(max(a, -limit), limit) for place, a in advantages.items()}
    return advantages


def surrogate(logprob: Tensor, old: float, ref: float, advantage: float, config: PPOConfig) -> Tensor:
    """Loss of one token, from equations 14 and 15 and the details."""
    s = config.surrogate
    ratio = torch.exp(logprob - (ref if s.denominator == "reference" else old))
    if s.kind == "penalty":
        against_old = torch.exp(logprob - old)
        return -ratio * advantage + s.penalty_coef * (against_old - 1 - (logprob - old))
    objective = ratio * advantage
    if s.kind == "clip":
        high = s.clip_range if s.clip_range_high is None else s.clip_range_high
        if ratio.item() < 1 - s.clip_range:
            clipped = torch.tensor((1 - s.clip_range) * advantage, dtype=torch.float64)
        elif ratio.item() > 1 + high:
            clipped = torch.tensor((1 + high) * advantage, dtype=torch.float64)
        else:
            clipped = objective
        objective = objective if objective.item() <= clipped.item() else clipped
    if s.dual_clip is not None and advantage < 0 and objective.item() < s.dual_clip * advantage:
        objective = torch.tensor(s.dual_clip * advantage, dtype=torch.float64)
    return -objective


def reference_update(
    batch: Experience, ptx: list[PtxRecord], config: PPOConfig, policy: Any, critic: Any
) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    """Numbers, and gradients of policy and critic before clipping; token by token in float64."""
    policy, critic = copy.deepcopy(policy).double(), copy.deepcopy(critic).double()
    temperature = config.sampling.temperature if config.logprobs == "scaled" else 1.0
    advantages = reference_advantages(batch, config)
    n = len(advantages)
    losses, value_losses, entropies, deviations, approx, clipped, values_clipped = [], [], [], [], [], 0, 0
    low = 1 - config.surrogate.clip_range
    high = 1 + (config.surrogate.clip_range_high or config.surrogate.clip_range)
    for (b, t), advantage in advantages.items():
        row = batch.ids[b : b + 1, : int(batch.lengths[b])]
        at = int(batch.prompt_lengths[b]) + t
        p = (policy(row).logits[0, at - 1] / temperature).softmax(-1)
        logprob = p[row[0, at]].log()
        old, ref = float(batch.logprobs[b, t]), float(batch.ref_logprobs[b, t])
        losses.append(surrogate(logprob, old, ref, advantage, config))
        entropies.append(-(p * p.log()).sum())
        ratio = math.exp(logprob.item() - (ref if config.surrogate.denominator == "reference" else old))
        deviations.append(abs(ratio - 1))
        clipped += not low <= ratio <= high
        approx.append(math.exp(logprob.item() - old) - 1 - (logprob.item() - old))
        value = critic.score(critic.model(row).last_hidden_state[0, at - 1])[0]
        target, old_value = float(batch.returns[b, t]), float(batch.values[b, t])
        squares = [(value - target) ** 2]
        if (limit := config.critic.value_clip) is not None:
            values_clipped += abs(value.item() - old_value) > limit
            moved = old_value + (value - old_value).clamp(-limit, limit)
            squares.append((moved - target) ** 2)
        value_losses.append(max(squares, key=Tensor.item) / 2)
    loss = sum(losses) / n
    numbers = {"loss/policy": loss.item(), "policy/clip_fraction": clipped / n, "policy/approx_kl": sum(approx) / n,
               "policy/ratio_deviation": sum(deviations) / n}  # fmt: skip
    entropy = sum(entropies) / n
    numbers["policy/entropy_update"] = entropy.item()
    coef, target = config.entropy.coef, config.entropy.target
    bonus = -coef * entropy if target is None else coef * (entropy - target).abs()
    numbers["loss/entropy"] = bonus.item()
    total = loss + bonus
    if config.ptx.coef > 0 and ptx:
        nll = []
        for ids, learn in ptx:
            logits = policy(torch.tensor([ids])).logits[0]
            nll += [-logits[i - 1].log_softmax(-1)[ids[i]] for i in range(1, len(ids)) if learn[i]]
        numbers["loss/ptx"] = sum(nll).item() / len(nll)
        total = total + config.ptx.coef * sum(nll) / len(nll)
    total.backward()
    value_loss = sum(value_losses) / n
    numbers["loss/value"] = value_loss.item()
    if config.critic.value_clip is not None:
        numbers["value/clip_fraction"] = values_clipped / n
    if (limit := config.advantage.clip) is not None:
        open_end = config.advantage.model_copy(update={"clip": None})
        free = reference_advantages(batch, config.model_copy(update={"advantage": open_end}))
        numbers["advantage/clip_fraction"] = sum(abs(a) > limit for a in free.values()) / n
    value_loss.backward()
    gradients = [{k: p.grad for k, p in m.named_parameters() if p.grad is not None} for m in (policy, critic)]
    for name, g in zip(("policy", "critic"), gradients, strict=True):
        numbers[f"grad_norm/{name}"] = norm(g)
    return numbers, gradients[0], gradients[1]


def norm(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(g.double().square().sum().item() for g in gradients.values()))


# -------------------------------------------------------------------------------------------- the tests


def configure(**changes: Any) -> PPOConfig:
    return make_config("unused", **{"grad_clip.norm": 0.0, "micro_batch_tokens": 30, **changes})


def update(
    batch: Experience,
    config: PPOConfig,
    ptx: list[PtxRecord] | None = None,
    *,
    policy: Any = POLICY,
    train: bool = True,
) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    recorders = {"policy": Recorder(policy), "critic": Recorder(CRITIC)}
    updater = Updater(config, Ranks(), policy, CRITIC, recorders)
    numbers = updater.update(batch, ptx or [], policy=train)
    assert all(p.grad is None for m in (policy, CRITIC) for p in m.parameters()), "gradients must not add up"
    assert (recorders["policy"].steps, recorders["critic"].steps) == (int(train), 1)
    return numbers, recorders["policy"].gradients, recorders["critic"].gradients


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 2e-5) -> None:
    assert found.keys() == wanted.keys()
    difference = norm({k: found[k].double() - wanted[k].double() for k in wanted})
    assert difference <= tolerance * max(norm(wanted), 1e-3), f"{difference:.3g} beside a norm of {norm(wanted):.3g}"


CASES: dict[str, dict[str, Any]] = {
    "ppo_max": {},
    "no clip": {"surrogate.kind": "none", "critic.value_clip": None},
    "asymmetric": {"surrogate.clip_range": 0.05, "surrogate.clip_range_high": 0.3},
    "dual": {"surrogate.dual_clip": 1.05, "surrogate.clip_range": 0.1},
    "dual without clip": {"surrogate.kind": "none", "surrogate.dual_clip": 1.02},
    "penalty": {"surrogate.kind": "penalty", "surrogate.penalty_coef": 0.7},
    "reference denominator": {"surrogate.denominator": "reference"},
    "penalty, reference denominator": {"surrogate.kind": "penalty", "surrogate.denominator": "reference"},
    "tight value clip": {"critic.value_clip": 0.02},
    "entropy": {"entropy.coef": 0.3},
    "entropy below target": {"entropy.coef": 0.3, "entropy.target": 6.0},
    "entropy above target": {"entropy.coef": 0.3, "entropy.target": 1.0},
    "ptx": {"ptx.coef": 0.8, "ptx.data": ["memory"]},
    "whitened": {"advantage.normalise": True},
    "whitened as released": {"advantage.normalise": True, "advantage.std": "biased", "advantage.clip": 0.5},
    "clipped advantages": {"advantage.clip": 0.3},
    "scaled": {"logprobs": "scaled", "sampling.temperature": 0.7, "entropy.coef": 0.1},
}


def random_case(seed: int) -> dict[str, Any]:
    pick = random.Random(seed)
    case = {
        "surrogate.kind": pick.choice(["clip", "clip", "penalty", "none"]),
        "surrogate.clip_range": pick.uniform(0.02, 0.4),
        "surrogate.clip_range_high": pick.choice([None, pick.uniform(0.02, 0.4)]),
        "surrogate.dual_clip": pick.choice([None, pick.uniform(1.01, 1.5)]),
        "surrogate.penalty_coef": pick.uniform(0, 2),
        "surrogate.denominator": pick.choice(["old", "reference"]),
        "critic.value_clip": pick.choice([None, pick.uniform(0.01, 0.5)]),
        "entropy.coef": pick.choice([0.0, pick.uniform(0.01, 1)]),
        "entropy.target": pick.choice([None, pick.uniform(1, 7)]),
        "advantage.normalise": pick.random() < 0.5,
        "advantage.std": pick.choice(["biased", "unbiased"]),
        "advantage.clip": pick.choice([None, pick.uniform(0.1, 2)]),
        "micro_batch_tokens": pick.choice([1, 20, 45, 10_000]),
    }
    if pick.random() < 0.5:
        case |= {"ptx.coef": pick.uniform(0.1, 2), "ptx.data": ["memory"]}
    if pick.random() < 0.3:
        case |= {"logprobs": "scaled", "sampling.temperature": pick.uniform(0.5, 1.5)}
    return case


@pytest.mark.parametrize("case", [*CASES.values(), *map(random_case, range(12))], ids=[*CASES, *map(str, range(12))])
def test_losses_and_gradients(case: dict[str, Any]) -> None:
    config = configure(**case)
    batch, records = make_minibatch(len(str(case))), ptx_records() if "ptx.coef" in case else []
    numbers, policy_gradients, critic_gradients = update(batch, config, records)
    wanted, policy_wanted, critic_wanted = reference_update(batch, records, config, POLICY, CRITIC)
    assert numbers.keys() == wanted.keys()
    for name, value in wanted.items():
        assert numbers[name] == pytest.approx(value, rel=2e-5, abs=2e-6), name
    assert_same(policy_gradients, policy_wanted)
    assert_same(critic_gradients, critic_wanted)


def test_the_cases_reach_both_sides_of_every_bend() -> None:
    """Otherwise the comparison above would prove nothing about clipping."""
    batch = make_minibatch(3)
    numbers, gradients, values = update(batch, configure())
    assert 0.1 < numbers["policy/clip_fraction"] < 0.9
    assert 0.1 < numbers["value/clip_fraction"] < 0.9
    assert 0.1 < update(batch, configure(**{"advantage.clip": 0.3}))[0]["advantage/clip_fraction"] < 0.9
    for changes in ({"surrogate.kind": "none"}, {"surrogate.dual_clip": 1.05}, {"surrogate.clip_range_high": 0.05}):
        _, other, same = update(batch, configure(**changes))
        assert norm({k: other[k] - gradients[k] for k in other}) > 1e-2 * norm(gradients), changes
        assert_same(same, values, 0)
    _, same, other = update(batch, configure(**{"critic.value_clip": None}))
    assert norm({k: other[k] - values[k] for k in other}) > 1e-2 * norm(values)
    assert_same(same, gradients, 0)


@pytest.mark.parametrize("seed", range(3))
def test_split_padding_order_and_what_stands_in_gaps_change_nothing(seed: int) -> None:
    case = {
        "advantage.normalise": True,
        "entropy.coef": 0.2,
        "entropy.target": 5.0,
        "ptx.coef": 0.5,
        "ptx.data": ["memory"],
    }
    batch, records = make_minibatch(seed), ptx_records(seed)
    wanted = update(batch, configure(micro_batch_tokens=10_000, **case), records)

    def check(found: tuple[Any, ...]) -> None:
        assert found[0] == pytest.approx(wanted[0], rel=1e-5, abs=1e-6)
        assert_same(found[1], wanted[1], 1e-5)
        assert_same(found[2], wanted[2], 1e-5)

    for tokens in (1, 25, 60):
        check(update(batch, configure(micro_batch_tokens=tokens, **case), records))
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(seed)).tolist()
    check(update(batch.select(order), configure(**case), records[::-1]))

    wide = {}
    garbage = torch.Generator().manual_seed(seed + 9)
    for field in dataclasses.fields(Experience):
        value = getattr(batch, field.name)
        if value.ndim == 2:
            value = torch.nn.functional.pad(value, (0, 5))
            if value.dtype == torch.float32:  # pads, and the gaps of the mask
                outside = ~torch.nn.functional.pad(batch.response_mask, (0, 5))
                value = torch.where(outside, torch.randn(value.shape, generator=garbage) * 50, value)
            elif field.name == "ids":
                beyond = torch.arange(value.shape[1])[None, :] >= batch.lengths[:, None]
                value = torch.where(beyond, 7, value)
        wide[field.name] = value
    check(update(Experience(**wide), configure(**case), records))


def test_tokens_in_a_gap_are_context_but_not_actions() -> None:
    """The state after a gap contains its tokens: other ones there change the gradient, their advantages do not."""
    batch = make_minibatch(1)
    b, t = next((int(b), int(t)) for b, t in (~batch.response_mask).nonzero()
                if bool(batch.response_mask[b, t:].any()))  # fmt: skip
    _, before, _ = update(batch, configure())
    other = dataclasses.replace(batch, ids=batch.ids.clone())
    other.ids[b, batch.prompt_lengths[b] + t] = (other.ids[b, batch.prompt_lengths[b] + t] + 1) % VOCABULARY
    _, after, _ = update(other, configure())
    assert norm({k: after[k] - before[k] for k in after}) > 1e-4 * norm(before)


def test_every_token_has_the_same_weight() -> None:
    """Not every sample: the loss of a minibatch is the token-weighted mean of its samples' losses."""
    batch = make_minibatch(5)
    whole, gradients, _ = update(batch, configure())
    tokens = batch.response_mask.sum(dim=1)
    parts = [update(batch.select([i]), configure()) for i in range(BATCH)]
    share = (tokens / tokens.sum()).tolist()
    assert len(set(share)) > 2
    assert whole["loss/policy"] == pytest.approx(
        sum(w * p[0]["loss/policy"] for w, p in zip(share, parts, strict=True)), rel=1e-4
    )
    summed = {k: sum(w * p[1][k] for w, p in zip(share, parts, strict=True)) for k in gradients}
    assert_same(gradients, summed)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm_limit", [0.5, 1e6])
def test_joint_and_separate_gradient_clip(norm_limit: float) -> None:
    batch = make_minibatch(2)
    numbers, policy, critic = update(batch, configure())
    sizes = {"policy": norm(policy), "critic": norm(critic)}
    joint = math.hypot(*sizes.values())
    assert min(sizes.values()) > 0.5
    for together in (False, True):
        found, policy_clipped, critic_clipped = update(
            batch, configure(**{"grad_clip.norm": norm_limit, "grad_clip.joint": together})
        )
        assert found["grad_norm/policy"] == pytest.approx(numbers["grad_norm/policy"], rel=1e-6), "before clipping"
        for raw, clipped, name in ((policy, policy_clipped, "policy"), (critic, critic_clipped, "critic")):
            factor = min(1.0, norm_limit / ((joint if together else sizes[name]) + 1e-6))
            assert_same(clipped, {k: g * factor for k, g in raw.items()}, 1e-6)
            assert found[f"grad_norm/{name}_clipped"] == float(norm_limit == 0.5)
    if norm_limit == 0.5:
        assert math.hypot(norm(policy_clipped), norm(critic_clipped)) == pytest.approx(0.5, rel=1e-4)


def test_clipped_gradients_are_told_of_the_norm_that_counts() -> None:
    """Between the larger norm and the common one: clipped together, and not each by itself; none without a limit."""
    batch = make_minibatch(2)
    numbers, _, _ = update(batch, configure())
    assert not any(name.endswith("_clipped") for name in numbers)
    sizes = [numbers["grad_norm/policy"], numbers["grad_norm/critic"]]
    limits = {"between": (max(sizes) + math.hypot(*sizes)) / 2, "one": sum(sizes) / 2}
    for limit, together, wanted in (("between", False, [0, 0]), ("between", True, [1, 1]), ("one", True, [1, 1]),
                                    ("one", False, [float(size > limits["one"]) for size in sizes])):  # fmt: skip
        changes = {"grad_clip.norm": limits[limit], "grad_clip.joint": together}
        found, _, _ = update(batch, configure(**changes))
        assert [found["grad_norm/policy_clipped"], found["grad_norm/critic_clipped"]] == wanted, (limit, together)
    assert sorted(wanted) == [0, 1]
    found, _, _ = update(batch, configure(**{"grad_clip.norm": 1e-3, "grad_clip.joint": True}), train=False)
    assert found["grad_norm/critic_clipped"] == 1 and "grad_norm/policy_clipped" not in found


def test_a_frozen_policy_gets_no_gradient_and_no_metric() -> None:
    batch = make_minibatch(4)
    numbers, policy, critic = update(batch, configure(), train=False)
    assert policy == {} and set(numbers) == {"loss/value", "value/clip_fraction", "grad_norm/critic"}
    _, _, wanted = update(batch, configure())
    assert_same(critic, wanted, 0)


def test_first_ratio_is_one_by_a_second_forward_pass() -> None:
    """Old log-probabilities from other micro-batches, other padding and other neighbours."""
    from ppomax.models.responses import response_logprobs

    batch = make_minibatch(6, gaps=False)
    with torch.no_grad():
        for i in range(BATCH):
            single = batch.select([i])
            logprobs, _ = response_logprobs(POLICY, to_batch(single, torch.device("cpu")))
            batch.logprobs[i, : logprobs.shape[1]] = logprobs[0]
    numbers, _, _ = update(batch, configure(micro_batch_tokens=10_000))
    assert numbers["policy/ratio_deviation"] < 1e-6
    assert numbers["policy/clip_fraction"] == 0 and numbers["policy/approx_kl"] < 1e-6
    mean_advantage = batch.advantages[batch.response_mask].mean().item()
    assert numbers["loss/policy"] == pytest.approx(-mean_advantage, abs=1e-6)


def test_lora_gradients_are_those_of_the_merged_weights() -> None:
    """Chain rule on W + alpha / rank * B A: dL/dB = scale * dL/dW A^T, dL/dA = scale * B^T dL/dW."""
    policy = add_lora(copy.deepcopy(POLICY), LoraConfig(rank=2, alpha=6), "CAUSAL_LM")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    merged = copy.deepcopy(policy).merge_and_unload()
    merged.requires_grad_(True)
    batch = make_minibatch(8)
    numbers, gradients, _ = update(batch, configure(), policy=policy)
    merged_numbers, full, _ = update(batch, configure(), policy=merged)
    for name in ("loss/policy", "policy/ratio_deviation", "policy/approx_kl"):
        assert numbers[name] == pytest.approx(merged_numbers[name], rel=1e-5, abs=1e-7)
    parameters = dict(policy.named_parameters())
    adapters = [n.removesuffix(".lora_A.default.weight") for n in gradients if "lora_A" in n]
    assert len(adapters) == 14, "seven matrices a layer"
    assert len(gradients) == 28, "nothing else is trained"
    for name in adapters:
        g = full[name.removeprefix("base_model.model.") + ".weight"]
        a, b = (parameters[f"{name}.lora_{x}.default.weight"].detach() for x in "AB")
        wanted = {"A": 3 * b.T @ g, "B": 3 * g @ a.T}
        assert_same({x: gradients[f"{name}.lora_{x}.default.weight"] for x in "AB"}, wanted, 1e-4)


def test_far_ratios_stay_finite() -> None:
    batch = make_minibatch(7)
    batch.logprobs = batch.logprobs - 300 * batch.response_mask
    for kind in ("clip", "none", "penalty"):
        numbers, gradients, _ = update(batch, configure(**{"surrogate.kind": kind}))
        assert all(map(math.isfinite, numbers.values())), kind
        assert all(bool(g.isfinite().all()) for g in gradients.values()), kind


def test_an_advantage_at_the_limit_is_not_clipped() -> None:
    """Of -1, 1, 0 and 2, with the limit 1, one is clipped."""
    batch = make_minibatch(0, size=1, gaps=False)
    batch.response_mask = torch.arange(batch.response_mask.shape[1])[None] < 4
    batch.lengths = batch.prompt_lengths + 4
    batch = batch.select([0])
    batch.advantages = torch.tensor([[-1.0, 1.0, 0.0, 2.0]])
    assert update(batch, configure(**{"advantage.clip": 1.0}))[0]["advantage/clip_fraction"] == 0.25
    assert "advantage/clip_fraction" not in update(batch, configure())[0]


def test_advantages_of_a_minibatch_leave_the_buffer_alone() -> None:
    batch = make_minibatch(0)
    before = batch.advantages.clone()
    minibatch_advantages(batch, configure(**{"advantage.normalise": True, "advantage.clip": 0.1}))
    assert torch.equal(batch.advantages, before)


@pytest.mark.parametrize("std", ["unbiased", "biased"])
def test_whitening_of_tiny_advantages(std: str) -> None:
    """Where the variance is near eps, the released form (1e-6) and ours (1e-8) part."""
    batch = make_minibatch(0)
    batch.advantages = batch.advantages * 1e-3
    config = configure(**{"advantage.normalise": True, "advantage.std": std})
    found = minibatch_advantages(batch, config)
    for place, wanted in reference_advantages(batch, config).items():
        assert float(found[place]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert bool((found[~batch.response_mask] == 0).all())


def test_tally_is_the_mean_over_updates() -> None:
    tally = Tally()
    tally.add({"a": 1.0})
    tally.add({"a": 4.0})
    assert tally.means() == {"a": 2.5}
    assert Tally().means() == {}


def test_tokenizer_fits_the_models() -> None:
    assert len(make_tokenizer()) == VOCABULARY
