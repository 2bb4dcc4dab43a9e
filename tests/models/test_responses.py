"""Log-probabilities, entropies and values of responses against stock forward passes, one sample at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ppomax.models import logprobs as logprobs_module
from ppomax.models.loading import scalar_from_causal
from ppomax.models.responses import ResponseBatch, response_logprobs, response_values, sequence_nll

VOCABULARY = 50
ROWS = [([1, 2, 3], [4, 5, 6, 7]), ([8], [9, 0, 0]), ([10, 11, 12, 13, 14], [15]), ([16, 17], [18, 19, 20, 21, 22, 23])]


def make(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, initializer_range=0.3, pad_token_id=0,
        )).eval()  # fmt: skip
    return GPT2LMHeadModel(GPT2Config(  # absolute positions, tied head, dropout that must be off
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )).eval()  # fmt: skip


def batch(pad: int = 0, gaps: bool = True) -> ResponseBatch:
    lengths = [len(p) + len(r) for p, r in ROWS]
    ids = torch.tensor([p + r + [pad] * (max(lengths) - len(p) - len(r)) for p, r in ROWS])
    mask = torch.tensor([[t < len(r) for t in range(6)] for _, r in ROWS])
    if gaps:
        mask[0, 1] = mask[3, 2:4] = False
    return ResponseBatch(ids, torch.tensor(lengths), torch.tensor([len(p) for p, _ in ROWS]), mask)


def stock(model: Any, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probabilities, entropies (B, 6), mean NLL (B,)) from ``model(ids).logits``, without any padding."""
    logprobs, entropies, nll = torch.zeros(4, 6), torch.zeros(4, 6), torch.zeros(4)
    for b, (prompt, response) in enumerate(ROWS):
        ids = torch.tensor([prompt + response])
        raw = model(ids).logits[0, :-1]
        nll[b] = torch.nn.functional.cross_entropy(raw, ids[0, 1:])
        p = (raw[len(prompt) - 1 :] / temperature).double().softmax(-1)
        logprobs[b, : len(response)] = p.log().gather(-1, torch.tensor(response)[:, None])[:, 0].float()
        entropies[b, : len(response)] = -(p * p.log()).sum(-1).float()
    return logprobs, entropies, nll


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("pad", [0, 5])
@torch.no_grad()
def test_against_the_stock_model(kind: str, temperature: float, pad: int) -> None:
    model, given = make(kind), batch(pad)
    wanted, entropies, nll = stock(model, temperature)
    found, entropy = response_logprobs(model, given, temperature=temperature, entropy=True)
    assert entropy is not None
    assert torch.allclose(found, wanted * given.mask, atol=1e-5)
    assert torch.allclose(entropy, entropies * given.mask, atol=1e-5)
    assert response_logprobs(model, given)[1] is None
    again, entropy_again, mean_nll = sequence_nll(model, given, temperature=temperature)
    assert torch.equal(again, found) and torch.equal(entropy_again, entropy)
    assert torch.allclose(mean_nll, nll, atol=1e-5), "raw logits, prompt included, first token excluded"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_values_are_those_of_the_state_before_the_token(kind: str) -> None:
    critic, given = scalar_from_causal(make(kind), seed=3), batch()
    critic.config.pad_token_id = (
        49  # the stock model pools at the last token that is not a pad, and 0 is a real token here
    )
    found = response_values(critic, given)
    for b, (prompt, response) in enumerate(ROWS):
        for t in range(6):
            if not given.mask[b, t]:
                assert found[b, t] == 0
                continue
            # the stock model scores the last token of what it is given: everything before response token t
            stock_value = critic(torch.tensor([prompt + response[:t]]), attention_mask=None).logits[0, 0]
            assert found[b, t] == pytest.approx(stock_value.item(), abs=1e-5)


def test_gradients_do_not_depend_on_chunks_or_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")

    def gradients(given: ResponseBatch) -> list[Tensor]:
        model.zero_grad()
        logprobs, entropy = response_logprobs(model, given, entropy=True)
        assert entropy is not None
        (logprobs.sum() + 0.3 * entropy.square().sum()).backward()
        return [p.grad.clone() for p in model.parameters()]

    wanted = gradients(batch())
    wide = ResponseBatch(*(torch.nn.functional.pad(x, (0, 3)) if x.ndim == 2 else x for x in vars(batch()).values()))
    monkeypatch.setattr(logprobs_module, "CHUNK_ELEMENTS", 3 * VOCABULARY)
    for given in (batch(), wide, batch(pad=7)):
        for a, b in zip(gradients(given), wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_positions_and_spread_undo_each_other() -> None:
    given = batch()
    row, column = given.positions()
    tokens = given.ids[row, column + 1]
    assert tokens.tolist() == [4, 6, 7, 9, 0, 0, 15, 18, 19, 22, 23]
    spread = given.spread(tokens)
    assert spread[0].tolist() == [4, 0, 6, 7, 0, 0] and spread[3].tolist() == [18, 19, 0, 0, 22, 23]
