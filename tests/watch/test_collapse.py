"""Synthetic streams: every detector fires on its own fault, not on others and not on noise; state and files."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppomax.config import PPOConfig
from ppomax.details import DETAILS
from ppomax.errors import UserError
from ppomax.watch.collapse import MEMORY, Alarm, CollapseWatch, scan
from ppomax.watch.detectors import DETECTORS
from ppomax.watch.robust import noise, spread, theil_sen

Row = dict[str, Any]
TURN = 40
LENGTH = 80


def healthy(
    seed: int, length: int = LENGTH, *, tokens: float = 100.0, entropy: float = 1.0, unit: float = 1.0
) -> list[Row]:
    """A run that goes well: rewards rise and level off, KL levels off at a quarter of the entropy of the start.

    ``tokens``, ``entropy`` (nats a token) and ``unit`` (of the reward) are those of one model or another.
    """
    draw = random.Random(seed)
    rows = []
    for i in range(length):
        risen = 1 - math.exp(-i / 15)

        def about(value: float, share: float) -> float:
            return value * (1 + share * draw.gauss(0, 1))

        kl = about(0.25 * entropy * risen, 0.05)
        rows.append({
            "iteration": i, "phase": "policy", "update": 4 * (i + 1),
            "reward/mean": unit * (0.3 + 1.2 * math.sqrt(risen) + 0.04 * draw.gauss(0, 1)), "reward/std": about(unit, 0.05),
            "reward/skewness": 0.2 * draw.gauss(0, 1), "reward/p5": unit * -1.3, "reward/p50": unit * 0.3,
            "reward/p95": unit * about(1.9, 0.03), "kl/ref": kl, "kl/ref_sequence": kl * tokens,
            "policy/perplexity": math.exp(about(entropy * (1 - 0.2 * risen), 0.03)), "policy/entropy": about(entropy, 0.03),
            "policy/approx_kl": about(1e-3, 0.2), "policy/ratio_deviation": about(0.02, 0.1),
            "response/length": about(tokens * (1 + 0.1 * risen), 0.03), "response/truncated": abs(0.01 * draw.gauss(0, 1)),
            "response/distinct": min(1.0, about(0.95, 0.02)), "response/distinct_2": about(0.4, 0.03),
            "response/repeated_ngram_rate": abs(about(0.05, 0.2)), "response/compression": about(0.45, 0.02),
            "value/explained_variance": -1 + 1.8 * (1 - math.exp(-i / 4)) + 0.03 * draw.gauss(0, 1),
            "grad_norm/policy": about(0.5, 0.2), "grad_norm/critic": about(1.0, 0.2), "loss/value": about(0.1, 0.2),
        })  # fmt: skip
    return rows


def ramp(i: int, length: float = 12.0) -> float:
    """0 until the turn, then linearly to 1."""
    return min(max((i - TURN) / length, 0.0), 1.0)


def scaled(name: str, factor: float) -> Callable[[int, Row], None]:
    def change(i: int, row: Row) -> None:
        row[name] *= 1 + (factor - 1) * ramp(i)

    return change


def distance(i: int, row: Row) -> None:
    """Far away at a steady pace, with reward in proportion to sqrt(KL)."""
    row["kl/ref"] = 0.011 * i
    row["kl/ref_sequence"] = 100 * row["kl/ref"]
    row["reward/mean"] = 0.3 + 0.5 * math.sqrt(row["kl/ref_sequence"])


def acceleration(i: int, row: Row) -> None:
    row["kl/ref"] = 0.002 * i + 0.08 * max(i - TURN, 0)
    row["kl/ref_sequence"] = 100 * row["kl/ref"]
    row["reward/mean"] = 0.3 + 0.5 * math.sqrt(row["kl/ref_sequence"])


def doubling(i: int, row: Row) -> None:
    """Twice as far every three iterations, from .05 at the turn to half of the entropy; reward in proportion to sqrt(KL)."""
    row["kl/ref"] = 0.05 * 2 ** min(max(i - TURN, -6) / 3, math.log2(10))
    row["kl/ref_sequence"] = 100 * row["kl/ref"]
    row["reward/mean"] = 0.3 + 0.5 * math.sqrt(row["kl/ref_sequence"])


def price(i: int, row: Row) -> None:
    """A slow way off that buys nothing from the turn on."""
    row["kl/ref"] = 0.004 * i
    row["kl/ref_sequence"] = 100 * row["kl/ref"]
    row["reward/mean"] = 0.3 + 0.5 * math.sqrt(0.4 * min(i, 25))


def tail(i: int, row: Row) -> None:
    row["reward/skewness"] += 3 * ramp(i)
    row["reward/p95"] += 6 * ramp(i)


def sure(i: int, row: Row) -> None:
    row["policy/perplexity"] = math.exp(math.log(row["policy/perplexity"]) * (1 - 0.9 * ramp(i)))


def lost(i: int, row: Row) -> None:
    row["policy/perplexity"] = math.exp(math.log(row["policy/perplexity"]) * (1 + 3 * ramp(i)))


def capped(i: int, row: Row) -> None:
    row["response/truncated"] += 0.8 * ramp(i)


def loops(i: int, row: Row) -> None:
    row["response/repeated_ngram_rate"] += 0.5 * ramp(i)


def unlearned(i: int, row: Row) -> None:
    row["value/explained_variance"] -= 2.5 * ramp(i)


def spike(i: int, row: Row) -> None:
    if i == TURN:
        row["grad_norm/policy"] *= 60


FAULTS: dict[str, tuple[str, Callable[[int, Row], None]]] = {
    "far": ("kl_distance", distance), "accelerating": ("kl_acceleration", acceleration),
    "doubling": ("kl_doubling", doubling), "dear": ("reward_price", price),
    "tail": ("reward_tail", tail), "same scores": ("saturation", scaled("reward/std", 0.1)), "sure": ("perplexity", sure),
    "lost": ("perplexity", lost), "short": ("length_drift", scaled("response/length", 0.2)),
    "long": ("length_drift", scaled("response/length", 4.0)), "capped": ("length_drift", capped),
    "alike": ("diversity", scaled("response/distinct", 0.2)), "few words": ("diversity", scaled("response/distinct_2", 0.2)),
    "loops": ("diversity", loops), "compressible": ("diversity", scaled("response/compression", 0.3)),
    "critic": ("critic", unlearned), "spike": ("spikes", spike),
}  # fmt: skip
SIDE_EFFECTS = {
    "accelerating": {"kl_distance", "kl_doubling"},
    "doubling": {"kl_acceleration"},
    "short": {"reward_price"},
}


def alarms_of(rows: list[Row]) -> list[Alarm]:
    watch = CollapseWatch()
    return [alarm for row in rows for alarm in watch.step(row)]


def with_fault(change: Callable[[int, Row], None], seed: int = 0) -> list[Row]:
    rows = healthy(seed)
    for i, row in enumerate(rows):
        change(i, row)
    return rows


@pytest.mark.parametrize("fault", list(FAULTS))
def test_each_detector_sees_its_own_fault_and_no_other(fault: str) -> None:
    name, change = FAULTS[fault]
    alarms = alarms_of(with_fault(change))
    own = [a for a in alarms if a.detector == name]
    assert own, f"{name} is silent"
    if fault not in ("far", "dear"):  # one is no turn, the other turns sooner
        assert TURN - 8 <= own[0].since <= own[0].iteration <= TURN + 25
    others = {a.detector for a in alarms} - {name} - SIDE_EFFECTS.get(fault, set())
    assert not others, f"{others} fired too"


def test_every_detector_has_a_fault_here() -> None:
    assert {name for name, _ in FAULTS.values()} == {d.name for d in DETECTORS}


def complete(alarm: Alarm) -> str:
    """What an alarm's message lacks of one sentence with all its parts; "" where it has them."""
    text = alarm.message
    if re.search(r"[.!?。]\s|\n", text):
        return "it is more than one sentence"
    found = re.fullmatch(
        r"(.+), since iteration (\d+); usually (.{10,}); against it, details? ([\d, and]+): (.+)", text
    )
    if found is None:
        return "not in the form of a sentence"
    if int(found[2]) != alarm.since:
        return "another beginning"
    if not re.search(r"\b(at|of|from) the start\b|\bstart's\b", found[1]):
        return "nothing compared with the start"
    options = set(re.findall(r"[a-z_]+\.[a-z_]+", found[5]))
    fields = PPOConfig.model_fields
    for option in options:
        section, name = option.split(".")
        if name not in getattr(fields[section].annotation, "model_fields", {}):
            return f"there is no option {option}"
    details = {detail.number: set(detail.options) for detail in DETAILS}
    if idle := [number for number in re.findall(r"\d+", found[4]) if not details[number] & options]:
        return f"no option of detail {idle[0]}"
    return ""


def test_every_message_is_one_sentence_with_all_its_parts() -> None:
    streams = [with_fault(change) for _, change in FAULTS.values()]
    streams.append([{**row, "loss/policy": math.nan if row["iteration"] == 9 else 0.1} for row in healthy(0, 20)])
    streams.append([{**row, "loss/value": math.nan} for row in healthy(0, 20)])
    streams.append([  # numbers of the policy's update begin after critic pre-training
        {k: v for k, v in row.items() if k != "grad_norm/policy"} | {"phase": "critic"} if row["iteration"] < 8 else row
        for row in with_fault(spike)
    ])  # fmt: skip
    far = healthy(0, 110)
    for row in far:
        distance(row["iteration"], row)
        tail(row["iteration"], row)
    streams.append(far)
    found = [alarm for rows in streams for alarm in alarms_of(rows)]
    assert {a.detector for a in found} == {d.name for d in DETECTORS} | {"combined", "not_finite"}
    assert {(a.detector, a.level) for a in found} >= {("kl_distance", "collapse"), ("combined", "collapse")}
    assert {a.message: told for a in found if (told := complete(a))} == {}


def test_messages_by_hand() -> None:
    """What the numbers of two messages should be, worked out from the faults."""
    rows = healthy(0, 60)
    for i, row in enumerate(rows):
        acceleration(i, row)
        row["policy/entropy"] = 1.0
    first = next(a for a in alarms_of(rows) if a.detector == "kl_acceleration")
    # iterations 38 to 47: most pairs lie beyond the turn, where the slope is .082; ten iterations earlier the median of 33 to
    # 37 was .07, after 38 iterations of 48: .082 / (.07 / 38) = 44.5
    assert (first.iteration, first.since) == (47, 36)
    assert first.message.startswith(
        "KL to the reference grows by 0.082 nats a token an iteration (45 times its average rate"
    )
    rows = healthy(0, 60)
    for row in rows:
        row["grad_norm/policy"] = 0.5 if row["iteration"] >= 6 else 0.25
    rows[TURN]["grad_norm/policy"] = 30.0
    told = next(a.message for a in alarms_of(rows) if a.detector == "spikes")
    assert told.startswith(
        "grad_norm/policy is 30, 60 times the median 0.5 of the iterations before (0.25 at the start), since iteration 40;"
    )


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([8.0, 100.0, 2000.0]), st.sampled_from([0.1, 1.0, 3.0]), st.sampled_from([1e-3, 1.0, 50.0])
)  # fmt: skip
def test_noise_is_no_warning_whatever_the_model(seed: int, tokens: float, entropy: float, unit: float) -> None:
    alarms = alarms_of(healthy(seed, tokens=tokens, entropy=entropy, unit=unit))
    assert not [a for a in alarms if a.level != "notice"]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([n for n in FAULTS if n not in SIDE_EFFECTS]))
def test_faults_are_seen_in_any_noise(seed: int, fault: str) -> None:
    name, change = FAULTS[fault]
    assert name in {a.detector for a in alarms_of(with_fault(change, seed))}


def test_two_kinds_of_signs_are_a_collapse() -> None:
    both = with_fault(tail)
    for i, row in enumerate(both):
        row["kl/ref"] += 0.5 * ramp(i)  # to three quarters of the entropy at the start
    found = [a for a in alarms_of(both) if a.level == "collapse"]
    assert [a.detector for a in found] == ["combined"]
    assert "and reward_tail show together, with KL to the reference at 0." in found[0].message
    assert TURN - 8 <= found[0].since <= TURN + 12
    alike = with_fault(sure)  # two of one kind are not
    for i, row in enumerate(alike):
        loops(i, row)
    assert {a.level for a in alarms_of(alike)} == {"warning"}


def test_without_distance_there_is_no_collapse() -> None:
    """A few samples that decide an update, and rewards with a tail, come in runs that hold; where KL is not measured they count."""
    near = with_fault(tail)
    for i, row in enumerate(near):
        sure(i, row)
        row["grad_norm/policy"] *= 60 if i == TURN + 8 else 1
    assert {a.level for a in alarms_of(near)} == {"warning"}
    assert {a.detector for a in alarms_of(near)} >= {"reward_tail", "perplexity", "spikes"}
    unmeasured = [{k: v for k, v in row.items() if k != "kl/ref"} for row in near]
    found = [a for a in alarms_of(unmeasured) if a.level == "collapse"]
    assert [a.detector for a in found] == ["combined"]
    assert "show together, with reward at" in found[0].message


def test_a_policy_beyond_the_entropy_of_the_start_has_collapsed() -> None:
    levels = [(a.level, a.iteration) for a in alarms_of(with_fault(distance)) if a.detector == "kl_distance"]
    assert [level for level, _ in levels] == ["warning"], "0.88 of the entropy at the end"
    rows = healthy(0, 110)
    for i, row in enumerate(rows):
        distance(i, row)
    found = [a for a in alarms_of(rows) if a.level == "collapse"]
    assert [a.detector for a in found] == ["kl_distance"] and 91 <= found[0].iteration <= 97


def test_doubling_by_hand() -> None:
    def runaway(times: float, until: float = 1.0) -> list[Row]:
        rows = healthy(0)
        for i, row in enumerate(rows):
            row |= {"policy/entropy": 1.0, "kl/ref": min(0.05 * 2 ** ((i - TURN) / times), until)}
        return rows

    # .05 doubles three times in nine iterations: .4 at i = 49 is the median of the last three at 50; three in a row at 52
    first = next(a for a in alarms_of(runaway(3)) if a.detector == "kl_doubling")
    assert (first.iteration, first.level, first.since) == (52, "collapse", 48)
    assert first.message.startswith(
        "KL to the reference doubles every 3 iterations and is 0.635 nats a token, 0.63 of the entropy at the start"
    )
    assert not [a for a in alarms_of(runaway(3.6)) if a.detector == "kl_doubling"]  # slower than every 3.5
    assert not [a for a in alarms_of(runaway(3, until=0.39)) if a.detector == "kl_doubling"]
    held = runaway(3, until=0.79)
    for row in held:  # .05 nats of reward a nat: reward has risen by .1 a nat, so half of it is paid
        row |= {"kl/coef": 0.05, "kl/ref_sequence": row["kl/ref"], "reward/mean": 0.1 * row["kl/ref"]}
    assert not [a for a in alarms_of(held) if a.detector == "kl_doubling"], "twice as far where a penalty is in force"


@pytest.mark.parametrize(
    ("coef", "levels"),
    [
        # at i = 61 (two thirds of the entropy) 67 nats have bought .5 * sqrt(67) - .5 * sqrt(2.75) = 3.27: they cost 20.5 coef
        # of it; at 91 (all of it) 100 nats have bought 4.17: 24 coef
        (0.0, ["warning", "collapse"]),
        (0.003, ["warning", "collapse"]),  # .06 and .07: nothing holds it
        (0.02, []),  # .41 and .48: it is held, and may go twice as far
        (0.1, ["warning", "collapse"]),  # 2 and more: it was not held
    ],
)
def test_a_penalty_in_force_lets_it_go_further(coef: float, levels: list[str]) -> None:
    rows = healthy(0, 110)
    for i, row in enumerate(rows):
        distance(i, row)
        row["kl/coef"] = coef
    assert [a.level for a in alarms_of(rows) if a.detector == "kl_distance"] == levels


@pytest.mark.parametrize(
    ("unit", "levels"), [(0.2, []), (0.01, ["warning", "collapse"]), (1.0, ["warning", "collapse"])]
)
def test_a_penalty_is_in_force_by_its_price(unit: float, levels: list[str]) -> None:
    """The coefficient of a run whose rewards are divided by their std, ``unit``: .1 * .2 is the .02 of above."""
    rows = healthy(0, 110)
    for i, row in enumerate(rows):
        distance(i, row)
        row |= {"kl/coef": 0.1, "kl/price": 0.1 * unit}
    assert [a.level for a in alarms_of(rows) if a.detector == "kl_distance"] == levels


def test_a_penalty_in_force_has_limits_too() -> None:
    rows = healthy(0, 110)
    for i, row in enumerate(rows):
        distance(2 * i, row)
        row["kl/coef"] = 0.02
    found = [(a.level, a.iteration) for a in alarms_of(rows) if a.detector == "kl_distance"]
    assert [level for level, _ in found] == ["warning", "collapse"]
    assert 61 <= found[0][1] <= 67 and 91 <= found[1][1] <= 97, "four thirds of the entropy, and twice the entropy"


def test_under_a_penalty_in_force_the_price_falls_in_any_case() -> None:
    """Nothing but distance comes after iteration 25: by 40, 16 nats have bought .5 * sqrt(10) - .5 = 1.08, and cost 15 coef of it."""
    for coef, told in ((0.0, True), (0.003, True), (0.02, False)):
        rows = with_fault(price)
        for row in rows:
            row["kl/coef"] = coef
        assert any(a.detector == "reward_price" for a in alarms_of(rows)) is told


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_not_finite(value: float | None) -> None:
    rows = healthy(0, 20)
    for row in rows[7:9]:
        row["loss/value"] = value
    found = alarms_of(rows)
    assert [(a.iteration, a.level, a.detector) for a in found] == [(7, "collapse", "not_finite")], "told once"
    start = median(row["loss/value"] for row in rows[:6])
    wanted = f"loss/value not finite, unlike at the start (loss/value {start:.3g} then), since iteration 7; usually"
    assert found[0].message.startswith(wanted)


def test_null_is_a_nan_only_where_there_always_is_a_number() -> None:
    rows = healthy(0, 20)
    rows[7]["eval/loss"] = None
    assert alarms_of(rows) == [], "not measured that time"
    rows[8]["eval/loss"] = math.nan
    assert [a.detector for a in alarms_of(rows)] == ["not_finite"]


@pytest.mark.parametrize("stride", [2, 3, 10])
@pytest.mark.parametrize("fault", ["accelerating", "loops", "capped"])
def test_a_stream_may_leave_iterations_out(stride: int, fault: str) -> None:
    rows = with_fault(FAULTS[fault][1])
    thin = [{**row, "iteration": stride * row["iteration"]} for row in rows]
    found = [(a.iteration // stride, a.since // stride, a.detector, a.level) for a in alarms_of(thin)]
    assert found == [(a.iteration, a.since, a.detector, a.level) for a in alarms_of(rows)] != []


@pytest.mark.parametrize("phase", [None, "train", "Policy"])
def test_a_phase_by_another_name_is_the_policys(phase: str | None) -> None:
    rows = with_fault(FAULTS["loops"][1])
    assert alarms_of([{**row, "phase": phase} for row in rows]) == alarms_of(rows) != []


def test_streams_with_little_in_them() -> None:
    assert alarms_of([{"iteration": i} for i in range(50)]) == []
    flat = healthy(0)
    for row in flat:
        row.update({k: 0.0 for k in row if "/" in k})
    assert alarms_of(flat) == []
    assert alarms_of([dict(row, phase="critic") for row in healthy(0)]) == []


def test_told_once_and_again_after_a_pause() -> None:
    rows = healthy(0, 120)
    for row in (*rows[40:50], *rows[50 + 3 * MEMORY : 60 + 3 * MEMORY]):
        row["response/truncated"] = 0.9
    found = alarms_of(rows)
    assert [a.detector for a in found] == ["length_drift"] * 2
    assert 40 <= found[0].iteration < 50 and 80 <= found[1].iteration < 90


@pytest.mark.parametrize("fault", ["accelerating", "dear", "loops"])
def test_state_survives_a_checkpoint(fault: str) -> None:
    rows = with_fault(FAULTS[fault][1])
    whole = alarms_of(rows)
    assert whole == alarms_of(rows), "deterministic"
    for cut in (3, TURN, TURN + 9, TURN + 16):
        first, second = CollapseWatch(), CollapseWatch()
        alarms = [a for row in rows[:cut] for a in first.step(row)]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        alarms += [a for row in rows[cut:] for a in second.step(row)]
        assert alarms == whole


def test_after_a_rollback_nothing_is_remembered_of_what_was_given_up() -> None:
    rows = with_fault(acceleration)
    watch = CollapseWatch()
    for row in rows[:60]:
        watch.step(row)
    assert watch.healthy_until < 60 and watch.level == "collapse"
    watch.forget_after(30)
    fresh = CollapseWatch()
    for row in rows[:30]:
        fresh.step(row)
    assert watch.state_dict() == fresh.state_dict() and watch.healthy_until == math.inf


def test_iterations_are_counted_right_after_a_rollback_further_than_is_remembered() -> None:
    """KL that rises at one constant rate accelerates nowhere: not after a rollback from 150 to the start either."""
    rows = [{**row, "kl/ref": 0.002 * i, "kl/ref_sequence": 0.2 * i} for i, row in enumerate(healthy(3, 260))]
    for back in (0, 70):
        watch = CollapseWatch()
        for row in rows[:150]:
            watch.step(row)
        watch.forget_after(back)
        assert watch.history.policy_iterations == back
        after = [{**row, "iteration": 150 + i} for i, row in enumerate(rows[back:250])]
        told = [a for row in after for a in watch.step(row)]
        assert not [a for a in told if a.detector == "kl_acceleration"]


def test_after_an_early_rollback_the_baseline_is_of_the_weights_that_stayed() -> None:
    rows = healthy(4, 120)
    bad = [{**row, "kl/ref": 9.0, "policy/perplexity": 900.0, "response/length": 1.0} for row in rows[:4]]
    watch = CollapseWatch()
    told = [a for row in bad for a in watch.step(row)]
    watch.forget_after(0)
    told += [a for row in rows[4:] for a in watch.step(row)]
    assert watch.history.first[0]["iteration"] == 4 and told == []
    watch.forget_after(7)  # its numbers 4 to 6 stay
    assert [row["iteration"] for row in watch.history.first] == [4, 5, 6]


@pytest.mark.parametrize("both", [False, True])
def test_rounding_of_a_ratio_of_one_is_no_spike(both: bool) -> None:
    """One update an iteration: ratios are 1 but for rounding, medians 0. No division by 0, and nothing to tell."""
    rows = healthy(5)
    for i, row in enumerate(rows):
        row["policy/ratio_deviation"] = 1e-8 * (i % 13 == 12)
        row["policy/approx_kl"] = 2.5e-15 * (i % 13 == 12) if both else row["policy/approx_kl"]
    assert not [a for a in alarms_of(rows) if a.detector == "spikes"]
    rows[60]["policy/ratio_deviation"] = 0.5
    assert [a.iteration for a in alarms_of(rows) if a.detector == "spikes"] == [60]


def test_scan_reads_a_run(tmp_path: Path) -> None:
    rows = with_fault(tail)
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert scan(file) == scan(tmp_path) == alarms_of(rows) != []
    with pytest.raises(UserError, match=r"no such file; name a run directory"):
        scan(tmp_path / "other")
    kept = file.read_text(encoding="utf-8")
    file.write_text(kept + '{"iter', encoding="utf-8")
    assert scan(file) == alarms_of(rows), "a kill may leave half a line"
    file.write_bytes(kept.encode() + '{"text": "字'.encode()[:-1])
    assert scan(file) == alarms_of(rows), "or half a letter"
    file.write_text(kept.rstrip("\n"), encoding="utf-8")
    assert scan(file) == alarms_of(rows)
    file.write_text(f"\n{kept}  \n", encoding="utf-8-sig")
    assert scan(file) == alarms_of(rows), "a byte order mark and blank lines say nothing"
    file.write_text(kept.replace("}", f', "n": {10**400}}}', 1), encoding="utf-8")
    assert scan(file) == alarms_of(rows)
    for whole in (json.dumps(rows), "[" * 100_000):  # neither is a line that a kill has cut
        file.write_text(whole, encoding="utf-8")
        with pytest.raises(UserError, match=r"metrics.jsonl:1: not a line"):
            scan(file)
    file.write_text('{"iteration": 1}\n{"iter\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics.jsonl:2: not a line of metrics"):
        scan(file)
    file.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics.jsonl:1: not a line"):
        scan(file)


def test_scan_forgets_what_a_rollback_gave_up(tmp_path: Path) -> None:
    rows = with_fault(tail)
    watch, told = CollapseWatch(), []
    for row in rows:
        told += watch.step(row)
        if row["iteration"] == rows[-3]["iteration"]:
            watch.forget_after(20)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    alarms = [a.as_dict() for a in told]
    alarms.append(
        {"iteration": rows[-3]["iteration"], "level": "notice", "detector": "rollback", "since": 20, "message": ""}
    )
    lines = [json.dumps(alarm) for alarm in alarms] + ["[1]", "{"]
    (tmp_path / "alarms.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert scan(tmp_path) == told


def test_robust_statistics_by_hand() -> None:
    assert spread([1, 2, 3, 4, 100]) == pytest.approx(1.4826 * 1)
    assert theil_sen([0, 1, 2, 50, 4]) == pytest.approx(1)  # slopes 1, 1, 1, then the outlier's, of ten
    assert theil_sen([0, 4], [1, 3]) == 2 and theil_sen([5]) == 0 and theil_sen([1, 2], [3, 3]) == 0
    assert noise([0, 1, 2, 3]) == pytest.approx(1.4826 / math.sqrt(2)) and noise([1, 2]) == 0
