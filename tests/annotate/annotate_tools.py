"""Items, and a browser of few lines, for the tests of annotation."""

from __future__ import annotations

import html
import http.client
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from ppomax.annotate.server import AnnotationServer
from ppomax.annotate.store import Item, Store


def item(number: int, a: str | None = None, b: str | None = None, source: str = "helpful") -> Item:
    prompt = ({"role": "user", "content": f"question {number}"},)
    return Item(prompt, a or f"a{number} text", b or f"b{number} text", source)


def known(number: int) -> Item:
    """A test item."""
    return Item(({"role": "user", "content": f"known {number}"},), f"good{number}", f"bad{number}", "test")


class Browser:
    """Cookies, forms and redirects of one annotator."""

    def __init__(self, url: str) -> None:
        self.address = urlsplit(url)
        self.home = self.address.path
        self.cookies: dict[str, str] = {}
        self.page = ""

    def request(
        self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.address.hostname or "", self.address.port, timeout=20)
        sent = {"Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())}
        if body is not None:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            connection.request(method, path, body, {**sent, **(headers or {})})
            response = connection.getresponse()
            self.page = response.read().decode()
        finally:
            connection.close()
        for cookie in response.headers.get_all("Set-Cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return response

    def enter(self) -> Browser:
        assert self.request("GET", f"{self.address.path}?{self.address.query}").status == 303
        return self.look()

    def look(self) -> Browser:
        assert self.request("GET", self.home).status == 200
        return self

    def hidden(self, form: str) -> dict[str, str]:
        """The hidden fields of one form of the page."""
        found = re.search(rf'<form id="{form}".*?</form>', self.page, re.DOTALL)
        assert found, f"no form {form}"
        pairs = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', found[0])
        return {name: html.unescape(value) for name, value in pairs}

    def post(self, action: str, fields: dict[str, str], headers: dict[str, str] | None = None) -> int:
        response = self.request("POST", f"{self.home}{action}", urlencode(fields), headers)
        self.went_to = response.headers.get("Location", "")
        return response.status

    def shown(self) -> list[str]:
        """Prompt and answers as the page shows them, in order."""
        return [
            html.unescape(text)
            for text in re.findall(r'<div class="said" dir="auto">(.*?)</div>', self.page, re.DOTALL)
        ]

    @property
    def done(self) -> bool:
        return '<form id="judge"' not in self.page


@contextmanager
def serving(store: Store, names: list[str], **options: object) -> Iterator[tuple[AnnotationServer, list[Browser]]]:
    """A running server and a browser for each annotator."""
    annotators = store.add_annotators(names)
    server = AnnotationServer(store, annotators, **options)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server, [Browser(server.url(annotator)) for annotator in annotators]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def begin(
    folder: Path, items: list[Item], tests: list[Item] | None = None, overlap: float = 0.0, seed: int = 0
) -> Store:
    """A database that does not wait for the disk: for the tests where nothing is killed."""
    store = Store.begin(folder / "annotation.sqlite", items, tests, overlap=overlap, seed=seed)
    store._db.execute("PRAGMA synchronous = OFF")
    return store
