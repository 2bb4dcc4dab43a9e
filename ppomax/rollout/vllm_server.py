"""A vLLM server over HTTP: checked when we connect, asked patiently, and told plainly what it did wrong.

Tokens go in and come out as ids, so that no text is encoded twice. What may pass (no connection, no reply in time, 5xx,
a reply that is not what was asked for) is tried again after growing pauses; what remains is a UserError of one line.

The addresses are those of vLLM's OpenAI-compatible server started with VLLM_SERVER_DEV_MODE=1, as
``ppomax serve-rollouts`` does: completions, its reinforcement-learning routes (weights, versions) and its sleep routes.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from ppomax.errors import UserError

T = TypeVar("T")

SUPPORTED = ((0, 32), (0, 33))
"""vLLM versions from the first up to, not including, the second: the routes used here change between releases"""
KEY_VARIABLE = "VLLM_API_KEY"
"""environment variable that both vLLM and we read the server's key from, where it asks for one"""
LONGEST_PAUSE = 60.0
"""seconds between two attempts at most"""


class Fault(Exception):
    """Something that may pass: the request can be made again."""


class Refused(Exception):
    """The server understood and will not: the same request would be refused again."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"HTTP status {status}: {detail}")
        self.status = status


@dataclass(frozen=True)
class ServerFacts:
    """What a server says of itself."""

    version: str
    model: str
    """its name in requests"""
    dtype: str
    """of the weights, such as float32 or bfloat16"""
    device: str
    """cpu, cuda"""
    max_length: int
    """longest prompt and response together"""
    logprobs_mode: str
    """raw_logprobs: of the logits as the model gives them; processed_logprobs: after temperature, top-k and top-p"""
    transfer: str | None
    """what its weight transfer was started for (nccl, ipc); None: nothing"""
    can_sleep: bool
    """was started with sleep mode"""
    packs_tied_head: bool
    """has the method of ppomax/rollout/vllm_worker"""


@dataclass(frozen=True)
class Drawn:
    """One response."""

    ids: list[int]
    logprobs: list[float]
    """natural logarithms, one a token"""
    finished: bool


class VLLMServer:
    """One server behind one address. ``retries`` further attempts after ``first_pause`` seconds, twice as long each time."""

    def __init__(self, url: str, *, timeout: float, retries: int, first_pause: float) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UserError(f"rollout.url: {url!r} is no address: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"rollout.url: {url!r} must begin with http:// or https://")
        if parts.username or parts.password or parts.query:
            raise UserError(f"rollout.url: an address must hold no key or password; put it in {KEY_VARIABLE}")
        self.url, self.timeout, self.retries, self.first_pause = url.rstrip("/"), timeout, retries, first_pause
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._path = parts.path.rstrip("/")
        self._own = threading.local()
        self._halt = threading.Event()

    # -------------------------------------------------------------------------------------- what it is asked

    def facts(self) -> ServerFacts:
        """Ask the server what it is. UserError where it is no vLLM server of a supported version in development mode."""
        try:
            version = self.ask("GET", "/version", read=lambda reply: str(reply["version"]))
            require_supported(version, self.url)
            model = self.ask("GET", "/v1/models", read=lambda reply: str(reply["data"][0]["id"]))
        except Refused as error:
            raise UserError(f"rollout.url {self.url}: {error}: not the root address of a vLLM server") from None
        try:
            return self.ask("GET", "/server_info", {"config_format": "json"}, read=lambda r: _facts(version, model, r))
        except Refused as error:
            if error.status != 404:
                raise UserError(f"rollout.url {self.url}: /server_info: {error}") from None
            raise UserError(
                f"rollout.url {self.url}: vLLM runs without VLLM_SERVER_DEV_MODE=1, so its weights cannot be updated; "
                "start it by `ppomax serve-rollouts MODEL`"
            ) from None

    def draw(self, requests: Sequence[Mapping[str, Any]], at_once: int) -> list[Drawn]:
        """The response to each completion request, in order; ``at_once`` of them are under way together."""
        if not requests:
            return []
        self._halt.clear()
        pool = ThreadPoolExecutor(min(at_once, len(requests)), thread_name_prefix="vllm")
        try:
            drawn = [pool.submit(self._draw_one, request) for request in requests]
            for done in as_completed(drawn):
                done.result()  # the first failure counts at once, whichever request it befalls
            return [each.result() for each in drawn]
        finally:
            self._halt.set()  # after a failure: the others need not wait out their pauses
            pool.shutdown(cancel_futures=True)
            self._halt.clear()

    def _draw_one(self, request: Mapping[str, Any]) -> Drawn:
        def read(reply: Any) -> Drawn:
            return read_completion(reply, request["prompt"], int(request["max_tokens"]))

        try:
            return self.ask("POST", "/v1/completions", body=request, read=read)
        except Refused as error:
            raise UserError(f"rollout.url {self.url}: vLLM refuses to sample: {error}") from None

    def weight_version(self) -> str:
        """The version that was given with the weights it holds; `default` before any came."""
        return self.ask("GET", "/weight_info", read=lambda reply: str(reply["weight_version"]))

    def tell(self, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, Any] | None = None) -> Any:
        """One order (POST), tried again like everything else; a refusal is a UserError."""
        try:
            return self.ask("POST", path, query, body=body or {})
        except Refused as error:
            raise UserError(f"rollout.url {self.url}: vLLM refuses {path}: {error}") from None

    # -------------------------------------------------------------------------------------- how it is asked

    def ask(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, *, body: Mapping[str, Any] | None = None,
        read: Callable[[Any], T] = lambda reply: reply,
    ) -> T:  # fmt: skip
        """``read`` of the reply's JSON; where it raises ValueError or the like, the reply was broken, which may pass.

        Raises Refused for 4xx that asking again would not change, and UserError once all attempts have failed.
        """
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt and self._halt.wait(min(self.first_pause * 2 ** (attempt - 1), LONGEST_PAUSE)):
                break
            try:
                return self.once(method, path, query, body=body, read=read)
            except Fault as fault:
                problem = str(fault)
        raise UserError(
            f"rollout.url {self.url}: vLLM failed {self.retries + 1} times at {path}, the last time with: {problem}; see that "
            "it runs (ppomax serve-rollouts MODEL), then continue the run with --resume"
        )

    def once(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, *, body: Mapping[str, Any] | None = None,
        read: Callable[[Any], T] = lambda reply: reply,
    ) -> T:  # fmt: skip
        """One attempt. Raises Fault or Refused."""
        status, text = self._exchange(method, self._path + path + (f"?{urlencode(query)}" if query else ""), body)
        if status in (408, 409, 425, 429) or status >= 500:
            raise Fault(f"HTTP status {status}: {_detail(text)}")
        if status in (401, 403):
            raise UserError(
                f"rollout.url {self.url}: the server refuses our key; set {KEY_VARIABLE} to the same secret here and there"
            )
        if status >= 300:
            raise Refused(status, _detail(text))
        try:
            return read(json.loads(text) if text else None)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise Fault(f"a reply that cannot be read ({type(error).__name__}: {_short(str(error))})") from None

    def _exchange(self, method: str, target: str, body: Mapping[str, Any] | None) -> tuple[int, str]:
        """Status and text. The connection is this thread's own, and kept; a kept one that went stale is opened anew."""
        headers = {"Content-Type": "application/json", **key_header()}
        payload = None if body is None else json.dumps(body).encode()
        kept = getattr(self._own, "connection", None) is not None
        try:
            connection = self._connection()
            try:
                connection.request(method, target, payload, headers)
                response = connection.getresponse()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                if not kept:
                    raise
                self._drop()
                connection = self._connection()
                connection.request(method, target, payload, headers)
                response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        except TimeoutError:
            self._drop()
            raise Fault(f"no reply within {self.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise Fault(_short(str(error)) or type(error).__name__) from None

    def _connection(self) -> http.client.HTTPConnection:
        if getattr(self._own, "connection", None) is None:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            assert self._host is not None
            self._own.connection = kind(self._host, self._port, timeout=self.timeout)
        connection: http.client.HTTPConnection = self._own.connection
        return connection

    def _drop(self) -> None:
        if getattr(self._own, "connection", None) is not None:
            self._own.connection.close()
        self._own.connection = None


def key_header() -> dict[str, str]:
    """The server's key, where the environment has one."""
    key = os.environ.get(KEY_VARIABLE)
    if key and not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY_VARIABLE}: a key is made of ASCII characters that can be printed, and this one is not")
    return {"Authorization": f"Bearer {key}"} if key else {}


# ------------------------------------------------------------------------------------------ replies


def require_supported(version: str, url: str) -> None:
    """UserError for a vLLM of another release than those whose routes we know."""
    low, high = SUPPORTED
    try:
        parts = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        parts = ()
    if not low <= parts < high:
        wanted = f">={low[0]}.{low[1]},<{high[0]}.{high[1]}"
        raise UserError(
            f"rollout.url {url}: vLLM {version} is not supported; use {wanted} (scripts/vllm_environment.sh)"
        )


def _facts(version: str, model: str, reply: Any) -> ServerFacts:
    """From the JSON form of vLLM's own configuration."""
    config = reply["vllm_config"]
    settings = config["model_config"]
    transfer = config.get("weight_transfer_config")
    return ServerFacts(
        version, model,
        dtype=str(settings["dtype"]).removeprefix("torch."),
        device=str(config["device_config"]["device"]),
        max_length=int(settings["max_model_len"]),
        logprobs_mode=str(settings["logprobs_mode"]),
        transfer=str(transfer["backend"]) if transfer else None,
        can_sleep=bool(settings["enable_sleep_mode"]),
        packs_tied_head=str(config["parallel_config"]["worker_extension_cls"]).endswith("TiedHead"),
    )  # fmt: skip


def read_completion(reply: Any, prompt: Sequence[int], max_tokens: int) -> Drawn:
    """One response from a reply of /v1/completions. ValueError where it is not what was asked for."""
    choice = reply["choices"][0]
    ids, reason = choice["token_ids"], choice["finish_reason"]
    logprobs = choice["logprobs"]["token_logprobs"]
    if list(choice["prompt_token_ids"]) != list(prompt):
        raise ValueError("it continues another prompt")
    if not ids or len(ids) > max_tokens or not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError(f"{len(ids)} token ids where 1 to {max_tokens} were asked for")
    if len(logprobs) != len(ids) or not all(isinstance(x, int | float) and math.isfinite(x) for x in logprobs):
        raise ValueError(f"{len(logprobs)} log-probabilities for {len(ids)} tokens, or not all of them finite numbers")
    if reason not in ("stop", "length"):
        raise ValueError(f"it ended by {reason!r}")
    return Drawn(list(ids), [float(x) for x in logprobs], reason == "stop")


def _detail(text: str) -> str:
    """What an error reply says, however it is wrapped."""
    try:
        reply = json.loads(text)
    except ValueError:
        return _short(text)
    while isinstance(reply, dict):
        inner = next((reply[name] for name in ("error", "message", "detail") if name in reply), None)
        if inner is None:
            break
        reply = inner
    return _short(reply if isinstance(reply, str) else json.dumps(reply))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:200]}..."
