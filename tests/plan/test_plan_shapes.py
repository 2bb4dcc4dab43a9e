"""Parameters counted on the meta device against published and hand-worked totals."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from ppomax.config import PPOConfig
from ppomax.errors import UserError
from ppomax.models.loading import scalar_from_causal
from ppomax.plan.shapes import NAMED, count, shape_of
from ppomax.plan.work import work_of

PUBLISHED = {  # parameters, as the models' own pages or files say
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name: str) -> None:
    assert shape_of(name).causal == PUBLISHED[name]


def test_llama_7b_by_hand() -> None:
    shape = shape_of("llama-7b")
    matrices = 4 * 4096 * 4096 + 3 * 4096 * 11008
    assert shape.layer_matrices == matrices == 202_375_168
    assert shape.layer_parameters == matrices + 2 * 4096
    assert shape.embedding == 32000 * 4096
    assert shape.other_parameters == 4096
    assert shape.scalar == shape.causal - 32000 * 4096 + 4096
    assert (shape.attention_width, shape.kv_width) == (4096, 4096)
    assert shape_of("llama-70b").kv_width == 1024


def test_every_named_shape_is_about_what_its_name_says() -> None:
    for name in NAMED:
        number = name.rsplit("-", 1)[-1]
        said = float(number[:-1]) * {"b": 1e9, "m": 1e6}[number[-1]]
        assert 0.85 < shape_of(name).causal / said < 1.45, name


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=300, hidden_size=24, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "m")
    shape = shape_of(str(tmp_path / "m"))
    assert shape.causal == sum(p.numel() for p in model.parameters())
    assert shape.scalar == sum(p.numel() for p in scalar_from_causal(model, 0).parameters())
    assert shape_of(str(tmp_path / "m" / "config.json")).causal == shape.causal
    assert (shape.layers, shape.width, shape.ffn, shape.kv_width, shape.tied) == (3, 24, 56, 12, True)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^lama-7b: neither a known shape .*; did you mean llama-7b\?$"):
        shape_of("lama-7b")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: cannot be read as a model's config: [^\n]+$"):
        shape_of(str(tmp_path))
    from transformers import GPT2Config

    with pytest.raises(UserError, match="a model of type gpt2; the plan's formulas hold for llama"):
        count("x", GPT2Config())


def _planned(model: str, **changes: object) -> PPOConfig:
    return PPOConfig.model_validate({"model": model, "prompts": "none", "output_dir": "none", **changes})


def test_a_plan_keeps_to_the_context() -> None:
    known = {"llama-7b": 2048, "llama-3-8b": 8192, "qwen3-8b": 40960, "qwen2.5-7b": 32768}
    assert {name: shape_of(name).context for name in known} == known
    short = {"sampling": {"max_new_tokens": 128}}
    for asked, planned in (
        (300, 300),
        (1920, 1920),
        (1921, 1920),
        (9000, 1920),
    ):  # a run whose prompts are longer refuses them
        assert work_of(_planned("llama-7b", **short, max_prompt_length=asked)).prompt == planned
    with pytest.raises(
        UserError, match=r"^model: responses of 2048 tokens leave nothing of the context of llama-7b, 2048 tokens"
    ):
        work_of(_planned("llama-7b", sampling={"max_new_tokens": 2048}))


def test_a_reward_model_is_planned_as_a_critic_alone(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=300, hidden_size=24, intermediate_size=56, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=512, architectures=["LlamaForSequenceClassification"], num_labels=1,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    short = {"max_prompt_length": 500, "sampling": {"max_new_tokens": 100}, "reward": str(tmp_path)}
    work = work_of(_planned("new-1m", **short))
    assert (work.critic.name, work.prompt) == (str(tmp_path), 412)
    with pytest.raises(UserError, match=r"^model: .* is a reward model, not a language model"):
        work_of(_planned(str(tmp_path), **short))
