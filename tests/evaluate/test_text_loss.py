"""Loss on held-out text: against a slow loop, windows, intervals, the command's table and figure."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppomax.cli import main
from ppomax.data.chat import ChatFormat
from ppomax.evaluate.text_loss import summarise_losses, text_losses, text_windows
from ppomax.models.fresh import new_model

TEXTS = ["The duck swims in a pond.", "谁住在山上？老人。", "A crow says caw, and then it says caw again. " * 4, "x"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("text") / "tiny"
    new_model(folder, TEXTS * 3, size="1m", vocab_size=340, seed=3)
    return str(folder)


@pytest.mark.parametrize("room", [None, 7])
def test_every_token_counts_once(model: str, room: int | None) -> None:
    chat = ChatFormat(AutoTokenizer.from_pretrained(model))
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    windows = [text_windows(chat, text, room) for text in TEXTS]
    found = text_losses(network, windows, torch.device("cpu"), 200)
    for text, (nats, tokens) in zip(TEXTS, found, strict=True):
        ids = [chat.bos_id, *chat.tokenizer(text, add_special_tokens=False)["input_ids"]]
        expected = 0.0
        for t in range(1, len(ids)):
            start = 0 if room is None else (t - 1) // (room - 1) * (room - 1)
            with torch.no_grad():
                logits = network(torch.tensor([ids[start:t]])).logits[0, -1]
            expected -= float(logits.log_softmax(-1)[ids[t]])
        assert tokens == len(ids) - 1 and nats == pytest.approx(expected, abs=2e-3)


class NoBos:
    """One id a character; eos, which is 1, stands before the first."""

    bos_id = None

    class tokenizer:
        eos_token_id = 1

    def encode_text(self, text: str) -> list[int]:
        return [*map(ord, text), 1]


def test_windows_without_bos() -> None:
    chat: Any = NoBos()
    assert text_windows(chat, "abcde", None) == [[1, 97, 98, 99, 100, 101]]
    assert text_windows(chat, "abcde", 3) == [[1, 97, 98], [98, 99, 100], [100, 101]]
    assert text_windows(chat, "", None) == []


def test_means_differences_and_intervals() -> None:
    sizes = [10, 30]
    losses = {"a": [(10.0, 5), (30.0, 15)], "b": [(12.0, 5), (36.0, 15)], "c": [(10.0, 4), (30.0, 15)]}
    found = summarise_losses(losses, sizes)
    assert (found["texts"], found["bytes"]) == (2, 40)
    a, b = found["models"]["a"], found["models"]["b"]
    assert a["tokens"] == 20 and a["loss"] == {"value": 2.0, "interval": [2.0, 2.0]}  # both texts lie at 2
    assert a["perplexity"] == pytest.approx(math.exp(2))
    assert b["bits_per_byte"]["value"] == pytest.approx(48 / 40 / math.log(2))
    gap = found["against_first"]["b"]
    assert gap["loss"]["value"] == pytest.approx(0.4) and gap["loss"]["interval"] == pytest.approx([0.4, 0.4])
    assert found["against_first"]["c"]["loss"] is None  # other tokens
    assert found["against_first"]["c"]["bits_per_byte"]["value"] == pytest.approx(0)
    # the same texts for both: 40 texts of very different loss, b worse by 0.1 everywhere
    many = [(float(i), 1) for i in range(40)]
    gap = summarise_losses({"a": many, "b": [(n + 0.1, 1) for n, _ in many]}, [1] * 40)["against_first"]["b"]["loss"]
    assert gap["interval"] == pytest.approx([0.1, 0.1], abs=1e-9)


def test_command(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, other = tmp_path / "text.jsonl", tmp_path / "other"
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS), encoding="utf-8")
    shutil.copytree(model, other)
    worse = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        worse.get_output_embeddings().weight.mul_(-3.0)
    worse.save_pretrained(other)
    words = ["exam", model, str(other), "--text", str(file), "--device", "cpu", "--output-dir", str(tmp_path / "out")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "nats a token" in told and "bits a byte" in told and "4 texts" in told and "model 2 - model 1: +" in told
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert result["questions"] == 0 and not (tmp_path / "out" / "items.jsonl").exists()
    found = result["text"]["models"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    for name in (model, str(other)):
        nats, tokens = (sum(row["models"][name][key] for row in rows) for key in ("nats", "tokens"))
        assert found[name]["loss"]["value"] == pytest.approx(nats / tokens)
    assert found[str(other)]["loss"]["value"] > found[model]["loss"]["value"]
    assert "<svg" in (tmp_path / "out" / "exam.svg").read_text()
    assert main([*words, "--resume"]) == 0 and capsys.readouterr().out == told
