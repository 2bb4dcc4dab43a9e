"""Bytes on each device, by part and phase of an iteration. docs/plan.md explains every formula.

The largest phase is what a device must hold. Sequences are taken at their longest, so that what fits here fits always.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from ppomax.models.logprobs import CHUNK_ELEMENTS
from ppomax.plan.devices import Devices
from ppomax.plan.shapes import Shape

PARTS = {
    "weights": "of policy and critic, float32",
    "frozen models": "reference and reward models",
    "optimiser": "AdamW's two moments, float32",
    "gradients": "of the policy, then of the critic, float32",
    "activations": "kept for the backward pass, and at work in a layer",
    "logits": "of one block of positions, and what is made of it",
    "cache": "keys and values of the sequences that are being drawn",
    "buffers": "weights made whole or bf16 for the time of a pass; gradients on their way",
    "heap": "on a CPU: freed memory that the C library keeps and cannot use again",
}
LOGITS_COPIES = 3
"""logits of a block, their log-softmax, its exponential; as many in the backward pass"""
HEAP_SHARE, HEAP_BYTES = 0.25, 46 * 2**20
"""measured on a CPU with glibc: holes in its heap, as a share of all tensors, and beside that"""
SAMPLING_COPIES = 4
"""logits of the next tokens, with penalty and temperature, their softmax, its sorted or summed form"""


@dataclass(frozen=True)
class Work:
    """What an iteration has to do; none of it is changed to make it fit."""

    policy: Shape
    critic: Shape
    rewards: tuple[Shape, ...]
    """reward models, one for each member of an ensemble"""
    reference: bool
    """a reference model of its own is held"""
    prompt: int
    """tokens of the longest prompt"""
    response: int
    """tokens of the longest response"""
    rollout_batch: int
    """samples an iteration, over all ranks"""
    minibatch: int
    """samples an update, over all ranks"""
    updates: int
    """an iteration"""
    precision: str
    """`float32` or `bf16`"""
    penalty: bool = False
    """a repetition penalty is on: which tokens were seen is kept"""
    joint: bool = False
    """gradients of policy and critic are clipped by one norm (`grad_clip.joint`), so both are held at once"""
    server: bool = False
    """a vLLM server on devices of its own draws the responses"""

    @property
    def length(self) -> int:
        """Tokens of the longest sample."""
        return self.prompt + self.response


@dataclass(frozen=True)
class Settings:
    """What changes memory and speed alone (adapters besides, which change what is trained)."""

    micro_batch_tokens: int
    sampling_batch: int
    shard: str = "none"
    """of policy and critic: `none`, `zero2`, `zero3`"""
    frozen: str = "replicate"
    """frozen models: `replicate`, `shard`, or `offload` (in the host's memory but for their passes)"""
    checkpointing: bool = False
    """activations of a layer are made again in the backward pass"""
    lora_rank: int = 0
    """0: everything is trained"""
    lora_targets: tuple[str, ...] = ()
    """matrices of a layer that get an adapter (`q_proj`, ...); none named: all seven"""
    shared_base: bool = False
    """policy, critic and reward models are adapters of one base, whose bare self is the reference"""

    def on(self, ranks: int) -> Settings:
        """As they act on so many ranks: one alone has nothing to divide."""
        if ranks > 1:
            return self
        return replace(self, shard="none", frozen="replicate" if self.frozen == "shard" else self.frozen)

    def options(self) -> dict[str, Any]:
        """As a configuration names them."""
        named: dict[str, Any] = {
            "micro_batch_tokens": self.micro_batch_tokens,
            "sampling.batch_size": self.sampling_batch,
            "parallel.shard": self.shard,
            "parallel.frozen": self.frozen,
            "parallel.activation_checkpointing": self.checkpointing,
        }
        if self.lora_rank:
            named |= {"lora.rank": self.lora_rank, "lora.shared_base": self.shared_base}
        return named


def compute_bytes(precision: str) -> int:
    return 2 if precision == "bf16" else 4


def saved_per_token(shape: Shape, precision: str, on_cpu: bool) -> int:
    """Bytes that one token leaves in one layer for the backward pass.

    With D the width, A = heads x head width, K = key-value heads x head width, F the feed-forward width::

        float32       4 (6 D + 2 A + 2 K + 4 F + heads + 2)
        bf16          16 D + 2 (5 D + 2 A + 2 K + 4 F) + 4 (heads + 2)      attention in bf16 (a GPU)
        bf16 on CPU   8 D + 4 (2 A + 2 K) + 2 (2 D + A + 4 F) + 4 (heads + 2)    attention in float32, quick norms

    Each of two norms keeps its input and its normalised form (float32 in both) and, in float32, its output; queries, keys,
    values and the attention's output A + K + K + A; gate, its activation, the other half and their product 4 F. In bf16
    each of the five matrices that read a norm's output keeps a copy of its own, as autocast makes it; on a CPU the norms hand
    on bf16 themselves (`ppomax.models.norms`), which is kept once, beside their input. heads + 2: the
    attention's and the norms' denominators. Head-by-head norms add the input and normalised form of queries and keys.
    """
    d, a, k, f = shape.width, shape.attention_width, shape.kv_width, shape.ffn
    small = 4 * (shape.heads + 2)
    normed = a + k if shape.head_norms else 0
    if precision == "float32":
        return 4 * (6 * d + 2 * a + 2 * k + 4 * f + 2 * normed) + small
    if on_cpu:
        return 8 * d + 4 * (2 * a + 2 * k) + 2 * (2 * d + a + 4 * f) + 6 * normed + small
    return 16 * d + 2 * (2 * a + 2 * k) + 2 * (5 * d + 4 * f) + 6 * normed + small


def at_work(shape: Shape, tokens: int, precision: str) -> int:
    """Bytes that one layer needs for a moment over ``tokens`` tokens: T (3 F w + D (8 + w)), w bytes a number.

    Activation, other half and product of the feed-forward part, the residual stream twice and its normalised form.
    """
    w = compute_bytes(precision)
    return tokens * (3 * shape.ffn * w + shape.width * (8 + w))


def backward_work(shape: Shape, tokens: int, precision: str) -> int:
    """Gradients inside one layer, beyond what it frees: T (F + 2 D) w."""
    return tokens * (shape.ffn + 2 * shape.width) * compute_bytes(precision)


def micro_batch(tokens: int, length: int, rows: int) -> tuple[int, int]:
    """(rows, tokens) of the largest micro-batch: as many rows of ``length`` as fit ``tokens``, at least 1, at most ``rows``."""
    count = max(1, min(tokens // length, rows))
    return count, count * length


def logits_block(shape: Shape, positions: int) -> int:
    """Bytes of float32 logits held at once: min(positions x V, 2^25) x 4."""
    rows = max(1, CHUNK_ELEMENTS // shape.vocabulary)
    return min(positions, rows) * shape.vocabulary * 4


def cache_bytes(shape: Shape, rows: int, length: int, number_bytes: int) -> int:
    """Keys and values: 2 x layers x rows x length x K x bytes of a number."""
    return 2 * shape.layers * rows * length * shape.kv_width * number_bytes


def activations(shape: Shape, tokens: int, precision: str, on_cpu: bool, checkpointing: bool) -> int:
    """Bytes of a forward pass kept until its backward pass.

    All layers, and the last norm's input and normalised form (8 D a token). With checkpointing each layer's input (4 D a
    token) and one layer's own at a time.
    """
    per_layer = saved_per_token(shape, precision, on_cpu)
    kept = shape.layers * 4 * shape.width + per_layer if checkpointing else shape.layers * per_layer
    return tokens * (kept + 8 * shape.width)


@dataclass(frozen=True)
class Memory:
    """Bytes by phase and part, on one device."""

    phases: dict[str, dict[str, int]]
    host: int
    """bytes that wait in the host's memory, for one device"""

    def total(self, phase: str) -> int:
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        return self.total(self.peak_phase)


def memory(work: Work, settings: Settings, devices: Devices) -> Memory:
    """Bytes of one device in every phase."""
    resident, host = _resident(work, settings, devices.count)
    phases = {
        "sample": _sample(work, settings, devices),
        "score": _score(work, settings, devices),
        "update": _update(work, settings, devices),
        "step": _step(work, settings, devices),
    }
    whole = {phase: {**dict.fromkeys(PARTS, 0), **resident, **own} for phase, own in phases.items()}
    if devices.is_cpu:
        for parts in whole.values():
            parts["heap"] = int(HEAP_SHARE * sum(parts.values())) + HEAP_BYTES
    return Memory(whole, host)


def lora_parameters(shape: Shape, rank: int, targets: Collection[str] = ()) -> int:
    """Adapters of ``rank`` on the matrices of every layer that are among ``targets`` (none named: on all seven): rank x
    (rows + columns) each."""
    d, a, k, f = shape.width, shape.attention_width, shape.kv_width, shape.ffn
    sides = {
        "q_proj": d + a, "k_proj": d + k, "v_proj": d + k, "o_proj": a + d, "gate_proj": d + f, "up_proj": d + f, "down_proj": f + d,
    }  # fmt: skip
    return shape.layers * rank * sum(size for name, size in sides.items() if not targets or name in targets)


def trained_parameters(work: Work, settings: Settings) -> tuple[int, int]:
    """Of policy and critic."""
    if settings.lora_rank:
        policy, critic = (
            lora_parameters(s, settings.lora_rank, settings.lora_targets) for s in (work.policy, work.critic)
        )
        return policy, critic + work.critic.width
    return work.policy.causal, work.critic.scalar


def _divided(numbers: int, ranks: int) -> int:
    return -(-numbers // ranks)


def _copies(shape: Shape, precision: str, settings: Settings, *, backward: bool) -> int:
    """bf16 copies of matrices and unembedding, 2 bytes each.

    Autocast keeps them for the time of a pass where the weights are trained. Under adapters it keeps none, but the
    backward pass does, unless the base is bf16 as it lies (`lora.shared_base`): then of the unembedding alone.
    """
    if precision != "bf16":
        return 0
    if not settings.lora_rank or (backward and not settings.shared_base):
        return 2 * (shape.matrices + shape.embedding)
    return 2 * shape.embedding


def ends(shape: Shape, *, scalar: bool) -> int:
    """Parameters outside the layers, which are gathered together: embeddings, head, last norm."""
    return (shape.scalar if scalar else shape.causal) - shape.layers * shape.layer_parameters


def gathered(shape: Shape, settings: Settings, precision: str, *, scalar: bool, backward: bool) -> int:
    """Bytes of the weights that are whole for the time of a pass, and of gradients on their way to their ranks.

    ``none``: `_copies`. ``zero2``: all layers at the arithmetic's w bytes, ``zero3``: three of them (at work, copied, on its
    way); the ends in float32, and the unembedding once more in bf16. Backward: a layer's gradients in w bytes and
    twice in float32 (filled and sent), those of the ends twice in float32.
    """
    if settings.shard == "none":
        return _copies(shape, precision, settings, backward=backward)
    w = compute_bytes(precision)
    layer, outside = shape.layer_parameters, ends(shape, scalar=scalar)
    whole = (shape.layers if settings.shard == "zero2" else min(3, shape.layers)) * layer * w + 4 * outside
    if precision == "bf16" and not scalar:
        whole += 2 * shape.embedding
    return whole + (layer * (w + 8) + 8 * outside if backward else 0)


def _frozen(work: Work) -> list[tuple[Shape, bool]]:
    """Frozen models, and whether each is a reward model."""
    return [*((shape, True) for shape in work.rewards), *([(work.policy, False)] if work.reference else [])]


def frozen_bytes(shape: Shape, precision: str, frozen: str, *, scalar: bool) -> int:
    """Bytes of a frozen model where it lies, over all ranks.

    4 a parameter in float32. In bf16 what is multiplied takes 2: the layers' matrices, and an unembedding that is not the
    embedding as well; where the model is divided, its layers whole.
    """
    size = shape.scalar if scalar else shape.causal
    if precision != "bf16":
        return 4 * size
    if frozen == "shard":
        return 4 * size - 2 * shape.layers * shape.layer_parameters
    return 4 * size - 2 * (shape.matrices + (0 if scalar or shape.tied else shape.embedding))


def all_frozen_bytes(work: Work, frozen: str) -> int:
    """Of reference and reward models together, over all ranks."""
    return sum(frozen_bytes(shape, work.precision, frozen, scalar=scalar) for shape, scalar in _frozen(work))


def _resident(work: Work, settings: Settings, ranks: int) -> tuple[dict[str, int], int]:
    """What stays through all phases, and what the host keeps."""
    shards = ranks if settings.shard != "none" else 1
    trained = sum(trained_parameters(work, settings))
    weights = work.policy.causal + work.critic.scalar + (trained if settings.lora_rank else 0)
    frozen = _divided(all_frozen_bytes(work, settings.frozen), ranks if settings.frozen == "shard" else 1)
    held = 4 * weights
    if (
        settings.shared_base
    ):  # layers' matrices as they are computed with, all else in float32; reward models are adapters
        w, matrices = compute_bytes(work.precision), work.policy.matrices
        held = w * matrices + 4 * (work.policy.causal - matrices + trained)
        each = lora_parameters(work.policy, settings.lora_rank, settings.lora_targets) + work.policy.width
        adapters = each * len(work.rewards)
        held, frozen = held + 4 * adapters, 0
    parts = {
        "weights": _divided(held, shards),
        "optimiser": 8 * _divided(trained, shards),
        "frozen models": 0 if settings.frozen == "offload" else frozen,
    }
    return parts, frozen if settings.frozen == "offload" else 0


def _sample(work: Work, settings: Settings, devices: Devices) -> dict[str, int]:
    shape, precision = work.policy, work.precision
    if work.server:  # which is sent one weight at a time, made whole for it
        return {"buffers": 4 * shape.embedding if settings.shard != "none" else 0}
    rows = min(settings.sampling_batch, _divided(work.rollout_batch, devices.count))
    if settings.shard == "none":
        buffers = _copies(shape, precision, settings, backward=False)
    else:  # a whole copy of the policy: layers as they are computed with, the ends in float32
        halved = 2 * shape.embedding if precision == "bf16" else 0
        layers = shape.layers * shape.layer_parameters * compute_bytes(precision)
        buffers = layers + 4 * ends(shape, scalar=False) + halved
    return {
        "cache": cache_bytes(shape, rows, work.length, 4 if devices.is_cpu else compute_bytes(precision)),
        "logits": rows * shape.vocabulary * (4 * SAMPLING_COPIES + work.penalty),
        "activations": at_work(shape, rows * work.prompt, precision),
        "buffers": buffers,
    }


def _score(work: Work, settings: Settings, devices: Devices) -> dict[str, int]:
    """The heavier of two: a pass of policy, critic and reference over a micro-batch; a pass of a reward model."""
    precision = work.precision
    rows, tokens = micro_batch(settings.micro_batch_tokens, work.length, _divided(work.rollout_batch, devices.count))
    frozen = replace(settings, shard="zero3") if settings.frozen == "shard" else None

    def visit(shape: Shape, scalar: bool) -> int:
        """What a frozen model brings for its pass."""
        if settings.shared_base:
            return gathered(shape, settings, precision, scalar=scalar, backward=False)
        brought = frozen_bytes(shape, precision, "offload", scalar=scalar) if settings.frozen == "offload" else 0
        return brought + (gathered(shape, frozen, precision, scalar=scalar, backward=False) if frozen else 0)

    policy = gathered(work.policy, settings, precision, scalar=False, backward=False)
    critic = gathered(work.critic, settings, precision, scalar=True, backward=False)
    # copies of weights stay to the end of the pass under autocast, gathered ones go after each model
    both = policy + critic if settings.shard == "none" else max(policy, critic)
    reference = visit(work.policy, False) if work.reference and not settings.shared_base else 0
    first = {
        "logits": LOGITS_COPIES * logits_block(work.policy, rows * max(work.response, work.prompt)),
        "activations": max(at_work(s, tokens, precision) for s in (work.policy, work.critic)),
        "buffers": both + reference,
    }
    second = [
        {"activations": at_work(shape, tokens, precision), "buffers": visit(shape, True)} for shape in work.rewards
    ]
    return max([first, *second], key=lambda parts: sum(parts.values()))


def _update(work: Work, settings: Settings, devices: Devices) -> dict[str, int]:
    """The heavier of two: passes of the critic with its gradients, and then those of the policy."""
    shards = devices.count if settings.shard != "none" else 1
    rows, tokens = micro_batch(settings.micro_batch_tokens, work.length, _divided(work.minibatch, devices.count))
    of_policy, of_critic = trained_parameters(work, settings)

    def passes(shape: Shape, scalar: bool, trained: int) -> dict[str, int]:
        kept = activations(shape, tokens, work.precision, devices.is_cpu, settings.checkpointing)
        kept += backward_work(shape, tokens, work.precision)
        logits = 0 if scalar else LOGITS_COPIES * logits_block(shape, rows * work.response)
        return {
            "gradients": 4 * _divided(trained, shards),
            "activations": kept,
            "logits": logits,
            "buffers": gathered(shape, settings, work.precision, scalar=scalar, backward=True),
        }

    policy = passes(work.policy, False, of_policy + (of_critic if work.joint else 0))
    return max(policy, passes(work.critic, True, of_critic), key=lambda parts: sum(parts.values()))


def _step(work: Work, settings: Settings, devices: Devices) -> dict[str, int]:
    """Gradients of one model, or of both; AdamW, which is fused, needs nothing for itself.

    Ranks that do not divide weights sum all gradients of a model in one piece, which is a copy of them.
    """
    shards = devices.count if settings.shard != "none" else 1
    trained = trained_parameters(work, settings)
    summed = 4 * max(trained) if devices.count > 1 and settings.shard == "none" else 0
    return {"gradients": 4 * _divided(sum(trained) if work.joint else max(trained), shards), "buffers": summed}
