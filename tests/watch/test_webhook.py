"""Alarms are posted to a real local server, which may be slow, broken or gone; training never waits for it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ppomax.errors import UserError
from ppomax.watch.webhook import LONGEST_PAUSE, WAITING, Webhook, address


@contextmanager
def server(
    *, failures: int = 0, status: int = 500, wait: str | None = None, free: threading.Event | None = None,
    asked: list[float] | None = None, location: str | None = None,
) -> Iterator[tuple[str, list[dict[str, Any]]]]:  # fmt: skip
    """(address, what was taken): answers ``status`` so many times first, and nothing before it is ``free``.

    ``wait`` is its Retry-After, ``location`` where it points; the times of all requests go to ``asked``.
    """
    taken: list[dict[str, Any]] = []
    left = [failures]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/json"
            if asked is not None:
                asked.append(time.monotonic())
            if free is not None:
                free.wait(60)
            if left[0] > 0:
                left[0] -= 1
                self.send_response(status)
                if wait is not None:
                    self.send_header("Retry-After", wait)
                if location is not None:
                    self.send_header("Location", location)
                self.end_headers()
                return
            taken.append(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:  # what a redirect may lead to
            taken.append({"method": "GET"})
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/services/T0/B0", taken
    finally:
        http.shutdown()
        http.server_close()


def test_posted_as_slack_reads_it() -> None:
    with server() as (url, taken):
        hook = Webhook(url)
        hook.post("collapse: 崩溃 <b>&\n")
        hook.post("'second' \"<!channel>\"")
        hook.close()
    assert taken == [{"text": "collapse: 崩溃 &lt;b&gt;&amp;\n"}, {"text": "'second' \"&lt;!channel&gt;\""}], (
        "as Slack's rules ask; no quotes"
    )
    assert (hook.sent, hook.lost) == (2, 0)


def test_tried_again_after_500() -> None:
    with server(failures=2) as (url, taken):
        hook = Webhook(url, pause=0.01)
        hook.post("a")
        hook.close()
    assert taken == [{"text": "a"}] and hook.lost == 0


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_refused_is_not_asked_again(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[float] = []
    with server(failures=1, status=status, asked=asked) as (url, taken):
        hook = Webhook(url, pause=0.01)
        hook.post("a")
        hook.post("b")
        hook.close()
    assert len(asked) == 2 and taken == [{"text": "b"}] and (hook.sent, hook.lost) == (1, 1)
    assert f"an alarm could not be sent (HTTPError: {status})" in capsys.readouterr().err


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[float] = []
    with server(failures=1, status=status, location="/landed", asked=asked) as (url, taken):
        hook = Webhook(url, pause=0.01)
        hook.post("a")
        hook.close()
    assert len(asked) == 1 and taken == [] and (hook.sent, hook.lost) == (0, 1)
    assert f"(HTTPError: {status}: redirected, give the address that it leads to)" in capsys.readouterr().err


def test_an_address_that_asks_for_a_pause_gets_it() -> None:
    """Longer than our own pause, and not cut short when the run ends meanwhile."""
    asked: list[float] = []
    with server(failures=2, status=429, wait="0.4", asked=asked) as (url, taken):
        hook = Webhook(url, pause=0.01)
        hook.post("a")
        hook.close(wait=60)
    assert taken == [{"text": "a"}] and hook.lost == 0
    assert asked[1] - asked[0] >= 0.4 and asked[2] - asked[1] >= 0.4


def test_429_without_a_pause_is_tried_again_as_any_fault() -> None:
    asked: list[float] = []
    with server(failures=99, status=429, asked=asked) as (url, taken):
        hook = Webhook(url, pause=0.01, retries=2)
        hook.post("a")
        hook.close()
    assert len(asked) == 3 and not taken and hook.lost == 1


def test_too_long_a_pause_is_not_waited_for() -> None:
    asked: list[float] = []
    with server(failures=1, status=429, wait=str(LONGEST_PAUSE + 1), asked=asked) as (url, taken):
        hook = Webhook(url, pause=0.01)
        hook.post("a")
        hook.post("b")
        hook.close(wait=30)
    assert len(asked) == 2 and taken == [{"text": "b"}] and hook.lost == 1


def test_the_end_of_the_run_does_not_wait_for_a_pause() -> None:
    asked: list[float] = []
    with server(failures=99, status=429, wait="30", asked=asked) as (url, _):
        hook = Webhook(url)
        hook.post("a")
        while not asked:
            time.sleep(0.01)
        began = time.monotonic()
        hook.close(wait=0.2)
        assert time.monotonic() - began < 10
        hook._thread.join(20)
    assert len(asked) == 1 and hook.lost == 1, "given up with the rest"


def test_given_up_in_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with server(failures=99) as (url, taken):
        hook = Webhook(url, pause=0.01, retries=2)
        hook.post("a")
        hook.close()
    assert not taken and (hook.sent, hook.lost) == (0, 1)
    told = capsys.readouterr().err
    assert "an alarm could not be sent (HTTPError: 500)" in told
    assert "services" not in told, "the address is a secret"


def test_a_slow_server_blocks_nobody() -> None:
    free = threading.Event()
    with server(free=free) as (url, _):
        hook = Webhook(url)
        began = time.perf_counter()
        for i in range(2 * WAITING):
            hook.post(str(i))
        assert time.perf_counter() - began < 5, "the server has not answered yet"
        assert hook.lost >= WAITING - 1, "what does not fit is counted"
        began = time.perf_counter()
        hook.close(wait=0.2)
        assert time.perf_counter() - began < 5, "nor now"
        free.set()


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    hook = Webhook("http://127.0.0.1:9/x", pause=0.01, retries=1)
    hook.post("a")
    hook.close()
    assert hook.lost == 1 and "URLError" in capsys.readouterr().err


def test_the_address_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOM", "https://example.org/x")
    assert address("$ROOM") == "https://example.org/x"
    assert address("http://h/x") == "http://h/x"
    monkeypatch.setenv("ROOM", "slack")
    with pytest.raises(UserError, match=r"watch.webhook: the environment variable ROOM is no http\(s\) address"):
        address("$ROOM")
    monkeypatch.delenv("ROOM")
    with pytest.raises(UserError, match=r"watch.webhook: the environment variable ROOM is not set"):
        address("$ROOM")
    with pytest.raises(UserError, match=r"the value is no http"):
        address("file:///etc/passwd")
