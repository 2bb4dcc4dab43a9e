"""The page in a real browser, from disk, at the widths of a desk and a phone. Skipped where no Chromium is installed:
`pytest -rs` says so."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "annotate"))
from test_annotate_browser import PROGRAM, Chromium
from test_page import HOSTILE, ppo_run, reward_run
from test_page_size import shaded_run

from ppomax.report.page import report

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium or Chrome: no such program on the PATH")
PICTURES = os.environ.get("PPOMAX_PICTURES")
CHINESE = "奖励模型给出的分数越来越高，而人们并不喜欢这些回答。" * 8
OVERLAPS = """
(() => {
  for (const closed of document.querySelectorAll("details")) closed.open = true;
  const boxes = [];
  const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    if (!node.textContent.trim() || node.parentElement.closest("script")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) if (box.width > 1 && box.height > 1) boxes.push([box, node.textContent]);
  }
  boxes.sort((a, b) => a[0].top - b[0].top);
  const found = [];
  boxes.forEach(([a, text], i) => {
    for (let k = i + 1; k < boxes.length && boxes[k][0].top < a.bottom - 4; k++) {
      const b = boxes[k][0];
      if (b.left < a.right - 2 && a.left < b.right - 2) found.push([text.slice(0, 40), boxes[k][1].slice(0, 40)]);
    }
  });
  return found;
})()
"""
"""pairs of lines of text that lie over each other"""
DRAWN_OVERLAPS = """
(() => {
  const found = [];
  for (const image of document.querySelectorAll("img")) {
    const bytes = Uint8Array.from(atob(image.src.split(",")[1]), (letter) => letter.charCodeAt(0));
    const drawn = new DOMParser().parseFromString(new TextDecoder().decode(bytes), "image/svg+xml").documentElement;
    document.body.append(drawn);
    const words = [...drawn.querySelectorAll("text")].filter((word) => word.textContent.trim());
    const boxes = words.map((word) => word.getBoundingClientRect());
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, k) => {
      const over = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const below = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (over > 2 && below > 4) found.push([image.alt.slice(0, 40), words[i].textContent, words[i + k + 1].textContent]);
    }));
    drawn.remove();
  }
  return found;
})()
"""
"""the same of the words in the figures, with the fonts of whoever reads the page"""


class Browser(Chromium):
    def settle(self) -> None:
        """The page is whole."""
        self.wait("document.readyState === 'complete' && location.href.startsWith('file:')")

    def open(self, page: Path, width: int) -> None:
        self.go(page.as_uri(), width)
        self.wait("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")

    def shot(self, name: str) -> None:
        if PICTURES:
            time.sleep(0.5)
            self.picture(Path(PICTURES) / f"report_{name}.png")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.out)
    os.close(opened.into)


@pytest.mark.parametrize(
    "text", [HOSTILE, CHINESE, "An answer of some words, and no more. " * 8], ids=["hostile", "zh", "en"]
)
def test_page_from_disk(tmp_path: Path, browser: Browser, text: str) -> None:
    runs = [ppo_run(tmp_path / "a" / "ppo", text), ppo_run(tmp_path / "b" / "ppo", text, gain=-0.1, kl={"coef": 0.0})]
    runs.append(reward_run(tmp_path / "reward", text))
    page = tmp_path / "page.html"
    page.write_text(report(runs).html, encoding="utf-8")
    for scheme, width in (("light", 1200), ("dark", 390)):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.open(page, width)
        assert browser.value("document.documentElement.scrollWidth") <= width, "nothing to scroll sideways"
        assert browser.value(OVERLAPS) == []
        browser.shot(f"{text[:2].strip('<')}_{scheme}_{width}")
    assert browser.value("document.title").startswith("3 runs: "), "no hostile text ran"
    assert not browser.value("document.querySelector('main img:not([src^=\"data:\"])')")
    assert browser.value("[...document.images].every((image) => image.alt)")
    assert browser.value(DRAWN_OVERLAPS) == []
    assert not browser.problems, "nothing on the console"


def test_search_with_the_keyboard(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        report([ppo_run(tmp_path / "ppo", "needle"), reward_run(tmp_path / "reward", "hay")]).html, encoding="utf-8"
    )
    browser.open(page, 1200)
    count = "[...document.querySelectorAll('article')].filter((item) => item.offsetHeight).length"
    assert browser.value(count) == 2
    for _ in range(20):
        if browser.value("document.activeElement.type === 'search'"):
            break
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert browser.value("document.activeElement.closest('label').textContent.trim()") == "Search"
    assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid", (
        "where the keys go is seen"
    )
    browser.call("Input.insertText", text="NEEDLE x")
    browser.wait("document.querySelector('output').textContent === '0 of 1'")
    assert browser.value(count) == 1, "the other list is searched by its own field"
    browser.press("\b")
    browser.value("document.activeElement.value = 'needle'; document.activeElement.dispatchEvent(new Event('input'))")
    browser.wait("document.querySelector('output').textContent === '1 of 1'")
    assert browser.value(count) == 2 and not browser.problems


def test_a_wide_table_scrolls_with_the_keys(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "page.html"
    page.write_text(report([ppo_run(tmp_path / name) for name in "abcd"]).html, encoding="utf-8")
    browser.open(page, 390)
    wide = "document.querySelector('.wide')"
    assert browser.value(f"{wide}.scrollWidth > {wide}.clientWidth + 100")
    tab = {"type": "keyDown", "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
    browser.call("Input.dispatchKeyEvent", **tab)
    assert browser.value(f"document.activeElement === {wide}"), "the first stop of the keys"
    assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    right = {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39}
    for _ in range(3):
        browser.call("Input.dispatchKeyEvent", type="keyDown", **right)
        browser.call("Input.dispatchKeyEvent", type="keyUp", **right)
    browser.wait(f"{wide}.scrollLeft > 0")
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = {(node["role"]["value"], node.get("name", {}).get("value")) for node in tree if "role" in node}
    assert ("region", "First and last numbers") in named and ("columnheader", "d") in named
    assert ("rowheader", "reward") in named and any(role == "main" for role, _ in named)


def test_shades_are_told_in_words_too(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "page.html"
    page.write_text(report([shaded_run(tmp_path / "run", prompts=2, characters=60)]).html, encoding="utf-8")
    browser.open(page, 390)
    assert browser.value("document.querySelectorAll('.more3').length") > 0
    shut = "document.querySelector('article').querySelectorAll('details:not([open])').length"
    assert browser.value(shut) == 2
    browser.value("document.querySelector('article summary').focus()")
    browser.press("\r")
    browser.wait(f"{shut} === 1")
    assert browser.value("document.querySelector('article td + td').textContent") == "+4.00"
    assert browser.value("document.documentElement.scrollWidth") <= 390
    assert browser.value("document.querySelector('article .text').lang") == "zh"
    assert not browser.problems
