"""A PPO run that was killed and resumed ends bit for bit where an uninterrupted one ends."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ppomax.cli import main
from ppomax.errors import UserError
from ppomax.models.loading import load_causal_lm, load_tokenizer
from ppomax.train.checkpoint import list_checkpoints

sys.path.insert(0, str(Path(__file__).parent))
from kill_tools import start_script, torture
from ppo_tools import (
    QUESTIONS,
    SMALL,
    dialogues,
    lines,
    make_policy,
    make_tokenizer,
    merged,
    run,
    skip_report,
    timeless,
    weights,
)

SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {"iterations": 5, "checkpoint": {"every": 1, "keep": 2}},
    "stale buffer, epochs": {
        "iterations": 5, "checkpoint.every": 2, "buffer_iterations": 2, "ppo_epochs": 2, "minibatch": 5,
    },
    "pre-training, adaptive KL, ptx, schedules": {
        "iterations": 4, "checkpoint.every": 1, "critic.pretrain_iterations": 2, "critic.pretrain_plateau": 0.01,
        "kl": {"controller": "adaptive", "target": 0.3, "horizon": 60}, "ptx": {"coef": 0.5, "batch_ratio": 0.5},
        "policy_optim": {"schedule": "cosine", "warmup": 0.2}, "watch.every": 1,
    },
    "adapters, entropy target": {
        "iterations": 3, "checkpoint.every": 1, "lora": {"rank": 2}, "entropy": {"coef": 0.1, "target": 4.0},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync guards against power cuts, which are not tested here, and takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def write_inputs(folder: Path) -> None:
    make_policy().save_pretrained(folder / "start")
    make_tokenizer().save_pretrained(folder / "start")
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as f:
        f.writelines(json.dumps({"prompt": q}, ensure_ascii=False) + "\n" for q in QUESTIONS)
    with (folder / "ptx.jsonl").open("w", encoding="utf-8") as f:
        f.writelines(json.dumps({"messages": list(d.messages)}, ensure_ascii=False) + "\n" for d in dialogues())
    for name, changes in SCENARIOS.items():
        files: dict[str, Any] = {"model": str(folder / "start"), "prompts": str(folder / "prompts.jsonl")}
        files |= {"reward": "ppo_tools:byte_sum"}
        settings = merged(merged(SMALL, files), changes)
        if "ptx" in settings:
            settings["ptx"]["data"] = str(folder / "ptx.jsonl")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def one_run(settings: Path, directory: Path, resume: bool, *words: str) -> int:
    return main(["ppo", str(settings), "--output_dir", str(directory), *(["--resume"] if resume else []), *words])


def script(folder: Path) -> None:
    write_inputs(folder)
    importlib.import_module("peft")  # here, once, and not in every child
    load_causal_lm(str(folder / "start"))(torch.tensor([[1]]))
    load_tokenizer(str(folder / "start")).apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    skip_report()
    results = {}
    for i, name in enumerate(SCENARIOS):
        job = functools.partial(one_run, folder / f"{name}.yaml")
        results[name] = torture(job, folder / name, seed=i, random_kills=2, chosen_kills=6 if name == "plain" else 2)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return start_script(__file__, tmp_path_factory.mktemp("killed"))


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_killed_and_resumed_equals_uninterrupted(name: str, killed: dict[str, Any]) -> None:
    result = killed[name]
    assert set(result["codes"]) == {0}, result["log"]
    assert result["hits"] >= 2, "the kills must hit"
    assert result["differences"] == {}, result["log"]
    assert {"final/model.safetensors", "metrics.jsonl", "samples.jsonl", "config.yaml"} <= set(result["files"])
    assert any(f.startswith("checkpoints/") and f.endswith("loop.json") for f in result["files"])


def digest(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, {"checkpoint.every": 1})
    before = digest(out)
    with pytest.raises(UserError, match=r"already holds a run; add --resume"):
        run(out)
    with pytest.raises(
        UserError, match=r"cannot resume with other settings: kl.coef .0.05, now 0.5., gae.lam .0.9, now 0.5.;"
    ):
        run(out, {"kl.coef": 0.5, "gae.lam": 0.5}, resume=True)
    assert digest(out) == before
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(UserError, match="not empty and holds no run"):
            run(strange, resume=resume)
    with pytest.raises(UserError, match="is a file"):
        run(strange / "thesis.txt")
    assert digest(strange) == {str(strange / "thesis.txt"): hashlib.sha256(b"years of work").hexdigest()}


def test_settings_of_another_stage_or_damaged_ones_are_named(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    (out / "config.yaml").write_text("output_dir: x\ndata: [y]\nmodel: z\n")
    with pytest.raises(UserError, match=r"config.yaml: not the settings of a ppo run"):
        run(out, resume=True)
    (out / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config.yaml: not the settings"):
        run(out, resume=True)


def test_resume_of_what_is_not_there_begins(tmp_path: Path) -> None:
    assert timeless(run(tmp_path / "a", resume=True).metrics) == timeless(run(tmp_path / "b").metrics)


def test_resume_without_a_checkpoint_says_that_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.rmtree(tmp_path / "run" / "final")
    capsys.readouterr()
    assert timeless(run(tmp_path / "run", resume=True).metrics) == timeless(whole.metrics)
    told = (
        f"no checkpoint in {tmp_path / 'run'} yet: it starts again, and its {len(whole.metrics)} lines of metrics are"
    )
    assert told in capsys.readouterr().err


def test_a_kill_before_the_first_line_can_be_resumed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".config.yaml.part").write_text("output_dir: half")
    run(out, resume=True)
    assert (out / "final" / "model.safetensors").exists()


def test_a_finished_run_resumes_to_itself_and_may_go_on(tmp_path: Path) -> None:
    """In memory, with data that no file holds; the later run has the same beginning."""
    changes = {"checkpoint.every": 1, "ptx": {"coef": 0.1}, "iterations": 3}
    first = run(tmp_path / "run", changes, ptx=dialogues())
    before = digest(first.path)
    again = run(tmp_path / "run", changes, ptx=dialogues(), resume=True)
    assert again.metrics == first.metrics, "with the lines of the earlier session"
    assert {k: v for k, v in digest(first.path).items() if v != before[k]} == {}
    assert all(torch.equal(p, dict(first.policy.named_parameters())[n]) for n, p in again.policy.named_parameters())
    more = run(tmp_path / "run", {**changes, "iterations": 5}, ptx=dialogues(), resume=True)
    whole = run(tmp_path / "whole", {**changes, "iterations": 5}, ptx=dialogues())
    assert timeless(more.metrics) == timeless(whole.metrics)
    assert weights(more.policy).keys() == weights(whole.policy).keys()
    assert all(torch.equal(p, weights(whole.policy)[n]) for n, p in weights(more.policy).items())
    assert (first.path / "samples.jsonl").read_bytes() == (whole.path / "samples.jsonl").read_bytes()


def test_checkpoints_are_kept_by_number(tmp_path: Path) -> None:
    result = run(tmp_path / "run", {"iterations": 5, "checkpoint": {"every": 1, "keep": 3}})
    assert [p.name for p in list_checkpoints(result.path / "checkpoints")] == [
        f"step-00000{i}" for i in (1, 3, 4, 5)
    ]  # the first: it may turn out to be the last healthy one
    rare = run(tmp_path / "rare", {"iterations": 5, "checkpoint": {"every": 2, "keep": 9}})
    assert [p.name for p in list_checkpoints(rare.path / "checkpoints")] == [f"step-00000{i}" for i in (2, 4, 5)]
    last = run(tmp_path / "last", {"iterations": 2, "checkpoint": {"every": 0}})
    assert [p.name for p in list_checkpoints(last.path / "checkpoints")] == ["step-000002"]


def test_lines_after_the_checkpoint_and_half_lines_are_cut(tmp_path: Path) -> None:
    changes = {"iterations": 4, "checkpoint.every": 2, "watch.every": 1}
    whole = run(tmp_path / "run", changes)
    rows = timeless(lines(whole.path / "metrics.jsonl"))
    samples = (whole.path / "samples.jsonl").read_bytes()
    for part in ("step-000004",):
        for file in sorted((whole.path / "checkpoints" / part).iterdir()):
            file.unlink()
        (whole.path / "checkpoints" / part).rmdir()
    with (whole.path / "metrics.jsonl").open("a", encoding="utf-8") as f:
        f.write('{"iteration": 4, "reward/me')
    (whole.path / "alarms.jsonl").write_text('{"iteration": 1}\n{"iteration": 3}\n')
    again = run(tmp_path / "run", changes, resume=True)
    assert timeless(lines(whole.path / "metrics.jsonl")) == rows == timeless(again.metrics)
    assert (whole.path / "samples.jsonl").read_bytes() == samples
    assert lines(whole.path / "alarms.jsonl") == [{"iteration": 1}]


if __name__ == "__main__":
    script(Path(sys.argv[1]))
