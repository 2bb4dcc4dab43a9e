"""The web server of `ppomax view`: on this machine alone, and for one person.

What is refused, and why: a request without the token (in the address at the first visit, in a cookie afterwards); a Host
header that is a foreign name (a web site could point its own name at 127.0.0.1); a POST without the page's own token or
from another origin. Runs are named by keys that only a look below the folder gives out: no path comes from outside. Pages
load nothing from elsewhere and run only their own two script files, which put text into the page as text.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from ppomax.local_server import LocalHandler, LocalServer, same_secret
from ppomax.report.text import visible
from ppomax.train.requests import REQUESTS, ask
from ppomax.view.live import LiveRun
from ppomax.view.runs import MOST_RUNS, Run, find_runs, summary

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
SCRIPTS = "text/javascript; charset=utf-8"
ASSETS = {"/view.css": "text/css; charset=utf-8", "/view.js": SCRIPTS, "/charts.js": SCRIPTS}
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
SCRIPT = '<script type="module" src="/view.js"></script>'
NEEDS = "<noscript><p>This page needs JavaScript.</p></noscript>"


class Refused(Exception):
    """A request that gets ``status`` and this sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class ViewServer(LocalServer):
    """Serves the runs below ``root``. ``port`` 0: any free one."""

    def __init__(self, root: Path, *, port: int = 0) -> None:
        self.root = root
        self.token = secrets.token_urlsafe(24)
        self.request_token = hmac.new(self.token.encode(), b"request", hashlib.sha256).hexdigest()
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._looked = float("-inf")
        self._open: dict[str, tuple[threading.Lock, LiveRun]] = {}
        super().__init__(Handler, "127.0.0.1", port)

    @property
    def url(self) -> str:
        """The address to be opened, with the token."""
        return f"{self.root_url}/?token={quote(self.token)}"

    @property
    def cookie(self) -> str:
        """Cookies do not know ports."""
        return f"ppomax_view_{self.port}"

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
            if key not in self._open or self._open[key][1].run != run:  # resumed with more iterations, or another run
                self._open.pop(key, None)
                if len(self._open) >= MOST_OPEN:
                    self._open.pop(next(iter(self._open)))
                self._open[key] = (threading.Lock(), LiveRun(run))
            lock, live = self._open[key]
        with lock:
            return live.look()


class Handler(LocalHandler):
    """One request."""

    server: ViewServer
    policy = POLICY

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
            self.send(200, asset, ASSETS[address.path])
            return
        given = parse_qs(address.query)
        if "token" in given:
            if not same_secret(given["token"][0], self.server.token):
                raise Refused(403, "This address is not valid: open the one that `ppomax view` has printed.")
            self.redirect("/", f"{self.server.cookie}={self.server.token}")
            return
        self._enter()
        if address.path == "/" or re.fullmatch(r"/run/[0-9a-f]+", address.path):
            self.send(200, self._page(visible(str(self.server.root)), NEEDS, SCRIPT))
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
        if not self.from_own_page():
            raise Refused(403, "This request came from another page.")
        self._enter()
        if not same_secret(self.headers.get("X-Request-Token", ""), self.server.request_token):
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
                    self.send(refused.status, self._page("ppomax view", f"<p>{html.escape(refused.sentence)}</p>"))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # the browser has gone

    def _enter(self) -> None:
        if not same_secret(self.cookies().get(self.server.cookie, ""), self.server.token):
            raise Refused(403, "This address is not valid: open the one that `ppomax view` has printed.")

    def _page(self, title: str, body: str, script: str = "") -> bytes:
        token = self.server.request_token if script else ""
        page = PAGE.format(title=html.escape(title), token=token, body=body, script=script)
        return page.encode("utf-8", "replace")

    def _json(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value, allow_nan=False).encode(), "application/json")
