"""The page of runs: complete in itself, right for one run and several, and hostile text stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ppomax.cli import main
from ppomax.config import PPOConfig, RewardConfig
from ppomax.options import dump_yaml, from_mapping
from ppomax.report.page import report, run_page
from ppomax.report.ppo_part import LONGEST_TEXT, figures, largest, shades
from ppomax.report.run_verdict import WATCHED, two_sentences, win_rate
from ppomax.report.stages import Stage
from ppomax.report.verdicts import Verdicts, judge_reward_model

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"' {{ 7 * 7 }} \x00 \u202eabc\u2066 \ud800 你好 "
    + "x" * 3000
)


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.seen if name == tag]


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def ppo_run(folder: Path, text: str = "hello", iterations: int = 4, gain: float = 0.1, **settings: Any) -> Path:
    """A run with critic pre-training, samples at its start and end, evaluations and an alarm."""
    folder.mkdir(parents=True)
    metrics = [
        {"iteration": i, "phase": "critic" if i == 0 else "policy", "update": 4 * i, "reward/mean": gain * i, "reward/std": 0.2,
         "kl/ref": 0.0, "kl/ref_k3": 0.0, "response/length": 9.0 + i, "policy/perplexity": 3.0, "loss/policy": 0.1,
         "value/explained_variance": 0.5, "grad_norm/policy": 1.0, "time/sample": 20.0, "time/update": 30.0, "time/total": 60.0}
        for i in range(iterations)
    ]  # fmt: skip
    write(folder / "metrics.jsonl", metrics)
    write(folder / "samples.jsonl", [
        {"iteration": i, "update": 4 * (i - 1), "prompt": [{"role": "user", "content": text}], "response": f"{text} {i}",
         "score": 0.5 * i, "kl": None, "length": 3, "finished": i == 1}
        for i in (1, iterations - 1)
    ])  # fmt: skip
    write(folder / "evaluations.jsonl", [
        {"iteration": i, "update": 4 * (i - 1), "eval/prompts": 100, "eval/win_rate": rate, "eval/win_rate_se": 0.03,
         "eval/win_rate_sampled": rate, "eval/win_rate_sampled_se": 0.03}
        for i, rate in ((1, 0.5), (2, 0.6), (3, 0.4))
    ])  # fmt: skip
    write(folder / "alarms.jsonl", [{"iteration": 3, "level": "collapse", "message": text}])
    watch = {"judge": [{"function": "a:b"}], "baselines": ["sampled"]}
    values = {"model": "m", "prompts": "p.jsonl", "reward": "r", "output_dir": "o", "watch": watch, **settings}
    (folder / "config.yaml").write_text(dump_yaml(from_mapping(PPOConfig, values)), encoding="utf-8")
    return folder


def test_page_is_self_contained_and_escapes_everything(tmp_path: Path) -> None:
    page = run_page(ppo_run(tmp_path / "run", HOSTILE))
    tags = Tags(page)
    assert all(not key.startswith("on") for _, attrs in tags.seen for key in attrs)
    sources = [attrs["src"] for attrs in tags.all("img")]
    assert len(sources) == 11 and all(s is not None and s.startswith("data:image/svg+xml;base64,") for s in sources)
    assert all(attrs["alt"] for attrs in tags.all("img"))
    assert "{{ 7 * 7 }}" in page and not re.search(r"\b49\b", page.split("</style>")[1].split("<img")[0])
    elsewhere = re.findall(r"https?://[^\s<]*", page)
    assert elsewhere == ["http://127.0.0.1:8000"], "text of a setting (rollout.url); nothing is loaded or linked"
    assert not any("://" in (value or "") for _, attrs in tags.seen for value in attrs.values())
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4, "alarm, prompt, both answers"
    assert "[U+202E]abc[U+2066]" in page and not re.search("[\x00\u202e\u2066\ud800]", page)
    assert "你好" in page and len(page.encode()) < 5_000_000


def test_the_only_script_is_the_one_that_the_policy_names(tmp_path: Path) -> None:
    page = run_page(ppo_run(tmp_path / "run", "</script><script>alert(1)"))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1 == len(Tags(page).all("script"))
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(attrs["content"] for attrs in Tags(page).all("meta") if "http-equiv" in attrs)
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_what_a_run_did(tmp_path: Path) -> None:
    page = run_page(ppo_run(tmp_path / "run", kl={"coef": 0.25}))
    assert "3 iterations, 12 policy updates, 1 iterations of critic pre-training, 4.0 minutes." in page
    assert "Minutes: sample 1.3 (33%), update 2.0 (50%), other 0.7 (17%)." in page
    assert "The reward rose, from 0.1 to 0.3 (+1.0 standard deviations of the first samples&#39; rewards)" in page
    assert "worse than the reference&#39;s: win rate 40% [34, 46] on 100 prompts, after 60% at iteration 2" in page
    assert "more reward and worse answers, the reward model is being exploited. Nothing turned (KL" in page
    assert "alarms: 1 collapse, the first at iteration 3." in page
    assert "reward 0.50, KL – nats, 3 tokens</small>" in page and "3 tokens, cut at the length limit" in page
    assert '<p class="alarm collapse">collapse, iteration 3:' in page
    assert re.search(r">1\* token-level KL penalty</th>\s*<td>0.25 k1</td><td>0.05 k1</td>", page)
    assert '<tr><th scope="row">kl.coef</th><td>0.05</td><td>0.25</td></tr>' in page
    assert f"ppomax ppo {tmp_path}/run/config.yaml --output_dir ELSEWHERE" in page


def test_what_turned_and_since_when(tmp_path: Path) -> None:
    run = ppo_run(tmp_path / "run", iterations=7)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row, kl, perplexity in zip(
        rows[1:], (0.0, 0.2, 0.05, 0.1, 0.3, 0.4), (512, 4097, 512, 8.1, 7.9, 7.0), strict=True
    ):
        row |= {"kl/ref_k3": kl, "policy/perplexity": float(perplexity)}
    write(run / "metrics.jsonl", rows)
    (run / "alarms.jsonl").unlink()
    page = run_page(run)
    assert "What turned: KL to the reference (k3) from 0 to 0.4 nats a token (since iteration 4, and at 2); " in page
    assert "perplexity from 512 to 7 (since iteration 5); what did not: length 10 to 15 tokens; no alarms." in page
    for row, kl in zip(rows[1:], (0.0, 0.2, 0.05, 0.3, 0.01, 0.02), strict=True):
        row |= {"kl/ref_k3": kl, "policy/perplexity": 512.0}
    write(run / "metrics.jsonl", rows)
    write(
        run / "alarms.jsonl",
        [{"iteration": i, "level": "notice", "detector": "rollback", "message": ""} for i in (3, 5)],
    )
    page = run_page(run)
    assert (
        "What turned and came back: KL to the reference (k3) 0 to 0.02 nats a token, by way of 0.3 (iteration 2 to 4); "
        in page
    )
    assert "alarms: 2 notice, the first at iteration 3; rolled back 2 times." in page


def test_perplexity_turns_by_its_log() -> None:
    perplexity = next(w for w in WATCHED if w.name == "perplexity")
    # from 512 = 2^9: a third of the log is 2^3, double of it is 2^18
    assert [perplexity.turned(2.0**k, 512.0) for k in (2.9, 3.1, 8, 17.9, 18.1)] == [True, False, False, False, True]
    assert perplexity.turned(0.5, 512.0) and not perplexity.turned(3.0, 1.0)
    length = next(w for w in WATCHED if w.name == "length")
    assert [length.turned(x, 10.0) for x in (4.9, 5.1, 19.9, 20.1)] == [True, False, False, True]


def judged(rate: float, se: float, prompts: int, **others: Any) -> dict[str, Any]:
    numbers = {"eval/win_rate": rate, "eval/win_rate_se": se, "eval/prompts": prompts, "eval/judge_failed": 0}
    return (
        numbers | {"eval/win_rate_sampled": rate, "eval/win_rate_sampled_se": se, "update": 4, "iteration": 1} | others
    )


def stage(tmp_path: Path, rewards: list[float], evaluations: list[dict[str, Any]], keep: bool = True) -> Stage:
    metrics = [{"iteration": i, "update": 4 * i, "reward/mean": r, "reward/std": 0.2} for i, r in enumerate(rewards)]
    settings = {"watch": {"judge": [{"llm": "m"}], "keep_best": keep}}
    return Stage("run", tmp_path, metrics=metrics, evaluations=evaluations, config=settings)


def test_few_prompts_that_are_all_alike_prove_nothing(tmp_path: Path) -> None:
    won, lost = (stage(tmp_path, [0.0, 1.0], [judged(rate, 0.0, 3)]) for rate in (1.0, 0.0))
    # 0.025^(1/3) = 0.2924: three wins of three may be the luck of a policy that wins 29%
    assert str(win_rate(won)) == "100% [29, 100]" and str(win_rate(lost)) == "0% [0, 71]"
    for run in (won, lost):
        text = two_sentences(run)[0]
        assert "not to be told from the reference's" in text and "exploited" not in text


def test_what_the_start_and_ties_say(tmp_path: Path) -> None:
    def said(*evaluations: dict[str, Any]) -> str:
        return two_sentences(stage(tmp_path, [0.0, 1.0], list(evaluations)))[0]

    assert said(judged(0.5, 0.02, 100, update=0)).endswith("; only the start was judged so far.")
    assert said().endswith("; no judge was asked whether the answers got better.")
    tie = judged(0.5, 0.0, 24, **{"eval/tie": 1.0})
    assert said(tie).endswith("the answers to all 24 prompts are ties with the reference's: it tells neither apart.")


def test_a_rise_within_the_noise_is_none(tmp_path: Path) -> None:
    """16 samples of spread .2 in each of two means: the change has a standard error of .2 * sqrt(2 / 16) = .0707."""
    for last, said in ((0.14, "hardly moved"), (0.15, "rose")):
        run = stage(tmp_path, [0.0, last], [])
        run.config["rollout_batch"] = 16
        assert f"The reward {said}, from 0 to {last}" in two_sentences(run)[0]


def test_where_a_long_run_turned_is_where_it_jumped(tmp_path: Path) -> None:
    def said(metric: str, values: list[float]) -> str:
        run = stage(tmp_path, [0.0] * len(values), [])
        for row, value in zip(run.metrics, values, strict=True):
            row[metric] = value
        return two_sentences(run)[1]

    assert said("response/length", [20.0] * 20 + [60.0] * 980).startswith(
        "What turned: length from 20 to 60 tokens (since iteration 20); "
    )
    jump = said("kl/ref_k3", [0.01] * 199 + [5.0] + [0.01] * 100 + [5.0] * 700)
    assert jump.startswith(
        "What turned: KL to the reference (k3) from 0.01 to 5 nats a token (since iteration 300); "
    ), "one iteration alone is none"
    assert said("policy/perplexity", [1.093] * 30 + [3.0] * 40 + [1.0932] * 30).startswith(
        "What turned and came back: perplexity 1.093 to 1.093, by way of 3 (iteration 30 to 69); "
    )
    assert said("kl/ref_k3", [0.2] * 30).startswith("Nothing turned (KL"), "it began there"
    assert "; not finite at the end: response/length; " in said("response/length", [20.0] * 29 + [math.nan])
    still = two_sentences(stage(tmp_path, [0.5, 0.5], []))[0]
    assert still.startswith("The reward hardly moved, from 0.5 to 0.5")
    without = stage(tmp_path, [0.5, 0.5], [])
    for row in without.metrics:
        row["reward/std"] = 0.0
    assert two_sentences(without)[0].startswith("The reward hardly moved, from 0.5 to 0.5;")


def test_one_iteration_tells_nothing_of_turns(tmp_path: Path) -> None:
    run = stage(tmp_path, [0.0], [])
    assert two_sentences(run)[1] == "No number was measured twice, so whether any turned is not known; no alarms."


def test_what_is_kept_of_an_llm_judge_with_few_verdicts(tmp_path: Path) -> None:
    few = judged(1.0, 0.0, 3, iteration=2, **{"eval/judge_failed": 7})
    half = judged(0.6, 0.2, 5, **{"eval/judge_failed": 5})

    def caption(evaluations: list[dict[str, Any]], keep: bool = True) -> str:
        found = figures({"run": stage(tmp_path, [0.0, 1.0], evaluations, keep)})
        return next(figure.caption for figure in found if figure.name == "win_rate")

    said = "Best: 100.0% at iteration 2, with verdicts on under half of the prompts; "
    assert said + "60.0% at iteration 1 is kept in best/." in caption([half, few])
    assert said + "nothing is kept in best/." in caption([few])
    assert "Best: 60.0% at iteration 1, kept in best/." in caption([half])
    assert "Best: 100.0% at iteration 2." in caption([half, few], keep=False)


def test_median_in_words_is_the_one_drawn(tmp_path: Path) -> None:
    run = stage(tmp_path, [0.0], [])
    run.samples.extend({"update": 0, "iteration": 0, "score": score} for score in (1.0, 2.0, 4.0, 8.0))
    (figure,) = (figure for figure in figures({"run": run}) if figure.name == "rewards")
    assert "median 3 at update 0" in figure.pictures[0].about


@pytest.mark.parametrize(("words", "said"), [(None, "its baseline (the"), ({"accuracy": 0.55}, "both baselines (the")])
def test_baselines_are_counted(tmp_path: Path, words: Any, said: str) -> None:
    model = {"accuracy": 0.8, "interval": [0.7, 0.9], "n": 100}
    overall = {"model": model, "longer": {"accuracy": 0.6}, "bag_of_words": words, "length_matched": {"n": 0}}
    run = Stage("rm", tmp_path, evaluation={"held_out": {"overall": overall, "sources": {}}})
    verdicts = Verdicts()
    judge_reward_model(run, verdicts)
    assert f"better than {said} longer answer wins 0.600" in verdicts.said[0]


def test_page_of_a_run_without_samples(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [{"iteration": 0, "phase": "critic", "update": 0, "time/total": 1.0}])
    (tmp_path / "config.yaml").write_text("model: m\nrollout_batch: 8\n", encoding="utf-8")
    page = run_page(tmp_path)
    assert "0 iterations, 0 policy updates" in page and "No iteration of the policy is finished yet (1 of" in page


def test_a_run_that_is_still_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ppo_run(tmp_path / "run", iterations=4)
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole + '{"iteration": 4, "pha')
    assert "3 iterations, 12 policy updates" in run_page(run) and "Not finished: " in run_page(run)
    (run / "metrics.jsonl").write_text('{"iteration": 4, "pha\n' + whole)
    assert "12 policy updates" in run_page(run)
    assert f"{run / 'metrics.jsonl'}:1: no record; 1 such lines" in capsys.readouterr().err


def test_several_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    runs = [
        ppo_run(tmp_path / "a" / "ppo", "one"),
        ppo_run(tmp_path / "b" / "ppo", "one", gain=-0.1, seed=7, kl={"coef": 0.0}),
    ]
    made = report(runs)
    assert "2 runs: a/ppo, b/ppo" in made.html
    assert '<tr><th scope="row">seed</th><td>0</td><td>7</td></tr>' in made.html
    assert (
        '<tr><th scope="row">kl.coef</th><td>0.05</td><td>0</td></tr>' in made.html
        and 'row">model</th>' not in made.html
    )
    assert made.html.count("before PPO") == 1, "the same answer before the first update is shown once"
    assert "a/ppo, update 8" in made.html and "b/ppo, update 8" in made.html
    assert "<b>b/ppo:</b>" in made.html and "The reward fell, from -0.1 to -0.3" in made.html
    assert [figure.name for figure in made.figures] == ["training", "win_rate", "rewards", "lengths", "critic", "time"]
    alts = " ".join(picture.about for figure in made.figures for picture in figure.pictures)
    assert "reward (train) over updates. a/ppo: 0.1 to 0.3; b/ppo: -0.1 to -0.3" in alts
    assert "distribution of the lengths, b/ppo: median 3 at update 0, 3 at update 8" in alts


def reward_run(folder: Path, text: str = "hello") -> Path:
    folder.mkdir(parents=True)
    cell = {"accuracy": 0.75, "interval": [0.7, 0.8], "n": 100, "ties": 0}
    longer = {"accuracy": 0.5, "interval": [0.4, 0.6], "n": 100, "ties": 0}
    part = {"model": cell, "longer": longer, "length_matched": {**cell, "n": 30}}
    held_out = {
        "overall": part, "sources": {"pairs": part}, "length_correlation": 0.1,
        "gap": {"mean": 1.0, "std": 0.5, "median": 1.0, "loss": 0.4,
                "histogram": {"counts": [1, 2], "edges": [-1.0, 0.0, 1.0]}},
        "calibration": {"ece": 0.02, "bins": [{"n": 3, "predicted": 0.6, "observed": 0.5}]},
    }  # fmt: skip
    evaluation = {"train_accuracy": 0.9, "reward_offset": 0.0, "held_out": held_out}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    write(folder / "metrics.jsonl", [
        {"update": 0, "epoch": 0.1, "train/accuracy": 0.5, "time/update": 60.0}, {"update": 1, "epoch": 1.0, "eval/accuracy": 0.75}
    ])  # fmt: skip
    write(folder / "disagreements.jsonl", [
        {"prompt": [{"role": "user", "content": text}], "chosen": text, "rejected": "b", "reward_chosen": -1.0,
         "reward_rejected": 1.5, "gap": -2.5, "source": "pairs", "origin": "o"}
    ])  # fmt: skip
    values = {"model": "m", "data": "d.jsonl", "output_dir": "o"}
    (folder / "config.yaml").write_text(dump_yaml(from_mapping(RewardConfig, values)))
    (folder / "final").mkdir()
    (folder / "final" / "README.md").write_text(
        "# Card\n\nx; made with ppomax 0.3.1.\n\n## Data\n\n- 8 records (fingerprint c3aa)\n"
    )
    return folder


def test_reward_model_runs(tmp_path: Path) -> None:
    made = report([reward_run(tmp_path / "reward", HOSTILE)])
    page = made.html
    assert "Reward model <code>reward</code> puts 0.750 [0.700, 0.800] of 100 held-out pairs in the right order" in page
    assert [figure.name for figure in made.figures] == ["reward_training", "gaps"]
    assert [p.name for p in made.figures[1].pictures] == ["gap_histogram", "calibration"]
    assert "Confidently wrong pairs" in page and "gap -2.5, pairs" in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2 and len(Tags(page).all("script")) == 1
    assert "Trained with ppomax 0.3.1." in page and "8 records (fingerprint c3aa)" in page
    assert "1 updates, 1 epochs, 1.0 minutes." in page


def test_how_it_was_made(tmp_path: Path) -> None:
    run = ppo_run(tmp_path / "run")
    page = run_page(run)
    assert "no record of its start (made.json): digests are of the files as they are now" in page
    assert "model: m, not here as a file" in page and "memory" not in page
    start = {"versions": {"ppomax": "0.1.0", "python": "3.12.1", "torch": "2.11.0"}, "ranks": 8, "nodes": 2,
             "device": "a <GPU>", "in_memory": ["policy", "reward"], "data": ["9 prompts trained on (fingerprint aa)"],
             "files": [{"field": "ptx.data", "path": "mix.jsonl", "digest": "digest bb"}]}  # fmt: skip
    later = {**start, "versions": {"ppomax": "0.2.0"}, "ranks": 1, "device": "cpu"}
    (run / "made.json").write_text(json.dumps({"starts": [start, later]}))
    page = run_page(run)
    assert (
        f"<pre>torchrun --nnodes 2 --nproc_per_node 4 -m ppomax ppo {tmp_path}/run/config.yaml --output_dir ELSEWHERE</pre>"
    ) in page
    assert (
        "Trained with ppomax 0.1.0, Python 3.12.1, torch 2.11.0, on 8 ranks of a &lt;GPU&gt;. "
        "Went on with ppomax 0.2.0, on cpu."
    ) in page
    assert "Given in memory from Python: policy, reward. So config.yaml alone does not repeat this run." in page
    assert (
        "<li>9 prompts trained on (fingerprint aa)</li>" in page and "<li>ptx.data: mix.jsonl, digest bb</li>" in page
    )
    assert "as they were when the run began" in page and "as they are now" not in page


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, reward = ppo_run(tmp_path / "run"), reward_run(tmp_path / "reward")
    out, figures = tmp_path / "all.html", tmp_path / "figures"
    assert main(["report", str(run), str(reward), f"--out={out}", "--figures", str(figures)]) == 0
    assert "2 runs: run, reward" in out.read_text(encoding="utf-8")
    assert {file.name for file in figures.iterdir()} == {
        f"{name}.{suffix}" for suffix in ("png", "svg")
        for name in ("training", "win_rate", "rewards", "lengths", "critic", "time", "reward_training", "gap_histogram", "calibration")
    }  # fmt: skip
    assert f"written: {out}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which run?"),
        (["{runs}/nothing"], "nothing: no run: it has no config.yaml"),
        (["{runs}"], "give runs below it: run"),
        (["{runs}/run", "{runs}/run"], "run: given twice"),
        (["{runs}/run", "--out", "page.pdf"], "--out: page.pdf: the page must end in .html"),
        (["{runs}/run", "--out", "{runs}/no/page.html"], "/no: no such folder; make it first"),
        (["{runs}/run", "--out"], "--out: a value is missing"),
        (["{runs}/run", "--figure", "x"], "unknown option --figure"),
    ],
)
def test_mistakes_are_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    ppo_run(tmp_path / "run")
    assert main(["report", *(word.format(runs=tmp_path) for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_for_readers_who_do_not_see_it(tmp_path: Path) -> None:
    run, reward = ppo_run(tmp_path / "ppo", "奖励模型给出的分数"), reward_run(tmp_path / "reward", "an English text")
    page = report([run, reward]).html
    tags = Tags(page)
    assert page.index("<main>") < page.index("<h1>") < page.index("</main>")
    heads = tags.all("th")
    assert len(heads) > 20 and all(head.get("scope") in ("row", "col") for head in heads)
    regions = [attrs for attrs in tags.all("div") if attrs.get("class") == "wide"]
    assert [region.get("aria-label") for region in regions] == [
        "First and last numbers", "Held-out pairs of reward", "The twelve details",
    ]  # fmt: skip
    assert all(region["tabindex"] == "0" and region["role"] == "region" for region in regions)
    texts = [attrs.get("lang") for name, attrs in tags.seen if attrs.get("class") == "text"]
    assert texts.count("zh") == 3 and len(texts) == 6, "question and two answers; none of the pair"
    alts = [attrs["alt"] or "" for attrs in tags.all("img")]
    marked = [alt for alt in alts if "Alarms: ppo: 1 collapse, the first at update 8" in alt]
    assert len(marked) == 7, "every curve over updates"


def test_proxy_and_rewards_of_all_judged_prompts(tmp_path: Path) -> None:
    run = ppo_run(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    for k, row in enumerate(rows):
        row |= {"eval/proxy_win_rate": 0.5 + 0.2 * k, "rewards": [float(k), k + 1.0, k + 3.0]}
    write(run / "evaluations.jsonl", rows)
    made = report([run])
    alts = {p.name: p.about for figure in made.figures for p in figure.pictures}
    assert alts["win_rate"].endswith("50% to 40%; by the training reward itself: 50% to 90%")
    assert alts["rewards"] == "distribution of the rewards, run: median 1 at update 0, 3 at update 8"
    assert alts["lengths"] == "distribution of the lengths, run: median 3 at update 0, 3 at update 8", "of the samples"
    assert "Dotted: the share of the same prompts" in made.html
    assert "Dotted: the share" not in report([ppo_run(tmp_path / "older")]).html


def test_answers_in_parts(tmp_path: Path) -> None:
    runs = [ppo_run(tmp_path / name) for name in "ab"]
    for run in runs:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for i, row in enumerate(rows):
            row |= {"response/truncated": i / 10, "kl/first_third": 1.0 * i, "kl/last_third": 2.0 * i}
            row |= {"reward/source/helpful": -1.0 * i, "reward/source/safe/strict": 5.0}
        write(run / "metrics.jsonl", rows)

    def told(paths: list[Path]) -> list[str]:
        return [p.about.split(". Alarms")[0] for f in report(paths).figures if f.name == "answers" for p in f.pictures]

    assert told(runs[:1]) == [
        "cut at the length limit over updates. a: 0.1 to 0.3",
        "KL to the SFT model by place over updates. first third of the answer: 1 to 3; last third of the answer: 2 to 6",
        "reward by source over updates. helpful: -1 to -3; safe/strict: 5 to 5",
    ]
    assert told(runs)[1:3] == [
        "KL to the SFT model: first third of the answer over updates. a: 1 to 3; b: 1 to 3",
        "KL to the SFT model: last third of the answer over updates. a: 2 to 6; b: 2 to 6",
    ]
    assert len(told(runs)) == 5


def test_tokens_are_shaded_by_their_kl(tmp_path: Path) -> None:
    run = ppo_run(tmp_path / "run")
    row = {"iteration": 1, "update": 0, "prompt": [{"role": "user", "content": "q"}], "response": "no", "score": 0.5,
           "kl": 3.8, "length": 6, "finished": True, "pieces": ["same", "<b>", " more", " far", "", " less"],
           "token_kl": [0.1, 0.3, 0.9, 3.0, 9.0, -1.5]}  # fmt: skip
    write(run / "samples.jsonl", [row])
    page = run_page(run)
    assert (
        'same<span class="more1">&lt;b&gt; more</span><span class="more3"> far</span><span class="less2"> less</span>'
    ) in page
    listed = page.split("<summary>Tokens with the largest KL</summary>")[1].split("</table>")[0]
    cells = [f"{a} {b}" for a, b in re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td></tr>", listed)]
    assert cells == ["(adds no text) +9.00", " far +3.00", " less -1.50", " more +0.90", "&lt;b&gt; +0.30"]
    assert "orange where the policy is likelier" in page
    assert "orange where" not in run_page(ppo_run(tmp_path / "old")), "a run that kept no tokens has no legend"


def test_shading_keeps_to_the_room_of_an_answer() -> None:
    row = {"pieces": ["ab"] * LONGEST_TEXT, "token_kl": [0.0, 1.0] * (LONGEST_TEXT // 2)}
    shown = shades(row)
    assert sum(len(text) for text, _ in shown[:-1]) == LONGEST_TEXT
    assert shown[-1] == (" […]", "")
    assert shades({"pieces": ["a" * (LONGEST_TEXT + 1)], "token_kl": [0.0]})[-1] == (" […]", "")
    full = {"pieces": ["a" * LONGEST_TEXT, ""], "token_kl": [0.0, 0.0]}
    assert shades(full) == [("a" * LONGEST_TEXT, "")], "nothing is cut, and nothing says so"
    assert shades({"response": "x"}) == []
    pile = {"pieces": ["e"] + ["\u0301"] * 9, "token_kl": [0.0, 1.0] * 5}
    assert shades(pile) == [] and largest(pile) == [], "the cut of a pile of marks would be between the tokens"
    assert shades({"pieces": ["a", "b"], "token_kl": [None, float("nan")]}) == [("ab", "")]
