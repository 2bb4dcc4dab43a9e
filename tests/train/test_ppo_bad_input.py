"""What bad input gets: one line that names the field or file, exit code 2, and nothing written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from ppomax.cli import main
from ppomax.data.records import Prompt
from ppomax.errors import UserError
from ppomax.models.fresh import train_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from ppo_tools import (
    QUESTIONS,
    SMALL,
    dialogues,
    lower_share,
    make_critic,
    make_policy,
    make_tokenizer,
    merged,
    prompts,
    run,
)

sys.modules.setdefault("rewards_for_tests", sys.modules[__name__])


def raises(prompts: list[Any], responses: list[str]) -> list[float]:
    raise KeyError("no such colour")


def one_too_few(prompts: list[Any], responses: list[str]) -> list[float]:
    return [0.0] * (len(responses) - 1)


def nan(prompts: list[Any], responses: list[str]) -> list[float]:
    return [0.0] * (len(responses) - 1) + [float("nan")]


def texts(prompts: list[Any], responses: list[str]) -> list[Any]:
    return ["good"] * len(responses)


def save(model: Any, folder: Path, tokenizer: Any = None) -> Path:
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad inputs on disk."""
    root = tmp_path_factory.mktemp("inputs")
    save(make_policy(), root / "policy")
    save(make_critic(), root / "rm")
    two = make_critic()
    two.config.num_labels = 2
    save(LlamaForSequenceClassification(two.config), root / "two-labels")
    endless = make_tokenizer()
    endless.eos_token = None
    save(make_policy(), root / "endless", endless)
    other = train_tokenizer(["completely different words", "完全不同的句子"] * 3, 280)
    save(make_critic(), root / "other-rm", other)
    save(make_policy(), root / "other-reference", other)
    save(make_critic(2, context=24), root / "short-critic")
    (root / "empty").mkdir()
    (root / "prompts.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in QUESTIONS))
    (root / "broken.jsonl").write_text(json.dumps({"prompt": "fine"}) + "\n{oh no\n")
    (root / "none.jsonl").write_text("")
    (root / "numbers.jsonl").write_text('{"prompt": 7}\n')
    return root


CASES: dict[str, tuple[dict[str, Any], str]] = {
    # name: (changes, what the one line must say)
    "not a model directory": ({"model": "ROOT/empty"}, r"ROOT/empty: not a model directory"),
    "no such directory": ({"model": "ROOT/nowhere"}, r"ROOT/nowhere: no such model directory"),
    "a reward model as policy": ({"model": "ROOT/two-labels/config.json"}, r"no such model directory"),
    "reward model is a policy": ({"reward": "ROOT/policy"}, r"ROOT/policy: a LlamaForCausalLM is not a reward model"),
    "two labels": ({"reward": "ROOT/two-labels"}, r"ROOT/two-labels: the reward model has 2 labels, expected 1"),
    "two labels in the critic": ({"critic.init": "ROOT/two-labels"}, r"ROOT/two-labels: .* has 2 labels, expected 1"),
    "no eos": ({"model": "ROOT/endless"}, r"ROOT/endless: the tokenizer has no eos token"),
    "reward raises": ({"reward": "rewards_for_tests:raises"}, r"rewards_for_tests:raises raised KeyError: 'no such colour'"),
    "too few rewards": ({"reward": "rewards_for_tests:one_too_few"}, r"one_too_few returned 7 values for 8 samples"),
    "NaN": ({"reward": "rewards_for_tests:nan"}, r"rewards_for_tests:nan returned nan for sample 7"),
    "not numbers": ({"reward": "rewards_for_tests:texts"}, r"returned a str for sample 0"),
    "no such function": ({"reward": "rewards_for_tests:missing"}, r"rewards_for_tests:missing: .* has no missing"),
    "no reward": ({"reward": []}, r"reward: no source is given"),
    "no critic": ({"critic.init": "reward"}, r"critic.init is `reward`, but no reward source is a model"),
    "critic of another tokenizer": (
        {"critic.init": "ROOT/other-rm"}, r"critic.init: ROOT/other-rm has another tokenizer than the policy .*set critic.init to policy",
    ),
    "critic from a reward model of another tokenizer": (
        {"critic.init": "reward", "reward": "ROOT/other-rm"}, r"critic.init = reward: ROOT/other-rm has another tokenizer",
    ),
    "reference of another tokenizer": ({"reference": "ROOT/other-reference"}, r"reference: ROOT/other-reference has another"),
    "missing prompts": ({"prompts": "ROOT/nothing.jsonl"}, r"ROOT/nothing.jsonl"),
    "malformed prompts": ({"prompts": "ROOT/broken.jsonl"}, r"ROOT/broken.jsonl:2"),
    "empty prompts": ({"prompts": "ROOT/none.jsonl"}, r"ROOT/none.jsonl"),
    "non-string prompts": ({"prompts": "ROOT/numbers.jsonl"}, r"ROOT/numbers.jsonl:1"),
    "all prompts too long": ({"max_prompt_length": 3}, r"prompts: none is left .* 13 are over max_prompt_length = 3"),
    "all prompts held out": ({"watch.eval_prompts": 50}, r"none is left .* 13 are held out by watch.eval_prompts = 50"),
    "prompt and answer over the context": (
        {"sampling.max_new_tokens": 90}, r"policy: max_prompt_length or sampling.max_new_tokens .*31, answer 90\): 121 .* 96; lower it",
    ),
    "the same for the critic": (
        {"critic.init": "ROOT/short-critic", "sampling.max_new_tokens": 20},
        r"critic: .*answer 20\): 51 tokens do not fit the model's context of 24",
    ),
    "ptx without data": ({"ptx.coef": 1.0}, r"there is no ptx.data"),
    "samples a prompt": ({"sampling.samples_per_prompt": 3}, r"rollout_batch 8 is no multiple of sampling.samples_per_prompt 3"),
    "unknown field": ({"kl": {"coeff": 1}}, r"coeff.*coef"),
    "wrong type": ({"rollout_batch": "many"}, r"rollout_batch = 'many': an integer is expected"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_one_line_and_exit_code_2(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    changes, pattern = CASES[name]
    good = {"model": "ROOT/policy", "prompts": "ROOT/prompts.jsonl", "reward": "ppo_tools:byte_sum"}
    good |= {"output_dir": str(tmp_path / "run"), "watch.eval_prompts": 0}  # type: ignore[dict-item]
    settings = yaml.safe_dump(merged(merged(SMALL, good), changes)).replace("ROOT", str(folder))
    (tmp_path / "ppo.yaml").write_text(settings)
    assert main(["ppo", str(tmp_path / "ppo.yaml")]) == 2
    captured = capsys.readouterr()
    last = [line for line in captured.err.splitlines() if line.strip()][-1]
    assert re.search(pattern.replace("ROOT", re.escape(str(folder))), last), last
    assert "Traceback" not in captured.err
    assert not (tmp_path / "run").exists(), "a reward function that fails when it is first called leaves nothing either"


def test_pad_equal_to_eos_and_one_token_prompts_work(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    result = run(tmp_path / "run", {"watch.eval_prompts": 0}, tokenizer=tokenizer,
                 prompts=[Prompt(({"role": "user", "content": ""},))])  # fmt: skip
    assert len(result.metrics) == 2


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer has 280 tokens but the model embeds 270"):
        run(tmp_path / "run", policy=make_policy(vocabulary=270))
    assert not (tmp_path / "run").exists()


def test_ptx_records_over_the_context(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ptx.max_length: \d+ tokens do not fit the model's context of 12"):
        short = make_policy(context=12)
        run(tmp_path / "run", {"ptx": {"coef": 1.0}, "max_prompt_length": 8, "overlong": "truncate",
            "sampling.max_new_tokens": 2}, policy=short, ptx=dialogues())  # fmt: skip


def test_dropped_prompts_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", {"max_prompt_length": 16, "watch.eval_prompts": 1})
    told = capsys.readouterr().err
    tokenizer = make_tokenizer()
    lengths = [len(tokenizer(q, add_special_tokens=False)["input_ids"]) + 3 for q in QUESTIONS]
    dropped = sum(n > 16 for n in lengths)
    assert 0 < dropped < 10
    assert f"prompts: {dropped} of 13 prompts over max_prompt_length = 16 dropped" in told
    assert f"{12 - dropped} prompts to train on; 1 held out to be watched, and 1 with" in told


def test_not_finite_stops_with_an_alarm(tmp_path: Path) -> None:
    """A policy that has gone to NaN is never checkpointed or saved."""
    calls = []

    def poison(prompts: list[Any], responses: list[str]) -> list[float]:
        calls.append(1)
        if len(calls) == 4:
            with torch.no_grad():
                critic.score.weight.fill_(float("inf"))
        return lower_share(prompts, responses)

    critic = make_critic()
    with pytest.raises(UserError, match=r"iteration 2: loss/value.* not finite, training stopped; begin again"):
        run(tmp_path / "run", {"iterations": 4, "checkpoint.every": 1, "watch.every": 4}, critic=critic, reward=poison)
    alarms = (tmp_path / "run" / "alarms.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(a)["iteration"] for a in alarms] == [2]
    assert not (tmp_path / "run" / "final").exists()
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"step-000001", "step-000002"}


def test_a_never_fine_tuned_policy_is_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_policy()
    base.config.ppomax_stage = "base"
    run(tmp_path / "run", {"iterations": 1}, policy=base)
    assert "never fine-tuned (detail 9)" in capsys.readouterr().err
    run(tmp_path / "other", {"iterations": 1})
    assert "never fine-tuned" not in capsys.readouterr().err


def test_inert_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", {"iterations": 1, "kl.target": 3.0})
    assert "warning: kl.target does nothing: kl.controller is fixed" in capsys.readouterr().err


def test_contradictions_are_refused_from_python_too(tmp_path: Path) -> None:
    for changes, said in (
        (
            {"reward_shaping": {"scale": True, "normalise": True}},
            "reward_shaping.scale and reward_shaping.normalise are",
        ),
        ({"kl": {"controller": "adaptive", "horizon": 1}}, "kl.horizon 1: "),
        ({"ptx": {"coef": 1.0}}, "ptx.coef is 1 but there is no ptx.data"),
    ):
        with pytest.raises(UserError, match=said):
            run(tmp_path / "run", changes)
        assert not (tmp_path / "run").exists()


def test_a_reward_model_with_its_own_pad_starts_the_critic(tmp_path: Path) -> None:
    """Its vocabulary is larger by one token, which no answer contains."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|extra|>"})
    model = make_critic(vocabulary=len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    save(model, tmp_path / "rm", tokenizer)
    start = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    changes = {"critic.init": "reward", "reward": str(tmp_path / "rm"), "critic_optim.lr": 0.0, "iterations": 1}
    result = run(tmp_path / "run", changes, reward=None, prompts=prompts())
    assert all(torch.equal(p, dict(start.named_parameters())[n]) for n, p in result.critic.named_parameters())


def test_a_reward_that_fails_at_once_leaves_no_run_behind(tmp_path: Path) -> None:
    def broken(prompts: object, responses: object) -> list[float]:
        raise RuntimeError("no such table")

    out = tmp_path / "run"
    with pytest.raises(UserError, match="no such table"):
        run(out, {"iterations": 1}, reward=broken, prompts=prompts())
    assert not out.exists()
    result = run(out, {"iterations": 1}, prompts=prompts())
    assert len(result.metrics) == 1
