"""bf16 on a processor without instructions for it: PyTorch's own, ours (ppomax/models/linears.py), and float32.

    python benchmarks/rounded_bf16.py

One thread, processor time (so that other work disturbs less), in turns, medians of five: a forward and backward pass of a
small Llama over 24 sequences of 85 tokens, and 17 steps of decoding for 128. Says so where the processor has bf16.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ppomax.models import linears
from ppomax.models.loading import settle
from ppomax.models.precision import precision

CPU = torch.device("cpu")
SHAPES = {"1M": (128, 384, 4, 1200), "5.7M": (256, 704, 6, 4096)}
"""width, inner width, layers, vocabulary"""


def made(plain: LlamaForCausalLM, native: bool) -> Any:
    with mock.patch.object(linears, "has_bf16", lambda: native):
        return settle(copy.deepcopy(plain), CPU)


def update(model: Any, kind: str) -> None:
    ids = torch.randint(3, 1200, (24, 85))
    with precision(CPU, kind):
        logits = model(input_ids=ids).logits
    logits.float().log_softmax(-1)[..., 5].mean().backward()
    model.zero_grad()


@torch.no_grad()
def decode(model: Any, kind: str) -> None:
    ids, cache = torch.randint(3, 1200, (128, 17)), None
    with precision(CPU, kind):
        for step in range(17):
            output = model(input_ids=ids[:, step : step + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    has = "has" if linears.has_bf16() else "lacks"
    print(
        f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; the processor {has} bf16 for PyTorch"
    )
    for size, (width, inner, layers, vocabulary) in SHAPES.items():
        shape = LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=width // 32,
        )  # fmt: skip
        plain = LlamaForCausalLM(shape)
        ways = {"PyTorch's bf16": (True, "bf16"), "ours": (False, "bf16"), "float32": (True, "float32")}
        models = {name: (made(plain, native), kind) for name, (native, kind) in ways.items()}
        works: tuple[Callable[[Any, str], None], ...] = (update, decode)
        for work in works:
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(6):
                for name, (model, kind) in models.items():
                    began = time.process_time()
                    work(model, kind)
                    if turn:  # the first is warm-up
                        seconds[name].append(time.process_time() - began)
            print(f"{size} {work.__name__}: " + ", ".join(f"{n} {median(t):.3f} s" for n, t in seconds.items()))


if __name__ == "__main__":
    main()
