"""Every outcome of every rule, on curves whose numbers are worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab_results import made, part, seeds

from ppomax.errors import UserError
from ppomax.lab.claims import Arm, Claim, FastArms, Rule
from ppomax.lab.verdicts import NOT, OPEN, REPRODUCED, RULES, UNRUN, Verdict, check_rule, named_arms, only, verdict

UP = [0.5, 0.6, 0.7, 0.7, 0.7, 0.7]
FALLS = [0.5, 0.6, 0.7, 0.4, 0.3, 0.2]
FLAT = [0.5] * 6
COLLAPSE = {
    "arm": "v", "rise": 1.0, "peak": 0.5, "end": 0.45, "share": 0.8, "steady": "m", "steady_win_rate": 0.6, "beside": ["u"],
}  # fmt: skip
GAIN = [0.0, 1.0, 1.0, 2.0, 2.0, 2.0]
"""ends at 2, one standard deviation of SFT's rewards"""


def apply(rule: str, thresholds: dict[str, Any], **arms: dict[int, Any]) -> tuple[str, Verdict]:
    out = Verdict()
    outcome, why = RULES[rule](arms, thresholds, out)
    assert why
    return outcome, out


def mixed(*curves: list[float], **options: Any) -> dict[int, Any]:
    return {i + 1: made(i + 1, c, **options) for i, c in enumerate(curves)}


class TestCollapse:
    def test_reproduced(self) -> None:
        outcome, out = apply("collapse", COLLAPSE, v=seeds(5, FALLS, reward=GAIN), m=seeds(5, UP))
        assert outcome == REPRODUCED
        assert ("v: seeds that collapse", "5 of 5") in out.numbers

    def test_four_of_five_are_enough_and_three_are_not(self) -> None:
        four = mixed(FALLS, FALLS, FALLS, FALLS, FLAT, reward=GAIN)
        three = mixed(FALLS, FALLS, FALLS, FLAT, FLAT, reward=GAIN)
        assert apply("collapse", COLLAPSE, v=four, m=seeds(5, UP))[0] == REPRODUCED
        assert apply("collapse", COLLAPSE, v=three, m=seeds(5, UP))[0] == NOT

    def test_without_a_rise_of_the_proxy_it_is_no_collapse(self) -> None:
        less = [x * 0.99 for x in GAIN]
        assert apply("collapse", COLLAPSE, v=seeds(5, FALLS, reward=less), m=seeds(5, UP))[0] == NOT

    def test_a_control_that_diverged_does_not_win(self) -> None:
        broken = {"diverged": {"told": "loss/policy not finite", "policy_iterations": 3}, "iterations": 20}
        whole, ended = seeds(5, UP, last=0.65), seeds(5, UP, last=0.65, header=broken)
        bad = seeds(5, [0.5, 0.6, 0.6, 0.6, 0.4, 0.3, 0.2], reward=[*GAIN, 2.0])
        assert apply("collapse", COLLAPSE, v=bad, m=whole)[0] == REPRODUCED
        assert apply("collapse", COLLAPSE, v=bad, m=ended)[0] == NOT

    def test_without_a_peak_it_is_no_collapse(self) -> None:
        down = [0.5, 0.45, 0.4, 0.3, 0.3, 0.3]
        assert apply("collapse", COLLAPSE, v=seeds(5, down, reward=GAIN), m=seeds(5, UP))[0] == NOT

    def test_ppo_max_must_win(self) -> None:
        m = seeds(5, UP, last=0.599)
        assert apply("collapse", COLLAPSE, v=seeds(5, FALLS, reward=GAIN), m=m)[0] == NOT

    def test_alone(self) -> None:
        alone = {**COLLAPSE, "steady": None, "share": 0.66}
        assert apply("collapse", alone, v=mixed(FALLS, FALLS, FLAT, reward=GAIN))[0] == REPRODUCED  # 2 of 3
        assert apply("collapse", alone, v=mixed(FALLS, FLAT, FLAT, reward=GAIN))[0] == NOT


CHAINS = {"chains": [["v", "a", "b"]], "drop": 0.1, "gain": 0.2}
LATER = [0.5, 0.6, 0.7, 0.7, 0.4, 0.2]


class TestDelay:
    def test_in_order(self) -> None:
        # smoothed FALLS: .5 .6 .567 .467 .3 .25: from update 30 on it is .1 below .6, which is .6 of the run
        # smoothed LATER: .5 .6 .667 .6 .433 .3: from update 40 on, .8 of the run; UP never: 1
        outcome, out = apply("delay", CHAINS, v=seeds(3, FALLS), a=seeds(3, LATER), b=seeds(3, UP))
        assert outcome == REPRODUCED
        values = dict(out.numbers)
        assert values["v: falls at this share of the run"].startswith("0.6 ")
        assert values["a: falls at this share of the run"].startswith("0.8 ")
        assert values["b less v"].startswith("0.4 ")

    def test_no_later(self) -> None:
        assert apply("delay", CHAINS, v=seeds(3, FALLS), a=seeds(3, UP), b=seeds(3, FALLS))[0] == NOT

    def test_out_of_order(self) -> None:
        assert apply("delay", CHAINS, v=seeds(3, FALLS), a=seeds(3, UP), b=seeds(3, LATER))[0] == OPEN

    def test_neither_clip_falls(self) -> None:
        assert apply("delay", CHAINS, v=seeds(3, FALLS), a=seeds(3, UP), b=seeds(3, UP))[0] == OPEN

    def test_one_that_diverged_falls_there(self) -> None:
        # a run of 20 iterations that ended at its fourth evaluation: UP until then, so the fall is at 3 / 20 of the run
        broken = {"diverged": {"told": "loss/policy not finite", "policy_iterations": 3}, "iterations": 20}
        outcome, out = apply("delay", CHAINS, v=seeds(3, FALLS), a=seeds(3, LATER), b=seeds(3, UP[:4], header=broken))
        assert outcome == NOT
        assert dict(out.numbers)["b: falls at this share of the run"].startswith("0.15 ")

    def test_nothing_to_delay(self) -> None:
        assert apply("delay", CHAINS, v=seeds(3, UP), a=seeds(3, UP), b=seeds(3, UP))[0] == OPEN


def test_one_that_diverged_does_not_last() -> None:
    limits = {"arm": "v", "within": 0.05, "alive": 0.5}
    assert apply("lasting", limits, v=seeds(2, UP))[0] == REPRODUCED
    broken = {"diverged": {"told": "loss/policy not finite", "policy_iterations": 3}, "iterations": 20}
    assert apply("lasting", limits, v=seeds(2, UP[:4], header=broken))[0] == NOT


ETAS = {"control": "v", "arms": ["a", "b"], "hold": 0.05, "share": 0.66}


def drifting(curve: list[float], k3: float, proxy: float, count: int = 3) -> dict[int, Any]:
    spread = {s: k3 + 0.01 * s for s in range(1, count + 1)}
    return {s: made(s, curve, reward=[proxy] * 6, evals={"eval/kl_k3": [x] * 6}) for s, x in spread.items()}


class TestStability:
    def test_reproduced(self) -> None:
        arms = {"v": drifting(FALLS, 9, 3), "a": drifting(UP, 2, 2), "b": drifting(UP, 1, 1)}
        assert apply("stability", ETAS, **arms)[0] == REPRODUCED

    def test_the_largest_eta_collapses(self) -> None:
        arms = {"v": drifting(FALLS, 9, 3), "a": drifting(UP, 2, 2), "b": drifting(FALLS, 1, 1)}
        assert apply("stability", ETAS, **arms)[0] == NOT

    def test_drift_does_not_fall(self) -> None:
        arms = {"v": drifting(FALLS, 9, 3), "a": drifting(UP, 1, 2), "b": drifting(UP, 2, 1)}
        assert apply("stability", ETAS, **arms)[0] == NOT

    def test_vanilla_holds_too(self) -> None:
        arms = {"v": drifting(UP, 9, 3), "a": drifting(UP, 2, 2), "b": drifting(UP, 1, 1)}
        assert apply("stability", ETAS, **arms)[0] == OPEN


MILD = {
    "arm": "a", "control": "v", "with_kl": "k", "kl": "e", "margin": 0.05, "harm": 0.1, "alive": 0.5, "dead": 0.45,
}  # fmt: skip


@pytest.mark.parametrize(
    ("best", "last", "outcome"),
    [(0.66, 0.55, REPRODUCED), (0.58, 0.55, NOT), (0.66, 0.44, NOT), (0.62, 0.55, OPEN), (0.66, 0.47, OPEN)],
)
def test_mild(best: float, last: float, outcome: str) -> None:
    def flat(x: float) -> list[float]:
        return [0.5, x, x, x, x, x]

    arms = {"v": seeds(3, flat(0.7)), "a": seeds(3, flat(best)), "k": seeds(3, FLAT, last=last), "e": seeds(3, UP)}
    assert apply("mild", MILD, **arms)[0] == outcome


@pytest.mark.parametrize(("end", "outcome"), [(0.55, REPRODUCED), (0.66, NOT), (0.62, OPEN)])
def test_sensitive(end: float, outcome: str) -> None:
    thresholds = {"without": "v", "settings": ["a", "b"], "differ": 0.1, "flat": 0.05}
    low = {s: made(s, [end + 0.001 * s] * 6) for s in (1, 2, 3)}
    assert apply("sensitive", thresholds, v=seeds(3, FLAT), a=seeds(3, [0.7] * 6), b=low)[0] == outcome


START = {
    "rm": "m", "sft": "s", "unprepared": "u", "pretrained": "p", "warmed": "v", "early": 0.1, "same": 0.05, "differ": 0.1,
    "calmer": 0.8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("sft", "loss", "best", "outcome"),
    [
        (0.66, 0.4, 0.6, REPRODUCED), (0.59, 0.4, 0.6, NOT), (0.66, 1.1, 0.6, NOT), (0.66, 0.4, 0.49, NOT),
        (0.64, 0.4, 0.6, OPEN), (0.66, 0.9, 0.6, OPEN), (0.66, 0.4, 0.53, OPEN),
    ],
)  # fmt: skip
def test_critic_start(sft: float, loss: float, best: float, outcome: str) -> None:
    def losses(first: float) -> dict[str, list[float]]:
        return {"loss/value": [first, *[0.1] * 19]}  # updates 10, ..., 200: the first tenth is the first two lines

    arms = {
        "m": seeds(3, UP, metrics=losses(2 * loss - 0.1)), "u": seeds(3, UP, metrics=losses(1.9)),  # means loss and 1
        "s": seeds(3, UP, last=sft), "p": seeds(3, [best] * 6), "v": seeds(3, [0.6] * 6),
    }  # fmt: skip
    found, out = apply("critic_start", START, **arms)
    assert found == outcome
    assert dict(out.numbers)["early value loss, m over u"].startswith(f"{loss:.3g} ")


@pytest.mark.parametrize(
    ("judge", "proxy", "outcome"), [(0.2, -2.0, REPRODUCED), (0.2, 0.1, OPEN), (0.3, -2.0, OPEN), (0.41, -9.0, NOT)]
)
def test_failure(judge: float, proxy: float, outcome: str) -> None:
    thresholds = {"arm": "a", "control": "m", "ratio": 0.5, "alive": 0.8, "below": 1.0}
    arm = seeds(3, FLAT, reward=[proxy] * 6, evals={"eval/judge": [judge] * 6})
    assert apply("failure", thresholds, a=arm, m=seeds(3, UP))[0] == outcome  # control: judge .5, proxy 0, std 2


class TestLittleEffect:
    thresholds: ClassVar[dict[str, Any]] = {
        "groups": [["v", "a"]], "stands": "k", "same": 0.05, "differ": 0.1, "shift": 0.25, "drop": 0.1, "hold": 0.05,
    }  # fmt: skip

    def test_alike(self) -> None:
        arms = {"v": seeds(3, FALLS), "a": seeds(3, FALLS), "k": seeds(3, UP)}
        outcome, out = apply("little_effect", self.thresholds, **arms)
        assert outcome == REPRODUCED
        assert ("k: seeds that hold", "3 of 3") in out.numbers

    def test_a_higher_peak(self) -> None:
        high = {s: made(s, [0.5, *[0.8 + 0.001 * s] * 5]) for s in (1, 2, 3)}
        assert apply("little_effect", self.thresholds, v=seeds(3, FALLS), a=high, k=seeds(3, UP))[0] == NOT

    def test_a_later_fall(self) -> None:
        late = seeds(3, [0.5, 0.6, 0.6, 0.6, 0.6, 0.6])  # the same best, and it never falls
        assert apply("little_effect", self.thresholds, v=seeds(3, FALLS), a=late, k=seeds(3, UP))[0] == OPEN


@pytest.mark.parametrize(
    ("td", "norm", "good", "outcome"),
    [
        (0.6, 2.0, UP, REPRODUCED),
        (0.7, 2.0, UP, NOT),
        (0.6, 1.0, UP, NOT),
        (0.6, 1.3, UP, OPEN),
        (0.1, 2.0, FALLS, OPEN),
    ],
)
def test_gae_lambda(td: float, norm: float, good: list[float], outcome: str) -> None:
    thresholds = {"good": "m", "td": "t", "mc": "c", "worse": 0.05, "noise": 1.5, "hold": 0.05}
    arms = {
        "m": seeds(3, good, metrics={"grad_norm/policy": [1.0, 1.0]}), "t": seeds(3, UP, last=td),
        "c": seeds(3, UP, metrics={"grad_norm/policy": [norm, norm]}),
    }  # fmt: skip
    assert apply("gae_lambda", thresholds, **arms)[0] == outcome


@pytest.mark.parametrize(
    ("one", "two", "outcome"),
    [(UP, UP, REPRODUCED), (UP, FALLS, OPEN), (FALLS, FALLS, NOT), ([0.4] * 6, [0.4] * 6, NOT)],
)
def test_lasting(one: list[float], two: list[float], outcome: str) -> None:
    assert apply("lasting", {"arm": "m", "within": 0.05, "alive": 0.5}, m=mixed(one, two))[0] == outcome


@pytest.mark.parametrize(
    ("sft", "plain", "mix", "outcome"),
    [(0.6, 0.5, 0.56, REPRODUCED), (0.6, 0.5, 0.5, NOT), (0.6, 0.5, 0.53, OPEN), (0.505, 0.5, 0.6, OPEN)],
)
def test_tax(sft: float, plain: float, mix: float, outcome: str) -> None:
    def arm(points: float) -> dict[int, Any]:
        return seeds(5, UP, endpoint={"exam": {"policy": {"all": points}, "sft": {"all": sft}}})

    thresholds = {"without": "m", "mixed": "x", "tax": 0.01, "back": 0.5}
    assert apply("tax", thresholds, m=arm(plain), x=arm(mix))[0] == outcome


def test_conflict() -> None:
    thresholds = {"survive": ["a", "b"], "suffer": ["c", "d"], "drop": 0.1, "gain": 0.15}
    up, late, falls = seeds(3, UP), seeds(3, LATER), seeds(3, FALLS)  # fall at 1, .8 and .6 of the run
    assert apply("conflict", thresholds, a=up, b=up, c=late, d=falls)[0] == REPRODUCED
    assert apply("conflict", thresholds, a=falls, b=falls, c=late, d=falls)[0] == NOT
    assert apply("conflict", thresholds, a=up, b=late, c=late, d=falls)[0] == OPEN
    assert apply("conflict", thresholds, a=up, b=up, c=up, d=up)[0] == OPEN, "none falls"
    _, out = apply("conflict", {**thresholds, "beside": ["e", "f"]}, a=late, b=late, c=falls, d=falls, e=falls)
    assert dict(out.numbers)["e: falls at this share of the run"].startswith("0.")


@pytest.mark.parametrize(
    ("accuracy", "last", "outcome"), [(0.72, 0.6, REPRODUCED), (0.72, 0.7, NOT), (0.69, 0.6, OPEN), (0.72, 0.67, OPEN)]
)
def test_early_model(accuracy: float, last: float, outcome: str) -> None:
    def arm(value: float, rate: float) -> dict[int, Any]:
        start = {"reward-0123abcd": {"accuracy": value}, "reward_second-0123abcd": {"accuracy": 0.1}}
        return seeds(3, UP, last=rate, header={"start": start})

    thresholds = {"late": "m", "early": "e", "accuracy": 0.05, "harm": 0.05}
    assert apply("early_model", thresholds, m=arm(0.75, 0.7), e=arm(accuracy, last))[0] == outcome


@pytest.mark.parametrize(
    ("rate", "harmful", "agree", "outcome"),
    [
        (0.6, 0.8, 0.7, REPRODUCED),
        (0.5, 0.8, 0.7, NOT),
        (0.6, 0.6, 0.7, NOT),
        (0.6, 0.8, 0.5, NOT),
        (0.6, 0.8, 0.6, OPEN),
    ],
)
def test_beats(rate: float, harmful: float, agree: float, outcome: str) -> None:
    categories = {"helpful": part(0.6), "harmful": part(harmful), "unanswerable": part(0.6)}
    endpoint = {
        "same_temperature": {**part(rate), "by_category": categories}, "second_judge": {"agree": agree, "win_rate": 0.6},
    }  # fmt: skip
    thresholds = {"arm": "m", "by": "harmful", "than": "helpful", "agree": 0.65, "disagree": 0.55, "beside": ["z"]}
    z = seeds(2, UP, last=0.1, endpoint={"second_judge": {"agree": 0.25, "win_rate": 0.9}})
    outcome_found, out = apply("beats", thresholds, m=seeds(5, UP, endpoint=endpoint), z=z)
    assert outcome_found == outcome
    assert ("z: second judge agrees where the truth is decided", "0.25 [0.25, 0.25]") in out.numbers
    assert ("z: win rate by the second judge", "0.9 [0.9, 0.9]") in out.numbers
    assert ("m: helpful, win/tie/lose, %", "60/0/40") in out.numbers


@pytest.mark.parametrize(("policy", "outcome"), [(0.65, REPRODUCED), (0.7, NOT), (0.68, OPEN)])
def test_loses_less(policy: float, outcome: str) -> None:
    def against(lose: float) -> dict[str, Any]:
        return {
            "lose": lose,
            "by_category": {"helpful": {"lose": lose}, "harmful": {"lose": 0.1}, "unanswerable": {"lose": 0}},
        }

    endpoint = {"opponent": {"policy": against(policy), "sft": against(0.7)}}
    thresholds = {"arm": "m", "less": 0.03, "beside": []}
    found, out = apply("loses_less", thresholds, m=seeds(5, UP, endpoint=endpoint))
    assert found == outcome
    numbers = {what: value.split(" ")[0] for what, value in out.numbers}
    assert float(numbers["m: SFT less policy, helpful prompts"]) == pytest.approx(0.7 - policy, abs=1e-9)
    assert numbers["m: SFT less policy, harmful prompts"] == "0"


@pytest.mark.parametrize(
    ("one", "two", "outcome"), [(0.6, 0.56, REPRODUCED), (0.6, 0.5, NOT), (0.6, 0.53, OPEN)]
)  # fmt: skip
def test_serves(one: float, two: float, outcome: str) -> None:
    arms = {"m": seeds(3, UP), "a": seeds(3, UP, last=one), "b": seeds(3, UP, last=two)}
    assert apply("serves", {"own": "m", "others": ["a", "b"], "alive": 0.55}, **arms)[0] == outcome


def test_differences_of_shares_are_told_in_points() -> None:
    def why(rule: str, thresholds: dict[str, Any], **arms: dict[int, Any]) -> str:
        return RULES[rule](arms, thresholds, Verdict())[1]

    def last(rate: float, **endpoint: Any) -> dict[int, Any]:
        return seeds(2, [0.5, *[rate] * 5], last=rate, endpoint=endpoint)

    exam = {"exam": {"policy": {"all": 0.5}, "sft": {"all": 0.6}}, "second_judge": {"agree": 0.7, "win_rate": 0.6}}
    loses = {"lose": 0.5, "by_category": {c: {"lose": 0.5} for c in ("helpful", "harmful", "unanswerable")}}
    opponent = {"policy": loses, "sft": {**loses, "lose": 0.64}}
    assert why(
        "tax", {"without": "m", "mixed": "x", "tax": 0.01, "back": 0.5}, m=last(0.6, **exam), x=last(0.6, **exam)
    ) == ("PPO lost 10.0 points of the exam, ptx won back 0.0 points")
    assert why("loses_less", {"arm": "m", "less": 0.03}, m=last(0.6, opponent=opponent)) == (
        "loses 14.0 points less often than SFT (50.0% against 64.0%)"
    )
    assert why("mild", MILD, v=last(0.7), a=last(0.66), k=last(0.55), e=last(0.6)) == (
        "best -4.0 points against v; with the KL penalty it ends at 55.0%"
    )
    limits = {"arm": "m", "by": "harmful", "than": "helpful", "agree": 0.65, "disagree": 0.55}
    assert "are 0.0 points more on harmful than on helpful prompts" in why("beats", limits, m=last(0.6, **exam))


# ------------------------------------------------------------------------------ what is not finite


def broken(arm: dict[int, Any], seed: int, name: str, place: int = -1) -> dict[int, Any]:
    """The number is null in one evaluation of one seed."""
    arm[seed].evaluations[place][name] = None
    return arm


def test_a_seed_whose_deciding_number_is_not_finite_does_not_count() -> None:
    arms = {"v": broken(seeds(5, FALLS, reward=GAIN), 2, "eval/win_rate"), "m": seeds(5, UP)}
    found = verdict(claim(), arms)
    assert (found.outcome, found.seeds) == (OPEN, [1, 3, 4, 5]), "an earlier evaluation is not taken for the end"
    assert found.why.startswith("4 of 5 seeds; so far reproduced: 4 of 4 seeds of v collapse")
    assert found.why.endswith("seed 2 is left out: no finite eval/win_rate of v")
    one = {"v": broken({1: made(1, FALLS, reward=GAIN)}, 1, "eval/reward"), "m": seeds(1, UP)}
    found = verdict(claim(), one)
    assert (found.outcome, found.seeds) == (OPEN, [])
    assert found.why == "0 of 5 seeds; seed 1 is left out: no finite eval/reward of v"


def test_the_last_evaluation_may_hold_null() -> None:
    arms = {"v": seeds(5, FALLS, reward=GAIN), "m": seeds(5, UP)}
    arms["m"][4].endpoint["same_temperature"]["win_rate"] = None
    found = verdict(claim(), arms)
    assert found.seeds == [1, 2, 3, 5]
    assert found.why.endswith("seed 4 is left out: no finite same_temperature/win_rate in the last evaluation of m")


def test_what_is_only_reported_does_not_cost_a_seed() -> None:
    arms = {
        "v": seeds(5, FALLS, reward=GAIN),
        "m": seeds(5, UP),
        "u": broken(seeds(5, FALLS, reward=GAIN), 1, "eval/win_rate"),
    }
    arms["m"][4].endpoint["both_greedy"]["win_rate"] = float("nan")
    found = verdict(claim(), arms)
    assert (found.outcome, found.seeds) == (REPRODUCED, [1, 2, 3, 4, 5])
    values = dict(found.numbers)
    assert values["u: seeds that collapse"] == "4 of 4, 1 not finite"
    assert values["u: win rate at the end"].endswith("(4 of 5 seeds finite)")
    assert values["m: the same, both greedy"].endswith("(4 of 5 seeds finite)")


# --------------------------------------------------------------------------------------- around a rule


def claim(**thresholds: Any) -> Claim:
    arms = {name: Arm(base="vanilla") for name in ("v", "m", "u")}
    rule = Rule(words="w", function="collapse", seeds=5, thresholds={**COLLAPSE, **thresholds})
    return Claim(claim="c", figure="4", arms=arms, rule=rule)


def test_seeds_that_count_have_all_arms() -> None:
    found = verdict(claim(), {"v": seeds(5, FALLS, reward=GAIN), "m": seeds(5, UP), "u": seeds(1, UP)})
    assert (found.outcome, found.seeds) == (REPRODUCED, [1, 2, 3, 4, 5])
    found = verdict(claim(), {"v": seeds(5, FALLS, reward=GAIN), "m": seeds(4, UP)})
    assert found.outcome == OPEN
    assert found.why.startswith("4 of 5 seeds; so far reproduced")


def test_no_run_and_no_common_seed() -> None:
    assert verdict(claim(), {}).outcome == UNRUN
    found = verdict(claim(), {"v": seeds(2, FALLS)})
    assert (found.outcome, found.why) == (OPEN, "0 of 5 seeds: no run yet of m")


def test_fast_verdicts_say_so() -> None:
    found = verdict(claim(), {"v": seeds(1, FALLS, reward=GAIN), "m": seeds(1, UP)}, apart="fast")
    assert found.outcome == "fast: 1 seed: reproduced"


def test_fast_verdicts_take_the_arms_that_are_run() -> None:
    assert only({"chains": [["v", "a", "b"], ["v", "c"]], "drop": 0.1, "arm": "v"}, ["a", "c"]) == {
        "chains": [["v", "b"], ["v"]], "drop": 0.1, "arm": "v",
    }  # fmt: skip
    arms = {name: Arm(base="vanilla") for name in "vab"}
    chain = Claim(
        claim="c", figure="6", arms=arms, rule=Rule(words="w", function="delay", thresholds=CHAINS),
        fast=FastArms(arms=["v", "b"]),
    )  # fmt: skip
    runs = {"v": seeds(1, FALLS), "b": seeds(1, UP)}
    assert verdict(chain, runs, apart="fast").outcome == "fast: 1 seed: reproduced"
    assert verdict(chain, runs).why.endswith("no run yet of a"), "a verdict that counts needs all"


def test_a_missing_threshold_is_named() -> None:
    broken = claim()
    del broken.rule.thresholds["rise"]
    with pytest.raises(UserError, match=r"rule collapse: .*'rise' is missing"):
        verdict(broken, {"v": seeds(5, FALLS), "m": seeds(5, UP)})


def test_rules_are_checked_before_anything_runs() -> None:
    check_rule("C1", claim())
    with pytest.raises(UserError, match="names an arm 'x', which"):
        check_rule("C1", claim(steady="x"))
    with pytest.raises(UserError, match="names an arm 'x', which"):
        check_rule("C1", claim(beside=["x"]))
    other = claim().model_copy(update={"rule": Rule(words="w", function="colapse")})
    with pytest.raises(UserError, match="'colapse': choose from collapse"):
        check_rule("C1", other)


def test_named_arms() -> None:
    assert named_arms({"a": "x", "b": [["y", "z"]], "c": 1.0, "d": None, "beside": ["u"], "by": "harmful"}) == [
        "x",
        "y",
        "z",
    ]


def test_what_a_given_start_does_not_have() -> None:
    words = {"words": "w", "function": "serves", "seeds": 1}
    limits = {"own": "v", "others": ["a", "b"], "alive": 0.55}
    claim = Claim(claim="c", figure="1", arms={n: Arm(base="x") for n in "vab"}, rule=Rule(**words, thresholds=limits))
    arms = {n: {1: made(1, UP, header={"world": None})} for n in "vab"}
    for by_seed in arms.values():
        del by_seed[1].endpoint["same_temperature"]
    found = verdict(claim, arms)
    assert (found.outcome, found.why) == (OPEN, "needs 'same_temperature', which this start does not have")
    in_a_world = {n: {1: made(1, UP)} for n in "vab"}
    for by_seed in in_a_world.values():
        del by_seed[1].endpoint["same_temperature"]
    with pytest.raises(UserError, match="threshold or number 'same_temperature' is missing"):
        verdict(claim, in_a_world)
