"""A run of two ranks that share their weights loses either one to SIGKILL, and goes on with one, two or four."""

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
AGAIN = [(0, 2), (1, 1), (1, 2), (1, 4)]
"""who was killed, and how many ranks go on"""


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
    seconds = {}
    for victim in (0, 1):  # rank 0 also keeps the meeting point of the ranks
        killed = folder / f"killed-{victim}"
        pids = start_ranks(functools.partial(train, killed, False), 2, folder / f"killed-{victim}.log")
        while not (killed / "checkpoints" / "step-000002").exists():
            time.sleep(0.01)
        os.kill(pids[victim], signal.SIGKILL)
        began = time.monotonic()
        codes[f"killed-{victim}"] = [end(pid) for pid in pids]
        seconds[str(victim)] = time.monotonic() - began
    for victim, size in AGAIN:
        again = folder / f"again-{victim}-{size}"
        shutil.copytree(folder / f"killed-{victim}", again)
        codes[again.name] = run_ranks(functools.partial(train, again, True), size, folder / "log")
    (folder / "results.json").write_text(json.dumps({"codes": codes, "seconds": seconds}), encoding="utf-8")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("resumed")
    return folder, start_script(__file__, folder)


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_end_soon_and_say_why(victim: int, done: tuple[Path, dict[str, Any]]) -> None:
    folder, results = done
    wanted = {victim: -signal.SIGKILL, 1 - victim: 1}
    assert results["codes"][f"killed-{victim}"] == [wanted[0], wanted[1]]
    assert results["seconds"][str(victim)] < LONGEST
    told = (folder / f"killed-{victim}.log").read_text(encoding="utf-8")
    assert f"rank {1 - victim} of 2: {LOST}" in told


@pytest.mark.parametrize("victim", [0, 1])
def test_two_ranks_go_on_exactly(victim: int, done: tuple[Path, dict[str, Any]]) -> None:
    folder, results = done
    again = f"again-{victim}-2"
    assert results["codes"]["whole"] == results["codes"][again] == [0, 0], (folder / "log").read_text()[-4000:]
    assert differing(folder / "whole", folder / again) == []
    last = folder / "whole" / "checkpoints" / "step-000005"
    assert len(list((last / "divided").glob("*.safetensors"))) == 2  # each rank wrote its own
    assert not list(last.rglob("*.distcp")) and not list(last.rglob("*.pt"))


@pytest.mark.parametrize("size", [1, 4])
def test_other_numbers_of_ranks_go_on(size: int, done: tuple[Path, dict[str, Any]]) -> None:
    folder, results = done
    again = f"again-1-{size}"
    assert set(results["codes"][again]) == {0}, (folder / "log").read_text()[-4000:]
    wanted, found = (timeless(lines(folder / name / "metrics.jsonl")) for name in ("whole", again))
    assert worst(found, wanted, 1e-2) < 2e-4
    assert len(found) == SETTINGS["iterations"]


if __name__ == "__main__":
    script(Path(sys.argv[1]))
