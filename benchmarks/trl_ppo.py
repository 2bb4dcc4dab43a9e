"""TRL's PPOTrainer as a contender, unchanged: its phases are seen from outside, where it calls its own functions.

Runs in TRL's environment (trl_environment.sh); started by ppo_iteration.py and scaling.py with one argument, a JSON file:
threads, policy, reward, prompts (files), output_dir, weights ("float32", "bfloat16"), args (PPOConfig's fields).

- sample: `batch_generation`; score: from there to the first forward pass that is trained (GAE included); update: the
  rest, with logging. An iteration ends with `on_step_end`.
- Updates are counted as optimiser steps, not as calls of `step`, which accumulation may make empty.
"""

from __future__ import annotations

import copy
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
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    drawn: dict[str, Any] = {"tokens": 0, "updates": 0, "samples": 0}
    sample, forward = ppo_trainer.batch_generation, ppo_trainer.forward

    def batch_generation(model: Any, queries: Any, *args: Any, **kwargs: Any) -> Any:
        result = sample(model, queries, *args, **kwargs)
        turns.phase("sample")
        responses = result[0][:, queries.shape[1] :]
        ended = (responses == eos).int()
        before = ended.cumsum(dim=1) - ended  # 0 up to and with the first end
        drawn["tokens"], drawn["samples"] = int((before == 0).sum()), len(responses)
        drawn["scoring"] = True
        return result

    def first_training_pass(model: Any, *args: Any, **kwargs: Any) -> Any:
        if model is trainer.model and drawn.get("scoring"):
            turns.phase("score")
            drawn["scoring"] = False
        return forward(model, *args, **kwargs)

    class EndOfIteration(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.phase("update")
            last = trainer.state.log_history[-1] if trainer.state.log_history else {}
            turns.finish(
                units=drawn["tokens"], samples=drawn["samples"], updates=drawn["updates"],
                reward=last.get("objective/scores"), kl=last.get("objective/kl"),
                mixed_precision=str(trainer.accelerator.mixed_precision),
                device_peak_mib=torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
            )  # fmt: skip
            drawn["updates"] = 0

    def count_update(*_: Any) -> None:
        drawn["updates"] += 1

    ppo_trainer.batch_generation, ppo_trainer.forward = batch_generation, first_training_pass
    args = PPOConfig(output_dir=spec["output_dir"], **spec["args"])
    cuda = args.device.type == "cuda"
    if cuda:
        turns.settle = torch.cuda.synchronize
    turns.ready(
        torch=torch.__version__, threads=torch.get_num_threads(), trl=trl.__version__, weights=spec["weights"],
        transformers=transformers.__version__, args=spec["args"],
    )  # fmt: skip
    dtype = getattr(torch, spec["weights"])
    tokenizer = AutoTokenizer.from_pretrained(spec["policy"], padding_side="left")
    eos = tokenizer.eos_token_id
    policy = AutoModelForCausalLM.from_pretrained(spec["policy"], dtype=dtype)
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(spec["reward"], dtype=dtype, num_labels=1) for _ in range(2)
    )
    lines = Path(spec["prompts"]).read_text(encoding="utf-8").splitlines()
    prompts = Dataset.from_list([{"input_ids": json.loads(line)["ids"]} for line in lines])
    trainer = PPOTrainer(
        args=args, processing_class=tokenizer, model=policy, ref_model=copy.deepcopy(policy), reward_model=reward,
        value_model=value, train_dataset=prompts, eval_dataset=prompts, callbacks=[EndOfIteration()],
    )  # fmt: skip
    optimizer = trainer.optimizer
    getattr(optimizer, "optimizer", optimizer).register_step_post_hook(count_update)
    trainer.train()


if __name__ == "__main__":
    main()
