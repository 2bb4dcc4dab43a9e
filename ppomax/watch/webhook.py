"""Alarms to a chat room: POST {"text": ...} to an address, as Slack, Mattermost and others take it.

Sent by a thread of its own, so that an address that is slow, broken or gone costs training nothing.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import queue
import sys
import threading
import time
import urllib.request
from http.client import HTTPException
from urllib.error import HTTPError

from ppomax.errors import UserError
from ppomax.retry_after import retry_after

WAITING = 100
"""messages that wait at most; further ones are dropped and counted"""
LONGEST_PAUSE = 60.0
"""seconds between two attempts that an address may ask for; where it asks for more the message is given up"""


def address(url: str) -> str:
    """The address that ``watch.webhook`` means: itself, or with a leading ``$`` what that environment variable holds."""
    found = os.environ.get(url[1:], "") if url.startswith("$") else url
    if url.startswith("$") and not found:
        raise UserError(
            f"watch.webhook: the environment variable {url[1:]} is not set: export it, or give the address itself"
        )
    if not found.startswith(("http://", "https://")):
        where = f"environment variable {url[1:]}" if url.startswith("$") else "value"
        raise UserError(
            f"watch.webhook: the {where} is no http(s) address: give one, or the $NAME of a variable with one"
        )
    return found


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would follow with a GET that carries nothing, and call what answers it a success."""

    def redirect_request(self, *args: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


class Webhook:
    """``post`` returns at once and never fails; ``close`` waits a little for what is still on its way."""

    def __init__(self, url: str, *, timeout: float = 10.0, retries: int = 3, pause: float = 1.0) -> None:
        self.url, self.timeout, self.retries, self.pause = address(url), timeout, retries, pause
        self.sent = self.lost = 0
        """messages that were taken, and that were given up after ``retries`` further attempts, when refused, or for want of room"""
        self._queue: queue.Queue[str | None] = queue.Queue(WAITING)
        self._closing, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def post(self, text: str) -> None:
        try:
            self._queue.put_nowait(text)
        except queue.Full:
            self.lost += 1

    def close(self, wait: float = 5.0) -> None:
        """Send what waits, for ``wait`` seconds at most; pauses of our own are cut short."""
        end = time.monotonic() + wait
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=wait)
        self._thread.join(max(0.0, end - time.monotonic()))
        self._over.set()
        with contextlib.suppress(queue.Empty):  # what is still there is given up
            while self._queue.get_nowait() is not None:
                self.lost += 1
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def _work(self) -> None:
        silent = False
        while (text := self._queue.get()) is not None:
            error = self._send(text)
            if error is None:
                self.sent += 1
            else:
                self.lost += 1
                if not silent:
                    print(f"warning: watch.webhook: an alarm could not be sent ({error})", file=sys.stderr, flush=True)
            silent = error is not None  # an address that stays dead is told once

    def _send(self, text: str) -> str | None:
        """What went wrong the last time, or None. The address itself is a secret and is not told."""
        body = json.dumps({"text": html.escape(text, quote=False)}).encode()  # these three mean something to Slack
        error = ""
        for attempt in range(self.retries + 1):
            asked = 0.0
            try:
                request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"}, method="POST")
                with _OPENER.open(request, timeout=self.timeout):
                    return None
            except (OSError, HTTPException, ValueError) as problem:  # HTTPError and TimeoutError are OSErrors
                error = f"{type(problem).__name__}: {getattr(problem, 'code', None) or getattr(problem, 'reason', '')}"
                if isinstance(problem, HTTPError):
                    if problem.code < 400:
                        return f"{error}: redirected, give the address that it leads to"
                    if problem.code < 500 and problem.code != 429:
                        break  # refused, and so it would be again
                    asked = retry_after({name.lower(): value for name, value in problem.headers.items()}) or 0.0
            if attempt == self.retries or asked > LONGEST_PAUSE:
                break
            if self._over.wait(asked):  # not cut short by `close` while that still waits
                break
            self._closing.wait(max(0.0, self.pause * 2**attempt - asked))
        return error
