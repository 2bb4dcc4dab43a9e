"""`ppomax plan` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ppomax.cli import main
from ppomax.commands.plan import PlanConfig, run_config, split_words
from ppomax.plan.work import settings_of, work_of

SEVEN = ["--model", "llama-7b", "--precision", "bf16", "--sampling.max_new_tokens", "512", "--max_prompt_length", "512"]


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


def test_words_are_told_apart() -> None:
    own, rest = split_words(
        ["--model", "m", "--devices", "8x80GB", "--shares.update=.5", "--kl.coef", "1", "--device-type", "h100"]
    )
    assert own == ["--devices", "8x80GB", "--shares.update=.5", "--device-type", "h100"]
    assert rest == ["--model", "m", "--kl.coef", "1"]


def test_no_option_of_a_run_is_taken_for_the_plan() -> None:
    from ppomax.config import PPOConfig

    assert not set(PlanConfig.model_fields) & set(PPOConfig.model_fields)


def test_from_a_configuration_to_what_is_counted() -> None:
    words = [
        "--model=llama-7b", "--reward=[{model: [llama-13b, llama-7b]}]", "--critic.init=policy", "--rollout_batch=64",
        "--minibatch=24", "--ppo_epochs=2", "--sampling.repetition_penalty=1.1", "--parallel.shard=zero2",
        "--parallel.frozen=offload", "--parallel.activation_checkpointing", "--sampling.batch_size=7",
    ]  # fmt: skip
    config = run_config(words, None)
    work = work_of(config)
    assert [s.name for s in work.rewards] == ["llama-13b", "llama-7b"]
    assert (work.critic.name, work.updates, work.minibatch, work.penalty) == ("llama-7b", 6, 24, True)
    assert (work.reference, work.prompt, work.response) == (True, 256, 128)
    assert settings_of(config).options() == {
        "micro_batch_tokens": 2048, "sampling.batch_size": 7, "parallel.shard": "zero2", "parallel.frozen": "offload",
        "parallel.activation_checkpointing": True,
    }  # fmt: skip
    adapters = run_config(["--model=llama-7b", "--lora.rank=8", "--reward=world", "--critic.init=policy"], None)
    assert (work_of(adapters).reference, work_of(adapters).rewards) == (False, ())
    assert settings_of(adapters).lora_rank == 8


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    said = told([*SEVEN, "--devices", "8x80GB"], capsys)
    for part in (
        "weights",
        "frozen models",
        "optimiser",
        "gradients",
        "activations",
        "logits",
        "cache",
        "buffers",
        "total",
    ):
        assert f"\n {part} " in said
    assert "llama-7b: 6.74 billion parameters" in said
    assert "update 40%" in said and "312 TFLOP/s bf16" in said
    assert "does not fit: " in said
    assert "settings that fit, fastest first" in said and "zero3" in said


def test_json_has_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    said: dict[str, Any] = json.loads(told([*SEVEN, "--devices", "8x80GB", "--json", "--show", "2"], capsys))
    given = said["given"]
    assert given["peak_bytes"] == max(sum(parts.values()) for parts in given["memory_bytes"].values())
    assert given["fits"] is False and given["settings"]["parallel.shard"] == "none"
    assert len(said["fits"]) == 2 and all(found["fits"] for found in said["fits"])
    assert said["devices"]["count"] == 8 and said["work"]["policy"]["layers"] == 32


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    said = told([*SEVEN, "--devices", "1x24GB"], capsys)
    assert "nothing fits on 1 of 24 GiB: the tightest settings (" in said
    assert "too much" in said and "what would fit: " in said
    report = json.loads(told([*SEVEN, "--devices", "1x24GB", "--json"], capsys))
    assert report["fits"] == [] and report["least"]["peak_bytes"] > report["least"]["room_bytes"]
    assert report["what_would_fit"]


def test_a_file_and_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: /nowhere/sft\nprompts: p.jsonl\noutput_dir: runs/x\nmax_prompt_length: 100\n")
    said = told([str(recipe), "--model", "new-1m", "--devices", "cpu"], capsys)
    assert "128 samples of 100 + 128 tokens" in said and "0.0013 billion" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "llama-7b"], "missing devices"),
        (["--devices", "8x80GB"], "missing model"),
        (["--devices", "8x80GB", "--model", "lama-7b"], "model: lama-7b: neither a known shape"),
        (["--devices", "8x80GB", "--model", "llama-7b", "--reward", "rm"], "reward: rm: neither a known shape"),
        (["--devices", "8x80GB", "--model", "llama-7b", "--kl.cof", "1"], "kl.cof"),
        (["--devices", "64x80GB", "--model", "llama-7b"], "64 ranks share minibatches of 32"),
        (["a.yaml", "b.yaml", "--devices", "cpu"], "unexpected word 'b.yaml'"),
        (["none.yaml", "--devices", "cpu"], "none.yaml"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ppomax: error: ") and said in error
    assert error.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    said = told(["--help"], capsys)
    assert "usage: ppomax plan [CONFIG.yaml] --model SHAPE --devices" in said
    assert "--devices" in said and "--shares.update" in said
