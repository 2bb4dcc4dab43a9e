"""Who collapses, what is in time, how far a metric departs, and how sure that is: by hand."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppomax.lab.results import Result, rounded, write_result

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import early_warning as ew
import warning_metrics as metrics
import warning_rlwatch as peer
import warning_runs as wr
import warning_scores as ws


def result(
    rates: list[float], stream: list[dict[str, Any]] | None = None, arm: str = "vanilla", seed: int = 2, **identity: Any
) -> Result:
    evaluations = [{"iteration": 8 * i, "eval/win_rate": rate} for i, rate in enumerate(rates)]
    header = {"arm": arm, "seed": seed, "key": "k", "format": 2, "identity": identity}
    return Result(Path("x"), header, evaluations, stream or [], [], {"same_temperature": {"win_rate": 0.25}})


# ------------------------------------------------------------------------------------------------ runs


@pytest.mark.parametrize(
    ("rates", "kind", "fall"),
    [
        ([0.5, 0.6, 0.62, 0.6, 0.4, 0.3, 0.2], "collapsing", 32),
        ([0.5, 0.6, 0.4, 0.6, 0.4, 0.3, 0.2], "collapsing", 32),  # the last stretch below 50% counts
        ([0.5, 0.6, 0.45, 0.4, 0.51], "collapsing", 16),  # one noisy evaluation at the end
        ([0.4, 0.3, 0.3, 0.3, 0.2], "collapsing", 8),  # never above: from the first evaluation after the start
        ([0.4, 0.6, 0.62, 0.61, 0.6], "healthy", None),  # before any training, 50% is chance
        ([0.5, 0.6, 0.3, 0.3, 0.3, 0.6, 0.7, 0.7], "neither", None),
        ([0.5, 0.62, 0.62, 0.62, 0.56, 0.56, 0.56], "neither", None),  # has lost six points for good
    ],
)
def test_truth(rates: list[float], kind: str, fall: int | None) -> None:
    found = wr.truth(result(rates))
    assert (found.kind, found.fall) == (kind, fall)


def test_a_run_whose_numbers_ended_is_neither_healthy_nor_collapsing() -> None:
    run = result([0.5, 0.6, 0.62, 0.6, 0.61])
    assert wr.truth(run).kind == "healthy"
    run.header["diverged"] = {"told": "loss/policy not finite", "policy_iterations": 32}
    assert wr.truth(run).kind == "diverged"


def test_the_peak_is_that_of_the_smoothed_win_rate_after_the_start() -> None:
    run = wr.truth(result([0.9, 0.5, 0.6, 0.7, 0.5, 0.3, 0.3]))
    # means of two at the ends, of three between: .55, .6, .6, .5, .37, .3
    assert [at for at, _ in run.curve] == [8, 16, 24, 32, 40, 48]
    assert [rate for _, rate in run.curve] == pytest.approx([0.55, 0.6, 0.6, 0.5, 11 / 30, 0.3])
    assert run.peak in (16, 24)  # equal but for rounding
    assert run.rising(15) and not run.rising(24)


def test_a_run_that_the_watch_rolled_back_is_not_judged_but_shown_beside_vanilla() -> None:
    rows = [{"iteration": i, "kl/coef": c} for i, c in enumerate([0.0, 0.0, 0.05, 0.05, 0.2])]
    steered = wr.truth(result([0.5, 0.6, 0.62, 0.6, 0.58], rows, **{"watch.on_collapse": "rollback"}))
    assert steered.kind == "steered" and steered.penalised
    vanilla = wr.truth(result([0.5, 0.6, 0.4, 0.3, 0.2]))
    assert not vanilla.penalised
    other = wr.Truth("x", "collapsing", 8, [], "scaling", 2, 0.1, 0.1)
    row = ew.rollback_table([steered], [other, vanilla]).split("\n")[-1]
    assert row == "| 2 | 30.0% | 25.0% | 60.0% | 25.0% | 2, 4 |"


def test_only_runs_that_were_looked_at_tune(tmp_path: Path) -> None:
    made: list[tuple[str, str, int, dict[str, Any]]] = [
        ("development", "anything", 9, {}),
        ("results/shared", "vanilla", 2, {}),
        ("results/shared", "vanilla", 5, {}),
        ("results/C4", "eta_02", 4, {}),
        ("results/C1", "vanilla_zh", 2, {}),  # a new arm is judged on any seed
        ("results/C3", "reward_03", 2, {}),
        ("results/C1", "vanilla_rollback", 2, {"watch.on_collapse": "rollback"}),
    ]
    for i, (folder, arm, seed, identity) in enumerate(made):
        one = result([0.5, 0.6, 0.62, 0.6, 0.58], [{"iteration": 0, "update": 4, "phase": "policy", "kl/ref": 0.1}])
        header = {**one.header, "arm": arm, "seed": seed, "key": f"k{i}", "identity": identity}
        write_result(tmp_path / folder / f"{i}.jsonl", header, one.evaluations, one.stream, one.endpoint)
    (tmp_path / "development" / "old.jsonl").write_text('{"kind": "header", "format": 1}\n')  # left out
    parts = wr.split(tmp_path / "development", tmp_path / "results")
    names = [sorted(f"{r.arm} {r.seed}" for r in part) for part in parts]
    assert names == [
        ["anything 9", "eta_02 4", "vanilla 2"], ["reward_03 2", "vanilla 5", "vanilla_zh 2"], ["vanilla_rollback 2"],
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ scores


def bad(name: str, fall: int = 32, peak: int = 16) -> wr.Truth:
    return wr.Truth(name, "collapsing", fall, [], curve=[(8, 0.5), (peak, 0.6), (40, 0.2)])


def good(name: str) -> wr.Truth:
    return wr.Truth(name, "healthy", None, [])


def test_score_counts_alarms_before_the_fall_and_on_healthy_runs() -> None:
    runs = [bad("a"), bad("b"), bad("c"), good("d"), wr.Truth("e", "neither", None, [])]
    found = ws.score(runs, {"a": 22, "b": 32, "c": 12, "d": 5, "e": 5})
    assert (found.in_time, found.collapsing, found.false, found.healthy) == (2, 3, 1, 1)
    assert found.lead == 15  # of 10 and 20
    assert found.rising == 1  # c: the peak was still to come
    # Wilson by hand, 2 of 3: (2/3 + z2/6 -+ z sqrt(2/9/3 + z2/36)) / (1 + z2/3), z2 = 3.8415 -> .2077, .9385
    assert found.cells() == ["2 of 3 [21%, 94%]", "1", "15", "1 of 1 [21%, 100%]"]
    none = ws.score(runs, dict.fromkeys("abcde"))
    assert math.isnan(none.lead) and none.rising == 0
    assert none.cells() == ["0 of 3 [0%, 56%]", "0", "-", "0 of 1 [0%, 79%]"]


def test_the_first_dip_is_the_stricter_fall() -> None:
    dips = [wr.truth(result(rates)).dip for rates in (
        [0.4, 0.6, 0.45, 0.6, 0.4, 0.3, 0.2], [0.5, 0.6, 0.62, 0.6, 0.4, 0.3, 0.2], [0.5, 0.6, 0.62, 0.61, 0.6],
    )]  # fmt: skip
    assert dips == [16, 32, None], "the start, before any training, is none, and a healthy run has none"
    runs = [replace(bad("a"), fall=32, dip=16), replace(bad("b"), fall=32, dip=32), good("c")]
    alarms = {"a": 20, "b": 22, "c": None}
    rules = [
        ew.Rule(name, level, alarms, ws.score(runs, alarms))
        for name, level in ((f"ppomax: {ew.WHOLE}", "collapse"), (f"ppomax: {ew.WHOLE}", "notice"))
    ]
    told = " ".join(ew.by_dips(runs, rules).split())
    assert "In 1 of the 2 collapsing runs an earlier evaluation" in told
    assert told.endswith(f"ppomax: {ew.WHOLE}, collapse: 1 of 2 [9%, 91%] in time, lead 10.")


def test_wilson_intervals_of_nothing_and_everything() -> None:
    z2 = 1.959963984540054**2
    assert ws.score([good(c) for c in "abcdefghijklmn"], dict.fromkeys("abcdefghijklmn")).as_dict()[
        "false_interval"
    ] == pytest.approx([0, z2 / (14 + z2)])  # 0 of n: up to z2 / (n + z2)
    assert ws.part(0, 0) == "0 of 0"


def test_the_interval_of_a_lead_is_the_same_each_time_and_needs_five() -> None:
    runs = [bad(str(i), fall=100) for i in range(8)]
    alarms = {str(i): (90 - 10 * i if i < 6 else None) for i in range(8)}  # leads 10, 20, ..., 60
    first, again = ws.score(runs, alarms), ws.score(runs, alarms)
    assert first.lead == 35
    assert first.lead_interval() == again.lead_interval()
    low, high = first.lead_interval()
    assert 10 <= low < 35 < high <= 60
    few = ws.score(runs, {**alarms, "0": None, "1": None})
    assert few.in_time == 4 and all(map(math.isnan, few.lead_interval()))
    same = ws.score(runs, dict.fromkeys(map(str, range(8)), 93))
    assert same.lead_interval() == (7, 7)


def test_paired_counts() -> None:
    runs = [*(bad(c) for c in "abcd"), good("x"), good("y"), good("z")]
    one = {"a": 10, "b": 20, "c": 40, "d": None, "x": None, "y": 3, "z": None}
    other = {"a": 15, "b": None, "c": 30, "d": 33, "x": 7, "y": 3, "z": None}
    found = ws.paired(runs, one, other)
    assert found.in_time == (1, 1, 1, 1)  # a; b; c (the first comes too late); d (too late, and none)
    assert found.false == (1, 0, 1, 1)
    assert found.earlier == 5
    assert found.cells() == ["1", "1", "1", "1", "1", "5", "1", "0", "1", "1"]


def test_areas_and_their_differences_are_resampled_alike() -> None:
    won = np.asarray([[1.0, 0.5], [0.0, 1.0], [1.0, 1.0]])
    found, again = ws.areas(won), ws.areas(won)
    assert found[0] == pytest.approx(4.5 / 6)
    assert np.array_equal(found, again)
    rng = np.random.default_rng(0)
    a = rng.multinomial(3, [1 / 3] * 3, size=ws.RESAMPLES)
    b = rng.multinomial(2, [0.5] * 2, size=ws.RESAMPLES)
    r = 7  # one resample by a slow loop over its pairs
    drawn = [won[i, j] for i in range(3) for _ in range(a[r, i]) for j in range(2) for _ in range(b[r, j])]
    assert len(drawn) == 6 and found[1 + r] == pytest.approx(sum(drawn) / 6)
    assert ws.interval(ws.areas(won + 0.25) - found) == pytest.approx((0.25, 0.25))  # the same runs in both
    low, high = ws.interval(found)
    assert 0 <= low < 0.75 < high <= 1
    assert ws.interval(ws.areas(np.ones((3, 2)))) == (1, 1)


# ------------------------------------------------------------------------------------------------ metrics


def rows(values: list[float]) -> list[dict[str, Any]]:
    return [{"iteration": i, "phase": "policy", "response/length": v} for i, v in enumerate(values)]


QUIET = [10.0, 11.0] * 12
"""neighbours differ by 1 up and 1 down: noise 1.4826 / sqrt(2)"""
LENGTH = "response length"


def test_departure_is_in_units_of_the_metrics_own_noise_or_start() -> None:
    unit = 1.4826 / 2**0.5
    run = wr.Truth("a", "collapsing", 40, rows(QUIET + [31.5] * 10))
    assert metrics.departures(run, LENGTH, "noise")[-1] == pytest.approx((31.5 - 10.5) / unit)
    assert metrics.departures(run, LENGTH, "start")[-1] == pytest.approx((31.5 - 10.5) / 10.5)
    # the median of five is out from the third long answer on, and must be so three times
    found = metrics.reaches([run], LENGTH, "noise")
    assert metrics.crossed([run], found, 5) == {"a": 24 + 2 + 2}
    assert metrics.crossed([run], found, 1000) == {"a": None}


def test_kl_is_measured_in_entropies_of_the_start() -> None:
    stream = [
        {"iteration": i, "kl/ref": 0.0 if i < 12 else 0.3, "policy/entropy": 0.2 if i < 12 else 9.0} for i in range(24)
    ]
    run = wr.Truth("a", "collapsing", 40, stream)
    assert metrics.departures(run, "KL to the reference", "start")[-1] == pytest.approx(1.5)


def test_the_tightest_width_that_alarms_on_so_many_healthy_runs() -> None:
    runs = [
        wr.Truth(name, "healthy", None, rows(QUIET + [long] * 10))
        for name, long in (("a", 21.0), ("b", 12.6), ("c", 31.5))
    ]
    runs.append(wr.Truth("d", "collapsing", 40, rows(QUIET + [105.0] * 10)))
    found = metrics.reaches(runs, LENGTH, "start")  # they reach 1, .2, 2 and 9
    for allowed, width in ((0, 2.0), (1, 1.0), (2, 0.2), (3, 0.0)):
        assert metrics.tightest(runs, found, allowed) == pytest.approx(width)
        at = metrics.crossed(runs, found, metrics.tightest(runs, found, allowed))
        assert sum(at[name] is not None for name in "abc") == allowed
        below = metrics.crossed(runs, found, metrics.tightest(runs, found, allowed) - 1e-9)
        assert sum(below[name] is not None for name in "abc") > allowed or allowed == 3


def test_areas_look_only_at_what_came_before_the_fall() -> None:
    early = wr.Truth("a", "collapsing", 30, rows(QUIET + [31.5] * 10))
    late = wr.Truth("b", "collapsing", 24, rows(QUIET + [31.5] * 10))
    calm = wr.Truth("c", "healthy", None, rows(QUIET + [10.0, 11.0] * 5))
    runs = [early, late, calm]
    found = metrics.reaches(runs, LENGTH, "noise")
    assert metrics.won(runs, found, as_long=True).tolist() == [[1.0], [0.5]]
    # a healthy run that goes astray later than the other falls: not counted against it over as many iterations
    astray = wr.Truth("c", "healthy", None, rows(QUIET + [10.0, 11.0] * 5 + [60.0] * 10))
    runs = [early, late, astray]
    found = metrics.reaches(runs, LENGTH, "noise")
    assert metrics.won(runs, found, as_long=True).tolist() == [[1.0], [0.5]]
    assert metrics.won(runs, found, as_long=False).tolist() == [[0.0], [0.0]]


# ------------------------------------------------------------------------------------------------ the watch, the page


def test_the_watchs_alarms_are_those_of_a_run() -> None:
    """A line without a number is no line with a number that is not finite; every detector is there."""
    run = wr.truth(result([0.5, 0.6, 0.6, 0.6], [*rows([10.0, 11.0] * 12)[:3], {"iteration": 3, "kl/ref": None}]))
    found = ew.watched([run])
    assert {"any", "critic", "reward_price", "combined", "not_finite"} <= found.keys()
    assert found["any"] == {level: {run.name: None} for level in ("notice", "warning", "collapse")}
    broken = replace(run, rows=[*run.rows, {"iteration": 4, "kl/ref": math.nan}])
    found = ew.watched([broken])
    assert found["not_finite"]["notice"] == found["any"]["collapse"] == {run.name: 4}  # a graver alarm counts below
    assert found["critic"]["notice"] == {run.name: None}


def test_levels_that_add_nothing_are_left_out() -> None:
    none: dict[str, int | None] = {"a": None, "b": None}
    some, fewer = {"a": 3, "b": 5}, {"a": 3, "b": None}
    names = [
        [level for level, _ in ew.telling({"notice": one, "warning": two, "collapse": three})]
        for one, two, three in [(none, none, none), (some, none, none), (some, some, fewer), (some, fewer, fewer)]
    ]
    assert names == [["any"], ["notice"], ["warning", "collapse"], ["notice", "collapse"]]


def test_the_runs_table_says_what_an_alarm_would_have_cost() -> None:
    run = wr.Truth("a", "collapsing", 40, [], curve=[(8, 0.52), (16, 0.55), (24, 0.6), (32, 0.52), (40, 0.3)])
    assert ew.runs_table([run], {"a": 17}).split("\n")[-1] == "| a | collapsing | 40 | 17 | 55% | 60% | **yes** |"
    assert ew.runs_table([run], {"a": 24}).split("\n")[-1] == "| a | collapsing | 40 | 24 | 60% | 52% | no |"
    assert ew.runs_table([run], {"a": None}).split("\n")[-1] == "| a | collapsing | 40 | none | - | - | - |"


def test_the_answer_follows_the_areas() -> None:
    """Length tells three collapses of three before their fall, and nothing else moves."""
    tuning = [
        wr.Truth("t", "collapsing", 40, rows(QUIET + [31.5] * 10)),
        wr.Truth("u", "healthy", None, rows(QUIET * 2)),
    ]
    judged = [wr.Truth(c, "collapsing", 40, rows(QUIET + [31.5] * 10)) for c in "abc"]
    judged += [wr.Truth(c, "healthy", None, rows(QUIET * 2)) for c in "de"]
    parts, data = ew.build(None, tuning, judged)
    assert parts["answer"].startswith("**Of the paper's four metrics, response length is the best early warning.**")
    assert "0 of the 2 healthy runs have a KL penalty, and 0 of the 3 collapsing ones." in " ".join(
        parts["answer"].split()
    )
    assert "- response length, in units of its noise: 3 of 3 [44%, 100%] in time" in " ".join(parts["answer"].split())
    assert "but 0 of these 5 runs were in sight" in " ".join(parts["answer"].split())
    assert "Judged: 3 collapsing, 2 healthy" in parts["tables"]
    assert "17 collapsing and 18 healthy runs are missing yet" in " ".join(parts["tables"].split())
    assert {rule["rule"] for rule in data["rules"]} == {f"ppomax: {name}" for name in (ew.WHOLE, *ew.OURS)}

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = json.dumps(rounded(data), allow_nan=False)
    lead = json.loads(text, parse_constant=refuse)["metrics"]["perplexity, by its noise"]["at_that_width"]["lead"]
    assert lead is None


def test_runs_in_sight_of_a_change_tune_for_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], list[str]]] = []

    def their_rules(
        python: str, tuning: list[wr.Truth], judged: list[wr.Truth]
    ) -> tuple[list[ew.Rule], dict[str, Any]]:
        asked.append(([r.name for r in tuning], [r.name for r in judged]))
        alarms = {r.name: 3 for r in judged}
        return [ew.Rule("rlwatch, tuned together: x", "as tuned", alarms, ws.score(judged, alarms))], {}

    monkeypatch.setattr(ew, "their_rules", their_rules)
    tuning = [replace(bad("t"), rows=rows(QUIET)), replace(good("u"), rows=rows(QUIET))]
    old = [replace(run, seen=True, rows=rows(QUIET)) for run in (bad("a"), good("b"))]
    new = [replace(run, rows=rows(QUIET)) for run in (bad("c"), bad("d"), good("e"))]
    text, data = ew.on_later_runs("python", tuning, [*old, *new])
    assert asked == [(["t", "u", "a", "b"], ["c", "d", "e"])]
    assert "On the 3 that came later" in " ".join(text.split())
    assert [(r["rule"], r["in_time"], r["collapsing"], r["false"], r["healthy"]) for r in data["rules"]] == [
        ("ppomax: any detector", 0, 2, 0, 1), ("rlwatch, tuned together: x", 2, 2, 1, 1),
    ]  # fmt: skip
    text, data = ew.on_later_runs("python", tuning, [*old, *new[:2]])  # not both kinds yet: counts alone
    assert (
        data == {} and len(asked) == 1 and "18 collapsing and 20 healthy runs are missing yet" in " ".join(text.split())
    )


def test_runs_that_were_seen_are_known_by_their_keys() -> None:
    key = next(iter(wr.SEEN))
    run = result([0.5, 0.6, 0.62, 0.6, 0.61])
    assert not wr.truth(run).seen
    run.header["key"] = key
    assert wr.truth(run).seen and len(wr.SEEN) == 100


def test_a_page_keeps_its_words() -> None:
    page = "one\n<!-- a: made by benchmarks/early_warning.py -->\nold\n<!-- end of a -->\ntwo\n"
    new = ew.filled(page, {"a": "| x |"})
    assert new == "one\n<!-- a: made by benchmarks/early_warning.py -->\n\n| x |\n\n<!-- end of a -->\ntwo\n"
    assert ew.filled(new, {"a": "| x |"}) == new
    with pytest.raises(SystemExit, match="missing"):
        ew.filled(page, {"b": ""})


def test_the_benchmark_and_its_page_fit_one_another() -> None:
    page = ew.PAGE.read_text(encoding="utf-8")
    assert all(mark.format(part) in page for part in ("answer", "tables") for mark in ew.MARK)


# ------------------------------------------------------------------------------------------------ rlwatch

DETECTORS = '''
from dataclasses import dataclass
from types import SimpleNamespace

@dataclass
class Alert:
    detector: str
    severity: str
    step: int

class DetectorSuite:
    """Entropy below the threshold is a warning, below half of it critical; so is any spread of advantages above 1."""

    def __init__(self, config):
        self.config = config

    def check_step(self, step, *, entropy=None, advantage_std=None, **others):
        assert None not in others.values()
        print("noise on stdout")
        found, c = [], self.config
        if entropy is not None and c.entropy_collapse.enabled and entropy < c.entropy_collapse.threshold:
            grave = entropy < c.entropy_collapse.threshold / 2
            found.append(Alert("entropy_collapse", "critical" if grave else "warning", step))
        if advantage_std is not None and c.advantage_variance.enabled and advantage_std > 1:
            found.append(Alert("advantage_variance", "critical", step))
        return found
'''
CONFIG = """
from types import SimpleNamespace

NAMES = ("kl_explosion", "reward_hacking", "advantage_variance", "loss_nan", "gradient_norm_spike", "reward_mean_drift")

class RLWatchConfig:
    def __init__(self):
        self.entropy_collapse = SimpleNamespace(enabled=True, threshold=1.0)
        for name in NAMES:
            setattr(self, name, SimpleNamespace(enabled=True))
"""


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Python that takes a module of ours for rlwatch."""
    (tmp_path / "rlwatch").mkdir()
    for name, text in (("__init__", ""), ("detectors", DETECTORS), ("config", CONFIG)):
        (tmp_path / "rlwatch" / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return sys.executable


def entropies(values: list[float], **more: float) -> list[dict[str, Any]]:
    return [{"iteration": i, "phase": "policy", "policy/entropy": v, **more} for i, v in enumerate(values, start=5)]


def test_the_feed_gives_the_first_alert_of_each_level(python: str) -> None:
    critics = [{"iteration": 4, "phase": "critic", "policy/entropy": 0.1, "advantage/std": 3.0}]
    run = wr.Truth("a", "collapsing", 40, critics + entropies([2.0, 0.9, 0.8, 0.4, 0.3]))
    other = wr.Truth("b", "healthy", None, entropies([2.0, 2.0], **{"advantage/std": 3.0}))
    settings = {
        "defaults": {},
        "low": {"entropy_collapse": {"threshold": 0.7}},
        "off": {"entropy_collapse": {"enabled": False}},
    }
    answer = peer.ask(python, [run, other], settings)
    assert answer["defaults"]["a"]["entropy_collapse"] == {"warning": 6, "critical": 8}
    assert answer["low"]["a"]["entropy_collapse"] == {"warning": 8, "critical": 9}  # .3 is below half of .7
    assert answer["off"]["a"]["entropy_collapse"] == {"warning": None, "critical": None}
    assert answer["defaults"]["a"]["advantage_variance"] == {"warning": None, "critical": None}  # the critic's alone
    assert answer["defaults"]["b"]["advantage_variance"] == {"warning": 5, "critical": 5}  # critical is a warning too
    assert answer["defaults"].keys() == {"a", "b"} and answer["defaults"]["a"].keys() == peer.READS.keys()
    assert peer.earliest(
        answer["defaults"], {"entropy_collapse": "critical", "advantage_variance": "warning"}, [run, other]
    ) == {
        "a": 8,
        "b": 5,
    }


def test_a_setting_that_rlwatch_lacks_is_named(python: str) -> None:
    with pytest.raises(SystemExit, match=r"no setting loss_nan\.patience"):
        peer.ask(python, [wr.Truth("a", "healthy", None, [])], {"x": {"loss_nan": {"patience": 3}}})
    with pytest.raises(SystemExit, match=r"rlwatch: .*No such file"):
        peer.ask(sys.executable + "-that-is-not", [], {})


def test_a_detector_without_input_says_so(python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "grid", lambda: {name: [{}] for name in peer.READS})
    tuning = [
        wr.Truth("t", "collapsing", 40, entropies([2.0, 0.4])),
        wr.Truth("u", "healthy", None, entropies([2.0, 0.9])),
    ]
    judged = [
        wr.Truth("a", "collapsing", 40, entropies([2.0, 0.4])),
        wr.Truth("b", "healthy", None, entropies([2.0, 2.0])),
        wr.Truth("c", "healthy", None, entropies([2.0, 2.0], **{"advantage/std": 3.0})),
    ]
    rules, settings = ew.their_rules(python, tuning, judged)
    cells = {rule.cells()[0]: rule.cells()[1:] for rule in rules}
    assert settings["levels"] == {"entropy_collapse": "critical"}  # the warning is false on u
    assert settings["together"] == ["entropy_collapse"]
    assert cells["rlwatch, defaults: kl_explosion"][1] == "no input: no run has `kl/ref`"
    # judged on the one run that has it, and never tuned
    assert cells["rlwatch, defaults: advantage_variance (2 runs have no `advantage/std`)"][4] == "1 of 1 [21%, 100%]"
    assert cells["rlwatch, tuned: advantage_variance"][1] == "no tuning run has `advantage/std`"
    assert cells["rlwatch, tuned: entropy_collapse"][1] == "1 of 1 [21%, 100%]"


def test_what_is_fed_is_what_rlwatch_takes() -> None:
    assert set(peer.READS.values()) <= peer.FED.keys()
    assert peer.grid().keys() == peer.READS.keys()
