"""Weights and optimiser in bf16 lose small updates: fast, but not the same training. In numbers, in under a minute.

    python benchmarks/small_updates.py

A bf16 number has 8 significant bits: between neighbours lies 1/128 to 1/256 of its size, so a step smaller than half of
that changes nothing. AdamW moves a weight by about the learning rate, whatever the gradient. The same model is trained on
the same batches three ways, and against a float32 run as the reference:

    float32        weights, gradients and AdamW in float32
    autocast       float32 weights and AdamW, bf16 arithmetic: ppomax's `precision: bf16`
    bf16           everything loaded in bf16, and so AdamW's moments and steps too

Printed for each learning rate: the share of weights that changed at all after the last update, how far they moved in L2 norm
(relative to the float32 run), the cosine between that movement and the float32 run's, and the loss after the last update as
a share of what the float32 run gained. The task: fit random sequences with a small Llama, so that there is always something
to learn. Rates are those of PPO (1e-6 to 1e-4) rather than of pre-training.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from contest import append_line
from fixtures import SHAPES, fresh_llama
from torch import Tensor

WAYS = ("float32", "autocast", "bf16")


def train(start: Any, batches: list[Tensor], way: str, lr: float) -> tuple[list[Tensor], float]:
    """Weights in float32 after one update for each batch, and the mean loss on all batches then."""
    model = copy.deepcopy(start).to(torch.bfloat16 if way == "bf16" else torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    for ids in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "autocast"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    weights = [p.detach().float() for p in model.parameters()]
    return weights, evaluate(start, weights, batches)


@torch.no_grad()
def evaluate(start: Any, weights: list[Tensor], batches: list[Tensor]) -> float:
    """Mean loss in float32, so that only the weights differ."""
    model = copy.deepcopy(start)
    for p, w in zip(model.parameters(), weights, strict=True):
        p.copy_(w)
    distinct = {ids.data_ptr(): ids for ids in batches}
    return sum(model(input_ids=ids, labels=ids).loss.item() for ids in distinct.values()) / len(distinct)


def compare(start: Any, batches: list[Tensor], lr: float) -> list[dict[str, Any]]:
    """One row a way. The starts are rounded to bf16, so that all three begin at the same numbers."""
    origin = [p.detach() for p in start.parameters()]
    before = evaluate(start, origin, batches)
    rows: list[dict[str, Any]] = []
    reference: Tensor | None = None
    gain = 0.0
    for way in WAYS:
        weights, loss = train(start, batches, way, lr)
        moved = torch.cat([(w - o).flatten() for w, o in zip(weights, origin, strict=True)]).double()
        if reference is None:
            reference, gain = moved, before - loss
        rows.append({
            "lr": lr, "way": way, "updates": len(batches), "changed": (moved != 0).double().mean().item(),
            "distance": (moved.norm() / reference.norm()).item(),
            "cosine": (moved @ reference / (moved.norm() * reference.norm()).clamp(min=1e-30)).item(),
            "loss_before": before, "loss_after": loss, "gain": (before - loss) / gain,
        })  # fmt: skip
    return rows


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SHAPES), default="1m")
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-6, 1e-5, 1e-4])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/small_updates.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = SHAPES[options.size]
    start = fresh_llama(shape).to(torch.bfloat16).float()
    generator = torch.Generator().manual_seed(0)
    distinct = [torch.randint(4, shape.vocabulary, (4, 64), generator=generator) for _ in range(5)]
    batches = [distinct[i % len(distinct)] for i in range(options.updates)]
    print("| learning rate | way | weights changed | distance / float32's | cosine | share of float32's gain in loss |")
    print("|---|---|---|---|---|---|")
    for lr in options.rates:
        for row in compare(start, batches, lr):
            append_line(options.out, row)
            print(
                f"| {row['lr']:g} | {row['way']} | {row['changed']:.1%} | {row['distance']:.3f} | {row['cosine']:.3f} | "
                f"{row['gain']:.3f} |",
                flush=True,
            )
    print(json.dumps({"records": str(options.out)}))


if __name__ == "__main__":
    main()
