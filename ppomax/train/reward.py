"""The reward model (sections 3.1 and 4 of the paper): a language-model backbone with one linear unit at the last token.

    ppomax reward CONFIG.yaml                                  one process
    torchrun --nproc-per-node 8 -m ppomax reward CONFIG.yaml   eight GPUs

Loss of a pair: -log sigmoid(r(x, y_w) - r(x, y_l) - margin) + lm_coef * NLL(y_w | x), the second term through the LM head
of the same backbone, as the mean over the answer's tokens. Loss of an update: the mean over its pairs, over all
micro-batches and ranks. Batches are balanced by tokens. Equations 1 and 2 of the paper are printed with other signs.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from ppomax.config import RewardConfig
from ppomax.data.batches import token_budget
from ppomax.data.chat import ChatFormat
from ppomax.data.records import Dialogue, PreferencePair
from ppomax.data.sources import load_mixture
from ppomax.errors import UserError
from ppomax.evaluate.reward_figures import draw_accuracy, draw_calibration, draw_gap_histogram
from ppomax.evaluate.reward_model import accuracy_rows, evaluate_pairs, format_table, most_confidently_wrong
from ppomax.models import loading
from ppomax.models.logprobs import hidden_states, inner_model, token_logprobs
from ppomax.models.passes import even_passes, whole_pass
from ppomax.models.precision import precision
from ppomax.models.scalar import on_backbone, reset_unit, score_sequences, unit_outputs
from ppomax.options_check import refuse_contradictions, warnings_for
from ppomax.train.card import model_card
from ppomax.train.checkpoint import placed, restore_rng, rng_state, seed_everything
from ppomax.train.made import record_start
from ppomax.train.optim import clip_gradients, learning_rate, load_optimizer, make_optimizer, set_learning_rate
from ppomax.train.pairs import EncodedPair, PairBatch, collate, demonstration_ids, encode_pairs, make_schedule
from ppomax.train.parallel import Ranks, join, peak_memory
from ppomax.train.progress import ProgressLine, course
from ppomax.train.records import load_records
from ppomax.train.requests import Requests
from ppomax.train.run import RunDirectory, plain
from ppomax.train.sharding import divide, first_device, idle, in_turn, to_save

CHECKPOINT_PARTS = ["model", "optimizer", "rng"]
FOLLOWED = {
    "loss": "loss/train", "accuracy": "train/accuracy", "gap": "train/gap", "held_out_accuracy": "eval/accuracy",
}  # fmt: skip
"""numbers whose course a terminal shows, by their names there"""
TRAIN_SAMPLE = 100, 1000
"""fewest and most training pairs that are scored beside the held-out ones; else as many as those"""


@dataclass(frozen=True)
class RewardResult:
    """What `train_reward` leaves: the run directory, evaluation.json, and the reward model in memory."""

    path: Path
    metrics: dict[str, Any]
    model: Any
    tokenizer: Any


# ----------------------------------------------------------------------------------------------- loss


class RewardTrainee(nn.Module):
    """The reward model, and the causal model on the same backbone whose head serves the imitation loss.

    ``causal`` is None when lm_coef is 0. A head that is tied to the embeddings stays tied.
    """

    def __init__(self, scalar: Any, causal: Any | None) -> None:
        super().__init__()
        self.scalar = scalar
        self.causal = causal


@whole_pass
def pair_losses(trainee: RewardTrainee, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Preference losses, imitation losses and rewards, float32: (n,), (n,), (2n,).

    The first is -log sigmoid(r_w - r_l - margin), the second the mean NLL of the preferred answer's tokens (zeros
    without ``causal``).
    """
    hidden = hidden_states(trainee.scalar, batch.ids, batch.lengths)  # (2n, S, D)
    n = len(batch.margins)
    last = batch.lengths - 1
    rewards = unit_outputs(trainee.scalar, hidden[torch.arange(2 * n, device=last.device), last])
    preference = -nn.functional.logsigmoid(rewards[:n] - rewards[n:] - batch.margins)
    imitation = torch.zeros_like(preference)
    if trainee.causal is not None:
        logprobs, _ = token_logprobs(trainee.causal, hidden.flatten(0, 1)[batch.before], batch.targets)
        counts = torch.bincount(batch.owner, minlength=n).clamp(min=1)
        imitation = imitation.index_add(0, batch.owner, -logprobs) / counts
    return preference, imitation, rewards


# --------------------------------------------------------------------------------------------- scoring


def score(
    model: Any, sequences: Sequence[Sequence[int] | np.ndarray], config: RewardConfig, ranks: Ranks, pad_id: int
) -> np.ndarray:
    """Rewards (N,) of whole sequences, shared by the ranks."""
    with precision(ranks.device, config.precision):
        mine = score_sequences(
            model, ranks.share(sequences), pad_id=pad_id, micro_batch_tokens=config.micro_batch_tokens
        )
    return np.asarray(ranks.collect(mine.tolist()), dtype=np.float64)


def score_pairs(
    model: Any, pairs: Sequence[EncodedPair], config: RewardConfig, ranks: Ranks, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of preferred and other answers: (N,), (N,)."""
    rewards = score(model, [p.chosen for p in pairs] + [p.rejected for p in pairs], config, ranks, pad_id)
    return rewards[: len(pairs)], rewards[len(pairs) :]


# ------------------------------------------------------------------------------------------- training


def with_own_pad(tokenizer: Any, chat: ChatFormat) -> tuple[Any, str | None]:
    """A tokenizer whose pad ends no sequence, and a line about it if one had to be added (`grow_embeddings` for it)."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in chat.eos_ids:
        return tokenizer, None
    tokenizer = copy.deepcopy(tokenizer)
    name = "<|pad|>"
    while name in tokenizer.get_vocab():
        name = f"<{name}>"
    tokenizer.add_special_tokens({"pad_token": name})
    return tokenizer, f"pad token {name} added: a reward model's pad must differ from the tokens that end an answer"


def grow_embeddings(causal: Any, tokenizer: Any) -> str:
    """Make room for every token; what to say of it, if there was none."""
    if len(tokenizer) <= causal.get_input_embeddings().weight.shape[0]:
        return ""
    causal.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return f"; embeddings grown to {len(tokenizer)}"


def train_reward(
    config: RewardConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    pairs: Sequence[PreferencePair] | None = None,
    eval_pairs: Sequence[PreferencePair] | None = None,
    demonstrations: Sequence[Dialogue] | None = None,
    resume: bool = False,
) -> RewardResult:
    """Train a reward model and write the run directory.

    ``model`` (a causal language model, whose backbone is trained in place) and ``tokenizer`` in memory stand for
    ``config.model``; ``pairs``, ``eval_pairs`` and ``demonstrations`` for ``data``, ``eval_data`` and
    ``calibration_data``. Raises UserError for settings or data that cannot work, before anything is written.
    """
    ranks = join(config.device)
    device = ranks.device
    given = {"model": model, "tokenizer": tokenizer, "pairs": pairs, "eval_pairs": eval_pairs}
    given["demonstrations"] = demonstrations
    refuse_contradictions(config)

    # Models and data first: their mistakes must not leave a run directory behind.
    tokenizer = loading.check_tokenizer(tokenizer) if tokenizer is not None else loading.load_tokenizer(
        config.model, config.trust_remote_code
    )  # fmt: skip
    train, held_out, data_lines = load_records(config, "pair", pairs, eval_pairs)
    if demonstrations is None and config.calibration_data:
        loaded, report = load_mixture(config.calibration_data, "dialogue", split_seed=config.split_seed)
        demonstrations = loaded  # type: ignore[assignment]
        data_lines += [f"calibration: {line}" for line in report.lines()]
    chat = ChatFormat(tokenizer, config.chat_template)
    start_tokenizer = tokenizer
    tokenizer, pad_line = with_own_pad(tokenizer, chat)
    if pad_line is not None:
        chat = ChatFormat(tokenizer, config.chat_template)
    encoded, train_lines = encode_pairs(train, chat, config)
    eval_encoded, eval_lines = encode_pairs(held_out, chat, config)
    encoded_lines = [f"training: {line}" for line in train_lines] + [f"held out: {line}" for line in eval_lines]
    if not encoded:
        raise UserError(f"data: no training pair is left ({'; '.join(train_lines)}); raise max_length or add data")
    if config.margin and not any(p.margin for p in encoded):
        raise UserError("margin: is on, but no training pair has a `margin`; switch it off or add the field")
    calibration_ids: list[list[int]] = []
    if demonstrations is not None:
        calibration_ids, lines = demonstration_ids(demonstrations, chat, config)
        encoded_lines += [f"calibration: {line}" for line in lines]
    pad_id = int(tokenizer.pad_token_id)
    with in_turn(ranks):
        where, causal = first_device(config.parallel, ranks), model
        if causal is None:
            causal = loading.load_causal_lm(config.model, where, config.trust_remote_code)
        causal = causal.to(where).float().eval()
        loading.quicken(causal, where)
        loading.check_fits(causal, start_tokenizer, config.max_length)
        if pad_line is not None:
            data_lines.append(pad_line + grow_embeddings(causal, tokenizer))
        seed_everything(config.seed)
        scalar = on_backbone(causal, pad_id=pad_id)
        reset_unit(scalar, config.seed)
        trainee = RewardTrainee(scalar, causal if config.lm_coef > 0 else None).requires_grad_(True)
        if config.lora is not None:
            causal.requires_grad_(False)
            trainee.scalar = scalar = loading.add_lora(scalar, config.lora, "SEQ_CLS")
        divide(trainee, config.parallel, ranks, config.precision, views=[scalar])
        del causal
    data_lines += encoded_lines

    run = RunDirectory.open(config, ranks, resume=resume)
    with run.undone_if_nothing_came():
        record_start(run, config, data_lines, **given)
    if ranks.is_main:
        print("\n".join(data_lines), flush=True)
    ranks.say(*(f"warning: {w}" for w in [*warnings_for(config), *idle(config.parallel, ranks)]))
    optimizer = make_optimizer(trainee, config.optim)
    schedule = make_schedule(encoded, config)
    total = len(schedule)
    seen_pairs = np.cumsum([0, *map(len, schedule)])
    least, most = TRAIN_SAMPLE
    sample = encoded[:: math.ceil(len(encoded) / min(max(len(eval_encoded), least), most))]

    start, states = run.restore(CHECKPOINT_PARTS, "update")
    if states:
        loading.load_trainable_state(trainee, placed(states["model"], loading.trainable_state(trainee)))
        load_optimizer(optimizer, states["optimizer"])
        restore_rng(states["rng"], device)

    def evaluate() -> tuple[dict[str, float], np.ndarray, np.ndarray]:
        """Numbers for metrics.jsonl, and the rewards (N,), (N,) of the held-out pairs."""
        chosen, rejected = score_pairs(scalar, eval_encoded, config, ranks, pad_id)
        numbers = {"eval/train_accuracy": _right(np.subtract(*score_pairs(scalar, sample, config, ranks, pad_id)))}
        if eval_encoded:
            gaps = chosen - rejected
            numbers |= {"eval/accuracy": _right(gaps), "eval/gap": float(gaps.mean())}
            numbers["eval/loss"] = float(np.logaddexp(0.0, -gaps).mean())
        return numbers, chosen, rejected

    history = run.read()
    evaluated_last: dict[str, float] = {}
    courses = {name: course(history, metric) for name, metric in FOLLOWED.items()}
    bar = ProgressLine("reward", total, done=start, quiet=not ranks.is_main, sparklines=courses)
    with Requests(run, "update") as requests, bar:
        for update in range(start, total):
            began = time.perf_counter()
            metrics: dict[str, float] = {}
            # A line holds the model *after* `update` updates: the first one is the untrained unit's.
            if eval_encoded and config.eval_every and update % config.eval_every == 0:
                metrics |= evaluate()[0]
                evaluated_last = {"held_out_accuracy": metrics["eval/accuracy"]}
            evaluated = time.perf_counter()

            batch_pairs = [encoded[i] for i in schedule[update]]
            mine = ranks.share(batch_pairs)
            sums = torch.zeros(6, device=device, dtype=torch.float64)
            # A pair takes two rows of one forward pass and is never divided.
            groups = token_budget([p.longest for p in mine], max(1, config.micro_batch_tokens // 2))
            for group in even_passes(groups, trainee):
                batch = collate([mine[i] for i in group] or batch_pairs[:1], pad_id=pad_id, device=device)
                with precision(device, config.precision):
                    preference, imitation, rewards = pair_losses(trainee, batch)
                loss = preference.sum() + config.lm_coef * imitation.sum()
                (loss * bool(group) / len(batch_pairs)).backward()
                if not group:
                    continue
                chosen, rejected = rewards.detach().chunk(2)
                right = (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
                parts = (loss, preference.sum(), imitation.sum(), right.sum(), chosen.sum(), rejected.sum())
                sums += torch.stack([part.detach().double() for part in parts])
            ranks.sum_gradients(trainee.parameters())
            grad_norm = clip_gradients(trainee, max_norm=config.max_grad_norm)[0]
            lr = learning_rate(config.optim, update, total)
            set_learning_rate(optimizer, lr)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            means = (ranks.sum(sums) / len(batch_pairs)).tolist()
            if not math.isfinite(means[0]) or not math.isfinite(grad_norm):
                raise UserError(f"update {update}: loss {means[0]}, gradient norm {grad_norm}; lower optim.lr")
            tokens = sum(p.tokens for p in batch_pairs)
            seconds = time.perf_counter() - evaluated
            names = (
                "loss/train",
                "loss/preference",
                "loss/imitation",
                "train/accuracy",
                "reward/chosen",
                "reward/rejected",
            )
            metrics |= dict(zip(names, means, strict=True)) | {"train/gap": means[4] - means[5]}
            metrics |= {"grad_norm": grad_norm, "lr": lr, "pairs": len(batch_pairs), "tokens": tokens}
            metrics |= {"time/eval": evaluated - began, "time/update": seconds, "throughput/tokens": tokens / seconds}
            metrics |= peak_memory(ranks)
            epoch = float(seen_pairs[update + 1]) / len(encoded)
            run.log({"update": update, "epoch": epoch, **metrics})
            told = {"loss": means[0], "accuracy": means[3], "gap": means[4] - means[5], **evaluated_last}
            bar.step(**told, pairs_s=len(batch_pairs) / seconds)
            done, requested = update + 1, requests.take()
            if done == total or requested or (config.checkpoint.every and done % config.checkpoint.every == 0):
                state = {
                    "model": loading.trainable_state(trainee),
                    "optimizer": optimizer.state_dict(),
                    "rng": rng_state(device),
                }
                run.checkpoint(done, state, config.checkpoint.keep)
            requests.obeyed(requested, update, done, last=done == total)

    numbers, chosen_rewards, rejected_rewards = evaluate()
    run.log({"update": total, "epoch": float(seen_pairs[-1]) / len(encoded), **numbers})
    offset = float(score(scalar, calibration_ids, config, ranks, pad_id).mean()) if calibration_ids else 0.0
    inner_model(scalar).config.reward_offset = offset
    results: dict[str, Any] = {
        "train_accuracy": numbers["eval/train_accuracy"],
        "reward_offset": offset,
        "demonstrations": len(calibration_ids),
    }
    saved = to_save(scalar)
    if ranks.is_main:
        _finish(run, config, saved, tokenizer, chat, data_lines, encoded, eval_encoded,
                chosen_rewards - offset, rejected_rewards - offset, results)  # fmt: skip
    ranks.barrier()
    return RewardResult(run.path, results, scalar, tokenizer)


def _right(gaps: np.ndarray) -> float:
    """Share of positive gaps, ties half."""
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def _finish(
    run: RunDirectory,
    config: RewardConfig,
    scalar: Any,
    tokenizer: Any,
    chat: ChatFormat,
    data_lines: Sequence[str],
    encoded: Sequence[EncodedPair],
    eval_encoded: Sequence[EncodedPair],
    chosen: np.ndarray,
    rejected: np.ndarray,
    results: dict[str, Any],
) -> None:
    """evaluation.json, disagreements.jsonl, figures/ and final/."""
    tables: dict[str, Any] = {}
    if eval_encoded:
        pairs = [e.pair for e in eval_encoded]
        held_out = evaluate_pairs(chosen, rejected, pairs, train_pairs=[e.pair for e in encoded])
        results["held_out"] = held_out
        results["reward"] = {
            side: {"mean": float(values.mean()), "std": float(values.std(ddof=1)) if len(values) > 1 else None}
            for side, values in (("chosen", chosen), ("rejected", rejected))
        }
        wrong = most_confidently_wrong(chosen.tolist(), rejected.tolist(), pairs)
        run.write("disagreements.jsonl", "".join(json.dumps(plain(w), ensure_ascii=False) + "\n" for w in wrong))
        figures = run.path / "figures"
        figures.mkdir(exist_ok=True)
        draw_gap_histogram(held_out, figures / "gap_histogram.png")
        draw_calibration(held_out, figures / "calibration.png")
        rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if "eval/accuracy" in row]
        draw_accuracy(
            [row["update"] for row in rows],
            [row["eval/accuracy"] for row in rows],
            [row["eval/train_accuracy"] for row in rows],
            figures / "accuracy.png",
        )
        console = Console()
        if not console.is_terminal:
            console.width = 140  # a file has room
        console.print(format_table(held_out))
        tables["Held-out accuracy [95% interval]"] = accuracy_rows(held_out)
    run.write("evaluation.json", json.dumps(plain(results), indent=2, ensure_ascii=False) + "\n")
    saved = copy.deepcopy(tokenizer)
    saved.chat_template = chat.jinja
    saved.padding_side = "right"  # the stock model numbers positions from the first column
    card = model_card(
        title="Reward model",
        summary="One number for a dialogue that ends with an assistant turn, read at its last token. "
        f"`ppomax` subtracts `reward_offset` = {results['reward_offset']:.6g} from what the stock model gives.",
        stage="reward",
        task="text-classification",
        base=config.model,
        data=data_lines,
        results=tables,
        config=config,
    )
    loading.save_final(scalar, saved, run.final, stage="reward", card=card, reward_offset=results["reward_offset"])
    run.write_page()
    print(f"saved {run.final}", flush=True)
