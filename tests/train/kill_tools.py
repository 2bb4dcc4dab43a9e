"""Real processes, killed with SIGKILL at random moments or at a chosen file operation, and what they left behind.

A test file that uses this starts *itself* as a script, forked from a process that has imported everything and never
trains; the script forks a child for each run, so that a run costs no start-up time.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

TIMEOUT = 600.0


FORKS = """
import json, os, runpy, sys, traceback
import hypothesis, peft, pytest, torch, transformers
import ppomax.train.ppo, ppomax.train.reward, ppomax.train.sft
for request in sys.stdin:
    file, folder, log, environment = json.loads(request)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with open(log, "a") as f:
                os.dup2(f.fileno(), 1)
                os.dup2(f.fileno(), 2)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv = [file, folder]
            sys.path.insert(0, os.path.dirname(file))
            runpy.run_path(file, run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""the process that scripts are forked from, one a worker of pytest: importing everything takes longer than most of them"""


@functools.cache
def forks() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS],
        env=script_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(end_group, process)
    return process


def end_group(process: subprocess.Popen[str]) -> None:
    """Kill it with the script that it may be waiting for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def script_environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}


def start_script(file: str, folder: Path) -> dict[str, Any]:
    """Run ``file`` as a script on ``folder``; what it wrote to results.json."""
    process, log = forks(), folder / "script.log"
    assert process.stdin is not None and process.stdout is not None
    log.touch()
    process.stdin.write(json.dumps([file, str(folder), str(log), script_environment()]) + "\n")
    process.stdin.flush()
    if not select.select([process.stdout], [], [], TIMEOUT)[0]:
        end_group(process)
        forks.cache_clear()
        raise TimeoutError(f"{file} after {TIMEOUT:g} s: {log.read_text(encoding='utf-8')[-6000:]}")
    code = process.stdout.readline().strip()
    assert code == "0", f"exit code {code}: {log.read_text(encoding='utf-8')[-6000:]}"
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def forget_to_sync() -> None:
    """Make fsync do nothing: it guards against power cuts, which are not tested, and takes most of the time."""
    os.fsync = lambda handle: None  # type: ignore[assignment]


def begin(job: Callable[[], int], log: Path) -> int:
    """Process id of a child that does ``job``; its output goes to ``log``."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("a", encoding="utf-8") as f:
            os.dup2(f.fileno(), 1)
            os.dup2(f.fileno(), 2)
            code = job()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def end(pid: int) -> int:
    """Exit code of a child; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(job: Callable[[], int], log: Path) -> int:
    return end(begin(job, log))


def killed_after(job: Callable[[], int], log: Path, seconds: float) -> bool:
    """Whether the child was still at work when it was killed."""
    pid = begin(job, log)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return end(pid) == -signal.SIGKILL


class Fuse:
    """Counts operations on files, and kills the process before operation number ``at`` (0: never)."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.count = at, 0

    def burn(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def lay(self) -> None:
        """Watch what moves, removes, syncs, makes or opens files for writing. Call it in the child."""

        def watched(function: Any) -> Any:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                self.burn()
                return function(*args, **kwargs)

            return wrapped

        path_open = Path.open

        def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if "r" not in mode:
                self.burn()
            return path_open(path, mode, *args, **kwargs)

        Path.replace, Path.mkdir = watched(Path.replace), watched(Path.mkdir)  # type: ignore[method-assign]
        Path.open = opened  # type: ignore[assignment, method-assign]
        shutil.rmtree, os.fsync = watched(shutil.rmtree), watched(os.fsync)  # type: ignore[assignment]


def tree(folder: Path) -> dict[str, Any]:
    """What must be equal after a resumed and an uninterrupted run, by relative path."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or name.startswith("figures/") or "/." in f"/{name}":
            continue
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as f:
                found[name] = {k: f.get_tensor(k).numpy().tobytes().hex() for k in sorted(f.keys())}
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            found[name] = [
                {k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "memory/"))} for row in rows
            ]
        elif path.suffix in (".json", ".md", ".yaml"):
            found[name] = path.read_text(encoding="utf-8").replace(str(folder), "RUN")
    return found


def differing(one: Path, other: Path, ignore: tuple[str, ...] = ()) -> list[str]:
    """Relative paths of files that are not the same in both."""
    a, b = tree(one), tree(other)
    return [n for n in sorted(a.keys() | b.keys()) if a.get(n) != b.get(n) and not n.startswith(ignore)]


def torture(
    job: Callable[[Path, bool], int], folder: Path, seed: int, *, random_kills: int, chosen_kills: int,
    ignore: tuple[str, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    """An uninterrupted run beside runs that were killed and resumed; ``job(directory, resume)`` is one run.

    One run is killed ``random_kills`` times, at moments drawn over the time that an uninterrupted one takes; further
    runs are killed once each, at one of ``chosen_kills`` file operations.
    """
    forget_to_sync()
    picker = random.Random(seed)
    folder.mkdir(parents=True)
    log, whole, counter = folder / "log", folder / "whole", folder / "count"

    def counting() -> int:
        fuse = Fuse()
        fuse.lay()
        code = job(whole, False)
        counter.write_text(str(fuse.count))
        return code

    begun = time.monotonic()
    codes = [finish(counting, log)]
    duration = time.monotonic() - begun
    operations = int(counter.read_text())

    broken = folder / "random"
    hits = sum(
        killed_after(lambda: job(broken, True), log, picker.uniform(0.02, duration)) for _ in range(random_kills)
    )
    codes.append(finish(lambda: job(broken, True), log))
    differences = {"random": differing(whole, broken, ignore)}
    for at in sorted(picker.sample(range(1, operations + 1), min(chosen_kills, operations))):
        target = folder / f"at-{at}"

        def doomed(at: int = at, target: Path = target) -> int:
            Fuse(at).lay()
            return job(target, False)

        hits += finish(doomed, log) == -signal.SIGKILL
        codes.append(finish(lambda target=target: job(target, True), log))  # type: ignore[misc]
        differences[f"operation {at} of {operations}"] = differing(whole, target, ignore)
    return {
        "codes": codes, "hits": hits, "differences": {k: v for k, v in differences.items() if v}, "files": sorted(tree(whole)),
        "log": log.read_text(encoding="utf-8", errors="replace")[-3000:],
    }  # fmt: skip
