"""Result files: what they hold, how they are found again, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ppomax.errors import UserError
from ppomax.lab.results import (
    LINES,
    cached,
    not_finite,
    other_start,
    outdated,
    read_result,
    read_results,
    thin,
    write_result,
)

ROW = {"phase": "policy", "reward/mean": 1.0, "loss/value": 2.0, "time/total": 3.0}


def write(path: Path, key: str = "abc", **header: Any) -> Path:
    evaluations = [
        {"iteration": 0, "update": 0, "eval/win_rate": 1 / 3, "eval/kl": float("nan"), "rewards": [0.5] * 400}
    ]
    stream = [
        {"iteration": 0, "update": 0, "phase": "critic", "loss/value": 1 / 3, "time/total": 2.0},
        {
            "iteration": 1,
            "update": 4,
            "phase": "policy",
            "loss/value": 0.25,
            "loss/policy": 2 / 3,
            "kl/ref": float("nan"),
            "advantage/std": 1.5,
        },
    ]
    write_result(path, {"key": key, "seed": 1, "identity": {}, **header}, evaluations, stream, {"prompts": 8})
    return path


def test_round_trip(tmp_path: Path) -> None:
    result = read_result(write(tmp_path / "C1" / "a.jsonl", identity={"policy_optim.lr": 1.23456789e-5}))
    assert (result.key, result.seed, result.endpoint) == ("abc", 1, {"prompts": 8})
    assert result.evaluations[0]["eval/win_rate"] == 0.33333
    assert result.evaluations[0]["eval/kl"] is None
    assert "rewards" not in result.evaluations[0], "a number a prompt would make the committed files large"
    assert result.stream == [  # every iteration, four digits; what is no number is null; no clock
        {
            "iteration": 0,
            "update": 0,
            "phase": "critic",
            "loss/value": 0.3333,
            "loss/policy": None,
            "kl/ref": None,
            "advantage/std": None,
        },
        {
            "iteration": 1,
            "update": 4,
            "phase": "policy",
            "loss/value": 0.25,
            "loss/policy": 0.6667,
            "kl/ref": None,
            "advantage/std": 1.5,
        },
    ]
    assert [(m["phase"], m["iterations"], m["loss/value"]) for m in result.metrics] == [
        ("critic", 1, 0.3333),
        ("policy", 1, 0.25),
    ]
    assert result.header["identity"]["policy_optim.lr"] == 1.23456789e-5, "settings keep all their digits"


def test_thinning_takes_means() -> None:
    rows = [{**ROW, "iteration": i, "update": 4 * i, "reward/mean": float(i)} for i in range(100)]
    critic = [{**ROW, "iteration": -1, "update": 0, "phase": "critic"}]
    out = thin([*critic, *rows])
    assert len(out) <= LINES
    assert out[0]["phase"] == "critic"
    assert (out[1]["iteration"], out[1]["update"], out[1]["iterations"]) == (2, 8, 3)
    assert out[1]["reward/mean"] == 1.0  # (0 + 1 + 2) / 3
    assert sum(line["iterations"] for line in out) == 101
    assert "time/total" not in out[1]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.splitlines()[0] + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl: not a whole lab result"):
        read_result(path)
    path.write_text(whole + "{half", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl:5: not a line"):
        read_result(path)
    path.write_text(whole.replace('"format": 2', '"format": 7'), encoding="utf-8")
    with pytest.raises(UserError, match="format 7"):
        read_result(path)
    path.write_text('{"kind": "header", "format": 1}\n{"kind": "metrics", "update": 4}\n', encoding="utf-8")
    with pytest.raises(UserError, match="format 1 is not the 2"):  # its lines are of other kinds
        read_result(path)


def test_what_is_not_finite_is_found(tmp_path: Path) -> None:
    result = read_result(write(tmp_path / "a.jsonl"))
    # eval/kl is null in the one evaluation; kl/ref in all of the policy's iterations: it may have none; loss/policy in the
    # critic's alone, which has none
    assert not_finite(result) == ["eval/kl (1 of 1 evaluations, the last among them)"]
    result.evaluations.append({"iteration": 1, "update": 4, "eval/win_rate": None, "eval/kl": 1.0, "histograms": {}})
    result.stream.append({"iteration": 2, "update": 8, "phase": "policy", "loss/value": None, "kl/ref": 1.0})
    result.endpoint["second_judge"] = {"agree": None, "decided": 0}
    assert not_finite(result) == [
        "eval/win_rate (1 of 2 evaluations, the last among them)",
        "eval/kl (1 of 2 evaluations)",
        "kl/ref (1 of 2 iterations)",
        "loss/value (1 of 2 iterations, the last among them)",
        "second_judge.agree (last evaluation)",
    ]


def test_arms_that_start_from_no_sft_model(tmp_path: Path) -> None:
    def start(**ppo: str) -> str | None:
        return other_start(read_result(write(tmp_path / "a.jsonl", overrides={"base": "x", "ppo": ppo})))

    assert start() is None and start(model="${sft@next}") is None and start(model="${sft_other}") is None
    assert start(model="${base}") == "base"
    assert start(model="some/folder") is None


def test_two_of_one_key_are_refused(tmp_path: Path) -> None:
    assert read_results(tmp_path / "none") == {}
    write(tmp_path / "C1" / "a.jsonl")
    write(tmp_path / "C2" / "b.jsonl", key="other")
    assert set(read_results(tmp_path)) == {"abc", "other"}
    write(tmp_path / "shared" / "c.jsonl")
    with pytest.raises(UserError, match="results of the same run"):
        read_results(tmp_path)


def test_changed_defaults_are_noticed(tmp_path: Path) -> None:
    def run(**identity: Any) -> Any:
        return SimpleNamespace(key="abc", identity=lambda: identity)

    result = read_result(write(tmp_path / "a.jsonl", identity={"kl.coef": 0.05, "gone": 1}))
    assert outdated(result, run(**{"kl.coef": 0.05})) == []
    assert outdated(result, run(**{"kl.coef": 0.1})) == ["kl.coef"]
    assert outdated(result, run(**{"kl.coef": 0.05, "gae.lam": 0.9})) == [], "an option that is new, at its default"
    assert cached(run(**{"kl.coef": 0.1}), {"abc": result}) is None
    assert cached(run(**{"kl.coef": 0.05}), {"abc": result}) is result
    assert cached(run(**{"kl.coef": 0.05}), {}) is None
