"""Norms that hand on bf16: the same numbers as the models' own, and gradients by hand and by PyTorch in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ppomax.models.logprobs import hidden_states
from ppomax.models.norms import _is_plain, _Quick, _RMSNorm, quicken_norms
from ppomax.models.precision import precision

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def quick(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, _Quick)]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    for parameter in model.parameters():  # weights of norms begin as ones, which would hide a missing factor
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def test_one_row_by_hand() -> None:
    """x = (3, 4): mean square 12.5; with eps 3.5 the root is 4, so y = w x / 4."""
    x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    weight = torch.tensor([2.0, 1.0], requires_grad=True)
    y = _RMSNorm.apply(x, weight, 3.5)
    assert y.dtype == torch.bfloat16 and y.tolist() == [[1.5, 1.0]]
    # g = (1, 0): dw = g x / 4 = (.75, 0); dx_j = g_j w_j / 4 - x_j (sum g w x) / (4^3 * 2), the sum being 6
    y.backward(torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16))
    assert x.grad is not None and weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([0.75, 0.0]))
    torch.testing.assert_close(x.grad, torch.tensor([[0.5 - 3 * 6 / 128, -4 * 6 / 128]]))


def test_gradients_are_those_of_the_formula_in_float64() -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(7, 24, requires_grad=True), torch.randn(24, requires_grad=True)
    grad = torch.randn(7, 24).bfloat16()
    y = _RMSNorm.apply(x, weight, 1e-5)
    got = torch.autograd.grad(y, (x, weight), grad)
    x64, weight64 = (t.detach().double().requires_grad_() for t in (x, weight))
    exact = weight64 * x64 * (x64.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    wanted = torch.autograd.grad(exact, (x64, weight64), grad.double())
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=0)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


def test_a_frozen_weight_gets_no_gradient() -> None:
    x, weight = torch.randn(3, 4, requires_grad=True), torch.ones(4)
    _RMSNorm.apply(x, weight, 1e-6).sum().backward()
    assert x.grad is not None and weight.grad is None


def test_a_weight_that_was_gathered_in_bf16() -> None:
    """As ranks do that divide it: the same as a float32 weight with these values, with a gradient in its own type."""
    torch.manual_seed(2)
    model = llama()
    quicken_norms(model)
    norm = model.model.layers[0].input_layernorm
    assert isinstance(norm, _Quick)
    x, found = torch.randn(5, 32), []
    rounded = norm.weight.detach().bfloat16()
    for weight in (rounded.float(), rounded):
        norm.weight = nn.Parameter(weight.clone())
        given = x.clone().requires_grad_()
        with precision(CPU, "bf16"):
            y = norm(given)
        y.float().square().sum().backward()
        assert norm.weight.grad is not None and norm.weight.grad.dtype == weight.dtype
        found.append((y, given.grad, norm.weight.grad.bfloat16()))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("train", [False, True])
def test_linear_maps_read_the_same_numbers_as_before(train: bool) -> None:
    """The float32 norm, rounded to bf16 by autocast, and ours: at most a bf16 step apart, where rounding was close."""
    model = llama()
    ours = copy.deepcopy(model)
    quicken_norms(ours)
    ids = torch.randint(1, 50, (3, 9))
    read: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs: read.__setitem__(name, inputs[0].bfloat16())

    model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(keep("theirs"))
    ours.model.layers[0].self_attn.q_proj.register_forward_pre_hook(keep("ours"))
    with torch.set_grad_enabled(train), precision(CPU, "bf16"):
        hidden_states(model, ids, None)
        hidden_states(ours, ids, None)
    assert read["ours"].shape == (3, 9, 32)
    torch.testing.assert_close(read["ours"], read["theirs"], rtol=2**-8, atol=0)
    assert (read["ours"] == read["theirs"]).float().mean() > 0.99


def test_scoring_and_training_give_the_same_bits() -> None:
    """The ratio of the first update is 1: with and without gradients the numbers are one and the same."""
    model = llama()
    quicken_norms(model)
    ids = torch.randint(1, 50, (3, 9))
    with precision(CPU, "bf16"):
        trained = hidden_states(model, ids, None)
        with torch.no_grad():
            scored = hidden_states(model, ids, None)
    assert torch.equal(trained, scored)


def test_float32_is_left_alone() -> None:
    model = llama()
    ours = copy.deepcopy(model)
    quicken_norms(ours)
    ids = torch.randint(1, 50, (2, 7))
    assert torch.equal(hidden_states(model, ids, None), hidden_states(ours, ids, None))


def test_norms_before_linear_maps_are_changed_and_no_others() -> None:
    """Not the last one, which the critic's unit reads in float32, nor those of queries and keys, nor post-norms."""
    model = llama()
    quicken_norms(model)
    quicken_norms(model)  # a second time changes nothing
    assert quick(model) == [
        f"model.layers.{i}.{n}" for i in (0, 1) for n in ("input_layernorm", "post_attention_layernorm")
    ]
    assert quick(copy.deepcopy(model)) == quick(model)
    assert isinstance(model.model.layers[0].input_layernorm, LlamaRMSNorm)
    qwen = Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    quicken_norms(qwen)
    assert [n.rsplit(".", 1)[1] for n in quick(qwen)] == ["input_layernorm", "post_attention_layernorm"] * 2
    gemma = Gemma2ForCausalLM(Gemma2Config(**SHAPE))
    quicken_norms(gemma)
    assert quick(gemma) == []


def test_what_only_looks_like_the_norm_is_refused() -> None:
    class Shifted(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) + 0.01

    assert _is_plain(LlamaRMSNorm(8)) and not _is_plain(Shifted(8))
    assert not _is_plain(nn.LayerNorm(8)) and not _is_plain(LlamaRMSNorm(8).bfloat16())
