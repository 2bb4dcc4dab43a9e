"""Ranks: alone without any launcher, and two real processes over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ppomax.errors import UserError
from ppomax.train.parallel import Ranks, join, peak_memory, pick_device

sys.path.insert(0, str(Path(__file__).parent))
from rank_tools import free_port

TIMEOUT = 120.0


def worker() -> dict[str, Any]:
    """What each of two ranks does; the parts are uneven on purpose."""
    ranks = join("cpu")
    out: dict[str, Any] = {"rank": ranks.rank, "size": ranks.size, "main": ranks.is_main}

    items = [f"sample {i}" for i in range(5)]
    mine = ranks.share(items)
    out["mine"] = mine
    out["collected"] = ranks.collect([(m, len(m) * ranks.rank) for m in mine])
    out["one item"] = ranks.collect(ranks.share(["only"]))
    out["no items"] = ranks.collect([])

    local = torch.tensor([1.0, 10.0]) * (ranks.rank + 1)
    out["sum"] = ranks.sum(local).tolist()
    out["untouched"] = local.tolist()
    out["count"] = ranks.sum(torch.tensor(2**40 + ranks.rank)).item()

    a, b, frozen = torch.nn.Linear(2, 1), torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(1, 1)
    frozen.requires_grad_(False)
    a.weight.grad, a.bias.grad = torch.tensor([[1.0, 2.0]]) * (ranks.rank + 1), torch.tensor([5.0])
    if ranks.is_main:
        b.weight.grad = torch.tensor([[7.0], [8.0]])  # the other rank had no sample that used it
    ranks.sum_gradients([*a.parameters(), *b.parameters(), *frozen.parameters()])
    out["gradients"] = [p.grad.tolist() for m in (a, b) for p in m.parameters() if p.grad is not None]
    out["frozen"] = [p.grad for p in frozen.parameters()]

    # the house rule: the loss is divided by the tokens of all ranks, gradients are summed
    torch.manual_seed(0)
    model, x = torch.nn.Linear(4, 1), torch.randn(5, 4)
    share = torch.tensor(ranks.share(range(5)))
    (model(x[share]).square().sum() / ranks.sum(torch.tensor(float(len(share))))).backward()
    ranks.sum_gradients(model.parameters())
    out["step"] = [p.grad.flatten().tolist() for p in model.parameters() if p.grad is not None]
    ranks.barrier()
    torch.distributed.destroy_process_group()
    return out


def test_two_ranks(tmp_path: Path) -> None:
    port = free_port()
    processes = []
    for rank in range(2):
        env = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, str(tmp_path / f"{rank}.json")]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    try:
        for process in processes:
            _, errors = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))

    assert (zero["rank"], zero["size"], zero["main"]) == (0, 2, True)
    assert (one["rank"], one["size"], one["main"]) == (1, 2, False)
    assert zero["mine"] == ["sample 0", "sample 2", "sample 4"] and one["mine"] == ["sample 1", "sample 3"]
    # in the order before sharing, and each rank's own work in its place
    expected = [[f"sample {i}", 8 * (i % 2)] for i in range(5)]
    for out in (zero, one):
        assert out["collected"] == expected
        assert out["one item"] == ["only"] and out["no items"] == []
        assert out["sum"] == [3.0, 30.0]
        assert out["count"] == 2**41 + 1
        assert out["gradients"] == [[[3.0, 6.0]], [10.0], [[7.0], [8.0]]]
        assert out["frozen"] == [None, None]
    assert zero["untouched"] == [1.0, 10.0] and one["untouched"] == [2.0, 20.0]

    torch.manual_seed(0)
    model, x = torch.nn.Linear(4, 1), torch.randn(5, 4)
    (model(x).square().sum() / 5).backward()
    whole = [p.grad.flatten().tolist() for p in model.parameters() if p.grad is not None]
    assert zero["step"] == one["step"]
    for got, wanted in zip(zero["step"], whole, strict=True):
        assert got == pytest.approx(wanted, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_cover_everything_once(size: int) -> None:
    items = list(range(5))
    shares = [Ranks(rank, size).share(items) for rank in range(size)]
    assert sorted(x for share in shares for x in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_rank_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = join("cpu")
    assert (ranks.rank, ranks.size, ranks.is_main, ranks.device) == (0, 1, True, torch.device("cpu"))
    items, values, model = [1, 2, 3], torch.tensor([1.0]), torch.nn.Linear(1, 1)
    assert ranks.collect(ranks.share(items)) == items
    assert torch.equal(ranks.sum(values), values)
    ranks.sum_gradients(model.parameters())
    assert model.weight.grad is None
    ranks.barrier()


def test_pick_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 0)
    else:
        assert pick_device("auto", 3) == torch.device("cpu")


def test_every_rank_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)  # there may be no such device here
    assert pick_device("auto", 3) == pick_device("cuda", 3) == torch.device("cuda", 3)
    assert pick_device("cuda:1", 3) == torch.device("cuda", 1)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(worker()))


@pytest.mark.parametrize("name", ["gpu7", "cuda:99", "", "cuda:x"])
def test_a_device_that_is_not_there_is_a_mistake_of_one_line(name: str) -> None:
    with pytest.raises(UserError, match="cannot be used here"):
        pick_device(name)


def test_peak_memory_is_the_largest_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "collect", lambda ranks, mine: [*mine, 1e9, 5.0])
    assert peak_memory(Ranks()) == {"memory/peak": 1e9}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's own figure is read there")
def test_peak_memory_is_the_kernels_figure() -> None:
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
    assert peak_memory(Ranks())["memory/peak"] == pytest.approx(int(line.split()[1]) / 1024, rel=0.02)


def test_a_lone_world_size_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"WORLD_SIZE is 2, but .*: start with torchrun, or unset WORLD_SIZE"):
        join("cpu")
