"""Answers to files of prompts: content, order, resumption, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ppomax.cli import main
from ppomax.commands import generate as command
from ppomax.models.fresh import new_model

QUICK = ["--sampling.max-new-tokens", "6", "--sampling.batch-size", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    new_model(folder, ["some words to answer with, and 几个字"] * 5, size="1m", vocab_size=300)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"question {i}" * (1 + i % 3)}) + "\n" for i in range(11)))
    return file


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_answers_in_order(model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["generate", str(model), str(prompts), "--out", str(out), *QUICK]) == 0
    rows = lines(out)
    assert [row["prompt"] for row in rows] == [
        [{"role": "user", "content": f"question {i}" * (1 + i % 3)}] for i in range(11)
    ]
    assert all(isinstance(row["response"], str) and row["tokens"] <= 6 for row in rows)
    assert all(row["finished"] or row["tokens"] == 6 for row in rows)
    assert len({row["seed"] for row in rows}) == 11
    assert "11 answers" in capsys.readouterr().out


def test_an_existing_file_is_left_alone(
    model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    assert main(["generate", str(model), str(prompts), "--out", str(out), *QUICK]) == 2
    assert "already exists" in capsys.readouterr().err and out.read_text() == "mine\n"
    assert main(["generate", str(model), str(prompts), "--out", str(out), "--resume", *QUICK]) == 2
    assert "out.jsonl:1: does not answer prompt 1" in capsys.readouterr().err and out.read_text() == "mine\n"


def test_resume_never_mixes_models_or_seeds(
    model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["generate", str(model), str(prompts), "--out", str(out), *QUICK]) == 0
    first = "".join(out.read_text().splitlines(keepends=True)[:3])
    out.write_text(first)
    assert main(["generate", str(model), str(prompts), "--out", str(out), "--resume", "--seed", "5", *QUICK]) == 2
    assert "out.jsonl:1: was drawn from" in capsys.readouterr().err and out.read_text() == first
    other = tmp_path / "other"
    other.symlink_to(model)
    assert main(["generate", str(other), str(prompts), "--out", str(out), "--resume", *QUICK]) == 2
    assert "out.jsonl:1: was drawn from" in capsys.readouterr().err and out.read_text() == first
    again = ["generate", str(model), str(prompts), "--out", str(out), "--resume", *QUICK]
    assert main([*again, "--sampling.top-p", "0.5"]) == 2
    assert "out.jsonl:1: was drawn with other settings" in capsys.readouterr().err and out.read_text() == first
    assert main([*again, "--sampling.batch-size", "2"]) == 0  # shapes no answer
    rows = [{k: v for k, v in json.loads(line).items() if k != "settings"} for line in first.splitlines()]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))  # drawn before settings were kept
    assert main([*again, "--sampling.top-p", "0.5"]) == 0
    assert main(["generate", str(model), str(prompts), "--out", str(tmp_path), "--resume", *QUICK]) == 2
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [0.0, 0.35, 0.7, 1.0])
def test_resumed_equals_uninterrupted(model: Path, prompts: Path, tmp_path: Path, cut: float) -> None:
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    words = ["generate", str(model), str(prompts), *QUICK, "--sampling.samples-per-prompt", "2"]
    assert main([*words, "--out", str(whole)]) == 0
    data = whole.read_bytes()
    part.write_bytes(data[: int(cut * len(data))])  # mostly in the middle of a line
    assert main([*words, "--out", str(part), "--resume"]) == 0
    assert part.read_bytes() == data


def test_answers_do_not_depend_on_the_batch(model: Path, prompts: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    for out, size in ((one, "1"), (two, "5")):
        words = ["generate", str(model), str(prompts), "--out", str(out), *QUICK, "--sampling.batch-size", size]
        assert main(words) == 0
    assert one.read_bytes() == two.read_bytes()


def test_long_prompts_are_counted(
    model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    words = ["generate", str(model), str(prompts), "--out", str(out), *QUICK, "--max-prompt-length", "16"]
    assert main([*words, "--overlong", "drop"]) == 0
    kept = len(lines(out))
    assert 0 < kept < 11 and f"{11 - kept} prompts longer than 16 tokens: dropped" in capsys.readouterr().err
    out.unlink()
    assert main(words) == 0
    assert len(lines(out)) == 11 and "cut at the left" in capsys.readouterr().err
    out.unlink()
    assert main([*words, "--overlong", "drop", "--max-prompt-length", "2"]) == 2
    assert "no prompts left" in capsys.readouterr().err and not out.exists()


def test_new_tokens_are_limited_by_the_context(monkeypatch: pytest.MonkeyPatch, model: Path, prompts: Path, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr(command, "context_of", lambda model: 50)
    out = tmp_path / "out.jsonl"
    assert main(["generate", str(model), str(prompts), "--out", str(out), "--device", "cpu"]) == 0
    limit = int(capsys.readouterr().err.split("context of 50 tokens leaves ")[1].split()[0])
    assert 0 < limit < 50 and max(row["tokens"] for row in lines(out)) <= limit


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{model}", "{prompts}"], "missing out"),
        (["{model}", "--out", "{out}"], "missing prompts"),
        (["{model}", "{prompts}", "--out", "{tmp}/no/where.jsonl"], "is not a folder"),
        (["{tmp}", "{prompts}", "--out", "{out}"], "not a model directory"),
        (["{model}", "{tmp}/absent.jsonl", "--out", "{out}"], "does not exist"),
        (
            ["{model}", "{prompts}", "--out", "{out}", "--sampling.temperatur", "1"],
            "did you mean --sampling.temperature",
        ),
    ],
)
def test_mistakes(words: list[str], expected: str, model: Path, prompts: Path, tmp_path: Path,
                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    out = tmp_path / "out.jsonl"
    filled = [word.format(model=model, prompts=prompts, out=out, tmp=tmp_path) for word in words]
    assert main(["generate", *filled]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ppomax: error: ") and expected in error
    assert not out.exists()
