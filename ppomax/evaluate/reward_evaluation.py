"""How good are reward models on pairs that they have not seen, and where are they wrong (section 4, Fig. 2, Table 1)?

    ppomax evaluate runs/reward/final --data pairs_heldout.jsonl --output_dir runs/evaluation

Any sequence-classification model with one label will do, whoever trained it. Of a causal backbone prompt and answer are
encoded with the model's own tokenizer and template, as PPO encodes them, and the reward is read at the last token that
the stock forward pass would read; how an encoder reads them is told in ``encoder_reward.py``.

Written to output_dir: config.yaml, result.json, items.jsonl (a line a pair, with the rewards of all models),
confidently_wrong.jsonl, figures/ (PNG and SVG) and report.html.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field
from scipy.stats import spearmanr

from ppomax.config import ChatTemplate, Mixture, Section
from ppomax.data.chat import TEMPLATES, ChatFormat
from ppomax.data.records import PreferencePair
from ppomax.data.sources import load_mixture, open_source, parse_split
from ppomax.errors import UserError
from ppomax.evaluate.encoder_reward import EncoderReward, is_encoder, question_text
from ppomax.evaluate.reward_model import accuracy, answer_text, evaluate_pairs, most_confidently_wrong, wilson
from ppomax.evaluate.subsets import by_subset
from ppomax.evaluate.winrate import sign_test
from ppomax.models.loading import load_scalar_model, load_tokenizer
from ppomax.options import dump_yaml
from ppomax.output_dir import claim
from ppomax.rollout.reward_sources import ModelSource, Sample, make_member
from ppomax.train.checkpoint import write_atomic
from ppomax.train.parallel import Ranks, join
from ppomax.train.progress import ProgressLine
from ppomax.train.run import plain

CHUNK = 256
"""answers between two steps of the progress line"""
Lists = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class EvaluateConfig(Section):
    """Reward models on held-out preference pairs: accuracy, calibration, length bias, subsets, agreement."""

    models: Lists = Field(min_length=1)
    """reward models: directories or hub names, by whatever library; several are compared with each other"""
    data: Mixture = Field(min_length=1)
    """preference pairs in any layout, each counted once"""
    output_dir: str | None = None
    """folder for result.json, items, figures and page; one that holds something is refused; null: the tables only"""
    subset: str = "subset"
    """column of the data that names a pair's subset (RewardBench's name); where there is none, nothing is said of subsets"""
    wrong_pairs: int = Field(100, ge=0)
    """how many confidently wrong pairs are written down for each model"""
    chat_template: ChatTemplate = "model"
    """how dialogues become text; for a reward model that was saved without a template"""
    split_seed: int = 0
    """seed of hash splits"""
    micro_batch_tokens: int = Field(8192, ge=1)
    """padded tokens of one forward pass; affects memory and speed only"""
    device: str = "auto"
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1`"""
    precision: Literal["float32", "bf16"] = "float32"
    """arithmetic of the forward pass"""
    trust_remote_code: bool = False
    """run Python code that comes with a model"""


# ------------------------------------------------------------------------------------------ statistics


def correlation(x: np.ndarray, y: np.ndarray, *, ranks: bool = False) -> float | None:
    """Pearson's correlation of x and y (N,), or Spearman's; None where either does not vary."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:  # the std of equal numbers may be 1e-17
        return None
    return float(spearmanr(x, y).statistic if ranks else np.corrcoef(x, y)[0, 1])


def agreement(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Do two reward models rank the pairs alike? ``a``, ``b``: gaps (N,), N > 0, preferred minus other.

    ``alike``: share of pairs with gaps of the same sign (a tie on one side alone counts half). ``expected``: that share
    if each were wrong independently of the other, from their accuracies alone; ``kappa`` = (alike - expected) /
    (1 - expected), Cohen's. ``a_only`` and ``b_only``: pairs on which that model does better than the other (of right, tie,
    wrong), with an exact sign test of them: what the difference in accuracy is made of.
    """
    n = len(a)
    same = 1.0 - 0.5 * np.abs(np.sign(a) - np.sign(b))
    alike = float(same.mean())
    right = [accuracy(side)["accuracy"] for side in (a, b)]
    expected = right[0] * right[1] + (1 - right[0]) * (1 - right[1])
    better = np.sign(a) - np.sign(b)
    a_only, b_only = int((better > 0).sum()), int((better < 0).sum())
    return {
        "n": n, "alike": alike, "interval": wilson(float(same.sum()), n), "expected": expected,
        "kappa": (alike - expected) / (1 - expected) if expected < 1 else None,
        "gap_correlation": correlation(a, b), "gap_rank_correlation": correlation(a, b, ranks=True),
        "difference": right[0] - right[1], "a_only": a_only, "b_only": b_only,
        "sign_test_p": sign_test(a_only, b_only),
    }  # fmt: skip


def describe(
    chosen: np.ndarray, rejected: np.ndarray, pairs: Sequence[PreferencePair], subsets: Sequence[str | None]
) -> dict[str, Any]:
    """One reward model's part of result.json: `evaluate_pairs`, rewards, length and subsets. Rewards are (N,), (N,)."""
    scores = np.concatenate([chosen, rejected])
    lengths = np.array([len(answer_text(side)) for side in _sides(pairs)], dtype=float)
    return {
        **evaluate_pairs(chosen, rejected, pairs),
        "subsets": by_subset(chosen - rejected, subsets),
        "reward": {"mean": float(scores.mean()), "std": float(scores.std(ddof=1))},
        # over all answers; length_correlation is that of the two gaps, within pairs
        "score_length_correlation": correlation(scores, lengths),
        "score_length_rank_correlation": correlation(scores, lengths, ranks=True),
    }


def _sides(pairs: Sequence[PreferencePair]) -> list[Any]:
    return [p.chosen for p in pairs] + [p.rejected for p in pairs]


# --------------------------------------------------------------------------------------------- scoring


def score_answers(
    config: EvaluateConfig, name: str, tokenizer: Any, pairs: Sequence[PreferencePair], ranks: Ranks
) -> tuple[np.ndarray, np.ndarray, int]:
    """Rewards of the preferred and of the other answers, (N,) and (N,), and how many answers did not fit the context."""
    chat = ChatFormat(tokenizer)
    model = load_scalar_model(name, ranks.device, config.trust_remote_code)
    source = ModelSource([make_member(model, tokenizer, chat, name)], name, precision=config.precision,
                         micro_batch_tokens=config.micro_batch_tokens)  # fmt: skip
    samples: list[Sample] = []
    everything = [(p.prompt, side) for p in pairs for side in (p.chosen, p.rejected)]
    for prompt, answer in ranks.share(everything):
        prompt_ids, ids, _ = chat.encode_continuation(prompt, answer)
        samples.append(Sample(prompt, answer_text(answer), prompt_ids, ids))
    scores: list[float] = []
    with ProgressLine(f"scoring by {name}", len(samples), quiet=not ranks.is_main) as bar:
        for start in range(0, len(samples), CHUNK):
            scores += source(samples[start : start + CHUNK])
            bar.step(len(samples[start : start + CHUNK]))
    found = np.asarray(ranks.collect(scores), dtype=np.float64).reshape(-1, 2)
    return found[:, 0], found[:, 1], sum(ranks.collect([source.truncated]))


def score_by_encoder(
    config: EvaluateConfig, name: str, pairs: Sequence[PreferencePair], ranks: Ranks
) -> tuple[np.ndarray, np.ndarray, int]:
    """As `score_answers`, of a model that reads question and answer as a pair of texts."""
    encoder = EncoderReward(name, ranks.device, config.trust_remote_code)
    texts = [(question_text(p.prompt), answer_text(side)) for p in pairs for side in (p.chosen, p.rejected)]
    mine = ranks.share(texts)
    with ProgressLine(f"scoring by {name}", len(mine), quiet=not ranks.is_main) as bar:
        scores = encoder(mine, config.micro_batch_tokens, bf16=config.precision == "bf16", step=bar.step)
    found = np.asarray(ranks.collect(scores), dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(found).all():  # asked after the exchange, so that all ranks stop together
        broken = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        raise UserError(f"{name}: a reward is not a finite number at {pairs[broken].origin}: the model is broken")
    return found[:, 0], found[:, 1], sum(ranks.collect([encoder.truncated]))


def run_evaluation(config: EvaluateConfig, *, resume: bool = False) -> dict[str, Any]:
    """Evaluate, and return what result.json says; a finished evaluation is returned as it is with ``resume``.

    Raises UserError for every mistake that the caller can mend; nothing is written before all is known.
    """
    ranks = join(config.device)
    out = None
    if config.output_dir is not None:
        may_change = {"output_dir", "device", "micro_batch_tokens"}
        out, _ = claim(config, config.output_dir, "an evaluation", resume=resume, may_change=may_change)
    if out is not None and resume and (out / "result.json").exists():
        return dict(json.loads((out / "result.json").read_text(encoding="utf-8")))
    if len(set(config.models)) < len(config.models):
        raise UserError("models: the same one is named twice")
    for i, source in enumerate(config.data):
        if source.weight != 1:
            raise UserError(f"data.{i}.weight: each pair counts once here; leave it out, or choose with split or limit")

    pairs, subsets, lines = _read(config)
    for line in lines if ranks.is_main else []:
        print(line, file=sys.stderr, flush=True)
    # every name is tried before the first model takes its minutes
    encoders = [name for name in config.models if is_encoder(name, config.trust_remote_code)]
    tokenizers = {name: None if name in encoders else _tokenizer(config, name) for name in config.models}
    rewards: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    models: dict[str, Any] = {}
    for name, tokenizer in tokenizers.items():
        if tokenizer is None:
            chosen, rejected, truncated = score_by_encoder(config, name, pairs, ranks)
        else:
            chosen, rejected, truncated = score_answers(config, name, tokenizer, pairs, ranks)
        if truncated and ranks.is_main:
            print(f"{name}: {truncated} of {2 * len(pairs)} dialogues were longer than its context and lost their left",
                  file=sys.stderr, flush=True)  # fmt: skip
        rewards[name] = chosen, rejected
        models[name] = {**describe(chosen, rejected, pairs, subsets), "truncated": truncated}
    gaps = {name: chosen - rejected for name, (chosen, rejected) in rewards.items()}
    result: dict[str, Any] = plain({
        "pairs": len(pairs), "prompts": len({p.key for p in pairs}), "data": lines, "models": models,
        "agreement": [{"a": a, "b": b, **agreement(gaps[a], gaps[b])} for a, b in itertools.combinations(gaps, 2)],
    })  # fmt: skip
    if out is not None and ranks.is_main:
        _write(config, out, result, pairs, subsets, rewards)
    ranks.barrier()
    return result


def _tokenizer(config: EvaluateConfig, name: str) -> Any:
    tokenizer = load_tokenizer(name, config.trust_remote_code)
    if config.chat_template != "model":
        tokenizer.chat_template = TEMPLATES[config.chat_template]
    ChatFormat(tokenizer)  # complains of a missing or unusable template
    return tokenizer


def _read(config: EvaluateConfig) -> tuple[list[PreferencePair], list[str | None], list[str]]:
    """Pairs, the subset that each names, and what the load reports say."""
    records, report = load_mixture(config.data, "pair", split_seed=config.split_seed, once=True)
    pairs = [r for r in records if isinstance(r, PreferencePair)]
    named: dict[str, str] = {}
    wanted = {p.origin for p in pairs}
    for source in config.data:
        for _, _, _, rows in open_source(source.path, parse_split(source.split)[1]):
            while wanted and (line := next(rows, None)):  # no further than the pairs were read
                origin, row = line
                if origin in wanted and row.get(config.subset) is not None:
                    named[origin] = str(row[config.subset])
                wanted.discard(origin)
    subsets = [named.get(p.origin) for p in pairs]
    if not any(subsets) and config.subset != EvaluateConfig.model_fields["subset"].default:
        raise UserError(f"subset: no pair has a column {config.subset!r}; name another one, or leave it out")
    return pairs, subsets, report.lines()


# --------------------------------------------------------------------------------------------- writing


def _write(
    config: EvaluateConfig, out: Path, result: Mapping[str, Any], pairs: Sequence[PreferencePair],
    subsets: Sequence[str | None], rewards: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> None:  # fmt: skip
    from ppomax.report.reward_page import draw_all, reward_page

    wrong = {
        name: most_confidently_wrong(chosen.tolist(), rejected.tolist(), pairs, config.wrong_pairs)
        for name, (chosen, rejected) in rewards.items()
    }
    gaps = {name: chosen - rejected for name, (chosen, rejected) in rewards.items()}
    items = [
        {
            "where": p.origin, "source": p.source, "subset": subset, "prompt": list(p.prompt),
            "chosen": list(p.chosen), "rejected": list(p.rejected),
            "length_chosen": len(answer_text(p.chosen)), "length_rejected": len(answer_text(p.rejected)),
            "rewards": {name: [float(r[0][i]), float(r[1][i])] for name, r in rewards.items()},
        }
        for i, (p, subset) in enumerate(zip(pairs, subsets, strict=True))
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "config.yaml", dump_yaml(config))
    write_atomic(out / "items.jsonl", _lines(items))
    write_atomic(out / "confidently_wrong.jsonl", _lines([{"model": m, **row} for m, rows in wrong.items() for row in rows]))  # fmt: skip
    (out / "figures").mkdir(exist_ok=True)
    draw_all(result, gaps, out / "figures")
    write_atomic(out / "report.html", reward_page(result, gaps, wrong, dump_yaml(config)))
    # last: whoever finds it finds all
    write_atomic(out / "result.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows)
