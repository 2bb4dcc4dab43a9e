"""Seconds by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ppomax.plan.devices import Shares, parse_devices
from ppomax.plan.memory import Settings, Work
from ppomax.plan.seconds import decode_seconds, forward_flops, seconds
from ppomax.plan.shapes import Shape, shape_of

SEVEN = shape_of("llama-7b")
MATRICES = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
V = 32000 * 4096
SHARES = Shares(update=0.4, score=0.5, decode=0.6, link=0.7, layer_us=400)


def work(shape: Shape = SEVEN, **changes: Any) -> Work:
    made = Work(
        policy=shape, critic=shape, rewards=(shape,), reference=True, prompt=512, response=512, rollout_batch=128,
        minibatch=32, updates=4, precision="bf16",
    )  # fmt: skip
    return replace(made, **changes)


SETTINGS = Settings(micro_batch_tokens=4096, sampling_batch=16, shard="zero3", frozen="shard")


def test_operations_of_a_forward_pass() -> None:
    by_hand = 3 * 1024 * (2 * MATRICES + 2 * 32 * 4096 * 1024) + 2 * V * 100
    assert forward_flops(SEVEN, 3, 1024, 100) == by_hand


def test_decoding_is_bound_by_memory_python_or_arithmetic() -> None:
    eight = parse_devices("8xa100")
    read = ((MATRICES + V) * 2 + 2 * 32 * 16 * 4096 * 2 * 768) / (2039e9 * 0.6)
    assert read == pytest.approx(0.01607, rel=0.001)
    assert decode_seconds(work(), 16, eight, SHARES, number_bytes=2) == pytest.approx(512 * read)
    python = decode_seconds(work(), 1, eight, SHARES.model_copy(update={"layer_us": 1000.0}), number_bytes=2)
    assert python == pytest.approx(512 * 32 * 1e-3)
    slow = replace(eight, bf16_flops=1e12)
    operations = 16 * (2 * (MATRICES + V) + 4 * 32 * 4096 * 768)
    assert decode_seconds(work(), 16, slow, SHARES, number_bytes=2) == pytest.approx(512 * operations / 0.5e12)


def test_score_and_update_on_eight_devices() -> None:
    found = seconds(work(), SETTINGS, parse_devices("8xa100"), SHARES)
    body = 16 * 1024 * (2 * MATRICES + 2 * 32 * 4096 * 1024)  # 16 samples a device, through one model
    score = 4 * body + 2 * V * (16 * 1024 + 16 * 512)
    assert found["score"] == pytest.approx(score / (312e12 * 0.5))
    trained = 2 * SEVEN.causal - V + 4096
    body = 4 * 1024 * (2 * MATRICES + 2 * 32 * 4096 * 1024)  # 4 samples of a minibatch
    flops = 3 * (2 * body + 2 * V * 4 * 512)
    step = 40 * trained / 8 / 2039e9
    assert found["update"] == pytest.approx(4 * (flops / (312e12 * 0.4) + step))
    again = seconds(work(), replace(SETTINGS, checkpointing=True), parse_devices("8xa100"), SHARES)
    assert again["update"] == pytest.approx(4 * (flops * 4 / 3 / (312e12 * 0.4) + step))
    assert found["total"] == pytest.approx(found["sample"] + found["score"] + found["update"])


def test_slow_links_bind() -> None:
    devices = replace(parse_devices("8xa100"), link_rate=1e9)
    trained = 2 * SEVEN.causal - V + 4096
    step = 40 * trained / 8 / 2039e9
    once = 7 / 8 / (1e9 * 0.7)
    # one micro-batch an update: weights gathered twice in bf16, gradients sent once in float32
    found = seconds(work(), SETTINGS, devices, SHARES)
    assert found["update"] == pytest.approx(4 * (trained * (2 * 2 + 4) * once + step))
    found = seconds(work(), replace(SETTINGS, shard="zero2"), devices, SHARES)
    assert found["update"] == pytest.approx(4 * (trained * (2 + 4) * once + step))
    found = seconds(work(), replace(SETTINGS, shard="none"), devices, SHARES)
    assert found["update"] == pytest.approx(4 * (trained * 2 * 4 * once + step * 8))


def test_nodes_share_their_networks() -> None:
    assert parse_devices("8xa100").slowest_link == 300e9
    assert parse_devices("8x8xa100").slowest_link == 200e9  # 8 devices at 25 GB/s each
    assert parse_devices("1xa100").slowest_link == float("inf")


def test_offloaded_models_travel_once() -> None:
    one = parse_devices("1x80GB")
    still = seconds(work(), replace(SETTINGS, shard="none", frozen="replicate"), one, SHARES)
    moved = seconds(work(), replace(SETTINGS, shard="none", frozen="offload"), one, SHARES)
    halved = 4 * (2 * SEVEN.causal - V + 4096) - 2 * (2 * MATRICES + V)  # bf16 but for embeddings, norms and the unit
    assert moved["score"] - still["score"] == pytest.approx(halved / 20e9)


def test_a_server_reads_its_weights_on_a_whole_node() -> None:
    eight = parse_devices("8xa100")
    found = seconds(work(server=True), SETTINGS, eight, SHARES)["sample"]
    sent = SEVEN.causal * 2 / (25e9 * 0.7)
    prompts = 128 * (512 * (2 * MATRICES + 2 * 32 * 4096 * 512) + 2 * V) / (312e12 * 0.5 * 8)
    read = ((MATRICES + V) * 2 + 2 * 32 * 128 * 4096 * 2 * 768) / (2039e9 * 0.6 * 8)
    assert found == pytest.approx(sent + prompts + 512 * read)


def test_adapters_need_no_gradients_of_frozen_matrices() -> None:
    one = parse_devices("1xa100")
    whole = seconds(work(), replace(SETTINGS, shard="none"), one, SHARES)["update"]
    adapted, again = (
        seconds(
            work(), replace(SETTINGS, shard="none", lora_rank=1, lora_targets=("q_proj",), checkpointing=c), one, SHARES
        )
        for c in (False, True)
    )
    assert adapted["update"] == pytest.approx(whole * 2 / 3, rel=0.02)  # but for the optimisers' step
    assert again["update"] == pytest.approx(whole, rel=0.02)
