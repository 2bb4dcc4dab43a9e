"""Whether bf16 arithmetic learns as float32 does: the same runs of the lab in both, seed by seed.

    ppomax lab run C1 --arms ppo_max                                                   # bf16, as all of the lab
    ppomax lab run C1 --arms ppo_max --ppo.precision float32 --results lab/float32
    python benchmarks/precision.py lab/results/shared lab/float32

Prints, for reward, win rate and KL on held-out prompts, how far the two curves of a seed lie apart (root mean square over the
evaluations after the start, and the mean difference at the end), beside how far curves of two seeds lie apart at one precision.
Weights and optimiser are float32 in both.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ppomax.lab.results import Result, read_results
from ppomax.lab.statistics import end

METRICS = {"eval/reward": "reward", "eval/win_rate": "win rate", "eval/kl": "KL, nats a response"}


def curve(result: Result, metric: str) -> list[float]:
    """Values of the evaluations after the first, which comes before any training."""
    return [float(e[metric]) for e in result.evaluations[1:]]


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """Root mean square of the differences."""
    return math.sqrt(statistics.mean((a - b) ** 2 for a, b in zip(one, other, strict=True)))


def compare(half: Mapping[int, Result], full: Mapping[int, Result]) -> list[list[str]]:
    """A row a metric; seeds that both have."""
    seeds = sorted(half.keys() & full.keys())
    rows = []
    for metric, name in METRICS.items():
        a, b = ({s: curve(runs[s], metric) for s in seeds} for runs in (half, full))
        within = [apart(a[s], b[s]) for s in seeds]
        between = [apart(x[s], x[t]) for x in (a, b) for s, t in itertools.combinations(seeds, 2)]
        final = [end(a[s]) - end(b[s]) for s in seeds]
        rows.append([
            name, ", ".join(f"{w:.3g}" for w in within), f"{statistics.mean(within):.3g}", f"{statistics.mean(between):.3g}",
            ", ".join(f"{f:+.3g}" for f in final), f"{statistics.mean(final):+.3g}",
        ])  # fmt: skip
    return rows


def by_seed(folder: Path, precision: str, arm: str) -> dict[int, Result]:
    found = read_results(folder).values()
    return {r.seed: r for r in found if r.header["identity"]["precision"] == precision and r.header["arm"] == arm}


def table(rows: Iterable[Sequence[str]]) -> str:
    head = ["", "bf16 from float32, by seed", "mean", "seed from seed", "end, bf16 - float32, by seed", "mean"]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bf16", type=Path, help="folder of the lab's results in bf16")
    parser.add_argument("float32", type=Path, help="and in float32")
    parser.add_argument("--arm", default="ppo_max")
    options = parser.parse_args()
    half = by_seed(options.bf16, "bf16", options.arm)
    full = by_seed(options.float32, "float32", options.arm)
    if len(half.keys() & full.keys()) < 2:
        raise SystemExit(f"seeds in bf16: {sorted(half)}, in float32: {sorted(full)}; two in common are needed")
    print(table(compare(half, full)))


if __name__ == "__main__":
    main()
