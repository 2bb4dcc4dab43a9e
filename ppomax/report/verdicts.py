"""Sentences chosen by the numbers: what came out, and what did not come out as expected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ppomax.report.markdown import accuracy_cell, estimate
from ppomax.report.stages import Course, Stage, held_out_change

SMALL_KL = 0.1
"""nats a token: about twice the highest KL that the paper shows for PPO-max (.058)"""


@dataclass
class Verdicts:
    """Sentences about what came out: as expected, not as expected, and where nothing was expected."""

    met: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """all of them, in order"""

    def add(self, sentence: str, *, expected: bool | None = None) -> None:
        """``expected`` None: nothing was expected."""
        {True: self.met, False: self.missed, None: self.other}[expected].append(sentence)
        self.said.append(sentence)

    def blocks(self) -> list[str]:
        """Markdown: three lists under their headings."""
        parts = (
            ("As expected", self.met),
            ("Not as expected", self.missed or ["nothing of what was checked"] * bool(self.met)),
            ("Besides", self.other),
        )
        return [f"**{head}**\n\n" + "\n".join(f"- {s}" for s in said) for head, said in parts if said]


def judge_reward_model(stage: Stage, verdicts: Verdicts) -> None:
    overall = stage.evaluation.get("held_out", {}).get("overall")
    if not overall:
        return
    model = overall["model"]
    baselines = {"the longer answer wins": overall["longer"], "bag of words": overall.get("bag_of_words")}
    known = {name: cell["accuracy"] for name, cell in baselines.items() if cell and cell["accuracy"] is not None}
    text = f"Reward model `{stage.name}` puts {accuracy_cell(model)} of {model['n']} held-out pairs in the right order"
    if not known:
        verdicts.add(f"{text}.")
        return
    best = max(known, key=lambda name: known[name])
    than = "both baselines" if len(known) > 1 else "its baseline"
    beside = ", ".join(f"{name} {value:.3f}" for name, value in known.items())
    if model["interval"][0] > known[best]:
        verdicts.add(f"{text}: better than {than} ({beside}).", expected=True)
    elif model["accuracy"] > known[best]:
        verdicts.add(f"{text}: above {than} ({beside}), but '{best}' lies within its interval.", expected=False)
    else:
        verdicts.add(f"{text}: no better than '{best}' ({beside}).", expected=False)
    for name, part in stage.evaluation["held_out"]["sources"].items():
        own, longer = part["model"]["accuracy"], part["longer"]["accuracy"]
        if "/" not in name and own is not None and longer is not None and own <= longer:
            verdicts.add(
                f"On `{name}` alone `{stage.name}` is no better than 'the longer answer wins': {own:.3f} against "
                f"{longer:.3f} on {part['model']['n']} pairs.",
                expected=False,
            )
    matched = overall["length_matched"]
    if matched["n"]:
        chance = matched["interval"][0] > 0.5
        verdicts.add(
            f"Among the {matched['n']} of these pairs whose answers are about equally long it is right in "
            f"{accuracy_cell(matched)}: {'it has' if chance else 'it is not shown to have'} learned more than length.",
            expected=chance,
        )


def judge_training(stage: Stage, verdicts: Verdicts, *, main: bool) -> None:
    """``main``: the run of which the issue's expectations speak; others are described."""
    change = held_out_change(stage)
    if change is not None:
        first, last, mean, half = change
        moved = "raised" if mean - half > 0 else "lowered" if mean + half < 0 else "did not measurably move"
        verdicts.add(
            f"{stage.title} {moved} the reward it trains on: {first:.3f} to {last:.3f} on its fixed held-out prompts "
            f"(change {mean:+.3f} ± {half:.3f}).",
            expected=(moved == "raised") if main else None,
        )
    kl, length = Course.of(stage, "kl/ref_k3"), Course.of(stage, "response/length")
    if kl is not None:
        growing = kl.last > 1.1 * kl.before_last
        small = kl.last < SMALL_KL
        verdicts.add(
            f"{stage.title}: KL to SFT ends at {kl.last:.3f} nats a token (k3; highest {kl.highest:.3f}) and "
            f"{'is still growing' if growing else 'has stopped growing'} (the tenth of the run before: "
            f"{kl.before_last:.3f}); {'below' if small else 'above'} {SMALL_KL} counts as {'small' if small else 'large'} here.",
            expected=small or not growing if main else None,
        )
    if length is not None:
        ratio = length.last / length.first
        kept = 0.5 <= ratio <= 2
        verdicts.add(
            f"{stage.title}: responses go from {length.first:.0f} to {length.last:.0f} tokens, "
            f"{'within' if kept else 'beyond'} half and double.",
            expected=kept if main else None,
        )
    cut = Course.of(stage, "response/truncated")
    if cut is not None and cut.last > max(0.5, cut.first):
        verdicts.add(
            f"{stage.title}: {cut.last:.0%} of its responses end at the length limit ({cut.first:.0%} at first), so how long "
            "they would have become is not known.",
            expected=False if main else None,
        )


def compare_drift(runs: Sequence[Stage], verdicts: Verdicts) -> None:
    """How far the other runs went from SFT, beside the first."""
    ends = [(run, Course.of(run, "kl/ref_k3")) for run in runs]
    for run, course in ends[1:]:
        first = ends[0][1]
        if course is not None and first is not None and first.last > 0:
            verdicts.add(
                f"At the end {run.title} is {course.last / first.last:.1f} times as far from SFT (KL, k3) as "
                f"{runs[0].title}."
            )


def judge_words(names: Sequence[str]) -> tuple[str, bool]:
    """(who judged, whether it was a reward model)."""
    named = " + ".join(names)
    if named == "world":
        return "the world's own", False
    if named.startswith("llm:"):
        return f"the language model {named.removeprefix('llm:')}", False
    if any(":" in name for name in names):
        return f"`{named}`", False
    return f"reward model `{named}`" if len(names) == 1 else f"the reward models `{named}`", True


def judge_duel(ppo: Stage, duel: Stage, verdicts: Verdicts, *, main: bool) -> None:
    overall = duel.result["overall"]
    said = {}
    for key in ("win_rate", "length_controlled"):
        rate = overall[key]
        said[key] = "preferred" if rate["low"] > 0.5 else "not preferred" if rate["high"] < 0.5 else "undecided"
    words = {
        "preferred": "is preferred to SFT",
        "not preferred": "loses to SFT",
        "undecided": "is not distinguishable from SFT",
    }
    judge, learnt = judge_words([str(name) for name in duel.result.get("judge") or ["unknown"]])
    verdicts.add(
        f"By the judge ({judge}) {ppo.title} {words[said['win_rate']]}: win rate {estimate(overall['win_rate'])} on "
        f"{overall['prompts']} held-out prompts ({overall['win']} wins, {overall['tie']} ties, {overall['lose']} losses; "
        f"sign test p = {overall['sign_test_p']:.2g}).",
        expected=(said["win_rate"] == "preferred") if main else None,
    )
    verdicts.add(
        f"At equal lengths (length-controlled) {ppo.title} {words[said['length_controlled']]}: "
        f"{estimate(overall['length_controlled'])}.",
        expected=(said["length_controlled"] == "preferred") if main else None,
    )
    kl, perplexity = Course.of(ppo, "kl/ref_k3"), Course.of(ppo, "policy/perplexity")
    collapsed = (
        kl is not None and perplexity is not None and kl.last >= SMALL_KL and perplexity.last < perplexity.first / 2
    )
    if collapsed and said["win_rate"] == "preferred":
        assert perplexity is not None
        why = (
            "A reward model shares the mistakes of another one of the same making, so what it says of any run shows that "
            "the reward carries over to it, not that people would prefer the answers."
            if learnt
            else "So what it says of any run does not show that people would prefer the answers."
        )
        verdicts.add(
            f"**The judge is fooled**: it prefers {ppo.title}, whose perplexity on its own responses fell from "
            f"{perplexity.first:.3g} to {perplexity.last:.3g} (a few tokens over and over). {why}",
            expected=False,
        )
