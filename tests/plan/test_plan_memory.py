"""Bytes by hand, and against what autograd and the allocator really keep of a small model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ppomax.config import LoraConfig, PPOConfig
from ppomax.errors import UserError
from ppomax.models.loading import scalar_from_causal
from ppomax.models.logprobs import hidden_states, token_logprobs
from ppomax.models.norms import quicken_norms
from ppomax.models.precision import halve_linears, precision
from ppomax.plan.devices import parse_devices
from ppomax.plan.memory import (
    PARTS,
    Settings,
    Work,
    activations,
    at_work,
    backward_work,
    cache_bytes,
    ends,
    frozen_bytes,
    gathered,
    logits_block,
    lora_parameters,
    memory,
    micro_batch,
    saved_per_token,
    trained_parameters,
)
from ppomax.plan.shapes import Shape, count, shape_of
from ppomax.plan.work import settings_of
from ppomax.train.sharding import halve_layers

SEVEN = shape_of("llama-7b")
P, V = 6_738_415_616, 32000 * 4096
S = P - V + 4096  # critic, reward model
EIGHT = parse_devices("8x80GB")


def work(shape: Shape = SEVEN, **changes: Any) -> Work:
    made = Work(
        policy=shape, critic=shape, rewards=(shape,), reference=True, prompt=512, response=512, rollout_batch=128,
        minibatch=32, updates=4, precision="bf16",
    )  # fmt: skip
    return replace(made, **changes)


SETTINGS = Settings(micro_batch_tokens=4096, sampling_batch=16, shard="zero3", frozen="shard", checkpointing=True)


# ------------------------------------------------------------------------------------------------- by hand


def test_kept_by_a_token_of_llama_7b() -> None:
    d, f = 4096, 11008
    assert saved_per_token(SEVEN, "float32", True) == 4 * (6 * d + 4 * d + 4 * f) + 4 * 34 == 340_104
    assert saved_per_token(SEVEN, "bf16", False) == 16 * d + 2 * (5 * d + 4 * d + 4 * f) + 4 * 34 == 227_464
    assert saved_per_token(SEVEN, "bf16", True) == 8 * d + 16 * d + 2 * (3 * d + 4 * f) + 4 * 34 == 211_080


def test_activations_of_a_micro_batch() -> None:
    assert activations(SEVEN, 1000, "bf16", False, False) == 1000 * (32 * 227_464 + 8 * 4096)
    assert activations(SEVEN, 1000, "bf16", False, True) == 1000 * (32 * 4 * 4096 + 227_464 + 8 * 4096)
    assert at_work(SEVEN, 10, "bf16") == 10 * (3 * 11008 * 2 + 4096 * 10)
    assert backward_work(SEVEN, 10, "float32") == 10 * (11008 + 8192) * 4


def test_micro_batches_and_logits() -> None:
    assert micro_batch(4096, 1024, 32) == (4, 4096)
    assert micro_batch(100, 1024, 32) == (1, 1024)
    assert micro_batch(10**9, 1024, 3) == (3, 3072)
    assert logits_block(SEVEN, 100) == 100 * 32000 * 4
    assert logits_block(SEVEN, 10**6) == 1048 * 32000 * 4  # 2^25 // 32000 positions at once


def test_cache_by_hand() -> None:
    assert cache_bytes(SEVEN, 16, 1024, 2) == 2 * 32 * 16 * 1024 * 4096 * 2 == 8 * 2**30
    assert cache_bytes(shape_of("llama-70b"), 1, 1, 2) == 2 * 80 * 1024 * 2


def test_llama_7b_on_eight_devices_zero3() -> None:
    found = memory(work(), SETTINGS, EIGHT)
    update = found.phases["update"]
    assert set(update) == set(PARTS)
    assert update["weights"] == 4 * -(-(P + S) // 8)
    assert update["optimiser"] == 8 * -(-(P + S) // 8)
    assert update["gradients"] == 4 * -(-P // 8)  # the critic's are gone when the policy's come
    both = memory(work(joint=True), SETTINGS, EIGHT)
    assert both.phases["update"]["gradients"] == both.phases["step"]["gradients"] == update["weights"]
    layer = 202_375_168 + 8192
    assert update["frozen models"] == -(-(2 * 2 * 32 * layer + 4 * (P + S - 2 * 32 * layer)) // 8)  # layers in bf16
    outside = 2 * V + 4096
    assert update["buffers"] == 3 * layer * 2 + 4 * outside + 2 * V + layer * 10 + 8 * outside
    assert update["activations"] == activations(SEVEN, 4096, "bf16", False, True) + backward_work(SEVEN, 4096, "bf16")
    assert update["logits"] == 3 * 1048 * 32000 * 4
    sample = found.phases["sample"]
    assert sample["cache"] == 8 * 2**30
    assert sample["buffers"] == 32 * layer * 2 + 4 * outside + 2 * V
    assert sample["gradients"] == 0
    assert found.peak == max(map(found.total, found.phases))
    assert found.host == 0


def test_ways_to_divide() -> None:
    whole = memory(work(), replace(SETTINGS, shard="none", frozen="replicate"), EIGHT)
    two = memory(work(), replace(SETTINGS, shard="zero2"), EIGHT)
    three = memory(work(), SETTINGS, EIGHT)
    away = memory(work(), replace(SETTINGS, frozen="offload"), EIGHT)
    assert whole.phases["update"]["weights"] == 4 * (P + S)
    assert whole.phases["update"]["buffers"] == 2 * (32 * 202_375_168 + V)
    assert whole.phases["step"]["buffers"] == 4 * P  # ranks sum all gradients of the policy in one piece
    layer = 202_375_168 + 8192
    assert two.phases["update"]["buffers"] - three.phases["update"]["buffers"] == (32 - 3) * layer * 2
    matrices = 32 * 202_375_168
    reference = 4 * P - 2 * (matrices + V)  # matrices and unembedding in bf16
    reward = 4 * S - 2 * matrices
    assert away.host == whole.phases["update"]["frozen models"] == reference + reward
    assert away.phases["update"]["frozen models"] == 0
    assert (
        away.phases["score"]["buffers"] - gathered(SEVEN, SETTINGS, "bf16", scalar=False, backward=False) == reference
    )
    exact = memory(work(precision="float32"), replace(SETTINGS, frozen="offload"), EIGHT)
    assert exact.host == 4 * (P + S)
    alone = memory(work(), replace(SETTINGS, shard="none"), parse_devices("1x80GB"))
    assert alone.phases["step"]["buffers"] == 0  # AdamW is fused
    assert SETTINGS.on(8) == SETTINGS
    assert SETTINGS.on(1) == replace(SETTINGS, shard="none", frozen="replicate")


def test_on_a_cpu_the_heap_has_holes() -> None:
    found = memory(work(), replace(SETTINGS, shard="none", frozen="replicate"), parse_devices("cpu")).phases["update"]
    tensors = sum(size for part, size in found.items() if part != "heap")
    assert found["heap"] == tensors // 4 + 46 * 2**20
    assert memory(work(), SETTINGS, EIGHT).phases["update"]["heap"] == 0


def test_a_server_draws_the_responses() -> None:
    found = memory(work(server=True), SETTINGS, EIGHT).phases["sample"]
    assert (found["cache"], found["activations"], found["buffers"]) == (0, 0, 4 * V)


def test_adapters() -> None:
    rank = 16
    by_hand = 32 * rank * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert lora_parameters(SEVEN, rank) == by_hand == 39_976_960
    adapted = replace(SETTINGS, lora_rank=rank)
    assert trained_parameters(work(), adapted) == (by_hand, by_hand + 4096)
    found = memory(work(reference=False), adapted, EIGHT).phases["update"]
    assert found["weights"] == 4 * -(-(P + S + 2 * by_hand + 4096) // 8)
    assert found["optimiser"] == 8 * -(-(2 * by_hand + 4096) // 8)
    assert found["frozen models"] == -(-(4 * S - 2 * 32 * (202_375_168 + 8192)) // 8)


@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj", "v_proj"], ["self_attn.o_proj", "down_proj"], r".*(gate|up)_proj"]
)
def test_adapters_on_some_matrices_are_counted_as_peft_makes_them(targets: str | list[str]) -> None:
    peft = pytest.importorskip("peft")
    config = PPOConfig.model_validate(
        {"model": "new-1m", "prompts": "p", "output_dir": "o", "lora": {"rank": 4, "target_modules": targets}}
    )
    shape, settings = shape_of("new-1m"), settings_of(config)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(
            num_hidden_layers=shape.layers, hidden_size=shape.width, intermediate_size=shape.ffn, vocab_size=shape.vocabulary,
            num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, tie_word_embeddings=True,
        ))  # fmt: skip
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    made = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert lora_parameters(shape, settings.lora_rank, settings.lora_targets) == made
    some = settings_of(config.model_copy(update={"lora": LoraConfig(target_modules=r".*layers\.1\d\..*q_proj")}))
    assert some.lora_targets == ("q_proj",), "counted on all layers"
    for wrong, told in ((["qkv"], "names none of q_proj"), ("(q", "is no regular expression")):
        with pytest.raises(UserError, match=told):
            settings_of(config.model_copy(update={"lora": LoraConfig(target_modules=wrong)}))


def test_one_base_under_all_adapters() -> None:
    rank = 16
    one = replace(SETTINGS, lora_rank=rank, shared_base=True, shard="none", frozen="replicate")
    found = memory(work(reference=False), one, parse_devices("1x24GB"))
    adapters = lora_parameters(SEVEN, rank)
    matrices = 32 * 202_375_168
    base = 2 * matrices + 4 * (P - matrices)
    assert found.phases["update"]["weights"] == base + 4 * (3 * adapters + 2 * 4096)
    assert found.phases["update"]["frozen models"] == 0
    assert found.phases["sample"]["buffers"] == found.phases["update"]["buffers"] == 2 * V
    own = memory(work(reference=False), replace(one, shared_base=False), parse_devices("1x24GB"))
    assert own.phases["sample"]["buffers"] == 2 * V
    assert own.phases["update"]["buffers"] == 2 * (matrices + V)


def test_ends_of_a_tied_model() -> None:
    tied = shape_of("qwen2.5-0.5b")
    assert ends(tied, scalar=False) == 151936 * 896 + 896
    assert ends(tied, scalar=True) == 151936 * 896 + 896 + 896


# ------------------------------------------------------------------------- against what is really kept


def small(family: str, **changes: Any) -> tuple[Any, Shape]:
    config = AutoConfig.for_model(
        family, vocab_size=96, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=8, head_dim=8, max_position_embeddings=128, **{"tie_word_embeddings": True, **changes},
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval(), count(family, config)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["float32", "bf16"])
def test_saved_bytes_are_those_of_autograd(family: str, kind: str) -> None:
    model, shape = small(family)
    quicken_norms(model)
    tokens = 4 * 32
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        alive.append(t)  # or its memory could be used again and counted once
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    device = torch.device("cpu")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), precision(device, kind):
        hidden_states(model, torch.randint(0, 96, (4, 32)), None)
    copies = 2 * shape.matrices if kind == "bf16" else 0
    predicted = activations(shape, tokens, kind, True, False)
    assert sum(kept.values()) - copies == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["float32", "bf16"])
def test_frozen_bytes_are_those_of_the_models(kind: str, tied: bool) -> None:
    """Of a policy and of a reward model on its backbone, halved as PPO does it."""
    for scalar in (False, True):
        for frozen, halve in (("replicate", halve_linears), ("shard", halve_layers)):
            model, shape = small("llama", tie_word_embeddings=tied)
            if scalar:
                model = scalar_from_causal(model, 0)
            if kind == "bf16":
                halve(model)
            held = sum(p.numel() * p.element_size() for p in model.parameters())
            assert frozen_bytes(shape, kind, frozen, scalar=scalar) == held


def test_logits_at_their_peak_are_three_blocks() -> None:
    """By the profiler's record of every allocation; the vocabulary is so wide that nothing else counts."""
    from torch.profiler import ProfilerActivity, profile

    config = AutoConfig.for_model(
        "llama", vocab_size=20_000, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).float().eval()
    hidden, targets = torch.randn(60, 8, requires_grad=True), torch.randint(0, 20_000, (60,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        logprobs, _ = token_logprobs(model, hidden, targets, entropy=True)
        logprobs.sum().backward()
    now = peak = 0
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    block = logits_block(count("x", config), 60)
    assert block == 60 * 20_000 * 4
    assert peak == pytest.approx(3 * block, rel=0.15)
