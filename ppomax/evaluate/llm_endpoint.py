"""Requests to an OpenAI-compatible endpoint that survive its faults and keep within a budget.

The official client does the talking; waiting is done here, so that every failed request is told of, all requests hold back
together when the endpoint asks for it, and a budget is a budget. The API key comes from an environment variable and is
written nowhere: what the endpoint says is cleaned of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from ppomax.config import EndpointConfig
from ppomax.errors import UserError
from ppomax.retry_after import retry_after
from ppomax.train.checkpoint import write_atomic

LONGEST_WAIT = 600.0
"""seconds; an endpoint that asks for a longer pause stops the duel, which can be resumed later"""
LOCAL_KEY = "none"
"""sent where an address is given and no key: servers of one's own ask for none"""
GIVE_UP = 3
"""questions in a row that got no reply: the endpoint is taken to be down"""


@dataclass(frozen=True)
class Reply:
    """What the endpoint answered."""

    text: str
    finish_reason: str
    refused: bool
    """by the endpoint's own word: a refusal field, or a content filter"""
    prompt_tokens: int
    completion_tokens: int
    estimated: bool
    """the endpoint told no usage: a token for every 4 bytes"""
    seconds: float


class Unanswered(Exception):
    """No reply to this question: `kind` is "rejected" (asking again is of no use) or "failed" (all retries used up)."""

    def __init__(self, kind: Literal["rejected", "failed"], detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


class Stopped(UserError):
    """Nothing more may be asked in this start: budget used up, or the endpoint wants a long pause."""


class Endpoint:
    """One model behind one address. ``note(kind, detail, seconds)`` is told of every fault that is tried again.

    ``section``: the section of ``config`` in the options, ``title``: who asks, both for messages; ``options``: what goes
    with every request, such as its temperature.
    """

    def __init__(
        self, model: str, config: EndpointConfig, *, section: str, title: str, options: Mapping[str, Any]
    ) -> None:
        address = config.base_url or os.environ.get("OPENAI_BASE_URL")
        if address is not None:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise UserError(f"{section}.base_url: {address!r} must begin with http:// or https://")
            if parts.username or parts.password or parts.query:
                raise UserError(
                    f"{section}.base_url: an address must hold no key or password; put it in {config.key_variable}"
                )
        key = os.environ.get(config.key_variable)
        if not key and address is None:
            raise UserError(
                f"{title}: the environment variable {config.key_variable} holds no key; set it, or give --{section}.base_url"
            )
        try:
            import openai  # noqa: F401
        except ImportError:
            raise UserError(f"{title} needs the openai package: pip install 'ppomax[llm]'") from None
        self.model, self.config, self.address = model, config, address
        self.section, self.title, self.options = section, title, dict(options)
        self.key = key or LOCAL_KEY
        self.requests = self.tokens = 0
        """of this start"""
        self._next = self._hold = 0.0
        self._jitter = random.Random(0)

    def client(self) -> Any:
        """A client for one event loop; an asynchronous context manager."""
        import openai

        return openai.AsyncOpenAI(
            api_key=self.key, base_url=self.address, max_retries=0, timeout=self.config.timeout,
        )  # fmt: skip

    async def ask(
        self, client: Any, messages: Sequence[Mapping[str, str]], note: Callable[[str, str, float], None]
    ) -> Reply:
        """The reply to ``messages``. Raises Unanswered, Stopped, or UserError where no question could be answered."""
        kind = detail = ""
        for attempt in range(self.config.retries + 1):
            await self._turn()
            began = time.monotonic()
            wanted = None
            try:
                reply = await asyncio.wait_for(self._request(client, messages, began), self.config.timeout)
            except Exception as error:
                kind, detail, wanted = self._fault(error)
                note(kind, detail, time.monotonic() - began)
            else:
                self.tokens += reply.prompt_tokens + reply.completion_tokens
                return reply
            pause = min(60.0, self.config.first_pause * 2**attempt) * self._jitter.uniform(0.75, 1.25)
            if wanted is not None:
                if wanted > LONGEST_WAIT:
                    raise Stopped(f"{self.title}: the endpoint asks for a pause of {wanted:.0f} s ({detail})")
                pause = max(pause, wanted)
            if kind == "429":  # the others would only be refused as well
                self._hold = max(self._hold, time.monotonic() + pause)
            elif attempt < self.config.retries:
                await asyncio.sleep(pause)
        raise Unanswered("failed", f"{self.config.retries + 1} requests, the last with: {detail}")

    async def _turn(self) -> None:
        """Wait until a request may be made, and count it."""
        while (wait := max(self._next, self._hold) - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        for used, limit, name in (
            (self.requests, self.config.max_requests, "max_requests"),
            (self.tokens, self.config.max_tokens, "max_tokens"),
        ):
            if limit is not None and used >= limit:
                raise Stopped(f"{self.title}: the budget of {self.section}.{name} = {limit} is used up")
        self.requests += 1
        if self.config.requests_a_minute:
            self._next = time.monotonic() + 60 / self.config.requests_a_minute

    async def _request(self, client: Any, messages: Sequence[Mapping[str, str]], began: float) -> Reply:
        answer = await client.chat.completions.create(model=self.model, messages=list(messages), **self.options)
        choice = next(iter(getattr(answer, "choices", None) or []), None)
        message = getattr(choice, "message", None)
        if message is None:
            raise ValueError(f"a reply without choices: {str(answer)[:80]!r}")
        text = message.content if isinstance(message.content, str) else ""
        reason = str(getattr(choice, "finish_reason", None) or "")
        refusal = getattr(message, "refusal", None)
        usage = getattr(answer, "usage", None)
        counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        told = all(isinstance(n, int) for n in counts)
        if not told:
            counts = [sum(len(m["content"].encode()) for m in messages) // 4, len(text.encode()) // 4]
        return Reply(
            self.clean(text or str(refusal or "")), reason, bool(refusal) or reason == "content_filter",
            int(counts[0] or 0), int(counts[1] or 0), not told, time.monotonic() - began,
        )  # fmt: skip

    def clean(self, text: str) -> str:
        """Without the key, should the endpoint repeat it; half surrogates, which no file can hold, become "?"."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        return text.replace(self.key, "***") if self.key != LOCAL_KEY else text

    def _fault(self, error: Exception) -> tuple[str, str, float | None]:
        """(kind, detail, wanted pause) of an error that may pass; Unanswered or UserError for one that will not."""
        import openai

        if isinstance(error, TimeoutError | openai.APITimeoutError):
            return "timeout", f"no reply within {self.config.timeout:g} s", None
        if isinstance(error, openai.APIStatusError):
            status = error.status_code
            detail = self.clean(f"HTTP status {status}: {_short(error.message)}")
            if status in (408, 409, 429) or status >= 500:
                kind = "5xx" if status >= 500 else str(status)
                return kind, detail, retry_after(error.response.headers)
            if status in (400, 413, 422):
                raise Unanswered("rejected", detail) from None
            raise UserError(f"{self.title}: the endpoint refuses every request: {detail}") from None
        if isinstance(error, openai.APIConnectionError):
            return "connection", self.clean(_short(str(error.__cause__ or error))), None
        # a body that is not what the client expects: half a JSON text, a page of HTML, a reply without choices
        return "broken", self.clean(f"{type(error).__name__}: {_short(str(error))}"), None


Question = TypeVar("Question")


class Crew:
    """Several workers who put questions to one endpoint. What stops them stops no request under way: its reply is paid for,
    and kept."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.stopped: UserError | None = None

    def work(
        self, questions: Sequence[Question], ask: Callable[[Any, Question], Awaitable[None]],
        unanswered: Callable[[Question, Unanswered], None], step: Callable[[], None],
    ) -> UserError | None:  # fmt: skip
        """Put all questions with ``ask(client, question)``; what stopped the work, or None.

        A question that raises Unanswered is handed to ``unanswered``; three in a row without a reply stop the work, and so
        do three rejected ones where nothing was ever answered.
        """
        return _run(self._work(questions, ask, unanswered, step))

    async def _work(
        self, questions: Sequence[Question], ask: Callable[[Any, Question], Awaitable[None]],
        unanswered: Callable[[Question, Unanswered], None], step: Callable[[], None],
    ) -> UserError | None:  # fmt: skip
        todo = list(reversed(questions))
        failed_in_a_row = answered = rejected = 0
        self.stopped = None

        async def worker(client: Any) -> None:
            nonlocal failed_in_a_row, answered, rejected
            while todo and self.stopped is None:
                question = todo.pop()
                try:
                    await ask(client, question)
                except UserError as error:
                    self.stopped = self.stopped or error
                except Unanswered as error:
                    unanswered(question, error)
                    rejected += error.kind == "rejected"
                    failed_in_a_row += error.kind == "failed"
                    if failed_in_a_row >= GIVE_UP or (rejected >= GIVE_UP and not answered):
                        self.stopped = UserError(
                            f"{self.endpoint.title}: no reply to {GIVE_UP} questions: {error.detail}"
                        )
                    step()
                else:
                    failed_in_a_row, answered = 0, answered + 1
                    step()

        async with self.endpoint.client() as client:
            workers = min(self.endpoint.config.concurrency, len(questions))
            await asyncio.gather(*(worker(client) for _ in range(workers)))
        return self.stopped


class ReplyFile:
    """All that an endpoint ever said, by question. Lines are whole; the half line of a kill is cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_key: dict[str, list[dict[str, Any]]] = {}
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                row = json.loads(line)
                self.by_key.setdefault(row["key"], []).append(row)
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}:{number}: not a line of an endpoint's replies; remove it to go on") from None
        if len(whole) < len(content):
            write_atomic(path, whole.decode("utf-8"))

    def add(self, row: dict[str, Any]) -> None:
        """Append one line at once."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.by_key.setdefault(row["key"], []).append(row)

    def add_fault(self, key: str, kind: str, detail: str, seconds: float) -> None:
        """A request that failed and is tried again."""
        self.add({"key": key, "kind": "fault", "fault": kind, "detail": detail, "seconds": round(seconds, 3)})


def content_key(*parts: Any) -> str:
    """Hash of everything that decides what an endpoint says."""
    content = json.dumps(list(parts), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _run(work: Coroutine[Any, Any, UserError | None]) -> UserError | None:
    """`asyncio.run`, also where a loop is already running (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:197] + "..."
