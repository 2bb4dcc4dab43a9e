"""A real HTTP endpoint that judges (or answers) as it is told to: planted accuracy, position bias, replies and faults."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ppomax.config import LLMConfig
from ppomax.evaluate.answers import Answer
from ppomax.evaluate.llm_judge import LLMJudge
from ppomax.train.parallel import Ranks

PARTS = {
    "en": r"=== Answer A ===\n(.*)\n=== Answer B ===\n(.*)\n=== End ===",
    "zh": r"=== 回答 A ===\n(.*)\n=== 回答 B ===\n(.*)\n=== 结束 ===",
}
SECRET = "sk-planted-secret-1234567890"
Plan = Callable[[str, str, int], str | None]


def chance(*parts: Any) -> float:
    """A fixed number in [0, 1) for each set of parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big") / 256**7


class JudgeServer:
    """``with JudgeServer(...) as server``: judges answers that hold 'good' or 'bad' and a number, such as 'good 17'.

    accuracy: how often it sees which is good; bias: how often it says A without looking; ``plan(first, second, times)``
    names what happens instead of a reply at the n-th request for these answers in this order (None: a reply).
    """

    def __init__(self, accuracy: float = 1.0, bias: float = 0.0, plan: Plan = lambda *_: None, **options: Any) -> None:
        self.accuracy, self.bias, self.plan = accuracy, bias, plan
        self.slow = options.get("slow", 3.0)
        self.retry_after = options.get("retry_after", "0.3")
        self.usage = options.get("usage", True)
        self.pause = options.get("pause", 0.0)
        self.asked: Counter[tuple[str, str]] = Counter()
        self.given: dict[tuple[str, str], str] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[tuple[float, str]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> JudgeServer:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # with the default of 5, a burst of connections waits a second for its next try

            def handle_error(self, *_: Any) -> None:  # the client hung up, as planned
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    @property
    def requests(self) -> int:
        return sum(self.asked.values())

    def verdict(self, first: str, second: str) -> str:
        """The same every time for the same answers in the same order."""
        if chance("bias", first, second) < self.bias:
            return "A"
        if ("good" in first) == ("good" in second):
            return "C"
        right = chance("accuracy", first, second) < self.accuracy
        return "A" if ("good" in first) == right else "B"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        found = next((m for m in (re.search(p, text, re.DOTALL) for p in PARTS.values()) if m), None)
        first, second = found.groups() if found else (text, "")  # no rubric: a question that is to be answered
        with self._lock:
            times = self.asked[first, second]
            self.asked[first, second] += 1
            self.bodies.append(body)
            self.keys.append(handler.headers["Authorization"])
        what = self.plan(first, second, times)
        self.times.append((time.monotonic(), what or "reply"))
        time.sleep(self.pause)
        reply = f"One is better than the other.\n\n[[{self.verdict(first, second)}]]" if found else f"good {text}"
        message: dict[str, Any] = {"role": "assistant", "content": reply}
        reason = "stop"
        if what is None:
            self.given[first, second] = self.verdict(first, second) if found else reply
        elif what == "malformed":
            message["content"] = "Answer [[A]] is better, I would say."
        elif what == "empty":
            message["content"] = None
        elif what == "refusal":
            message["content"] = "I'm sorry, but I can't judge these answers."
        elif what == "long":
            reason = "length"
        elif what == "filter":
            reason, message["content"] = "content_filter", ""
        elif what == "429":
            return self.send(handler, 429, {"error": {"message": "slow down"}}, {"Retry-After": self.retry_after})
        elif what in ("500", "503", "400", "401", "404"):
            return self.send(handler, int(what), {"error": {"message": f"planted, {self.keys[-1]}"}})
        elif what == "drop":
            handler.close_connection = True
            return handler.connection.close()
        elif what == "html":
            return self.raw(handler, b"<html>gateway</html>", "text/html")
        elif what == "no_choices":
            return self.send(handler, 200, {"id": "x", "object": "chat.completion", "choices": []})
        elif what == "timeout":
            time.sleep(self.slow)
        content: dict[str, Any] = {
            "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        }  # fmt: skip
        if self.usage:
            content["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        encoded = json.dumps(content).encode()
        if what == "half":
            return self.raw(handler, encoded[: len(encoded) // 2], "application/json")
        return self.raw(handler, encoded, "application/json", drip=what == "drip")

    def send(
        self, handler: BaseHTTPRequestHandler, status: int, content: Any, headers: dict[str, str] | None = None
    ) -> None:
        self.raw(handler, json.dumps(content).encode(), "application/json", status=status, headers=headers or {})

    def raw(
        self, handler: BaseHTTPRequestHandler, content: bytes, kind: str, *, status: int = 200,
        headers: dict[str, str] | None = None, drip: bool = False,
    ) -> None:  # fmt: skip
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        pieces = [content[i : i + 8] for i in range(0, len(content), 8)] if drip else [content]
        for piece in pieces:  # a byte now and then keeps any read time-out from striking
            handler.wfile.write(piece)
            handler.wfile.flush()
            if drip:
                time.sleep(self.slow / len(pieces))


def pairs(count: int, better: float = 1.0) -> tuple[list[Answer], list[Answer]]:
    """A is good in a share ``better`` of the prompts, B in the others."""
    sides: tuple[list[Answer], list[Answer]] = ([], [])
    for i in range(count):
        words = ("good", "bad") if chance("better", i) < better else ("bad", "good")
        for side, word in zip(sides, words, strict=True):
            side.append(Answer(({"role": "user", "content": f"question {i}"},), f"{word} {i}", source="test"))
    return sides


def make(folder: Path, server: Any, **fields: Any) -> LLMJudge:
    """A judge that asks the server and keeps its replies in the folder."""
    values = {"base_url": server.url, "first_pause": 0.02, "concurrency": 8, **fields}
    return LLMJudge("planted", LLMConfig(**values), folder, Ranks(), resamples=400)


def raw(folder: Path) -> list[dict[str, Any]]:
    """The lines of judge_raw.jsonl."""
    return [json.loads(line) for line in (folder / "judge_raw.jsonl").read_text(encoding="utf-8").splitlines()]


def number(answer: str) -> int:
    """The number at the end of an answer or a question."""
    return int(answer.split()[-1])
