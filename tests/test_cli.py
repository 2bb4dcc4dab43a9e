"""The command line: verbs, help, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from ppomax import __version__
from ppomax.cli import VERBS, main
from ppomax.config import PPOConfig
from ppomax.errors import UserError
from ppomax.options import load_yaml

PPO = ["ppo", "--model", "m", "--reward", "r", "--prompts", "p", "--output-dir", "o"]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("ppomax: error: "), err
    return err


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, bool]]:
    """Calls that reached train_ppo."""
    calls: list[tuple[Any, bool]] = []
    module = types.ModuleType("ppomax.train.ppo")

    def train_ppo(config: Any, *, resume: bool = False) -> None:
        calls.append((config, resume))
        if config.seed == 1:
            raise UserError("a mistake\nover two lines")
        if config.seed == 2:
            raise KeyboardInterrupt

    module.train_ppo = train_ppo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ppomax.train.ppo", module)
    return calls


def test_help_lists_all_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {verb} " in out for verb in VERBS) and "examples:" in out
    assert main([]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ppomax {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"ppomax {verb}" in out and "examples:" in out
    assert main([verb, "-h"]) == 0


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewrad"]) == 2
    assert "unknown verb 'rewrad'; did you mean reward?" in error_line(capsys)
    assert main(["xyz"]) == 2
    assert "choose from " in (line := error_line(capsys)) and "new-model, sft" in line


def test_print_config_loads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: list[Any]) -> None:
    assert main([*PPO, "--preset", "moss_rlhf", "--print-config", "--kl.coef", "0.1"]) == 0
    text = capsys.readouterr().out
    file = tmp_path / "c.yaml"
    file.write_text(text)
    config = load_yaml(PPOConfig, file)
    assert (config.preset, config.kl.coef, config.gae.lam) == ("moss_rlhf", 0.1, 0.95)
    assert main(["ppo", str(file), "--print_config"]) == 0
    assert capsys.readouterr().out == text
    assert trained == []


def test_training_gets_configuration_and_resume(tmp_path: Path, trained: list[tuple[Any, bool]]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: m\nreward: r\nprompts: p\noutput_dir: o\niterations: 3\n")
    assert main(["ppo", str(file), "--resume", "--kl.coef", "0.2"]) == 0
    assert main(["ppo", str(file)]) == 0
    assert [(c.iterations, c.kl.coef, resume) for c, resume in trained] == [(3, 0.2, True), (3, 0.05, False)]


def test_exit_codes(trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PPO, "--seed", "1"]) == 2
    assert error_line(capsys) == "ppomax: error: a mistake over two lines\n"
    assert main([*PPO, "--seed", "2"]) == 130
    assert capsys.readouterr().err == "ppomax: interrupted\n"


@pytest.mark.parametrize("verb", ["sft", "reward", "ppo"])
def test_stages_refuse_what_they_do_not_know(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        (["--modle", "m"], "did you mean --model"),
        (["absent.yaml"], "absent.yaml: no such file"),
        (["--seed", "x"], "seed = 'x': an integer is expected"),
        ([], "missing output_dir, model"),
    ):
        assert main([verb, *words]) == 2
        assert expected in error_line(capsys)


def test_a_file_where_a_folder_is_needed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["world", str(tmp_path / "file" / "x"), "--size", "small"]) == 2
    assert "file is no folder that can be written to" in error_line(capsys)
    words = ["--model", "m", "--reward", "r", "--prompts", "p", "--output-dir", str(tmp_path / "file" / "x")]
    assert main(["exam", "m", "--data", "e", "--output-dir", str(tmp_path / "file" / "x")]) == 2
    assert "file is no folder that can be written to" in error_line(capsys)
    assert main(["ppo", *words]) == 2
    assert error_line(capsys)


def test_new_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = tmp_path / "pairs.jsonl"
    record = {"prompt": "how are you", "chosen": "I am fine, thank you", "rejected": "no"}
    pairs.write_text("".join(json.dumps({**record, "prompt": f"how are you {i}"}) + "\n" for i in range(20)))
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "plain text about fine things"}) + "\n")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "what about this"}) + "\n")
    out = tmp_path / "base"
    words = [
        "new-model",
        str(out),
        "--size",
        "1m",
        "--tokenizer-from",
        str(pairs),
        str(texts),
        str(prompts),
        "--vocab-size",
        "300",
    ]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "828,032 parameters, vocabulary 284" in captured.out
    assert all(name in captured.err for name in ("pairs.jsonl", "texts.jsonl", "prompts.jsonl"))
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert main(words) == 2
    assert "already exists and is not empty" in error_line(capsys)
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before


def test_new_model_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"text": \n')
    for words, expected in (
        ([], "missing output_dir, tokenizer_from"),
        (["x", "y"], "unexpected word 'y'"),
        ([str(tmp_path / "o"), "--tokenizer-from", str(tmp_path / "absent.jsonl")], "does not exist"),
        ([str(tmp_path / "o"), "--tokenizer-from", str(bad)], "bad.jsonl:2"),
        ([str(tmp_path / "o"), "--tokenizer-from", "x", "--size", "2m"], "size = '2m': expected one of '1m'"),
        ([str(tmp_path / "o"), "--tokenizer-from", "x", "--vocab-size", "100"], "vocab_size = 100: must be >= 263"),
    ):
        assert main(["new-model", *words]) == 2
        assert expected in error_line(capsys)
    assert not (tmp_path / "o").exists()


def test_details(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["details"]) == 0
    out = capsys.readouterr().out
    assert "moss_rlhf" in out and "token-level KL penalty" in out and "kl/ref" in out and "rewards.py:" in out
    file = tmp_path / "mine.yaml"
    file.write_text("model: m\nprompts: p\noutput_dir: o\nkl: {coef: 0.123}\n")
    assert main(["details", str(file), "--markdown"]) == 0
    assert "0.123 k1" in capsys.readouterr().out
    assert main(["details", "--markdwon"]) == 2


def test_run_needs_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 2
    assert "one pipeline file is expected" in error_line(capsys)
    assert main(["run", "absent.yaml"]) == 2
    assert "absent.yaml: no such file" in error_line(capsys)


def test_run_prints_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "output_dir: o\nstages:\n- {name: a, kind: sft, model: m, data: d}\n- {name: b, kind: sft, model: '${a}', data: d}\n"
    )
    assert main(["run", str(file), "--print-config", "--b.epochs", "7"]) == 0
    out = capsys.readouterr().out
    assert "# stage a" in out and "model: o/a/final" in out and "epochs: 7.0" in out


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "100"}
    )


def processor_time() -> float:
    """Seconds that children which have ended took: unlike those on the clock, they do not grow with what others do."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_as_a_program() -> None:
    began = processor_time()
    overview = python("-X", "importtime", "-m", "ppomax", "--help")
    assert overview.returncode == 0 and "usage: ppomax VERB" in overview.stdout
    assert processor_time() - began < 5
    for module in ("torch", "transformers", "pydantic", "rich"):  # so that help is instant
        assert f" {module}\n" not in overview.stderr
    options = python("-X", "importtime", "-m", "ppomax", "ppo", "--help")
    assert options.returncode == 0 and "--kl.coef" in options.stdout and " torch\n" not in options.stderr
    mistake = python("-m", "ppomax", "ppo", "--kl.coeff", "1")
    assert mistake.returncode == 2 and mistake.stdout == ""
    assert mistake.stderr == "ppomax: error: unknown option --kl.coeff; did you mean --kl.coef or --ptx.coef?\n"


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m ppomax details --markdown | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stderr
