"""Runs as files, and a client, for the tests of `ppomax view`."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ppomax.config import PPOConfig, RewardConfig, SFTConfig
from ppomax.options import dump_yaml, from_mapping
from ppomax.view.server import ViewServer

HOSTILE = (
    "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">\"' </script> \x1b[31m \u202eabc "
    "\ud800 你好 " + "x" * 400
)
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ppo": (PPOConfig, {"model": "m", "prompts": "p.jsonl", "reward": "r", "iterations": 20}),
    "reward": (RewardConfig, {"model": "m", "data": "d.jsonl"}),
    "sft": (SFTConfig, {"model": "m", "data": "d.jsonl"}),
}


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def line(i: int, **others: Any) -> dict[str, Any]:
    """A line of PPO metrics."""
    return {
        "iteration": i, "phase": "critic" if i < 2 else "policy", "update": 4 * i, "reward/mean": 0.1 * i, "kl/ref": 0.01 * i,
        "response/length": 9.0 + i, "policy/perplexity": 3.0, "loss/policy": -0.1, "loss/value": 0.5,
        "value/explained_variance": 0.1 * i - 2.0, "grad_norm/policy": 1.0,
        "time/sample": 1.2, "time/update": 0.6, "time/total": 2.0, **others,
    }  # fmt: skip


def make_run(folder: Path, kind: str = "ppo", text: str = "hello", iterations: int = 12) -> Path:
    """A run with all its files, that has no lock and no final/."""
    folder.mkdir(parents=True)
    cls, values = CONFIGS[kind]
    (folder / "config.yaml").write_text(dump_yaml(from_mapping(cls, {"output_dir": "o", **values})), encoding="utf-8")
    if kind != "ppo":
        metrics = {"sft": "loss/train", "reward": "loss/preference"}[kind]
        write(folder / "metrics.jsonl", [{"update": i, metrics: 1.0 / (i + 1)} for i in range(iterations)])
        return folder
    write(folder / "metrics.jsonl", [line(i) for i in range(iterations)])
    write(folder / "samples.jsonl", [
        {"iteration": i, "update": 4 * i, "prompt": [{"role": "user", "content": f"{text} asked"}],
         "response": f"{text} answered {i}", "score": 0.5, "kl": None, "length": 3, "finished": False}
        for i in (2, iterations - 1)
    ])  # fmt: skip
    write(folder / "evaluations.jsonl", [
        {"iteration": i, "update": 4 * i, "eval/win_rate": rate, "eval/win_rate_se": 0.03}
        for i, rate in ((2, 0.5), (6, 0.625))
    ])  # fmt: skip
    write(folder / "alarms.jsonl", [
        {"iteration": 5, "level": "notice", "message": "first"}, {"iteration": 9, "level": "collapse", "message": text},
    ])  # fmt: skip
    return folder


def finish(run: Path) -> None:
    (run / "final").mkdir()
    (run / "final" / "config.json").write_text("{}")


class Client:
    """Keeps cookies, follows nothing."""

    def __init__(self, server: ViewServer) -> None:
        self.server, self.cookie = server, ""

    def ask(
        self, path: str, method: str = "GET", headers: dict[str, str] | None = None, body: str | None = None
    ) -> tuple[int, str, Any]:
        """(status, body, headers)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        sent = {**({"Cookie": self.cookie} if self.cookie else {}), **(headers or {})}
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers
        finally:
            connection.close()

    def enter(self) -> Client:
        address = urlsplit(self.server.url)
        status, _, headers = self.ask(f"{address.path}?{address.query}")
        assert status == 303 and headers["Location"] == "/"
        self.cookie = headers["Set-Cookie"].split(";")[0]
        return self

    def json(self, path: str) -> Any:
        status, body, _ = self.ask(path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, **headers: str) -> int:
        given = {"X-Request-Token": self.server.request_token, **headers}
        return self.ask(path, "POST", given, "")[0]


@contextmanager
def serving(root: Path, **options: Any) -> Iterator[tuple[ViewServer, Client]]:
    server = ViewServer(root, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server, Client(server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
