"""The web server: one address for each annotator, on this machine alone unless another host is asked for.

What is refused, and why: a request without the annotator's token (in the address at the first visit, in a cookie
afterwards); a Host header that is a foreign name (a web site could point its own name at 127.0.0.1); a POST without the
page's own token or from another origin. Pages load nothing from elsewhere and run only the one script file.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
import sys
from collections.abc import Callable, Sequence
from urllib.parse import parse_qs, quote, urlsplit

from ppomax.annotate.pages import LANGUAGES, Language, asset, done_page, message_page, task_page
from ppomax.annotate.store import Annotator, Store
from ppomax.local_server import LocalHandler, LocalServer, same_secret

LONGEST_BODY = 64 * 1024
"""bytes: a reason of 2000 characters, percent-encoded, with room"""
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
ASSETS = {"/page.css": "text/css; charset=utf-8", "/page.js": "text/javascript; charset=utf-8"}


class Refused(Exception):
    """A request that gets ``status`` and the message of this key."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class AnnotationServer(LocalServer):
    """Serves one store to its annotators. ``port`` 0: any free one."""

    def __init__(
        self, store: Store, annotators: Sequence[Annotator], *, host: str = "127.0.0.1", port: int = 0,
        language: Language = "en",
    ) -> None:  # fmt: skip
        self.store, self.language = store, language
        self.annotators = {str(annotator.number): annotator for annotator in annotators}
        super().__init__(Handler, host, port)

    def url(self, annotator: Annotator) -> str:
        """The address to be given to this annotator, and to nobody else."""
        return f"{self.root_url}/{annotator.number}/?token={quote(annotator.token)}"

    def csrf(self, annotator: Annotator) -> str:
        """What the forms of this annotator's pages carry: without the token it cannot be made."""
        return hmac.new(annotator.token.encode(), b"form", hashlib.sha256).hexdigest()

    def cookie(self, annotator: Annotator) -> str:
        """Cookies do not know ports, and two annotators may share a browser: both are in the name."""
        return f"ppomax_{self.port}_{annotator.number}"


class Handler(LocalHandler):
    """One request."""

    server: AnnotationServer
    policy = POLICY

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
            self.send(200, asset(address.path[1:]), ASSETS[address.path])
            return
        found = re.fullmatch(r"/(\d+)/", address.path)
        if found is None:
            raise Refused(404, "not_found")
        given = parse_qs(address.query)
        annotator = self.server.annotators.get(found[1])
        if "token" in given:
            if annotator is None or not same_secret(given["token"][0], annotator.token):
                raise Refused(403, "bad_link")
            self.redirect(f"/{annotator.number}/", f"{self.server.cookie(annotator)}={annotator.token}")
            return
        annotator = self._who(found[1])
        if given.get("language", [""])[0] in LANGUAGES:
            self.redirect(f"/{annotator.number}/", f"{self._language_cookie()}={given['language'][0]}")
            return
        self.send(200, self._page(annotator, given.get("notice", [""])[0]).encode("utf-8", "replace"))

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
        if not self.from_own_page():
            raise Refused(403, "bad_request")
        if not same_secret(fields.get("csrf", ""), self.server.csrf(annotator)):
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
        self.redirect(where)

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
            self.send(refused.status, page.encode())
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # the browser has gone

    def _who(self, number: str) -> Annotator:
        annotator = self.server.annotators.get(number)
        token = self.cookies().get(self.server.cookie(annotator), "") if annotator else ""
        if annotator is None or not same_secret(token, annotator.token):
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

    def _language_cookie(self) -> str:
        return f"ppomax_{self.server.port}_language"

    def _language(self) -> Language:
        chosen = self.cookies().get(self._language_cookie(), "")
        return next((language for language in LANGUAGES if language == chosen), self.server.language)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ValueError("not a number")
    return int(text)
