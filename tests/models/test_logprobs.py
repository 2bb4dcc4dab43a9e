"""Token log-probabilities and entropy against float64, chunked or not, and models that reshape their logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from ppomax.models import logprobs
from ppomax.models.logprobs import hidden_states, logprobs_and_raw, token_logprobs, unembed, unembeds_alike

SMALL: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def llama(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(SMALL | changes))).eval()


def families() -> list[Any]:
    torch.manual_seed(1)
    return [
        llama(),
        llama(tie_word_embeddings=True),
        Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=2.0)).eval(),
        CohereForCausalLM(CohereConfig(**{k: v for k, v in SMALL.items() if k != "head_dim"}, logit_scale=0.3)).eval(),
        GraniteForCausalLM(
            GraniteConfig(**{k: v for k, v in SMALL.items() if k != "head_dim"}, logits_scaling=3.0)
        ).eval(),
        GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=64)).eval(),
        FalconH1ForCausalLM(
            FalconH1Config(**SMALL, lm_head_multiplier=0.25, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8,
                           mamba_d_state=8, mamba_chunk_size=16)
        ).eval(),
        RecurrentGemmaForCausalLM(
            RecurrentGemmaConfig(**SMALL | {"num_hidden_layers": 3}, logits_soft_cap=3.0, attention_window_size=16)
        ).eval(),
    ]  # fmt: skip


@pytest.mark.parametrize("model", families(), ids=lambda m: type(m).__name__)
def test_unembedding_equals_the_models_own_forward(model: Any) -> None:
    ids = torch.randint(3, 60, (2, 9))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        ours = unembed(model, hidden_states(model, ids, mask))
        torch.testing.assert_close(ours, model(ids, attention_mask=mask).logits.float(), rtol=1e-5, atol=1e-5)


def test_a_scale_under_another_name_is_noticed() -> None:
    model = llama()
    assert unembeds_alike(model)
    whole = model.forward
    model.forward = lambda **inputs: SimpleNamespace(logits=whole(**inputs).logits * 1.1)
    assert not unembeds_alike(model)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 40), rows=st.integers(1, 50), temperature=st.sampled_from([0.5, 1.0, 1.7]), seed=st.integers(0, 99)
)
def test_against_float64_in_any_chunks(n: int, rows: int, temperature: float, seed: int) -> None:
    """Values and gradients do not depend on the chunk size and equal log-softmax and -sum p log p."""
    model = llama(seed)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 32, generator=generator)
    targets = torch.randint(0, 60, (n,), generator=generator)
    weights = torch.randn(2, n, generator=generator)

    def run(chunk: int) -> tuple[Any, ...]:
        model.zero_grad()
        h = hidden.clone().requires_grad_()
        before, logprobs.CHUNK_ELEMENTS = logprobs.CHUNK_ELEMENTS, chunk
        try:
            lp, entropy = token_logprobs(model, h, targets, temperature=temperature, entropy=True)
            assert entropy is not None
            (lp * weights[0] + entropy * weights[1]).sum().backward()
        finally:
            logprobs.CHUNK_ELEMENTS = before
        return lp.detach(), entropy.detach(), h.grad, model.lm_head.weight.grad.clone()

    weight = model.lm_head.weight.detach().double().requires_grad_()
    h = hidden.double().requires_grad_()
    logs = torch.log_softmax(h @ weight.T / temperature, dim=-1)
    lp, entropy = logs[torch.arange(n), targets], -(logs.exp() * logs).sum(-1)
    (lp * weights[0] + entropy * weights[1]).sum().backward()
    expected = (lp.detach(), entropy.detach(), h.grad, weight.grad)
    for chunk in (60 * rows, 2**25):
        for got, want in zip(run(chunk), expected, strict=True):
            # gradients are sums of terms of both signs: small entries are as exact as the largest one
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-5 * max(1.0, want.abs().max().item()))


def test_with_and_without_gradients_are_bitwise_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old and new log-probabilities: on the first update the ratio is exactly 1."""
    model, hidden, targets = llama(), torch.randn(17, 32), torch.randint(0, 60, (17,))
    for chunk in (60 * 4, 2**25):
        monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
        new, entropy = token_logprobs(model, hidden, targets, entropy=True)
        with torch.no_grad():
            old, none = token_logprobs(model, hidden, targets)
        assert none is None and entropy is not None
        assert torch.equal(old, new.detach())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_two_temperatures_from_one_unembedding(temperature: float) -> None:
    model, hidden, targets = llama(), torch.randn(9, 32), torch.randint(0, 60, (9,))
    scaled, entropy, raw = logprobs_and_raw(model, hidden, targets, temperature=temperature)
    wanted, wanted_entropy = token_logprobs(model, hidden, targets, temperature=temperature, entropy=True)
    assert wanted_entropy is not None
    assert torch.equal(scaled, wanted) and torch.equal(entropy, wanted_entropy)
    assert torch.equal(raw, token_logprobs(model, hidden, targets)[0])


@pytest.mark.parametrize("block", [1, 60, 2**18])
def test_written_out_gradients_in_float64(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of log-probabilities alone, of entropies alone and of both, against finite differences."""
    monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", block)
    logits = torch.randn(4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([0, 29, 7, 7])
    for wanted in (lambda a, b: a, lambda a, b: b, lambda a, b: (a, b)):
        assert torch.autograd.gradcheck(
            lambda z, of=wanted: of(*logprobs._LogSoftmax.apply(z, targets, 0.7, True)), (logits,)
        )
    assert torch.autograd.gradcheck(lambda z: logprobs._LogSoftmax.apply(z, targets, 1.0, False)[0], (logits,))


def test_no_positions() -> None:
    model = llama()
    hidden = torch.randn(0, 32, requires_grad=True)
    values, entropy = token_logprobs(model, hidden, torch.zeros(0, dtype=torch.long), entropy=True)
    assert values.shape == (0,) and entropy is not None and entropy.shape == (0,)
    values.sum().backward()  # a rank without samples still takes part
    assert hidden.grad is not None


def test_extreme_logits_stay_finite() -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    values, entropy = token_logprobs(model, torch.randn(5, 32) * 10, torch.arange(5), entropy=True)
    assert entropy is not None and torch.isfinite(values).all() and torch.isfinite(entropy).all()
    assert (values <= 0).all() and (entropy > -1e-2).all()


def test_hidden_states_do_not_see_padding() -> None:
    model = llama()
    ids = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        both = hidden_states(model, ids, mask)[0, :3]
        ids[0, 3:] = 33
        other = hidden_states(model, ids, mask)[0, :3]
        alone = hidden_states(model, ids[:1, :3], mask[:1, :3])[0]
    assert torch.equal(both, other)
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_tokens_that_are_masked_out_add_nothing_to_the_entropy(kind: torch.dtype) -> None:
    masked = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, -torch.inf, -1e4]], dtype=kind, requires_grad=True)
    plain = torch.tensor([[0.0, 1.0, -800.0], [2.0, -800.0, -800.0]], dtype=kind, requires_grad=True)
    targets = torch.tensor([0, 0])
    found, expected = (logprobs._LogSoftmax.apply(z, targets, 1.0, True) for z in (masked, plain))
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert found[1][0].item() == pytest.approx(0.5822, abs=1e-4)
    for out in (found, expected):
        (out[0].sum() + 3 * out[1].sum()).backward()
    assert torch.equal(masked.grad, plain.grad) and bool(masked.grad.isfinite().all())
