"""A PPO iteration of ppomax beside TRL 1.12.0's: same weights, prompts, lengths, settings, samples and updates.

    benchmarks/trl_environment.sh runs/trl
    python benchmarks/ppo_iteration.py --trl runs/trl/ppo/bin/python                     # 5.7M and 27M, both lengths
    python benchmarks/ppo_iteration.py --trl runs/trl/ppo/bin/python --quick             # a minute or two, one of each
    python benchmarks/ppo_iteration.py --trl ... --sizes 27m --contenders ours_bf16 trl_bfloat16 --set ppo_epochs=1

Contenders:
    ours_float32   everything in float32
    ours_bf16      precision: bf16 (float32 weights, optimiser and losses, bf16 arithmetic)
    trl_float32    float32 weights
    trl_bf16_flag  float32 weights and bf16=True
    trl_bfloat16   all models loaded in bf16; so is its optimiser: small updates are lost (small_updates.py)

Settings, the same for all: 32 prompts of 64 random tokens, at most 64 new tokens, temperature 1, no top-p or top-k; one PPO
epoch of 4 minibatches of 8 samples, one optimiser step each (counted, not assumed); KL coefficient .05 (k1), gamma 1, lambda
.95, advantages whitened, clip ranges .2 and .2, no gradient clip, no ptx; AdamW with betas .9 and .999, constant learning
rate 1e-6; a reward model and a critic of the policy's shape. TRL runs without gradient checkpointing (its default is on,
which would make it slower), with all rows of a minibatch in one pass, and whitens over the batch, ppomax over the minibatch.
Lengths: `fixed` ends nothing early (the end-of-sequence token has probability 0); `real` gives it the probability with which
geometric lengths, cut at the limit, have a mean of half of it. It is in the weights (fixtures.py), so both draw from it.

Every contender is a process of its own; they run in turns, one iteration each, forwards and backwards. Medians over the
measured rounds; tokens are response tokens; a ratio compares response tokens a second, for real lengths differ from draw to
draw. An iteration lasts from one turn to the next, bookkeeping, metrics and logs included, so phases sum to less. Peak memory
is the process's highest resident memory, libraries and start-up included. Processor time (all threads of a process) is
printed beside the clock's, for machines that are not free: where the two disagree, the measurement should be repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from contest import Contender, about, append_line, machine, ratio, run_in_turns, say, summarise, table
from fixtures import SHAPES, Start, make_start, parameters

PHASES = ("sample", "score", "update")
OURS = {"ours_float32": "float32", "ours_bf16": "bf16"}
TRL: dict[str, dict[str, Any]] = {
    "trl_float32": {"weights": "float32", "bf16": False},
    "trl_bf16_flag": {"weights": "float32", "bf16": True},
    "trl_bfloat16": {"weights": "bfloat16", "bf16": False},
}


def our_config(
    start: Start,
    output_dir: Path,
    *,
    precision: str,
    batch: int,
    minibatches: int,
    response: int,
    iterations: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """PPOConfig's fields; algorithm as TRL's, see the head of this file."""
    optimizer = {"lr": 1e-6, "schedule": "constant", "warmup": 0.0, "betas": [0.9, 0.999], "eps": 1e-8}
    return {
        "model": str(start.policy), "reward": [str(start.reward)], "prompts": str(start.prompts),
        "output_dir": str(output_dir), "preset": "vanilla", "precision": precision, "device": device,
        "iterations": iterations, "rollout_batch": batch, "minibatch": batch // minibatches, "ppo_epochs": 1,
        "max_prompt_length": 2048, "sampling": {"max_new_tokens": response, "temperature": 1.0, "batch_size": batch},
        "kl": {"coef": 0.05, "estimator": "k1"}, "advantage": {"normalise": True}, "gae": {"gamma": 1.0, "lam": 0.95},
        "surrogate": {"clip_range": 0.2}, "critic": {"init": "reward", "value_clip": 0.2, "pretrain_iterations": 0},
        "grad_clip": {"norm": 0.0}, "policy_optim": optimizer, "critic_optim": optimizer,
        "watch": {"eval_prompts": 0, "every": 10**6}, "checkpoint": {"every": 0},
    }  # fmt: skip


def trl_args(
    *, bf16: bool, batch: int, minibatches: int, response: int, iterations: int, device: str = "cpu"
) -> dict[str, Any]:
    """trl.experimental.ppo.PPOConfig's fields.

    With gradient_accumulation_steps above 1, TRL 1.12.0 steps once in so many *minibatches*; so all samples are one
    device batch, whose minibatches are steps.
    """
    return {
        "total_episodes": batch * iterations, "per_device_train_batch_size": batch, "gradient_accumulation_steps": 1,
        "num_mini_batches": minibatches, "num_ppo_epochs": 1, "local_rollout_forward_batch_size": batch,
        "response_length": response, "stop_token": "eos", "temperature": 1.0, "kl_coef": 0.05, "kl_estimator": "k1",
        "gamma": 1.0, "lam": 0.95, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 1.0, "whiten_rewards": False,
        "learning_rate": 1e-6, "lr_scheduler_type": "constant", "warmup_steps": 0, "adam_beta1": 0.9,
        "adam_beta2": 0.999, "weight_decay": 0.0, "gradient_checkpointing": False, "bf16": bf16, "use_cpu": device == "cpu",
        "num_sample_generations": 0, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "logging_steps": 10**6, "seed": 0,
    }  # fmt: skip


def make_contender(
    name: str, start: Start, folder: Path, trl_python: str | None, overrides: dict[str, Any], **settings: Any
) -> Contender:
    """One of OURS or TRL, by name."""
    if name in OURS:
        config = our_config(start, folder / name / "run", precision=OURS[name], **settings)
        for path, value in overrides.items():
            *sections, last = path.split(".")
            place = config
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        return Contender(name, sys.executable, "ours_ppo.py", {"config": config})
    if trl_python is None:
        raise SystemExit(f"{name} needs --trl: the Python of an environment made by benchmarks/trl_environment.sh")
    kind = TRL[name]
    files = {"policy": start.policy, "reward": start.reward, "prompts": start.prompts}
    spec = {key: str(path) for key, path in files.items()} | {
        "weights": kind["weights"], "args": trl_args(bf16=kind["bf16"], **settings),
    }  # fmt: skip
    return Contender(name, trl_python, "trl_ppo.py", spec)


def compare(size: str, lengths: str, options: argparse.Namespace, out: Path) -> str:
    """Run one table's contenders; every record goes to ``out``; returns Markdown."""
    shape = SHAPES[size]
    mean = options.response if lengths == "fixed" else options.response / 2
    settings = {
        "batch": options.batch, "minibatches": options.minibatches, "response": options.response,
        "iterations": options.warmup + options.iterations + 2, "device": options.device,
    }  # fmt: skip
    say(f"{size}, {lengths} lengths")
    with tempfile.TemporaryDirectory(prefix="ppo_iteration.") as place:
        folder = Path(place)
        start = make_start(
            folder / "start", shape, prompts=options.batch, prompt_length=options.prompt,
            response_length=options.response, mean_length=mean, seed=options.seed,
        )  # fmt: skip
        overrides = {path: yaml.safe_load(value) for path, _, value in (s.partition("=") for s in options.set)}
        contenders = [
            make_contender(name, start, folder, options.trl, overrides, **settings) for name in options.contenders
        ]
        origin = about("ppo_iteration", options)
        case = {"size": size, "lengths": lengths, "parameters": start.parameters, "mean_length": mean}
        records = run_in_turns(
            contenders, warmup=options.warmup, iterations=options.iterations, threads=options.threads, folder=folder,
            keep=lambda record: append_line(out, {"kind": "iteration", **origin, **case, **record}),
        )  # fmt: skip
    summary = summarise(records)
    pairs = [(f, s) for f in options.contenders if f in OURS for s in options.contenders if s in TRL]
    ratios = {
        f"{fast} / {slow}": {
            **ratio(records, slow, fast),
            **{clock: {p: ratio(records, slow, fast, phase=p, clock=clock)["ratio"] for p in (*PHASES, "total")}
               for clock in ("seconds", "cpu_seconds")},
        } for fast, slow in pairs
    }  # fmt: skip
    facts = {c.name: c.facts for c in contenders}
    append_line(out, {"kind": "summary", **origin, **case, "summary": summary, "ratios": ratios, "facts": facts})
    lines = [f"## {size} ({start.parameters / 1e6:.1f}M parameters), {lengths} lengths", "", table(summary, PHASES), ""]
    for row in summary.values():
        if row["updates"] != options.minibatches:
            lines.append(f"NOT COMPARABLE: {row['updates']} updates an iteration instead of {options.minibatches}")
    if ratios:
        lines += ["| times as fast | total | by round | sample | score | update | by processor time | peak memory |"]
        lines += ["|---" * 8 + "|"]
    for (fast, slow), r in zip(pairs, ratios.values(), strict=True):
        share = summary[fast]["peak_mib"] / summary[slow]["peak_mib"]
        by_phase = " | ".join(f"{r['seconds'][p]:.2f}" for p in PHASES)
        lines.append(
            f"| {fast} / {slow} | {r['ratio']:.2f} | {r['lowest']:.2f} to {r['highest']:.2f} | {by_phase} | "
            f"{r['cpu_seconds']['total']:.2f} | {share:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="Python of TRL's environment; without it only ours run")
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=["5.7m", "27m"])
    parser.add_argument("--lengths", nargs="+", choices=["fixed", "real"], default=["fixed", "real"])
    parser.add_argument("--contenders", nargs="+", choices=[*OURS, *TRL], default=None)
    parser.add_argument("--iterations", type=int, default=5, help="measured rounds")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before them; the first one loads and compiles")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every contender")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=32, help="prompts an iteration")
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--response", type=int, default=64, help="most new tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="further settings of ours")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/ppo_iteration.jsonl"))
    parser.add_argument("--quick", action="store_true", help="5.7M, fixed lengths, 2 rounds after one of warm-up")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.lengths, options.iterations, options.warmup = (
            options.sizes[:1],
            options.lengths[:1],
            2,
            1,
        )
    if options.contenders is None:
        options.contenders = [*OURS, *(TRL if options.trl else {})]
    here = machine(options.threads)
    print(f"{here['processor']}, {here['threads']} threads, load {here['load']:.1f} before the run\n")
    for size in options.sizes:
        say(f"{size}: {parameters(SHAPES[size]) / 1e6:.1f}M parameters")
        for lengths in options.lengths:
            print(compare(size, lengths, options, options.out), flush=True)
    print(json.dumps({"records": str(options.out)}))


if __name__ == "__main__":
    main()
