"""What the contenders of a benchmark are given: lengths as asked, prompts as asked, the same weights for all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fixtures

from ppomax.config import SamplingConfig
from ppomax.data.chat import ChatFormat
from ppomax.rollout.transformers_engine import TransformersEngine

TINY = fixtures.SHAPES["tiny"]


def test_eos_probability_gives_the_mean_length() -> None:
    p = fixtures.eos_probability(4.0, 8)
    # by hand: lengths 1..7 with p (1 - p)^(n - 1), and 8 with the rest
    mean = sum(n * p * (1 - p) ** (n - 1) for n in range(1, 8)) + 8 * (1 - p) ** 7
    assert mean == pytest.approx(4.0, abs=1e-9)
    assert fixtures.eos_probability(8.0, 8) == 0.0
    assert fixtures.eos_probability(1.0, 8) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("size", "millions"), [("5.7m", 5.8), ("27m", 27.4), ("101m", 102.3), ("1b", 1100.0)])
def test_parameters_are_those_of_the_model(size: str, millions: float) -> None:
    assert fixtures.parameters(fixtures.SHAPES[size]) / 1e6 == pytest.approx(millions, rel=0.01)


def test_parameters_are_counted_as_transformers_does() -> None:
    assert fixtures.fresh_llama(TINY).num_parameters() == fixtures.parameters(TINY)


@pytest.mark.parametrize("probability", [0.0, 0.1])
def test_the_probability_of_the_end_is_the_same_everywhere(probability: float) -> None:
    model = fixtures.fresh_llama(TINY)
    fixtures.set_eos_probability(model, probability)
    ids = torch.tensor(fixtures.make_prompts(16, 20, TINY.vocabulary, seed=5))
    with torch.no_grad():
        chances = model(input_ids=ids).logits.double().softmax(-1)
    assert chances[..., 0].max() < 1e-9  # the pad
    if probability == 0:
        assert chances[..., 2].max() < 1e-9
    else:
        assert chances[..., 2].mean().item() == pytest.approx(probability, rel=0.05)
        assert chances[..., 2].std().item() < 0.2 * probability  # no context ends much sooner than another


def test_a_start_is_what_every_loader_reads(tmp_path: Path) -> None:
    start = fixtures.make_start(
        tmp_path, TINY, prompts=5, prompt_length=7, response_length=12, mean_length=6.0, seed=3
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(start.policy)
    chat = ChatFormat(tokenizer)
    lines = [json.loads(line) for line in start.prompts.read_text().splitlines()]
    assert len(lines) == 5
    for line in lines:  # ours reads the text, TRL the ids
        assert chat.encode_prompt([{"role": "user", "content": line["prompt"]}]) == line["ids"]
        assert len(line["ids"]) == 7
        assert not set(line["ids"]) & {0, 1, 2, 3}
    reward = AutoModelForSequenceClassification.from_pretrained(start.reward)
    assert reward.config.num_labels == 1
    assert reward.score.weight.abs().sum() > 0
    policy = AutoModelForCausalLM.from_pretrained(start.policy)
    assert start.parameters == policy.num_parameters()
    engine = TransformersEngine(policy, chat, SamplingConfig(max_new_tokens=12))
    drawn = engine.generate([line["ids"] for line in lines] * 60, list(range(300)))
    lengths = torch.tensor([len(c.response_ids) for c in drawn]).double()
    assert lengths.mean().item() == pytest.approx(6.0, abs=4 * lengths.std().item() / 300**0.5)
