"""A tokenizer and language models small enough to train within a test, and a few records in two languages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ppomax.data.records import Dialogue, PreferencePair
from ppomax.models.fresh import train_tokenizer
from ppomax.report import page

SENTENCES = [
    "Where does the river go?", "To the sea.", "What colour is the sky today?", "Grey, I am afraid.", "Hello there",
    "Please name three fruits.", "Apples, plums and pears.", "这条河流向哪里？", "流向大海。", "请说出三种水果。",
    "苹果、李子和梨。", "今天天气怎么样？", "恐怕会下雨。", "Thank you!", "不客气。",
]  # fmt: skip


@pytest.fixture(scope="session")
def session_tokenizer() -> Any:
    return train_tokenizer(SENTENCES * 3, 400)


@pytest.fixture
def tokenizer(session_tokenizer: Any) -> Any:
    """Byte-level, distinct pad, bos and eos, with a chat template; a test may change it."""
    import copy

    return copy.deepcopy(session_tokenizer)


@pytest.fixture
def make_lm(session_tokenizer: Any) -> Callable[..., Any]:
    """Tiny Llama with lively random weights."""

    def make(seed: int = 0, **changes: Any) -> Any:
        torch.manual_seed(seed)
        options = {
            "vocab_size": len(session_tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
            "tie_word_embeddings": True, "pad_token_id": session_tokenizer.pad_token_id,
            "bos_token_id": session_tokenizer.bos_token_id, "eos_token_id": session_tokenizer.eos_token_id,
        }  # fmt: skip
        return LlamaForCausalLM(LlamaConfig(**(options | changes))).eval()

    return make


@pytest.fixture
def model_dir(tmp_path: Path, tokenizer: Any, make_lm: Callable[..., Any]) -> Path:
    """The tiny model on disk."""
    folder = tmp_path / "start"
    make_lm().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def dialogue(*turns: str, source: str = "memory") -> Dialogue:
    roles = ("user", "assistant")
    return Dialogue(tuple({"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)), source=source)


@pytest.fixture
def dialogues() -> list[Dialogue]:
    """Ten, English and Chinese, one to three turns each."""
    s = SENTENCES
    return [
        dialogue(s[0], s[1], source="en"),
        dialogue(s[2], s[3], s[13], s[4], source="en"),
        dialogue(s[5], s[6], source="en"),
        dialogue(s[7], s[8], source="zh"),
        dialogue(s[9], s[10], s[11], s[12], s[13], s[14], source="zh"),
        dialogue(s[11], s[12], source="zh"),
        dialogue(s[4], s[13], source="en"),
        dialogue(s[13], s[14], source="zh"),
        dialogue(s[2], s[1], s[0], s[3], source="en"),
        dialogue(s[9], s[8], source="zh"),
    ]


@pytest.fixture
def pairs() -> list[PreferencePair]:
    """Forty pairs with a planted preference: the better answer contains one of two words, in either language."""
    out = []
    for i in range(40):
        chinese = i % 2 == 1
        question = f"{SENTENCES[9] if chinese else SENTENCES[5]} {i}"
        good = (SENTENCES[10], SENTENCES[6])[not chinese]
        bad = (SENTENCES[12], SENTENCES[3])[not chinese]
        out.append(
            PreferencePair(
                ({"role": "user", "content": question},),
                ({"role": "assistant", "content": good + "!" * (i % 3)},),
                ({"role": "assistant", "content": bad + "!" * (i % 4)},),
                source="zh" if chinese else "en",
            )
        )
    return out


@pytest.fixture(autouse=True)
def no_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No report.html at the end of a run, whose figures take longer than the training; `draws_page` asks for it."""
    if "draws_page" not in request.keywords:
        monkeypatch.setattr(page, "run_page", lambda folder: "")
