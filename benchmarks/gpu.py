"""PPO with four models of one size on one device: seconds, tokens/s and memory by phase, share of the bf16 matrix rate.

    python benchmarks/gpu.py                                   # 1.1B parameters each, random weights, on CUDA
    python benchmarks/gpu.py --device cpu --size tiny ...      # to try it

Policy and critic have float32 weights, gradients and AdamW moments (about 18 GB each at 1.1B), arithmetic is bf16. Full
lengths: the end-of-sequence token has probability 0. "Share" is the arithmetic of updating as written down (roofline.py:
forward and both backward products of policy and critic, attention and unembedding included, no recomputation counted) per
second, over the rate of a large square bf16 product measured just before. Models are drawn on the device and given to
`train_ppo` in memory; the reward model is another one of the same shape.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from contest import append_line, machine, say
from fixtures import SHAPES, fresh_llama, make_prompts, make_tokenizer, set_eos_probability
from laps import Stopped, settle, watched
from ppo_iteration import our_config
from roofline import PHASES, needed

from ppomax import PPOConfig, train_ppo
from ppomax.data.records import Prompt
from ppomax.models.scalar import on_backbone, reset_unit


def matrix_rate(device: str, side: int) -> float:
    """FLOP/s of a square bf16 product, the best of three series of ten."""
    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(4):  # the first warms up
        settle(device)
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        settle(device)
        times.append((time.perf_counter() - start) / 10)
    return 2 * side**3 / min(times[1:])


def memory_gib(device: str) -> float:
    """Highest memory of tensors on the device since the last call; 0 on a CPU."""
    if not device.startswith("cuda"):
        return 0.0
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


def observe(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Run warm-up and measured iterations; a row an iteration: {phase: (seconds, GiB)}."""
    shape, device = SHAPES[options.size], options.device
    with tempfile.TemporaryDirectory(prefix="gpu.") as place:
        nowhere: Any = argparse.Namespace(policy="memory", reward="memory", prompts="memory")
        fields = our_config(
            nowhere, Path(place) / "run", precision="bf16", batch=options.batch, minibatches=4,
            response=options.response, iterations=options.warmup + options.iterations + 1, device=device,
        )  # fmt: skip
        fields |= {"reward": [], "micro_batch_tokens": options.micro_batch_tokens}
        fields["critic"] |= {"init": "reward"}
        fields |= {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in options.set)}
        policy = fresh_llama(shape, device=device)
        set_eos_probability(policy, 0.0)
        reward = on_backbone(fresh_llama(shape, seed=1, device=device), pad_id=0)
        reset_unit(reward, 0)
        say(f"{policy.num_parameters() / 1e6:.0f}M parameters each")
        prompts = [
            Prompt(({"role": "user", "content": " ".join(f"w{i}" for i in ids)},))
            for ids in make_prompts(options.batch, options.prompt, shape.vocabulary)
        ]
        rows.append({})

        def lapped(name: str, seconds: float) -> None:
            rows[-1][name] = seconds, memory_gib(device)
            if name == "update":
                say(f"iteration {len(rows)}: " + ", ".join(f"{p} {s:.2f} s" for p, (s, _) in rows[-1].items()))
                if len(rows) == options.warmup + options.iterations:
                    raise Stopped
                rows.append({})

        with watched(lapped, device=device):
            train_ppo(
                PPOConfig(**fields), policy=policy, tokenizer=make_tokenizer(shape.vocabulary), reward=reward,
                prompts=prompts,
            )  # fmt: skip


def page(rows: Sequence[dict[str, Any]], rate: float, options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Markdown and the record behind it."""
    shape = SHAPES[options.size]
    work = needed(
        shape, batch=options.batch, minibatch=options.batch // 4, prompt=options.prompt, response=options.response
    )
    seconds = {p: statistics.median(r[p][0] for r in rows) for p in PHASES}
    memory = {p: max(r[p][1] for r in rows) for p in PHASES}
    flops = {p: sum(n * product.flops for product, n in work[p]) for p in PHASES}
    tokens = options.batch * options.response
    cuda = options.device.startswith("cuda")
    name = torch.cuda.get_device_name() if cuda else machine(torch.get_num_threads())["processor"]
    record = {
        "device": name, "torch": torch.__version__, "transformers": transformers.__version__, "size": options.size,
        "batch": options.batch, "prompt": options.prompt, "response": options.response,
        "micro_batch_tokens": options.micro_batch_tokens, "iterations": len(rows), "matrix_rate": rate,
        "seconds": seconds, "memory_gib": memory, "flops": flops,
        "share": {p: flops[p] / seconds[p] / rate for p in PHASES}, "set": options.set,
    }  # fmt: skip
    total = sum(seconds.values())
    lines = [
        f"Device: **{name}**; torch {torch.__version__}, transformers {transformers.__version__}.", "",
        f"PPO with four models of shape {options.size}, random weights; {options.batch} prompts of {options.prompt} tokens, "
        f"{options.response} new tokens each, 4 minibatches, one epoch, bf16 arithmetic, float32 weights and AdamW; medians of "
        f"{len(rows)} iterations after {options.warmup} of warm-up. A bf16 product of {options.matrix} x {options.matrix} "
        f"matrices ran at {rate / 1e12:.3g} TFLOP/s.", "",
        "| phase | seconds | response tokens/s | TFLOP | share of the bf16 matrix rate | peak device memory, GiB |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for p in PHASES:
        lines.append(
            f"| {p} | {seconds[p]:.3f} | {tokens / seconds[p]:.0f} | {flops[p] / 1e12:.3g} | {record['share'][p]:.0%} | "
            f"{memory[p]:.1f} |"
        )
    everything = sum(flops.values())
    lines.append(
        f"| iteration | {total:.3f} | {tokens / total:.0f} | {everything / 1e12:.3g} | {everything / total / rate:.0%} | "
        f"{max(memory.values()):.1f} |"
    )
    return "\n".join(lines), record


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(SHAPES), default="1b")
    parser.add_argument("--batch", type=int, default=64, help="prompts an iteration")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--response", type=int, default=256)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--matrix", type=int, default=8192, help="side of the product that measures the device")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="further settings of ours")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/gpu.jsonl"))
    options = parser.parse_args()
    rate = matrix_rate(options.device, options.matrix)
    rows: list[dict[str, Any]] = []
    observe(options, rows)
    text, record = page(rows[options.warmup :], rate, options)
    append_line(options.out, record)
    print(text)


if __name__ == "__main__":
    main()
