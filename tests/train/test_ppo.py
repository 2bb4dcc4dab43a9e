"""PPO as a whole: every number of an iteration against a slow reference, problems with known answers."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ppomax.config import PPOConfig
from ppomax.rollout.experience import Experience

sys.path.insert(0, str(Path(__file__).parent))
from ppo_tools import (
    Record,
    byte_sum,
    lines,
    lower_share,
    make_config,
    make_critic,
    make_policy,
    make_tokenizer,
    run,
    timeless,
    weights,
)

# ------------------------------------------------------------------------------ a whole iteration, slowly


def slow_iteration(
    e: Experience, policy: Any, reference: Any, critic: Any, history: list[float], config: PPOConfig, tokenizer: Any
) -> dict[str, Any]:
    """Everything about one iteration from its token ids alone, in float64, with the definitions of the paper."""
    policy, reference, critic = (copy.deepcopy(m).double() for m in (policy, reference, critic))
    shaping, temperature = config.reward_shaping, config.sampling.temperature
    out: dict[str, list[Any]] = {
        name: [] for name in
        ("logprobs", "ref_logprobs", "entropy", "values", "scores", "nll", "rewards", "advantages", "returns", "finished",
         "shaped", "clipped")
    }  # fmt: skip
    penalised = []
    for b in range(len(e)):
        p, n = int(e.prompt_lengths[b]), int(e.lengths[b])
        ids = e.ids[b, :n]
        with torch.no_grad():
            raw = policy(ids[None]).logits[0]
            other = reference(ids[None]).logits[0]
            states = critic.score(critic.model(ids[None]).last_hidden_state)[0, :, 0]
        scale = temperature if config.logprobs == "scaled" else 1.0
        steps = range(p, n)
        row = [(raw[i - 1] / scale).log_softmax(-1) for i in steps]
        out["logprobs"].append([float(x[ids[i]]) for x, i in zip(row, steps, strict=True)])
        out["entropy"].append([float(-(x.exp() * x).sum()) for x in row])
        out["ref_logprobs"].append([float((other[i - 1] / scale).log_softmax(-1)[ids[i]]) for i in steps])
        out["values"].append([float(states[i - 1]) for i in steps])
        out["nll"].append(sum(-float(raw[i - 1].log_softmax(-1)[ids[i]]) for i in range(1, n)) / (n - 1))
        text = tokenizer.decode(ids[p:], skip_special_tokens=True).strip()
        out["scores"].append(byte_sum([None], [text])[0])
        finished = int(ids[-1]) == tokenizer.eos_token_id or any(
            s in tokenizer.decode(ids[p:]) for s in config.sampling.stop
        )
        assert finished or n - p == config.sampling.max_new_tokens
        out["finished"].append(finished)
        penalised.append(
            out["scores"][-1] - shaping.missing_eos_penalty * (not finished) - shaping.length_penalty * (n - p)
        )
    history += penalised
    mean = sum(history) / len(history)
    std = math.sqrt(sum((x - mean) ** 2 for x in history) / (len(history) - 1))
    gamma, lam = config.gae.gamma, config.gae.lam
    for b, score in enumerate(penalised):
        if shaping.normalise:
            score = (score - mean) / std
        elif shaping.scale:
            score = score / std
        if shaping.clip is not None:
            out["clipped"].append(abs(score) > shaping.clip)
            score = min(max(score, -shaping.clip), shaping.clip)
        out["shaped"].append(score)
        kl = {
            "k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d,
        }[config.kl.estimator]  # fmt: skip
        rewards = [-config.kl.coef * kl(a - r) for a, r in zip(out["logprobs"][b], out["ref_logprobs"][b], strict=True)]
        rewards[-1] += score
        values, last = out["values"][b], len(rewards)
        delta = [rewards[t] + (gamma * values[t + 1] if t + 1 < last else 0) - values[t] for t in range(last)]
        advantages = [sum((gamma * lam) ** k * delta[t + k] for k in range(last - t)) for t in range(last)]
        if config.gae.target == "gae":
            returns = [a + v for a, v in zip(advantages, values, strict=True)]
        else:
            returns = [sum(gamma**k * rewards[t + k] for k in range(last - t)) for t in range(last)]
        out["rewards"].append(rewards)
        out["advantages"].append(advantages)
        out["returns"].append(returns)
    price = config.kl.coef * (std if shaping.scale or shaping.normalise else 1)
    return {**out, "mean": mean, "std": std, "price": price}


def flat(rows: list[list[float]]) -> list[float]:
    return [x for row in rows for x in row]


def slow_metrics(slow: dict[str, Any]) -> dict[str, float]:
    lengths = [len(row) for row in slow["logprobs"]]
    n, size = sum(lengths), len(lengths)
    logprobs, ref = flat(slow["logprobs"]), flat(slow["ref_logprobs"])
    difference = [a - b for a, b in zip(logprobs, ref, strict=True)]
    values, returns, advantages = flat(slow["values"]), flat(slow["returns"]), flat(slow["advantages"])
    clipped = {"reward/clip_fraction": sum(slow["clipped"]) / size} if slow["clipped"] else {}

    def spread(xs: list[float]) -> float:
        mean = sum(xs) / len(xs)
        return sum((x - mean) ** 2 for x in xs) / (len(xs) - 1)

    errors = [r - v for r, v in zip(returns, values, strict=True)]
    return {
        "reward/mean": sum(slow["scores"]) / size, "reward/std": math.sqrt(spread(slow["scores"])),
        "reward/source/byte_sum": sum(slow["scores"]) / size, "reward/shaped_mean": sum(slow["shaped"]) / size,
        "reward/history_mean": slow["mean"], "reward/history_std": slow["std"], "kl/price": slow["price"],
        "kl/ref": sum(difference) / n, "kl/ref_k2": sum(d * d / 2 for d in difference) / n,
        "kl/ref_k3": sum(math.exp(-d) - 1 + d for d in difference) / n, "kl/ref_sequence": sum(difference) / size,
        "response/length": n / size, "response/length_std": math.sqrt(spread([float(x) for x in lengths])),
        "response/truncated": slow["finished"].count(False) / size, "policy/entropy": sum(flat(slow["entropy"])) / n,
        "policy/perplexity": math.exp(-sum(logprobs) / n), "policy/perplexity_moss": math.exp(sum(slow["nll"]) / n),
        "value/mean": sum(values) / n, "value/explained_variance": 1 - spread(errors) / spread(returns),
        "advantage/mean": sum(advantages) / n, "advantage/std": math.sqrt(spread(advantages)), **clipped,
    }  # fmt: skip


def check_tensor(found: torch.Tensor, mask: torch.Tensor, wanted: list[list[float]], name: str) -> None:
    assert bool((found[~mask] == 0).all()), f"{name} is not 0 outside the mask"
    assert found[mask].tolist() == pytest.approx(flat(wanted), rel=1e-4, abs=3e-5), name


SETTINGS: dict[str, dict[str, Any]] = {
    "ppo_max": {},
    "buffer and epochs": {"buffer_iterations": 2, "ppo_epochs": 2, "minibatch": 5},
    "scaling, k2, Monte Carlo": {
        "reward_shaping": {"normalise": False, "scale": True, "clip": None}, "kl": {"coef": 0.3, "estimator": "k2"},
        "gae": {"lam": 1.0, "gamma": 0.9},
    },
    "raw, k3, TD, reward-to-go": {
        "reward_shaping": {"normalise": False, "clip": 1.5}, "kl": {"coef": 0.2, "estimator": "k3"},
        "gae": {"lam": 0.0, "gamma": 0.95, "target": "reward_to_go"},
    },
    "penalties and several samples": {
        "reward_shaping": {"missing_eos_penalty": 0.7, "length_penalty": 0.11}, "sampling.samples_per_prompt": 4,
    },
    "scaled log-probabilities": {"logprobs": "scaled", "sampling": {"temperature": 0.8, "top_p": 0.9}},
    "stop strings": {"sampling.stop": ["a", "e"], "sampling.max_new_tokens": 9},
    "critic first": {"critic.pretrain_iterations": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", [*SETTINGS, "pad is eos"])
def test_iterations_equal_the_slow_reference(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"iterations": 3, "watch.eval_prompts": 0, **SETTINGS.get(name, {})}
    config = make_config(tmp_path, **changes)
    tokenizer, start = make_tokenizer(), make_policy(3)
    if name == "pad is eos":
        tokenizer.pad_token = tokenizer.eos_token
        start.config.pad_token_id = tokenizer.eos_token_id
    record = Record(monkeypatch)
    result = run(tmp_path / "run", changes, policy=copy.deepcopy(start), tokenizer=tokenizer)
    history: list[float] = []
    by_id: dict[tuple[int, ...], tuple[Experience, int]] = {}
    truncated = 0.0
    for i, fresh in enumerate(record.fresh):
        slow = slow_iteration(fresh, record.models[i][0], start, record.models[i][1], history, config, tokenizer)
        for field in ("logprobs", "ref_logprobs", "entropy", "values", "rewards", "advantages", "returns"):
            check_tensor(getattr(fresh, field), fresh.response_mask, slow[field], field)
        assert fresh.scores.tolist() == pytest.approx(slow["scores"], rel=1e-5)
        assert fresh.finished.tolist() == slow["finished"]
        assert fresh.sequence_nll.tolist() == pytest.approx(slow["nll"], rel=1e-5)
        wanted = slow_metrics(slow)
        for metric, value in wanted.items():
            assert result.metrics[i][metric] == pytest.approx(value, rel=2e-4, abs=1e-5), metric
        assert ("reward/clip_fraction" in result.metrics[i]) == (config.reward_shaping.clip is not None)
        assert result.metrics[i]["time/metrics"] > 0
        truncated += wanted["response/truncated"]

        # Minibatches: every sample of the buffer once an epoch, with the numbers of the iteration that drew it.
        for row in range(len(fresh)):
            by_id[tuple(fresh.ids[row, : fresh.lengths[row]].tolist())] = (fresh, row)
        kept = record.fresh[max(0, i + 1 - config.buffer_iterations) : i + 1]
        assert [len(m) for m in record.minibatches[i]] == [
            min(config.minibatch, 8 * len(kept) - start)
            for _ in range(config.ppo_epochs) for start in range(0, 8 * len(kept), config.minibatch)
        ]  # fmt: skip
        seen = sorted(
            tuple(m.ids[row, : m.lengths[row]].tolist()) for m in record.minibatches[i] for row in range(len(m))
        )
        assert seen == sorted(
            [tuple(e.ids[row, : e.lengths[row]].tolist()) for e in kept for row in range(len(e))] * config.ppo_epochs
        )
        for minibatch in record.minibatches[i]:
            for row in range(len(minibatch)):
                origin, at = by_id[tuple(minibatch.ids[row, : minibatch.lengths[row]].tolist())]
                wanted_mask = origin.response_mask[at]
                for field in ("logprobs", "ref_logprobs", "values", "advantages", "returns", "rewards"):
                    values = getattr(minibatch, field)[row][minibatch.response_mask[row]]
                    assert torch.equal(values, getattr(origin, field)[at][wanted_mask]), field

        # Numbers of the update are means over the iteration's updates; the first ratio is 1 by a real forward pass.
        for metric, value in record.numbers[i][0].items():
            mean = sum(n[metric] for n in record.numbers[i]) / len(record.numbers[i])
            assert result.metrics[i][metric] == pytest.approx(mean, rel=1e-9), (metric, value)
        if "policy/ratio_deviation" in record.numbers[i][0] and config.buffer_iterations == 1:
            assert record.numbers[i][0]["policy/ratio_deviation"] < 1e-6
            assert result.metrics[i]["policy/ratio_deviation"] > 1e-3, "later updates must move away"
    assert 0 < truncated < len(record.fresh), "answers must end in both ways for this test to bite"
    assert timeless(lines(tmp_path / "run" / "metrics.jsonl")) == timeless(result.metrics)
    if config.sampling.samples_per_prompt > 1:
        asked = [tuple(e.ids[r, : e.prompt_lengths[r]].tolist()) for e in record.fresh for r in range(8)]
        assert all(len(set(asked[i : i + 4])) == 1 for i in range(0, len(asked), 4))
        assert len(set(asked)) > 3


def test_adaptive_kl(tmp_path: Path) -> None:
    kl = {"coef": 0.1, "controller": "adaptive", "target": 0.5, "horizon": 40}
    result = run(tmp_path / "run", {"iterations": 4, "kl": kl, "critic.pretrain_iterations": 1})
    coef = 0.1
    for line in result.metrics:
        assert line["kl/coef"] == pytest.approx(coef, rel=1e-12)
        if line["phase"] == "policy":  # the frozen policy's KL is 0 and says nothing
            coef *= 1 + min(max(line["kl/ref_sequence"] / 0.5 - 1, -0.2), 0.2) * 8 / 40
    assert coef != 0.1


def test_learning_rates_and_counters(tmp_path: Path) -> None:
    """Warm-up and decay reach their ends; the critic's course includes its pre-training."""
    result = run(tmp_path / "run", {
        "iterations": 4, "critic.pretrain_iterations": 2, "buffer_iterations": 2, "ppo_epochs": 2, "rollout_batch": 6,
        "policy_optim": {"lr": 1e-3, "warmup": 0.25, "schedule": "linear", "min_lr_ratio": 0.1},
        "critic_optim": {"lr": 2e-3, "warmup": 0.0, "schedule": "cosine", "min_lr_ratio": 0.0},
    })  # fmt: skip
    phases = [m["phase"] for m in result.metrics]
    assert phases == ["critic"] * 2 + ["policy"] * 4
    assert [m["iteration"] for m in result.metrics] == list(range(6))
    assert [m["update"] for m in result.metrics] == [0, 0, 6, 12, 18, 24]  # ceil(12 / 4) * 2 a policy iteration
    policy = [m.get("lr/policy") for m in result.metrics]
    assert policy[:2] == [None, None]
    assert policy[2] == pytest.approx(1e-3) and policy[-1] == pytest.approx(1e-4)
    critic = [m["lr/critic"] for m in result.metrics]  # 4 + 6 + 24 = 34 updates
    assert critic[0] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 3 / 33)))
    assert critic[-1] == pytest.approx(0, abs=1e-9)


# ------------------------------------------------------------------------------- problems with known answers

LEARN: dict[str, Any] = {
    "iterations": 40, "rollout_batch": 32, "minibatch": 16, "ppo_epochs": 2, "micro_batch_tokens": 4000,
    "policy_optim": {"lr": 1e-2, "warmup": 0.0}, "critic_optim": {"lr": 1e-2, "warmup": 0.0}, "kl.coef": 0.0,
    "watch.eval_prompts": 0,
}  # fmt: skip


def test_learns_a_problem_with_a_known_answer_and_kl_holds_it_back(tmp_path: Path) -> None:
    """Share of small Latin letters: at most 1, a tenth by chance. A large kl.coef keeps the policy where it was."""
    free = run(tmp_path / "free", LEARN, reward=lower_share)
    rewards = [m["reward/mean"] for m in free.metrics]
    assert rewards[0] < 0.25 and sum(rewards[-3:]) / 3 > 0.9
    held = run(tmp_path / "held", {**LEARN, "kl.coef": 10.0, "iterations": 20}, reward=lower_share)
    assert sum(m["reward/mean"] for m in held.metrics[-3:]) / 3 < 0.35
    assert free.metrics[-1]["kl/ref_sequence"] > 5
    assert all(m["kl/ref_sequence"] < 4 for m in held.metrics)
    # Not by explained variance: at the end all rewards are nearly 1, and a share of next to no variance is noise.
    losses = [m["loss/value"] for m in free.metrics]
    assert sum(losses[-3:]) / 3 < losses[0] / 50, "a critic that learnt nothing would be as wrong as at the start"


def test_learns_with_adapters_and_final_loads_without_them(tmp_path: Path) -> None:
    start = make_policy()
    reference = copy.deepcopy(start)
    changes = {**LEARN, "iterations": 15, "lora": {"rank": 4, "alpha": 16}, "sampling.max_new_tokens": 8}
    result = run(
        tmp_path / "run", changes, policy=start, reward=lambda prompts, responses: [-float(len(r)) for r in responses]
    )
    assert result.metrics[0]["response/length"] > 5 and result.metrics[-1]["response/length"] < 2
    assert result.metrics[-1]["response/truncated"] < 0.1
    assert result.metrics[0]["kl/ref"] == 0.0 and result.metrics[-1]["kl/ref"] > 0.05
    ids = torch.tensor([[1, 40, 50, 60, 2]])
    with torch.no_grad():
        with result.policy.disable_adapter():
            assert torch.equal(result.policy(ids).logits, reference(ids).logits)
        live = result.policy(ids).logits
        final = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
        assert type(final) is type(reference) and not any("lora" in name for name, _ in final.named_parameters())
        assert torch.allclose(final(ids).logits, live, atol=1e-5)
        assert not torch.allclose(live, reference(ids).logits, atol=1e-1)
    assert {p.name for p in (tmp_path / "run" / "final").iterdir()} >= {"adapter", "README.md", "tokenizer.json"}


def test_reference_of_an_adapter_run_is_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = make_policy(2)
    record = Record(monkeypatch)
    run(tmp_path / "run", {"lora": {"rank": 3}, "iterations": 3, "policy_optim.lr": 0.02}, policy=copy.deepcopy(start))
    for i, fresh in enumerate(record.fresh):
        for b in range(len(fresh)):
            ids, p = fresh.ids[b : b + 1, : fresh.lengths[b]], int(fresh.prompt_lengths[b])
            with torch.no_grad():
                wanted = start(ids).logits[0, p - 1 : -1].log_softmax(-1).gather(-1, ids[0, p:, None])[:, 0]
            found = fresh.ref_logprobs[b, : len(wanted)]
            assert torch.allclose(found, wanted, atol=1e-5)
        assert record.numbers[i][0]["policy/ratio_deviation"] < 1e-6
    assert not torch.allclose(fresh.ref_logprobs, fresh.logprobs, atol=1e-2)


def test_lr_0_changes_nothing(tmp_path: Path) -> None:
    policy, critic = make_policy(), make_critic()
    before = weights(policy), weights(critic)
    result = run(
        tmp_path / "run",
        {"policy_optim.lr": 0.0, "critic_optim.lr": 0.0, "iterations": 3},
        policy=policy,
        critic=critic,
    )
    for model, old in zip((result.policy, result.critic), before, strict=True):
        assert all(torch.equal(p, old[n]) for n, p in model.named_parameters())
    assert all(m["kl/ref"] == 0 and m["policy/ratio_deviation"] < 1e-6 for m in result.metrics)
