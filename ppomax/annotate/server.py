"""The web server: one address for each annotator, on this machine alone unless another host is asked for.

What is refused, and why: a request without the annotator's token (in the address at the first visit, in a cookie
afterwards); a Host header that is a foreign name (a web site could point its own name at 127.0.0.1); a POST without the
page's own token or from another origin. Pages load nothing from elsewhere and run only the one script file.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
import sqlite3
import sys
from collections.abc import Callable, Sequence
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

from ppomax.annotate.pages import LANGUAGES, Language, asset, done_page, message_page, task_page
from ppomax.annotate.store import Annotator, Store
from ppomax.errors import UserError

LONGEST_BODY = 64 * 1024
"""bytes: a reason of 2000 characters, percent-encoded, with room"""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # not no-referrer: browsers would then send `Origin: null` with the page's own forms
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
ASSETS = {"/page.css": "text/css; charset=utf-8", "/page.js": "text/javascript; charset=utf-8"}


class Refused(Exception):
    """A request that gets ``status`` and the message of this key."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def is_loopback(host: str) -> bool:
    """127.0.0.1, ::1, localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class AnnotationServer(ThreadingHTTPServer):
    """Serves one store to its annotators. ``port`` 0: any free one."""

    daemon_threads = True

    def __init__(
        self, store: Store, annotators: Sequence[Annotator], *, host: str = "127.0.0.1", port: int = 0,
        language: Language = "en",
    ) -> None:  # fmt: skip
        self.store, self.host, self.language = store, host, language
        self.annotators = {str(annotator.number): annotator for annotator in annotators}
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

    def url(self, annotator: Annotator) -> str:
        """The address to be given to this annotator, and to nobody else."""
        name = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{self.port}/{annotator.number}/?token={quote(annotator.token)}"

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

    def csrf(self, annotator: Annotator) -> str:
        """What the forms of this annotator's pages carry: without the token it cannot be made."""
        return hmac.new(annotator.token.encode(), b"form", hashlib.sha256).hexdigest()

    def cookie(self, annotator: Annotator) -> str:
        """Cookies do not know ports, and two annotators may share a browser: both are in the name."""
        return f"ppomax_{self.port}_{annotator.number}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: AnnotationServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ppomax", ""
    timeout = 60  # seconds of silence before a connection is closed

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: addresses hold tokens."""

    def do_GET(self) -> None:
        """A page, or one of its files."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """A judgement, or undo; both lead back to the page (303), so that a reload repeats nothing."""
        self._answer(self._post)

    # --------------------------------------------------------------------------------------- the pages

    def _get(self) -> None:
        address = urlsplit(self.path)
        if address.path in ASSETS:
            self._send(200, asset(address.path[1:]), ASSETS[address.path])
            return
        found = re.fullmatch(r"/(\d+)/", address.path)
        if found is None:
            raise Refused(404, "not_found")
        given = parse_qs(address.query)
        annotator = self.server.annotators.get(found[1])
        if "token" in given:
            if annotator is None or not _same(given["token"][0], annotator.token):
                raise Refused(403, "bad_link")
            self._redirect(f"/{annotator.number}/", f"{self.server.cookie(annotator)}={annotator.token}")
            return
        annotator = self._who(found[1])
        if given.get("language", [""])[0] in LANGUAGES:
            self._redirect(f"/{annotator.number}/", f"{self._language_cookie()}={given['language'][0]}")
            return
        self._send(200, self._page(annotator, given.get("notice", [""])[0]).encode("utf-8", "replace"))

    def _page(self, annotator: Annotator, notice: str) -> str:
        store, number = self.server.store, annotator.number
        task = store.next(number)
        csrf, language = self.server.csrf(annotator), self._language()
        notice = notice if notice == "already" else ""
        last, progress = store.last(number), store.progress(number)
        if task is None:
            return done_page(
                language=language, name=annotator.name, progress=progress, last=last, csrf=csrf, notice=notice
            )
        return task_page(
            task, language=language, name=annotator.name, progress=progress, last=last, csrf=csrf,
            submission=secrets.token_hex(16), notice=notice,
        )  # fmt: skip

    def _post(self) -> None:
        found = re.fullmatch(r"/(\d+)/(judge|undo)", self.path)
        if found is None:
            raise Refused(404, "not_found")
        fields = self._form()
        annotator = self._who(found[1])
        origin = self.headers.get("Origin")
        if self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin" or (
            origin is not None and urlsplit(origin).netloc != self.headers["Host"]
        ):
            raise Refused(403, "bad_request")
        if not _same(fields.get("csrf", ""), self.server.csrf(annotator)):
            raise Refused(403, "bad_request")
        where = f"/{annotator.number}/"
        try:
            if found[2] == "undo":
                self.server.store.undo(annotator.number, _number(fields.get("judgement", "")))
            else:
                kept = self.server.store.submit(
                    annotator.number, _number(fields.get("item", "")), fields.get("submission", ""),
                    fields.get("choice", ""), fields.get("strength") or None, fields.get("reason", "").strip(),
                )  # fmt: skip
                where += "?notice=already" if kept == "already judged" else ""
        except ValueError:
            raise Refused(400, "bad_request") from None
        self._redirect(where)

    # ---------------------------------------------------------------------------------------- machinery

    def _answer(self, work: Callable[[], None]) -> None:
        try:
            if not self.server.knows_host(self.headers.get("Host", "")):
                raise Refused(421, "bad_link")
            try:
                work()
            except sqlite3.Error as error:
                print(f"ppomax: {self.server.store.path}: {error}", file=sys.stderr, flush=True)
                raise Refused(503, "not_kept") from error
        except Refused as refused:
            self.close_connection = True  # the body may not have been read
            number = urlsplit(self.path).path.split("/")[1] if self.path.startswith("/") else ""
            back = f"/{number}/" if refused.message == "bad_request" and number in self.server.annotators else ""
            page = message_page(refused.message, self._language(), back)
            self._send(refused.status, page.encode())
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # the browser has gone

    def _who(self, number: str) -> Annotator:
        annotator = self.server.annotators.get(number)
        token = self._cookies().get(self.server.cookie(annotator), "") if annotator else ""
        if annotator is None or not _same(token, annotator.token):
            raise Refused(403, "bad_link")
        return annotator

    def _form(self) -> dict[str, str]:
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if not re.fullmatch(r"\d{1,9}", length) or kind != "application/x-www-form-urlencoded":
            raise Refused(400, "bad_request")
        if int(length) > LONGEST_BODY:
            raise Refused(413, "bad_request")
        body = self.rfile.read(int(length))
        if len(body) < int(length):  # half a form is no judgement
            raise Refused(400, "bad_request")
        try:
            fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=20)
        except ValueError:
            raise Refused(400, "bad_request") from None
        return {name: values[0] for name, values in fields.items()}

    def _cookies(self) -> dict[str, str]:
        try:
            return {name: morsel.value for name, morsel in SimpleCookie(self.headers.get("Cookie", "")).items()}
        except CookieError:
            return {}

    def _language_cookie(self) -> str:
        return f"ppomax_{self.server.port}_language"

    def _language(self) -> Language:
        chosen = self._cookies().get(self._language_cookie(), "")
        return next((language for language in LANGUAGES if language == chosen), self.server.language)

    def _redirect(self, where: str, cookie: str | None = None) -> None:
        extra = {"Location": where}
        if cookie is not None:
            # Lax, not Strict: an address opened from a mail or chat would not get in. POSTs carry a token of their own.
            extra["Set-Cookie"] = f"{cookie}; HttpOnly; SameSite=Lax; Path=/"
        self._send(303, b"", extra=extra)

    def _send(
        self, status: int, body: bytes, kind: str = "text/html; charset=utf-8", extra: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        headers = {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body)), **(extra or {})}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _same(given: str, secret: str) -> bool:
    """Comparison in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ValueError("not a number")
    return int(text)
