"""Rules that turn results into verdicts: pure functions of finished runs and of thresholds that lab/*.yaml state.

``arms`` maps arm -> seed -> result and holds only seeds that all arms of the rule have. Where two arms are compared, the
difference is taken within each seed (they share the start), and its interval is Student's t at 95% over seeds. "End" is
the mean of the last 3 evaluations and "best" the largest mean of 3 successive ones, except where the last evaluation is
named, which has more answers. Win rates are against SFT sampled as the policy samples, ties as half.

A seed in which a number that decides is not finite does not count, and the verdict says so; a number that is only
reported is left out of its mean, which says over how many seeds it goes (`if_finite`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ppomax.errors import UserError
from ppomax.lab.claims import Claim
from ppomax.lab.readings import (
    WIN,
    Arm,
    NotFinite,
    at_end,
    best_of,
    end_of,
    fall_of,
    holds,
    if_finite,
    largest_of,
    last_of,
    losses_of,
    mean_of,
    over_seeds,
    paired,
    rise_of,
    share_done,
    values_of,
)
from ppomax.lab.results import Result, reward_facts
from ppomax.lab.statistics import Estimate, course, estimate, known

Arms = Mapping[str, Arm]
REPRODUCED, NOT, OPEN, UNRUN = "reproduced", "not reproduced", "inconclusive", "not run yet"
CATEGORIES = ("helpful", "harmful", "unanswerable")
"""of the world's prompts"""


@dataclass
class Verdict:
    """What a rule says."""

    outcome: str = OPEN
    why: str = ""
    numbers: list[tuple[str, str]] = field(default_factory=list)
    """(what, value): effect sizes with intervals over seeds"""
    seeds: list[int] = field(default_factory=list)
    """that count"""

    def note(self, what: str, value: Estimate | str) -> None:
        self.numbers.append((what, str(value)))


def verdict(claim: Claim, arms: Arms, *, apart: str = "") -> Verdict:
    """Apply the claim's rule. ``apart``: "fast" or "dev", whose verdicts are named so and need no number of seeds."""
    function, thresholds = RULES[claim.rule.function], dict(claim.rule.thresholds)
    if apart == "fast":
        thresholds = only(thresholds, [arm for arm in claim.arms if arm not in claim.fast.arms])
    needed = [name for name in claim.arms if name in named_arms(thresholds)]
    seeds = sorted(set.intersection(*(set(arms.get(name, {})) for name in needed)))
    if not any(arms.values()):
        return Verdict(UNRUN)
    if not seeds:
        lacking = [name for name in needed if not arms.get(name)]
        return Verdict(
            OPEN, f"0 of {claim.rule.seeds} seeds" + (f": no run yet of {', '.join(lacking)}" if lacking else "")
        )
    left_out: list[str] = []
    while True:
        kept = {name: {s: by_seed[s] for s in seeds if s in by_seed} for name, by_seed in arms.items()}
        found = Verdict(seeds=seeds)
        try:
            found.outcome, found.why = function(kept, thresholds, found)
            break
        except NotFinite as error:
            seed = error.result.seed
            arm = next(name for name, by_seed in kept.items() if by_seed.get(seed) is error.result)
            left_out.append(f"seed {seed} is left out: no finite {error.name} of {arm}")
            seeds = [s for s in seeds if s != seed]
            if not seeds:
                return Verdict(OPEN, f"0 of {claim.rule.seeds} seeds; {'; '.join(left_out)}")
        except KeyError as error:
            if all(r.header["world"] for by_seed in kept.values() for r in by_seed.values()):
                raise UserError(f"rule {claim.rule.function}: threshold or number {error} is missing") from None
            return Verdict(
                OPEN, f"needs {error}, which this start does not have", found.numbers, seeds
            )  # a start that was given
    found.why = "; ".join([found.why, *left_out])
    if apart:
        found.outcome = f"{apart}: {len(seeds)} seed{'s' if len(seeds) > 1 else ''}: {found.outcome}"
    elif len(seeds) < claim.rule.seeds:
        would = f"; so far {found.outcome}: {found.why}" if found.why else ""
        found.outcome, found.why = OPEN, f"{len(seeds)} of {claim.rule.seeds} seeds{would}"
    return found


def named_arms(thresholds: Mapping[str, Any]) -> list[str]:
    """Arms that a rule needs: all names in its thresholds but those under ``beside``, ``by`` and ``than``."""

    def names(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            for item in value:
                yield from names(item)

    return [n for key, value in thresholds.items() if key not in ("beside", "by", "than") for n in names(value)]


def only(thresholds: Mapping[str, Any], absent: Sequence[str]) -> dict[str, Any]:
    """Without ``absent`` arms in the thresholds' lists: what is left of a rule where some arms are not run."""

    def left(value: Any) -> Any:
        return [left(item) for item in value if item not in absent] if isinstance(value, list) else value

    return {key: left(value) for key, value in thresholds.items()}


def check_rule(name: str, claim: Claim) -> None:
    """The function must exist, and the arms that the thresholds name."""
    if claim.rule.function not in RULES:
        raise UserError(f"{name}: rule.function {claim.rule.function!r}: choose from {', '.join(RULES)}")
    beside = claim.rule.thresholds.get("beside", [])
    for arm in [*named_arms(claim.rule.thresholds), *beside]:
        if arm not in claim.arms:
            raise UserError(f"{name}: rule.thresholds names an arm {arm!r}, which the claim does not have")


# --------------------------------------------------------------------------------------------- rules


def in_points(difference: float, form: str = ".1f") -> str:
    """A difference of two shares, in points of a hundred."""
    return f"{100 * difference:{form}} points"


def _three(yes: bool, no: bool) -> str:
    return REPRODUCED if yes else NOT if no else OPEN


def collapse(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C1, C2: proxy up by ``rise``, win rate over ``peak`` and then below ``end``, in a ``share`` of the seeds."""

    def fell(result: Result) -> bool:
        return rise_of(result) >= t["rise"] and best_of(result) > t["peak"] and end_of(result) < t["end"]

    arm = arms[t["arm"]]
    count = sum(fell(r) for r in arm.values())
    for name in [t["arm"], *t.get("beside", [])]:
        if arms.get(name):
            fallen = [x for x in over_seeds(arms[name], if_finite(fell)) if x == x]
            unknown = len(arms[name]) - len(fallen)
            told = f"{sum(map(bool, fallen))} of {len(fallen)}" + (f", {unknown} not finite" if unknown else "")
            out.note(f"{name}: seeds that collapse", told)
            out.note(
                f"{name}: rise of the proxy reward, SFT standard deviations", mean_of(arms[name], if_finite(rise_of))
            )
            out.note(f"{name}: best win rate", mean_of(arms[name], if_finite(best_of)))
            out.note(f"{name}: win rate at the end", mean_of(arms[name], if_finite(end_of)))
    enough = count >= math.ceil(t["share"] * len(arm) - 1e-9)
    why = f"{count} of {len(arm)} seeds of {t['arm']} collapse"
    if t.get("steady") is None:
        return _three(enough, not enough), why
    steady = mean_of(arms[t["steady"]], last_of)
    out.note(f"{t['steady']}: win rate of the last evaluation", steady)
    for form in ("matched_entropy", "against_greedy", "both_greedy"):
        out.note(
            f"{t['steady']}: the same, {form.replace('_', ' ')}",
            mean_of(arms[t["steady"]], if_finite(partial(last_of, form=form))),
        )
    good = steady.mean >= t["steady_win_rate"] and all(share_done(r) == 1 for r in arms[t["steady"]].values())
    return _three(enough and good, True), f"{why}; {t['steady']} wins {steady.mean:.1%}"


def delay(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C3: in each chain of arms, each falls later than the one before, the last by at least ``gain`` of the run."""
    good, bad, whys = [], [], []
    fell = [mean_of(arms[chain[0]], lambda r: fall_of(r, t["drop"])).mean for chain in t["chains"]]
    for chain in t["chains"]:
        onsets = [mean_of(arms[name], lambda r: fall_of(r, t["drop"])) for name in chain]
        for name, value in zip(chain, onsets, strict=True):
            out.note(f"{name}: falls at this share of the run", value)
        means = [o.mean for o in onsets]
        gain = paired(arms[chain[-1]], arms[chain[0]], lambda r: fall_of(r, t["drop"]))
        out.note(f"{chain[-1]} less {chain[0]}", gain)
        # where neither of the two clips falls, it is open which of them delays more
        strictly = all(one < other for one, other in itertools.pairwise(means))
        good.append(gain.mean >= t["gain"] and strictly)
        bad.append(gain.mean <= 0)
        whys.append(f"{chain[-1]} falls {gain.mean:+.0%} of the run later than {chain[0]}")
    if min(fell) >= 1:
        return OPEN, f"{t['chains'][0][0]} did not fall, so nothing could be delayed"
    return _three(all(good), any(bad)), "; ".join(whys)


def stability(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C4: all ``arms`` (by rising eta) hold where ``control`` does not; drift and proxy reward fall as eta rises."""

    def share(name: str) -> float:
        held = [holds(r, t["hold"]) for r in arms[name].values()]
        return sum(held) / len(held)

    names, control = t["arms"], t["control"]
    shares = {name: share(name) for name in [control, *names]}
    for name, value in shares.items():
        out.note(f"{name}: share of seeds that hold", f"{value:.2f}")
    drift = [mean_of(arms[n], lambda r: end_of(r, "eval/kl_k3")) for n in names]
    reward = [mean_of(arms[n], lambda r: end_of(r, "eval/reward")) for n in names]
    for name, k3, proxy in zip(names, drift, reward, strict=True):
        out.note(f"{name}: k3 at the end, nats a response", k3)
        out.note(f"{name}: proxy reward at the end", proxy)
    less = paired(arms[names[0]], arms[names[-1]], lambda r: end_of(r, "eval/kl_k3"))
    out.note(f"k3 of {names[0]} less {names[-1]}", less)
    means = [d.mean for d in drift]
    ordered = means == sorted(means, reverse=True) and less.low > 0 and reward[0].mean >= reward[-1].mean
    steady = min(shares[n] for n in names) >= t["share"] and 1 - shares[control] >= t["share"]
    failed = shares[names[-1]] < t["share"] or means[-1] >= means[0]
    words = ", ".join(f"{n} {shares[n]:.0%}" for n in shares)
    return _three(ordered and steady, failed), f"seeds that hold: {words}; k3 {' > '.join(f'{m:.3g}' for m in means)}"


def mild(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C5: ``arm``'s best is at most ``margin`` below ``control``'s, and ``with_kl`` is alive at the end."""
    harm = paired(arms[t["arm"]], arms[t["control"]], best_of)
    kept = mean_of(arms[t["with_kl"]], last_of)
    out.note(f"best win rate, {t['arm']} less {t['control']}", harm)
    out.note(f"{t['with_kl']}: win rate of the last evaluation", kept)
    against = paired(arms[t["with_kl"]], arms[t["kl"]], if_finite(last_of))
    out.note(f"{t['with_kl']} less {t['kl']}, last evaluation", against)
    out.note(f"{t['arm']}: win rate at the end", mean_of(arms[t["arm"]], if_finite(end_of)))
    yes = harm.mean >= -t["margin"] and kept.mean >= t["alive"]
    no = harm.mean <= -t["harm"] or kept.mean < t["dead"]
    return _three(
        yes, no
    ), f"best {in_points(harm.mean, '+.1f')} against {t['control']}; with the KL penalty it ends at {kept.mean:.1%}"


def sensitive(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C6: between the best and the worst of ``settings`` lie ``differ`` points or more at the end."""
    ends = {name: mean_of(arms[name], end_of) for name in [t["without"], *t["settings"]]}
    for name, value in ends.items():
        out.note(f"{name}: win rate at the end", value)
    by_end = sorted(t["settings"], key=lambda name: ends[name].mean)
    worst, best = by_end[0], by_end[-1]
    gap = paired(arms[best], arms[worst], end_of)
    out.note(f"{best} (best) less {worst} (worst)", gap)
    return (
        _three(gap.mean >= t["differ"] and gap.low > 0, gap.mean <= t["flat"]),
        f"{best} ends {in_points(gap.mean)} above {worst}",
    )


def critic_start(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C7: RM and SFT starts end alike; pre-training calms the first updates, and replaces warm-up."""

    def early_loss(result: Result) -> float:
        updates, losses = course(result, "loss/value")[0], values_of(result, "loss/value")
        first = [v for u, v in zip(updates, losses, strict=True) if u <= t["early"] * updates[-1]]
        return float(np.mean(first or losses[:1]))

    alike = paired(arms[t["sft"]], arms[t["rm"]], last_of)
    calm = estimate(
        [early_loss(arms[t["rm"]][s]) / early_loss(arms[t["unprepared"]][s]) for s in sorted(arms[t["rm"]])]
    )
    instead = paired(arms[t["pretrained"]], arms[t["warmed"]], best_of)
    out.note(f"last evaluation, {t['sft']} less {t['rm']}", alike)
    out.note(f"early value loss, {t['rm']} over {t['unprepared']}", calm)
    out.note(f"best win rate, {t['pretrained']} less {t['warmed']}", instead)
    out.note(f"{t['pretrained']}: win rate at the end", mean_of(arms[t["pretrained"]], if_finite(end_of)))
    yes = abs(alike.mean) <= t["same"] and calm.mean <= t["calmer"] and instead.mean >= -t["same"]
    no = abs(alike.mean) >= t["differ"] or calm.mean >= 1 or instead.mean <= -t["differ"]
    return _three(yes, no), (
        f"SFT start {in_points(alike.mean, '+.1f')} at the end; early value loss times {calm.mean:.2f}; "
        f"pre-training instead of warm-up {in_points(instead.mean, '+.1f')} at its best"
    )


def failure(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C8: ``arm``'s judged score ends at ``ratio`` of ``control``'s or less, its proxy ``below`` SFT deviations lower."""
    arm, control = arms[t["arm"]], arms[t["control"]]
    share = estimate([end_of(arm[s], "eval/judge") / end_of(control[s], "eval/judge") for s in sorted(arm)])

    def lower(seed: int) -> float:
        spread = values_of(control[seed], "eval/reward_sampled_std", 1)[0]
        return (end_of(control[seed], "eval/reward") - end_of(arm[seed], "eval/reward")) / spread

    gap = estimate([lower(s) for s in sorted(arm)])
    out.note(f"judge's score at the end, {t['arm']} over {t['control']}", share)
    out.note(f"proxy reward, {t['control']} less {t['arm']}, SFT standard deviations", gap)
    out.note(f"{t['arm']}: win rate against its own start at the end", mean_of(arm, if_finite(end_of)))
    for name, what in (("eval/perplexity", "true perplexity"), ("eval/kl_k3", "k3"), ("eval/length", "length")):
        for which in (t["arm"], t["control"]):
            for when, number in (("largest", largest_of), ("at the end", end_of)):
                out.note(f"{which}: {what}, {when}", mean_of(arms[which], if_finite(partial(number, name=name))))
    yes = share.mean <= t["ratio"] and gap.mean >= t["below"]
    return (
        _three(yes, share.mean >= t["alive"]),
        f"the judge's score ends at {share.mean:.0%} of {t['control']}'s, the proxy reward {gap.mean:.2g} deviations lower",
    )


def little_effect(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C9: within each group, best win rates and falls differ little from the first arm's; ``stands`` holds instead."""
    alike, apart = [], []
    for first, *others in t["groups"]:
        for name in others:
            best = paired(arms[name], arms[first], best_of)
            fall = paired(arms[name], arms[first], lambda r: fall_of(r, t["drop"]))
            out.note(f"best win rate, {name} less {first}", best)
            out.note(f"falls at, {name} less {first}, share of the run", fall)
            alike.append(abs(best.mean) <= t["same"] and abs(fall.mean) <= t["shift"])
            apart.append(abs(best.mean) >= t["differ"] and (best.low > 0 or best.high < 0))
    out.note(f"{t['stands']}: win rate at the end", mean_of(arms[t["stands"]], end_of))
    held = sum(holds(r, t["hold"]) for r in arms[t["stands"]].values())
    out.note(f"{t['stands']}: seeds that hold", f"{held} of {len(arms[t['stands']])}")
    return _three(all(alike), any(apart)), f"{sum(alike)} of {len(alike)} settings do as the first of their group"


def gae_lambda(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C10: ``good`` holds; ``td`` ends at least ``worse`` below it; ``mc`` has ``noise`` times its gradient norm."""
    good, td, mc = (arms[t[name]] for name in ("good", "td", "mc"))

    def noise(result: Result) -> float:
        return float(np.mean(values_of(result, "grad_norm/policy")))

    worse = paired(good, td, last_of)
    ratio = estimate([noise(mc[s]) / noise(good[s]) for s in sorted(good)])
    held = sum(holds(r, t["hold"]) for r in good.values())
    out.note(f"last evaluation, {t['good']} less {t['td']}", worse)
    out.note(f"last evaluation, {t['good']} less {t['mc']}", paired(good, mc, if_finite(last_of)))
    out.note(f"norm of the policy's gradient, {t['mc']} over {t['good']}", ratio)
    out.note(f"{t['good']}: seeds that hold", f"{held} of {len(good)}")
    yes = worse.mean >= t["worse"] and worse.low > 0 and ratio.mean >= t["noise"] and held == len(good)
    return _three(yes, worse.mean <= 0 or ratio.mean <= 1), (
        f"lam 0 ends {in_points(worse.mean)} lower; lam 1 has {ratio.mean:.2f} times the gradient norm"
    )


def lasting(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C11: every seed of ``arm`` ends within ``within`` of its best, and above ``alive``; none: not reproduced."""
    arm = arms[t["arm"]]
    out.note("best win rate", mean_of(arm, best_of))
    out.note("win rate at the end", mean_of(arm, end_of))
    out.note("win rate of the last evaluation", mean_of(arm, if_finite(last_of)))
    out.note("policy updates", f"{max(course(r, WIN)[0][-1] for r in arm.values())}")
    held = [holds(r, t["within"]) and end_of(r) > t["alive"] for r in arm.values()]
    return _three(
        all(held), not any(held)
    ), f"{sum(held)} of {len(held)} seeds end within {in_points(t['within'], '.0f')} of their best"


def tax(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C12: PPO costs exam points (``tax`` or more), and ptx wins back at least the share ``back`` of them."""
    without, mixed = arms[t["without"]], arms[t["mixed"]]

    def points(result: Result, who: str = "policy") -> float:
        return at_end(result, "exam", who, "all")

    cost = estimate([points(r, "sft") - points(r) for r in without.values()])
    back = paired(mixed, without, points)
    out.note("exam of SFT", mean_of(without, lambda r: points(r, "sft")))
    out.note(f"exam of {t['without']}", mean_of(without, points))
    out.note(f"exam of {t['mixed']}", mean_of(mixed, points))
    out.note("lost by PPO", cost)
    out.note("won back by ptx", back)
    gain = estimate([points(r) - points(r, "sft") for r in mixed.values()])
    out.note(f"{t['mixed']} less SFT", gain)
    out.note(f"last evaluation, {t['mixed']} less {t['without']}", paired(mixed, without, if_finite(last_of)))
    if not (cost.mean >= t["tax"] and cost.low > 0):
        return OPEN, f"PPO lost {in_points(cost.mean)} of the exam: too little to win back"
    yes = back.mean >= t["back"] * cost.mean and back.low > 0
    return _three(
        yes, back.mean <= 0
    ), f"PPO lost {in_points(cost.mean)} of the exam, ptx won back {in_points(back.mean)}"


def conflict(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C13: every arm of ``survive`` falls later than every one of ``suffer``, by ``gain`` of the run."""
    falls = {name: mean_of(arms[name], lambda r: fall_of(r, t["drop"])) for name in [*t["survive"], *t["suffer"]]}
    for name, value in falls.items():
        out.note(f"{name}: falls at this share of the run", value)
        out.note(f"{name}: win rate at the end", mean_of(arms[name], if_finite(end_of)))
    for name in t.get("beside", []):
        if arms.get(name):
            fall = mean_of(arms[name], if_finite(lambda r: fall_of(r, t["drop"])))
            out.note(f"{name}: falls at this share of the run", fall)
    survive, suffer = ([falls[name].mean for name in t[side]] for side in ("survive", "suffer"))
    if min(*survive, *suffer) == 1:
        return OPEN, "none of them falls"
    gap = min(survive) - max(suffer)
    no = float(np.mean(survive)) <= float(np.mean(suffer))
    return _three(gap >= t["gain"], no), (
        f"those said to survive fall at {np.mean(survive):.0%} of the run on average, the others at {np.mean(suffer):.0%}"
    )


def early_model(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C14: the early reward model is at most ``accuracy`` less accurate, and its PPO ends ``harm`` or more lower."""
    late, early = arms[t["late"]], arms[t["early"]]

    def accuracy(result: Result) -> float:
        if (found := known(reward_facts(result)["accuracy"])) != found:
            raise NotFinite(result, "accuracy of the reward model")
        return found

    gap, harm = paired(late, early, accuracy), paired(late, early, last_of)
    out.note("accuracy on held-out pairs, late", mean_of(late, accuracy))
    out.note("accuracy on held-out pairs, early", mean_of(early, accuracy))
    out.note("accuracy, late less early", gap)
    out.note("last evaluation, late less early", harm)
    yes = gap.mean <= t["accuracy"] and harm.mean >= t["harm"] and harm.low > 0
    return _three(yes, harm.mean <= 0), (
        f"early is {in_points(gap.mean)} less accurate and its PPO ends {in_points(harm.mean)} lower"
    )


def beats(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C15: wins overall; net wins (win - lose) larger on ``by`` than on ``than``; the second judge agrees."""
    arm = arms[t["arm"]]

    def net(result: Result, category: str) -> float:
        win, lose = (at_end(result, "same_temperature", "by_category", category, what) for what in ("win", "lose"))
        return win - lose

    def second(result: Result, what: str = "agree") -> float:
        return at_end(result, "second_judge", what)

    overall = mean_of(arm, last_of)
    more = estimate([net(r, t["by"]) - net(r, t["than"]) for r in arm.values()])
    agree = mean_of(arm, second)
    beside = [name for name in t.get("beside", []) if arms.get(name)]
    for name in [t["arm"], *beside]:
        for category in CATEGORIES:
            parts = [r.endpoint["same_temperature"]["by_category"][category] for r in arms[name].values()]
            means = (estimate([p[w] for p in parts]).mean for w in ("win", "tie", "lose"))
            out.note(f"{name}: {category}, win/tie/lose, %", "/".join(f"{100 * mean:.0f}" for mean in means))
    out.note("win rate", overall)
    out.note(f"win less lose, {t['by']} less {t['than']}", more)
    for name in [t["arm"], *beside]:
        whose = "" if name == t["arm"] else f"{name}: "
        out.note(f"{whose}second judge agrees where the truth is decided", mean_of(arms[name], if_finite(second)))
        if whose:
            out.note(f"{whose}win rate", mean_of(arms[name], if_finite(last_of)))
        by_it = mean_of(arms[name], if_finite(partial(second, what="win_rate")))
        out.note(f"{whose}win rate by the second judge", by_it)
    yes = overall.low > 0.5 and more.low > 0 and agree.mean >= t["agree"]
    no = overall.mean <= 0.5 or more.mean <= 0 or agree.mean <= t["disagree"]
    return _three(yes, no), (
        f"wins {overall.mean:.1%}; wins less losses are {in_points(more.mean)} more on {t['by']} than on {t['than']} prompts; "
        f"the second judge agrees in {agree.mean:.0%}"
    )


def loses_less(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C16: against the stronger opponent the policy's share of losses is ``less`` below SFT's."""

    def gain(result: Result) -> float:
        return losses_of(result, "sft") - losses_of(result, "policy")

    def gain_on(category: str, result: Result) -> float:
        sft, policy = (at_end(result, "opponent", who, "by_category", category, "lose") for who in ("sft", "policy"))
        return sft - policy

    less = mean_of(arms[t["arm"]], gain)
    often = {who: mean_of(arms[t["arm"]], partial(losses_of, who=who)).mean for who in ("sft", "policy")}
    for name in [t["arm"], *t.get("beside", [])]:
        if not arms.get(name):
            continue
        for who, words in (("sft", "SFT"), ("policy", "the policy")):
            out.note(
                f"{name}: {words} loses to the opponent", mean_of(arms[name], if_finite(partial(losses_of, who=who)))
            )
        out.note(f"{name}: SFT less policy", mean_of(arms[name], if_finite(gain)))
        for category in CATEGORIES:
            on_these = mean_of(arms[name], if_finite(partial(gain_on, category)))
            out.note(f"{name}: SFT less policy, {category} prompts", on_these)
    return (
        _three(less.mean >= t["less"] and less.low > 0, less.mean <= 0),
        f"loses {in_points(less.mean)} less often than SFT ({often['policy']:.1%} against {often['sft']:.1%})",
    )


def serves(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C17: each of ``others`` beats its own SFT by ``alive`` or more under a reward model that another SFT gave rise to."""
    out.note(f"{t['own']}: win rate of the last evaluation", mean_of(arms[t["own"]], if_finite(last_of)))
    found = {name: mean_of(arms[name], last_of) for name in t["others"]}
    for name, value in found.items():
        out.note(f"{name}: win rate of the last evaluation", value)
        out.note(f"{name} less {t['own']}", paired(arms[name], arms[t["own"]], if_finite(last_of)))
    yes = all(v.mean >= t["alive"] and v.low > 0.5 for v in found.values())
    no = any(v.mean <= 0.5 for v in found.values())
    return _three(yes, no), ", ".join(f"{name} wins {v.mean:.1%}" for name, v in found.items())


Rule = Callable[[Arms, Mapping[str, Any], Verdict], tuple[str, str]]
_ALL: Sequence[Rule] = (
    collapse, delay, stability, mild, sensitive, critic_start, failure, little_effect, gae_lambda, lasting, tax, conflict,
    early_model, beats, loses_less, serves,
)  # fmt: skip
RULES: Mapping[str, Rule] = {rule.__name__: rule for rule in _ALL}
"""by the name that lab/*.yaml use"""
