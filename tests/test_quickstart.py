"""The quickstart's data, its judge, and the whole of it with tiny settings."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

RECIPES = Path(__file__).parents[1] / "recipes"
DATA = ("text", "dialogues", "pairs", "prompts", "heldout_prompts")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPES))
    import quickstart_data

    return quickstart_data


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_judge_knows_good_from_bad(world: Any, language: str) -> None:
    rng = random.Random(0)
    for q in world.questions(language):
        assert world.quality(q.text, world.answer(q, "good", False, rng)) == pytest.approx(2.0)
        for style in set(world.STYLES) - {"good"}:
            assert world.quality(q.text, world.answer(q, style, False, rng)) < 1.8
        others = [world.statement(q, v, 0) for v in q.values if v != q.value]
        assert all(world.quality(q.text, text) == pytest.approx(1.2) for text in others)
        assert world.quality(q.text, "".join([world.statement(q, q.value, 0), *others])) <= 1.2  # names them all
    assert world.quality(q.text, "") == 0


@pytest.mark.parametrize("language", ["en", "zh"])
def test_data_are_the_same_each_time_and_hold_prompts_out(world: Any, tmp_path: Path, language: str) -> None:
    counts = world.write_data(tmp_path / "a", language, paragraphs=1, demonstrations=1, pairs=1)
    world.write_data(tmp_path / "b", language, paragraphs=1, demonstrations=1, pairs=1)
    rows = {}
    for name in DATA:
        text = (tmp_path / "a" / f"{name}.jsonl").read_text(encoding="utf-8")
        assert text == (tmp_path / "b" / f"{name}.jsonl").read_text(encoding="utf-8")
        rows[name] = [json.loads(line) for line in text.splitlines()]
        assert len(rows[name]) == counts[name] > 0
    held_out = {row["prompt"] for row in rows["heldout_prompts"]}
    seen = {row["messages"][0]["content"] for row in rows["dialogues"]}
    seen |= {row["prompt"] for name in ("pairs", "prompts") for row in rows[name]}
    assert len(held_out) == 192 and len(seen) == 384 and not held_out & seen
    agree = [world.quality(r["prompt"], r["chosen"]) > world.quality(r["prompt"], r["rejected"]) for r in rows["pairs"]]
    assert 0.6 < sum(agree) / len(agree) < 0.95  # noisy, yet worth learning


def test_all_stages_and_a_second_run(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "quickstart", raising=False)
    import quickstart

    write = world.write_data
    monkeypatch.setattr(quickstart, "write_data", lambda *place: write(*place, paragraphs=1, demonstrations=1, pairs=1))
    small = [f"--{stage}.epochs=1" for stage in ("base", "sft", "reward")]
    for stage in ("base", "sft"):
        small += [f"--{stage}.max_length=64", f"--{stage}.batch_size=32"]
    small += ["--reward.batch_tokens=8192"]
    for stage in ("ppo_max", "vanilla"):
        small += [f"--{stage}.iterations=2", f"--{stage}.rollout_batch=4", f"--{stage}.minibatch=2"]
        small += [f"--{stage}.sampling.max_new_tokens=4", f"--{stage}.watch.eval_prompts=2"]
        small += [f"--duel_{stage}.max_prompts=6", f"--duel_{stage}.sampling.max_new_tokens=4"]
    small += ["--ppo_max.critic.pretrain_iterations=1"]
    words = ["--output-dir", str(tmp_path / "run"), *small]
    assert quickstart.main(words) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary) == {"ppo_max", "vanilla"}
    for run in summary.values():
        assert run["judged"]["prompts"] == 6 == sum(run["judged"][k] for k in ("win", "tie", "lose"))
        assert set(run["start"]) == {"reward", "kl", "length", "perplexity"} == set(run["end"])
    out, err = capfd.readouterr()
    assert out.count("PPO-max  ") == 3 and "finished, skipped" not in err
    assert quickstart.main(words) == 0
    assert capfd.readouterr().err.count("finished, skipped") == 8
    assert quickstart.main([*words, "--ppo_max.kl.coeff=1"]) == 2  # one line, no traceback
    assert "did you mean --kl.coef" in capfd.readouterr().err
