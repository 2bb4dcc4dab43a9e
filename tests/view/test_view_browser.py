"""The page in a real browser, beside a real PPO run in progress. Skipped where no Chromium is installed."""

from __future__ import annotations

import contextlib
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
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
sys.path.insert(0, str(Path(__file__).parents[1] / "annotate"))
from ppo_tools import byte_sum, lines, make_policy, run, skip_report
from test_annotate_browser import PROGRAM, Chromium
from test_view_files import long_run
from view_tools import HOSTILE, finish, make_run, serving, write

from ppomax.data.records import Prompt
from ppomax.train.checkpoint import list_checkpoints, step_of
from ppomax.train.requests import StopRequested, ask
from ppomax.view import server as view_server

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
PICTURES = os.environ.get("PPOMAX_PICTURES")
OVERLAPS = """
(() => {
  const boxes = [];
  const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const head = node.parentElement.closest("thead");
    if (!node.textContent.trim() || (head && getComputedStyle(head).position === "absolute")) continue;
    const list = node.parentElement.closest(".alarms")?.getBoundingClientRect();
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      const seen = !list || (box.top > list.top && box.bottom < list.bottom);
      if (box.width > 1 && box.height > 1 && seen) boxes.push([box, node.textContent]);
    }
  }
  const found = [];
  boxes.forEach(([a, text], i) => boxes.slice(i + 1).forEach(([b, other]) => {
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 2 && down > 4) found.push([text.slice(0, 40), other.slice(0, 40)]);
  }));
  return found;
})()
"""
"""pairs of lines of text that lie over each other, in figures too"""
CUT = """
[...document.querySelectorAll("figure svg text")].filter((word) => {
  const [a, b] = [word.getBoundingClientRect(), word.closest("svg").getBoundingClientRect()];
  return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
}).map((word) => word.textContent)
"""
"""words of figures that reach beyond their edge"""
ENDED = "document.querySelector('.state')?.className"


def slow_run(path: Path, resume: bool) -> int:
    """A run of some minutes, asked hostile things; 7: it was stopped as asked."""

    def reward(prompts: list[Any], responses: list[str]) -> list[float]:
        time.sleep(0.2)
        return byte_sum(prompts, responses)

    changes: dict[str, Any] = {
        "iterations": 400, "checkpoint.every": 0, "critic.pretrain_iterations": 1,
        "watch": {"every": 4, "eval_prompts": 2, "judge": [{"function": "ppo_tools:byte_sum"}], "judge_prompts": 2,
                  "judge_every": 4},
        "max_prompt_length": 900,
    }  # fmt: skip
    asked = [
        Prompt(({"role": "user", "content": f"{i} {HOSTILE[:200]}".encode("utf-8", "replace").decode()},))
        for i in range(4)
    ]
    skip_report()
    try:
        run(path, changes, policy=make_policy(context=400), reward=reward, prompts=asked, resume=resume)
    except StopRequested:
        return 7
    return 0


def start(path: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, __file__, str(path), *words],
        env=environment,
        stdout=subprocess.DEVNULL,
    )


class Browser(Chromium):
    """Waits as long as a busy machine needs."""

    def wait(self, expression: str, seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < end, (expression, self.value("document.body.innerText"))
            time.sleep(0.1)

    def settle(self) -> None:
        self.wait("document.readyState === 'complete' && location.search === '' && location.href.startsWith('http')")

    def shot(self, name: str) -> None:
        if PICTURES:
            time.sleep(0.5)
            self.picture(Path(PICTURES) / f"view_{name}.png")

    def click(self, selector: str) -> None:
        """As a person at the keyboard does."""
        self.value(f"document.querySelector('{selector}').focus()")
        assert self.value(f"document.activeElement === document.querySelector('{selector}')"), selector
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    def fits(self, width: int) -> None:
        assert self.value("document.documentElement.scrollWidth") <= width, "nothing to scroll sideways"
        assert self.value(OVERLAPS) == [] and self.value(CUT) == []


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.out)
    os.close(opened.into)


def iterations(path: Path) -> int:
    return len((path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())


def test_a_run_in_progress(tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    root, path = tmp_path / "runs", tmp_path / "runs" / "live"
    before_and_after = [0, 0]  # iterations, when the run was asked last: the way there takes any time

    def asking(run: Path, request: str) -> None:
        begun = iterations(path)
        ask(run, request)
        before_and_after[:] = begun, iterations(path)

    monkeypatch.setattr(view_server, "ask", asking)
    root.mkdir()
    with serving(root) as (server, _):
        browser.go(server.url, 1200)
        browser.wait("document.body.innerText.includes('No runs here yet')")
        process = start(path)
        try:
            browser.wait("document.querySelector('tbody td.state')?.textContent === 'running'")
            browser.shot("list")
            browser.click("tbody a")
            browser.wait("location.pathname.startsWith('/run/') && document.querySelectorAll('figure').length >= 8")
            assert browser.value("document.querySelector('h1').textContent") == "live"
            before = browser.value("document.querySelector('.head').textContent")
            browser.wait(
                f"document.querySelector('.head').textContent.split('last')[0] !== {before.split('last')[0]!r}"
            )
            browser.wait("document.querySelectorAll('article').length > 0")
            text = browser.value("document.body.innerText")
            assert "<script>document.title='pwned'</script><img src=x" in text, "shown as what it is"
            assert "[U+202E]abc" in text and not browser.value("document.querySelector('article img, article script')")

            browser.value("document.querySelector('figure svg').focus()")
            for _ in range(2):
                browser.press("ArrowLeft")
            assert browser.value("!!document.activeElement.querySelector('.cursor')"), "keys read values"
            assert "keys read values" in browser.value(
                "document.querySelector('figure svg').getAttribute('aria-label')"
            )
            browser.press("Escape")

            for drawn in (".ridges .crest", ".times path.phase", "section .grid .raw"):
                browser.wait(f"document.querySelectorAll('{drawn}').length > 0")
            hills = browser.value("document.querySelectorAll('.ridges .crest').length")
            browser.wait(f"document.querySelectorAll('.ridges .crest').length > {min(hills, 7)}")

            announced = "document.querySelector('p[role=status]').textContent"
            assert "忽然" not in browser.value("document.body.innerText")
            row = {"iteration": iterations(path) - 1, "level": "collapse", "message": "KL grows, 忽然"}
            with (path / "alarms.jsonl").open("a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
            browser.wait(f"{announced}.startsWith('New alarm, ') && {announced}.includes('KL grows, 忽然')")
            marked = (
                "[...document.querySelectorAll('figure:not(.ridges)')].every(f => f.querySelector('.mark.collapse'))"
            )
            browser.wait(marked)
            assert "KL grows, 忽然" in browser.value("document.querySelector('.alarm.collapse').textContent")

            browser.click(".controls button")
            browser.wait("document.querySelector('.controls span').textContent.startsWith('checkpoint: obeyed')")
            (obeyed,) = lines(path / "requests.jsonl")
            begun, asked_at = before_and_after
            assert 0 < begun <= obeyed["iteration"] + 1 <= asked_at + 1, "within one iteration"
            assert [step_of(p) for p in list_checkpoints(path / "checkpoints")] == [obeyed["iteration"] + 1]
            for width in (1200, 390):
                browser.go(browser.value("location.href"), width)
                browser.wait("document.querySelectorAll('figure').length >= 8")
                browser.fits(width)
                small = "[...document.querySelectorAll('button')].filter(b => b.offsetHeight).map(b => b.offsetHeight)"
                assert browser.value(f"Math.min(...{small})") >= 44
                browser.shot(f"run_{width}")

            browser.click("button.stop")
            browser.wait("document.querySelector('dialog').open")
            assert browser.value("document.activeElement.textContent") == "Let it run"
            browser.press("Escape")
            browser.wait("!document.querySelector('dialog').open")
            assert not (path / "requests" / "stop").exists()
            browser.click("button.stop")
            browser.wait("document.querySelector('dialog').open")
            browser.shot("sure")
            browser.click("dialog button.stop")
            browser.wait(f"{ENDED} === 'state stopped'")
            assert process.wait(timeout=60) == 7
            stopped = lines(path / "requests.jsonl")[-1]
            assert stopped["request"] == "stop" and stopped["iteration"] + 1 == iterations(path)
            assert obeyed["iteration"] + 1 <= before_and_after[0] <= iterations(path) <= before_and_after[1] + 1
            assert f"ppomax ppo {path / 'config.yaml'} --resume" in browser.value("document.body.innerText")
            assert browser.value("document.querySelector('.controls button').hidden")

            process = start(path, "--resume")
            browser.wait(f"{ENDED} === 'state running'")
            process.kill()
            process.wait()
            with (path / "metrics.jsonl").open("a", encoding="utf-8") as f:
                f.write('{"iteration": 99, "rew')
            browser.wait(f"{ENDED} === 'state dead'")
            assert "killed." in browser.value("document.querySelector('.trouble:not([hidden])').textContent")
            browser.shot("dead")
            shutil.rmtree(path)
            browser.wait("document.querySelector('[role=alert]').textContent === 'This run is no longer there.'")
            assert browser.value("document.querySelectorAll('figure').length") >= 8, "what was seen stays"
        finally:
            process.kill()
            process.wait()
        assert browser.value("document.title") == "live: dead"
    browser.wait("document.querySelector('[role=alert]').textContent.startsWith('ppomax view does not answer')")
    told = [p for p in browser.problems if "404" not in p and "ERR_CONNECTION" not in p]
    assert not told, "nothing on the console but the requests that the test let fail"


def processors() -> tuple[int, int]:
    """(that processes other than this one and those that it has started took, in all) of all processors, in ticks."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    parents, took = {}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            words = file.read_text(errors="replace").rpartition(")")[2].split()
            parents[int(file.parent.name)], took[int(file.parent.name)] = int(words[1]), sum(map(int, words[11:15]))
    family = {os.getpid()}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle - sum(took.get(process, 0) for process in family), sum(ticks)


def test_what_others_take() -> None:
    """Our own work, and that of what we start, leaves the limit strict."""
    busy = "import time\nend = time.process_time() + 2\nwhile time.process_time() < end: pass"
    (others, passed), mine = processors(), time.process_time()
    subprocess.run([sys.executable, "-c", busy], check=True)
    end = time.process_time() + 2
    while time.process_time() < end:
        pass
    others, passed = (now - then for now, then in zip(processors(), (others, passed), strict=True))
    worked = (time.process_time() - mine + 2) * os.sysconf("SC_CLK_TCK")
    assert -20 <= others <= passed - worked + 20


def test_a_hundred_thousand_lines_and_a_dark_page(tmp_path: Path, browser: Browser) -> None:
    make_run(tmp_path / "runs" / "short", text=HOSTILE)
    watched = make_run(tmp_path / "runs" / "watched")
    finish(watched)
    settings = (watched / "config.yaml").read_text(encoding="utf-8").replace("on_collapse: warn", "on_collapse: stop")
    (watched / "config.yaml").write_text(settings, encoding="utf-8")
    write(watched / "alarms.jsonl", [{"iteration": 11, "level": "collapse", "message": "KL grows."}])
    long_run(tmp_path / "runs" / "long")
    with serving(tmp_path / "runs") as (server, client):
        client.enter()
        keys = {r["name"]: r["key"] for r in client.json("/api/runs")["runs"]}
        browser.go(server.url, 1200)
        browser.wait("document.querySelectorAll('tbody tr').length === 3")
        browser.fits(1200)
        begun, before = time.monotonic(), processors()
        browser.go(f"http://127.0.0.1:{server.port}/run/{keys['long']}", 1200)
        browser.wait("document.querySelectorAll('figure svg path').length >= 6")
        seconds = time.monotonic() - begun
        others, passed = (now - then for now, then in zip(processors(), before, strict=True))
        print(f"first paint after {seconds:.2f} s, while others took {others / passed:.0%} of the processors")
        assert seconds < (2 if others < passed / 4 else 20), "the limit is for a machine that others leave free"
        browser.wait("document.querySelector('main').innerText.includes('Thin: each iteration') && "
                     "!document.querySelector('main').innerText.includes('A long file')")  # fmt: skip
        browser.fits(1200)
        browser.shot("long")
        for scheme in ("dark", "light"):
            browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            for width in (1200, 390):
                browser.go(f"http://127.0.0.1:{server.port}/run/{keys['short']}", width)
                browser.wait(
                    "document.querySelectorAll('figure').length === 11 && document.querySelectorAll('.alarm').length === 2"
                )
                browser.wait("document.querySelectorAll('figure svg path').length >= 14")
                browser.fits(width)
                assert browser.value("document.querySelectorAll('.said[lang=zh]').length") == 2
                browser.shot(f"short_{scheme}_{width}")
        assert browser.value("document.title") == "short: running"
        browser.go(f"http://127.0.0.1:{server.port}/", 390)
        browser.wait("document.querySelectorAll('tbody tr').length === 3")
        browser.fits(390)
        assert "stopped by the watch" in browser.value("document.querySelector('table').innerText")
        browser.shot("list_390")
        browser.go(f"http://127.0.0.1:{server.port}/run/{keys['watched']}", 390)
        browser.wait(f"{ENDED} === 'state stopped'")
        told = browser.value("document.querySelector('.trouble:not([hidden])').textContent")
        assert told == "collapse, iteration 11: KL grows. final/ holds the policy of that iteration."
    assert [p for p in browser.problems if "ERR_CONNECTION" not in p] == []


if __name__ == "__main__":
    sys.exit(slow_run(Path(sys.argv[1]), "--resume" in sys.argv))
