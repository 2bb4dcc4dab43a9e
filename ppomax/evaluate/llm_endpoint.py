"""Requests to an OpenAI-compatible endpoint that survive its faults and keep within a budget.

The official client does the talking; waiting is done here, so that every failed request is told of, all requests hold back
together when the endpoint asks for it, and a budget is a budget. The API key comes from an environment variable and is
written nowhere: what the endpoint says is cleaned of it.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from ppomax.config import Section
from ppomax.errors import UserError

LONGEST_WAIT = 600.0
"""seconds; an endpoint that asks for a longer pause stops the duel, which can be resumed later"""
LOCAL_KEY = "none"
"""sent where an address is given and no key: servers of one's own ask for none"""


class LLMConfig(Section):
    """How an `llm:MODEL` judge is asked. The API key is read from an environment variable and never written down."""

    base_url: str | None = None
    """address of the endpoint, such as http://localhost:8000/v1; null: OPENAI_BASE_URL, else OpenAI's own"""
    key_variable: str = "OPENAI_API_KEY"
    """name of the environment variable that holds the key"""
    rubric: str = "auto"
    """`helpful`, `harmless`, a file of your own, or `auto`: by the prompt's category"""
    harmless: str = "(?<![a-z])harm"
    """auto: prompts whose category (without one: whose source) matches this pattern get the harmless rubric"""
    language: Literal["auto", "en", "zh"] = "auto"
    """language of the rubric; `auto`: Chinese where Chinese characters outnumber the prompt's other words"""
    temperature: float | None = Field(0.0, ge=0)
    """of the judge's replies; null: not sent, for models that refuse the parameter"""
    max_reply_tokens: int = Field(1024, ge=1)
    """longest reply, reasoning included"""
    reply_limit_name: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """what the endpoint calls that limit"""
    attempts: int = Field(3, ge=1)
    """how often a question is asked until its reply ends in a verdict; then it counts as invalid: a tie, and reported"""
    retries: int = Field(8, ge=0)
    """further requests after a fault (429, 5xx, time-out, broken connection or reply)"""
    first_pause: float = Field(1.0, gt=0)
    """seconds before the first retry; each further pause is twice as long, up to a minute, and Retry-After is honoured"""
    timeout: float = Field(120.0, gt=0)
    """seconds until a reply must be there in full, however slowly it drips"""
    concurrency: int = Field(4, ge=1)
    """requests under way at once"""
    requests_a_minute: float | None = Field(None, gt=0)
    """rate limit; requests are spaced evenly"""
    max_requests: int | None = Field(None, ge=1)
    """budget of one start of the command, retries included; a resumed duel has it anew"""
    max_tokens: int | None = Field(None, ge=1)
    """budget of prompt and reply tokens of one start; replies under way may exceed it"""


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
    """One model behind one address. ``note(kind, detail, seconds)`` is told of every fault that is tried again."""

    def __init__(self, model: str, config: LLMConfig) -> None:
        address = config.base_url or os.environ.get("OPENAI_BASE_URL")
        if address is not None:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise UserError(f"llm.base_url: {address!r} must begin with http:// or https://")
            if parts.username or parts.password or parts.query:
                raise UserError(
                    f"llm.base_url: an address must hold no key or password; put it in {config.key_variable}"
                )
        key = os.environ.get(config.key_variable)
        if not key and address is None:
            raise UserError(
                f"judge llm:{model}: the environment variable {config.key_variable} holds no key; set it, or give --llm.base_url"
            )
        try:
            import openai  # noqa: F401
        except ImportError:
            raise UserError(f"judge llm:{model} needs the openai package: pip install 'ppomax[llm]'") from None
        self.model, self.config, self.address = model, config, address
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
                    raise Stopped(f"judge llm:{self.model}: the endpoint asks for a pause of {wanted:.0f} s ({detail})")
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
                raise Stopped(f"judge llm:{self.model}: the budget of llm.{name} = {limit} is used up")
        self.requests += 1
        if self.config.requests_a_minute:
            self._next = time.monotonic() + 60 / self.config.requests_a_minute

    async def _request(self, client: Any, messages: Sequence[Mapping[str, str]], began: float) -> Reply:
        options: dict[str, Any] = {self.config.reply_limit_name: self.config.max_reply_tokens}
        if self.config.temperature is not None:
            options["temperature"] = self.config.temperature
        answer = await client.chat.completions.create(model=self.model, messages=list(messages), **options)
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
        """Without the key, should the endpoint repeat it."""
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
            raise UserError(f"judge llm:{self.model}: the endpoint refuses every request: {detail}") from None
        if isinstance(error, openai.APIConnectionError):
            return "connection", self.clean(_short(str(error.__cause__ or error))), None
        # a body that is not what the client expects: half a JSON text, a page of HTML, a reply without choices
        return "broken", self.clean(f"{type(error).__name__}: {_short(str(error))}"), None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait, from ``retry-after-ms`` or ``Retry-After`` (seconds or a date)."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError):
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:197] + "..."
