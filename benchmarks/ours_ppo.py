"""ppomax as a contender: `train_ppo`, stopped after every iteration until its turn comes again.

Started by ppo_iteration.py and scaling.py with one argument, a JSON file: threads, config (PPOConfig's fields).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contender import Turns


def main() -> None:
    turns = Turns()
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(spec["threads"])
    from laps import settle, watched

    from ppomax import PPOConfig, train_ppo
    from ppomax.train.run import RunDirectory

    write = RunDirectory.log

    def device_peak_mib() -> float | None:
        return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else None

    def log(run: RunDirectory, record: Mapping[str, Any], file: str = "metrics.jsonl") -> None:
        write(run, record, file)
        if file == "metrics.jsonl":  # an iteration ends here; what follows is timed with the next one
            turns.finish(
                units=round(record["response/length"] * config.rollout_batch), samples=config.rollout_batch,
                updates=-(-config.rollout_batch // config.minibatch) * config.ppo_epochs,
                reward=record["reward/mean"], kl=record["kl/ref"], device_peak_mib=device_peak_mib(),
            )  # fmt: skip

    RunDirectory.log = log  # type: ignore[method-assign]
    config = PPOConfig(**spec["config"])
    turns.ready(torch=torch.__version__, threads=torch.get_num_threads(), config=config.model_dump(mode="json"))
    turns.settle = lambda: settle(config.device)
    with watched(lambda name, _: turns.phase(name), device=config.device):
        train_ppo(config)


if __name__ == "__main__":
    main()
