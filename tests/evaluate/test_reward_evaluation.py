"""``ppomax evaluate``: figures by hand, scores against the stock forward pass, foreign models, subsets, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from ppomax.cli import main
from ppomax.data.records import PreferencePair
from ppomax.errors import UserError
from ppomax.evaluate.reward_evaluation import (
    EvaluateConfig,
    agreement,
    correlation,
    describe,
    run_evaluation,
)
from ppomax.evaluate.subsets import REWARD_BENCH, by_subset, mean_over
from ppomax.models.fresh import train_tokenizer
from ppomax.pipeline import read_pipeline, run_pipeline
from ppomax.report.reward_page import names_of, verdict

WORDS = ["Where does the river go?", "To the sea.", "Name a fruit.", "A plum, I think, or a pear.", "Grey <b>sky</b>."]
ROWS: list[dict[str, Any]] = [
    {"prompt": WORDS[0], "chosen": WORDS[1], "rejected": WORDS[3], "subset": "rivers"},
    {"prompt": WORDS[2], "chosen": WORDS[3], "rejected": WORDS[1], "subset": "fruit"},
    {"prompt": WORDS[2], "chosen": WORDS[3], "rejected": "<script>alert(1)</script>", "subset": "fruit"},
    {"prompt": [{"role": "user", "content": WORDS[0]}, {"role": "assistant", "content": WORDS[1]},
                {"role": "user", "content": WORDS[2]}],
     "chosen": [{"role": "assistant", "content": "A pear."}],
     "rejected": [{"role": "assistant", "content": WORDS[4]}], "subset": "fruit"},
]  # fmt: skip


def save_model(folder: Path, seed: int, *, template: bool = True, pad_is_eos: bool = False) -> str:
    """A reward model as another library would write it: transformers' own class, no field of ours in its config."""
    tokenizer = train_tokenizer(WORDS * 3, 330)
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    if not template:
        tokenizer.chat_template = None
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, initializer_range=0.3, num_labels=1,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("a") / "rm_a" / "final", 0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("b") / "rm_b", 1)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "pairs.jsonl", ROWS)


def config(models: str | list[str], data: Any, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"models": models, "data": data, "device": "cpu", **changes})


def error_of(function: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------ arithmetic


def test_mean_over_subsets_by_hand() -> None:
    """Half widths .3 and .4 below, .1 and .2 above: .5 / 2 and sqrt(.05) / 2 about the mean .7."""
    got = mean_over([{"accuracy": 0.6, "interval": [0.3, 0.7]}, {"accuracy": 0.8, "interval": [0.4, 1.0]}])
    assert got["accuracy"] == pytest.approx(0.7) and got["n"] == 2
    assert got["interval"] == pytest.approx([0.7 - 0.25, 0.7 + 0.05**0.5 / 2])
    one = {"accuracy": 0.6, "interval": [0.3, 0.7]}
    assert mean_over([one])["interval"] == pytest.approx([0.3, 0.7])


def test_mean_over_subsets_covers_the_truth() -> None:
    """Three subsets of unlike size and difficulty: about 95 of 100 intervals hold the true mean."""
    draw = np.random.default_rng(0)
    truth, sizes = [0.95, 0.6, 0.75], [20, 50, 200]
    hits = 0
    for _ in range(1000):
        gaps = np.concatenate([np.where(draw.random(n) < p, 1.0, -1.0) for p, n in zip(truth, sizes, strict=True)])
        names = [name for name, n in zip("abc", sizes, strict=True) for _ in range(n)]
        found = by_subset(gaps, names)
        assert found is not None
        low, high = found["mean"]["interval"]
        hits += low <= np.mean(truth) <= high
    assert 930 <= hits <= 975


def test_reward_bench_sections_and_score_by_hand() -> None:
    """Pairs count alike in a section (Chat: 3 of 5); math counts as much as all code ((1/2 + 3/4) / 2)."""
    right = {
        "alpacaeval-easy": (3, 4), "mt-bench-med": (0, 1), "mt-bench-hard": (1, 2), "donotanswer": (1, 1),
        "math-prm": (1, 2), "hep-cpp": (1, 1), "hep-rust": (2, 3),
    }  # fmt: skip
    names = [name for name, (_, n) in right.items() for _ in range(n)]
    gaps = np.concatenate([np.repeat([1.0, -1.0], [k, n - k]) for k, n in right.values()])
    got = by_subset(gaps, names)
    assert got is not None and set(got["sections"]) == set(REWARD_BENCH)
    sections = {name: (part["accuracy"], part["n"]) for name, part in got["sections"].items()}
    assert sections["Chat"] == (pytest.approx(3 / 5), 5) and sections["Chat Hard"] == (pytest.approx(1 / 2), 2)
    assert sections["Safety"] == (1.0, 1) and sections["Reasoning"] == (pytest.approx((1 / 2 + 3 / 4) / 2), 6)
    assert got["score"]["accuracy"] == pytest.approx((3 / 5 + 1 / 2 + 1 + 5 / 8) / 4)
    assert sum(len(subsets) for subsets in REWARD_BENCH.values()) == 23
    without_one = by_subset(gaps[:7], names[:7])
    assert (
        without_one is not None and set(without_one["sections"]) == {"Chat", "Chat Hard"} and "score" not in without_one
    )
    others = by_subset(np.ones(2), ["math-prm", "mine"])
    assert others is not None and "sections" not in others


def test_a_weighted_mean_by_hand() -> None:
    parts = [{"accuracy": 0.6, "interval": [0.2, 0.8]}, {"accuracy": 1.0, "interval": [0.5, 1.0]}]
    got = mean_over(parts, [3, 1])
    assert got["accuracy"] == pytest.approx(0.7)
    assert got["interval"] == pytest.approx([0.7 - (0.3**2 + 0.125**2) ** 0.5, 0.7 + 0.15])


def test_subsets_weigh_alike_whatever_their_size() -> None:
    got = by_subset(np.array([1.0, 1.0, 1.0, -1.0, 1.0]), ["a", "a", "a", "b", None])
    assert got is not None
    assert got["by_subset"]["a"]["accuracy"] == 1 and got["by_subset"]["b"]["accuracy"] == 0
    assert got["mean"]["accuracy"] == 0.5 and got["without"] == 1
    assert by_subset(np.ones(2), [None, None]) is None


def test_agreement_by_hand() -> None:
    a = np.array([2.0, 1.0, -1.0, 0.0, 3.0])
    b = np.array([1.0, -1.0, -2.0, 1.0, 1.0])
    got = agreement(a, b)
    assert got["alike"] == pytest.approx((1 + 0 + 1 + 0.5 + 1) / 5)
    right_a, right_b = 3.5 / 5, 3 / 5
    expected = right_a * right_b + (1 - right_a) * (1 - right_b)
    assert got["expected"] == pytest.approx(expected)
    assert got["kappa"] == pytest.approx((0.7 - expected) / (1 - expected))
    assert (got["a_only"], got["b_only"], got["sign_test_p"]) == (1, 1, 1.0)  # the second; the fourth
    assert got["difference"] == pytest.approx(0.1)
    assert got["gap_correlation"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    # ranks of a: 4 3 1 2 5, of b (ties share): 4 2 1 4 4
    assert got["gap_rank_correlation"] == pytest.approx(np.corrcoef([4, 3, 1, 2, 5], [4, 2, 1, 4, 4])[0, 1])
    same = agreement(a, a)
    assert same["alike"] == 1 and same["gap_correlation"] == pytest.approx(1)
    opposite = agreement(a, -a)
    assert opposite["alike"] == pytest.approx(1 / 5)  # the tie alone
    perfect = agreement(np.ones(3), np.ones(3))
    assert perfect["kappa"] is None and perfect["gap_correlation"] is None


def test_length_correlation_is_over_all_answers() -> None:
    def pair(chosen: str, rejected: str) -> PreferencePair:
        return PreferencePair(
            ({"role": "user", "content": "q"},), ({"role": "assistant", "content": chosen},),
            ({"role": "assistant", "content": rejected},),
        )  # fmt: skip

    pairs = [pair("a" * 3, "b" * 9), pair("a" * 27, "b")]
    got = describe(np.array([3.0, 27.0]), np.array([9.0, 1.0]), pairs, [None, None])
    assert got["score_length_correlation"] == pytest.approx(1)
    cubes = describe(np.array([3.0, 27.0]) ** 3, np.array([9.0, 1.0]) ** 3, pairs, [None, None])
    assert cubes["score_length_rank_correlation"] == pytest.approx(1)
    assert cubes["score_length_correlation"] == pytest.approx(
        np.corrcoef([27, 19683, 729, 1], [3, 27, 9, 1])[0, 1]
    )  # chosen first, then rejected
    assert got["better_is_shorter"]["accuracy"] == 0 and got["better_is_longer"]["accuracy"] == 1
    assert got["subsets"] is None
    assert correlation(np.ones(3), np.arange(3.0)) is None and correlation(np.ones(1), np.ones(1)) is None


# ------------------------------------------------------------------------------------------- the models


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_foreign_model_gets_its_own_stock_scores(tmp_path: Path, data: str, pad_is_eos: bool) -> None:
    """Rewards are what transformers itself gives, one dialogue at a time, whatever the pad."""
    model = save_model(tmp_path / "foreign", 3, pad_is_eos=pad_is_eos)
    run_evaluation(config(model, data, output_dir=str(tmp_path / "out")))
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForSequenceClassification.from_pretrained(model)
    items = [json.loads(line) for line in (tmp_path / "out/items.jsonl").read_text().splitlines()]
    assert len(items) == 4
    for item in items:
        for side, reward in zip(("chosen", "rejected"), item["rewards"][model], strict=True):
            text = tokenizer.apply_chat_template([*item["prompt"], *item[side]], tokenize=False)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            with torch.no_grad():
                stock = network(**ids).logits.item()
            assert reward == pytest.approx(stock, abs=1e-5)


def test_subsets_are_read_from_the_split_and_no_further_than_the_pairs(tmp_path: Path, model: str) -> None:
    for split, subset in (("filtered", "rivers"), ("raw", "fruit")):
        rows = json.dumps({"prompt": WORDS[0], "chosen": WORDS[1], "rejected": WORDS[3], "subset": subset})
        (tmp_path / f"{split}.jsonl").write_text(
            f"{rows}\n" * 20 + "{malformed\n"
        )  # the layout is told by the first 16
    result = run_evaluation(config(model, [{"path": str(tmp_path), "split": "filtered", "limit": 1}]))
    assert result["pairs"] == 1 and result["models"][model]["subsets"]["by_subset"].keys() == {"rivers"}


def test_result_agrees_with_its_items(tmp_path: Path, model: str, other: str, data: str) -> None:
    out = tmp_path / "out"
    result = run_evaluation(config([model, other], data, output_dir=str(out), wrong_pairs=2))
    assert result == json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["pairs"] == 4 and result["prompts"] == 2
    items = [json.loads(line) for line in (out / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [item["subset"] for item in items] == ["rivers", "fruit", "fruit", "fruit"]
    assert items[0]["length_chosen"] == len(WORDS[1]) and items[1]["where"].endswith("pairs.jsonl:2")
    for name in (model, other):
        right = [item["rewards"][name][0] > item["rewards"][name][1] for item in items]
        found = result["models"][name]
        assert found["overall"]["model"]["accuracy"] == pytest.approx(sum(right) / 4)
        fruit = found["subsets"]["by_subset"]["fruit"]
        assert fruit["accuracy"] == pytest.approx(sum(right[1:]) / 3) and fruit["n"] == 3
        assert found["subsets"]["mean"]["accuracy"] == pytest.approx((right[0] + sum(right[1:]) / 3) / 2)
        wrong = [json.loads(line) for line in (out / "confidently_wrong.jsonl").read_text().splitlines()]
        assert sum(row["model"] == name for row in wrong) == min(2, right.count(False))
    row = result["agreement"][0]
    signs = [[np.sign(i["rewards"][m][0] - i["rewards"][m][1]) for i in items] for m in (model, other)]
    assert row["alike"] == pytest.approx(np.mean(np.equal(*signs)))
    figures = {f.name for f in (out / "figures").iterdir()}
    for name in ("accuracy", "gap_histogram_rm_a", "calibration_rm_b", "agreement_rm_a_rm_b"):
        assert {f"{name}.png", f"{name}.svg"} <= figures


def test_page_is_self_contained_and_escapes(tmp_path: Path, model: str, other: str) -> None:
    hostile = "<script>alert(1)</script>"
    rows = [{"prompt": hostile, "chosen": hostile, "rejected": "<img src=x>", "subset": "<b>"},
            {"prompt": hostile, "chosen": "<img src=x>", "rejected": hostile, "subset": "<i>"}]  # fmt: skip
    run_evaluation(config([model, other], write(tmp_path / "p.jsonl", rows), output_dir=str(tmp_path / "out")))
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<img src=x" not in page and "<b>" not in page
    assert "&lt;script&gt;" in page and 'src="http' not in page and "default-src 'none'" in page
    assert page.count("data:image/") == 6  # accuracy, two for each model, agreement
    for title in ("Accuracy", "Gaps, calibration, length", "Agreement", "Confidently wrong"):
        assert title in page


def test_a_model_without_a_template(tmp_path: Path, data: str) -> None:
    bare = save_model(tmp_path / "bare", 0, template=False)
    assert "chat_template" in error_of(run_evaluation, config(bare, data))
    got = run_evaluation(config(bare, data, chat_template="human_assistant_en"))
    assert got["models"][bare]["overall"]["model"]["n"] == 4


def test_too_long_dialogues_are_cut_and_counted(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*ROWS, {"prompt": "river " * 200, "chosen": "Yes.", "rejected": "No."}]
    got = run_evaluation(config(model, write(tmp_path / "long.jsonl", rows)))
    assert got["models"][model]["truncated"] == 2 and got["models"][model]["subsets"]["without"] == 1
    assert "2 of 10 dialogues were longer than its context" in capsys.readouterr().err


def test_batching_does_not_matter(model: str, data: str) -> None:
    small = run_evaluation(config(model, data, micro_batch_tokens=1))
    large = run_evaluation(config(model, data))
    assert small["models"][model]["gap"]["mean"] == pytest.approx(large["models"][model]["gap"]["mean"], abs=1e-5)


# -------------------------------------------------------------------------------------------- mistakes


def test_mistakes_are_told_before_anything_is_written(tmp_path: Path, model: str, data: str) -> None:
    out = tmp_path / "out"

    def told(**changes: Any) -> str:
        settings = {"models": model, "data": data, "output_dir": str(out)} | changes
        return error_of(run_evaluation, config(**settings))

    assert "named twice" in told(models=[model, model])
    assert "data.0.weight" in told(data=[{"path": data, "weight": 2}])
    assert "'topic'" in told(subset="topic")
    assert "no such model directory" in told(models=[model, "./nowhere"])
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    assert "preference pairs" in told(data=prompts)
    labels = tmp_path / "two"
    tokenizer = AutoTokenizer.from_pretrained(model)
    small = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                        num_attention_heads=1, num_labels=2, pad_token_id=0)  # fmt: skip
    LlamaForSequenceClassification(small).save_pretrained(labels)
    tokenizer.save_pretrained(labels)
    assert "2 labels" in told(models=str(labels))
    assert not out.exists()


def test_an_existing_evaluation_is_left_alone(tmp_path: Path, model: str, other: str, data: str) -> None:
    out = tmp_path / "out"
    first = run_evaluation(config(model, data, output_dir=str(out)))
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    assert "already holds an evaluation" in error_of(run_evaluation, config(model, data, output_dir=str(out)))
    assert "models" in error_of(run_evaluation, config(other, data, output_dir=str(out)), resume=True)
    assert run_evaluation(config(model, data, output_dir=str(out)), resume=True) == first
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "notes.txt").write_text("mine")
    assert "not empty" in error_of(run_evaluation, config(model, data, output_dir=str(strange)))
    (out / "result.json").unlink()  # killed before the end
    assert run_evaluation(config(model, data, output_dir=str(out)), resume=True) == first


# ------------------------------------------------------------------------------------------ the command


def test_command(tmp_path: Path, model: str, other: str, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", model, other, "--data", data, "--device", "cpu", "--output_dir", str(out)]) == 0
    shown = capsys.readouterr().out
    for word in ("rm_a = ", "all pairs", "better is the shorter", "mean over subsets", "ranked alike", "written to"):
        assert word in shown
    assert main(["evaluate", model, "--data", data, "--output_dir", str(out)]) == 2
    assert main(["evaluate", model, "--data", data, "--print-config"]) == 0
    assert "wrong_pairs: 100" in capsys.readouterr().out


def test_pipeline_stage(tmp_path: Path, model: str, data: str) -> None:
    file = tmp_path / "run.yaml"
    stage = f"{{name: check, kind: evaluate, models: '{model}', data: '{data}', device: cpu}}"
    file.write_text(f"output_dir: {tmp_path / 'runs'}\nstages:\n  - {stage}\n", encoding="utf-8")
    assert read_pipeline(str(file))[1][0].product == tmp_path / "runs/check"
    run_pipeline(str(file))
    made = (tmp_path / "runs/check/result.json").stat().st_mtime_ns
    run_pipeline(str(file))  # finished: skipped
    assert (tmp_path / "runs/check/result.json").stat().st_mtime_ns == made


def test_names_are_short_and_differ() -> None:
    assert names_of(["runs/a/final", "./b/", "x/a"]) == {"runs/a/final": "a", "./b/": "b", "x/a": "a_2"}
    assert names_of(["a_2", "x/a", "y/a", "a"]) == {"a_2": "a_2", "x/a": "a", "y/a": "a_3", "a": "a_4"}


def test_verdict_says_when_length_would_do_as_well() -> None:
    cell = {"accuracy": 0.7, "interval": [0.6, 0.8], "n": 100}
    found = {
        "overall": {"model": cell, "longer": {"accuracy": 0.65, "n": 100}}, "calibration": {"ece": 0.1},
        "better_is_longer": {**cell, "accuracy": 0.9}, "better_is_shorter": {**cell, "accuracy": 0.2},
    }  # fmt: skip
    said = verdict({"pairs": 100, "prompts": 90, "models": {"runs/m/final": found}})
    assert "no clear gain over preferring the longer answer (65.0%)" in said
    assert "90.0% where the better answer is the longer and 20.0% where it is the shorter" in said
    found["overall"]["longer"]["accuracy"] = 0.5
    assert "no clear gain" not in verdict({"pairs": 100, "prompts": 90, "models": {"m": found}})
    found["overall"]["model"] = {"accuracy": 0.52, "interval": [0.45, 0.6], "n": 100}
    assert "chance" in verdict({"pairs": 100, "prompts": 90, "models": {"m": found}})
    found["overall"]["model"] = {"accuracy": 0.4, "interval": [0.3, 0.49], "n": 100}
    said = verdict({"pairs": 100, "prompts": 90, "models": {"m": found}})
    assert "in the right order, worse than chance, worse than preferring the longer answer (50.0%)" in said
    found["overall"] |= {"model": {"accuracy": 0.6, "interval": [0.55, 0.65], "n": 100}, "longer": {"accuracy": 0.7}}
    said = verdict({"pairs": 100, "prompts": 90, "models": {"m": found}})
    assert "in the right order, worse than preferring the longer answer (70.0%)" in said


def test_a_tie_of_one_model_alone_counts_in_the_sign_test() -> None:
    found = agreement(np.ones(10), np.zeros(10))
    assert (found["difference"], found["a_only"], found["b_only"]) == (0.5, 10, 0)
    assert found["sign_test_p"] == pytest.approx(2 / 2**10)
    found = agreement(
        np.array([1.0, 0.0, 0.0, -1.0]), np.array([0.0, 0.0, -1.0, 0.0])
    )  # right-tie, tie-tie, tie-wrong, wrong-tie
    assert (found["a_only"], found["b_only"]) == (2, 1)


@pytest.mark.parametrize("ranks", [False, True])
def test_what_does_not_vary_has_no_correlation(ranks: bool) -> None:
    assert np.full(3, 0.1).std() > 0, "rounding"
    assert correlation(np.full(3, 0.1), np.arange(3.0) ** 2, ranks=ranks) is None
