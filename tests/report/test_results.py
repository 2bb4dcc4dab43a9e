"""The results page from small made-up run files: every section, verdicts that follow the numbers, missing stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ppomax.config import PPOConfig, RewardConfig, SFTConfig
from ppomax.evaluate.answers import Answer
from ppomax.evaluate.duel import DuelConfig
from ppomax.evaluate.duel_tally import compare, duel_over_training
from ppomax.evaluate.reward_model import evaluate_pairs
from ppomax.options import dump_yaml, from_mapping
from ppomax.report.dialogues import dialogue_section, every_kth
from ppomax.report.markdown import verbatim
from ppomax.report.results import main
from ppomax.report.stages import Course, held_out_change, read_lines, read_stage


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def stage(root: Path, name: str, cls: Any, **values: Any) -> Path:
    folder = root / name
    (folder / "final").mkdir(parents=True)
    config = from_mapping(cls, {"output_dir": f"runs/{name}", **values})
    (folder / "config.yaml").write_text(dump_yaml(config))
    save_file({"w": np.zeros((10, 123), dtype=np.float32)}, folder / "final" / "model.safetensors")
    return folder


def policy_run(folder: Path, gain: float, drift: float) -> None:
    names = [
        "reward/mean",
        "kl/ref",
        "kl/ref_k3",
        "response/length",
        "response/truncated",
        "policy/entropy",
        "policy/perplexity",
    ]
    rows: list[dict[str, Any]] = [
        {"iteration": 0, "phase": "critic", "update": 0, "time/total": 30.0, "time/sample": 10.0}
    ]
    for i in range(20):
        row: dict[str, Any] = dict.fromkeys(names, 1.0) | {"policy/perplexity_moss": 1.02, "loss/value": 0.5}
        row |= {
            "reward/mean": gain * i,
            "kl/ref_k3": drift * i,
            "response/length": 40.0 + i,
            "value/explained_variance": 0.3,
        }
        rows.append(
            {
                "iteration": i + 1,
                "phase": "policy",
                "update": 4 * (i + 1),
                "time/total": 30.0,
                "time/sample": 10.0,
                **row,
            }
        )
    write(folder / "metrics.jsonl", rows)
    rng = np.random.default_rng(0)
    base = rng.normal(size=30)
    samples = [
        {"iteration": k, "update": k, "prompt": [{"role": "user", "content": f"q{j}"}], "response": "word " * (3 + j % 3),
         "score": float(base[j] + gain * k / 4 + 0.05 * rng.normal()), "kl": drift * k, "length": 5, "finished": True}
        for k in (0, 40, 80) for j in range(30)
    ]  # fmt: skip
    write(folder / "samples.jsonl", samples)


def duel_files(folder: Path, samples: Path, shift: float) -> None:
    rng = np.random.default_rng(1)
    sources = ["self-instruct"] * 25 + ["hh-red-team"] * 15
    answers = {
        side: [
            Answer(({"role": "user", "content": f"prompt {i} | *x*"},), f"{side} says <b>{i}</b>" * (1 + i % 2))
            for i in range(40)
        ]
        for side in "ab"
    }
    scores = {"a": (rng.normal(size=40) + shift).tolist(), "b": rng.normal(size=40).tolist()}
    result, judgements = compare(
        answers["a"], answers["b"], scores["a"], scores["b"], sources, tie_band=0.1, resamples=100
    )
    over = duel_over_training(str(samples), lambda xs: [float(len(x.response)) for x in xs], resamples=100)
    result |= {
        "seed": 0,
        "resamples": 100,
        "judge": ["runs/judge/final"],
        "sampled": {"max_new_tokens": 64},
        "over_training": over,
    }
    (folder / "result.json").write_text(json.dumps(result))
    write(folder / "judgements.jsonl", judgements)
    write(folder / "metrics.jsonl", [{"time/answers_a": 60.0, "time/judge": 30.0}])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """PPO-max gains and stays near; vanilla gains more and drifts."""
    root = tmp_path / "runs"
    for name in ("base", "sft"):
        folder = stage(root, name, SFTConfig, model="m", data="$PPOMAX_DATA/d.jsonl")
        (folder / "final" / "README.md").write_text(
            "# Card\n\n## Data\n\n- d.jsonl: 12 read, 12 kept; dropped: 1 (first: /home/me/d.jsonl:3)\n- 11 examples\n\n## More\n"
        )
        evals = [
            {"update": u, "eval/loss": 5.0 - u, "eval/perplexity": 9.0, "eval/token_accuracy": 0.2} for u in (0, 2)
        ]
        write(folder / "metrics.jsonl", [{**evals[0], "time/update": 60.0}, evals[1]])
    for name in ("reward", "judge"):
        folder = stage(root, name, RewardConfig, model="m", data="p.jsonl")
        rng = np.random.default_rng(2)
        from ppomax.data.records import PreferencePair

        def said(n: int) -> Any:
            return ({"role": "assistant", "content": "word " * n},)

        pairs = [
            PreferencePair(
                ({"role": "user", "content": f"q{i}"},),
                said(int(rng.integers(1, 9))),
                said(int(rng.integers(1, 9))),
                "oasst",
            )
            for i in range(200)
        ]
        right = rng.normal(1.5, 1, size=200)
        evaluation = {
            "held_out": evaluate_pairs(right, np.zeros(200), pairs),
            "train_accuracy": 0.9,
            "reward_offset": 0.25,
        }
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    for name, gain, drift in (("ppo_max", 0.1, 0.001), ("vanilla", 0.3, 0.05)):
        preset = "ppo_max" if name == "ppo_max" else "vanilla"
        folder = stage(root, name, PPOConfig, model="m", reward="rm", prompts="q.jsonl", preset=preset)
        policy_run(folder, gain, drift)
        folder = stage(
            root,
            f"duel_{name}",
            DuelConfig,
            a=f"runs/{name}/final",
            b="runs/sft/final",
            judge="runs/judge/final",
            prompts="q",
        )
        duel_files(folder, root / name / "samples.jsonl", shift=1.5 if name == "ppo_max" else -1.0)
    return root


def page(runs: Path, tmp_path: Path, *words: str) -> str:
    out = tmp_path / "docs" / "page.md"
    out.parent.mkdir(exist_ok=True)
    assert main([str(runs), str(out), *words]) == 0
    return out.read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    return text.split(f"**{heading}**")[1].split("**As expected**")[0].split("\n## ")[0]


def test_page_has_all_sections_and_figures(runs: Path, tmp_path: Path) -> None:
    text = page(runs, tmp_path)
    for heading in ("In short", "Settings", "Data", "Language model and SFT", "Reward models", "PPO over training",
                    "Judged win rate over training", "Final policies against SFT", "10 dialogues, SFT beside PPO-max",
                    "Time taken", "How to make it again"):  # fmt: skip
        assert f"\n## {heading}" in text, heading
    for name in ("training", "rewards", "win_rate"):
        assert f"](page/{name}.png)" in text and (tmp_path / "docs" / "page" / f"{name}.png").stat().st_size > 5000
    assert "1,230" in text  # parameters, counted in the file
    assert "- d.jsonl: 12 read, 12 kept; dropped: 1 (first: d.jsonl:3)" in text and "## More" not in text
    assert "| `kl.coef` | 0.05 | 0 |" in text and "| `output_dir`" not in text
    assert "python -m ppomax.report.results" in text
    assert "| `ppo_max` | 10.5 | sample 3.5 |" in text  # 21 iterations of 30 s
    assert "| `duel_ppo_max` | 1.5 | answers_a 1.0, judge 0.5 |" in text
    assert "None" not in text and "nan" not in text.lower().replace("finance", "")


def test_verdicts_follow_the_numbers(runs: Path, tmp_path: Path) -> None:
    text = page(runs, tmp_path)
    met = section(text, "As expected").split("**Not as expected**")[0]
    assert "PPO-max raised the reward" in met and "PPO-max is preferred to SFT" in met
    assert "Reward model `reward`" in met and "has stopped growing" not in met.split("PPO-max: KL")[0]
    assert "- nothing of what was checked" in section(text, "Not as expected").split("**Besides**")[0]
    besides = section(text, "Besides")
    assert "vanilla PPO raised" in besides and "vanilla PPO loses to SFT" in besides
    assert "50.0 times as far from SFT" in besides


def test_disappointments_are_said(runs: Path, tmp_path: Path) -> None:
    policy_run(runs / "ppo_max", gain=-0.1, drift=0.05)
    duel_files(runs / "duel_ppo_max", runs / "ppo_max" / "samples.jsonl", shift=-1.5)
    missed = section(page(runs, tmp_path), "Not as expected").split("**Besides**")[0]
    assert "PPO-max lowered the reward" in missed
    assert "is still growing" in missed and "counts as large" in missed
    assert missed.count("PPO-max loses to SFT") == 2


def test_missing_stages_are_named(runs: Path, tmp_path: Path) -> None:
    import shutil

    for name in ("vanilla", "duel_vanilla", "judge"):
        shutil.rmtree(runs / name)
    text = page(runs, tmp_path)
    assert "Not in these files: `judge`, `vanilla`, `duel_vanilla`." in text
    assert "PPO-max is preferred to SFT" in text


def test_nothing_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), str(tmp_path / "x.md")]) == 2
    assert "holds none of the stages" in capsys.readouterr().err
    assert main([str(tmp_path / "absent"), str(tmp_path / "x.md")]) == 2
    assert main([str(tmp_path / "empty"), str(tmp_path / "x.html")]) == 2
    assert main([str(tmp_path / "empty"), str(tmp_path / "x.md"), "--duels", "one"]) == 2
    assert not (tmp_path / "x.md").exists() and not (tmp_path / "x").exists()


def test_dialogues_by_rule_without_offence(runs: Path, tmp_path: Path) -> None:
    text = page(runs, tmp_path)
    shown = text.split("## 10 dialogues")[1].split("\n## ")[0]
    assert "every 2nd of the 25 eligible" in shown
    for i in range(10):
        assert f"**{i + 1}.** prompt {2 * i} &#124; \\*x\\*" in shown
    assert "hh-red-team" not in shown and "<b>" not in shown and "&lt;b&gt;" in shown


def test_helpful_and_harmless_apart(runs: Path, tmp_path: Path) -> None:
    text = page(runs, tmp_path)
    judged = read_lines(runs / "duel_ppo_max" / "judgements.jsonl")
    for kind, source in (("helpful", "self-instruct"), ("harmless", "hh-red-team")):
        rows = [line for line in text.split("\n") if line.startswith((f"| {kind} |", f"| {source} |"))]
        first, second = (row.split(" | ", 1)[1] for row in (rows[0], rows[1]))
        assert first == second  # one source a kind here
        outcomes = [row["outcome"] for row in judged if row["source"] == source]
        assert first.startswith(
            " | ".join(str(n) for n in (len(outcomes), *map(outcomes.count, ("win", "tie", "lose"))))
        )


def test_every_kth_by_hand() -> None:
    rows = [{"source": "harmless" if i % 3 == 0 else "good", "i": i} for i in range(12)]
    chosen, step, eligible = every_kth(rows, 3, "harmless|red")
    assert ([row["i"] for row in chosen], step, eligible) == ([1, 4, 7], 2, 8)
    assert [row["i"] for row in every_kth(rows, 100, "")[0]] == list(range(12))


def test_dialogues_of_a_judge_that_gives_no_scores() -> None:
    row = {
        "prompt": [{"role": "user", "content": "q"}],
        "response_a": "x",
        "response_b": "y",
        "outcome": "win",
        "source": "s",
    }
    told = "\n".join(dialogue_section([row], a="PPO", b="SFT", count=1, unquoted=""))
    assert "| SFT | PPO |" in told and "score" not in told
    scored = dialogue_section([{**row, "score_a": 0.5, "score_b": -1.0}], a="PPO", b="SFT", count=1, unquoted="")
    assert "| SFT, score -1.00 | PPO, score 0.50 |" in "\n".join(scored)


def test_verbatim_text_cannot_act() -> None:
    assert verbatim("a|b\n\n# c <script> `d` [e](f) **g**") == (
        "a&#124;b<br><br>\\# c &lt;script&gt; \\`d\\` \\[e\\]\\(f\\) \\*\\*g\\*\\*"
    )
    assert verbatim("x" * 800, 10) == "x" * 10 + " \\[…\\]"
    assert verbatim("  ") == "*(empty)*"


def test_course_and_paired_change_by_hand(tmp_path: Path) -> None:
    folder = stage(tmp_path, "run", PPOConfig, model="m", reward="rm", prompts="q")
    metrics = [{"phase": "policy", "update": i + 1, "reward/mean": float(i)} for i in range(20)]
    write(folder / "metrics.jsonl", metrics)
    scores = {0: [1.0, 2.0, 3.0], 8: [2.0, 4.0, 6.0]}
    rows = [
        {"iteration": u, "update": u, "prompt": [{"role": "user", "content": f"q{j}"}], "response": "", "score": s}
        for u, values in scores.items()
        for j, s in enumerate(values)
    ]
    write(folder / "samples.jsonl", rows)
    run = read_stage(tmp_path, "run")
    assert run is not None
    assert Course.of(run, "reward/mean") == Course(0.5, 16.5, 18.5, 19.0, 2)
    change = held_out_change(run)
    assert change is not None
    first, last, mean, half = change
    assert (first, last, mean) == (2, 4, 2) and half == pytest.approx(1.96 * 1 / 3**0.5)


def test_lines_that_are_no_records_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"iteration": 0}\n{"iteration": 1\n[1]\n\n{"iteration": 2}\n{"itera')
    assert [row["iteration"] for row in read_lines(file)] == [0, 2]
    assert capsys.readouterr().err == f"warning: {file}:2: no record; 2 such lines are left out\n"
    file.write_text('{"iteration": 0}\n{"itera')  # still being written
    assert len(read_lines(file)) == 1 and not capsys.readouterr().err
    file.write_text('{"iteration": 0}\n{"iteration": 1}')
    assert len(read_lines(file)) == 2
    assert read_lines(tmp_path / "none.jsonl") == []
