"""A judge in PPO training: when it is asked, what it is shown, what is written down, which policy is kept."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ppomax.config import JudgeConfig, PPOConfig, SamplingConfig
from ppomax.data.chat import ChatFormat
from ppomax.data.records import Prompt
from ppomax.errors import UserError
from ppomax.evaluate.live import JudgedAnswer, evaluation_numbers
from ppomax.options import resolve, warnings_for
from ppomax.rollout.transformers_engine import TransformersEngine
from ppomax.train import ppo_watch

sys.path.insert(0, str(Path(__file__).parent))
from kill_tools import end, forget_to_sync, start_script, torture
from ppo_tools import QUESTIONS, byte_sum, lines, make_policy, make_tokenizer, prompts, run, skip_report, timeless
from rank_tools import start_ranks
from test_ppo_ranks import close

JUDGED: dict[str, Any] = {
    "iterations": 5, "watch": {"judge": ["ppo_tools:byte_sum"], "judge_every": 2, "judge_prompts": 5, "tie_band": 0.3},
    "watch.every": 2, "watch.eval_prompts": 5, "watch.baselines": ["sampled", "greedy"],
}  # fmt: skip
KILLED = {**JUDGED, "checkpoint": {"every": 2, "keep": 3}, "watch.judge_every": 1, "critic.pretrain_iterations": 1}
RANKS: dict[str, dict[str, Any]] = {
    "five prompts": {**JUDGED, "iterations": 3}, "a rank without prompts": {**JUDGED, "iterations": 2, "watch.judge_prompts": 1},
}  # fmt: skip


def short(prompts: list[Any], responses: list[str]) -> list[float]:
    return [-float(len(r)) for r in responses]


def one_run(directory: Path, resume: bool) -> int:
    run(directory, KILLED, resume=resume)
    return 0


def rank_run(folder: Path, name: str, size: int, rank: int) -> int:
    run(folder / f"{name}-{size}", RANKS[name])
    return 0


def script(folder: Path) -> None:
    forget_to_sync()
    make_policy()(torch.tensor([[1]]))
    make_tokenizer()
    skip_report()
    codes = {}
    for name in RANKS:
        jobs = {size: functools.partial(rank_run, folder, name, size) for size in (1, 2)}
        children = [child for size, job in jobs.items() for child in start_ranks(job, size, folder / f"{name}-log")]
        codes[name] = [end(child) for child in children]
    killed = torture(one_run, folder / "killed", seed=3, random_kills=2, chosen_kills=5)
    (folder / "results.json").write_text(json.dumps({"ranks": codes, "killed": killed}), encoding="utf-8")


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("judge")
    return folder, start_script(__file__, folder)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync guards against power cuts, which are not tested here, and takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged") / "run"
    kinds = ("even", "odd")
    asked = [Prompt(p.messages, "asked", metadata=(("category", kinds[i % 2]),)) for i, p in enumerate(prompts())]
    run(folder, JUDGED, prompts=asked, reward=short, report=True)
    return folder


@pytest.mark.parametrize(
    ("changes", "iterations", "updates"),
    [
        ({}, [0, 2, 4, 5], [0, 4, 8, 10]),
        ({"iterations": 4}, [0, 2, 4], [0, 4, 8]),  # the end is not judged twice
        ({"iterations": 3, "critic.pretrain_iterations": 2}, [2, 4, 5], [0, 4, 6]),
        ({"iterations": 1, "watch.judge_every": 50}, [0, 1], [0, 2]),
    ],
)
def test_times(changes: dict[str, Any], iterations: list[int], updates: list[int], tmp_path: Path) -> None:
    run(tmp_path / "run", {**JUDGED, **changes})
    rows = lines(tmp_path / "run/evaluations.jsonl")
    assert [row["iteration"] for row in rows] == iterations
    assert [row["update"] for row in rows] == updates


def test_numbers_are_those_of_the_answers(judged: Path) -> None:
    """Samples.jsonl holds the same answers here (same prompts, seeds and times): all worked out again from it."""
    samples = lines(judged / "samples.jsonl")
    base = {name: lines(judged / f"judge/{name}.jsonl") for name in ("sampled", "greedy")}
    assert {b["category"] for b in base["sampled"]} == {"even", "odd"}
    rows = lines(judged / "evaluations.jsonl")
    assert [r["iteration"] for r in rows] == [0, 2, 4, 5]
    for row in rows:
        answers = [s for s in samples if s["iteration"] == row["iteration"]]
        assert [a["prompt"] for a in answers] == [b["prompt"] for b in base["sampled"]]
        scores = byte_sum([], [a["response"] for a in answers])
        for name, answered in base.items():
            assert [b["score"] for b in answered] == pytest.approx(byte_sum([], [b["response"] for b in answered]))
            halves = []
            for score, b in zip(scores, answered, strict=True):
                halves.append(0.5 if abs(score - b["score"]) <= 0.3 else float(score > b["score"]))
            assert row[f"eval/win_rate_{name}"] == pytest.approx(sum(halves) / 5)
            for kind in ("even", "odd"):
                own = [h for h, b in zip(halves, answered, strict=True) if b["category"] == kind]
                assert row[f"eval/win_rate_{name}/{kind}"] == pytest.approx(sum(own) / len(own))
            assert row[f"eval/reward_{name}"] == pytest.approx(sum(-len(b["response"]) for b in answered) / 5)
        assert row["eval/win_rate"] == row["eval/win_rate_sampled"]
        assert row["eval/win"] + row["eval/tie"] / 2 == pytest.approx(row["eval/win_rate"])
        assert row["eval/judge"] == pytest.approx(sum(scores) / 5, rel=1e-5)
        assert row["eval/reward"] == pytest.approx(sum(a["score"] for a in answers) / 5)
        rewards = [a["score"] for a in answers]
        assert row["rewards"] == pytest.approx(rewards, rel=1e-5)
        assert sum(row["histograms"]["eval/reward"]["counts"]) == 5
        assert row["eval/reward_p50"] == sorted(rewards)[2] and row["eval/reward_p5"] <= row["eval/reward_p50"]
        more = [(r > b["reward"]) + (r == b["reward"]) / 2 for r, b in zip(rewards, base["sampled"], strict=True)]
        assert row["eval/proxy_win_rate"] == pytest.approx(sum(more) / 5)
        counts = row["histograms"]["eval/length"]
        assert sum(counts["counts"]) == 5 and counts["edges"][0] == min(a["length"] for a in answers) - 0.5
        assert row["eval/kl"] == pytest.approx(sum(a["kl"] for a in answers) / 5, abs=1e-5)
        assert row["eval/length"] == pytest.approx(sum(a["length"] for a in answers) / 5)
        assert row["eval/truncated"] == pytest.approx(sum(not a["finished"] for a in answers) / 5)
        assert row["eval/distinct"] == len({a["response"] for a in answers}) / 5
    assert rows[0]["eval/kl"] == pytest.approx(0, abs=1e-5) and rows[-1]["eval/kl_k3"] > 1e-4


def test_likelihoods_are_those_of_policy_and_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From forward passes of our own over the answers of the last evaluation."""
    seen: list[list[JudgedAnswer]] = []

    def spy(answers: list[JudgedAnswer], *others: Any) -> dict[str, float]:
        seen.append(answers)
        return evaluation_numbers(answers, *others)

    monkeypatch.setattr(ppo_watch, "evaluation_numbers", spy)
    result = run(tmp_path / "run", {**JUDGED, "iterations": 2, "sampling.temperature": 0.7})
    chat, sums = ChatFormat(make_tokenizer(), "model"), {"nll": 0.0, "entropy": 0.0, "k1": 0.0, "k3": 0.0}
    asked = [row["prompt"] for row in lines(tmp_path / "run/judge/sampled.jsonl")]
    for prompt, answer in zip(asked, seen[-1], strict=True):
        start, tokens = chat.encode_prompt(prompt), list(answer.tokens)
        place = (torch.arange(len(start) - 1, len(start) + len(tokens) - 1), torch.tensor(tokens))
        ids = torch.tensor([start + tokens])
        with torch.no_grad():
            ours, theirs = (m(ids).logits[0].double().log_softmax(dim=-1) for m in (result.policy, make_policy()))
        difference = (ours - theirs)[place]
        sums["nll"] -= ours[place].sum().item()
        sums["entropy"] -= (ours.exp() * ours).sum(dim=-1)[place[0]].sum().item()
        sums["k1"] += difference.sum().item()
        sums["k3"] += (torch.exp(-difference) - 1 + difference).sum().item()
    count, row = sum(len(a.tokens) for a in seen[-1]), lines(tmp_path / "run/evaluations.jsonl")[-1]
    assert row["eval/perplexity"] == pytest.approx(math.exp(sums["nll"] / count), rel=1e-4)
    assert row["eval/entropy"] == pytest.approx(sums["entropy"] / count, rel=1e-4)
    assert row["eval/kl"] == pytest.approx(sums["k1"] / len(asked), rel=1e-3)
    assert row["eval/kl_k3"] == pytest.approx(sums["k3"] / len(asked), rel=1e-3)
    assert abs(row["eval/kl"]) > 0.01


def test_baselines_are_the_references_answers(judged: Path) -> None:
    chat = ChatFormat(make_tokenizer(), "model")
    engine = TransformersEngine(make_policy(), chat, SamplingConfig(max_new_tokens=6, temperature=0))
    greedy = lines(judged / "judge/greedy.jsonl")
    drawn = engine.generate([chat.encode_prompt(row["prompt"]) for row in greedy], [0] * len(greedy))
    assert [row["response"] for row in greedy] == [chat.decode(c.response_ids) for c in drawn]
    assert [row["length"] for row in greedy] == [len(c.response_ids) for c in drawn]
    # Drawn with seeds of their own: at the start, policy and reference are one model and still differ.
    first = [s["response"] for s in lines(judged / "samples.jsonl") if s["iteration"] == 0]
    assert first != [row["response"] for row in lines(judged / "judge/sampled.jsonl")]


def test_same_random_numbers_at_every_evaluation(tmp_path: Path) -> None:
    still = {"policy_optim.lr": 0.0, "critic_optim.lr": 0.0}
    run(tmp_path / "run", {**JUDGED, **still})
    first, *later = lines(tmp_path / "run/evaluations.jsonl")
    for row in later:
        assert {k: v for k, v in row.items() if k.startswith("eval/")} == {
            k: v for k, v in first.items() if k.startswith("eval/")
        }
    best = json.loads((tmp_path / "run/best/best.json").read_text())
    assert best == {"ppomax_win_rate": first["eval/win_rate"], "iteration": 0, "update": 0}  # the earliest of equals


def test_training_is_not_touched_by_judging(tmp_path: Path) -> None:
    """The same prompts are held out in both."""
    silent = {**JUDGED, "watch.judge": []}
    with_judge, without = run(tmp_path / "a", JUDGED), run(tmp_path / "b", silent)
    assert timeless(with_judge.metrics) == timeless(without.metrics)
    assert not any((tmp_path / "b" / name).exists() for name in ("evaluations.jsonl", "judge", "best"))
    # the same answers, and so the same distribution of their rewards
    judged, told = lines(tmp_path / "a/evaluations.jsonl"), lines(tmp_path / "b/held_out.jsonl")
    assert not (tmp_path / "a/held_out.jsonl").exists()
    assert [row["iteration"] for row in told] == [row["iteration"] for row in judged] == [0, 2, 4, 5]
    for row, other in zip(told, judged, strict=True):
        assert row == {name: other[name] for name in row}
        assert {"eval/reward_p95", "eval/reward_skewness", "eval/length", "rewards", "histograms"} <= row.keys()
    assert "time/judge" in with_judge.metrics[0] and "time/judge" not in with_judge.metrics[1]


@pytest.mark.parametrize(("judge", "improves"), [("test_ppo_judge:short", True), ("test_ppo_judge:long", False)])
def test_best_policy_is_kept(judge: str, improves: bool, tmp_path: Path) -> None:
    """Trained to answer briefly: a judge who likes that keeps a late policy, one who does not the first."""
    changes = {
        **JUDGED, "iterations": 12, "rollout_batch": 16, "minibatch": 8, "policy_optim.lr": 1e-2, "watch.judge": [judge],
        "sampling.max_new_tokens": 8, "watch.tie_band": 0.0, "watch.judge_every": 12,
    }  # fmt: skip
    out = tmp_path / "run"
    run(out, changes, reward=short)
    rows, about = lines(out / "evaluations.jsonl"), json.loads((out / "best/best.json").read_text())
    highest = max(rows, key=lambda row: row["eval/win_rate"])
    assert about == {
        "ppomax_win_rate": highest["eval/win_rate"],
        "iteration": highest["iteration"],
        "update": highest["update"],
    }
    assert rows[-1]["eval/length"] < rows[0]["eval/length"]
    kept = AutoModelForCausalLM.from_pretrained(out / "best").state_dict()
    start = make_policy().state_dict()
    same_as_start = all(torch.equal(kept[name], start[name]) for name in start)
    assert (about["iteration"] > 0) == improves and same_as_start != improves
    assert "best by the judge" in (out / "best/README.md").read_text()
    assert not hasattr(AutoModelForCausalLM.from_pretrained(out / "final").config, "ppomax_win_rate")


def long(prompts: list[Any], responses: list[str]) -> list[float]:
    return [float(len(r)) for r in responses]


def test_ties_and_baselines_are_as_asked(tmp_path: Path) -> None:
    run(tmp_path / "run", {**JUDGED, "iterations": 1, "watch.tie_band": 1e9, "watch.baselines": ["greedy"]})
    assert [p.name for p in (tmp_path / "run/judge").iterdir()] == ["greedy.jsonl"]
    for row in lines(tmp_path / "run/evaluations.jsonl"):
        assert (row["eval/tie"], row["eval/win_rate"], row["eval/win_rate_greedy"]) == (1.0, 0.5, 0.5)
        assert "eval/win_rate_sampled" not in row


def test_the_best_of_an_undone_future_counts_no_more(tmp_path: Path) -> None:
    """On machines whose arithmetic varies, a replayed iteration may come out lower than the one it replaces."""
    out, longer = tmp_path / "run", {**JUDGED, "iterations": 2, "checkpoint.every": 1}
    run(out, longer)
    about = {"ppomax_win_rate": 2.0, "iteration": 2, "update": 4}
    (out / "best/best.json").write_text(json.dumps(about))
    run(out, longer, resume=True)
    last = lines(out / "evaluations.jsonl")[-1]
    assert json.loads((out / "best/best.json").read_text())["ppomax_win_rate"] == last["eval/win_rate"]


def test_best_is_not_kept_where_not_wanted(tmp_path: Path) -> None:
    run(tmp_path / "run", {**JUDGED, "iterations": 1, "watch.keep_best": False})
    assert not (tmp_path / "run/best").exists() and (tmp_path / "run/evaluations.jsonl").exists()


def test_adapters(tmp_path: Path) -> None:
    """The reference is the policy without its adapter, and the best one is saved merged."""
    adapted = {**JUDGED, "iterations": 2, "lora": {"rank": 2}, "policy_optim.lr": 0.05}
    run(tmp_path / "run", adapted)
    (tmp_path / "run/judge/greedy.jsonl").unlink()
    run(tmp_path / "run", adapted, resume=True)  # drawn again, beside a trained adapter
    run(tmp_path / "plain", {**JUDGED, "iterations": 1})
    for name in ("sampled", "greedy"):
        file = f"judge/{name}.jsonl"
        assert lines(tmp_path / "run" / file) == lines(tmp_path / "plain" / file)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run/best").dtype == torch.float32


def test_how_many_prompts_are_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", {**JUDGED, "iterations": 1, "watch.eval_prompts": 2})
    samples = [s for s in lines(tmp_path / "run/samples.jsonl") if s["iteration"] == 0]
    judged = lines(tmp_path / "run/judge/sampled.jsonl")
    assert (len(samples), len(judged)) == (2, 5)
    assert [s["prompt"] for s in samples] == [b["prompt"] for b in judged[:2]]
    told = capsys.readouterr().err
    run(tmp_path / "few", {**JUDGED, "iterations": 1, "watch.judge_prompts": 2})
    assert len(lines(tmp_path / "few/judge/sampled.jsonl")) == 2
    assert len(lines(tmp_path / "few/samples.jsonl")) == 2 * 5
    assert f"{len(QUESTIONS) - 5} prompts to train on; 5 held out" in told
    assert "win_rate" in told and "judged win rate" in told
    with pytest.raises(UserError, match=r"13 are held out by watch.judge_prompts = 50; lower it"):
        run(tmp_path / "all", {**JUDGED, "watch.judge_prompts": 50})


def test_a_judge_that_cannot_judge_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no `world` column"):
        run(tmp_path / "run", {**JUDGED, "watch.judge": "world"})
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="no such model directory"):
        run(tmp_path / "run", {**JUDGED, "watch.judge": str(tmp_path / "none")})


def test_other_answers_are_not_taken_for_the_references(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, {**JUDGED, "iterations": 1, "checkpoint.every": 1})
    file = out / "judge/greedy.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=r"greedy.jsonl: answers other prompts .* use another output_dir"):
        run(out, {**JUDGED, "iterations": 1, "checkpoint.every": 1}, resume=True)


def test_more_iterations_go_on_from_the_same_baselines(tmp_path: Path) -> None:
    longer = {**JUDGED, "checkpoint.every": 1}
    run(tmp_path / "whole", longer)
    run(tmp_path / "run", {**longer, "iterations": 3})
    assert [r["iteration"] for r in lines(tmp_path / "run/evaluations.jsonl")] == [0, 2, 3]
    run(tmp_path / "run", longer, resume=True)
    for name in ("evaluations.jsonl", "judge/sampled.jsonl"):
        assert lines(tmp_path / "run" / name) == lines(tmp_path / "whole" / name)


def test_report_draws_the_curve(judged: Path) -> None:
    page = (judged / "report.html").read_text()
    assert (
        "Judged win rate over training" in page and "Judged by ppo_tools:byte_sum on 5 fixed held-out prompts" in page
    )
    assert "drawn as the policy draws its own and its greedy answers" in page


def test_killed_and_resumed_equals_uninterrupted(processes: tuple[Path, dict[str, Any]]) -> None:
    result = processes[1]["killed"]
    assert set(result["codes"]) == {0}, result["log"]
    assert result["hits"] >= 2, "the kills must hit"
    assert result["differences"] == {}, result["log"]
    assert {"evaluations.jsonl", "judge/sampled.jsonl", "best/best.json", "best/model.safetensors"} <= set(
        result["files"]
    )


@pytest.mark.parametrize("name", list(RANKS))
def test_two_ranks_equal_one(name: str, processes: tuple[Path, dict[str, Any]]) -> None:
    folder, results = processes
    assert results["ranks"][name] == [0, 0, 0], (folder / f"{name}-log").read_text()[-3000:]
    one, two = folder / f"{name}-1", folder / f"{name}-2"
    close(lines(two / "evaluations.jsonl"), lines(one / "evaluations.jsonl"), "evaluations", 1e-4, 2e-5)
    for file in ("judge/sampled.jsonl", "judge/greedy.jsonl"):
        close(lines(two / file), lines(one / file), file, 1e-6, 1e-6)
    assert json.loads((two / "best/best.json").read_text()) == json.loads((one / "best/best.json").read_text())


def configured(*words: str) -> PPOConfig:
    return resolve(PPOConfig, ["--model=m", "--reward=r", "--prompts=p", "--output_dir=o", *words])


def test_options() -> None:
    world = JudgeConfig(function="ppomax.world.reward:score", name="world")
    assert configured("--watch.judge", "world").watch.judge == [world]
    assert configured("--watch.judge", "runs/rm", "a.b:c").watch.judge == [
        JudgeConfig(model="runs/rm"),
        JudgeConfig(function="a.b:c"),
    ]
    for option, value in (
        ("judge_every", "3"), ("judge_prompts", "9"), ("tie_band", "0.5"), ("baselines", "greedy"), ("keep_best", "no"),
    ):  # fmt: skip
        [warning] = warnings_for(configured(f"--watch.{option}", value))
        assert warning == f"watch.{option} does nothing: watch.judge is empty, so nothing is judged"
        assert warnings_for(configured(f"--watch.{option}", value, "--watch.judge", "world")) == []
    with pytest.raises(
        UserError, match=r"watch\.judge\.0: exactly one of model, function, url, llm is needed, found model and url"
    ):
        configured("--watch.judge", "{model: m, url: 'http://x'}")
    with pytest.raises(UserError, match=r"watch\.baselines"):
        configured("--watch.judge", "world", "--watch.baselines", "nobody")


if __name__ == "__main__":
    script(Path(sys.argv[1]))
