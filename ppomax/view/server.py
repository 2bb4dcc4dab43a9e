"""The web server of `ppomax view`: on this machine alone unless another host is asked for, and for one person.

What is refused, and why: a request without the token (in the address at the first visit, in a cookie afterwards); a Host
header that is a foreign name (a web site could point its own name at 127.0.0.1); a POST without the page's own token or
from another origin. Runs are named by keys that only a look below the folder gives out: no path comes from outside. Pages
load nothing from elsewhere and run only the one script file, which puts text into the page as text.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import ipaddress
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from ppomax.annotate.server import HEADERS, is_loopback
from ppomax.errors import UserError
from ppomax.report.text import visible
from ppomax.train.requests import REQUESTS, ask
from ppomax.view.live import LiveRun
from ppomax.view.runs import MOST_RUNS, Run, find_runs, summary

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
ASSETS = {"/view.css": "text/css; charset=utf-8", "/view.js": "text/javascript; charset=utf-8"}
LONGEST_BODY = 1000
"""bytes"""
LOOK_AGAIN = 2.0
"""seconds for which the list of directories is believed"""
MOST_OPEN = 50
"""runs whose numbers are kept in memory"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="request-token" content="{token}"><title>{title}</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="/view.css"></head><body>
<main data-folder="{title}"><h1>{title}</h1>{body}</main>
{script}</body></html>
"""
SCRIPT = '<script src="/view.js"></script>'
NEEDS = "<noscript><p>This page needs JavaScript.</p></noscript>"


class Refused(Exception):
    """A request that gets ``status`` and this sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class ViewServer(ThreadingHTTPServer):
    """Serves the runs below ``root``. ``port`` 0: any free one."""

    daemon_threads = True

    def __init__(self, root: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.root, self.host = root, host
        self.token = secrets.token_urlsafe(24)
        self.request_token = hmac.new(self.token.encode(), b"request", hashlib.sha256).hexdigest()
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._looked = float("-inf")
        self._open: dict[str, tuple[threading.Lock, LiveRun]] = {}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot listen on {host} port {port}: {error}; choose another --host or --port") from None

    def server_bind(self) -> None:
        """Without http.server's look-up of the machine's full name, which can take seconds."""
        super(ThreadingHTTPServer, self).server_bind()
        self.server_name, self.server_port = self.host, self.server_address[1]

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address to be opened, with the token."""
        name = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{self.port}/?token={quote(self.token)}"

    @property
    def cookie(self) -> str:
        """Cookies do not know ports."""
        return f"ppomax_view_{self.port}"

    def knows_host(self, header: str) -> bool:
        """Whether a Host header names this server. Any port: a tunnel may end at another one."""
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        if is_loopback(name):
            return True
        if is_loopback(self.host):
            return False
        try:
            ipaddress.ip_address(name)  # an address cannot be pointed elsewhere by its owner
            return True
        except ValueError:
            return name in (self.host.lower(), socket.gethostname().lower())

    def runs(self) -> dict[str, Run]:
        """key -> run, as of a moment ago."""
        with self._lock:
            if time.monotonic() - self._looked > LOOK_AGAIN:
                self._runs = {run.key: run for run in find_runs(self.root)}
                self._looked = time.monotonic()
            return self._runs

    def run(self, key: str) -> Run:
        """Refused where there is none, or none any more."""
        run = self.runs().get(key)
        if run is None or not (run.path / "config.yaml").is_file():
            raise Refused(404, "This run is no longer there.")
        return run

    def look(self, key: str) -> dict[str, Any]:
        """What the page of a run shows now."""
        run = self.run(key)
        with self._lock:
            if key not in self._open:
                if len(self._open) >= MOST_OPEN:
                    self._open.pop(next(iter(self._open)))
                self._open[key] = (threading.Lock(), LiveRun(run))
            lock, live = self._open[key]
        with lock:
            return live.look()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ppomax", ""
    timeout = 60  # seconds of silence before a connection is closed

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: addresses hold the token."""

    def do_GET(self) -> None:
        """A page, one of its files, or numbers."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """A request to a run."""
        self._answer(self._post)

    def _get(self) -> None:
        address = urlsplit(self.path)
        if address.path in ASSETS:
            asset = files("ppomax.view").joinpath(address.path[1:]).read_bytes()
            self._send(200, asset, ASSETS[address.path])
            return
        given = parse_qs(address.query)
        if "token" in given:
            if not _same(given["token"][0], self.server.token):
                raise Refused(403, "This address is not valid: open the one that `ppomax view` has printed.")
            cookie = f"{self.server.cookie}={self.server.token}; HttpOnly; SameSite=Lax; Path=/"
            self._send(303, b"", extra={"Location": "/", "Set-Cookie": cookie})
            return
        self._enter()
        if address.path == "/" or re.fullmatch(r"/run/[0-9a-f]+", address.path):
            self._send(200, self._page(visible(str(self.server.root)), NEEDS, SCRIPT))
        elif address.path == "/api/runs":
            runs = [summary(run) for run in self.server.runs().values()]
            self._json({"now": time.time(), "runs": runs, "more": len(runs) == MOST_RUNS})
        elif found := re.fullmatch(r"/api/run/([0-9a-f]+)", address.path):
            shown = self.server.look(found[1])
            same = given.get("version", [""])[0] == shown["version"]
            self._json({"now": time.time(), **({"version": shown["version"]} if same else shown)})
        else:
            raise Refused(404, "There is no such page.")

    def _post(self) -> None:
        origin = self.headers.get("Origin")
        if self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin" or (
            origin is not None and urlsplit(origin).netloc != self.headers["Host"]
        ):
            raise Refused(403, "This request came from another page.")
        self._enter()
        if not _same(self.headers.get("X-Request-Token", ""), self.server.request_token):
            raise Refused(403, "This request does not hold the page's token: reload the page.")
        found = re.fullmatch(r"/api/run/([0-9a-f]+)/(\w+)", self.path)
        if found is None or found[2] not in REQUESTS:
            raise Refused(404, "There is no such request.")
        length = self.headers.get("Content-Length", "0")
        if not re.fullmatch(r"\d{1,9}", length) or int(length) > LONGEST_BODY:
            raise Refused(413, "This request is too long.")
        self.rfile.read(int(length))
        run = self.server.run(found[1])
        if not summary(run)["obeys"]:
            raise Refused(409, "This run does not live, or takes no requests.")
        try:
            ask(run.path, found[2])
        except OSError as error:
            raise Refused(409, f"The run cannot be asked: {error.strerror or error}.") from None
        self._json({"asked": found[2]})

    # ---------------------------------------------------------------------------------------- machinery

    def _answer(self, work: Callable[[], None]) -> None:
        try:
            try:
                if not self.server.knows_host(self.headers.get("Host", "")):
                    raise Refused(421, "This server does not go by that name.")
                work()
            except Refused as refused:
                self.close_connection = True  # the body may not have been read
                if self.path.startswith("/api/"):
                    self._json({"error": refused.sentence}, refused.status)
                else:
                    self._send(refused.status, self._page("ppomax view", f"<p>{html.escape(refused.sentence)}</p>"))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # the browser has gone

    def _enter(self) -> None:
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        cookie = cookies.get(self.server.cookie)
        if cookie is None or not _same(cookie.value, self.server.token):
            raise Refused(403, "This address is not valid: open the one that `ppomax view` has printed.")

    def _page(self, title: str, body: str, script: str = "") -> bytes:
        token = self.server.request_token if script else ""
        page = PAGE.format(title=html.escape(title), token=token, body=body, script=script)
        return page.encode("utf-8", "replace")

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value, allow_nan=False).encode(), "application/json")

    def _send(
        self, status: int, body: bytes, kind: str = "text/html; charset=utf-8", extra: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        headers = {
            **HEADERS, "Content-Security-Policy": POLICY, "Content-Type": kind, "Content-Length": str(len(body)),
            **(extra or {}),
        }  # fmt: skip
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _same(given: str, secret: str) -> bool:
    """Comparison in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())
