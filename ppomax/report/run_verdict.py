"""A PPO run in two sentences, from its own numbers: did it get better, and did anything turn (section 5.2 of the paper)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ppomax.report.comparison import FALLEN, RISEN, Rate, verdict
from ppomax.report.figures import policy_series
from ppomax.report.stages import Course, Stage
from ppomax.report.verdicts import SMALL_KL

HARDLY = 0.1
"""standard deviations of the first samples' rewards below which the reward has hardly moved, as within twice the standard error of
the change of its means"""
SMOOTH, LONG = 5, 20
"""iterations in a running median, and of a run that is long enough for it"""
BAND = 2.0
"""a number turned when it left half to double of where it began"""
LOG_BAND = (1 / 3, 2.0)
"""a perplexity turned when its log left this share of where it began, as for the collapse watch: it is an exponential"""


@dataclass(frozen=True)
class Watched:
    """A number that tells of collapse. ``limit``: a fixed bound instead of a band about the beginning; ``log``: `LOG_BAND`."""

    metrics: tuple[str, ...]
    """the first one that the run has"""
    name: str
    unit: str = ""
    limit: float | None = None
    log: bool = False

    def turned(self, value: float, first: float) -> bool:
        if self.limit is not None:  # a policy that is no longer the reference may begin beyond it
            return value >= max(self.limit, BAND * first)
        if self.log:  # a perplexity of 1 has no log to compare with
            return first > 1 and not LOG_BAND[0] <= math.log(max(value, 1.0)) / math.log(first) <= LOG_BAND[1]
        return value > BAND * first or value < first / BAND

    def short(self, value: float) -> str:
        """Three significant digits, and no exponent for what is merely in the hundreds; a perplexity's log lies behind the 1."""
        return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.{4 if self.log else 3}g}"


WATCHED = (
    Watched(("kl/ref_k3", "kl/ref"), "KL to the reference", " nats a token", SMALL_KL),
    Watched(("response/length",), "length", " tokens"),
    Watched(("policy/perplexity",), "perplexity", log=True),
    Watched(("policy/entropy",), "entropy", " nats"),
    Watched(("response/distinct_2", "eval/distinct_2"), "diversity (distinct-2)"),
)
ESTIMATOR = {"kl/ref_k3": " (k3)", "kl/ref": " (k1)"}
"""what is said of the name of a KL: the two estimates of it differ"""


def two_sentences(run: Stage) -> list[str]:
    """What came out, and what turned; one sentence where the policy has not been trained yet."""
    reward = Course.of(run, "reward/mean")
    if reward is None:
        of_critic = sum(row.get("phase") == "critic" for row in run.metrics)
        if of_critic < len(run.metrics):
            return [f"No iteration of the policy has a reward ({len(run.metrics) - of_critic} are on record)."]
        return [f"No iteration of the policy is finished yet ({of_critic} of critic pre-training)."]
    return [_better(run, reward), _turned(run)]


def win_rate(run: Stage) -> Rate | None:
    """The last judged win rate with its 95% interval (`all_alike` where the outcomes are); None where no trained policy was judged."""
    if not run.evaluations or not run.evaluations[-1]["update"]:
        return None
    last = run.evaluations[-1]
    return Rate.of(float(last["eval/win_rate"]), float(last["eval/win_rate_se"]), int(last["eval/prompts"]))


def judge_name(run: Stage) -> str:
    """The judge as the settings name it."""
    judges = (run.config.get("watch") or {}).get("judge") or []
    named = [
        str(s.get("name") or s.get("function") or s.get("model") or s.get("url") or f"llm:{s.get('llm')}")
        for s in judges
    ]
    return " + ".join(named) or "the judge"


def _better(run: Stage, reward: Course) -> str:
    first = next(row for row in run.metrics if row.get("phase", "policy") == "policy")
    spread = first.get("reward/std") or math.nan
    rise = (reward.last - reward.first) / spread
    error = math.sqrt(2 / (int(run.config.get("rollout_batch") or 1) * reward.width))
    still = abs(rise) < max(HARDLY, 2 * error) if math.isfinite(rise) else math.isclose(reward.last, reward.first)
    moved = "hardly moved" if still else "rose" if reward.last > reward.first else "fell"
    text = f"The reward {moved}, from {reward.first:.3g} to {reward.last:.3g}"
    if math.isfinite(rise):
        text += f" ({rise:+.1f} standard deviations of the first samples' rewards)"
    rate = win_rate(run)
    if rate is None:
        known = (
            "only the start was judged so far"
            if run.evaluations
            else "no judge was asked whether the answers got better"
        )
        return f"{text}; {known}."
    than = "the reference's"
    judge = f", and by the judge ({judge_name(run)})"
    if run.evaluations[-1].get("eval/tie") == 1:
        return f"{text}{judge} the answers to all {rate.n} prompts are ties with {than}: it tells neither apart."
    text += f"{judge} the answers are {verdict(rate, than)}: win rate {rate} on {rate.n} prompts"
    best = max(run.evaluations, key=lambda row: row["eval/win_rate"])
    if best["eval/win_rate"] - rate.value >= FALLEN:
        text += f", after {best['eval/win_rate']:.0%} at iteration {best['iteration']}"
    if rise >= RISEN and rate.high < 0.5:
        text += ": more reward and worse answers, the reward model is being exploited"
    return text + "."


def _turned(run: Stage) -> str:
    turned, back, kept = [], [], []
    at = _iterations(run)
    for watched in WATCHED:
        metric, steps, values = _course(run, watched)
        if len(values) < 2:
            continue
        name = watched.name + ESTIMATOR.get(metric, "")
        first, last = values[0], values[-1]
        change = f"{watched.short(first)} to {watched.short(last)}{watched.unit}"
        away = _stretches([watched.turned(value, first) for value in values])
        ends = [(at[steps[low]], at[steps[high]]) for low, high in away]
        if away and away[-1][1] == len(values) - 1:
            before = f", and at {_span(ends[0][0], ends[-2][1])}" if len(away) > 1 else ""
            turned.append(f"{name} from {change} (since iteration {ends[-1][0]}{before})")
        elif away:
            inside = [value for low, high in away for value in values[low : high + 1]]
            far = max(inside, key=lambda value: abs(math.log(max(value, 1e-9) / max(first, 1e-9))))
            back.append(f"{name} {change}, by way of {watched.short(far)} (iteration {_span(ends[0][0], ends[-1][1])})")
        else:
            kept.append(f"{name} {change}")
    cut = Course.of(run, "response/truncated")
    if cut is not None and cut.last > max(0.5, cut.first):
        turned.append(f"answers cut at the length limit from {cut.first:.0%} to {cut.last:.0%}")
    parts = [("turned", "; ".join(turned)), ("turned and came back", "; ".join(back)), ("did not", ", ".join(kept))]
    told = [f"what {what}: {which}" for what, which in parts if which]
    if not told:
        text = "No number was measured twice, so whether any turned is not known"
    elif not turned and not back:
        text = f"Nothing turned ({', '.join(kept)})"
    else:
        text = "; ".join(told)
    return f"{text[0].upper()}{text[1:]}{_ended(run)}; {_alarms(run)}."


def _iterations(run: Stage) -> dict[int, int]:
    """Policy updates before an iteration's samples -> the iteration, as alarms count them."""
    at = {int(row["update"]): int(row.get("iteration", i)) for i, row in enumerate(run.evaluations)}
    before = 0
    for row in run.metrics:
        if row.get("phase", "policy") == "policy":
            at[before] = int(row.get("iteration", len(at)))
            before = int(row["update"])
    return at


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def _stretches(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """(first, last) place of every unbroken row of True."""
    found: list[tuple[int, int]] = []
    for i, flag in enumerate(flags):
        if flag and found and found[-1][1] == i - 1:
            found[-1] = (found[-1][0], i)
        elif flag:
            found.append((i, i))
    return found


def _course(run: Stage, watched: Watched) -> tuple[str, list[int], list[float]]:
    """(metric, updates, values) of the first metric that the run has; of a long run, `SMOOTH`-wide running medians.

    A median keeps the edge of a jump where it is, which a mean would not.
    """
    for metric in watched.metrics:
        if metric.startswith("eval/"):
            kept = [row for row in run.evaluations if _is_number(row.get(metric))]
            steps, values = [int(row["update"]) for row in kept], [float(row[metric]) for row in kept]
        else:
            steps, values = policy_series(run.metrics, metric)
            if len(values) >= LONG:
                side = SMOOTH // 2
                values = [median(values[max(0, i - side) : i + side + 1]) for i in range(len(values))]
        if values:
            return metric, steps, values
    return "", [], []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _ended(run: Stage) -> str:
    """Which numbers the last iterations no longer have."""
    rows = [row for row in run.metrics if row.get("phase", "policy") == "policy"]
    names = ("reward/mean", *(name for watched in WATCHED for name in watched.metrics))
    gone = [name for name in names if name in rows[-1] and not _is_number(rows[-1][name])]
    return f"; not finite at the end: {', '.join(gone)}" if gone else ""


def _alarms(run: Stage) -> str:
    if not run.alarms:
        return "no alarms"
    counts = Counter(str(alarm.get("level")) for alarm in run.alarms)
    levels = ", ".join(f"{count} {level}" for level, count in counts.items())
    first = run.alarms[0]
    back = sum(alarm.get("detector") == "rollback" for alarm in run.alarms)
    rolled = f"; rolled back {'once' if back == 1 else f'{back} times'}" if back else ""
    return f"alarms: {levels}, the first at iteration {first.get('iteration')}{rolled}"
