"""Linear maps in bf16 arithmetic without bf16 instructions: the numbers that autocast gives, but for the order of sums."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ppomax.models import linears
from ppomax.models.loading import settle
from ppomax.models.logprobs import hidden_states
from ppomax.models.precision import halve_linears, precision

CPU = torch.device("cpu")


def both(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    theirs = nn.Linear(40, 24, bias=bias)
    ours = copy.deepcopy(theirs)
    ours.__class__ = linears._Linear  # whatever this machine has
    return ours, theirs


def outcome(module: nn.Linear, x: Tensor, grad: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with precision(CPU, "bf16"):
        y = module(x)
    wanted = [x, module.weight] + ([module.bias] if module.bias is not None else [])
    return [y, *torch.autograd.grad(y, wanted, grad)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_numbers_and_types_of_autocast(bias: bool, dtype: torch.dtype) -> None:
    ours, theirs = both(bias)
    x, grad = torch.randn(3, 50, 40).to(dtype), torch.randn(3, 50, 24).bfloat16()
    for got, wanted in zip(outcome(ours, x, grad), outcome(theirs, x, grad), strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        # A sum may fall on the other side of a rounding boundary: one step of bf16, and seldom.
        torch.testing.assert_close(got.float(), wanted.float(), rtol=2**-7, atol=2**-8)
        assert (got != wanted).double().mean() < 0.05


def test_by_hand() -> None:
    """1 + 2^-9 is 1 in bf16, 257 lies between 256 and 258: x w = 1 * 257 -> 256 (to even), and 3 * 86 = 258 is kept."""
    ours, _ = both(bias=False)
    ours.weight = nn.Parameter(torch.tensor([[1 + 2**-9, 0.0], [0.0, 3.0]]))
    with precision(CPU, "bf16"):
        assert ours(torch.tensor([[255.0, 86.0], [257.0, 0.0]])).tolist() == [[255.0, 258.0], [256.0, 0.0]]
        assert ours(torch.tensor([255.0, 86.0])).tolist() == [255.0, 258.0], "one vector"
    assert ours(torch.tensor([[257.0, 0.0]]))[0, 0] == 257 * (1 + 2**-9), "without autocast it is a plain linear map"


def test_nothing_is_kept_of_a_pass_without_gradients_and_frozen_weights_get_none() -> None:
    ours, _ = both()
    x = torch.randn(5, 40)
    with precision(CPU, "bf16"):
        with torch.no_grad():
            quiet = ours(x)
        loud = ours(x)
        ours.requires_grad_(False)
        frozen = ours(x)
        through = ours(x.clone().requires_grad_())
    assert not quiet.requires_grad and loud.requires_grad and not frozen.requires_grad and through.requires_grad
    assert quiet.tolist() == loud.tolist() == frozen.tolist() == through.tolist()
    through.sum().backward()
    assert ours.weight.grad is None


def test_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    shape = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    plain = LlamaForCausalLM(shape)
    ids = torch.randint(1, 50, (4, 9))
    found = []
    for instructions in (True, False):
        monkeypatch.setattr(linears, "has_bf16", lambda instructions=instructions: instructions)
        model = settle(copy.deepcopy(plain), "cpu")
        names = {n for n, m in model.named_modules() if isinstance(m, linears._Linear)}
        assert ("model.layers.0.mlp.up_proj" in names and "lm_head" in names) is not instructions
        with precision(CPU, "bf16"):
            states = hidden_states(model, ids, None)
            found.append((states, model.lm_head(states)))
            frozen = copy.deepcopy(model)
            halve_linears(frozen)
            assert torch.equal(hidden_states(frozen, ids, None), states), "weights that are bf16 already"
        assert list(model.state_dict()) == list(plain.state_dict())
    (states, logits), (rounded_states, rounded_logits) = found
    exact = plain.double()(ids).logits
    torch.testing.assert_close(rounded_states, states, rtol=0.02, atol=0.02)
    assert rounded_logits.dtype == logits.dtype == torch.bfloat16
    error, native = ((x.double() - exact).square().mean().sqrt() for x in (rounded_logits, logits))
    assert error < 1.5 * native, "no further from the truth than instructions would be"
