"""Two ranks over gloo do what one does: same samples, moments, advantages, losses, norms, metrics and weights."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ppomax.errors import UserError
from ppomax.train import ppo
from ppomax.train.ppo_update import Updater

sys.path.insert(0, str(Path(__file__).parent))
from kill_tools import begin, end, forget_to_sync, start_script
from ppo_tools import dialogues, lines, make_policy, make_tokenizer, run, timeless, weights
from rank_tools import free_port

SCENARIOS: dict[str, dict[str, Any]] = {
    "odd batches": {"rollout_batch": 7, "minibatch": 3, "advantage.normalise": True, "micro_batch_tokens": 60},
    "a rank without samples": {"rollout_batch": 4, "minibatch": 3, "grad_clip.joint": True, "watch.eval_prompts": 1},
    "everything": {
        "rollout_batch": 6, "minibatch": 5, "sampling.samples_per_prompt": 3, "buffer_iterations": 2, "ppo_epochs": 2,
        "critic.pretrain_iterations": 1, "kl": {"controller": "adaptive", "target": 0.3, "horizon": 60},
        "entropy": {"coef": 0.1, "target": 5.0}, "ptx": {"coef": 0.5, "batch_ratio": 0.4}, "checkpoint.every": 2,
        "advantage": {"normalise": True, "clip": 1.0}, "surrogate.kind": "penalty",
    },
    "adapters": {"lora": {"rank": 2}, "rollout_batch": 5},
}  # fmt: skip


def train(folder: Path, name: str, rank: int, size: int, port: int) -> int:
    """One rank of one scenario; leaves what it saw in a file of its own."""
    if size > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    fresh, minibatches = [], []
    gather, update = ppo.gather, Updater.update

    def keep_fresh(ranks: Any, mine: Any, total: int) -> Any:
        fresh.append(gather(ranks, mine, total))
        return fresh[-1]

    def keep_minibatch(updater: Updater, minibatch: Any, ptx: Any, *, policy: bool) -> dict[str, float]:
        numbers = update(updater, minibatch, ptx, policy=policy)
        minibatches.append(numbers)
        return numbers

    ppo.gather, Updater.update = keep_fresh, keep_minibatch  # type: ignore[assignment, method-assign]
    result = run(folder / f"{name}-{size}", {"iterations": 3, **SCENARIOS[name]}, ptx=dialogues())
    seen = {
        "fresh": [{k: v.tolist() for k, v in e.state_dict().items()} for e in fresh],
        "updates": minibatches,
        "metrics": timeless(result.metrics),
        "weights": [
            torch.cat([p.flatten() for p in weights(m).values()]).tolist() for m in (result.policy, result.critic)
        ],
    }
    (folder / f"{name}-{size}-{rank}.json").write_text(json.dumps(seen), encoding="utf-8")
    return 0


def script(folder: Path) -> None:
    forget_to_sync()
    make_policy()
    make_tokenizer()
    codes = {}
    for name in SCENARIOS:
        port = free_port()
        places = [(0, 1), (0, 2), (1, 2)]
        children = [
            begin(functools.partial(train, folder, name, rank, size, port), folder / f"{name}-log")
            for rank, size in places
        ]
        codes[name] = [end(child) for child in children]
    (folder / "results.json").write_text(json.dumps(codes), encoding="utf-8")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    folder = tmp_path_factory.mktemp("ranks")
    return folder, start_script(__file__, folder)


def close(found: Any, wanted: Any, where: str, rel: float, absolute: float) -> None:
    """Nested lists and mappings of numbers, equal to float32 rounding after three iterations of updates."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            close(found[key], wanted[key], f"{where}/{key}", rel, absolute)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
            close(a, b, f"{where}/{i}", rel, absolute)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=rel, abs=absolute), where
    else:
        assert found == wanted, where


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_two_ranks_equal_one(name: str, results: tuple[Path, dict[str, list[int]]]) -> None:
    folder, codes = results
    assert codes[name] == [0, 0, 0], (folder / f"{name}-log").read_text(encoding="utf-8")[-4000:]
    alone, main, other = (
        json.loads((folder / f"{name}-{place}.json").read_text(encoding="utf-8")) for place in ("1-0", "2-0", "2-1")
    )
    # Both ranks hold the same everything, bit for bit: they never drift apart.
    for part in ("updates", "weights", "metrics"):
        assert main[part] == other[part], part
    assert main["fresh"] == other["fresh"]
    # Against one process there is the rounding of other micro-batches, which three iterations of Adam amplify a little.
    close(main["fresh"], alone["fresh"], "fresh", 1e-4, 2e-5)
    close(main["updates"], alone["updates"], "updates", 1e-4, 2e-5)
    close(main["metrics"], alone["metrics"], "metrics", 1e-4, 2e-5)
    for a, b in zip(main["weights"], alone["weights"], strict=True):
        found, wanted = torch.tensor(a), torch.tensor(b)
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_one_rank_writes(name: str, results: tuple[Path, dict[str, list[int]]]) -> None:
    folder, _ = results
    one, two = folder / f"{name}-1", folder / f"{name}-2"
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert len(lines(one / file)) == len(lines(two / file))
    for a, b in zip(lines(one / "samples.jsonl"), lines(two / "samples.jsonl"), strict=True):
        assert {k: a[k] for k in ("iteration", "prompt", "response", "length", "finished")} == {
            k: b[k] for k in ("iteration", "prompt", "response", "length", "finished")
        }
    assert sorted(p.name for p in (two / "final").iterdir()) == sorted(p.name for p in (one / "final").iterdir())
    assert [p.name for p in (one / "checkpoints").iterdir()] == [p.name for p in (two / "checkpoints").iterdir()]


def test_fewer_samples_than_ranks_are_refused(tmp_path: Path) -> None:
    from ppo_tools import byte_sum, make_config

    from ppomax.train.parallel import Ranks
    from ppomax.train.ppo_setup import prepare

    with pytest.raises(UserError, match=r"rollout_batch = 2: smaller than the number of ranks, 3"):
        prepare(make_config(tmp_path, rollout_batch=2), Ranks(size=3), tokenizer=make_tokenizer(), reward=byte_sum)


if __name__ == "__main__":
    script(Path(sys.argv[1]))
