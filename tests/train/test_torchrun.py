"""The command line under torchrun: a rank is killed with SIGKILL, the job ends with a clear message, and resumes exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from kill_tools import differing
from ppo_tools import QUESTIONS, dialogues, make_critic, make_policy, make_tokenizer

pytestmark = pytest.mark.slow
LONGEST = 60.0
"""seconds from the death of a rank to the end of the job"""


def launch(stage: str, settings: Path, out: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "ppomax", stage,
        str(settings), "--output_dir", str(out), *words,
    ]  # fmt: skip
    with log.open("ab") as f:
        return subprocess.Popen(command, env=environment, stdout=f, stderr=subprocess.STDOUT)


def workers(agent: int) -> list[int]:
    children = Path(f"/proc/{agent}/task/{agent}/children")
    if not children.exists():
        pytest.skip("no /proc on this machine")
    return [int(pid) for pid in children.read_text().split()]


def write_inputs(folder: Path) -> dict[str, dict[str, Any]]:
    """Models and data on disk; settings by stage."""
    for name, model in (("start", make_policy()), ("judge", make_critic(5))):
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    rows = {
        "data": [{"messages": list(d.messages)} for d in dialogues() * 4], "prompts": [{"prompt": q} for q in QUESTIONS],
    }  # fmt: skip
    for name, found in rows.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as f:
            f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    both: dict[str, Any] = {
        "model": str(folder / "start"), "device": "cpu", "checkpoint": {"every": 1, "keep": 3},
    }  # fmt: skip
    return {
        "sft": {
            **both, "data": str(folder / "data.jsonl"), "max_length": 64, "batch_size": 4, "eval_fraction": 0.25, "epochs": 4.0,
            "parallel": {"shard": "zero3"},
        },
        "ppo": {
            **both, "prompts": str(folder / "prompts.jsonl"), "reward": str(folder / "judge"), "iterations": 12,
            "rollout_batch": 5, "minibatch": 5, "sampling": {"max_new_tokens": 6}, "watch": {"eval_prompts": 1, "every": 4},
            "critic": {"init": "reward", "pretrain_iterations": 1}, "parallel": {"shard": "zero3", "frozen": "shard"},
        },
    }  # fmt: skip


@pytest.mark.parametrize(("stage", "victim"), [("sft", 1), ("ppo", 0)])
def test_killed_under_torchrun(stage: str, victim: int, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(write_inputs(tmp_path)[stage]), encoding="utf-8")
    assert launch(stage, settings, tmp_path / "whole", tmp_path / "whole.log").wait(timeout=1200) == 0

    killed, log = tmp_path / "killed", tmp_path / "killed.log"
    agent = launch(stage, settings, killed, log)
    while not (killed / "checkpoints" / "step-000003").exists():
        assert agent.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        time.sleep(0.05)
    os.kill(workers(agent.pid)[victim], signal.SIGKILL)
    began = time.monotonic()
    assert agent.wait(timeout=1200) != 0
    assert time.monotonic() - began < LONGEST
    told = log.read_text(encoding="utf-8")
    print(told[-1500:])
    assert f"rank {1 - victim} of 2: " in told and "another rank has ended" in told and "--resume" in told
    assert not (killed / "final").exists()

    assert launch(stage, settings, killed, log, "--resume").wait(timeout=1200) == 0
    assert differing(tmp_path / "whole", killed) == []
