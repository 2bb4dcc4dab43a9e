"""TRL's RewardTrainer as a contender, unchanged: a turn is one pass over the pairs.

Runs in TRL's environment (trl_environment.sh); started by reward_model.py with one argument, a JSON file: threads, model
(a sequence classifier), pairs (a file of token ids), output_dir, weights ("float32", "bfloat16"), args (RewardConfig's).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from contender import Turns


def main() -> None:
    turns = Turns()
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(spec["threads"])
    import transformers
    import trl
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    lines = Path(spec["pairs"]).read_text(encoding="utf-8").splitlines()
    pairs = Dataset.from_list([json.loads(line) for line in lines])
    updates = 0

    class EndOfPass(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal updates
            updates += 1

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal updates
            turns.finish(units=len(pairs), updates=updates, kept=len(trainer.train_dataset))
            updates = 0

    args = RewardConfig(output_dir=spec["output_dir"], **spec["args"])
    turns.ready(
        torch=torch.__version__, threads=torch.get_num_threads(), trl=trl.__version__, weights=spec["weights"],
        transformers=transformers.__version__, args=spec["args"],
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(
        spec["model"], dtype=getattr(torch, spec["weights"]), num_labels=1
    )
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    trainer = RewardTrainer(
        model=model, args=args, train_dataset=pairs, processing_class=tokenizer, callbacks=[EndOfPass()]
    )
    trainer.train()


if __name__ == "__main__":
    main()
