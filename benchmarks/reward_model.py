"""Pairs a second of ppomax's reward model training beside TRL 1.16.0's RewardTrainer: same weights, same pairs.

    benchmarks/trl_environment.sh runs/trl
    PPOMAX_DATA=path/to/data python benchmarks/reward_model.py --trl runs/trl/reward/bin/python

Settings, the same for all: `helpful_pairs_en` of $PPOMAX_DATA, pairs drawn by seed among those whose two sides have at most
512 tokens (a byte-level tokenizer of 4096 entries, trained on the same file); a fresh Llama of 5.7M parameters; 8 pairs an
update, AdamW at a constant 1e-5, gradient norm clipped at 1, no imitation loss (TRL has none), no gradient checkpointing
(TRL's default is on). A turn is one pass over all pairs in a shuffled order: the same pairs for all, each once. TRL's own
settings otherwise: its batches are padded to their longest sequence. Contenders, turns and medians as in ppo_iteration.py;
`trl_bfloat16` also has its optimiser in bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from contest import Contender, about, append_line, ratio, run_in_turns, say, summarise, table

from ppomax.config import RewardConfig
from ppomax.data.chat import ChatFormat
from ppomax.data.sources import load_mixture
from ppomax.models.fresh import new_model
from ppomax.models.loading import load_causal_lm, load_tokenizer
from ppomax.models.scalar import on_backbone, reset_unit
from ppomax.train.pairs import encode_pairs

OURS = {"ours_float32": "float32", "ours_bf16": "bf16"}
TRL: dict[str, dict[str, Any]] = {
    "trl_float32": {"weights": "float32", "bf16": False},
    "trl_bf16_flag": {"weights": "float32", "bf16": True},
    "trl_bfloat16": {"weights": "bfloat16", "bf16": False},
}
MAX_LENGTH, BATCH = 512, 8


def make_start(folder: Path, data: Path, count: int, seed: int) -> dict[str, Any]:
    """Model, classifier and pairs (as text and as ids) below ``folder``; returns how many tokens, padded and not."""
    records = load_mixture(RewardConfig(model="", data=str(data), output_dir="").data, "pair", split_seed=0)[0]
    texts = [m["content"] for r in records for m in (*r.prompt, *r.chosen, *r.rejected)]  # type: ignore[union-attr]
    size = new_model(folder / "model", texts, size="6m", seed=seed)
    tokenizer, causal = (
        load_tokenizer(str(folder / "model")),
        load_causal_lm(str(folder / "model"), torch.device("cpu")),
    )
    classifier = on_backbone(causal, pad_id=tokenizer.pad_token_id)
    reset_unit(classifier, seed)
    classifier.save_pretrained(folder / "classifier")
    tokenizer.save_pretrained(folder / "classifier")
    config = RewardConfig(model="", data="memory", output_dir="", max_length=MAX_LENGTH, overlong="drop")
    encoded, lines = encode_pairs(records, ChatFormat(tokenizer), config)  # type: ignore[arg-type]
    say("; ".join(lines))
    chosen = random.Random(seed).sample(encoded, count)
    with (folder / "ids.jsonl").open("w") as ids, (folder / "pairs.jsonl").open("w") as text:
        for pair in chosen:
            ids.write(json.dumps({"chosen_ids": pair.chosen.tolist(), "rejected_ids": pair.rejected.tolist()}) + "\n")
            fields = {"prompt": pair.pair.prompt, "chosen": pair.pair.chosen, "rejected": pair.pair.rejected}
            text.write(json.dumps(fields) + "\n")
    tokens = sum(p.tokens for p in chosen)
    return {"parameters": size["parameters"], "pairs": count, "tokens": tokens, "mean_length": tokens / 2 / count}


def make_contender(name: str, folder: Path, trl_python: str | None, options: argparse.Namespace) -> Contender:
    passes = options.warmup + options.iterations + 2
    if name in OURS:
        config = {
            "model": str(folder / "model"), "data": str(folder / "pairs.jsonl"), "output_dir": str(folder / name / "run"),
            "eval_fraction": 0.0, "max_length": MAX_LENGTH, "overlong": "drop", "precision": OURS[name], "device": "cpu",
            "epochs": passes, "lm_coef": 0.0, "min_pairs": BATCH, "max_pairs": BATCH, "max_grad_norm": 1.0,
            "optim": {"lr": 1e-5, "schedule": "constant", "warmup": 0.0, "betas": [0.9, 0.999]}, "checkpoint": {"every": 0},
        }  # fmt: skip
        config |= {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in options.set)}
        return Contender(name, sys.executable, "ours_reward.py", {"config": config, "pairs": options.pairs})
    if trl_python is None:
        raise SystemExit(f"{name} needs --trl: the Python of an environment made by benchmarks/trl_environment.sh")
    args = {
        "num_train_epochs": passes, "per_device_train_batch_size": BATCH, "max_length": MAX_LENGTH, "learning_rate": 1e-5,
        "lr_scheduler_type": "constant", "warmup_steps": 0, "adam_beta2": 0.999, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "gradient_checkpointing": False, "bf16": TRL[name]["bf16"], "use_cpu": True, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "logging_steps": 10**6, "seed": options.seed,
    }  # fmt: skip
    spec = {
        "model": str(folder / "classifier"), "pairs": str(folder / "ids.jsonl"), "weights": TRL[name]["weights"],
        "args": args,
    }  # fmt: skip
    return Contender(name, trl_python, "trl_reward.py", spec)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="Python of TRL 1.16.0's environment; without it only ours run")
    parser.add_argument("--data", type=Path, help="file of pairs; default: $PPOMAX_DATA/helpful_pairs_en.jsonl.gz")
    parser.add_argument("--pairs", type=int, default=64, help="pairs of a turn, a multiple of 8")
    parser.add_argument("--contenders", nargs="+", choices=[*OURS, *TRL], default=None)
    parser.add_argument("--iterations", type=int, default=5, help="measured rounds")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="further settings of ours")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/reward_model.jsonl"))
    parser.add_argument("--quick", action="store_true", help="16 pairs, 2 rounds after one of warm-up")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.iterations, options.warmup = 16, 2, 1
    if options.pairs % BATCH:
        parser.error(f"--pairs {options.pairs}: not a multiple of {BATCH}")
    if options.data is None:
        if "PPOMAX_DATA" not in os.environ:
            parser.error("name a file with --data, or the folder of helpful_pairs_en.jsonl.gz in PPOMAX_DATA")
        options.data = Path(os.environ["PPOMAX_DATA"]) / "helpful_pairs_en.jsonl.gz"
    if options.contenders is None:
        options.contenders = [*OURS, *(TRL if options.trl else {})]
    with tempfile.TemporaryDirectory(prefix="reward_model.") as place:
        folder = Path(place)
        case = make_start(folder, options.data, options.pairs, options.seed)
        contenders = [make_contender(name, folder, options.trl, options) for name in options.contenders]
        origin = about("reward_model", options)
        records = run_in_turns(
            contenders, warmup=options.warmup, iterations=options.iterations, threads=options.threads, folder=folder,
            keep=lambda record: append_line(options.out, {"kind": "pass", **origin, **case, **record}),
        )  # fmt: skip
    summary = summarise(records)
    pairs = [(f, s) for f in options.contenders if f in OURS for s in options.contenders if s in TRL]
    ratios = {
        f"{f} / {s}": {**ratio(records, s, f), "cpu_seconds": ratio(records, s, f, clock="cpu_seconds")["ratio"]}
        for f, s in pairs
    }
    facts = {c.name: c.facts for c in contenders}
    append_line(
        options.out, {"kind": "summary", **origin, **case, "summary": summary, "ratios": ratios, "facts": facts}
    )
    here = origin["machine"]
    print(f"{here['processor']}, {here['threads']} threads, load {here['load']:.1f} before the run")
    print(
        f"{case['parameters'] / 1e6:.1f}M parameters; {case['pairs']} pairs, {case['mean_length']:.0f} tokens a side\n"
    )
    print(table(summary, (), unit="pairs"))
    for name, row in summary.items():
        if row["updates"] != options.pairs // BATCH or row["units"] != options.pairs:
            print(f"NOT COMPARABLE: {name} made {row['updates']} updates on {row['units']} pairs a turn")
    print()
    for name, r in ratios.items():
        print(
            f"- {name}: {r['ratio']:.2f} times the pairs a second (by round {r['lowest']:.2f} to {r['highest']:.2f}; "
            f"by processor time {r['cpu_seconds']:.2f})"
        )
    print(json.dumps({"records": str(options.out)}))


if __name__ == "__main__":
    main()
