"""What a judge's name stands for, and the one form in which all of them judge: outcomes, one a prompt.

    rm:PATH (or a bare path)   reward model; several are a weighted sum
    world                      the embedded world's own judge
    llm:MODEL                  a language model behind an OpenAI-compatible endpoint
    module:function            Python function of prompts and responses
    http(s)://...              HTTP endpoint that answers with scores

All but ``llm`` give each answer a score, and the scores are compared with a tie band; an LLM compares two answers itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from pydantic import BeforeValidator, Field

from ppomax.config import JudgeConfig, LLMConfig, RewardSourceConfig, as_judges, check_judges
from ppomax.data.chat import ChatFormat
from ppomax.data.records import Prompt
from ppomax.errors import UserError
from ppomax.evaluate.answers import Answer, PromptKey
from ppomax.evaluate.llm_judge import LLMJudge
from ppomax.evaluate.winrate import Outcomes, TieUnit, outcomes_from_scores
from ppomax.evaluate.winrate import tie_band as width_of
from ppomax.models.loading import load_tokenizer
from ppomax.regular_file import expand_path
from ppomax.rollout.reward_sources import FunctionSource, Sample, combine, make_source
from ppomax.train.parallel import Ranks

Scorer = Callable[[Sequence[Answer]], list[float]]


Judges = Annotated[list[JudgeConfig], BeforeValidator(as_judges), Field(min_length=1)]
Choosers = Annotated[list[RewardSourceConfig], BeforeValidator(as_judges)]
"""what gives scores: as judges, but no language model"""


@dataclass(frozen=True)
class Judged:
    """What a judge says of n pairs of answers."""

    outcomes: Outcomes
    """(n,) +1: A wins, 0: tie, -1: B wins"""
    rows: list[dict[str, Any]]
    """what judgements.jsonl tells of each pair besides texts and outcome"""
    about: dict[str, Any]
    """what result.json tells: tie_band, mean_score_a, mean_score_b (null where nothing is scored), and `llm`"""


@runtime_checkable
class PairJudge(Protocol):
    """Anything that says which of two answers is better."""

    names: list[str]

    def compare(self, a: Sequence[Answer], b: Sequence[Answer]) -> Judged: ...

    def truncated(self) -> int: ...


def judged_by_scores(a: Sequence[float], b: Sequence[float], tie_band: float, tie_unit: TieUnit) -> Judged:
    """Outcomes of scored answers: a difference up to the tie band is a tie."""
    band = width_of(a, b, tie_band, tie_unit)
    rows = [{"score_a": x, "score_b": y} for x, y in zip(a, b, strict=True)]
    about = {"tie_band": band, "mean_score_a": sum(a) / len(a), "mean_score_b": sum(b) / len(b)}
    return Judged(outcomes_from_scores(a, b, band), rows, about)


class ScoreJudge:
    """Any scorer as a judge of pairs."""

    def __init__(self, scorer: Scorer, names: Sequence[str], tie_band: float, tie_unit: TieUnit) -> None:
        self.scorer, self.names, self.tie_band, self.tie_unit = scorer, list(names), tie_band, tie_unit

    def compare(self, a: Sequence[Answer], b: Sequence[Answer]) -> Judged:
        """Scores of both sides, and who wins."""
        return judged_by_scores(self.scorer(a), self.scorer(b), self.tie_band, self.tie_unit)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """UserError where functions cannot judge such prompts, found before any answer is made: asked of empty ones, to the
        first prompt of each source."""
        if isinstance(self.scorer, SourceScorer):
            first = {p.source: p for p in reversed(prompts)}
            self.scorer.check([Answer(p.messages, "", source=p.source, metadata=p.metadata) for p in first.values()])

    def truncated(self) -> int:
        """Dialogues that were longer than a judge's context and lost their left."""
        return self.scorer.truncated() if isinstance(self.scorer, SourceScorer) else 0


class LLMPairJudge:
    """A language model as a judge of pairs."""

    def __init__(self, judge: LLMJudge) -> None:
        self.judge, self.names = judge, [judge.name]

    def compare(self, a: Sequence[Answer], b: Sequence[Answer]) -> Judged:
        """Both orders asked; see `LLMJudge.verdicts`."""
        verdicts = self.judge.verdicts(a, b)
        outcomes = np.array([v["outcome"] for v in verdicts], dtype=np.int8)
        rows = [{k: v[k] for k in ("verdict_ab", "verdict_ba", "valid", "rubric")} for v in verdicts]
        about = {"tie_band": None, "mean_score_a": None, "mean_score_b": None}
        return Judged(outcomes, rows, {**about, "llm": self.judge.about(a, b, verdicts)})

    def truncated(self) -> int:
        """An endpoint tells of no such thing."""
        return 0


class SourceScorer:
    """Called with answers, gives one score each; an answer that occurs again is not judged again."""

    def __init__(
        self, judges: Sequence[RewardSourceConfig], ranks: Ranks, *, chat_template: Any = "model", precision: str = "float32",
        micro_batch_tokens: int = 8192, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        model = next((s.model for s in judges if s.model), None)
        path = model if isinstance(model, str) or model is None else model[0]
        # functions and endpoints read text alone and need no tokens
        self.chat: Any = ChatFormat(load_tokenizer(path, trust_remote_code), chat_template) if path else None
        self.ranks = ranks
        self.sources = [
            make_source(
                judge, self.chat, device=ranks.device, precision=precision, micro_batch_tokens=micro_batch_tokens,
                trust_remote_code=trust_remote_code,
            )
            for judge in judges
        ]  # fmt: skip
        self.known: dict[tuple[PromptKey, str, bool], float] = {}

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        def identity(answer: Answer) -> tuple[PromptKey, str, bool]:
            return answer.key, answer.response, answer.finished

        new = list({identity(a): a for a in answers if identity(a) not in self.known}.values())
        if new:
            mine = [self._sample(answer) for answer in self.ranks.share(new)]
            scored = self.ranks.collect(combine(self.sources, mine)[0].tolist())
            self.known |= {identity(answer): score for answer, score in zip(new, scored, strict=True)}
        return [self.known[identity(answer)] for answer in answers]

    def check(self, answers: Sequence[Answer]) -> None:
        """Score them by the functions alone, which may refuse them; nothing is kept."""
        samples = [self._sample(answer) for answer in answers]
        for source in self.sources:
            if isinstance(source, FunctionSource):
                source(samples)

    def _sample(self, answer: Answer) -> Sample:
        ids: tuple[list[int], list[int]] = ([], [])
        if self.chat is not None:
            response = self.chat.encode_response(answer.prompt, answer.response, answer.finished)
            ids = (self.chat.encode_prompt(answer.prompt), response)
        return Sample(answer.prompt, answer.response, *ids, answer.finished, dict(answer.metadata))

    def truncated(self) -> int:
        """Dialogues that were longer than a judge's context and lost their left."""
        return sum(self.ranks.collect([sum(getattr(source, "truncated", 0) for source in self.sources)]))


def make_judge(
    judges: Sequence[JudgeConfig], llm: LLMConfig, ranks: Ranks, folder: Path, *, tie_band: float = 0.1,
    tie_unit: TieUnit = "std", seed: int = 0, resamples: int = 1000, **loading: Any,
) -> PairJudge:  # fmt: skip
    """The judge of a duel. ``loading``: options of `SourceScorer`. ``folder``: where an LLM's replies are kept."""
    check_judges(judges)
    _check_names(judges)
    if judges[0].llm is not None:
        return LLMPairJudge(LLMJudge(judges[0].llm, llm, folder, ranks, seed=seed, resamples=resamples))
    return ScoreJudge(SourceScorer(judges, ranks, **loading), names_of(judges), tie_band, tie_unit)


def _check_names(judges: Sequence[JudgeConfig]) -> None:
    """UserError for a name that is taken for a reward model because it is nothing else, and is no folder either."""
    for judge in judges:
        paths = judge.model if isinstance(judge.model, list) else [] if judge.model is None else [judge.model]
        for path in paths:
            # a name with one slash may stand for a model on the hub; the loader tells of those
            if not path or (("/" not in path or ":" in path) and not Path(expand_path(path)).exists()):
                raise UserError(
                    f"judge: {path!r} is no folder of a reward model: give rm:PATH, world, llm:MODEL, module:function or "
                    "an http(s) address"
                )


def names_of(sources: Sequence[RewardSourceConfig]) -> list[str]:
    """What sources of scores are called in results."""
    return [str(source.name or source.model or source.function or source.url) for source in sources]
