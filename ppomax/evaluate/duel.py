"""Two systems or more answer the same prompts, a judge compares the answers, and the result says who wins how often.

    ppomax duel runs/ppo/final runs/sft/final --prompts test.jsonl --judge runs/judge/final --output_dir runs/duel

Each prompt gets one answer from each side (section 6 of the paper), drawn as the paper's evaluation draws them; what a side
may be is told in ``sides.py``. The judge reads prompt and answer as text, in its own tokens, so policies of any tokenizer
can meet; what may judge is told in ``judges.py``. A win is a win of A; how rates and intervals are made is told in
``winrate.py``. Of more than two systems all pairs are judged, and rated as ``ratings.py`` tells.

Written to the run directory: config.yaml, answers_a.jsonl, answers_b.jsonl, ... (and what they come from: candidates, an
endpoint's replies), judgements.jsonl (A against B; of further pairs judgements_a_c.jsonl, ...), result.json, the figures
win_tie_lose and against_strongest (PNG and SVG), metrics.jsonl (seconds taken), and of an LLM judge judge_raw.jsonl.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ppomax.config import (
    ChatTemplate,
    LLMConfig,
    Mixture,
    RunConfig,
    SamplingConfig,
)
from ppomax.data.records import Prompt
from ppomax.data.sources import load_mixture
from ppomax.errors import UserError
from ppomax.evaluate.agreement import share
from ppomax.evaluate.answers import Answer, Sampled, prompt_key, read_samples
from ppomax.evaluate.categories import check_pattern, label
from ppomax.evaluate.duel_tally import duel_over_training, tally
from ppomax.evaluate.endpoint_answers import AnswerEndpointConfig
from ppomax.evaluate.judges import Choosers, Judges, PairJudge, ScoreJudge, SourceScorer, make_judge, names_of
from ppomax.evaluate.ratings import rate
from ppomax.evaluate.sides import LETTERS, Named, Sides, name_side
from ppomax.evaluate.winrate import Outcomes, TieUnit, sign_test
from ppomax.regular_file import expand_path
from ppomax.train.parallel import Ranks, join
from ppomax.train.run import RunDirectory, plain


class DuelConfig(RunConfig):
    """Which of two systems answers better, by a judge. The sampling defaults are those of the paper's evaluation."""

    a: str
    """first system, whose wins are counted: model directory, file of answers (.jsonl: prompt, response; .json: AlpacaEval's
    outputs; a run's samples.jsonl), `endpoint:MODEL`, or `best_of:N:PATH`, the best of N answers of a model"""
    b: str
    """second system, such as the SFT model: the same choices"""
    others: list[str] = Field([])
    """further systems: all pairs are judged, and all systems rated (Bradley-Terry)"""
    a_iteration: int | None = None
    """where `a` is a run's samples.jsonl: whose answers; null: the last"""
    b_iteration: int | None = None
    """where `b` is a run's samples.jsonl: whose answers; null: the last"""
    prompts: Mixture = Field([])
    """prompts in any layout; empty: those that a file of answers holds"""
    max_prompts: int | None = Field(None, ge=1)
    """at most this many prompts, the first ones"""
    max_prompt_length: int | None = Field(None, ge=1)
    """longer prompts (in tokens of any model that answers) are left out and counted; null: half of the smallest context"""
    chat_template: ChatTemplate = "model"
    """how dialogues become text, for models and judges"""
    split_seed: int = 0
    """seed of all hash splits"""
    sampling: SamplingConfig = SamplingConfig(
        max_new_tokens=2048, temperature=0.8, top_p=0.9, repetition_penalty=1.1, batch_size=32
    )
    """how answers are drawn; max_new_tokens is lowered, for all sides alike, to what the smallest context leaves"""
    endpoint: AnswerEndpointConfig = AnswerEndpointConfig()
    """how an `endpoint:MODEL` side is asked; a key is read from the environment"""
    best_of_reward: Choosers = Field([])
    """reward model (or several, or a function) under which `best_of:N:PATH` chooses: the one that PPO was trained on"""
    judge: Judges
    """who judges: `rm:PATH` (several: weighted sum), `world`, `llm:MODEL`, `module:function`, or an http(s) address"""
    llm: LLMConfig = LLMConfig()
    """how an `llm:MODEL` judge is asked; a key is read from the environment"""
    tie_band: float = Field(0.1, ge=0)
    """a difference of scores up to this is a tie; an LLM names ties itself"""
    tie_unit: TieUnit = "std"
    """`std`: tie_band is a share of the scores' std; `score`: it is in the judge's own units, as watch.tie_band is"""
    over_training: str | None = None
    """a PPO run's samples.jsonl: its answers at each time are judged against its first ones as well"""
    resamples: int = Field(1000, ge=100)
    """bootstrap resamples over prompts"""
    micro_batch_tokens: int = Field(8192, ge=1)
    """padded tokens of one forward pass of a judge; affects memory and speed only"""


def run_duel(config: DuelConfig, *, resume: bool = False) -> dict[str, Any]:
    """Hold the duel and return what result.json says. A finished one is returned as it is with ``resume``.

    Raises UserError for every mistake that the caller can mend, before anything is written over.
    """
    named = _named(config)
    ranks = join(config.device)
    finished = Path(expand_path(config.output_dir)) / "result.json"
    if resume and finished.exists():
        RunDirectory.open(config, ranks, resume=True)  # refuses other settings
        return dict(json.loads(finished.read_text(encoding="utf-8")))

    say = _printer(ranks)
    loading: dict[str, Any] = {
        "chat_template": config.chat_template, "precision": config.precision,
        "micro_batch_tokens": config.micro_batch_tokens, "trust_remote_code": config.trust_remote_code,
    }  # fmt: skip
    judge = make_judge(
        config.judge, config.llm, ranks, finished.parent, tie_band=config.tie_band, tie_unit=config.tie_unit,
        seed=config.seed, resamples=config.resamples, **loading,
    )  # fmt: skip
    moments = read_samples(config.over_training) if config.over_training else []
    sides = Sides(
        named, chat_template=config.chat_template, trust_remote_code=config.trust_remote_code, endpoint=config.endpoint,
        scorer=lambda: SourceScorer(config.best_of_reward, ranks, **loading), say=say,
    )  # fmt: skip
    _warn_of_partial_judge(config, named, say)
    prompts, about_prompts = sides.prompts(_given_prompts(config, say), config.max_prompts)
    sampling, prompts, too_long = sides.fit(prompts, config.sampling, config.max_prompt_length)
    left_out = about_prompts["left_out"] | too_long
    if isinstance(judge, ScoreJudge):
        judge.check(prompts)

    run = RunDirectory.open(config, ranks, resume=resume)
    given: dict[str, list[Answer | None]] = {}
    told: dict[str, dict[str, Any]] = {"best_of": {}, "endpoint": {}}
    seconds: dict[str, float] = {}
    for side in named:
        began = time.perf_counter()
        given[side.letter], about = sides.answer(
            side, prompts, sampling, run, seed=config.seed, bf16=config.precision == "bf16"
        )
        if about is not None:
            told[side.kind][side.letter] = about
        if side.kind != "file":
            seconds[f"time/answers_{side.letter}"] = time.perf_counter() - began
    prompts, answers = _answered_by_all(prompts, given, left_out)

    began = time.perf_counter()
    categories = [label(p.messages, p.source, dict(p.metadata), config.llm.harmless) for p in prompts]
    pairs: list[dict[str, Any]] = []
    outcomes: dict[tuple[int, int], Outcomes] = {}
    for i, j in combinations(range(len(named)), 2):
        a, b = named[i].letter, named[j].letter
        judged = judge.compare(answers[a], answers[b])
        outcomes[i, j] = judged.outcomes
        result, judgements = tally(
            answers[a], answers[b], judged, [p.source for p in prompts], categories=categories, seed=config.seed,
            resamples=config.resamples,
        )  # fmt: skip
        pairs.append({"one": a, "other": b, **result})
        run.write("judgements.jsonl" if (i, j) == (0, 1) else f"judgements_{a}_{b}.jsonl", _lines(judgements))
    result = {
        "a": named[0].title,
        "b": named[1].title,
        "judge": judge.names,
        **{k: v for k, v in pairs[0].items() if k not in ("one", "other")},
        "left_out": left_out,
        "files": about_prompts["files"],
        **{kind: about for kind, about in told.items() if about},
        "sampled": {"max_new_tokens": sampling.max_new_tokens} if sides.generate else None,
        "seed": config.seed,
        "resamples": config.resamples,
    }
    if "best_of" in result:
        result["best_of_reward"] = names_of(config.best_of_reward)
    if len(named) > 2:
        result |= _ratings(config, named, pairs, outcomes, categories)
    if moments:
        result["over_training"] = _over_training(config, moments, judge, prompts)
    run.log({**seconds, "time/judge": time.perf_counter() - began})
    result["judge_truncated"] = judge.truncated()
    if isinstance(sides.scorer, SourceScorer) and (cut := sides.scorer.truncated()):
        result["best_of_truncated"] = cut
        say(f"{cut} dialogues were longer than the context of --best_of_reward and lost their left")
    if result["judge_truncated"]:
        say(f"{result['judge_truncated']} dialogues were longer than the judge's context and lost their left")
    result = plain(result)
    if ranks.is_main:
        from ppomax.evaluate.duel_figures import draw_duel

        draw_duel(result, run.path)
    run.write("result.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    ranks.barrier()
    return result


def _ratings(
    config: DuelConfig, named: Sequence[Named], pairs: list[dict[str, Any]], outcomes: dict[tuple[int, int], Outcomes],
    categories: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """systems, pairs and ratings of a duel of more than two, as result.json tells them."""

    def rated(rows: Sequence[int]) -> dict[str, Any]:
        chosen = {pair: own[list(rows)] for pair, own in outcomes.items()}
        found = rate(chosen, len(named), seed=config.seed, resamples=config.resamples)
        found["ratings"] = {side.letter: r for side, r in zip(named, found["ratings"], strict=True)}
        for pair in found["pairs"]:
            pair |= {"one": named[pair["one"]].letter, "other": named[pair["other"]].letter}
        return found

    kinds = {name: [i for i, c in enumerate(categories) if c == name] for name in dict.fromkeys(categories)}
    overall = rated(range(len(categories)))
    values = [overall["ratings"][side.letter]["value"] for side in named]
    strongest = values.index(max(values))
    lost: dict[int, Any] = {}
    for i, j in outcomes:
        if strongest in (i, j):
            lost[j if i == strongest else i] = outcomes[i, j] == (1 if i == strongest else -1)
    return {
        "systems": {side.letter: side.title for side in named},
        "pairs": pairs,
        "ratings": overall,
        "ratings_by_category": {name: rated(rows) for name, rows in kinds.items()},
        "against_strongest": {  # Fig. 11 of the paper
            "opponent": named[strongest].letter,
            "loses": {
                named[i].letter: {
                    name: asdict(share(lost[i][rows], np.ones(len(rows)), seed=config.seed, resamples=config.resamples))
                    for name, rows in [*kinds.items(), ("all", list(range(len(categories))))]
                }
                for i in sorted(lost)
            },
            "differences": [
                _difference(named[i].letter, named[j].letter, lost[i], lost[j], config)
                for i, j in combinations(sorted(lost), 2)
            ],
        },
    }


def _difference(one: str, other: str, lost: Outcomes, theirs: Outcomes, config: DuelConfig) -> dict[str, Any]:
    """How much more often one system loses to the strongest than another does, on the same prompts: value with its 95%
    interval (bootstrap over prompts), prompts that one alone loses, and an exact sign test of these."""
    gap = np.asarray(lost, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    found = share(gap, np.ones(len(gap)), lowest=-1.0, seed=config.seed, resamples=config.resamples)
    alone = int((gap > 0).sum()), int((gap < 0).sum())
    return {
        "one": one, "other": other, **asdict(found), "one_only": alone[0], "other_only": alone[1],
        "sign_test_p": sign_test(*alone),
    }  # fmt: skip


def _over_training(
    config: DuelConfig, moments: list[Sampled], judge: PairJudge, prompts: Sequence[Prompt]
) -> list[dict[str, Any]]:
    sources = {prompt_key(p.messages): p.source for p in prompts}
    for moment in moments:  # samples.jsonl does not say where its prompts come from
        for key, answer in moment.answers.items():
            moment.answers[key] = replace(answer, source=sources.get(key, answer.source))
    return duel_over_training(moments, judge, seed=config.seed, resamples=config.resamples)


def _named(config: DuelConfig) -> list[Named]:
    """All sides by their names. UserError for what cannot be meant."""
    if config.sampling.samples_per_prompt != 1:
        raise UserError("sampling.samples_per_prompt: a duel compares one answer a prompt; leave it at 1")
    check_pattern(config.llm.harmless)  # categories are told whoever judges
    places = [config.a, config.b, *config.others]
    if len(places) > len(LETTERS):
        raise UserError(f"others: {len(places)} systems; at most {len(LETTERS)} can meet")
    iterations = [config.a_iteration, config.b_iteration, *[None] * len(config.others)]
    named = [name_side(*parts) for parts in zip(LETTERS, places, iterations, strict=False)]
    if not config.prompts and not any(side.kind == "file" for side in named):
        who = "neither a nor b" if len(named) == 2 else "no side"
        raise UserError(f"prompts: none are given, and {who} is a file of answers: give --prompts FILE")
    for side in named:
        if side.kind == "best_of" and not config.best_of_reward:
            raise UserError(f"{side.letter}: {side.place} needs what chooses: give --best_of_reward REWARD_MODEL")
    return named


def _warn_of_partial_judge(config: DuelConfig, named: Sequence[Named], say: Callable[[str], None]) -> None:
    chooser = {name.rstrip("/") for name in names_of(config.best_of_reward)}
    same = chooser & {str(j.name or j.model or j.function or j.url).rstrip("/") for j in config.judge if j.llm is None}
    if same and any(side.kind == "best_of" for side in named):
        say(f"warning: {', '.join(sorted(same))} both chooses the best of n and judges: best_of wins by how it is made")


def _printer(ranks: Ranks) -> Callable[[str], None]:
    def say(line: str) -> None:
        if ranks.is_main:
            print(line, file=sys.stderr, flush=True)

    return say


def _given_prompts(config: DuelConfig, say: Callable[[str], None]) -> list[Prompt] | None:
    if not config.prompts:
        return None
    records, report = load_mixture(config.prompts, "prompt", split_seed=config.split_seed)
    for line in report.lines():
        say(line)
    return [r for r in records if isinstance(r, Prompt)]


def _answered_by_all(
    prompts: list[Prompt], given: dict[str, list[Answer | None]], left_out: dict[str, int]
) -> tuple[list[Prompt], dict[str, list[Answer]]]:
    """Prompts that every side answered, and the answers; others are counted in ``left_out``."""
    complete = [i for i in range(len(prompts)) if all(own[i] is not None for own in given.values())]
    if len(complete) < len(prompts):
        left_out["no answer from an endpoint"] = len(prompts) - len(complete)
    if not complete:
        raise UserError("no prompt was answered by every side")
    answers = {letter: [own[i] for i in complete] for letter, own in given.items()}
    return [prompts[i] for i in complete], answers  # type: ignore[return-value]


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows)
