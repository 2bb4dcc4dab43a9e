"""The last evaluation of a finished policy: many answers to held-out prompts, judged against SFT's in three forms.

A policy may win by being sharper than SFT rather than better, so SFT answers thrice: sampled as the policy samples; sampled
at the temperature at which it is as sharp as the policy; and greedily. "As sharp": the mean entropy, over all tokens of a
model's own sampled answers, of the distribution that each token was really drawn from (after temperature, top-k and top-p,
renormalised; a repetition penalty is left out). SFT's temperature is found by bisection on its logarithm: lower
temperatures are sharper. Besides, both decode greedily, against each other.

A win rate counts a tie as half. Its standard error is over prompts, after the mean over a prompt's draws: draw k of the
policy meets draw k of SFT.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppomax.config import PPOConfig, RewardSourceConfig, SamplingConfig, as_reward_sources
from ppomax.data.batches import token_budget
from ppomax.data.chat import ChatFormat
from ppomax.data.records import Prompt
from ppomax.data.sources import load_mixture
from ppomax.errors import UserError
from ppomax.evaluate.winrate import outcomes_from_scores
from ppomax.lab.claims import COLDEST, HOTTEST, EndpointConfig
from ppomax.models.loading import load_causal_lm, load_tokenizer
from ppomax.models.logprobs import hidden_states, unembed
from ppomax.rollout.engine import Completion, sample_seed
from ppomax.rollout.experience import Experience
from ppomax.rollout.reward_sources import RewardSource, Sample, combine, make_source
from ppomax.rollout.sampling import keep_nucleus, keep_top_k
from ppomax.rollout.transformers_engine import TransformersEngine
from ppomax.train.checkpoint import write_atomic
from ppomax.train.parallel import pick_device
from ppomax.train.ppo_update import to_batch

STREAM = 2 * 10**9
"""keeps these seeds apart from those of training and of the live judge"""
POLICY, REFERENCE = 0, 1
HALVINGS = 7
"""of the bisection: the temperature is found to within 1.6%"""
POSITIONS = 4096
"""logits held at once"""
Floats = NDArray[np.float64]


@dataclass
class Answers:
    """Answers of one model in one form: ``draws`` x prompts, judged."""

    scores: list[list[float]] = field(default_factory=list)
    """by the judge; one list a draw"""
    second: list[float] = field(default_factory=list)
    """by the second judge, of the first draw"""
    length: float = 0.0
    """tokens, mean"""
    truncated: float = 0.0
    """share cut at the length limit"""


@dataclass
class Examiner:
    """What judging needs, and where SFT's part is remembered for other runs of the same start."""

    config: EndpointConfig
    chat: ChatFormat
    sampling: SamplingConfig
    prompts: list[Prompt]
    judges: list[RewardSource]
    second: list[RewardSource]
    seed: int
    bf16: bool = False

    def draw(self, model: Any, sampling: SamplingConfig, who: int, draw: int) -> list[Completion]:
        """One answer to every prompt."""
        engine = TransformersEngine(model, self.chat, sampling, bf16=self.bf16)
        seeds = [sample_seed(self.seed, STREAM, who, draw, i) for i in range(len(self.prompts))]
        return engine.generate([self.chat.encode_prompt(p.messages) for p in self.prompts], seeds)

    def judged(self, model: Any, sampling: SamplingConfig, who: int) -> Answers:
        """Draw and judge; greedy answers are drawn once."""
        out = Answers()
        lengths: list[int] = []
        cut: list[bool] = []
        for draw in range(1 if sampling.temperature == 0 else self.config.draws):
            completions = self.draw(model, sampling, who, draw)
            samples = [
                Sample(
                    p.messages, self.chat.decode(c.response_ids), c.prompt_ids, c.response_ids, c.finished,
                    dict(p.metadata),
                )
                for p, c in zip(self.prompts, completions, strict=True)
            ]  # fmt: skip
            out.scores.append(combine(self.judges, samples)[0].tolist())
            if draw == 0 and self.second:
                out.second = combine(self.second, samples)[0].tolist()
            lengths += [len(c.response_ids) for c in completions]
            cut += [not c.finished for c in completions]
        out.length, out.truncated = float(np.mean(lengths)), float(np.mean(cut))
        return out

    def entropy(self, model: Any, sampling: SamplingConfig, who: int) -> float:
        """Nats a token of the distributions that the model's own answers to the first prompts are drawn from."""
        few = Examiner(
            self.config, self.chat, sampling, self.prompts[: self.config.entropy_prompts], [], [], self.seed, self.bf16
        )
        return sampling_entropy(model, few.draw(model, sampling, who, 0), sampling)


@torch.no_grad()
def sampling_entropy(model: Any, completions: Sequence[Completion], sampling: SamplingConfig) -> float:
    """Mean entropy, over all response tokens, of softmax(logits / temperature) after top-k and top-p; 0 where greedy."""
    if sampling.temperature == 0:
        return 0.0
    experience = Experience.from_completions(completions)
    total = 0.0
    device = next(model.parameters()).device
    for rows in token_budget(experience.lengths.tolist(), 8192):
        batch = to_batch(experience.select(rows), device)
        hidden = hidden_states(model, batch.ids, batch.lengths)[batch.positions()]
        for start in range(0, len(hidden), POSITIONS):
            total += float(entropies(unembed(model, hidden[start : start + POSITIONS]), sampling).sum())
    return total / int(experience.response_mask.sum())


def entropies(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Entropy (N,) in nats of what is drawn from, given raw logits (N, V)."""
    logits = logits.float() / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    probs = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        probs = keep_nucleus(probs, sampling.top_p)
        probs = probs / probs.sum(dim=-1, keepdim=True)
    return torch.special.entr(probs).sum(dim=-1)


def match_temperature(target: float, entropy: Callable[[float], float]) -> tuple[float, float]:
    """(temperature, entropy there) at which ``entropy``, which rises with temperature, equals ``target``.

    Where the target lies outside [COLDEST, HOTTEST], that bound.
    """
    low, high = COLDEST, HOTTEST
    for bound, beyond in ((low, entropy(low) >= target), (high, entropy(high) <= target)):
        if beyond:
            return bound, entropy(bound)
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if entropy(middle) < target else (low, middle)
    final = math.sqrt(low * high)
    return final, entropy(final)


def compare(a: Answers, b: Answers, categories: Sequence[str], band: float) -> dict[str, Any]:
    """win, tie, lose, win_rate and its standard error ``se`` for all prompts; the same for each category.

    A side that was drawn once (greedy) meets every draw of the other.
    """
    draws = max(len(a.scores), len(b.scores))
    outcomes = np.stack(  # (draws, prompts)
        [outcomes_from_scores(a.scores[k % len(a.scores)], b.scores[k % len(b.scores)], band) for k in range(draws)]
    ).astype(np.float64)

    def part(chosen: NDArray[np.bool_]) -> dict[str, float]:
        some = outcomes[:, chosen]
        means = ((some + 1) / 2).mean(axis=0)  # over draws
        return {
            "win": float((some == 1).mean()), "tie": float((some == 0).mean()), "lose": float((some == -1).mean()),
            "win_rate": float(means.mean()),
            "se": float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else 0.0, "prompts": len(means),
        }  # fmt: skip

    names = np.asarray(categories)
    everything = part(np.ones(len(names), dtype=bool))
    return {**everything, "by_category": {str(c): part(names == c) for c in sorted(set(categories))}}


def agreement(truth: tuple[Answers, Answers], band: float) -> dict[str, float]:
    """How far the second judge agrees with the truth on who is better, policy or SFT, over the first draws.

    ``agree``: share of the prompts where the truth is decided on which the second judge prefers the same side (its ties
    do not occur: its scores are not rounded). ``win_rate``: the policy's by the second judge.
    """
    a, b = truth
    true = outcomes_from_scores(a.scores[0], b.scores[0], band)
    learnt = outcomes_from_scores(a.second, b.second)
    decided = true != 0
    return {
        "agree": float((true[decided] == learnt[decided]).mean()) if decided.any() else math.nan,
        "decided": int(decided.sum()),
        "win_rate": float(((learnt + 1) / 2).mean()),
    }


# ------------------------------------------------------------------------------------------ the whole


def run_endpoint(ppo: PPOConfig, settings: dict[str, Any], policy_dir: Path, memory: Path) -> dict[str, Any]:
    """Everything about the policy in ``policy_dir`` at its end; ``memory``: folder for SFT's part, shared by runs."""
    config = EndpointConfig.model_validate(settings)
    device = pick_device(ppo.device)
    trust = ppo.trust_remote_code
    start = ppo.reference or ppo.model
    chat = ChatFormat(load_tokenizer(str(policy_dir), trust), ppo.chat_template)
    policy, sft = (load_causal_lm(str(place), device, trust) for place in (policy_dir, start))
    records, report = load_mixture(config.prompts, "prompt", split_seed=ppo.split_seed, once=True)
    for line in report.lines():
        print(line, file=sys.stderr)
    fitting = [r for r in records if isinstance(r, Prompt)]
    fitting = [p for p in fitting if len(chat.encode_prompt(p.messages)) <= ppo.max_prompt_length]
    if len(fitting) < len(records):
        print(f"{len(records) - len(fitting)} prompts over {ppo.max_prompt_length} tokens left out", file=sys.stderr)
    prompts = fitting[: config.limit]
    if len(prompts) < 2:
        raise UserError(f"endpoint.prompts: {len(prompts)} fit: at least 2 are needed")

    def sources(value: Any) -> list[RewardSource]:
        read = [RewardSourceConfig.model_validate(v) for v in as_reward_sources(value)]
        return [make_source(v, chat, device=device, trust_remote_code=trust) for v in read]

    second = sources(config.second_judge) if config.second_judge else []
    examiner = Examiner(
        config, chat, ppo.sampling, prompts, sources(config.judge), second, ppo.seed, ppo.precision == "bf16"
    )
    greedy = ppo.sampling.model_copy(update={"temperature": 0.0})
    sft_part = Memory(memory, [start, settings, ppo.sampling.model_dump(mode="json"), ppo.seed, ppo.max_prompt_length])

    def say(what: str) -> None:
        print(f"endpoint: {what}", file=sys.stderr, flush=True)

    say("the policy's answers")
    mine = examiner.judged(policy, ppo.sampling, POLICY)
    mine_greedy = examiner.judged(policy, greedy, POLICY)
    entropy = examiner.entropy(policy, ppo.sampling, POLICY)
    say("SFT's answers")
    same = sft_part.answers("sampled", lambda: examiner.judged(sft, ppo.sampling, REFERENCE))
    its_greedy = sft_part.answers("greedy", lambda: examiner.judged(sft, greedy, REFERENCE))
    say("the temperature at which SFT is as sharp as the policy")

    def at(temperature: float) -> SamplingConfig:
        return ppo.sampling.model_copy(update={"temperature": temperature})

    temperature, matched_entropy = match_temperature(
        entropy, lambda t: sft_part.number(f"entropy/{t:.6f}", lambda: examiner.entropy(sft, at(t), REFERENCE))
    )
    matched = examiner.judged(sft, at(temperature), REFERENCE)

    categories = [str(dict(p.metadata).get("category") or p.source) for p in prompts]
    pairs = {
        "same_temperature": (mine, same), "matched_entropy": (mine, matched), "against_greedy": (mine, its_greedy),
        "both_greedy": (mine_greedy, its_greedy),
    }  # fmt: skip
    out: dict[str, Any] = {name: compare(a, b, categories, config.tie_band) for name, (a, b) in pairs.items()}
    out["prompts"], out["draws"] = len(prompts), config.draws
    out["entropy"] = {
        "policy": entropy, "sft": sft_part.number("entropy/own", lambda: examiner.entropy(sft, ppo.sampling, REFERENCE)),
        "matched_temperature": temperature, "matched": matched_entropy,
    }  # fmt: skip
    forms = {
        "policy": mine,
        "policy_greedy": mine_greedy,
        "sft": same,
        "sft_matched": matched,
        "sft_greedy": its_greedy,
    }
    out["judge"] = {name: float(np.mean(a.scores)) for name, a in forms.items()}
    out["length"] = {name: a.length for name, a in forms.items()}
    out["truncated"] = {name: a.truncated for name, a in forms.items()}
    if second:
        out["second_judge"] = agreement((mine, same), config.tie_band)
    if config.opponent:
        say("the stronger opponent")
        theirs = opponent_answers(examiner)
        out["opponent"] = {
            "policy": compare(mine, theirs, categories, config.tie_band),
            "sft": compare(same, theirs, categories, config.tie_band),
            "judge": float(np.mean(theirs.scores)),
        }
    if config.exam:
        say("the exam")
        exam = config.exam
        out["exam"] = {
            "policy": sit(policy_dir, exam, ppo),
            "sft": sft_part.value("exam", lambda: sit(Path(start), exam, ppo)),
        }
    sft_part.write()
    return out


def sit(model: Path, exam: str, ppo: PPOConfig) -> dict[str, float]:
    """Accuracy by category and ``all`` of the world's exam or another."""
    from ppomax.evaluate.exam import HEADLINE, ExamConfig, run_exam

    result = run_exam(ExamConfig(models=[str(model)], data=[exam], device=ppo.device))
    summary = next(iter(result["models"].values()))
    by_category = {name: part[HEADLINE]["accuracy"] for name, part in summary["by_category"].items()}
    overall = summary["overall"]
    return {**by_category, "all": overall[HEADLINE]["accuracy"], "chance": overall["chance"], "n": overall["n"]}


def opponent_answers(examiner: Examiner) -> Answers:
    """The world's stronger opponent, judged; the same answer at every draw."""
    from ppomax.world.world import world_named

    samples = []
    for prompt in examiner.prompts:
        columns = dict(prompt.metadata)
        if not columns.get("world"):
            raise UserError("endpoint.opponent: a prompt is of no world, and only a world has an opponent: turn it off")
        text = world_named(str(columns["world"])).opponent(prompt)
        samples.append(Sample(prompt.messages, text, [], [], True, columns))
    return Answers([combine(examiner.judges, samples)[0].tolist()])


class Memory:
    """SFT's answers, entropies and exam, remembered beside the start: a file for each (start, settings, seed)."""

    def __init__(self, folder: Path, content: Any) -> None:
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]
        self.path = folder / f"{digest}.json"
        self.known: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.known:
            self.known[name] = make()
        return self.known[name]

    def number(self, name: str, make: Callable[[], float]) -> float:
        return float(self.value(name, make))

    def answers(self, name: str, make: Callable[[], Answers]) -> Answers:
        return Answers(**self.value(name, lambda: vars(make())))

    def write(self) -> None:
        """Add what is new to the file; another run of the same start may do so at the same time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
            write_atomic(self.path, json.dumps({**self.known, **before}) + "\n")
