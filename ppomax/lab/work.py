"""One job of the lab in a process of its own: a start, or a run with its last evaluation and its result file.

    python -m ppomax.lab.work JOB.json

A job that another process is at work on is refused. A killed one goes on where it stopped when it is started again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ppomax import __version__
from ppomax.errors import UserError
from ppomax.train.checkpoint import write_atomic

if TYPE_CHECKING:
    from ppomax.config import PPOConfig
    from ppomax.train.ppo_guard import Diverged

DIVERGED = "diverged.json"
FACTS = {"reward": "evaluation.json", "world": "world.json"}
"""kind of stage -> the file whose numbers go into the header"""
STRETCHES = 20
"""points of a reward model's accuracy over its training"""


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold a lock for the life of the process; a UserError where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{path}: another process is at work on this; wait for it or stop it") from None
        yield


def same_world(job: Mapping[str, Any]) -> None:
    """UserError where the world's code has changed since the job was planned: its name would then be wrong."""
    from ppomax.lab.plan import world_code

    planned = job.get("world")
    if planned is not None and planned != world_code():
        raise UserError(f"{job['name']}: planned for world {planned}, but the code is now {world_code()}: start again")


def make_start(job: Mapping[str, Any]) -> None:
    """Make the stages of one or several seeds by ``ppomax run``."""
    from ppomax.pipeline import run_pipeline

    same_world(job)
    for root, pipeline in job["pipelines"].items():
        folder = Path(root)
        with only_one(folder / ".lock"):
            file = folder / f"{job['name']}.yaml"
            write_atomic(file, yaml.safe_dump(pipeline, sort_keys=False, allow_unicode=True, width=120))
            run_pipeline(str(file))


def make_run(job: Mapping[str, Any]) -> None:
    """Train, evaluate, write the result, and remove the weights unless they are to be kept."""
    from ppomax.config import PPOConfig
    from ppomax.lab.endpoint import run_endpoint
    from ppomax.lab.results import write_result
    from ppomax.options import from_mapping
    from ppomax.train.ppo import train_ppo
    from ppomax.train.ppo_guard import Diverged

    folder = Path(job["folder"])
    with only_one(folder.with_name(f".{folder.name}.lock")):
        same_world(job)
        config = from_mapping(PPOConfig, {**job["settings"], "output_dir": str(folder)}, origin=job["name"])
        began = time.monotonic()
        if not (folder / "final" / "config.json").exists():
            (folder / DIVERGED).unlink(missing_ok=True)
            try:
                train_ppo(config, resume=(folder / "config.yaml").exists())
            except Diverged as error:
                end_earlier(config, error)
        rows = _lines(folder / "metrics.jsonl")
        trained = time.monotonic() - began
        began = time.monotonic()
        endpoint_file = folder / "endpoint.json"
        if endpoint_file.exists():
            endpoint = json.loads(endpoint_file.read_text(encoding="utf-8"))
        else:
            endpoint = run_endpoint(config, job["endpoint"], folder / "final", Path(job["memory"]))
            write_atomic(endpoint_file, json.dumps(endpoint) + "\n")
        seconds = {
            # what the iterations took, all lives of the run together; the rest is loading and judging
            "iterations": round(sum(r.get("time/total", 0.0) for r in rows), 1),
            "training": round(trained, 1), "endpoint": round(time.monotonic() - began, 1),
        }  # fmt: skip
        header = {
            **job["header"],
            **divergence(folder),
            "start": start_facts(job),
            "seconds": seconds,
            "machine": machine(config.device),
        }
        write_result(Path(job["result"]), header, _lines(folder / "evaluations.jsonl"), rows, endpoint)
        if not job["keep"]:  # all of it: a part that stayed would be taken for one of the next run of this name
            shutil.rmtree(folder)


def end_earlier(config: PPOConfig, error: Diverged) -> None:
    """Let a diverged run end at its last checkpoint: a result that says so, instead of none. The error, where it has none."""
    from ppomax.train.checkpoint import latest_checkpoint, load_part
    from ppomax.train.ppo import train_ppo

    folder = Path(config.output_dir)
    checkpoint = latest_checkpoint(folder / "checkpoints")
    done = load_part(checkpoint, "loop")["policy_iterations"] if checkpoint else 0
    if not done:
        raise error
    told = {"told": str(error).split(", training stopped")[0], "policy_iterations": done}
    write_atomic(folder / DIVERGED, json.dumps(told) + "\n")  # before the run is whole, for what a kill leaves behind
    train_ppo(config.model_copy(update={"iterations": done}), resume=True)


def divergence(folder: Path) -> dict[str, Any]:
    """For the header of a run that ended before its time: what was told, and after how many of the policy's iterations."""
    file = folder / DIVERGED
    return {"diverged": json.loads(file.read_text(encoding="utf-8"))} if file.exists() else {}


def start_facts(job: Mapping[str, Any]) -> dict[str, Any]:
    """Stage -> what is worth knowing of it: accuracy of a reward model, annotators and world of the data."""
    found: dict[str, Any] = {}
    for name, (kind, place) in job["stages"].items():
        file = Path(place) / FACTS.get(kind, "-")
        if not file.is_file():
            continue
        facts = json.loads(file.read_text(encoding="utf-8"))
        if kind == "world":
            found[name] = {k: facts[k] for k in ("version", "hash", "name", "annotators", "samples") if k in facts}
        else:
            overall = facts.get("held_out", {}).get("overall", {}).get("model", {})
            found[name] = {k: overall[k] for k in ("accuracy", "interval", "n") if k in overall}
            found[name] |= accuracy_curve(_lines(Path(place) / "metrics.jsonl"))
    return found


def accuracy_curve(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For the header: a reward model's accuracy on the pairs of each update, before it, as means of at most `STRETCHES`
    successive parts; nothing where there is none."""
    kept = [row for row in rows if row.get("train/accuracy") is not None]
    if not kept:
        return {}
    step = math.ceil(len(kept) / STRETCHES)
    parts = [kept[i : i + step] for i in range(0, len(kept), step)]
    means = [round(statistics.fmean(row["train/accuracy"] for row in part), 4) for part in parts]
    return {"curve": {"update": [part[-1]["update"] for part in parts], "accuracy": means}}


def machine(device: str) -> dict[str, Any]:
    """Where and with what it ran."""
    import torch
    import transformers

    from ppomax.train.parallel import pick_device

    chosen = pick_device(device)
    return {
        "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "cpu", "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # AVX2: bf16 is worked out in float32 (models/linears.py)
        "threads": torch.get_num_threads(), "ppomax": __version__, "torch": torch.__version__,
        "transformers": transformers.__version__, "python": platform.python_version(),
    }  # fmt: skip


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n") if line]


def main(words: list[str]) -> int:
    """0, or 2 with one line for a mistake, or 1 with one line (and the traceback above it) for anything else."""
    try:
        job = json.loads(Path(words[0]).read_text(encoding="utf-8"))
        make_start(job) if job["kind"] == "start" else make_run(job)
    except UserError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # one failed run must not stop the others: whoever reads the log sees it all
        import traceback

        traceback.print_exc()
        print(f"lab: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
