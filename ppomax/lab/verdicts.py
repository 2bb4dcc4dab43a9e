"""Rules that turn results into verdicts: pure functions of finished runs and of thresholds that lab/*.yaml state.

``arms`` maps arm -> seed -> result and holds only seeds that all arms of the rule have. Where two arms are compared, the
difference is taken within each seed (they share the start), and its interval is Student's t at 95% over seeds. "End" is
the mean of the last 3 evaluations and "best" the largest mean of 3 successive ones, except where the last evaluation is
named, which has more answers. Win rates are against SFT sampled as the policy samples, ties as half.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ppomax.errors import UserError
from ppomax.lab.claims import Claim
from ppomax.lab.results import Result
from ppomax.lab.statistics import EDGE, Estimate, curve, end, estimate, onset, peak

Arm = Mapping[int, Result]
Arms = Mapping[str, Arm]
REPRODUCED, NOT, OPEN, UNRUN = "reproduced", "not reproduced", "inconclusive", "not run yet"
WIN = "eval/win_rate"


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
    needed = [name for name in claim.arms if name in named_arms(thresholds)]
    seeds = sorted(set.intersection(*(set(arms.get(name, {})) for name in needed)))
    if not any(arms.values()):
        return Verdict(UNRUN)
    if not seeds:
        lacking = [name for name in needed if not arms.get(name)]
        return Verdict(
            OPEN, f"0 of {claim.rule.seeds} seeds" + (f": no run yet of {', '.join(lacking)}" if lacking else "")
        )
    kept = {name: {s: by_seed[s] for s in seeds if s in by_seed} for name, by_seed in arms.items()}
    found = Verdict(seeds=seeds)
    try:
        found.outcome, found.why = function(kept, thresholds, found)
    except KeyError as error:
        if all(r.header["world"] for by_seed in kept.values() for r in by_seed.values()):
            raise UserError(f"rule {claim.rule.function}: threshold or number {error} is missing") from None
        return Verdict(
            OPEN, f"needs {error}, which this start does not have", found.numbers, seeds
        )  # a start that was given
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


def check_rule(name: str, claim: Claim) -> None:
    """The function must exist, and the arms that the thresholds name."""
    if claim.rule.function not in RULES:
        raise UserError(f"{name}: rule.function {claim.rule.function!r}: choose from {', '.join(RULES)}")
    beside = claim.rule.thresholds.get("beside", [])
    for arm in [*named_arms(claim.rule.thresholds), *beside]:
        if arm not in claim.arms:
            raise UserError(f"{name}: rule.thresholds names an arm {arm!r}, which the claim does not have")


# -------------------------------------------------------------------------------- numbers of one run


def _end(result: Result, name: str = WIN) -> float:
    return end(curve(result, name)[1])


def _best(result: Result, name: str = WIN) -> float:
    return peak(curve(result, name)[1])


def _largest(result: Result, name: str) -> float:
    return max(curve(result, name)[1])


def _loses(result: Result, who: str) -> float:
    """Share of the answers that lose to the stronger opponent's."""
    return float(result.endpoint["opponent"][who]["lose"])


def _onset(result: Result, drop: float) -> float:
    """As a share of the run: 1 where it never falls; one that diverged before it fell falls there."""
    updates, values = curve(result, WIN)
    return onset(updates, values, drop) / updates[-1] * _share_done(result)


def _share_done(result: Result) -> float:
    """Of the iterations planned: below 1 for a run that diverged."""
    done = result.header.get("diverged", {}).get("policy_iterations", result.header["iterations"])
    return float(done / result.header["iterations"])


def _rise(result: Result) -> float:
    """Proxy reward at the end less SFT's, in standard deviations of SFT's."""
    last = result.evaluations[-1]
    return (_end(result, "eval/reward") - last["eval/reward_sampled"]) / last["eval/reward_sampled_std"]


def _last(result: Result, form: str = "same_temperature") -> float:
    """Win rate of the last evaluation."""
    return float(result.endpoint[form]["win_rate"])


def _over(arm: Arm, number: Callable[[Result], float]) -> list[float]:
    return [number(arm[seed]) for seed in sorted(arm)]


def _mean(arm: Arm, number: Callable[[Result], float]) -> Estimate:
    return estimate(_over(arm, number))


def _paired(one: Arm, other: Arm, number: Callable[[Result], float]) -> Estimate:
    """One less the other, within seeds."""
    return estimate([number(one[s]) - number(other[s]) for s in sorted(one.keys() & other.keys())])


def _holds(result: Result, hold: float) -> bool:
    """Ends, at the iteration planned, within ``hold`` of its best."""
    return _share_done(result) == 1 and _end(result) >= _best(result) - hold - EDGE


def _three(yes: bool, no: bool) -> str:
    return REPRODUCED if yes else NOT if no else OPEN


# --------------------------------------------------------------------------------------------- rules


def collapse(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C1, C2: proxy up by ``rise``, win rate over ``peak`` and then below ``end``, in a ``share`` of the seeds."""

    def fell(result: Result) -> bool:
        return _rise(result) >= t["rise"] and _best(result) > t["peak"] and _end(result) < t["end"]

    arm = arms[t["arm"]]
    count = sum(fell(r) for r in arm.values())
    for name in [t["arm"], *t.get("beside", [])]:
        if arms.get(name):
            out.note(f"{name}: seeds that collapse", f"{sum(map(fell, arms[name].values()))} of {len(arms[name])}")
            out.note(f"{name}: rise of the proxy reward, SFT standard deviations", _mean(arms[name], _rise))
            out.note(f"{name}: best win rate", _mean(arms[name], _best))
            out.note(f"{name}: win rate at the end", _mean(arms[name], _end))
    enough = count >= math.ceil(t["share"] * len(arm) - 1e-9)
    why = f"{count} of {len(arm)} seeds of {t['arm']} collapse"
    if t.get("steady") is None:
        return _three(enough, not enough), why
    steady = _mean(arms[t["steady"]], _last)
    out.note(f"{t['steady']}: win rate of the last evaluation", steady)
    for form in ("matched_entropy", "against_greedy", "both_greedy"):
        out.note(
            f"{t['steady']}: the same, {form.replace('_', ' ')}",
            _mean(arms[t["steady"]], partial(_last, form=form)),
        )
    good = steady.mean >= t["steady_win_rate"] and all(_share_done(r) == 1 for r in arms[t["steady"]].values())
    return _three(enough and good, True), f"{why}; {t['steady']} wins {steady.mean:.1%}"


def delay(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C3: in each chain of arms, each falls later than the one before, the last by at least ``gain`` of the run."""
    good, bad, whys = [], [], []
    fell = [_mean(arms[chain[0]], lambda r: _onset(r, t["drop"])).mean for chain in t["chains"]]
    for chain in t["chains"]:
        onsets = [_mean(arms[name], lambda r: _onset(r, t["drop"])) for name in chain]
        for name, value in zip(chain, onsets, strict=True):
            out.note(f"{name}: falls at this share of the run", value)
        means = [o.mean for o in onsets]
        gain = _paired(arms[chain[-1]], arms[chain[0]], lambda r: _onset(r, t["drop"]))
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
        held = [_holds(r, t["hold"]) for r in arms[name].values()]
        return sum(held) / len(held)

    names, control = t["arms"], t["control"]
    shares = {name: share(name) for name in [control, *names]}
    for name, value in shares.items():
        out.note(f"{name}: share of seeds that hold", f"{value:.2f}")
    drift = [_mean(arms[n], lambda r: _end(r, "eval/kl_k3")) for n in names]
    reward = [_mean(arms[n], lambda r: _end(r, "eval/reward")) for n in names]
    for name, k3, proxy in zip(names, drift, reward, strict=True):
        out.note(f"{name}: k3 at the end, nats a response", k3)
        out.note(f"{name}: proxy reward at the end", proxy)
    less = _paired(arms[names[0]], arms[names[-1]], lambda r: _end(r, "eval/kl_k3"))
    out.note(f"k3 of {names[0]} less {names[-1]}", less)
    means = [d.mean for d in drift]
    ordered = means == sorted(means, reverse=True) and less.low > 0 and reward[0].mean >= reward[-1].mean
    steady = min(shares[n] for n in names) >= t["share"] and 1 - shares[control] >= t["share"]
    failed = shares[names[-1]] < t["share"] or means[-1] >= means[0]
    words = ", ".join(f"{n} {shares[n]:.0%}" for n in shares)
    return _three(ordered and steady, failed), f"seeds that hold: {words}; k3 {' > '.join(f'{m:.3g}' for m in means)}"


def mild(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C5: ``arm``'s best is at most ``margin`` below ``control``'s, and ``with_kl`` is alive at the end."""
    harm = _paired(arms[t["arm"]], arms[t["control"]], _best)
    kept = _mean(arms[t["with_kl"]], _last)
    out.note(f"best win rate, {t['arm']} less {t['control']}", harm)
    out.note(f"{t['with_kl']}: win rate of the last evaluation", kept)
    out.note(f"{t['with_kl']} less {t['kl']}, last evaluation", _paired(arms[t["with_kl"]], arms[t["kl"]], _last))
    out.note(f"{t['arm']}: win rate at the end", _mean(arms[t["arm"]], _end))
    yes = harm.mean >= -t["margin"] and kept.mean >= t["alive"]
    no = harm.mean <= -t["harm"] or kept.mean < t["dead"]
    return _three(
        yes, no
    ), f"best {harm.mean:+.1%} against {t['control']}; with the KL penalty it ends at {kept.mean:.1%}"


def sensitive(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C6: between the best and the worst of ``settings`` lie ``differ`` points or more at the end."""
    ends = {name: _mean(arms[name], _end) for name in [t["without"], *t["settings"]]}
    for name, value in ends.items():
        out.note(f"{name}: win rate at the end", value)
    by_end = sorted(t["settings"], key=lambda name: ends[name].mean)
    worst, best = by_end[0], by_end[-1]
    gap = _paired(arms[best], arms[worst], _end)
    out.note(f"{best} (best) less {worst} (worst)", gap)
    return (
        _three(gap.mean >= t["differ"] and gap.low > 0, gap.mean <= t["flat"]),
        f"{best} ends {gap.mean:.1%} above {worst}",
    )


def critic_start(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C7: RM and SFT starts end alike; pre-training calms the first updates, and replaces warm-up."""

    def early_loss(result: Result) -> float:
        updates, losses = curve(result, "loss/value")
        first = [v for u, v in zip(updates, losses, strict=True) if u <= t["early"] * updates[-1]]
        return float(np.mean(first or losses[:1]))

    alike = _paired(arms[t["sft"]], arms[t["rm"]], _last)
    calm = estimate(
        [early_loss(arms[t["rm"]][s]) / early_loss(arms[t["unprepared"]][s]) for s in sorted(arms[t["rm"]])]
    )
    instead = _paired(arms[t["pretrained"]], arms[t["warmed"]], _best)
    out.note(f"last evaluation, {t['sft']} less {t['rm']}", alike)
    out.note(f"early value loss, {t['rm']} over {t['unprepared']}", calm)
    out.note(f"best win rate, {t['pretrained']} less {t['warmed']}", instead)
    out.note(f"{t['pretrained']}: win rate at the end", _mean(arms[t["pretrained"]], _end))
    yes = abs(alike.mean) <= t["same"] and calm.mean <= t["calmer"] and instead.mean >= -t["same"]
    no = abs(alike.mean) >= t["differ"] or calm.mean >= 1 or instead.mean <= -t["differ"]
    return _three(yes, no), (
        f"SFT start {alike.mean:+.1%} at the end; early value loss times {calm.mean:.2f}; "
        f"pre-training instead of warm-up {instead.mean:+.1%}"
    )


def failure(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C8: ``arm``'s judged score ends at ``ratio`` of ``control``'s or less, its proxy ``below`` SFT deviations lower."""
    arm, control = arms[t["arm"]], arms[t["control"]]
    share = estimate([_end(arm[s], "eval/judge") / _end(control[s], "eval/judge") for s in sorted(arm)])

    def lower(seed: int) -> float:
        spread = control[seed].evaluations[-1]["eval/reward_sampled_std"]
        return float((_end(control[seed], "eval/reward") - _end(arm[seed], "eval/reward")) / spread)

    gap = estimate([lower(s) for s in sorted(arm)])
    out.note(f"judge's score at the end, {t['arm']} over {t['control']}", share)
    out.note(f"proxy reward, {t['control']} less {t['arm']}, SFT standard deviations", gap)
    out.note(f"{t['arm']}: win rate against its own start at the end", _mean(arm, _end))
    for name, what in (("eval/perplexity", "true perplexity"), ("eval/kl_k3", "k3"), ("eval/length", "length")):
        for which in (t["arm"], t["control"]):
            out.note(f"{which}: {what}, largest", _mean(arms[which], partial(_largest, name=name)))
            out.note(f"{which}: {what}, at the end", _mean(arms[which], partial(_end, name=name)))
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
            best = _paired(arms[name], arms[first], _best)
            fall = _paired(arms[name], arms[first], lambda r: _onset(r, t["drop"]))
            out.note(f"best win rate, {name} less {first}", best)
            out.note(f"falls at, {name} less {first}, share of the run", fall)
            alike.append(abs(best.mean) <= t["same"] and abs(fall.mean) <= t["shift"])
            apart.append(abs(best.mean) >= t["differ"] and (best.low > 0 or best.high < 0))
    out.note(f"{t['stands']}: win rate at the end", _mean(arms[t["stands"]], _end))
    held = sum(_holds(r, t["hold"]) for r in arms[t["stands"]].values())
    out.note(f"{t['stands']}: seeds that hold", f"{held} of {len(arms[t['stands']])}")
    return _three(all(alike), any(apart)), f"{sum(alike)} of {len(alike)} settings do as the first of their group"


def gae_lambda(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C10: ``good`` holds; ``td`` ends at least ``worse`` below it; ``mc`` has ``noise`` times its gradient norm."""
    good, td, mc = (arms[t[name]] for name in ("good", "td", "mc"))

    def noise(result: Result) -> float:
        return float(np.mean(curve(result, "grad_norm/policy")[1]))

    worse = _paired(good, td, _last)
    ratio = estimate([noise(mc[s]) / noise(good[s]) for s in sorted(good)])
    held = sum(_holds(r, t["hold"]) for r in good.values())
    out.note(f"last evaluation, {t['good']} less {t['td']}", worse)
    out.note(f"last evaluation, {t['good']} less {t['mc']}", _paired(good, mc, _last))
    out.note(f"norm of the policy's gradient, {t['mc']} over {t['good']}", ratio)
    out.note(f"{t['good']}: seeds that hold", f"{held} of {len(good)}")
    yes = worse.mean >= t["worse"] and worse.low > 0 and ratio.mean >= t["noise"] and held == len(good)
    return _three(yes, worse.mean <= 0 or ratio.mean <= 1), (
        f"lam 0 ends {worse.mean:.1%} lower; lam 1 has {ratio.mean:.2f} times the gradient norm"
    )


def lasting(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C11: every seed of ``arm`` ends within ``within`` of its best, and above ``alive``; none: not reproduced."""
    arm = arms[t["arm"]]
    out.note("best win rate", _mean(arm, _best))
    out.note("win rate at the end", _mean(arm, _end))
    out.note("win rate of the last evaluation", _mean(arm, _last))
    out.note("policy updates", f"{max(curve(r, WIN)[0][-1] for r in arm.values())}")
    held = [_holds(r, t["within"]) and _end(r) > t["alive"] for r in arm.values()]
    return _three(
        all(held), not any(held)
    ), f"{sum(held)} of {len(held)} seeds end within {t['within']:.0%} of their best"


def tax(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C12: PPO costs exam points (``tax`` or more), and ptx wins back at least the share ``back`` of them."""
    without, mixed = arms[t["without"]], arms[t["mixed"]]

    def points(result: Result, who: str = "policy") -> float:
        return float(result.endpoint["exam"][who]["all"])

    cost = estimate([points(r, "sft") - points(r) for r in without.values()])
    back = _paired(mixed, without, points)
    out.note("exam of SFT", _mean(without, lambda r: points(r, "sft")))
    out.note(f"exam of {t['without']}", _mean(without, points))
    out.note(f"exam of {t['mixed']}", _mean(mixed, points))
    out.note("lost by PPO", cost)
    out.note("won back by ptx", back)
    out.note(f"last evaluation, {t['mixed']} less {t['without']}", _paired(mixed, without, _last))
    if not (cost.mean >= t["tax"] and cost.low > 0):
        return OPEN, f"PPO lost {cost.mean:.1%} of the exam: too little to win back"
    yes = back.mean >= t["back"] * cost.mean and back.low > 0
    return _three(yes, back.mean <= 0), f"PPO lost {cost.mean:.1%} of the exam, ptx won back {back.mean:.1%}"


def conflict(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C13: every arm of ``survive`` falls later than every one of ``suffer``, by ``gain`` of the run."""
    falls = {name: _mean(arms[name], lambda r: _onset(r, t["drop"])) for name in [*t["survive"], *t["suffer"]]}
    for name, value in falls.items():
        out.note(f"{name}: falls at this share of the run", value)
        out.note(f"{name}: win rate at the end", _mean(arms[name], _end))
    for name in t.get("beside", []):
        if arms.get(name):
            out.note(f"{name}: falls at this share of the run", _mean(arms[name], lambda r: _onset(r, t["drop"])))
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
        start = result.header["start"]
        return float(next(v["accuracy"] for k, v in start.items() if re.fullmatch(r"reward-[0-9a-f]{8}", k)))

    gap, harm = _paired(late, early, accuracy), _paired(late, early, _last)
    out.note("accuracy on held-out pairs, late", _mean(late, accuracy))
    out.note("accuracy on held-out pairs, early", _mean(early, accuracy))
    out.note("accuracy, late less early", gap)
    out.note("last evaluation, late less early", harm)
    yes = gap.mean <= t["accuracy"] and harm.mean >= t["harm"] and harm.low > 0
    return _three(yes, harm.mean <= 0), f"early is {gap.mean:.1%} less accurate and its PPO ends {harm.mean:.1%} lower"


def beats(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C15: wins overall; net wins (win - lose) larger on ``by`` than on ``than``; the second judge agrees."""
    arm = arms[t["arm"]]

    def net(result: Result, category: str) -> float:
        part = result.endpoint["same_temperature"]["by_category"][category]
        return float(part["win"] - part["lose"])

    overall = _mean(arm, _last)
    more = estimate([net(r, t["by"]) - net(r, t["than"]) for r in arm.values()])
    agree = _mean(arm, lambda r: float(r.endpoint["second_judge"]["agree"]))
    for name in [t["arm"], *t.get("beside", [])]:
        for category in ("helpful", "harmful", "unanswerable") if arms.get(name) else ():
            parts = [r.endpoint["same_temperature"]["by_category"][category] for r in arms[name].values()]
            shares = "/".join(f"{100 * np.mean([p[w] for p in parts]):.0f}" for w in ("win", "tie", "lose"))
            out.note(f"{name}: {category}, win/tie/lose, %", shares)
    out.note("win rate", overall)
    out.note(f"win less lose, {t['by']} less {t['than']}", more)
    out.note("second judge agrees where the truth is decided", agree)
    out.note("win rate by the second judge", _mean(arm, lambda r: float(r.endpoint["second_judge"]["win_rate"])))
    yes = overall.low > 0.5 and more.low > 0 and agree.mean >= t["agree"]
    no = overall.mean <= 0.5 or more.mean <= 0 or agree.mean <= t["disagree"]
    return _three(yes, no), (
        f"wins {overall.mean:.1%}; {t['by']} {more.mean:+.1%} over {t['than']}; the second judge agrees in {agree.mean:.0%}"
    )


def loses_less(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C16: against the stronger opponent the policy's share of losses is ``less`` below SFT's."""
    less = estimate([])
    for name in [t["arm"], *t.get("beside", [])]:
        if not arms.get(name):
            continue
        both = {who: _mean(arms[name], partial(_loses, who=who)) for who in ("sft", "policy")}
        gain = estimate([_loses(r, "sft") - _loses(r, "policy") for r in arms[name].values()])
        less = gain if name == t["arm"] else less
        out.note(f"{name}: SFT loses to the opponent", both["sft"])
        out.note(f"{name}: the policy loses to the opponent", both["policy"])
        out.note(f"{name}: SFT less policy", gain)
    return _three(less.mean >= t["less"] and less.low > 0, less.mean <= 0), f"loses {less.mean:.1%} less often than SFT"


def serves(arms: Arms, t: Mapping[str, Any], out: Verdict) -> tuple[str, str]:
    """C17: each of ``others`` beats its own SFT by ``alive`` or more under a reward model that another SFT gave rise to."""
    out.note(f"{t['own']}: win rate of the last evaluation", _mean(arms[t["own"]], _last))
    found = {name: _mean(arms[name], _last) for name in t["others"]}
    for name, value in found.items():
        out.note(f"{name}: win rate of the last evaluation", value)
        out.note(f"{name} less {t['own']}", _paired(arms[name], arms[t["own"]], _last))
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
