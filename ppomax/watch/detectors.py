"""Detectors: each reads a run's history and says whether one kind of thing has turned, or nothing.

Every yardstick comes from the run itself: its first iterations (when the policy is the reference, or nearly), its own
noise, its own rates. Thresholds are ratios of such numbers, never rewards, tokens or nats of one model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Literal

from ppomax.watch.history import SMOOTH, History
from ppomax.watch.robust import residual_noise, spread, theil_sen

Level = Literal["notice", "warning", "collapse"]
LEVELS: tuple[Level, ...] = ("notice", "warning", "collapse")
WINDOW = 10
"""iterations over which a rate is measured"""
SETTLED = 12
"""iterations of the policy before anything but spikes and numbers that are not finite is judged"""
REIN = 2.0
"""so much further may a policy go that a KL penalty in force holds back"""
SIGNIFICANT = 5.0
"""a change counts once it is this many times the noise of an iteration's number"""


@dataclass(frozen=True)
class Sign:
    """What one detector sees now."""

    level: Level
    what: str
    """what turned, and how it compares with the start: the beginning of a sentence"""
    ago: int = 2
    """iterations back to where it began"""


@dataclass(frozen=True)
class Detector:
    name: str
    kind: str
    """detectors of one kind see the same thing from two sides, and count once"""
    look: Callable[[History], Sign | None]
    means: str
    """what it usually means"""
    advice: str
    """options, by the numbers of the paper's details: every detail that is numbered has one of its options named"""
    patience: int = 3
    """iterations in a row before it is told"""
    counts_from: Level = "warning"
    """level from which it is one of two kinds that make a collapse"""


def at_start(h: History, name: str) -> str:
    """A metric's value at the start, in words; the policy's own numbers are missing there in critic pre-training."""
    start = h.start(name)
    return "not measured at the start" if start is None else f"{start:.3g} at the start"


def reined(h: History) -> bool:
    """Whether the KL penalty is in force: it costs a tenth to all of the reward that was gained.

    Less, and nothing holds the policy back; more, and it was not held. In between distance is bought, and ends where a nat
    is no longer worth its price: it may be large without being a sign of collapse, and what it buys falls in any case.
    """
    price, distance = h.now("kl/price"), h.now("kl/ref_sequence")
    if price is None:  # a stream of another program: its penalty is taken to be paid in the scores' own units
        price = h.now("kl/coef")
    first, now = h.start("reward/mean"), h.now("reward/mean")
    if price is None or distance is None or first is None or now is None or now <= first:
        return False
    return 0.1 <= price * distance / (now - first) <= 1


def kl_distance(h: History) -> Sign | None:
    """KL a token against the entropy of the start; against twice as much where the penalty is in force.

    A policy that only sharpens the reference, down to its likeliest answers, needs at most about the reference's own
    entropy; beyond it, the policy says what the reference would not.
    """
    now, entropy = h.now("kl/ref"), h.start("policy/entropy")
    if now is None or not entropy or entropy < 1e-6:
        return None
    share, room = now / entropy, REIN if reined(h) else 1.0
    if share < 2 / 3 * room:  # policies that hold were seen at .6 for a while, at .68 for moments
        return None
    level: Level = "collapse" if share >= room else "warning"
    return Sign(level, f"KL to the reference is {now:.3g} nats a token, {share:.2g} of the entropy at the start")


def kl_acceleration(h: History) -> Sign | None:
    """KL grows at more than twice its average rate before, and by more than its noise."""
    values, entropy = h.series("kl/ref", WINDOW), h.start("policy/entropy")
    before = h.now("kl/ref", ago=WINDOW)
    if before is None or not entropy:
        return None
    if before < 0.05 * entropy:  # the first steps away from the reference speed up in every run
        return None
    rate = theil_sen(values)
    usual = before / max(h.policy_iterations - WINDOW, 1)
    grown = rate * WINDOW
    enough = 0.35 * entropy * (REIN if reined(h) else 1.0)
    if rate <= 2 * usual or grown < SIGNIFICANT * residual_noise(values) or grown < enough:
        return None
    return Sign(
        "warning",
        f"KL to the reference grows by {rate:.2g} nats a token an iteration ({rate / usual:.2g} times its average rate from "
        "the start until then)",
        ago=WINDOW - 1,
    )


def kl_doubling(h: History) -> Sign | None:
    """KL doubles in every few iterations and is near the entropy of the start: it does not level off before it.

    What `kl_distance` says once it is there, said on the way; most collapses come so fast that this is when there is time.
    """
    values, entropy = h.series("kl/ref", WINDOW), h.start("policy/entropy")
    if len(values) < WINDOW or not entropy or entropy < 1e-6:
        return None
    shares = [max(value / entropy, 1e-4) for value in values]
    rate, share = theil_sen([math.log(s) for s in shares]), median(shares[-3:])
    if share < 0.4 * (REIN if reined(h) else 1.0) or rate < math.log(2) / 3.5:
        return None
    return Sign(
        "collapse",
        f"KL to the reference doubles every {math.log(2) / rate:.2g} iterations and is {share * entropy:.3g} nats a token, "
        f"{share:.2g} of the entropy at the start",
    )


def reward_price(h: History) -> Sign | None:
    """Reward gained for distance: its slope over sqrt(KL a response), now against the average since the start.

    Where the reward model is right the two rise together in proportion; where it is being exploited distance grows faster.
    """
    first, unit = h.start("reward/mean"), h.start("reward/std")
    if first is None or not unit or reined(h):
        return None
    rows = [r for r in h.rows[-2 * WINDOW :] if "reward/mean" in r and r.get("kl/ref_sequence", -1.0) > 0]
    if len(rows) < WINDOW:
        return None
    distance = [math.sqrt(r["kl/ref_sequence"]) for r in rows]
    gain = [(r["reward/mean"] - first) / unit for r in rows]
    third = len(rows) // 3
    d_before, d_now = median(distance[:third]), median(distance[-third:])
    g_before, g_now = median(gain[:third]), median(gain[-third:])
    if d_now < 1.25 * d_before or g_before <= 0 or d_now - d_before < SIGNIFICANT * spread(distance[-third:]) / third:
        return None
    usual = g_before / d_before
    marginal = (g_now - g_before) / (d_now - d_before)
    if marginal > 0.75 * usual:
        return None
    return Sign(
        "notice",
        f"the last rise of sqrt(KL), from {d_before:.2g} to {d_now:.2g}, bought {max(marginal, 0.0) / usual:.2g} of the reward "
        "that as much distance bought from the start until then",
        ago=2 * third,
    )


def _ratio(h: History, name: str) -> tuple[float, float, float] | None:
    """(now, start, now / start) of a metric whose change is beyond its noise."""
    now, start = h.now(name), h.start(name)
    if now is None or start is None or start <= 0 or abs(now - start) < SIGNIFICANT * h.start_noise(name):
        return None
    return now, start, now / start


def perplexity(h: History) -> Sign | None:
    """The log of the perplexity on its own responses, against the start's, which is the reference's."""
    now, start = h.now("policy/perplexity"), h.start("policy/perplexity")
    if now is None or start is None or start <= 1 or now < 1:
        return None
    share = math.log(now) / math.log(start)
    noise = h.start_noise("policy/perplexity")
    if abs(now - start) < SIGNIFICANT * noise:
        return None
    text = (
        f"perplexity on its own responses is {now:.4g}, {start:.4g} at the start: its log is {share:.2g} times as large"
    )
    if share < 1 / 3:
        return Sign("warning", f"{text} (the policy is sure of its words)")
    if share > 2:
        return Sign("warning", f"{text} (its words no longer follow from one another)")
    return None


def length_drift(h: History) -> Sign | None:
    """Responses run to the limit, to nothing, or far from the length of the start."""
    truncated, at_start = h.now("response/truncated"), h.start("response/truncated")
    if truncated is not None and at_start is not None and truncated > 0.25 + at_start and truncated > 2 * at_start:
        return Sign("warning", f"{truncated:.0%} of the responses hit the length limit, {at_start:.0%} at the start")
    found = _ratio(h, "response/length")
    if found is None:
        return None
    now, start, ratio = found
    text = f"responses have {now:.3g} tokens, {ratio:.2g} times the {start:.3g} of the start"
    if ratio < 0.5 or ratio > 2:
        return Sign("warning", text)
    return Sign("notice", text) if ratio < 2 / 3 or ratio > 1.5 else None


def reward_tail(h: History) -> Sign | None:
    """A few answers are scored far above the rest: the right side of the distribution against its left side."""
    sides = [
        (r["reward/p95"] - r["reward/p50"]) / max(r["reward/p50"] - r["reward/p5"], 1e-9)
        for r in (*h.first, *h.rows[-SMOOTH:])
        if {"reward/p5", "reward/p50", "reward/p95"} <= r.keys()
    ]
    first, now = h.start("reward/skewness"), h.now("reward/skewness")
    if len(sides) < 2 * SMOOTH or first is None or now is None:
        return None
    before, after = median(sides[:-SMOOTH]), median(sides[-SMOOTH:])
    if after < 2 * before or after < 1.5 or now - first < max(SIGNIFICANT * h.start_noise("reward/skewness") / 2, 0.5):
        return None
    return Sign(
        "warning",
        f"the reward's right tail is {after:.2g} times as wide as its left one, {before:.2g} at the start "
        f"(skewness {now:.2g}, then {first:.2g})",
    )


def diversity(h: History) -> Sign | None:
    """Responses grow alike, or repeat themselves."""
    for name, what in (("response/distinct", "different responses"), ("response/distinct_2", "distinct-2")):
        found = _ratio(h, name)
        if found and found[2] < 0.5:
            return Sign("warning", f"{what}: {found[0]:.2g}, {found[2]:.2g} of the {found[1]:.2g} at the start")
    now, start = h.now("response/repeated_ngram_rate"), h.start("response/repeated_ngram_rate")
    if now is not None and start is not None:
        grown = now - start
        if grown > max(0.1, start) and grown > SIGNIFICANT * h.start_noise("response/repeated_ngram_rate"):
            return Sign("warning", f"{now:.0%} of the 4-grams of a response are repeats, {start:.0%} at the start")
    found = _ratio(h, "response/compression")
    if found and found[2] < 0.6:
        return Sign("warning", f"responses compress to {found[0]:.0%} of their size, to {found[1]:.0%} at the start")
    return None


def critic(h: History) -> Sign | None:
    """The critic explained the returns, and no longer does."""
    values = h.series("value/explained_variance")
    now = h.now("value/explained_variance")
    if now is None or len(values) < 2 * WINDOW:
        return None
    smooth = [median(values[i : i + 5]) for i in range(len(values) - 4)]
    best = max(smooth)
    if best < 0.2 or best - now < SIGNIFICANT * spread(values[-WINDOW:]) / 2:
        return None
    text = f"the critic explains {now:.2g} of the variance of the returns, {best:.2g} at its best"
    text += f" ({at_start(h, 'value/explained_variance')})"
    if now < 0:
        return Sign("warning", text)
    return Sign("notice", text) if now < best / 2 else None


def saturation(h: History) -> Sign | None:
    """Nearly all responses get the same score, and a high one: the reward model tells them apart no longer."""
    found, mean, start = _ratio(h, "reward/std"), h.now("reward/mean"), h.start("reward/mean")
    if found is None or mean is None or start is None or found[2] > 0.25 or mean < start:
        return None
    return Sign(
        "warning", f"scores of an iteration spread by {found[0]:.2g}, {found[2]:.2g} of the start's {found[1]:.2g}"
    )


SPIKES = {
    "grad_norm/policy": 1e-12, "grad_norm/critic": 1e-12, "loss/value": 1e-12,
    "policy/ratio_deviation": 1e-6, "policy/approx_kl": 1e-10,
}  # fmt: skip
"""metrics of the update, and what is no more than rounding: the first update after sampling has a ratio of 1, so with one
update an iteration the last two are 0 or nearly, and a thousand times nothing is nothing"""


def spikes(h: History) -> Sign | None:
    """A number of the update far above its own last iterations."""
    worst: tuple[float, str, float, float] | None = None
    for name, rounding in SPIKES.items():
        values = h.series(name, 2 * WINDOW + 1)
        if len(values) <= WINDOW:
            continue
        *past, now = values
        middle = max(median(past), rounding)
        if now > 5 * middle and now > middle + 10 * spread(past) and (worst is None or now / middle > worst[0]):
            worst = (now / middle, name, now, middle)
    if worst is None:
        return None
    ratio, name, now, middle = worst
    level: Level = "warning" if ratio > 20 else "notice"
    text = f"{name} is {now:.3g}, {ratio:.3g} times the median {middle:.2g} of the iterations before"
    return Sign(level, f"{text} ({at_start(h, name)})", ago=0)


KL_ADVICE = "details 1 and 5: raise kl.coef, lower reward_shaping.clip (with reward_shaping.normalise)"
DETECTORS = (
    Detector("kl_distance", "distance", kl_distance,
             "the policy says what the reference would not, where the reward model was never tested", KL_ADVICE),
    Detector("kl_acceleration", "distance", kl_acceleration,
             "the policy has found answers that the reward model overrates", KL_ADVICE),
    Detector("kl_doubling", "distance", kl_doubling,
             "the policy runs away from the reference, and a reward model that it outruns is exploited", KL_ADVICE),
    Detector("reward_price", "reward", reward_price,
             "what is easy to gain has been gained, and the policy moves on without becoming better", KL_ADVICE, counts_from="notice"),
    Detector("reward_tail", "reward", reward_tail, "some answers exploit the reward model (Figure 13)",
             "detail 5: reward_shaping.normalise and a lower reward_shaping.clip"),
    Detector("saturation", "reward", saturation, "further training only adds drift: stop, or improve the reward model",
             "details 1 and 5: raise kl.coef, set reward_shaping.normalise"),
    Detector("perplexity", "variety", perplexity, "pattern collapse (Figure 4)",
             "details 1 and 3: raise kl.coef, or give entropy.coef with an entropy.target"),
    Detector("diversity", "variety", diversity, "pattern collapse: one answer for many prompts, or loops",
             "details 1 and 3: raise kl.coef, or give entropy.coef with an entropy.target"),
    Detector("length_drift", "length", length_drift, "the reward model pays for length, or for stopping at once",
             "details 1 and 5: raise kl.coef, lower reward_shaping.clip, or set reward_shaping.length_penalty or "
             "reward_shaping.missing_eos_penalty"),
    Detector("critic", "update", critic, "advantages are noise, and so are the policy's updates",
             "details 7, 8 and 10: critic.value_clip, critic.pretrain_iterations, a lower critic_optim.lr, gae.lam"),
    Detector("spikes", "update", spikes, "a few samples decide the update",
             "details 6, 11 and 12: advantage.clip, surrogate.clip_range, grad_clip.norm, a lower policy_optim.lr", patience=1),
)  # fmt: skip


def look(h: History) -> Iterator[tuple[Detector, Sign]]:
    """What every detector sees now, at most one sign each."""
    for detector in DETECTORS:
        if detector.name != "spikes" and h.policy_iterations < SETTLED:
            continue
        sign = detector.look(h)
        if sign is not None:
            yield detector, sign
