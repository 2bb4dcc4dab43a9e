"""A page stays small whatever the runs: one budget of bytes for texts, shades and pictures, and what is left out is told."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_page import ppo_run, reward_run, write

from ppomax.report import budget
from ppomax.report.budget import MOST_BYTES, MOST_TEXT, fit_articles, fit_pictures
from ppomax.report.figures import CRITIC_PANELS, PANELS
from ppomax.report.frame import Figures, Picture
from ppomax.report.page import report

PHASES = ("weights", "sample", "score", "update", "watch", "judge")


def long_run(folder: Path, iterations: int = 600, seed: int = 0) -> Path:
    """Every number that a page draws, each of them noise, and rewards of 256 judged prompts at 30 times."""
    run = ppo_run(folder, "a question")
    rng = np.random.default_rng(seed)
    names = [panel[0] for panel in (*PANELS, *CRITIC_PANELS)] + ["kl/ref_k3", "response/truncated"]
    names += [f"kl/{third}_third" for third in ("first", "middle", "last")] + ["reward/source/a", "reward/source/b"]
    noise = rng.normal(size=(iterations, len(names) + len(PHASES)))
    rows = []
    for i in range(iterations):
        row: dict[str, Any] = dict(zip(names, noise[i].tolist(), strict=False))
        seconds = np.exp(noise[i, len(names) :])
        row |= {f"time/{phase}": float(s) for phase, s in zip(PHASES, seconds, strict=True)}
        row |= {"reward/std": 1.0, "time/total": 1.1 * float(seconds.sum())}
        rows.append({"iteration": i, "phase": "policy", "update": 4 * (i + 1), **row})
    write(run / "metrics.jsonl", rows)
    evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    write(run / "evaluations.jsonl", [
        {**evaluations[0], "iteration": 20 * k, "update": 80 * k, "eval/proxy_win_rate": 0.5 + k / 100,
         "rewards": rng.normal(k / 10, 1, size=256).round(3).tolist()}
        for k in range(30)
    ])  # fmt: skip
    samples = [
        {"iteration": i, "update": 4 * i, "prompt": [{"role": "user", "content": f"q{j}"}], "response": "a word " * 20,
         "score": float(rng.normal()), "kl": 1.0, "length": int(rng.integers(5, 60)), "finished": True}
        for i in range(0, iterations, 50) for j in range(16)
    ]  # fmt: skip
    write(run / "samples.jsonl", samples)
    return run


def shaded_run(folder: Path, prompts: int, characters: int, seed: int = 0) -> Path:
    """Chinese answers whose every character has another shade than the one before."""
    run = ppo_run(folder, "question")
    pick = random.Random(seed)
    letters = [chr(code) for code in range(0x4E00, 0x5E00)]
    kls = [0.0, 0.5, -0.5, 2.0, -2.0, 4.0, -4.0]
    rows = []
    for i in (1, 3):
        for j in range(prompts):
            pieces = pick.choices(letters, k=characters)
            question = f"问题{j}" + "问" * 60
            rows.append({
                "iteration": i, "update": 4 * (i - 1), "prompt": [{"role": "user", "content": question}],
                "response": "".join(pieces), "score": 0.1, "kl": 1.0, "length": characters, "finished": True,
                "pieces": pieces, "token_kl": [kls[k % 7] for k in range(characters)],
            })  # fmt: skip
    write(run / "samples.jsonl", rows)
    return run


@pytest.mark.slow
def test_ten_long_runs(tmp_path: Path) -> None:
    runs = [long_run(tmp_path / f"run{i}", seed=i) for i in range(10)]
    made = report(runs)
    size = len(made.html.encode())
    assert 1_000_000 < size <= MOST_BYTES
    pictures = sum(len(figure.pictures) for figure in made.figures)
    assert pictures == 8 + 1 + 10 + 10 + 6 + 4 + 10
    assert made.html.count("<img ") == pictures, "all of them, the largest as PNG"
    assert made.html.count("data:image/png") < pictures


def test_many_shaded_dialogues_in_chinese(tmp_path: Path) -> None:
    page = report([shaded_run(tmp_path / "run", prompts=256, characters=512)]).html
    assert 2_000_000 < len(page.encode()) <= MOST_BYTES
    assert page.count("<article>") == 256, "text comes before shades"
    shaded = page.count("<summary>Tokens with the largest KL</summary>") // 2
    assert 0 < shaded < 256
    assert f"{256 - shaded} of the 256 are not shaded: the page has room for so much." in page
    assert page.count('lang="zh"') >= 3 * 256


@pytest.mark.slow
def test_dialogues_that_no_page_can_hold(tmp_path: Path) -> None:
    page = report([shaded_run(tmp_path / "run", prompts=256, characters=2900)]).html
    shown = page.count("<article>")
    assert 50 < shown < 256 and f"{256 - shown} more are in samples.jsonl" in page
    assert 2_000_000 < len(page.encode()) <= MOST_BYTES


def test_wrong_pairs_share_the_room(tmp_path: Path) -> None:
    ppo = shaded_run(tmp_path / "ppo", prompts=100, characters=2900)
    rewards = []
    for name in "ab":
        rewards.append(reward_run(tmp_path / name))
        row = json.loads((rewards[-1] / "disagreements.jsonl").read_text())
        long = "错" * 2900
        write(rewards[-1] / "disagreements.jsonl", [
            {**row, "chosen": long, "rejected": long, "gap": -9.0 + k / 100} for k in range(100)
        ])  # fmt: skip
    page = report([ppo, *rewards]).html
    assert len(page.encode()) <= MOST_BYTES
    pairs = page.split("<h2>Confidently wrong pairs</h2>")[1].split("</section>")[0]
    assert len(pairs.encode()) <= MOST_TEXT * 2 / 5 + 1000
    count = pairs.count("<article>")
    assert 20 < count < 60 and f"{200 - count} more are in disagreements.jsonl" in pairs
    assert abs(pairs.count(", by a<") - pairs.count(", by b<")) <= 1, "the widest gaps of each"
    assert page.split("<h2>Confidently wrong pairs</h2>")[0].count("<article>") > 20


# -------------------------------------------------------------------------------------- the parts


def item(text: str, shaded: bool = True) -> dict[str, Any]:
    shades = [(letter, "more1" if i % 2 else "") for i, letter in enumerate(text)] if shaded else []
    answer = {"title": "a", "text": text, "shades": shades, "largest": [], "numbers": ""}
    return {"turns": [{"role": "user", "content": "q"}], "answers": [answer]}


def test_articles_by_hand() -> None:
    bare = fit_articles([item("", shaded=False)], 10_000).bytes
    plain = bare + len(' lang="zh"') + 30
    shades = 5 * len('<span class="more1"></span>')
    everything = fit_articles([item("字" * 10)] * 3, 10_000)
    assert (len(everything.shown), everything.left_out, everything.plain) == (3, 0, 0)
    assert everything.bytes == 3 * (plain + shades)
    # room for all three, and for the shades of one
    some = fit_articles([item("字" * 10)] * 3, 3 * plain + shades + 10)
    assert (len(some.shown), some.left_out, some.plain) == (3, 0, 2)
    assert ["more1" in text for text in some.shown] == [True, False, False]
    # one that is too large leaves its place to those after it
    few = fit_articles([item("字" * 10), item("x" * 9000), item("<")], 2 * plain)
    assert (len(few.shown), few.left_out) == (2, 1) and "&lt;" in few.shown[1]


def picture(name: str, svg: int, png: int) -> Picture:
    def draw(file: Path) -> None:
        file.write_bytes(b"x" * (svg if file.suffix == ".svg" else png))

    return Picture(name, name, draw)


def sizes(drawn: Sequence[Any]) -> list[list[str]]:
    return [[f"{p.about} {p.source[11:14]}" for p in figure.pictures] for figure in drawn]


def test_pictures_by_hand() -> None:
    of_one = Figures("each", "Each run", [picture("a", 3000, 600), picture("b", 900, 600)], "Caption.")
    of_all = Figures("all", "All runs", [picture("c", 6000, 1500), picture("d", 300, 900)], whole=lambda file: None)
    wide = partial(fit_pictures, [of_one, of_all])

    def taken(kilobytes: float) -> int:
        return math.ceil(kilobytes * 4 / 3) + 400  # base64, and the beginnings of four addresses

    assert sizes(wide(taken(10_200))) == [["a svg", "b svg"], ["c svg", "d svg"]]
    assert sizes(wide(taken(5_800))) == [["a svg", "b svg"], ["c png", "d svg"]]
    assert sizes(wide(taken(3_400))) == [["a png", "b svg"], ["c png", "d svg"]]
    assert sizes(wide(taken(2_900))) == [["a png", "b png"], ["c png", "d svg"]]
    least = wide(2_600)
    assert sizes(least) == [[], ["c png", "d svg"]], "what shows all runs comes first"
    assert least[0].caption == "Caption. 2 more pictures: a page of fewer runs has room for them."
    assert sizes(wide(-5)) == [[], []]


def test_a_picture_keeps_its_numbers_to_a_hundredth() -> None:
    def draw(file: Path) -> None:
        file.write_text('<metadata>x</metadata><path d="M 1.23456 -78.9012 L 3 0.5" x="1.23456"/><text>0.12345</text>')

    assert Picture("p", "p", draw).svg == b'<path d="M 1.23 -78.90 L 3 0.5" x="1.23456"/><text>0.12345</text>'


@pytest.mark.parametrize("room", [0, 30_000])
def test_a_page_without_room_for_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    from ppomax.report import page

    monkeypatch.setattr(page, "MOST_BYTES", room)
    html = report([ppo_run(tmp_path / "run")]).html
    assert "<img " not in html or (room and "more pictures" in html)
    assert budget.MOST_BYTES < 5_000_000
