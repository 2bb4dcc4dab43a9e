"""Words for devices."""

from __future__ import annotations

import pytest

from ppomax.errors import UserError
from ppomax.plan.devices import GIB, KINDS, Rates, Shares, parse_devices


@pytest.mark.parametrize(
    ("text", "nodes", "per_node", "kind", "gib"),
    [
        ("8x80GB", 1, 8, "a100", 80),
        ("8x8x80GB", 8, 8, "a100", 80),
        ("80GiB", 1, 1, "a100", 80),
        ("4 x H100", 1, 4, "h100", 80),
        ("2x24gb", 1, 2, "rtx-4090", 24),
        ("2x4xrtx-4090", 2, 4, "rtx-4090", 24),
        ("1xa100-40gb", 1, 1, "a100-40gb", 40),
        ("141GB", 1, 1, "h200", 141),
    ],
)
def test_what_is_understood(text: str, nodes: int, per_node: int, kind: str, gib: int) -> None:
    found = parse_devices(text)
    assert (found.nodes, found.per_node, found.kind, found.memory) == (nodes, per_node, kind, gib * GIB)
    assert found.bf16_flops == KINDS[kind].bf16_tflops * 1e12
    assert found.count == nodes * per_node


def test_a_size_with_a_type_and_own_rates() -> None:
    found = parse_devices("8x64GB", Rates(bf16_tflops=200, link_gb_s=50), "h100")
    assert (found.memory, found.kind) == (64 * GIB, "h100")
    assert (found.bf16_flops, found.link_rate, found.memory_rate) == (200e12, 50e9, 3350e9)


def test_room_for_tensors() -> None:
    assert parse_devices("80GB").usable(Shares()) == int(80 * GIB * 0.95 - 1.5 * GIB)


def test_ranks_on_a_cpu_share_the_machine() -> None:
    one, two = parse_devices("cpu"), parse_devices("2xcpu")
    assert one.memory // 2 == two.memory
    assert one.usable(Shares()) == one.memory > 2**28


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("0x80GB", None, "not understood"),
        ("", None, "not understood"),
        ("8x80TB", None, "'80tb' is neither a memory size nor one of a100"),
        ("2x2x2x80GB", None, "neither a memory size"),
        ("8x64GB", None, "no kind of device is known with 64gb; add --device_type"),
        ("8x80GB", "v100", "device_type = 'v100': unknown"),
        ("8xh100", "a100", "contradict each other"),
    ],
)
def test_what_is_not(text: str, kind: str | None, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_devices(text, kind=kind)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
