"""What our local web servers share (`ppomax annotate`, `ppomax view`): who may talk to them, and how they answer.

A server listens on this machine alone, unless `ppomax annotate` is asked for another host. Refused are a Host header that
is a foreign name (a web site could point its own name at 127.0.0.1) and a POST from another origin; tokens are each server's
own.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from ppomax.errors import UserError

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # not no-referrer: browsers would then send `Origin: null` with the page's own forms
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """127.0.0.1, ::1, localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def same_secret(given: str, secret: str) -> bool:
    """Comparison in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


class LocalServer(ThreadingHTTPServer):
    """Listens on ``host``; ``port`` 0: any free one. UserError where it cannot."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler], host: str, port: int) -> None:
        self.host = host
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot listen on {host} port {port}: {error}; choose another address or port") from None

    def server_bind(self) -> None:
        """Without http.server's look-up of the machine's full name, which can take seconds."""
        super(ThreadingHTTPServer, self).server_bind()
        self.server_name, self.server_port = self.host, self.server_address[1]

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def root_url(self) -> str:
        """The address without a path."""
        name = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return f"http://[{name}]:{self.port}" if ":" in name else f"http://{name}:{self.port}"

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


class LocalHandler(BaseHTTPRequestHandler):
    """One request; ``policy`` is the pages' content security policy."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ppomax", ""
    timeout = 60  # seconds of silence before a connection is closed
    policy: str

    def parse_request(self) -> bool:
        """As http.server's; an address that is none is refused here, so that no handler meets it."""
        if not super().parse_request():
            return False
        try:
            urlsplit(self.path)
            return True
        except ValueError:
            self.close_connection = True
            self.send(400, b"This is no address.", "text/plain; charset=utf-8")
            return False

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: addresses hold tokens."""

    def from_own_page(self) -> bool:
        """Whether the browser says that the request comes from this server's own page."""
        origin = self.headers.get("Origin")
        try:
            same = origin is None or urlsplit(origin).netloc == self.headers["Host"]
        except ValueError:
            return False
        return same and self.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"

    def cookies(self) -> dict[str, str]:
        """Name -> value. A browser sends those of every server on this machine, and theirs may be of any form."""
        pairs = [part.strip().partition("=") for part in self.headers.get("Cookie", "").split(";")]
        return {name: value for name, equals, value in reversed(pairs) if equals}  # of one name the first counts

    def redirect(self, where: str, cookie: str | None = None) -> None:
        """To an address of this server, with ``NAME=VALUE`` to be kept."""
        extra = {"Location": where}
        if cookie is not None:
            # Lax, not Strict: an address opened from a mail or chat would not get in. POSTs carry a token of their own.
            extra["Set-Cookie"] = f"{cookie}; HttpOnly; SameSite=Lax; Path=/"
        self.send(303, b"", extra=extra)

    def send(
        self, status: int, body: bytes, kind: str = "text/html; charset=utf-8", extra: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        about = {"Content-Security-Policy": self.policy, "Content-Type": kind, "Content-Length": str(len(body))}
        headers = {**HEADERS, **about, **(extra or {})}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
