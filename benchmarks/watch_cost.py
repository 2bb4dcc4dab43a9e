"""What watching costs: the metrics of an iteration, the collapse watch and the line on disk, as a share of the iteration.

    python benchmarks/watch_cost.py                                # three sizes, some minutes on a CPU
    python benchmarks/watch_cost.py --device cuda --shape 300m
    python benchmarks/watch_cost.py --threads 1 --processor        # on a machine that is not free

PPO as it is, on responses that all have the full length (fixtures.py); a small policy on a CPU, so that the iteration is
short and the shares are the upper end of what a run sees. An iteration lasts `time/total`; `time/metrics` is the decoding of
the responses and everything that is worked out of them, and the two steps after it are timed besides: the collapse watch
(`Guard.look`) and the line of metrics.jsonl. Held-out answers and their judging are sampling, with intervals of their own,
and are not in it. Medians over the iterations, the first one left out. ``--processor`` counts the process's processor time
instead of the clock's, which with one thread (others wait busily) does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from contest import append_line, machine, say
from fixtures import SHAPES, make_start
from ppo_iteration import our_config

from ppomax import PPOConfig, train_ppo
from ppomax.train import ppo
from ppomax.train.ppo_guard import Guard
from ppomax.train.run import RunDirectory

SIZES = {"64 x 48": (64, 48), "128 x 128": (128, 128), "512 x 512": (512, 512)}
"""responses of an iteration, and tokens of each"""
PROMPT = 32


@contextmanager
def timed(owner: type, name: str, seconds: list[float], clock: Callable[[], float]) -> Iterator[None]:
    """Append to ``seconds`` what each call of a method takes by ``clock``."""
    method: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        began = clock()
        try:
            return method(*args, **options)
        finally:
            seconds.append(clock() - began)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, method)


def cost(metrics: list[dict[str, Any]], look: list[float], log: list[float]) -> dict[str, float]:
    """Medians in seconds, and their share of the iteration, from lines of metrics.jsonl and the calls beside them."""
    after = [a + b for a, b in zip(look, log, strict=True)]
    rows = list(zip(metrics, after, strict=True))[1:]
    totals = [line["time/total"] + rest for line, rest in rows]
    watched = [line["time/metrics"] + rest for line, rest in rows]
    return {
        "iteration": statistics.median(totals),
        "metrics": statistics.median(line["time/metrics"] for line, _ in rows),
        "watch_and_log": statistics.median(rest for _, rest in rows),
        "share": statistics.median(w / t for w, t in zip(watched, totals, strict=True)),
    }


def measure(
    shape: str, samples: int, tokens: int, iterations: int, device: str, folder: Path, clock: Callable[[], float]
) -> dict[str, float]:
    start = make_start(
        folder, SHAPES[shape], prompts=samples, prompt_length=PROMPT, response_length=tokens, mean_length=tokens
    )
    settings = our_config(
        start, folder / "run", precision="float32" if device == "cpu" else "bf16", batch=samples, minibatches=4,
        response=tokens, iterations=iterations, device=device,
    )  # fmt: skip
    look: list[float] = []
    log: list[float] = []
    ppo.time = SimpleNamespace(perf_counter=clock)  # type: ignore[assignment]
    with timed(Guard, "look", look, clock), timed(RunDirectory, "log", log, clock):
        result = train_ppo(PPOConfig(**settings))
    return cost(result.metrics, look, log)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--shape", choices=list(SHAPES), default="1m")
    parser.add_argument("--iterations", type=int, default=4, choices=range(2, 12), help="before detectors begin")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--processor", action="store_true", help="processor time instead of the clock's")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/watch_cost.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.processor else time.perf_counter
    say(json.dumps(machine(torch.get_num_threads())))
    print("| responses x tokens | iteration, s | metrics, ms | watch and log, ms | share |\n|---|---|---|---|---|")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(options.shape, *SIZES[size], options.iterations, options.device, Path(folder), clock)
        append_line(options.out, {"size": size, "shape": options.shape, **row, **machine(torch.get_num_threads())})
        print(
            f"| {size} | {row['iteration']:.2f} | {1000 * row['metrics']:.1f} | {1000 * row['watch_and_log']:.1f} | "
            f"{row['share']:.2%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
