"""What is drawn: the right numbers at the right places, for full, short and broken runs."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppomax.report import figures
from ppomax.report.figures import (
    PANELS,
    density,
    live_win_rate,
    metric_curve,
    policy_series,
    reward_histogram,
    ridge_span,
    running_mean,
    training_panel,
    win_rate_curve,
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every figure that is saved, besides its file."""
    kept: list[Any] = []
    original = figures.save_figure

    def save(figure: Any, path: str | Path) -> None:
        kept.append(figure)
        original(figure, path)

    monkeypatch.setattr(figures, "save_figure", save)
    return kept


def rows(count: int, critic: int = 2, offset: float = 0.0) -> list[dict[str, Any]]:
    """A run: critic pre-training, then 4 updates an iteration; each metric is its number plus the iteration."""
    out: list[dict[str, Any]] = [
        {"iteration": i, "phase": "critic", "update": 0, "loss/value": 99.0} for i in range(critic)
    ]
    for i in range(count):
        metrics = {metric: k + i + offset for k, (metric, _, _) in enumerate(PANELS)}
        out.append({"iteration": critic + i, "phase": "policy", "update": 4 * (i + 1), **metrics})
    return out


def test_series_stand_at_the_updates_before_the_samples_were_drawn() -> None:
    assert policy_series(rows(3), "reward/mean") == ([0, 4, 8], [0.0, 1.0, 2.0])
    assert policy_series(rows(3), "loss/value") == ([0, 4, 8], [5.0, 6.0, 7.0])  # no critic pre-training
    broken = rows(3)
    broken[3]["reward/mean"] = None  # NaN is written as null
    assert policy_series(broken, "reward/mean") == ([0, 8], [0.0, 2.0])
    assert policy_series(rows(3), "no/such") == ([], [])


def test_running_mean_by_hand() -> None:
    assert running_mean([1, 2, 6, 4], 3) == [1.5, 3.0, 4.0, 5.0]
    assert running_mean([1, 2, 6], 1) == [1, 2, 6]


def test_training_panel_draws_all_runs(tmp_path: Path, drawn: list[Any]) -> None:
    runs = {"PPO-max": rows(5), "vanilla": rows(40, offset=0.5), "absent": []}
    training_panel(runs, tmp_path / "panel.png")
    assert (tmp_path / "panel.png").stat().st_size > 10_000
    axes = drawn[0].axes
    assert len(axes) == len(PANELS) == 8
    for k, axis in enumerate(axes):
        assert axis.get_xlabel() == "policy updates" and axis.get_ylabel() and axis.get_title()
        by_label = {line.get_label(): line for line in axis.get_lines() if not line.get_label().startswith("_")}
        assert set(by_label) == {"PPO-max", "vanilla"}
        assert by_label["PPO-max"].get_xdata().tolist() == [0, 4, 8, 12, 16]
        assert by_label["PPO-max"].get_ydata().tolist() == [k, k + 1, k + 2, k + 3, k + 4]
        raw = next(line for line in axis.get_lines() if line.get_alpha() and len(line.get_xdata()) == 40)
        assert raw.get_ydata().tolist() == [k + i + 0.5 for i in range(40)]
        assert len({line.get_color() for line in by_label.values()}) == 2
        assert len({line.get_linestyle() for line in by_label.values()}) == 2


def test_wide_ranges_get_a_logarithmic_axis(tmp_path: Path, drawn: list[Any]) -> None:
    run = rows(4)
    for i, row in enumerate(run[2:]):
        row["policy/perplexity"] = 10.0**i
    training_panel({"run": run}, tmp_path / "panel.svg")
    scales = {metric: axis.get_yscale() for (metric, _, _), axis in zip(PANELS, drawn[0].axes, strict=True)}
    assert scales["policy/perplexity"] == "log" and scales["reward/mean"] == "linear"


def moment(update: int, value: float) -> dict[str, Any]:
    def rate(v: float) -> dict[str, float]:
        return {"value": v, "low": v - 0.1, "high": v + 0.1}

    return {"update": update, "overall": {"win_rate": rate(value), "length_controlled": rate(value - 0.05)}}


def test_win_rate_curve(tmp_path: Path, drawn: list[Any]) -> None:
    curve = [moment(0, 0.5), moment(40, 0.6), moment(80, 0.7)]
    win_rate_curve({"PPO-max": curve, "only the start": curve[:1]}, tmp_path / "curve.png", judge="a judge")
    axis = drawn[0].axes[0]
    lines = {line.get_label(): line for line in axis.get_lines() if not line.get_label().startswith("_")}
    assert set(lines) == {"PPO-max", "PPO-max, length-controlled"}
    assert lines["PPO-max"].get_xdata().tolist() == [40, 80]  # against itself the first one would always tie
    np.testing.assert_allclose(lines["PPO-max"].get_ydata(), [60, 70])
    np.testing.assert_allclose(lines["PPO-max, length-controlled"].get_ydata(), [55, 65])
    band = axis.collections[0].get_datalim(axis.transData)
    assert band.y0 == pytest.approx(50) and band.y1 == pytest.approx(80)
    assert "a judge" in axis.get_ylabel() and "%" in axis.get_ylabel()


def test_live_win_rate_beside_the_proxy(tmp_path: Path, drawn: list[Any]) -> None:
    rows = [
        {"update": u, "eval/win_rate": rate, "eval/win_rate_se": 0.05, "eval/proxy_win_rate": proxy}
        for u, rate, proxy in ((0, 0.5, 0.5), (40, 0.6, 0.8), (80, 0.3, 0.95))
    ]
    older = [{k: v for k, v in row.items() if "proxy" not in k} for row in rows]
    live_win_rate(
        {"older": (older, "eval/win_rate"), "run": (rows, "eval/win_rate")}, tmp_path / "rate.png",
        proxies={"run": [*rows, *older]},
    )  # fmt: skip
    (axis,) = drawn[0].axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    proxy = lines["dotted: by the training reward itself"]
    np.testing.assert_allclose(proxy.get_ydata(), [50, 80, 95])
    assert proxy.get_linestyle() == ":" and proxy.get_color() == lines["run"].get_color() != lines["older"].get_color()
    np.testing.assert_allclose(lines["run"].get_ydata(), [50, 60, 30])
    assert not axis.get_legend(), "the legend stands beside the curves"


def test_many_runs_share_the_points(tmp_path: Path, drawn: list[Any]) -> None:
    for count, most in ((1, 602), (6, 202), (40, 122)):
        runs = {str(i): rows(700, offset=math.sin(i)) for i in range(count)}
        metric_curve(runs, PANELS[0], tmp_path / f"{count}.png")
        longest = max(len(line.get_xdata()) for line in drawn[-1].axes[0].get_lines())
        assert most - 70 < longest <= most


def test_reward_histogram(tmp_path: Path, drawn: list[Any]) -> None:
    rng = np.random.default_rng(0)
    samples = [{"update": 4 * k, "score": s} for k in range(20) for s in rng.normal(k, 1, size=50).tolist()]
    reward_histogram({"PPO-max": samples, "nothing": []}, tmp_path / "ridge.png", ridges=5)
    axis, empty = drawn[0].axes
    labels = [tick.get_text() for tick in axis.get_yticklabels()]
    assert labels[-1] == "0" and labels[0] == "76" and len(labels) == 5
    ticks = [line.get_xdata()[0] for line in axis.get_lines() if len(line.get_xdata()) == 2]
    shown = [int(label) for label in reversed(labels)]
    medians = [float(np.median([s["score"] for s in samples if s["update"] == u])) for u in shown]
    assert ticks == pytest.approx(medians)
    assert "no samples" in empty.get_title()
    assert "50" in drawn[0].get_suptitle()


def test_histogram_of_lengths(tmp_path: Path, drawn: list[Any]) -> None:
    samples = [{"update": 4 * k, "score": -9.0, "length": 10 * k + i} for k in range(3) for i in range(5)]
    reward_histogram({"PPO-max": samples}, tmp_path / "ridge.png", number="length")
    (axis,) = drawn[0].axes
    assert [line.get_xdata()[0] for line in axis.get_lines() if len(line.get_xdata()) == 2] == [2, 12, 22]
    assert axis.get_xlabel() == "tokens of the answer"
    assert drawn[0].get_suptitle() == "length over 5 fixed held-out prompts (tick: median)"


def test_densities_of_few_scores_run_out_on_the_axis() -> None:
    # two scores 0 and 1: std 0.7071, bandwidth 1.06 * 0.7071 * 2^-0.2 = 0.6525
    assert ridge_span([[0.0, 1.0], [0.5]]) == pytest.approx((-1.9575, 2.9575), abs=1e-3)
    assert ridge_span([[0.0], [10.0]]) == (-2, 12)
    grid = np.linspace(*ridge_span([[0.0, 1.0]]), 400)
    assert np.trapezoid(density(np.array([0.0, 1.0]), grid), grid) > 0.997


def test_density_is_one() -> None:
    grid = np.linspace(-20, 20, 2001)
    for values in (np.random.default_rng(1).normal(size=30), np.array([3.0]), np.full(5, 2.0)):
        assert np.trapezoid(density(values, grid), grid) == pytest.approx(1, abs=1e-6)
    peak = density(np.random.default_rng(2).normal(size=20000), np.array([0.0, 0.01]))[0]
    assert peak == pytest.approx(1 / math.sqrt(2 * math.pi), abs=0.02)


def test_runs_without_a_row_do_not_fail(tmp_path: Path) -> None:
    training_panel({}, tmp_path / "a.png")
    win_rate_curve({}, tmp_path / "b.png")
    reward_histogram({}, tmp_path / "c.png")
    reward_histogram({"one": [{"update": 0, "score": 1.0}, {"update": 0, "score": None}]}, tmp_path / "d.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 0 for name in "abcd")


def test_the_same_numbers_give_the_same_file(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        training_panel({"run": rows(5)}, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_several_formats_of_one_figure_are_those_of_one_each(tmp_path: Path) -> None:
    both = [tmp_path / "both.png", tmp_path / "both.svg"]
    training_panel({"run": rows(9)}, both)
    for file in both:
        alone = tmp_path / f"alone{file.suffix}"
        training_panel({"run": rows(9)}, alone)
        if file.suffix == ".png":
            assert file.read_bytes() == alone.read_bytes()
        else:  # laid out by the first format, whose letters are a hair wider
            one, other = (np.array(re.findall(r"-?\d+\.\d+", f.read_text()), float) for f in (file, alone))
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=0.5)
