"""Seconds of an iteration, by phase. docs/plan.md explains every formula.

What multiplies matrices is bound by the matrix rate, drawing tokens by reading weights and cache, and what is sent
between devices goes on meanwhile: a phase takes the longer of computing and sending.
"""

from __future__ import annotations

from ppomax.plan.devices import Devices, Shares
from ppomax.plan.memory import (
    Settings,
    Work,
    all_frozen_bytes,
    cache_bytes,
    compute_bytes,
    micro_batch,
    trained_parameters,
)
from ppomax.plan.shapes import Shape

HOST_RATE = 20e9
"""bytes a second from the host's memory to a device (PCIe 4 or better)"""
STEP_BYTES = 40
"""read and written a trained parameter in a step: weight, gradient and two moments for AdamW (28), the gradient twice for
its norm and clip (12)"""


def forward_flops(shape: Shape, rows: int, length: int, unembedded: int) -> float:
    """Operations of a forward pass over ``rows`` sequences, ``unembedded`` positions of which reach the vocabulary.

    2 x matrices a token, 2 x V x D an unembedded position, 2 x A x length a token and layer for causal attention (scores
    and sums over half of the positions on average, 2 operations each).
    """
    tokens = rows * length
    attention = 2.0 * shape.layers * shape.attention_width * length
    return tokens * (2.0 * shape.matrices + attention) + 2.0 * shape.embedding * unembedded


def seconds(work: Work, settings: Settings, devices: Devices, shares: Shares) -> dict[str, float]:
    """Seconds of sample, score and update, and their total."""
    phases = {
        "sample": _sample(work, settings, devices, shares),
        "score": _score(work, settings, devices, shares),
        "update": _update(work, settings, devices, shares),
    }
    return {**phases, "total": sum(phases.values())}


def _sent(numbers: int, number_bytes: int, devices: Devices, shares: Shares) -> float:
    """Seconds in which every device gets the others' parts of ``numbers`` (or gives its own): bytes (n - 1) / n / rate."""
    n = devices.count
    return numbers * number_bytes * (n - 1) / n / (devices.slowest_link * shares.link) if n > 1 else 0.0


def decode_seconds(
    work: Work, rows: int, devices: Devices, shares: Shares, *, number_bytes: int, together: int = 1
) -> float:
    """All new tokens of ``rows`` sequences, on ``together`` devices that divide every weight among them.

    A step takes the longest of: reading the weights once and the mean cache (prompt and half of the response) from memory; multiplying;
    and, in this process (``together`` 1), the Python around it, a fixed time a layer.
    """
    shape = work.policy
    weights = (shape.matrices + shape.embedding) * number_bytes
    mean_length = work.prompt + work.response / 2
    cached = cache_bytes(shape, rows, 1, number_bytes) * mean_length
    read = (weights + cached) / (devices.memory_rate * shares.decode * together)
    operations = rows * (
        2.0 * (shape.matrices + shape.embedding) + 4.0 * shape.layers * shape.attention_width * mean_length
    )
    multiply = operations / (devices.flops(work.precision) * shares.score * together)
    return work.response * max(read, multiply, 0.0 if work.server else shape.layers * shares.layer_us * 1e-6)


def _sample(work: Work, settings: Settings, devices: Devices, shares: Shares) -> float:
    """Over the prompts, then token by token. A server is taken to be one node of such devices, given its weights first."""
    shape, w = work.policy, compute_bytes(work.precision)
    flops = devices.flops(work.precision) * shares.score
    if work.server:
        together = devices.per_node
        sent = shape.causal * w / (devices.network_rate * shares.link)
        prompts = forward_flops(shape, work.rollout_batch, work.prompt, work.rollout_batch) / (flops * together)
        drawn = decode_seconds(work, work.rollout_batch, devices, shares, number_bytes=w, together=together)
        return sent + prompts + drawn
    mine = -(-work.rollout_batch // devices.count)
    prompts = forward_flops(shape, mine, work.prompt, mine) / flops
    batches = [min(settings.sampling_batch, mine - done) for done in range(0, mine, settings.sampling_batch)]
    number = 4 if devices.is_cpu else w
    drawn = sum(decode_seconds(work, rows, devices, shares, number_bytes=number) for rows in batches)
    whole = _sent(shape.causal, 4, devices, shares) if settings.shard != "none" else 0.0
    return prompts + drawn + whole


def _score(work: Work, settings: Settings, devices: Devices, shares: Shares) -> float:
    mine = -(-work.rollout_batch // devices.count)
    rows, _ = micro_batch(settings.micro_batch_tokens, work.length, mine)
    batches = -(-mine // rows)
    flops = forward_flops(work.policy, mine, work.length, mine * work.length)  # the prompt's perplexity is a metric
    flops += forward_flops(work.policy, mine, work.length, mine * work.response)  # reference
    flops += sum(forward_flops(s, mine, work.length, 0) for s in (work.critic, *work.rewards))
    compute = flops / (devices.flops(work.precision) * shares.score)
    w = compute_bytes(work.precision)
    sent = 0.0
    if settings.shard != "none":
        sent += batches * _sent(work.policy.causal + work.critic.scalar, w, devices, shares)
    frozen = sum(s.scalar for s in work.rewards) + (work.policy.causal if work.reference else 0)
    if settings.frozen == "shard":
        sent += batches * _sent(frozen, w, devices, shares)
    moved = all_frozen_bytes(work, "offload") / HOST_RATE if settings.frozen == "offload" else 0.0
    return max(compute, sent) + moved


def _update(work: Work, settings: Settings, devices: Devices, shares: Shares) -> float:
    """Forward and backward are 3 forward passes, of adapters 2 (frozen matrices need no gradients of their own), with
    checkpointing one more; then the optimisers' step."""
    w = compute_bytes(work.precision)
    mine = -(-work.minibatch // devices.count)
    rows, _ = micro_batch(settings.micro_batch_tokens, work.length, mine)
    batches = -(-mine // rows)
    passes = (2 if settings.lora_rank else 3) + settings.checkpointing
    flops = passes * (
        forward_flops(work.policy, mine, work.length, mine * work.response)
        + forward_flops(work.critic, mine, work.length, 0)
    )
    compute = flops / (devices.flops(work.precision) * shares.update)
    trained = sum(trained_parameters(work, settings))
    shards = devices.count if settings.shard != "none" else 1
    if settings.shard == "none":
        sent = 2 * _sent(trained, 4, devices, shares)  # once an update, after its last micro-batch
    else:
        gathers = 2 if settings.shard == "zero3" else 1
        held = work.policy.causal + work.critic.scalar
        sent = batches * (gathers * _sent(held, w, devices, shares) + _sent(trained, 4, devices, shares))
    step = STEP_BYTES * trained / shards / devices.memory_rate
    return work.updates * (max(compute, sent) + step)
