"""A stand-in for vLLM's server: the routes that we use, a sampler of ours behind them, and faults on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from safetensors.torch import load_file

PAGES = {"html": "<html>gateway</html>", "empty": "{}"}
Sampler = Callable[[dict[str, Any]], tuple[list[int], list[float], str]]


def counting(body: dict[str, Any]) -> tuple[list[int], list[float], str]:
    """Tokens that tell which prompt and seed they belong to."""
    return [body["prompt"][0] % 50, body["seed"] % 50, 7], [-0.5, -0.25, -1.5], "stop"


class FakeVLLM(ThreadingHTTPServer):
    """``faults``: path -> what happens at the next requests to it, one by one: a status, "hang", "slow", "html", "empty"
    or a function from the right reply to a wrong one. ``calls``: every order but completions, as it came."""

    daemon_threads = True

    def __init__(self, sampler: Sampler = counting, **settings: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sampler = sampler
        self.version, self.dtype, self.device = "0.32.0", "torch.float32", "cpu"
        self.max_length, self.logprobs_mode, self.transfer = 512, "raw_logprobs", None
        self.sleep_mode, self.worker_extension, self.development = False, "ppomax_vllm_worker.TiedHead", True
        for name, value in settings.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self.weights = "default"
        self.faults: dict[str, list[Any]] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.requests: list[dict[str, Any]] = []
        self.on_load: Callable[[dict[str, Any]], None] | None = None
        self.gone, self.over = False, threading.Event()
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def __enter__(self) -> FakeVLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.gone = True  # connections that are kept open are no longer served either
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def restart(self) -> None:
        """As after a crash: the weights are those of the start."""
        self.weights = "default"

    def info(self) -> dict[str, Any]:
        return {
            "vllm_config": {
                "model_config": {
                    "dtype": self.dtype, "max_model_len": self.max_length, "logprobs_mode": self.logprobs_mode,
                    "enable_sleep_mode": self.sleep_mode,
                },
                "device_config": {"device": self.device},
                "parallel_config": {"worker_extension_cls": self.worker_extension},
                "weight_transfer_config": {"backend": self.transfer} if self.transfer else None,
            }
        }  # fmt: skip

    def answer(self, path: str, query: dict[str, Any], body: dict[str, Any]) -> Any:
        if path == "/version":
            return {"version": self.version}
        if path == "/v1/models":
            return {"data": [{"id": "policy"}]}
        if path == "/server_info":
            return self.info() if self.development else None
        if path == "/weight_info":
            return {"weight_version": self.weights}
        if path == "/get_world_size":
            return {"world_size": 2}
        if path == "/v1/completions":
            with self.lock:
                self.requests.append(body)
            ids, logprobs, reason = self.sampler(body)
            return {"choices": [{
                "token_ids": ids, "prompt_token_ids": body["prompt"], "finish_reason": reason,
                "logprobs": {"token_logprobs": logprobs},
            }]}  # fmt: skip
        with self.lock:
            self.calls.append((path, {**query, **body}))
        if path == "/update_weight_version":
            self.weights = body["new_version"]
        if path == "/finish_weight_update":
            self.weights = body["weight_version"]
        if path == "/collective_rpc" and body["method"] == "reload_weights" and self.on_load:
            self.on_load(load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors"))
        return {"success": True}


class Handler(BaseHTTPRequestHandler):
    server: FakeVLLM
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.respond({})

    def do_POST(self) -> None:
        self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

    def respond(self, body: dict[str, Any]) -> None:
        parts = urlsplit(self.path)
        queue = self.server.faults.get(parts.path, [])
        with self.server.lock:
            fault = queue.pop(0) if queue else None
        if fault == "slow":  # and never comes
            self.server.over.wait(30)
        if fault in ("hang", "slow") or self.server.gone:  # the connection breaks
            self.close_connection = True
            return
        if isinstance(fault, int):
            self.send(fault, json.dumps({"error": {"message": "out of luck", "code": fault}}))
        elif isinstance(fault, str) and fault in PAGES:
            self.send(200, PAGES[fault])
        else:
            reply = self.server.answer(parts.path, {k: v[0] for k, v in parse_qs(parts.query).items()}, body)
            if callable(fault):
                reply = fault(reply)
            self.send(404 if reply is None else 200, json.dumps(reply))

    def send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())
