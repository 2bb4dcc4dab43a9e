"""Rows in one, without pads: the same hidden states and gradients as row by row, and left alone where it would not be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
    T5Config,
    T5ForSequenceClassification,
)

from ppomax.config_base import ParallelConfig
from ppomax.models.attention import WORTH, allow_rows_in_one, in_one_row
from ppomax.models.loading import quicken
from ppomax.models.logprobs import backbone_of, hidden_states
from ppomax.models.precision import precision
from ppomax.train.parallel import Ranks
from ppomax.train.sharding import divide

VOCABULARY = 50
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
KINDS = {
    "llama": lambda: LlamaConfig(**SMALL, num_key_value_heads=1),
    "qwen3": lambda: Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "neox": lambda: GPTNeoXConfig(**SMALL),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2,
    ),  # absolute positions
}  # fmt: skip
OTHERS = {
    "window": lambda: MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=32),  # longer than what it is tried with
    "local": lambda: GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        window_size=32, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    ),
    "alibi": lambda: BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3),
    "recurrent": lambda: MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4),
    "eager": lambda: LlamaConfig(**SMALL, attn_implementation="eager"),
}  # fmt: skip


def make(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def allowed(kind: str) -> Any:
    model = make(KINDS[kind]())
    allow_rows_in_one(backbone_of(model))
    assert backbone_of(model).takes_rows_in_one
    return model


def padded(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """ids (B, S), with tokens at the pads too, and lengths (B,)."""
    ids = torch.randint(1, VOCABULARY, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    return ids, torch.tensor(lengths)


def alone(model: Any, ids: Tensor, lengths: Tensor) -> list[Tensor]:
    """Hidden states of each row by itself."""
    return [backbone_of(model)(row[None, :n]).last_hidden_state[0] for row, n in zip(ids, lengths, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 1000))
@torch.no_grad()
def test_as_each_row_by_itself(kind: str, lengths: list[int], seed: int) -> None:
    model = allowed(kind)
    ids, counts = padded(lengths, seed)
    found = in_one_row(backbone_of(model), ids, counts)
    for row, expected in enumerate(alone(model, ids, counts)):
        torch.testing.assert_close(found[row, : lengths[row]], expected, rtol=1e-4, atol=1e-5)
        assert not found[row, lengths[row] :].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_as_each_row_by_itself(kind: str, checkpointing: bool) -> None:
    model = allowed(kind)
    ids, lengths = padded([9, 3, 1, 6])
    weights = torch.randn(19, 16, generator=torch.Generator().manual_seed(1))
    reference = copy.deepcopy(model).double()
    (torch.cat(alone(reference, ids, lengths)) * weights).sum().backward()
    if checkpointing:
        divide(model, ParallelConfig(activation_checkpointing=True), Ranks(), "float32")
    hidden = hidden_states(model, ids, lengths)
    (torch.cat([row[:n] for row, n in zip(hidden, lengths, strict=True)]) * weights).sum().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        if (gradient := expected[name.replace("_checkpoint_wrapped_module.", "")].grad) is not None:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad.double(), gradient, rtol=1e-3, atol=1e-4)


def test_pads_are_not_computed() -> None:
    model = allowed("llama")
    seen: list[int] = []
    model.model.layers[1].mlp.register_forward_hook(lambda m, i, out: seen.append(out.shape[0] * out.shape[1]))
    for lengths in ([10, 2, 3], [10, 9, 10]):
        hidden_states(model, *padded(lengths))
    assert seen == [15, 30]  # almost full rows are left as they are
    assert 29 / 30 > WORTH > 15 / 30


def test_rows_of_nothing() -> None:
    model = allowed("llama")
    ids, _ = padded([4, 4, 4])
    with torch.no_grad():
        found = in_one_row(backbone_of(model), ids, torch.tensor([0, 4, 0]))
        torch.testing.assert_close(found[1], alone(model, ids[1:2], torch.tensor([4]))[0], rtol=1e-4, atol=1e-5)
    assert not found[::2].any()


@torch.no_grad()
def test_another_attention_function_later() -> None:
    model = allowed("llama")
    model.set_attn_implementation("eager")
    ids, lengths = padded([10, 2, 3])
    expected = alone(model, ids, lengths)
    for _ in range(2):
        torch.testing.assert_close(hidden_states(model, ids, lengths)[1, :2], expected[1], rtol=1e-4, atol=1e-5)
        quicken(model, "cpu")
    assert not model.model.takes_rows_in_one


def test_models_without_a_decoder_of_their_own() -> None:
    config = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, num_labels=1)
    quicken(T5ForSequenceClassification(config), "cpu")
    elsewhere = make(KINDS["llama"]())
    elsewhere.base_model_prefix = "nowhere"
    quicken(elsewhere, "cpu")


def test_in_bf16_as_padded() -> None:
    model = allowed("llama")
    ids, lengths = padded([10, 2, 3])
    with precision(torch.device("cpu"), "bf16"), torch.no_grad():
        found, expected = hidden_states(model, ids, lengths), hidden_states(model, ids, None)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(found[row, :n], expected[row, :n], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", OTHERS)
@torch.no_grad()
def test_not_for_layers_that_see_tokens_otherwise(kind: str) -> None:
    model = make(OTHERS[kind]())
    backbone = backbone_of(model)
    allow_rows_in_one(backbone)
    assert not getattr(backbone, "takes_rows_in_one", False)
    ids, lengths = padded([10, 2, 3])
    for row, expected in enumerate(alone(model, ids, lengths)):
        found = hidden_states(model, ids, lengths)[row, : int(lengths[row])]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
