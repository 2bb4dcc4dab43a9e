"""bf16 by autocast: what is computed in which precision, and that gradients stay those of float32 to bf16's accuracy."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations import sdpa_attention

from ppomax.models.attention import allow_rows_in_one
from ppomax.models.logprobs import hidden_states, token_logprobs
from ppomax.models.precision import halve_linears, precision
from ppomax.models.scalar import on_backbone, reset_unit, unit_outputs
from ppomax.rollout.transformers_engine import make_cache

CPU = torch.device("cpu")


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def seen_dtypes(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtype of every query that reaches PyTorch's attention."""
    seen: list[torch.dtype] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        seen.append(query.dtype if torch.is_autocast_enabled("cpu") is False else torch.bfloat16)
        return original(query, *args, **kwargs)

    monkeypatch.setattr(sdpa_attention.torch.nn.functional, "scaled_dot_product_attention", watched)
    return seen


@pytest.mark.parametrize("padded", [False, True])
def test_attention_is_float32_and_the_rest_bf16(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, padded: bool
) -> None:
    seen = seen_dtypes(monkeypatch)
    ids = torch.randint(1, 50, (3, 9))
    allow_rows_in_one(model.model)
    seen.clear()
    with precision(CPU, "bf16"):
        hidden_states(model, ids, torch.tensor([9, 4, 6]) if padded else None)
    assert seen == [torch.float32] * (2 * 3 if padded else 2)  # layers, and groups of rows of about one length
    kept = []
    hook = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda m, i, out: kept.append(out.dtype))
    with precision(CPU, "bf16"):
        hidden_states(model, ids, None)
    hook.remove()
    assert kept == [torch.bfloat16]


def test_decoding_keeps_a_float32_cache(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query of one token is slower in bf16, and a bf16 cache would be copied to float32 at every token."""
    seen = seen_dtypes(monkeypatch)
    with torch.no_grad(), precision(CPU, "bf16"):
        cache = make_cache(model, 6)
        model(torch.randint(1, 50, (2, 5)), past_key_values=cache, use_cache=True)
        model(torch.randint(1, 50, (2, 1)), past_key_values=cache, use_cache=True)
    assert seen == [torch.float32] * 4
    assert {layer.keys.dtype for layer in cache.layers} == {torch.float32}
    half = copy.deepcopy(model).bfloat16()  # no autocast: the model's own type
    with torch.no_grad():
        cache = make_cache(half, 6)
        half(torch.randint(1, 50, (2, 5)), past_key_values=cache, use_cache=True)
    assert {layer.keys.dtype for layer in cache.layers} == {torch.bfloat16}


def test_float32_is_left_alone(model: LlamaForCausalLM) -> None:
    ids = torch.randint(1, 50, (2, 7))
    with precision(CPU, "float32"):
        ours = hidden_states(model, ids, None)
    torch.testing.assert_close(ours, model.model(ids).last_hidden_state, rtol=0, atol=0)


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_are_those_of_float32_to_the_accuracy_of_bf16(model: LlamaForCausalLM, padded: bool) -> None:
    """bf16 keeps 8 bits: each product is off by up to 2^-9, the whole gradient by a few of them."""
    ids, lengths = torch.randint(1, 50, (4, 16)), torch.tensor([16, 12, 10, 16])
    weight = torch.randn(4, 16, 32) * (torch.arange(16) < lengths[:, None])[..., None]
    allow_rows_in_one(model.model)

    def gradient(name: str) -> torch.Tensor:
        model.zero_grad()
        with precision(CPU, name):
            hidden = hidden_states(model, ids, lengths if padded else None)
        (hidden.float() * weight).sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(g.dtype == torch.float32 for g in grads)
        return torch.cat([g.flatten() for g in grads])

    exact, rough = gradient("float32"), gradient("bf16")
    assert 1e-4 < float((exact - rough).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("tied", [False, True])
def test_halved_frozen_models_give_the_same_numbers(tied: bool) -> None:
    """Bit for bit: a policy and its frozen copy must have a KL of exactly 0."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, tie_word_embeddings=tied,
    )  # fmt: skip
    policy = LlamaForCausalLM(config)
    critic = on_backbone(copy.deepcopy(policy), pad_id=0)
    reset_unit(critic, 3)
    ids, targets = torch.randint(1, 50, (3, 9)), torch.randint(1, 50, (27,))
    for model in (policy, critic):
        frozen = copy.deepcopy(model).requires_grad_(False)
        halve_linears(frozen)
        halved = [n for n, p in frozen.named_parameters() if p.dtype == torch.bfloat16]
        assert len(halved) == 2 * 7 + (model is policy and not tied)
        with torch.no_grad(), precision(CPU, "bf16"):
            for a, b in [(hidden_states(model, ids, None), hidden_states(frozen, ids, None))]:
                assert torch.equal(a, b)
                flat = a.flatten(0, 1)
                if model is critic:
                    assert torch.equal(unit_outputs(model, flat), unit_outputs(frozen, flat))
                else:
                    assert torch.equal(
                        token_logprobs(model, flat, targets)[0], token_logprobs(frozen, flat, targets)[0]
                    )
