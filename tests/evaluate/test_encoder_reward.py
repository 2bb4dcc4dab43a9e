"""Encoders as reward models: the stock forward pass's logit of a pair of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from ppomax.cli import main
from ppomax.evaluate.encoder_reward import EncoderReward, is_encoder, question_text
from ppomax.models.fresh import new_model

WORDS = [
    *("which", "is", "best", "?", "a", "b", "c", "good", "bad", "words"),
    *("more", "of", "them", ".", "Human", ":", "Assistant", "hello", "there"),
]
SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                         "num_labels": 1, "pad_token_id": 0, "max_position_embeddings": 24}  # fmt: skip
CLASSES = {
    "bert": (BertConfig, BertForSequenceClassification),
    "deberta": (DebertaV2Config, DebertaV2ForSequenceClassification),
    "roberta": (RobertaConfig, RobertaForSequenceClassification),
}
PAIRS = [("which is best ?", "a good"), ("which ?", "b"), ("hello there more words of them", "c bad bad bad .")]


def save(folder: Path, kind: str, seed: int = 0) -> str:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    config_class, model_class = CLASSES[kind]
    torch.manual_seed(seed)
    types = 1 if kind == "roberta" else 2
    model = model_class(config_class(vocab_size=len(vocabulary), type_vocab_size=types, **SMALL))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    if kind == "roberta":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", list(CLASSES))
def test_rewards_are_the_stock_logits(kind: str, tmp_path: Path) -> None:
    path = save(tmp_path / kind, kind)
    assert is_encoder(path)
    encoder = EncoderReward(path, torch.device("cpu"))
    steps: list[int] = []
    found = encoder(PAIRS, 30, step=steps.append)
    assert sum(steps) == 3 and encoder.truncated == 0
    tokenizer, network = AutoTokenizer.from_pretrained(path), AutoModelForSequenceClassification.from_pretrained(path)
    for (question, answer), reward in zip(PAIRS, found, strict=True):
        with torch.no_grad():
            stock = network(**tokenizer(question, answer, return_tensors="pt")).logits.item()
        assert reward == pytest.approx(stock, abs=1e-5)
    assert len({round(value, 4) for value in found}) == 3


@pytest.mark.parametrize("kind", list(CLASSES))
def test_a_long_question_loses_its_left(kind: str, tmp_path: Path) -> None:
    encoder = EncoderReward(save(tmp_path / kind, kind), torch.device("cpu"))
    long, answer = "a b c " * 20 + "which is best ?", "good"
    (found,) = encoder([(long, answer)], 100)
    assert encoder.truncated == 1
    # with [CLS], two [SEP] and the answer's one token the question keeps its last words
    kept = " ".join(long.split()[-(encoder.room - 4) :])
    assert found == pytest.approx(encoder([(kept, answer)], 100)[0], abs=1e-5) and encoder.truncated == 1
    (found,) = encoder([("which ?", "good " * 40)], 100)
    assert encoder.truncated == 2


def test_questions() -> None:
    turns: Any = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]
    assert question_text(turns[:1]) == "hello"
    assert (
        question_text([*turns, {"role": "user", "content": "which ?"}])
        == "Human: hello\nAssistant: there\nHuman: which ?"
    )


def test_command_beside_another_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = save(tmp_path / "one", "deberta"), save(tmp_path / "two", "bert", 1)
    rows = [{"prompt": q, "chosen": a, "rejected": "words"} for q, a in PAIRS]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", one, other, "--data", str(data), "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    assert main(words) == 0
    assert "3" in capsys.readouterr().out
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    encoder = EncoderReward(one, torch.device("cpu"))
    expected = encoder([(q, side) for q, a in PAIRS for side in (a, "words")], 1000)
    assert [value for item in items for value in item["rewards"][one]] == pytest.approx(expected, abs=1e-5)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    right = sum(expected[2 * i] > expected[2 * i + 1] for i in range(3))
    assert result["models"][one]["overall"]["model"]["accuracy"] == pytest.approx(right / 3)


def test_others_are_no_encoders(tmp_path: Path) -> None:
    new_model(tmp_path / "lm", ["some words"] * 3, size="1m", vocab_size=300, seed=0)
    assert not is_encoder(str(tmp_path / "lm"))
    config = BertConfig(vocab_size=30, **{**SMALL, "num_labels": 3})
    BertForSequenceClassification(config).save_pretrained(tmp_path / "three")
    assert not is_encoder(str(tmp_path / "three"))  # which is then refused for its labels


def test_a_broken_encoder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reward that is no number would count as wrong."""
    place = save(tmp_path / "rm", "bert")
    network = AutoModelForSequenceClassification.from_pretrained(place)
    network.classifier.bias.data.fill_(float("nan"))
    network.save_pretrained(place)
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "which is best ?", "chosen": "a", "rejected": "b"}) + "\n")
    assert main(["evaluate", place, "--data", str(data)]) == 2
    assert "a reward is not a finite number at" in capsys.readouterr().err
