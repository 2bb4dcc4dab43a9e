"""What fits, what is fastest, and what is said where nothing fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ppomax.plan.devices import GIB, Shares, parse_devices
from ppomax.plan.memory import Settings, Work, memory
from ppomax.plan.search import best, candidates, least, plan, remedies
from ppomax.plan.seconds import seconds
from ppomax.plan.shapes import shape_of

SEVEN = shape_of("llama-7b")
WORK = Work(
    policy=SEVEN, critic=SEVEN, rewards=(SEVEN,), reference=True, prompt=512, response=512, rollout_batch=128,
    minibatch=32, updates=4, precision="bf16",
)  # fmt: skip
GIVEN = Settings(micro_batch_tokens=8192, sampling_batch=128)
SHARES = Shares()


def test_candidates_are_all_combinations() -> None:
    found = list(candidates(WORK, GIVEN, parse_devices("8x80GB")))
    assert len(found) == len(set(found)) == 3 * 5 * 3 * 3 * 2  # 1 2 4 rows; 1 2 4 8 16; shard; frozen; checkpointing
    alone = list(candidates(WORK, GIVEN, parse_devices("cpu")))
    assert {(s.shard, s.frozen) for s in alone} == {("none", "replicate")}
    assert {s.sampling_batch for s in alone} == {1, 2, 4, 8, 16, 32, 64, 128}


def test_best_is_the_fastest_that_fits() -> None:
    devices = parse_devices("8x80GB")
    found = best(WORK, GIVEN, devices, SHARES)
    room = devices.usable(SHARES)
    fitting = [s for s in candidates(WORK, GIVEN, devices) if memory(WORK, s, devices).peak <= room]
    fastest = min(seconds(WORK, s, devices, SHARES)["total"] for s in fitting)
    assert found[0].seconds["total"] == pytest.approx(fastest, abs=1e-3)
    assert all(p.fits for p in found)
    assert [p.seconds["total"] for p in found] == sorted(p.seconds["total"] for p in found)
    ways = {(p.settings.shard, p.settings.frozen, p.settings.checkpointing) for p in found}
    assert ways == {(s.shard, s.frozen, s.checkpointing) for s in fitting}
    assert len(ways) == len(found)


def test_7b_needs_division_on_eight_devices_of_80_gib() -> None:
    devices = parse_devices("8x80GB")
    assert not plan(WORK, GIVEN, devices, SHARES).fits
    assert {p.settings.shard for p in best(WORK, GIVEN, devices, SHARES)} == {"zero2", "zero3"}


def test_least_is_the_tightest_of_all() -> None:
    devices = parse_devices("2x80GB")
    tightest = least(WORK, GIVEN, devices, SHARES)
    assert tightest.memory.peak == min(memory(WORK, s, devices).peak for s in candidates(WORK, GIVEN, devices))
    assert not tightest.fits


def test_remedies_do_fit() -> None:
    devices = parse_devices("2x80GB")
    assert best(WORK, GIVEN, devices, SHARES) == []
    said = remedies(WORK, GIVEN, devices, SHARES)
    number = int(said[0].split()[0])
    assert said[0] == f"{number} such devices"
    assert best(WORK, GIVEN, replace(devices, per_node=number), SHARES)
    assert not best(WORK, GIVEN, replace(devices, per_node=number // 2), SHARES)
    gib = int(said[1].split()[2])
    assert best(WORK, GIVEN, replace(devices, memory=gib * GIB), SHARES)
    assert not best(WORK, GIVEN, replace(devices, memory=(gib - 2) * GIB), SHARES)
