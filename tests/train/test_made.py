"""RUN/made.json: what was there when a run started, whatever happens to it later."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ppo_tools import dialogues, lower_share, make_config, make_policy, make_tokenizer, prompts

from ppomax import __version__
from ppomax.config import PPOConfig, SFTConfig
from ppomax.data.records import Prompt
from ppomax.errors import UserError
from ppomax.report import page
from ppomax.report.page import report
from ppomax.train import made
from ppomax.train.made import digest, files_of, fingerprint, read_starts
from ppomax.train.ppo import train_ppo
from ppomax.train.sft import train_sft


def in_memory(path: Path, **changes: Any) -> Any:
    given = {"policy": make_policy(), "tokenizer": make_tokenizer(), "reward": lower_share, "prompts": prompts()}
    return train_ppo(make_config(path, **changes.pop("settings", {})), **given, **changes)


def test_a_run_writes_down_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mix.jsonl").write_text('{"text": "a red fruit"}\n')
    settings = {"ptx": {"coef": 1.0, "data": [str(tmp_path / "mix.jsonl")]}, "checkpoint": {"every": 1}}
    in_memory(tmp_path / "run", settings=settings)
    (start,) = read_starts(tmp_path / "run")
    assert start["versions"]["ppomax"] == __version__
    assert torch.__version__.startswith(start["versions"]["torch"].split("+")[0])
    assert (start["ranks"], start["nodes"], start["device"]) == (1, 1, "cpu")
    assert start["in_memory"] == ["policy", "tokenizer", "reward", "prompts"]
    words = hashlib.blake2b(b'{"text": "a red fruit"}\n', digest_size=6).hexdigest()
    assert start["files"] == [
        {"field": "ptx.data", "path": str(tmp_path / "mix.jsonl"), "digest": f"digest {words}"}
    ], "what was given in memory is read from no file"
    assert [line.split(" (")[0] for line in start["data"]] == [
        "11 prompts trained on", "2 held-out prompts watched", "1 records of the ptx mix",
    ]  # fmt: skip
    card = (tmp_path / "run" / "final" / "README.md").read_text(encoding="utf-8")
    assert f"made with ppomax {__version__}" in card and f"- {start['data'][0]}" in card

    monkeypatch.setattr(made, "versions", lambda: {"ppomax": "99"})
    in_memory(tmp_path / "run", settings={**settings, "iterations": 3}, resume=True)
    first, second = read_starts(tmp_path / "run")
    assert first == start and second["versions"] == {"ppomax": "99"} and second["data"] == start["data"]
    in_memory(tmp_path / "run", settings={**settings, "iterations": 4}, resume=True)
    assert len(read_starts(tmp_path / "run")) == 2, "a like start is not told twice"


def test_a_page_that_cannot_be_drawn_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: Path) -> str:
        raise ValueError("no ink\nand a second line")

    monkeypatch.setattr(page, "run_page", broken)
    in_memory(tmp_path / "run")
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
    said = [line for line in capsys.readouterr().err.splitlines() if "report.html" in line]
    assert said == [f"warning: no report.html (no ink); `ppomax report {tmp_path}/run` makes it again"]


def test_what_is_never_read_need_not_be_there(tmp_path: Path) -> None:
    result = in_memory(tmp_path / "run", settings={"ptx": {"coef": 0.0, "data": ["$UNSET/mix.jsonl"]}})
    (start,) = read_starts(tmp_path / "run")
    assert start["files"] == [{"field": "ptx.data", "path": "$UNSET/mix.jsonl", "digest": "not here as a file"}]
    (tmp_path / "run" / "made.json").unlink()  # a page then looks itself
    assert "not here as a file" in report([result.path], quiet=True).html


def test_prompts_with_what_has_no_text_of_its_own_can_be_resumed(tmp_path: Path) -> None:

    def given(answers: set[str], gold: str) -> list[Prompt]:
        columns = (("answers", answers), ("one", object()), ("gold", gold))
        return [replace(p, metadata=columns) for p in prompts()]

    settings: dict[str, Any] = {"checkpoint": {"every": 1}}
    model = {"policy": make_policy(), "tokenizer": make_tokenizer(), "reward": lower_share}
    train_ppo(make_config(tmp_path / "run", **settings), **model, prompts=given({"a", "b", "c"}, "4"))
    longer = make_config(tmp_path / "run", **settings, iterations=4)
    with pytest.raises(
        UserError, match=r"begun with other data \(11 prompts trained on \(fingerprint .*; now 11 prompts"
    ):
        train_ppo(longer, **model, prompts=given({"a", "b", "c"}, "5"), resume=True)
    assert "\niterations: 2\n" in (tmp_path / "run" / "config.yaml").read_text(), "what was refused changes nothing"
    train_ppo(longer, **model, prompts=given({"c", "b", "a"}, "4"), resume=True)
    assert "\niterations: 4\n" in (tmp_path / "run" / "config.yaml").read_text()


def test_sft_writes_it_down_too(tmp_path: Path) -> None:
    values = {"model": "memory", "data": ["memory"], "output_dir": str(tmp_path / "run"), "epochs": 1, "device": "cpu",
              "max_length": 64}  # fmt: skip
    train_sft(SFTConfig.model_validate(values), model=make_policy(), tokenizer=make_tokenizer(), records=dialogues())
    (start,) = read_starts(tmp_path / "run")
    assert start["in_memory"] == ["model", "tokenizer", "records"] and start["files"] == []
    assert any("training records (fingerprint" in line for line in start["data"])


def test_every_file_that_settings_name() -> None:
    config = PPOConfig.model_validate({
        "model": "policy", "reference": "sft", "reward": [{"model": ["a", "b"]}, {"function": "m:f"}, {"url": "http://x"}],
        "prompts": ["p.jsonl"], "critic": {"init": "critic"}, "ptx": {"coef": 1.0, "data": ["mix.jsonl"]},
        "watch": {"prompts": ["held.jsonl"], "judge": [{"model": "judge"}]}, "output_dir": "o",
    })  # fmt: skip
    assert list(files_of(config.model_dump(mode="json"))) == [
        ("model", "policy"), ("reference", "sft"), ("critic.init", "critic"), ("reward", "a"), ("reward", "b"),
        ("prompts", "p.jsonl"), ("ptx.data", "mix.jsonl"), ("watch.prompts", "held.jsonl"), ("watch.judge", "judge"),
    ]  # fmt: skip
    plain = config.model_dump(mode="json") | {"critic": {"init": "reward"}}
    assert "critic.init" not in dict(files_of(plain))


def test_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    for name in ("b.safetensors", "a.safetensors", "README.md"):
        (tmp_path / "model" / name).write_bytes(name.encode() * 10)
    whole = hashlib.blake2b(b"a.safetensors" * 10 + b"b.safetensors" * 10, digest_size=6).hexdigest()
    assert digest(str(tmp_path / "model")) == f"digest {whole}", "the weights, in the order of their names"
    assert digest("Anthropic/no-such-thing") == "not here as a file"
    (tmp_path / "empty").mkdir()
    assert digest(str(tmp_path / "empty")).startswith("no digest")

    monkeypatch.setattr(made, "LARGEST_DIGESTED", 100)
    monkeypatch.setattr(made, "END", 4)
    file = tmp_path / "large"
    file.write_bytes(b"head" + bytes(100) + b"tail")
    ends = hashlib.blake2b(b"108" + b"head" + b"tail", digest_size=6).hexdigest()
    assert digest(str(file)) == f"digest {ends} (of sizes, and of the first and last MiB of each file)"


def test_fingerprint_tells_text_and_order() -> None:
    assert fingerprint(["a", "b"]) == hashlib.blake2b(b"'a''b'", digest_size=6).hexdigest()
    assert fingerprint(["a", "b"]) != fingerprint(["b", "a"])


@pytest.mark.parametrize("text", ["", "[]", '{"starts": 3}', '{"starts": [7]}', "\x00"])
def test_a_file_of_somebody_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "made.json").write_text(text)
    assert read_starts(tmp_path) == []
    (tmp_path / "made.json").write_text(json.dumps({"starts": [{"ranks": 2}]}))
    assert read_starts(tmp_path) == [{"ranks": 2}]
