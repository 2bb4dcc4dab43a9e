"""Reward model and critic: the last token by the mask, batches that do not matter, shared backbones, float32 units."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ppomax.data.batches import pad_sequences
from ppomax.errors import UserError
from ppomax.models.logprobs import hidden_states
from ppomax.models.scalar import on_backbone, reset_unit, reward_offset, rewards_at_end, score_sequences, unit_outputs

SMALL: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip


def llama(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SMALL)).eval()


def scalar(seed: int = 0) -> Any:
    model = on_backbone(llama(seed), pad_id=0)
    reset_unit(model, seed)
    return model


@settings(max_examples=30, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, 59), min_size=1, max_size=12), min_size=1, max_size=6),
    budget=st.integers(1, 80), pad=st.integers(0, 59),
)  # fmt: skip
def test_scores_do_not_depend_on_batch_or_pad(sequences: list[list[int]], budget: int, pad: int) -> None:
    """Any token may be the last one, the pad's id included."""
    model = scalar()
    with torch.no_grad():
        hidden = [model.model(torch.tensor([s])).last_hidden_state[0, -1] for s in sequences]
        expected = torch.stack([(h.double() * model.score.weight[0].double()).sum() for h in hidden])
    got = score_sequences(model, sequences, pad_id=pad, micro_batch_tokens=budget)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


def test_offset_is_subtracted() -> None:
    model = scalar()
    sequences = [[5, 6, 7], [8]]
    before = score_sequences(model, sequences, pad_id=0)
    model.config.reward_offset = 1.25
    assert reward_offset(model) == 1.25
    torch.testing.assert_close(score_sequences(model, sequences, pad_id=0), before - 1.25)
    ids, mask = pad_sequences(sequences, 0)
    with torch.no_grad():
        torch.testing.assert_close(rewards_at_end(model, ids, mask), before)  # uncalibrated


def values_at(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The unit's output after every token (B, S)."""
    return unit_outputs(model, hidden_states(model, ids, mask.sum(dim=1)))


def test_values_end_where_rewards_are_read() -> None:
    model = scalar()
    ids, mask = pad_sequences([[5, 6, 7, 8], [9, 10]], 0)
    with torch.no_grad():
        values, rewards = values_at(model, ids, mask), rewards_at_end(model, ids, mask)
        assert values.shape == (2, 4)
        torch.testing.assert_close(values[[0, 1], [3, 1]], rewards, rtol=1e-5, atol=1e-6)
        prefix = values_at(model, ids[:1, :2], mask[:1, :2])
    torch.testing.assert_close(values[:1, :2], prefix, rtol=1e-5, atol=1e-5)  # a state's value knows no future


def test_unit_stays_float32_under_autocast() -> None:
    model = scalar()
    ids, mask = pad_sequences([[5, 6, 7, 8]], 0)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        values = values_at(model, ids, mask)
    assert values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float())


def test_fresh_unit_is_small_and_repeatable() -> None:
    one, two, other = scalar(), scalar(), scalar()
    reset_unit(other, 7)
    assert torch.equal(one.score.weight, two.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)
    wide = on_backbone(
        LlamaForCausalLM(LlamaConfig(**(SMALL | {"hidden_size": 1024, "num_hidden_layers": 1}))), pad_id=0
    )
    before = torch.get_rng_state()
    reset_unit(wide, 3)
    assert torch.equal(before, torch.get_rng_state())
    assert wide.score.weight.std().item() == pytest.approx(1 / math.sqrt(1025), rel=0.1)


def families() -> list[Any]:
    torch.manual_seed(0)
    return [
        llama(),
        Qwen2ForCausalLM(Qwen2Config(**SMALL)).eval(),
        GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=64)).eval(),
        GPTNeoXForCausalLM(
            GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}, rotary_pct=0.5)
        ).eval(),
        BloomForCausalLM(BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=2)).eval(),
    ]


@pytest.mark.parametrize("causal", families(), ids=lambda m: type(m).__name__)
def test_shares_the_backbone_and_survives_saving(causal: Any, tmp_path: Any) -> None:
    """No weight is copied or drawn anew, and the stock class reads the same rewards back."""
    model = on_backbone(causal, pad_id=0)
    reset_unit(model, 1)
    shared = {id(p) for p in causal.parameters()}
    assert [n for n, p in model.named_parameters() if id(p) not in shared] == ["score.weight"]
    assert not any(p.is_meta for p in model.parameters()) and not any(b.is_meta for b in model.buffers())
    assert causal.config.num_labels == 2 and model.config.num_labels == 1  # the causal model's config is its own
    sequences = [[5, 6, 7, 9], [8, 3]]
    ours = score_sequences(model, sequences, pad_id=0)
    assert ours.abs().min() > 0
    model.save_pretrained(tmp_path)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids, mask = pad_sequences(sequences, 0)
    with torch.no_grad():
        torch.testing.assert_close(stock(ids, attention_mask=mask).logits[:, 0], ours, rtol=0, atol=1e-5)


def test_models_without_a_classification_form_are_refused() -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(UserError, match="MambaForCausalLM has no sequence-classification form"):
        on_backbone(mamba, pad_id=0)
