"""Results made by hand, for verdicts and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppomax.lab.results import Result


def part(rate: float, win: float | None = None, lose: float | None = None) -> dict[str, float]:
    won, lost = rate if win is None else win, 1 - rate if lose is None else lose
    return {"win": won, "tie": 1 - won - lost, "lose": lost, "win_rate": rate, "se": 0.01, "prompts": 100}


def made(
    seed: int, win: Sequence[float], *, last: float | None = None, reward: Sequence[float] | None = None,
    evals: dict[str, Sequence[float]] | None = None, metrics: dict[str, Sequence[float]] | None = None,
    endpoint: dict[str, Any] | None = None, header: dict[str, Any] | None = None, step: int = 10, key: str = "k",
) -> Result:  # fmt: skip
    """A run whose win rate goes so, an evaluation each ``step`` updates; SFT's rewards have mean 0 and std 2."""
    rows: list[dict[str, Any]] = []
    for i, rate in enumerate(win):
        row = {
            "iteration": i, "update": step * i, "eval/win_rate": rate, "eval/reward": (reward or [0.0] * len(win))[i],
            "eval/reward_sampled": 0.0, "eval/reward_sampled_std": 2.0, "eval/kl": 1.0 * i, "eval/kl_k3": 1.0 * i,
            "eval/length": 20.0, "eval/perplexity": 1.5, "eval/judge": 0.5, "eval/judge_sampled": 0.5,
        }  # fmt: skip
        rows.append({**row, **{name: values[i] for name, values in (evals or {}).items()}})
    lines: list[dict[str, Any]] = []
    for name, values in (metrics or {}).items():
        for i, value in enumerate(values):
            if i == len(lines):
                lines.append({"iteration": i, "update": step * (i + 1), "phase": "policy", "iterations": 1})
            lines[i][name] = value
    forms = ("same_temperature", "matched_entropy", "against_greedy", "both_greedy")
    rate = win[-1] if last is None else last
    by_category = {c: part(rate) for c in ("helpful", "harmful", "unanswerable")}
    end: dict[str, Any] = {form: {**part(rate), "by_category": by_category} for form in forms}
    end["entropy"] = {"policy": 0.1, "sft": 0.2, "matched_temperature": 0.7, "matched": 0.1}
    head = {
        "key": key, "seed": seed, "world": "1/abc", "start": {}, "seconds": {"iterations": 9.0, "training": 10.0, "endpoint": 5.0},
        "identity": {}, "iterations": len(win) - 1,
    }  # fmt: skip
    return Result(Path("memory"), {**head, **(header or {})}, rows, lines, lines, {**end, **(endpoint or {})})


def seeds(count: int, *args: Any, **options: Any) -> dict[int, Result]:
    """The same run for seeds 1, 2, ..."""
    return {s: made(s, *args, **options) for s in range(1, count + 1)}
