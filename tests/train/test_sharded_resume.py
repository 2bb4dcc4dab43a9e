"""A run of two ranks that share their weights loses one to SIGKILL, and goes on with one, two or four."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ppomax.train.parallel import LOST, lost_rank

sys.path.insert(0, str(Path(__file__).parent))
from kill_tools import differing, end, forget_to_sync, start_script
from ppo_tools import lines, make_critic, make_policy, make_tokenizer, run, timeless
from rank_tools import run_ranks, start_ranks, worst

SETTINGS: dict[str, Any] = {
    "iterations": 5, "rollout_batch": 5, "minibatch": 5, "micro_batch_tokens": 80, "checkpoint": {"every": 1, "keep": 9},
    "watch.eval_prompts": 1, "watch.every": 5, "parallel": {"shard": "zero3", "frozen": "shard"}, "critic.init": "reward",
}  # fmt: skip
LONGEST = 60.0
"""seconds from the death of a rank to the end of the job"""


def train(out: Path, resume: bool, rank: int) -> int:
    try:
        run(out, SETTINGS, reward=[make_critic(5)], resume=resume)
    except RuntimeError as error:  # as in ppomax.cli
        print(lost_rank(error), file=sys.stderr, flush=True)
        return 1
    return 0


def script(folder: Path) -> None:
    import torch._dynamo  # FSDP asks for it: once here, and not in every child

    forget_to_sync()
    torch.set_num_threads(1)
    make_policy()
    make_tokenizer()
    codes = {"whole": run_ranks(functools.partial(train, folder / "whole", False), 2, folder / "log")}
    killed = folder / "killed"
    pids = start_ranks(functools.partial(train, killed, False), 2, folder / "killed.log")
    while not (killed / "checkpoints" / "step-000002").exists():
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    codes["killed"] = [end(pid) for pid in pids]
    seconds = time.monotonic() - began
    for size in (1, 2, 4):
        again = folder / f"again-{size}"
        shutil.copytree(killed, again)
        codes[str(size)] = run_ranks(functools.partial(train, again, True), size, folder / "log")
    (folder / "results.json").write_text(json.dumps({"codes": codes, "seconds": seconds}), encoding="utf-8")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("resumed")
    return folder, start_script(__file__, folder)


def test_the_others_end_soon_and_say_why(done: tuple[Path, dict[str, Any]]) -> None:
    folder, results = done
    assert results["codes"]["killed"] == [1, -signal.SIGKILL]
    assert results["seconds"] < LONGEST
    assert f"rank 0 of 2: {LOST}" in (folder / "killed.log").read_text(encoding="utf-8")


def test_two_ranks_go_on_exactly(done: tuple[Path, dict[str, Any]]) -> None:
    folder, results = done
    assert results["codes"]["whole"] == results["codes"]["2"] == [0, 0], (folder / "log").read_text()[-4000:]
    assert differing(folder / "whole", folder / "again-2") == []
    last = folder / "whole" / "checkpoints" / "step-000005"
    assert len(list((last / "divided").glob("*.safetensors"))) == 2  # each rank wrote its own
    assert not list(last.rglob("*.distcp")) and not list(last.rglob("*.pt"))


@pytest.mark.parametrize("size", [1, 4])
def test_other_numbers_of_ranks_go_on(size: int, done: tuple[Path, dict[str, Any]]) -> None:
    folder, results = done
    assert set(results["codes"][str(size)]) == {0}, (folder / "log").read_text()[-4000:]
    wanted, found = (timeless(lines(folder / name / "metrics.jsonl")) for name in ("whole", f"again-{size}"))
    assert worst(found, wanted, 1e-2) < 2e-4
    assert len(found) == SETTINGS["iterations"]


if __name__ == "__main__":
    script(Path(sys.argv[1]))
