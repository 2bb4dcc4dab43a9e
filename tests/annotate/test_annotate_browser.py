"""The page in a real browser, without a mouse and at the width of a phone. Skipped where no Chromium is installed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from annotate_tools import begin, item, serving

from ppomax.annotate.store import Store

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
HOSTILE = "<script>document.title = 'pwned'</script><img src=x onerror=\"document.title='pwned'\">" + "x" * 400
CLOCK = """
{ const now = Date.now.bind(Date), began = now();
  Date.now = () => window.late ? now() + 1000 : began; }
"""
"""stands still until a test says that it is late"""
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27}


class Chromium:
    """One page of a headless browser, over the protocol's pipe (file descriptors 3 and 4)."""

    def __init__(self, profile: Path) -> None:
        (their_in, self.out), (self.into, their_out) = os.pipe(), os.pipe()
        keep = [os.dup(fd) for fd in (their_in, their_out)]

        def pipes() -> None:
            os.dup2(keep[0], 3, inheritable=True)
            os.dup2(keep[1], 4, inheritable=True)

        assert PROGRAM is not None
        flags = [
            "--headless",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "--no-first-run",
        ]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        self.process = subprocess.Popen(
            [PROGRAM, *flags], preexec_fn=pipes, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for fd in (their_in, their_out, *keep):
            os.close(fd)
        self.number, self.buffer, self.session = 0, b"", ""
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                chunk = os.read(self.into, 65536)
                assert chunk, "the browser has ended"
                self.buffer += chunk
            line, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(line)
            if answer.get("method") == "Log.entryAdded":
                self.problems.append(answer["params"]["entry"]["text"])
            elif answer.get("method") == "Runtime.exceptionThrown":
                self.problems.append(str(answer["params"]))
            elif answer.get("id") == self.number:
                if method == "Runtime.evaluate" and "error" in answer:  # the page went while it was asked
                    return {"result": {}}
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait(self, expression: str) -> None:
        end = time.monotonic() + 30
        while not self.value(expression):
            assert time.monotonic() < end, (expression, self.value("document.body.innerText"))
            time.sleep(0.05)

    def go(self, url: str, width: int) -> None:
        phone = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **phone)
        self.value("window.old = true")
        self.call("Page.navigate", url=url)
        self.wait("!window.old")
        self.settle()

    def settle(self) -> None:
        """The page is whole, and by its clock (CLOCK, where it is set) old enough to take keys."""
        self.wait("document.readyState === 'complete' && location.search === '' && location.href.startsWith('http')")
        time.sleep(0.5)  # what came too early has time to do harm
        self.value("window.late = true")

    def press(self, key: str) -> None:
        about: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper()))}
        if len(key) == 1:
            about["text"] = key
        self.call("Input.dispatchKeyEvent", type="keyDown", **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def picture(self, path: Path) -> None:
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    opened = Chromium(tmp_path / "profile")
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.out)
    os.close(opened.into)


def count_is(store: Store, n: int) -> None:
    end = time.monotonic() + 20
    while len([j for j in store.judgements() if j.withdrawn is None]) != n:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_keys_widths_and_hostile_text(tmp_path: Path, browser: Chromium) -> None:
    items = [item(0, HOSTILE, "short"), *(item(i, "long answer\n" * 60, HOSTILE) for i in range(1, 6))]
    store = begin(tmp_path, items)
    browser.call("Page.addScriptToEvaluateOnNewDocument", source=CLOCK)
    pictures = os.environ.get("PPOMAX_PICTURES")
    with serving(store, ["anna"]) as (server, _):
        url = server.url(store.annotators()[0])
        for width in (1200, 390):
            for language in ("en", "zh"):
                browser.go(url, width)
                browser.value(f"window.old = true; location.search = 'language={language}'")
                browser.wait("!window.old")
                browser.settle()
                assert browser.value("document.documentElement.lang") == language
                assert browser.value("document.documentElement.scrollWidth") <= width  # nothing to scroll sideways
                tops = browser.value(
                    "[...document.querySelectorAll('.answer')].map(a => a.getBoundingClientRect().top)"
                )
                assert (tops[0] == tops[1]) == (width == 1200)  # side by side, or one under the other
                small = browser.value("Math.min(...[...document.querySelectorAll('button')].map(b => b.offsetHeight))")
                assert small >= 44  # a finger's width
                if pictures:
                    browser.picture(Path(pictures) / f"annotate_{language}_{width}.png")
        browser.go(url, 1200)

        done = 0
        for key, choice in (
            ("1", "left"),
            ("3", "right"),
            ("2", "tie"),
            ("ArrowRight", "right"),
            ("ArrowLeft", "left"),
        ):
            if key == "3":
                browser.press("c")
                browser.press("r")
                for letter in "u1":  # in the reason these are letters
                    browser.press(letter)
                browser.press("Escape")
            browser.press(key)
            done += 1
            count_is(store, done)
            last = store.judgements()[-1]
            assert last.choice == choice
            assert (last.strength, last.reason) == (("clear", "u1") if key == "3" else (None, ""))
            browser.wait(
                f"document.body.innerText.replace('您已评判', 'judged by you').includes('judged by you: {done}')"
            )
            browser.press("1")  # at once, as the second half of a double press would be
            browser.settle()
            assert len(store.judgements()) == done
        browser.press("ArrowDown")  # a long page: scrolls
        time.sleep(0.3)
        assert len(store.judgements()) == done
        browser.value("window.scrollTo(0, document.documentElement.scrollHeight)")
        browser.wait("window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 40")
        browser.press("ArrowDown")
        count_is(store, done + 1)
        assert store.judgements()[-1].choice == "tie"
        browser.wait("document.body && !document.getElementById('judge')")
        browser.settle()
        assert browser.value("!document.getElementById('judge')")
        browser.press("u")
        count_is(store, done)
        browser.wait("!!document.getElementById('judge')")
        browser.settle()
        assert browser.value("!!document.getElementById('judge')") and browser.value("document.title") != "pwned"
    assert browser.problems == [p for p in browser.problems if "favicon" in p]
    store.close()
