"""Which settings fit, and which of them is fastest; where nothing fits, by how much, and what would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from ppomax.plan.devices import GIB, Devices, Shares
from ppomax.plan.memory import Memory, Settings, Work, memory
from ppomax.plan.seconds import seconds

LORA_RANK = 16
"""proposed where full training does not fit"""


@dataclass(frozen=True)
class Plan:
    """Settings, and what they cost."""

    settings: Settings
    memory: Memory
    seconds: dict[str, float]
    room: int
    """bytes of a device that tensors may fill"""

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.room


def plan(work: Work, settings: Settings, devices: Devices, shares: Shares) -> Plan:
    """What ``settings`` cost on ``devices``."""
    room, settings = devices.usable(shares), settings.on(devices.count)
    return Plan(settings, memory(work, settings, devices), seconds(work, settings, devices, shares), room)


def _doubling(unit: int, most: int) -> list[int]:
    """unit x 1, 2, 4, ... and ``most`` itself, none above ``most``."""
    steps = []
    value = unit
    while value < most:
        steps.append(value)
        value *= 2
    return [*steps, most]


def candidates(work: Work, given: Settings, devices: Devices) -> Iterator[Settings]:
    """Every combination of what changes memory and speed alone; adapters stay as ``given`` has them."""
    n = devices.count
    rows = -(-work.minibatch // n)
    micro_batches = [work.length * r for r in _doubling(1, rows)]
    sampling = [given.sampling_batch] if work.server else _doubling(1, -(-work.rollout_batch // n))
    shards = ["none", "zero2", "zero3"] if n > 1 else ["none"]
    frozen = ["replicate", *(["shard"] if n > 1 else []), *([] if devices.is_cpu else ["offload"])]
    if given.shared_base:
        frozen = [given.frozen]  # there is none
    for tokens, batch, shard, where, again in product(micro_batches, sampling, shards, frozen, (False, True)):
        yield replace(
            given, micro_batch_tokens=tokens, sampling_batch=batch, shard=shard, frozen=where, checkpointing=again
        )


def kind(settings: Settings) -> tuple[object, ...]:
    """What tells one proposal from another: all but the sizes of batches."""
    return settings.shard, settings.frozen, settings.checkpointing, settings.lora_rank


def best(work: Work, given: Settings, devices: Devices, shares: Shares) -> list[Plan]:
    """The fastest settings of each kind that fit, fastest first; among equals the one that takes least memory."""
    found: dict[tuple[object, ...], Plan] = {}
    for settings in candidates(work, given, devices):
        tried = plan(work, settings, devices, shares)
        known = found.get(kind(settings))
        if tried.fits and (known is None or _rank(tried) < _rank(known)):
            found[kind(settings)] = tried
    return sorted(found.values(), key=_rank)


def _rank(tried: Plan) -> tuple[float, int]:
    return round(tried.seconds["total"], 3), tried.memory.peak


def least(work: Work, given: Settings, devices: Devices, shares: Shares) -> Plan:
    """The settings that take the least memory, whether they fit or not."""
    tried = (plan(work, settings, devices, shares) for settings in candidates(work, given, devices))
    return min(tried, key=lambda p: (p.memory.peak, p.seconds["total"]))


def remedies(work: Work, given: Settings, devices: Devices, shares: Shares) -> list[str]:
    """What would make it fit, where nothing does: more devices, larger ones, adapters, shorter responses."""
    out = []
    for factor in (2, 4, 8, 16, 32, 64):
        more = (
            replace(devices, nodes=devices.nodes * factor)
            if devices.count >= 8
            else replace(devices, per_node=devices.per_node * factor)
        )
        if more.count <= work.minibatch and best(work, given, more, shares):
            out.append(f"{more.count} such devices")
            break
    needed = least(work, given, devices, shares).memory.peak
    if not devices.is_cpu:
        needed = int((needed + shares.reserve_gib * GIB) / (1 - shares.fragmentation))
    out.append(f"{devices.count} with {needed // GIB + 1} GiB each")
    if not given.lora_rank:
        rank = LORA_RANK
        if best(replace(work, reference=False), replace(given, lora_rank=rank), devices, shares):
            out.append(f"adapters (--lora.rank {rank})")
    rank = given.lora_rank or LORA_RANK
    alike = {s.causal for s in (work.policy, work.critic, *work.rewards)} == {work.policy.causal}
    on_one = replace(given, lora_rank=rank, shared_base=True)
    if alike and not given.shared_base and best(replace(work, reference=False), on_one, devices, shares):
        out.append(f"adapters on one base (--lora.rank {rank} --lora.shared_base)")
    if not work.server and best(replace(work, server=True), given, devices, shares):
        out.append("a vLLM server on devices of its own (--rollout.engine vllm)")
    for share in (2, 4):
        shorter = replace(work, response=work.response // share)
        if best(shorter, given, devices, shares):
            out.append(f"responses of {shorter.response} tokens (--sampling.max_new_tokens {shorter.response})")
            break
    return out
