"""ppomax's reward model training as a contender: `train_reward`, stopped whenever all pairs have been seen once more.

Started by reward_model.py with one argument, a JSON file: threads, config (RewardConfig's fields), pairs (how many).
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
    from ppomax import RewardConfig, train_reward
    from ppomax.train.run import RunDirectory

    write, seen = RunDirectory.log, {"pairs": 0, "updates": 0}

    def log(run: RunDirectory, record: Mapping[str, Any], file: str = "metrics.jsonl") -> None:
        write(run, record, file)
        seen["pairs"] += record["pairs"]
        seen["updates"] += 1
        if seen["pairs"] >= spec["pairs"]:
            turns.finish(units=seen["pairs"], updates=seen["updates"], loss=record["loss/train"])
            seen.update(pairs=0, updates=0)

    RunDirectory.log = log  # type: ignore[method-assign]
    config = RewardConfig(**spec["config"])
    turns.ready(torch=torch.__version__, threads=torch.get_num_threads(), config=config.model_dump(mode="json"))
    train_reward(config)


if __name__ == "__main__":
    main()
