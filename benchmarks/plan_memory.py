"""`ppomax plan`'s memory against what real runs took, on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/plan_memory.py --out docs/results/plan_memory.json

Each case is `ppomax ppo` in a process of its own: fresh models as `ppomax new-model` makes them, a reward model of the
same shape, one iteration of two updates, answers of full length. Measured is the largest resident memory of the process
(VmHWM) less that of a process which imported the same modules, multiplied two matrices and did nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MIB = 2**20
PROMPT, RESPONSE = 64, 64
CASES: list[dict[str, Any]] = [
    {"size": size, "precision": precision, "micro_batch_tokens": tokens, "samples": samples}
    for size, tokens, samples in (("25m", 1024, 16), ("6m", 2048, 32), ("1m", 2048, 32), ("6m", 1024, 32))
    for precision in ("float32", "bf16")
]
TOLD = "\nprint('VmHWM', next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"
BASELINE = """
import torch, ppomax.train.ppo, ppomax.report.figures
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from torch.distributed.fsdp import fully_shard
from ppomax.models.precision import precision
layer = torch.nn.Linear(64, 64)
with precision(torch.device("cpu"), "bf16"):
    layer(torch.ones(64, 64)).sum().backward()
layer(torch.ones(64, 64)).sum().backward()
"""
MODELS = """
import sys, torch
from pathlib import Path
from ppomax.models.fresh import new_model
from ppomax.models.loading import load_causal_lm, load_tokenizer, save_final, scalar_from_causal
size, folder, texts = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]).read_text().splitlines()
new_model(folder / "policy", texts, size=size, vocab_size=4096)
policy = load_causal_lm(str(folder / "policy"))
save_final(scalar_from_causal(policy, 0), load_tokenizer(str(folder / "policy")), folder / "reward", stage="reward", card="")
"""


GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc maps every block of 64 KiB or more by itself and unmaps it when it is freed: the peak is that of the tensors"""


def child(code: str, *words: str, **environment: str) -> int:
    """Run ``code`` in a fresh interpreter; its largest resident memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", code + TOLD, *words], env=os.environ | environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"a run failed:\n{done.stderr[-3000:]}")
    return int(done.stdout.rsplit("VmHWM", 1)[1]) * 1024


def words_of(case: dict[str, Any], folder: Path) -> list[str]:
    """The configuration of a case, as words of the command line."""
    options = {
        "model": folder / "policy", "reward": folder / "reward", "iterations": 1,
        "rollout_batch": case["samples"], "minibatch": case["samples"] // 2,
        "max_prompt_length": PROMPT, "overlong": "truncate", "sampling.max_new_tokens": RESPONSE, "sampling.batch_size": 32,
        "critic.pretrain_iterations": 0, "watch.eval_prompts": 0, "checkpoint.every": 0, "device": "cpu",
        "precision": case["precision"], "micro_batch_tokens": case["micro_batch_tokens"],
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in options.items()]


def write_texts(path: Path, lines: int = 600) -> None:
    """Sentences of invented words: enough for a vocabulary of 4096."""
    rng = random.Random(0)
    syllables = [a + b + c for a in "bdfghklmnprstv" for b in "aeiou" for c in ("", "n", "r", "st")]
    words = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 3))) for _ in range(9000)]
    path.write_text("\n".join(" ".join(rng.choice(words) for _ in range(80)) for _ in range(lines)), encoding="utf-8")


def measure(case: dict[str, Any], folder: Path, prompts: Path, how: str) -> int:
    """Bytes of one run: as it is (`measured`), or with freed memory given back at once (`given_back`)."""
    code = "import sys; from ppomax.cli import main\nassert main(sys.argv[1:]) == 0"
    out = folder / f"run-{len(list(folder.glob('run-*')))}"
    words = ["ppo", *words_of(case, folder), f"--prompts={prompts}", f"--output_dir={out}"]
    if how == "measured":
        return child(code, *words)
    return child("import ppomax.train.parallel as p\np.keep_freed_memory = lambda: None\n" + code, *words, **GIVEN_BACK)


def planned(case: dict[str, Any]) -> dict[str, int]:
    """What the plan says of a case: bytes by part in its largest phase."""
    from ppomax.commands.plan import run_config
    from ppomax.plan.devices import Shares, parse_devices
    from ppomax.plan.search import plan
    from ppomax.plan.work import settings_of, work_of

    words = [word for word in words_of(case, Path()) if not word.startswith(("--model", "--reward"))]
    run = run_config([*words, f"--model=new-{case['size']}", f"--reward=new-{case['size']}"], None)
    found = plan(work_of(run), settings_of(run), parse_devices("cpu"), Shares()).memory
    return found.phases[found.peak_phase]


def table(rows: list[dict[str, Any]], baseline: int) -> str:
    """Markdown: MiB, baseline subtracted."""
    lines = [
        f"Baseline, subtracted: {baseline / MIB:.0f} MiB.", "",
        "| model | precision | micro_batch_tokens | tensors measured | planned | off | process measured | planned | off |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        parts = planned(row)
        whole = sum(parts.values())
        tensors = whole - parts.get("heap", 0)
        cells = []
        for said, how in ((tensors, "given_back"), (whole, "measured")):
            if how not in row:
                cells += ["", f"{said / MIB:.0f}", ""]
                continue
            found = row[how] - baseline
            cells += [f"{found / MIB:.0f}", f"{said / MIB:.0f}", f"{said / found - 1:+.0%}"]
        lines.append(f"| {row['size']} | {row['precision']} | {row['micro_batch_tokens']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file of what was measured; what it holds is not run again"
    )
    out: Path = parser.parse_args().out
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"rows": []}
    rows: list[dict[str, Any]] = known["rows"]
    rows += [dict(case) for case in CASES if not any(case.items() <= row.items() for row in rows)]
    baseline = known.get("baseline") or max(child(BASELINE) for _ in range(2))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts, prompts = folder / "texts.txt", folder / "prompts.jsonl"
        write_texts(texts)
        asked = texts.read_text(encoding="utf-8").splitlines()[:64]
        prompts.write_text("\n".join(json.dumps({"prompt": " ".join([text] * 3)}) for text in asked), encoding="utf-8")
        for how in ("measured", "given_back"):
            for row in rows:
                if how in row:
                    continue
                here = folder / row["size"]
                if not here.exists():
                    child(MODELS, row["size"], str(here), str(texts))
                row[how] = measure(row, here, prompts, how)
                out.write_text(json.dumps({"baseline": baseline, "rows": rows}, indent=1) + "\n", encoding="utf-8")
                print(row, file=sys.stderr, flush=True)
    print(table(rows, baseline))


if __name__ == "__main__":
    main()
