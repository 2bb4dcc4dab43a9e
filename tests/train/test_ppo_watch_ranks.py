"""Stop and rollback on two ranks, also with divided weights: decided by the main rank, and the same on both."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppomax.train.checkpoint import list_checkpoints, step_of
from ppomax.watch import collapse
from ppomax.watch.detectors import Detector, Sign
from ppomax.watch.history import History

sys.path.insert(0, str(Path(__file__).parent))
from kill_tools import differing, forget_to_sync, start_script
from ppo_tools import lines, make_critic, make_policy, make_tokenizer, run, timeless
from rank_tools import flat_weights, run_ranks, worst
from test_ppo_watch_actions import SPIKE

SETTINGS: dict[str, Any] = {
    "iterations": 6, "rollout_batch": 5, "minibatch": 5, "micro_batch_tokens": 80, "checkpoint": {"every": 1, "keep": 9},
    "watch.eval_prompts": 1, "watch.every": 9, "critic.init": "reward", "kl.coef": 0.1, "buffer_iterations": 2,
}  # fmt: skip
DIVIDED = {"parallel": {"shard": "zero3", "frozen": "shard"}}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "stop": ("stop", {}), "rollback": ("rollback", {}), "divided": ("rollback", DIVIDED),
}  # fmt: skip
ALARM = 3
"""iteration of the alarm; the main rank's sign began one iteration earlier"""


def train(folder: Path, name: str, resume: bool, dies_at: int, rank: int) -> int:
    """One rank. Rank 1 sees nothing, as might a processor that rounds otherwise: it must do what the main one decides."""
    action, changes = RUNS[name.split("-")[0]]

    def look(history: History) -> Iterator[tuple[Detector, Sign]]:
        if history.iteration() == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if history.iteration() == ALARM and rank == 0:
            yield SPIKE, Sign("collapse", "it turned", ago=1)

    collapse.look = look
    settings = {**SETTINGS, "watch.on_collapse": action, **changes}
    result = run(folder / name, settings, reward=[make_critic(5)], resume=resume)
    seen = {
        "metrics": timeless(result.metrics),
        "weights": [flat_weights(model) for model in (result.policy, result.critic)],
    }
    (folder / f"{name}-{rank}.json").write_text(json.dumps(seen), encoding="utf-8")
    return 0


def script(folder: Path) -> None:
    import torch
    import torch._dynamo  # FSDP asks for it: once here, and not in every child

    forget_to_sync()
    torch.set_num_threads(1)
    make_policy()
    make_tokenizer()
    codes = {}
    for name in RUNS:
        for size in (1, 2):
            job = functools.partial(train, folder, f"{name}-{size}", False, -1)
            codes[f"{name} {size}"] = run_ranks(job, size, folder / "log")
    for resume in (False, True):  # in the iteration after the one that goes on from the restored weights
        job = functools.partial(train, folder, "divided-killed", resume, -1 if resume else ALARM + 2)
        codes[f"killed {resume}"] = run_ranks(job, 2, folder / "log")
    (folder / "results.json").write_text(json.dumps(codes), encoding="utf-8")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    folder = tmp_path_factory.mktemp("watched")
    return folder, start_script(__file__, folder)


def seen(folder: Path, name: str, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}-{rank}.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", list(RUNS))
def test_two_ranks_do_what_one_does(name: str, done: tuple[Path, dict[str, list[int]]]) -> None:
    folder, codes = done
    assert codes[f"{name} 1"] == [0] and codes[f"{name} 2"] == [0, 0], (folder / "log").read_text()[-4000:]
    alone, main, other = seen(folder, f"{name}-1", 0), seen(folder, f"{name}-2", 0), seen(folder, f"{name}-2", 1)
    assert main["metrics"] == other["metrics"], "bit for bit"
    if RUNS[name][1] != DIVIDED:  # there only the main rank puts the whole together
        assert main["weights"] == other["weights"]
    assert worst(main["metrics"], alone["metrics"], 1e-2) < 2e-4
    assert worst(main["weights"], alone["weights"], 1e-2) < 2e-3
    for file in ("alarms.jsonl", "metrics.jsonl"):
        one, two = (lines(folder / f"{name}-{size}" / file) for size in (1, 2))
        assert [row["iteration"] for row in one] == [row["iteration"] for row in two], "one rank writes"
    assert lines(folder / f"{name}-1" / "alarms.jsonl") == lines(folder / f"{name}-2" / "alarms.jsonl")


def test_both_stop(done: tuple[Path, dict[str, list[int]]]) -> None:
    folder, _ = done
    assert [m["iteration"] for m in seen(folder, "stop-2", 1)["metrics"]] == list(range(ALARM + 1))
    assert (folder / "stop-2" / "final" / "model.safetensors").exists()
    assert step_of(list_checkpoints(folder / "stop-2" / "checkpoints")[-1]) == ALARM + 1


@pytest.mark.parametrize("name", ["rollback-2", "divided-2"])
def test_both_go_back(name: str, done: tuple[Path, dict[str, list[int]]]) -> None:
    folder, _ = done
    found = seen(folder, name, 1)["metrics"]
    assert [m["iteration"] for m in found] == list(range(6))
    assert [m["kl/coef"] for m in found] == pytest.approx([0.1] * 4 + [0.4] * 2)
    alarms = lines(folder / name / "alarms.jsonl")
    assert [(a["detector"], a["iteration"], a["since"]) for a in alarms] == [("spikes", 3, 2), ("rollback", 3, 2)]
    # back in the weights of before iteration 2: as far from the reference as then, on other prompts
    assert found[ALARM + 1]["kl/ref_k3"] < found[ALARM]["kl/ref_k3"]


def test_divided_weights_are_those_of_the_checkpoint(done: tuple[Path, dict[str, list[int]]]) -> None:
    """Step 4, written after the rollback, holds the very weights and optimisers of step 2, every rank its own part."""
    folder, _ = done
    checkpoints = folder / "divided-2" / "checkpoints"
    assert len(list((checkpoints / "step-000004" / "divided").glob("*.safetensors"))) == 2
    assert differing(checkpoints / "step-000002", checkpoints / "step-000004") == ["loop.json"], "its counters"
    assert "divided/" in " ".join(differing(checkpoints / "step-000002", checkpoints / "step-000003"))


def test_killed_after_the_rollback_it_goes_on_exactly(done: tuple[Path, dict[str, list[int]]]) -> None:
    folder, codes = done
    assert codes["killed False"] == [-signal.SIGKILL] * 2
    assert codes["killed True"] == [0, 0], (folder / "log").read_text()[-4000:]
    assert differing(folder / "divided-2", folder / "divided-killed") == []


if __name__ == "__main__":
    script(Path(sys.argv[1]))
