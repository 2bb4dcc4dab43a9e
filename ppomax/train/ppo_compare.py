"""A language model as judge while PPO trains: what it says of the policy's answers, and what if it cannot be asked.

The main rank asks. What it was told is kept in RUN/judge/judge_raw.jsonl and not asked again, also after a kill. Nothing
that the endpoint does ends the training: an evaluation that cannot be had in full is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from ppomax.config import PPOConfig
from ppomax.evaluate.answers import Answer
from ppomax.evaluate.llm_judge import LLMJudge, Unfinished
from ppomax.train.parallel import Ranks
from ppomax.train.ppo_setup import EncodedPrompt
from ppomax.train.run import RunDirectory

SIGN_OF_LIFE = 20.0
"""seconds; the ranks that wait for a slow judge hear from the main one so often, or their communication would time out"""
Verdicts = dict[str, list[int | None]]
"""by baseline: +1, 0 or -1 a prompt, None where the judge gave no verdict"""


def to_compare(prompt: EncodedPrompt, response: str, finished: bool) -> Answer:
    """An answer as a judge of pairs reads it."""
    return Answer(prompt.messages, response, finished, prompt.source, tuple(prompt.metadata.items()))


class Comparison:
    """One run's LLM judge."""

    def __init__(self, judge: LLMJudge, ranks: Ranks, run: RunDirectory) -> None:
        self.judge, self.ranks, self.run = judge, ranks, run
        self.skipped = 0
        """evaluations that could not be had, in this start"""
        self._told = False
        """of the present trouble"""

    def announce(self, config: PPOConfig, prompts: int) -> None:
        """What the evaluations will cost, before the first one."""
        baselines = len(set(config.watch.baselines))
        each, times = 2 * prompts * baselines, math.ceil(config.iterations / config.watch.judge_every) + 1
        budget = config.watch.llm.max_requests
        self.ranks.say(
            f"judge {self.judge.name}: up to {each} requests an evaluation ({prompts} prompts, both orders, {baselines} "
            f"{'baseline' if baselines == 1 else 'baselines'}), and {times} evaluations: up to {each * times}, besides "
            "retries" + (f"; the budget is watch.llm.max_requests = {budget} a start" if budget is not None else ""),
        )

    def verdicts(
        self, answers: Sequence[Answer], baselines: Mapping[str, Sequence[Answer]], iteration: int
    ) -> Verdicts | None:
        """What the judge says of ``answers`` against each baseline's; None: it could not be asked, which is told once."""
        found, trouble = self._patiently(answers, baselines)
        for name, outcomes in found.items():
            if not trouble and all(outcome is None for outcome in outcomes):
                trouble = f"{self.judge.name} gave no verdict on any answer (against {name})"
        if not trouble:
            self._told = False
            return found
        self.skipped += 1
        if not self._told:
            self._told = True
            message = (
                f"iteration {iteration}: no evaluation: {trouble}; training goes on, and so do evaluations once the judge "
                "can be asked"
            )
            alarm = {"iteration": iteration, "level": "notice", "detector": "judge", "since": iteration}
            self.run.log({**alarm, "message": message}, "alarms.jsonl")
            self.ranks.say(f"warning: {message}")
        return None

    def _patiently(
        self, answers: Sequence[Answer], baselines: Mapping[str, Sequence[Answer]]
    ) -> tuple[Verdicts, str]:  # fmt: skip
        """`_ask` of the main rank, on every rank."""
        if self.ranks.size == 1:
            return self._ask(answers, baselines)
        work: Future[tuple[Verdicts, str]] | None = None
        with ThreadPoolExecutor(1) as pool:
            if self.ranks.is_main:
                work = pool.submit(self._ask, answers, baselines)
            done = False
            while not done:
                if work is not None:
                    wait([work], SIGN_OF_LIFE)
                [done] = self.ranks.collect([work.done()] if work is not None else [])
        return self.ranks.collect([work.result()] if work is not None else [])[0]

    def _ask(self, answers: Sequence[Answer], baselines: Mapping[str, Sequence[Answer]]) -> tuple[Verdicts, str]:
        """(verdicts, why there are no more)"""
        found: Verdicts = {}
        try:
            for name, others in baselines.items():
                rows = self.judge.verdicts(answers, others)
                found[name] = [row["outcome"] if row["valid"] else None for row in rows]
        except Unfinished as error:
            return found, error.reason
        return found, ""
