"""A checkpoint of two ranks is gone on with in another mode of dividing, or on another number of ranks, in every stage."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from ppomax.train.checkpoint import list_checkpoints, step_of

sys.path.insert(0, str(Path(__file__).parent))
from kill_tools import forget_to_sync, start_script
from ppo_tools import lines, make_policy, make_tokenizer, timeless
from rank_tools import run_ranks, worst
from test_sharding import MODES, draw_no_figures, train_stage

KEPT = 2
"""the checkpoint that the second run begins with"""
FAST = ["ppo none zero3 2", "sft zero3 zero3 1"]
"""stage, mode of the first run (on two ranks), mode and number of ranks of the second"""
SLOW = [
    "ppo none zero3 4", "ppo zero3 zero2 2", "sft zero3 zero3 4", "reward zero3 zero3 1", "reward zero3 zero3 4",
]  # fmt: skip


def train(stage: str, mode: str, out: Path, resume: bool, rank: int) -> int:
    train_stage(stage, out, {"parallel": MODES[mode], "checkpoint": {"every": 1, "keep": 99}}, resume=resume)
    return 0


def script(folder: Path) -> None:
    import torch._dynamo  # FSDP asks for it: once here, and not in every child

    forget_to_sync()
    torch.set_num_threads(1)
    draw_no_figures()
    make_policy()
    make_tokenizer()
    codes: dict[str, list[int]] = {}
    for name in json.loads((folder / "names.json").read_text(encoding="utf-8")):
        stage, first, then, size = name.split()
        whole, again = folder / f"{stage} {first}", folder / name
        if whole.name not in codes:
            codes[whole.name] = run_ranks(functools.partial(train, stage, first, whole, False), 2, folder / "log")
        shutil.copytree(whole, again)
        shutil.rmtree(again / "final")
        for checkpoint in list_checkpoints(again / "checkpoints"):
            if step_of(checkpoint) > KEPT:
                shutil.rmtree(checkpoint)
        codes[name] = run_ranks(functools.partial(train, stage, then, again, True), int(size), folder / "log")
    (folder / "results.json").write_text(json.dumps(codes), encoding="utf-8")


def go_on(names: list[str], folder: Path) -> tuple[Path, dict[str, Any]]:
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")
    return folder, start_script(__file__, folder)


def check(name: str, folder: Path, codes: dict[str, Any]) -> None:
    """Metrics of the whole run, before and after the change, are those of the run that had none."""
    whole = " ".join(name.split()[:2])
    assert {*codes[whole], *codes[name]} == {0}, (folder / "log").read_text(encoding="utf-8")[-4000:]
    assert len(list_checkpoints(folder / whole / "checkpoints")) > KEPT + 1  # there was something left to do
    wanted, found = (timeless(lines(folder / n / "metrics.jsonl")) for n in (whole, name))
    assert worst(found, wanted, 1e-2) < 2e-4
    finals = [sorted(p.name for p in (folder / n / "final").iterdir()) for n in (whole, name)]
    assert finals[0] == finals[1]


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return go_on(FAST, tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.parametrize("name", FAST)
def test_goes_on_elsewhere(name: str, fast: tuple[Path, dict[str, Any]]) -> None:
    check(name, *fast)


@pytest.mark.slow
def test_goes_on_elsewhere_in_every_stage(tmp_path: Path) -> None:
    folder, codes = go_on(SLOW, tmp_path)
    for name in SLOW:
        check(name, folder, codes)


if __name__ == "__main__":
    script(Path(sys.argv[1]))
