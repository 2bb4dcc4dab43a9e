"""PPO's parts in a run: critic pre-training, ptx, watched prompts, references, seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppomax.data.records import Text
from ppomax.train import ppo
from ppomax.train.parallel import Ranks
from ppomax.train.ppo_guard import Guard

sys.path.insert(0, str(Path(__file__).parent))
from ppo_tools import (
    Record,
    byte_sum,
    dialogues,
    lines,
    make_config,
    make_critic,
    make_policy,
    make_tokenizer,
    prompts,
    run,
    timeless,
    weights,
)


def test_critic_pretraining_freezes_the_policy_and_learns_a_constant(tmp_path: Path) -> None:
    policy = make_policy()
    before = weights(policy)
    seen: list[bool] = []

    def constant(prompts: list[Any], responses: list[str]) -> list[float]:
        seen.append(all(torch.equal(p, before[n]) for n, p in policy.named_parameters()))
        return [1.0] * len(responses)

    result = run(
        tmp_path / "run",
        {
            "critic": {"init": "policy", "pretrain_iterations": 25, "value_clip": None}, "critic_optim.lr": 1e-2,
            "reward_shaping": {"normalise": False, "clip": None}, "iterations": 1, "watch.eval_prompts": 0,
        },
        policy=policy, reward=constant,
    )  # fmt: skip
    assert len(seen) == 26 and all(seen), "the policy must stay bitwise the same until pre-training is over"
    assert not all(torch.equal(p, before[n]) for n, p in policy.named_parameters()), "and train after it"
    critic_lines = [m for m in result.metrics if m["phase"] == "critic"]
    assert len(critic_lines) == 25 and not any("loss/policy" in m or "lr/policy" in m for m in critic_lines)
    assert critic_lines[-1]["loss/value"] < 0.05 * critic_lines[0]["loss/value"]
    assert result.metrics[-1]["value/mean"] == pytest.approx(1.0, abs=0.1)


def test_plateau_ends_pretraining(tmp_path: Path) -> None:
    changes = {"critic": {"pretrain_iterations": 40, "pretrain_plateau": 0.5}, "critic_optim.lr": 0.0, "iterations": 1}
    result = run(tmp_path / "run", changes, reward=lambda prompts, responses: [0.0] * len(responses))
    assert [m["phase"] for m in result.metrics] == ["critic"] * 10 + ["policy"]


def test_schedules_end_where_the_run_does_after_a_plateau(tmp_path: Path) -> None:
    falling = {"lr": 1e-9, "schedule": "linear", "min_lr_ratio": 0.1}
    early = {"pretrain_iterations": 40, "pretrain_plateau": 0.5}
    common = {"iterations": 4, "reward_shaping": {"normalise": False}, "critic_optim": falling, "policy_optim": falling}
    rates = []
    for name, critic in (("early", early), ("planned", {"pretrain_iterations": 10})):
        result = run(
            tmp_path / name, {**common, "critic": critic}, reward=lambda prompts, responses: [0.0] * len(responses)
        )
        rates.append([(m["lr/critic"] / 1e-9, m.get("lr/policy", 0.0) / 1e-9) for m in result.metrics])
    assert len(rates[0]) == len(rates[1]) == 10 + 4
    assert rates[0][9][0] > 0.75 and rates[1][9][0] < 0.45, "planned for 44 iterations until the plateau"
    assert rates[0][10:] == rates[1][10:] and rates[0][-1] == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize("kept", [1, 2, 5])
@pytest.mark.parametrize(("first", "end"), [(0, 0), (0, 1), (0, 3), (0, 9), (2, 3), (3, 9), (7, 9)])
def test_planned_updates_are_those_of_a_loop(kept: int, first: int, end: int) -> None:
    config = make_config("unused", buffer_iterations=kept, rollout_batch=10, minibatch=4, ppo_epochs=3)
    held = [min(i + 1, kept) * 10 for i in range(first, end)]
    assert ppo.planned_updates(config, first, end) == sum(3 * len(range(0, samples, 4)) for samples in held)


@pytest.mark.parametrize(
    ("losses", "done"),
    [([1.0] * 9, False), ([1.0] * 10, True), ([2.0] * 5 + [1.0] * 5, False), ([1.0] * 5 + [0.95] * 5, True),
     ([9.0] * 5 + [1.0] * 5 + [0.89] * 5, False), ([1.0] * 5 + [2.0] * 5, True), ([2.0 ** -i for i in range(20)], True)],
)  # fmt: skip
def test_plateau_rule(losses: list[float], done: bool) -> None:
    config = make_config("unused", critic={"pretrain_iterations": 20, "pretrain_plateau": 0.1})
    assert ppo.pretraining_done(losses, config) is done
    off = make_config("unused", critic={"pretrain_iterations": 20})
    assert ppo.pretraining_done(losses, off) is (len(losses) >= 20)


def test_ptx_teaches_its_records(tmp_path: Path) -> None:
    changes = {"ptx": {"coef": 1.0, "data": ["memory"], "batch_ratio": 0.3}, "iterations": 12, "policy_optim.lr": 1e-2}
    result = run(tmp_path / "run", {**changes, "kl.coef": 0.0}, ptx=dialogues())
    losses = [m["loss/ptx"] for m in result.metrics]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    without = run(tmp_path / "other", {**changes, "kl.coef": 0.0, "ptx.coef": 1e-9}, ptx=dialogues())
    losses = [m["loss/ptx"] for m in without.metrics]
    assert sum(losses[-3:]) > 0.9 * sum(losses[:3])


# --------------------------------------------------------------------------------- watch, memory, several rewards


def test_watched_prompts_are_fixed_and_never_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(monkeypatch)
    changes = {"iterations": 5, "watch": {"eval_prompts": 3, "every": 2}, "critic.pretrain_iterations": 1}
    run(tmp_path / "run", changes, prompts=[*prompts(13), *prompts(13)])
    samples = lines(tmp_path / "run" / "samples.jsonl")
    assert [(s["iteration"], s["update"]) for s in samples[::3]] == [(1, 0), (3, 4), (5, 8), (6, 10)]
    asked = [s["prompt"][0]["content"] for s in samples]
    assert asked == asked[:3] * 4 and len(set(asked)) == 3
    trained = {tuple(e.ids[b, : e.prompt_lengths[b]].tolist()) for e in record.fresh for b in range(len(e))}
    tokenizer = make_tokenizer()
    for question in asked:
        ids = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        assert tuple(ids["input_ids"] if hasattr(ids, "keys") else ids) not in trained
    assert len(trained) == 10
    for s in samples:
        assert s["score"] == pytest.approx(byte_sum([None], [s["response"]])[0], rel=1e-6)
        assert 1 <= s["length"] <= 6 and len(s["pieces"]) == len(s["token_kl"]) == s["length"]
        assert sum(s["token_kl"]) == pytest.approx(s["kl"], abs=6e-3), "to 3 digits each"
    assert all(abs(s["kl"]) < 1e-5 for s in samples[:3]) and any(abs(s["kl"]) > 1e-2 for s in samples[-3:])


def test_several_rewards_and_metadata(tmp_path: Path) -> None:
    def number(prompts: list[Any], responses: list[str], number: list[int]) -> list[float]:
        return [float(n) for n in number]

    result = run(tmp_path / "run", {"iterations": 1}, reward=[byte_sum, number])
    m = result.metrics[0]
    assert m["reward/mean"] == pytest.approx(m["reward/source/byte_sum"] + m["reward/source/number"], rel=1e-6)
    assert m["reward/source/number"] > 0


def test_critic_from_a_reward_model_in_memory_is_a_copy(tmp_path: Path) -> None:
    model = make_critic(5)
    before = weights(model)
    result = run(tmp_path / "run", {"critic.init": "reward"}, reward=[(model, make_tokenizer())])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters()), "the reward model is frozen"
    assert not all(torch.equal(p, before[n]) for n, p in result.critic.named_parameters())
    alone = run(tmp_path / "alone", {"critic.init": "reward"}, reward=make_critic(5))
    assert timeless(alone.metrics) == timeless(result.metrics)
    shared = make_critic(5)
    run(tmp_path / "shared", {}, reward=(shared, make_tokenizer()), critic=shared)
    assert all(torch.equal(p, before[n]) for n, p in shared.named_parameters())


def test_a_critic_from_a_calibrated_reward_model_is_calibrated(tmp_path: Path) -> None:
    """Scores and values move together, so advantages do not know of the offset."""
    seen = {}
    for name, offset, calibrate in (("plain", 0.0, True), ("moved", 3.0, True), ("apart", 3.0, False)):
        reward = make_critic(5)
        reward.config.reward_offset = offset
        changes = {"preset": "vanilla", "iterations": 1, "critic": {"init": "reward", "calibrate": calibrate}}
        seen[name] = run(tmp_path / name, changes, reward=reward).metrics[0]
        assert reward.config.reward_offset == offset, "the reward model's own config stays"
    plain, moved, apart = seen["plain"], seen["moved"], seen["apart"]
    for metric in ("reward/mean", "value/mean"):
        assert moved[metric] == pytest.approx(plain[metric] - 3, abs=1e-4)
    # between two states the offset cancels at gamma 1; at the last token, r - 3 - (V - 3)
    assert moved["advantage/mean"] == pytest.approx(plain["advantage/mean"], abs=1e-4)
    assert apart["value/mean"] == pytest.approx(plain["value/mean"], abs=1e-6)
    assert apart["advantage/mean"] < plain["advantage/mean"] - 0.5


def test_a_rollback_into_critic_pretraining_trains_the_critic_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Guard.look

    def collapse_at_6(guard: Guard, line: dict[str, Any]) -> Any:
        found = look(guard, line)
        return "rollback" if line["iteration"] == 6 else found

    monkeypatch.setattr(Guard, "look", collapse_at_6)
    changes = {
        "iterations": 6, "critic.pretrain_iterations": 3, "checkpoint.every": 50,
        "watch": {"on_collapse": "rollback", "eval_prompts": 0},
    }  # fmt: skip
    phases = [line["phase"] for line in run(tmp_path / "run", changes).metrics]
    assert phases == ["critic"] * 3 + ["policy"] * 4 + ["critic"] * 3 + ["policy"] * 2, "from step 0, where it began"


def test_a_reference_that_is_the_policy_itself_stays_frozen(tmp_path: Path) -> None:
    policy = make_policy()
    result = run(tmp_path / "run", {}, policy=policy, reference=policy)
    assert timeless(result.metrics) == timeless(run(tmp_path / "other", {}).metrics)
    assert result.metrics[-1]["kl/ref"] != 0


def test_every_iteration_draws_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt, weights that stand still: the answers differ within and between iterations."""
    record = Record(monkeypatch)
    still = {"policy_optim.lr": 0.0, "critic_optim.lr": 0.0, "watch.eval_prompts": 0}
    run(tmp_path / "run", still, prompts=prompts(1))
    answers = [tuple(r) for e in record.fresh for r in e.responses()]
    assert len(answers) == 16 and len(set(answers)) > 12


@pytest.mark.parametrize("length", [2, 3, 8, 9, 15, 16, 30])
def test_ptx_learns_every_token_of_a_text_but_the_first_once(tmp_path: Path, length: int) -> None:
    config = make_config(tmp_path, ptx={"coef": 1.0, "max_length": 8}, critic={"init": "policy"})
    text = [Text("a" * (length - 1))]  # bytes are tokens, and the end one more
    setup = ppo.prepare(
        config, Ranks(), policy=make_policy(), tokenizer=make_tokenizer(), reward=byte_sum, prompts=prompts(), ptx=text
    )
    whole = setup.chat_format.encode_text(text[0].text)
    learnt = [token for ids, mask in setup.ptx for token, learn in zip(ids, mask, strict=True) if learn]
    assert learnt == whole[1:] and all(len(ids) <= 8 for ids, _ in setup.ptx)


def test_ptx_trains_on_assistant_tokens_only(tmp_path: Path) -> None:
    config = make_config(tmp_path, ptx={"coef": 1.0}, critic={"init": "policy"})
    talk = [*dialogues()[:2], Text("a river")]
    setup = ppo.prepare(
        config, Ranks(), policy=make_policy(), tokenizer=make_tokenizer(), reward=byte_sum, prompts=prompts(), ptx=talk
    )
    tokenizer = make_tokenizer()
    trained = [tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) for ids, mask in setup.ptx]
    assert trained == ["it is red<|end|>", "I do not know<|end|>", "a river<|end|>"]
    assert all(not mask[0] for _, mask in setup.ptx)


def test_another_reference(tmp_path: Path) -> None:
    result = run(tmp_path / "run", {}, reference=make_policy(9))
    assert result.metrics[0]["kl/ref_k3"] > 0.1


def test_runs_repeat_and_seeds_differ(tmp_path: Path) -> None:
    one, two, other = (run(tmp_path / n, {"seed": s}, report=n == "a") for n, s in (("a", 1), ("b", 1), ("c", 2)))
    assert "</html>" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert timeless(one.metrics) == timeless(two.metrics) != timeless(other.metrics)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "final")
    assert all(torch.equal(p, dict(found.named_parameters())[n]) for n, p in one.policy.named_parameters())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a" / "final")
    assert tokenizer.chat_template == make_tokenizer().chat_template
    card = (tmp_path / "a" / "final" / "README.md").read_text(encoding="utf-8")
    assert "reward/mean" in card and "kl:" in card


def test_micro_batches_affect_memory_only(tmp_path: Path) -> None:
    one = run(tmp_path / "one", {"micro_batch_tokens": 1, "sampling.batch_size": 3})
    two = run(tmp_path / "two", {"micro_batch_tokens": 10_000})
    for a, b in zip(timeless(one.metrics), timeless(two.metrics), strict=True):
        assert a.pop("phase") == b.pop("phase")
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
