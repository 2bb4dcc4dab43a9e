"""How much of the machine's own matrix-multiply rate a PPO iteration reaches, and where the rest goes.

    python benchmarks/roofline.py                         # 5.7M and 27M, float32 and bf16
    python benchmarks/roofline.py --sizes 5.7m --precisions bf16 --threads 1 --quick

1. The machine's rate is measured at the model's own shapes: for every linear layer the three products of training (forward,
   gradient of the input, gradient of the weight), for as many rows as the phase has in one pass, and attention's two batched
   products; in float32 and in bf16, PyTorch's own kernels, inputs in cache or not as it comes, the best of several medians.
2. From these follows what a phase would take if it did nothing but its matrix products at that rate ("at 100%"):
   sampling: one pass over the prompts and one over a row of one token each for every further token;
   scoring: policy, reference, critic and reward model once over prompt and response, and the unembedding of response
   positions of the first two;
   updating: policy and critic, forward and both backward products, unembedding of response positions.
   That is the arithmetic of the algorithm as written down. Passes which an implementation avoids count as done, passes it
   adds do not. Padding, casts, norms, softmax, optimiser: everything else is "the rest".
3. The phases' real times are those of `train_ppo` (medians, settings of ppo_iteration.py, fixed lengths); one more iteration
   under PyTorch's profiler says where the rest goes, by self time of the operators.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from contender import versions
from contest import about, append_line, machine, say
from fixtures import SHAPES, Shape, make_start
from laps import Stopped, watched
from ppo_iteration import our_config

from ppomax import PPOConfig, train_ppo

PHASES = ("sample", "score", "update")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}

# ------------------------------------------------------------------------------------------ the machine's rate


def linears(shape: Shape) -> dict[tuple[int, int], int]:
    """(in, out) of the layers' linear maps, and how many of each one pass through the backbone has."""
    keys = shape.width if shape.tied else shape.width // 8
    found: dict[tuple[int, int], int] = {}
    for pair, count in (
        ((shape.width, shape.width), 2), ((shape.width, keys), 2), ((shape.width, shape.ffn), 2),
        ((shape.ffn, shape.width), 1),
    ):  # fmt: skip
        found[pair] = found.get(pair, 0) + count * shape.layers
    return found


@dataclass(frozen=True)
class Product:
    """A matrix product: (batch, rows, inner) times (batch, inner, columns)."""

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.rows * self.inner * self.columns


class Machine:
    """Measured seconds of matrix products; each is measured once."""

    def __init__(self, seconds: float) -> None:
        self.budget = seconds
        self.known: dict[tuple[Product, str], float] = {}

    def seconds(self, product: Product, precision: str) -> float:
        key = (product, precision)
        if key not in self.known:
            self.known[key] = self._measure(product, DTYPES[precision])
        return self.known[key]

    def rate(self, product: Product, precision: str) -> float:
        """GFLOP/s."""
        return product.flops / self.seconds(product, precision) / 1e9

    def _measure(self, product: Product, dtype: torch.dtype) -> float:
        """Best of the medians of three series, each a third of the budget."""
        lead = (product.batch,) if product.batch > 1 else ()
        a = torch.randn(*lead, product.rows, product.inner).to(dtype)
        # as a weight (out, in) is stored: the second operand is transposed
        b = torch.randn(*lead, product.columns, product.inner).to(dtype).transpose(-1, -2)
        out = torch.matmul(a, b)
        medians = []
        for _ in range(3):
            times: list[float] = []
            end = time.perf_counter() + self.budget / 3
            while len(times) < 3 or time.perf_counter() < end:
                start = time.perf_counter()
                torch.matmul(a, b, out=out)
                times.append(time.perf_counter() - start)
            medians.append(statistics.median(times))
        return min(medians)


def forward(shape: Shape, rows: int) -> list[tuple[Product, int]]:
    """Products of the backbone's linear maps over ``rows`` tokens."""
    return [(Product(1, rows, i, o), count) for (i, o), count in linears(shape).items()]


def backward(products: list[tuple[Product, int]]) -> list[tuple[Product, int]]:
    """Gradients of input and weight for each forward product."""
    made: list[tuple[Product, int]] = []
    for p, count in products:
        made += [
            (Product(p.batch, p.rows, p.columns, p.inner), count),
            (Product(p.batch, p.inner, p.rows, p.columns), count),
        ]
    return made


def attention(shape: Shape, samples: int, queries: int, keys: int) -> list[tuple[Product, int]]:
    """Scores and weighted sums of all layers; causal, so half of a square of them is needed."""
    head = shape.width // shape.heads
    used = max(1, keys // 2) if queries == keys else keys
    both = Product(samples * shape.heads, queries, head, used), Product(samples * shape.heads, queries, used, head)
    return [(p, shape.layers) for p in both]


def needed(
    shape: Shape, *, batch: int, minibatch: int, prompt: int, response: int
) -> dict[str, list[tuple[Product, int]]]:
    """The products of one iteration, by phase."""
    length = prompt + response
    head = [(Product(1, batch * response, shape.width, shape.vocabulary), 1)]
    sample = [*forward(shape, batch * prompt), *attention(shape, batch, prompt, prompt)]
    sample += [(p, n * (response - 1)) for p, n in forward(shape, batch)]
    # the cache grows by a token a step: attention at its mean length
    sample += [(p, n * (response - 1)) for p, n in attention(shape, batch, 1, prompt + response // 2)]
    sample += [(Product(1, batch, shape.width, shape.vocabulary), response)]
    once = [*forward(shape, batch * length), *attention(shape, batch, length, length)]
    score = [(p, 4 * n) for p, n in once] + [(p, 2 * n) for p, n in head]
    steps = batch // minibatch
    ahead = [*forward(shape, minibatch * length), *attention(shape, minibatch, length, length)]
    small_head = [(Product(1, minibatch * response, shape.width, shape.vocabulary), 1)]
    trained = [*[(p, 2 * n) for p, n in ahead], *small_head]  # policy and critic
    update = [(p, steps * n) for p, n in [*trained, *backward(trained)]]
    return {"sample": sample, "score": score, "update": update}


# ------------------------------------------------------------------------------------------ what ppomax takes

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul",
                         "mkldnn", "onednn", "aten::_addmm")),
    ("attention", ("scaled_dot_product", "flash_attention")),
    ("compiled kernels", ("cpp_fused", "graph_", "Torch-Compiled", "## Call", "CompiledFunction", "triton")),
    ("copies and casts", ("aten::copy_", "aten::_to_copy", "aten::to", "aten::clone", "aten::contiguous", "aten::cat",
                          "aten::stack", "aten::index", "aten::gather", "aten::select", "aten::masked", "aten::embedding",
                          "aten::slice", "aten::nonzero", "aten::fill_", "aten::zero_", "aten::zeros", "aten::empty")),
    ("softmax and draws", ("aten::_softmax", "aten::_log_softmax", "aten::logsumexp", "aten::exp", "aten::multinomial",
                           "aten::sort", "aten::cumsum", "aten::amax", "aten::max", "aten::searchsorted", "aten::topk")),
    ("elementwise", ("aten::mul", "aten::add", "aten::sub", "aten::div", "aten::silu", "aten::neg", "aten::pow",
                     "aten::mean", "aten::rsqrt", "aten::sum", "aten::where", "aten::cos", "aten::sin", "aten::clamp")),
)  # fmt: skip


def group_of(name: str, ancestors: list[str]) -> str:
    """Which of GROUPS an operator's own time belongs to; an optimiser's operators are the optimiser's."""
    if any(a.startswith("Optimizer.step") for a in [name, *ancestors]):
        return "optimiser"
    return next((group for group, starts in GROUPS if any(s in name for s in starts)), "everything else")


def by_group(profile: torch.profiler.profile, seconds: float) -> dict[str, float]:
    """Shares of ``seconds`` by group; time outside all operators is Python's (waiting and dispatch included)."""
    sums: dict[str, float] = {}
    for event in profile.events() or []:
        if event.is_async:
            continue
        ancestors = []
        parent = event.cpu_parent
        while parent is not None:
            ancestors.append(parent.name)
            parent = parent.cpu_parent
        group = group_of(event.name, ancestors)
        sums[group] = sums.get(group, 0.0) + event.self_cpu_time_total / 1e6
    shares = {group: value / seconds for group, value in sorted(sums.items(), key=lambda kv: -kv[1])}
    return shares | {"Python, outside operators": max(0.0, 1 - sum(shares.values()))}


@dataclass(frozen=True)
class Observed:
    """What `train_ppo` took."""

    seconds: dict[str, float]
    """median of each phase"""
    cpu_seconds: dict[str, float]
    """the same, of all threads on a processor: on a machine that is not free, the better measure with one thread"""
    groups: dict[str, dict[str, float]]
    """shares of GROUPS in each phase of one more iteration, profiled"""


def watch_iterations(config: PPOConfig, warmup: int, iterations: int) -> Observed:
    phases: dict[str, list[tuple[float, float]]] = {p: [] for p in PHASES}
    groups: dict[str, dict[str, float]] = {}
    profiles: list[torch.profiler.profile] = []
    number, busy = -1, 0.0

    def start_profile() -> None:
        profiles.append(torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]))
        profiles[-1].start()

    def begun() -> None:
        nonlocal number, busy
        number += 1
        if number >= warmup + iterations:
            start_profile()
        busy = time.process_time()

    def lapped(name: str, seconds: float) -> None:
        nonlocal busy
        used = time.process_time() - busy
        if number >= warmup + iterations:
            profiles[-1].stop()
            groups[name] = by_group(profiles.pop(), seconds)
            if name == "update":
                raise Stopped
            start_profile()
        elif number >= warmup and name in phases:
            phases[name].append((seconds, used))
        busy = time.process_time()

    with watched(lapped, begun):
        train_ppo(config)
    seconds, cpu_seconds = (
        {name: statistics.median(pair[i] for pair in pairs) for name, pairs in phases.items()} for i in (0, 1)
    )
    return Observed(seconds, cpu_seconds, groups)


# ------------------------------------------------------------------------------------------------------ report


def study(size: str, options: argparse.Namespace, measure: Machine) -> str:
    shape = SHAPES[size]
    products = needed(
        shape, batch=options.batch, minibatch=options.batch // 4, prompt=options.prompt, response=options.response
    )
    lines = [f"## {size}", "", "Rates at the shapes of scoring and updating, GFLOP/s:", ""]
    lines += [
        "| rows x in x out | " + " | ".join(options.precisions) + " |",
        "|---" * (1 + len(options.precisions)) + "|",
    ]
    shown = {p for phase in ("score", "update") for p, _ in products[phase] if p.batch == 1}
    for p in sorted(shown, key=lambda p: (p.rows, p.inner, p.columns)):
        say(f"  {p.rows} x {p.inner} x {p.columns}")
        rates = " | ".join(f"{measure.rate(p, precision):.0f}" for precision in options.precisions)
        lines.append(f"| {p.rows} x {p.inner} x {p.columns} | {rates} |")
    for precision in options.precisions:
        say(f"  {size} {precision}")
        ideal = {phase: sum(n * measure.seconds(p, precision) for p, n in found) for phase, found in products.items()}
        gflop = {phase: sum(n * p.flops for p, n in found) / 1e9 for phase, found in products.items()}
        with tempfile.TemporaryDirectory(prefix="roofline.") as place:
            start = make_start(
                Path(place), shape, prompts=options.batch, prompt_length=options.prompt,
                response_length=options.response, mean_length=options.response,
            )  # fmt: skip
            config = our_config(
                start, Path(place) / "run", precision=precision, batch=options.batch, minibatches=4,
                response=options.response, iterations=options.warmup + options.iterations + 4,
            )  # fmt: skip
            config |= {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in options.set)}
            seen = watch_iterations(PPOConfig(**config), options.warmup, options.iterations)
        real, busy = seen.seconds, seen.cpu_seconds
        lines += ["", f"### {precision}", ""]
        lines += ["| phase | seconds | GFLOP | at 100%, s | share of the machine's rate | processor, s | share by it |"]
        lines += ["|---" * 7 + "|"]
        for phase in (*PHASES, "iteration"):
            parts = PHASES if phase == "iteration" else (phase,)
            took, used, best, work = (sum(d[p] for p in parts) for d in (real, busy, ideal, gflop))
            lines.append(
                f"| {phase} | {took:.3f} | {work:.1f} | {best:.3f} | {best / took:.0%} | {used:.3f} | "
                f"{best * options.threads / used:.0%} |"
            )
        groups = seen.groups
        names = sorted({g for shares in groups.values() for g in shares}, key=lambda g: -groups["update"].get(g, 0))
        lines += ["", "Where the time goes (self time of operators, one profiled iteration):", ""]
        lines += ["| | " + " | ".join(PHASES) + " |", "|---" * 4 + "|"]
        lines += [f"| {g} | " + " | ".join(f"{groups[p].get(g, 0):.0%}" for p in PHASES) + " |" for g in names]
        append_line(options.out, {
            "kind": "summary", **about("roofline", options), "versions": versions(), "size": size,
            "precision": precision, "seconds": real, "cpu_seconds": busy, "gflop": gflop, "at_100": ideal, "groups": groups,
            "rates": {f"{p.rows}x{p.inner}x{p.columns}": measure.rate(p, precision) for p in shown},
        })  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=["5.7m", "27m"])
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.6, help="spent on measuring one product")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="further settings of ours")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/roofline.jsonl"))
    parser.add_argument("--quick", action="store_true", help="2 iterations after one, .1 s a product")
    options = parser.parse_args()
    if options.quick:
        options.iterations, options.warmup, options.seconds = 2, 1, 0.1
    torch.set_num_threads(options.threads)
    here = machine(options.threads)
    print(f"{here['processor']}, {here['threads']} threads, load {here['load']:.1f} before the run\n")
    measure = Machine(options.seconds)
    for size in options.sizes:
        print(study(size, options, measure), flush=True)


if __name__ == "__main__":
    main()
