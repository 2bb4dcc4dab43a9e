"""The world's annotators at work: same choices whoever asks twice, noise and bias as planted, killed and gone on with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ppomax.annotate import simulated
from ppomax.annotate.simulated import SimulateConfig, simulate
from ppomax.annotate.store import Store
from ppomax.cli import main
from ppomax.config import DataSource
from ppomax.data.sources import load_mixture
from ppomax.errors import UserError
from ppomax.world import World
from ppomax.world.annotators import AnnotatorsConfig
from ppomax.world.answers import WRITERS
from ppomax.world.facts import stream
from ppomax.world.judge import TIE
from ppomax.world.make import WorldConfig, write_world

CAREFUL = AnnotatorsConfig(people=4, biased=0.0, slips=0.0, temperature=0.001)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, and two files of answers to 60 of its prompts by writers of all kinds; ten answers are the same."""
    folder = tmp_path_factory.mktemp("simulated")
    write_world(WorldConfig(output_dir=str(folder / "world"), size="small", texts=20, dialogues=20, train_prompts=60,
                            heldout_prompts=5, pairs=4))  # fmt: skip
    world, rng = World("en", 0, "small"), stream(0, "answers")
    sides: dict[str, list[str]] = {"a": [], "b": []}
    for i, prompt in enumerate(world.prompts("train", 60)):
        task, texts = world.task(prompt), {}
        for side in sides:
            writer = rng.choice(list(WRITERS.values()))
            texts[side] = writer(world.facts, task, rng)
        if i < 10:
            texts["b"] = texts["a"]
        for side, text in texts.items():
            sides[side].append(json.dumps({"prompt": prompt.messages, "response": text, "source": prompt.source}))
    for side, lines in sides.items():
        (folder / f"{side}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def config(place: Path, out: Path, **more: Any) -> SimulateConfig:
    answers = [str(place / "a.jsonl"), str(place / "b.jsonl")]
    return SimulateConfig(answers=answers, world=str(place / "world"), output_dir=str(out), resamples=100, **more)


def pairs_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]


def test_careful_people_say_the_truth(place: Path, tmp_path: Path) -> None:
    result = simulate(config(place, tmp_path / "out", annotators=CAREFUL))
    world = World("en", 0, "small")
    rows = [json.loads(line) for line in (tmp_path / "out" / "people" / "judgements.jsonl").read_text().splitlines()]
    assert len(rows) == 60 and result["items"]["same"] >= 10 and result["items"]["open"] == 0
    for row in rows:
        a, b = (world.judge(row["prompt"], row[f"response_{side}"]).overall for side in "ab")
        assert row["outcome"] == ("tie" if abs(a - b) < TIE else "win" if a > b else "lose")
    assert result["agreement"]["all"]["rate"] == 1.0 and result["agreement"]["all"]["items"] == 10  # overlap 0.2 of 50
    for pair in pairs_of(tmp_path / "out"):
        assert (
            world.judge(pair["prompt"], pair["chosen"]).overall > world.judge(pair["prompt"], pair["rejected"]).overall
        )
    records, _ = load_mixture([DataSource(path=str(tmp_path / "out" / "pairs.jsonl"))], "pair")
    assert len(records) == result["pairs"]["pairs"] > 20  # as `ppomax reward` reads them


def test_the_same_people_think_the_same_again(place: Path, tmp_path: Path) -> None:
    first = simulate(config(place, tmp_path / "one"))
    again = simulate(config(place, tmp_path / "two"))
    other = simulate(config(place, tmp_path / "three", seed=1))
    assert pairs_of(tmp_path / "one") == pairs_of(tmp_path / "two") and first == again
    assert (
        pairs_of(tmp_path / "one") != pairs_of(tmp_path / "three")
        and other["items"]["judged"] == first["items"]["judged"]
    )
    # blind: neither side is preferred by its place
    left, right = (sum(p[side] for p in first["annotators"].values()) for side in ("left", "right"))
    assert abs(left - right) < 3 * math.sqrt(left + right)


def test_biased_people_like_length(place: Path, tmp_path: Path) -> None:
    biased = AnnotatorsConfig(people=4, biased=1.0, slips=0.0, temperature=0.001, length_bonus=50.0)
    simulate(config(place, tmp_path / "out", annotators=biased))
    pairs = pairs_of(tmp_path / "out")
    longer = sum(len(p["chosen"].split()) >= len(p["rejected"].split()) for p in pairs)
    assert longer / len(pairs) > 0.95


def test_killed_and_gone_on_with(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulate(config(place, tmp_path / "whole"))
    submit, count = Store.submit, [0]

    def stop(self: Store, *args: Any) -> Any:
        count[0] += 1
        if count[0] > 17:
            raise KeyboardInterrupt
        return submit(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "submit", stop)
        with pytest.raises(KeyboardInterrupt):
            simulate(config(place, tmp_path / "out"))
    assert not (tmp_path / "out" / "pairs.jsonl").exists()
    with pytest.raises(UserError, match="already holds an annotation; add --resume"):
        simulate(config(place, tmp_path / "out"))
    asked = []
    choice = simulated._choice
    monkeypatch.setattr(simulated, "_choice", lambda *args: asked.append(1) or choice(*args))
    resumed = simulate(config(place, tmp_path / "out"), resume=True)
    assert len(asked) == sum(p["judged"] for p in whole["annotators"].values()) - 17  # nothing twice
    assert resumed["items"]["open"] == 0 and resumed["items"]["judged"] == whole["items"]["judged"]


def test_command(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [str(place / "a.jsonl"), str(place / "b.jsonl")]
    words = ["annotate", "simulate", *answers, "--output_dir", str(tmp_path / "out"), "--resamples", "100", "--world"]
    assert main([*words, str(place / "world")]) == 0
    told = capsys.readouterr().out
    assert (
        "49 of 60 prompts judged, 11 with the same answer twice, 0 open" in told
        and "pairs.jsonl" in told
        and "person 12" in told
    )
    assert main(["annotate", "simulate", *answers, "--world", str(place), "--output_dir", str(tmp_path / "new")]) == 2
    assert "no world.json in it" in capsys.readouterr().err
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "What is this?", "response": "x"}) + "\n")
    assert main(["annotate", "simulate", str(other), str(other), "--world", str(place / "world"), "--output_dir",
                 str(tmp_path / "new")]) == 2  # fmt: skip
    assert "not a prompt of this world" in capsys.readouterr().err and not (tmp_path / "new").exists()
