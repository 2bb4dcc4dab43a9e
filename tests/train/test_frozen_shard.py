"""Frozen models divided among ranks: layers lie in bf16, and no number changes by it."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from ppomax.config import ParallelConfig
from ppomax.errors import UserError
from ppomax.models.precision import precision
from ppomax.models.responses import response_logprobs, response_values
from ppomax.rollout.engine import Completion
from ppomax.rollout.experience import Experience
from ppomax.train.parallel import join
from ppomax.train.ppo_update import to_batch
from ppomax.train.sharding import halve_layers, in_turn, put_aside

sys.path.insert(0, str(Path(__file__).parent))
from kill_tools import start_script
from ppo_tools import make_critic, make_policy
from rank_tools import run_ranks

COMPLETIONS = [Completion([5, 6, 7], [8, 9], True), Completion([10, 11], [12, 13, 14], False)]


def scores(folder: Path, rank: int) -> int:
    """One rank of two: what a divided reference and reward model say, and the bytes of this rank's part of them."""
    ranks = join("cpu")
    batch = to_batch(Experience.from_completions(COMPLETIONS), ranks.device)
    found: dict[str, list[object]] = {}
    for name, halve in (("float32", False), ("bf16", True)):
        models = [make_policy(), make_critic()]
        held = 0
        for model in models:
            if halve:
                halve_layers(model)
            put_aside(model.requires_grad_(False), ParallelConfig(frozen="shard"), ranks, "bf16", [])
            parts = [p.to_local() for p in model.parameters() if isinstance(p, DTensor)]
            held += sum(part.numel() * part.element_size() for part in parts)
        with torch.no_grad(), precision(ranks.device, "bf16"):
            logprobs, values = response_logprobs(models[0], batch)[0], response_values(models[1], batch)
        found[name] = [logprobs.tolist(), values.tolist(), held]
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


def mistaken(folder: Path, rank: int) -> int:
    """One rank of two, both of which are given a model that is not there."""
    ranks = join("cpu")
    try:
        with in_turn(ranks):
            with (folder / "order").open("a", encoding="utf-8") as f:
                f.write(f"{rank}")
            raise UserError("no such model")
    except UserError as error:
        (folder / f"told{rank}").write_text(str(error), encoding="utf-8")
    return 0


def uneven(folder: Path, rank: int) -> int:
    """One rank of three on two machines: two ranks here, and one there."""
    os.environ |= {"LOCAL_RANK": str(rank % 2), "LOCAL_WORLD_SIZE": "2" if rank < 2 else "1"}
    ranks = join("cpu")
    with in_turn(ranks):
        pass
    (folder / f"together{rank}").write_text(str(ranks.collect([rank])), encoding="utf-8")
    return 0


def script(folder: Path) -> None:
    import torch._dynamo  # FSDP asks for it: once here, and not in every child

    torch.set_num_threads(1)
    codes = {
        job.__name__: run_ranks(functools.partial(job, folder), size, folder / f"{job.__name__}.log")
        for job, size in ((scores, 2), (mistaken, 2), (uneven, 3))
    }
    (folder / "results.json").write_text(json.dumps(codes), encoding="utf-8")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    codes = start_script(__file__, folder)
    assert codes == {"scores": [0, 0], "mistaken": [0, 0], "uneven": [0, 0, 0]}, [
        log.read_text() for log in folder.glob("*.log")
    ]
    return folder


def test_layers_in_bf16_give_the_same_numbers(done: Path) -> None:
    in_layers = sum(p.numel() for p in make_policy().model.layers.parameters())
    saved = 0
    for rank in (0, 1):
        found = json.loads((done / f"{rank}.json").read_text(encoding="utf-8"))
        assert found["float32"][:2] == found["bf16"][:2], "bit for bit"
        saved += found["float32"][2] - found["bf16"][2]
    assert saved == 2 * 2 * in_layers  # two models, two bytes a number


def test_ranks_come_to_the_same_mistake_one_after_the_other(done: Path) -> None:
    assert (done / "order").read_text(encoding="utf-8") == "01"
    assert [(done / f"told{rank}").read_text(encoding="utf-8") for rank in (0, 1)] == ["no such model"] * 2


def test_machines_may_have_different_numbers_of_ranks(done: Path) -> None:
    assert {(done / f"together{rank}").read_text(encoding="utf-8") for rank in range(3)} == {"[0, 1, 2]"}


if __name__ == "__main__":
    script(Path(sys.argv[1]))
