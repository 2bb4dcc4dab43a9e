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
    from ppomax import PPOConfig, train_ppo
    from ppomax.train import ppo
    from ppomax.train.run import RunDirectory

    write, lap = RunDirectory.log, ppo.Clock.lap

    def phase(clock: ppo.Clock, name: str) -> None:
        lap(clock, name)
        turns.phase(name)

    def log(run: RunDirectory, record: Mapping[str, Any], file: str = "metrics.jsonl") -> None:
        write(run, record, file)
        if (
            file == "metrics.jsonl"
        ):  # the iteration's last act but for the next one's beginnings, which are timed with it
            turns.finish(
                units=round(record["response/length"] * config.rollout_batch), samples=config.rollout_batch,
                updates=-(-config.rollout_batch // config.minibatch) * config.ppo_epochs,
                reward=record["reward/mean"], kl=record["kl/ref"],
            )  # fmt: skip

    RunDirectory.log, ppo.Clock.lap = log, phase  # type: ignore[method-assign]
    config = PPOConfig(**spec["config"])
    turns.ready(torch=torch.__version__, threads=torch.get_num_threads(), config=config.model_dump(mode="json"))
    train_ppo(config)


if __name__ == "__main__":
    main()
