"""Two systems answer the same prompts, a judge scores both answers, and the result says who wins how often.

    ppomax duel runs/ppo/final runs/sft/final --prompts test.jsonl --judge runs/judge/final --output_dir runs/duel

Each prompt gets one answer from either side (section 6 of the paper), drawn as the paper's evaluation draws them. The
judge reads prompt and answer as text, in its own tokens, so policies of any tokenizer can meet; what may judge is told in
``judges.py``. A win is a win of A; how rates and intervals are made is told in ``winrate.py``.

Written to the run directory: config.yaml, answers_a.jsonl, answers_b.jsonl (of models: kept as they are drawn, so that a
killed duel goes on), judgements.jsonl, result.json, metrics.jsonl (seconds taken), and of an LLM judge judge_raw.jsonl.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from ppomax.config import (
    ChatTemplate,
    Mixture,
    RunConfig,
    SamplingConfig,
)
from ppomax.data.chat import ChatFormat
from ppomax.data.records import Prompt
from ppomax.data.sources import load_mixture
from ppomax.errors import UserError
from ppomax.evaluate.answers import (
    Answer,
    PromptKey,
    Sampler,
    is_answer_file,
    prompt_key,
    read_answers,
    read_samples,
)
from ppomax.evaluate.judges import Judged, Judges, PairJudge, ScoreJudge, Scorer, judged_by_scores, make_judge
from ppomax.evaluate.llm_endpoint import LLMConfig
from ppomax.evaluate.winrate import TieUnit, summarise
from ppomax.models.loading import load_causal_lm, load_tokenizer
from ppomax.train.parallel import Ranks, join
from ppomax.train.run import RunDirectory, plain

UNIT = "characters"
"""lengths are counted in characters: the two sides may have different tokenizers"""
SIDES = ("a", "b")


class DuelConfig(RunConfig):
    """Which of two systems answers better, by a judge. The sampling defaults are those of the paper's evaluation."""

    a: str
    """first system, whose wins are counted: model directory, file of answers (.jsonl: prompt, response), or samples.jsonl"""
    b: str
    """second system, such as the SFT model: the same choices"""
    a_iteration: int | None = None
    """where `a` is a run's samples.jsonl: whose answers; null: the last"""
    b_iteration: int | None = None
    """where `b` is a run's samples.jsonl: whose answers; null: the last"""
    prompts: Mixture = Field([])
    """prompts in any layout; empty: those that a file of answers holds"""
    max_prompts: int | None = Field(None, ge=1)
    """at most this many prompts, the first ones"""
    max_prompt_length: int | None = Field(None, ge=1)
    """longer prompts (in tokens of either model) are left out and counted; null: half of the smaller context"""
    chat_template: ChatTemplate = "model"
    """how dialogues become text, for models and judges"""
    split_seed: int = 0
    """seed of all hash splits"""
    sampling: SamplingConfig = SamplingConfig(
        max_new_tokens=2048, temperature=0.8, top_p=0.9, repetition_penalty=1.1, batch_size=32
    )
    """how answers are drawn; max_new_tokens is lowered, for both sides alike, to what the smaller context leaves"""
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
    _refuse(config)
    ranks = join(config.device)
    finished = Path(config.output_dir).expanduser() / "result.json"
    if resume and finished.exists():
        RunDirectory.open(config, ranks, resume=True)  # refuses other settings
        return dict(json.loads(finished.read_text(encoding="utf-8")))

    say = _printer(ranks)
    judge = make_judge(
        config.judge, config.llm, ranks, finished.parent, tie_band=config.tie_band, tie_unit=config.tie_unit,
        seed=config.seed, resamples=config.resamples, chat_template=config.chat_template, precision=config.precision,
        micro_batch_tokens=config.micro_batch_tokens, trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    moments = read_samples(config.over_training) if config.over_training else []
    files = {side: _read_side(config, side, say) for side in SIDES}
    formats = {side: _format(config, side) for side in SIDES if files[side] is None}
    models = {side: load_causal_lm(getattr(config, side), "cpu", config.trust_remote_code) for side in formats}
    prompts, left_out = _prompts(config, files, say)
    sampling, prompts, too_long = _fit(config, prompts, formats, models, say)
    left_out |= too_long

    run = RunDirectory.open(config, ranks, resume=resume)
    answers: dict[str, list[Answer]] = {}
    seconds: dict[str, float] = {}
    for number, side in enumerate(SIDES):
        found = files[side]
        if found is not None:
            answers[side] = [
                replace(found[prompt_key(p.messages)], source=p.source, metadata=p.metadata) for p in prompts
            ]
            rows = [_answer_row(a) for a in answers[side]]
            run.write(f"answers_{side}.jsonl", _lines(rows))
            continue
        began = time.perf_counter()
        model = models.pop(side).to(ranks.device)
        sampler = Sampler(model, formats[side], sampling, bf16=config.precision == "bf16")
        answers[side] = sampler.answer(prompts, run, f"answers_{side}.jsonl", seed=config.seed, side=number)
        seconds[f"time/answers_{side}"] = time.perf_counter() - began

    began = time.perf_counter()
    result, judgements = tally(
        answers["a"], answers["b"], judge.compare(answers["a"], answers["b"]), [p.source for p in prompts],
        seed=config.seed, resamples=config.resamples,
    )  # fmt: skip
    result = {
        "a": _name(config, "a"),
        "b": _name(config, "b"),
        "judge": judge.names,
        **result,
        "left_out": left_out,
        "sampled": {"max_new_tokens": sampling.max_new_tokens} if formats else None,
        "seed": config.seed,
        "resamples": config.resamples,
    }
    if moments:
        named = {prompt_key(p.messages): p.source for p in prompts}
        for moment in moments:  # samples.jsonl does not say where its prompts come from
            for key, answer in moment.answers.items():
                moment.answers[key] = replace(answer, source=named.get(key, answer.source))
        result["over_training"] = duel_over_training(moments, judge, seed=config.seed, resamples=config.resamples)
    run.log({**seconds, "time/judge": time.perf_counter() - began})
    result["judge_truncated"] = judge.truncated()
    if result["judge_truncated"]:
        say(f"{result['judge_truncated']} dialogues were longer than the judge's context and lost their left")
    result = plain(result)
    run.write("judgements.jsonl", _lines(judgements))
    run.write("result.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    ranks.barrier()
    return result


def compare(
    a: Sequence[Answer], b: Sequence[Answer], scores_a: Sequence[float], scores_b: Sequence[float], sources: Sequence[str],
    *, tie_band: float, tie_unit: TieUnit = "std", seed: int = 0, resamples: int = 1000,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """`tally` of scored answers."""
    return tally(
        a, b, judged_by_scores(scores_a, scores_b, tie_band, tie_unit), sources, seed=seed, resamples=resamples
    )


def tally(
    a: Sequence[Answer], b: Sequence[Answer], judged: Judged, sources: Sequence[str], *, seed: int = 0,
    resamples: int = 1000,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """(result, one judgement a prompt) of judged answers to the same prompts in the same order.

    result: overall and by_source as `winrate.summarise` gives them, and what the judge tells: tie_band (in units of the
    score), mean_score_a, mean_score_b, and `llm` of a language model.
    """
    outcomes = judged.outcomes
    lengths = [[len(answer.response) for answer in side] for side in (a, b)]

    def summary(rows: Sequence[int]) -> dict[str, Any]:
        return summarise(
            outcomes[list(rows)], [lengths[0][i] for i in rows], [lengths[1][i] for i in rows],
            unit=UNIT, seed=seed, resamples=resamples,
        )  # fmt: skip

    by_source = {name: [i for i, s in enumerate(sources) if s == name] for name in dict.fromkeys(sources)}
    result = {
        "overall": summary(range(len(outcomes))),
        "by_source": {name: summary(rows) for name, rows in by_source.items()},
        **judged.about,
    }
    words = {1: "win", 0: "tie", -1: "lose"}
    judgements = [
        {
            "prompt": [dict(m) for m in a[i].prompt],
            "response_a": a[i].response,
            "response_b": b[i].response,
            **judged.rows[i],
            "length_a": lengths[0][i],
            "length_b": lengths[1][i],
            "outcome": words[int(outcomes[i])],
            "source": sources[i],
        }
        for i in range(len(outcomes))
    ]
    return result, judgements


def duel_over_training(
    samples: Sequence[Any] | str,
    judge: PairJudge | Scorer,
    *,
    tie_band: float = 0.1,
    tie_unit: TieUnit = "std",
    seed: int = 0,
    resamples: int = 1000,
) -> list[dict[str, Any]]:
    """Judged win rate over training: a PPO run's answers to its fixed prompts, at each time, against its first ones.

    The first answers are those of the model that PPO started from, with the same random numbers. ``samples`` is a
    samples.jsonl or what `read_samples` made of it; ``judge`` compares, or is a function that scores answers, whose scores
    are then compared by ``tie_band``. One dict a time: iteration, update, overall and by_source (as in `tally`), tie_band,
    mean_score (judge's), mean_score_first, and means of what the run itself wrote down: trained_score, kl (nats a
    response), length_tokens.
    """
    pairs: PairJudge = judge if isinstance(judge, PairJudge) else ScoreJudge(judge, ["function"], tie_band, tie_unit)
    moments = read_samples(samples) if isinstance(samples, str) else list(samples)
    first = moments[0].answers
    for moment in moments:
        if moment.answers.keys() != first.keys():
            raise UserError(
                f"over_training: iteration {moment.iteration} answers other prompts than iteration {moments[0].iteration}"
            )
    base = list(first.values())
    out = []
    for moment in moments:
        answers = [moment.answers[key] for key in first]
        judged = pairs.compare(answers, base)
        result, _ = tally(answers, base, judged, [answer.source for answer in base], seed=seed, resamples=resamples)
        means = {
            name: sum(row[key] for row in moment.rows) / len(moment.rows)
            for name, key in (("trained_score", "score"), ("kl", "kl"), ("length_tokens", "length"))
            if all(isinstance(row.get(key), int | float) for row in moment.rows)
        }
        out.append({
            "iteration": moment.iteration, "update": moment.update,
            **{name: result[name] for name in ("overall", "by_source", "tie_band")},
            "mean_score": result["mean_score_a"], "mean_score_first": result["mean_score_b"], **means,
        })  # fmt: skip
    return out


# ------------------------------------------------------------------------------------- prompts, sides


def _refuse(config: DuelConfig) -> None:
    if config.sampling.samples_per_prompt != 1:
        raise UserError("sampling.samples_per_prompt: a duel compares one answer a prompt; leave it at 1")
    if not config.prompts and not any(is_answer_file(getattr(config, side)) for side in SIDES):
        raise UserError("prompts: none are given, and neither a nor b is a file of answers: give --prompts FILE")
    for side in SIDES:
        if getattr(config, f"{side}_iteration") is not None and not is_answer_file(getattr(config, side)):
            raise UserError(
                f"{side}_iteration: {getattr(config, side)} is a model, and has no iterations: leave it out"
            )


def _printer(ranks: Ranks) -> Callable[[str], None]:
    def say(line: str) -> None:
        if ranks.is_main:
            print(line, file=sys.stderr, flush=True)

    return say


def _name(config: DuelConfig, side: str) -> str:
    iteration = getattr(config, f"{side}_iteration")
    return getattr(config, side) + (f" (iteration {iteration})" if iteration is not None else "")


def _read_side(config: DuelConfig, side: str, say: Callable[[str], None]) -> dict[PromptKey, Answer] | None:
    """Answers of a file by prompt; None for a model."""
    place = getattr(config, side)
    if not is_answer_file(place):
        return None
    answers, further = read_answers(place, getattr(config, f"{side}_iteration"))
    if further:
        say(f"{place}: {further} further answers to the same prompts left out")
    return answers


def _format(config: DuelConfig, side: str) -> ChatFormat:
    return ChatFormat(load_tokenizer(getattr(config, side), config.trust_remote_code), config.chat_template)


def _prompts(
    config: DuelConfig, files: dict[str, dict[PromptKey, Answer] | None], say: Callable[[str], None]
) -> tuple[list[Prompt], dict[str, int]]:
    """Prompts that both sides have answers to (or can answer), and how many were left out for what reason."""
    held = [found for found in files.values() if found is not None]
    prompts: list[Prompt]
    if config.prompts:
        records, report = load_mixture(config.prompts, "prompt", split_seed=config.split_seed)
        for line in report.lines():
            say(line)
        prompts = [r for r in records if isinstance(r, Prompt)]
        distinct = {prompt_key(p.messages): p for p in prompts}  # a mixture's weights repeat prompts
        prompts = list(distinct.values())
    else:
        prompts = [Prompt(answer.prompt, answer.source) for answer in held[0].values()]
    kept = [p for p in prompts if all(prompt_key(p.messages) in found for found in held)]
    left_out = {"no answer in a file": len(prompts) - len(kept)}
    if not kept:
        raise UserError("a and b have no prompt in common" + (" with prompts" if config.prompts else ""))
    if config.max_prompts and len(kept) > config.max_prompts:
        left_out["beyond max_prompts"] = len(kept) - config.max_prompts
        kept = kept[: config.max_prompts]
    return kept, left_out


def _fit(
    config: DuelConfig, prompts: list[Prompt], formats: dict[str, ChatFormat], models: dict[str, Any], say: Callable[[str], None]
) -> tuple[SamplingConfig, list[Prompt], dict[str, int]]:  # fmt: skip
    """Leave out prompts that are too long for a model that answers, and settle one max_new_tokens for both."""
    if not formats:
        return config.sampling, prompts, {}
    rooms = [getattr(m.config.get_text_config(), "max_position_embeddings", None) for m in models.values()]
    room = min((r for r in rooms if r), default=None)
    longest = config.max_prompt_length or (room // 2 if room else None)
    lengths = [max(len(f.encode_prompt(p.messages)) for f in formats.values()) for p in prompts]
    if longest and room:
        longest = min(longest, room - 1)
    kept = [p for p, n in zip(prompts, lengths, strict=True) if longest is None or n <= longest]
    if len(kept) < len(prompts):
        say(f"{len(prompts) - len(kept)} of {len(prompts)} prompts over {longest} tokens left out")
    if not kept:
        raise UserError(f"prompts: all are longer than {longest} tokens; raise max_prompt_length")
    limit = config.sampling.max_new_tokens
    if room:
        limit = min(limit, room - max(n for n in lengths if longest is None or n <= longest))
    if limit < config.sampling.max_new_tokens:
        say(f"the context of {room} tokens leaves {limit} new tokens an answer")
    sampling = config.sampling.model_copy(update={"max_new_tokens": limit})
    return sampling, kept, {f"over {longest} tokens": len(prompts) - len(kept)} if len(kept) < len(prompts) else {}


def _answer_row(answer: Answer) -> dict[str, Any]:
    return {
        "prompt": [dict(m) for m in answer.prompt],
        "response": answer.response,
        "finished": answer.finished,
        "source": answer.source,
    }


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows)
