"""The command line under torchrun: a rank is killed with SIGKILL, the job ends with a clear message, and resumes exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from kill_tools import differing
from ppo_tools import dialogues, make_policy, make_tokenizer

pytestmark = pytest.mark.slow
LONGEST = 60.0
"""seconds from the death of a rank to the end of the job"""


def launch(settings: Path, out: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "ppomax", "sft",
        str(settings), "--output_dir", str(out), *words,
    ]  # fmt: skip
    with log.open("ab") as f:
        return subprocess.Popen(command, env=environment, stdout=f, stderr=subprocess.STDOUT)


def workers(agent: int) -> list[int]:
    children = Path(f"/proc/{agent}/task/{agent}/children")
    if not children.exists():
        pytest.skip("no /proc on this machine")
    return [int(pid) for pid in children.read_text().split()]


def test_killed_under_torchrun(tmp_path: Path) -> None:
    make_policy().save_pretrained(tmp_path / "start")
    make_tokenizer().save_pretrained(tmp_path / "start")
    with (tmp_path / "data.jsonl").open("w", encoding="utf-8") as f:
        f.writelines(json.dumps({"messages": list(d.messages)}, ensure_ascii=False) + "\n" for d in dialogues() * 4)
    settings = tmp_path / "sft.yaml"
    settings.write_text(yaml.safe_dump({
        "model": str(tmp_path / "start"), "data": str(tmp_path / "data.jsonl"), "device": "cpu", "max_length": 64,
        "batch_size": 4, "eval_fraction": 0.25, "epochs": 4.0, "checkpoint": {"every": 1, "keep": 3},
        "parallel": {"shard": "zero3"},
    }), encoding="utf-8")  # fmt: skip
    assert launch(settings, tmp_path / "whole", tmp_path / "whole.log").wait(timeout=1200) == 0

    killed, log = tmp_path / "killed", tmp_path / "killed.log"
    agent = launch(settings, killed, log)
    while not (killed / "checkpoints" / "step-000003").exists():
        assert agent.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        time.sleep(0.05)
    os.kill(workers(agent.pid)[1], signal.SIGKILL)
    began = time.monotonic()
    assert agent.wait(timeout=1200) != 0
    assert time.monotonic() - began < LONGEST
    told = log.read_text(encoding="utf-8")
    print(told[-1500:])
    assert "rank 0 of 2: " in told and "another rank has ended" in told and "--resume" in told
    assert not (killed / "final").exists()

    assert launch(settings, killed, log, "--resume").wait(timeout=1200) == 0
    assert differing(tmp_path / "whole", killed) == []
