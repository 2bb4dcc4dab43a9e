"""Supervised fine-tuning on dialogues, and language modelling on plain text (section 1 of the paper): one loop.

    ppomax sft CONFIG.yaml                                  one process
    torchrun --nproc-per-node 8 -m ppomax sft CONFIG.yaml   eight GPUs

The loss is on assistant turns only, end-of-turn tokens included; on plain text it is on every token. It is the mean over
the trained tokens of the whole update, over all micro-batches and ranks, so it does not depend on how rows were divided.
With packing, several records share a row: position ids start again with each, and attention stays within it.
Plain text longer than ``max_length`` is cut into pieces that overlap by one token, so each token is predicted once.
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
from torch import Tensor, nn

from ppomax.config import SFTConfig
from ppomax.data.batches import EpochOrder, pack, pad_sequences, token_budget
from ppomax.data.chat import ChatFormat, fit_dialogue
from ppomax.data.records import Dialogue, Text, groups_of
from ppomax.errors import UserError
from ppomax.models import loading
from ppomax.models.logprobs import CHUNK_ELEMENTS, hidden_states, takes_rows_in_one, token_logprobs, unembed
from ppomax.models.passes import even_passes, whole_pass
from ppomax.models.precision import precision
from ppomax.options_check import warnings_for
from ppomax.train.card import model_card
from ppomax.train.checkpoint import placed, restore_rng, rng_state, seed_everything
from ppomax.train.made import record_start
from ppomax.train.optim import clip_gradients, learning_rate, load_optimizer, make_optimizer, set_learning_rate
from ppomax.train.parallel import Ranks, join, peak_memory
from ppomax.train.progress import ProgressLine, course
from ppomax.train.records import load_records
from ppomax.train.requests import Requests
from ppomax.train.run import RunDirectory
from ppomax.train.sharding import divide, first_device, idle, in_turn, to_save

CHECKPOINT_PARTS = ["model", "optimizer", "rng", "progress"]
SPARSE = 4
"""records in rows of their own, padded to the longest, may take this many times their tokens"""


@dataclass(frozen=True)
class SFTResult:
    """What `train_sft` leaves: the run directory, the last evaluation, and the trained model in memory."""

    path: Path
    metrics: dict[str, Any]
    model: Any
    tokenizer: Any


# ------------------------------------------------------------------------------------- records to rows


@dataclass(frozen=True)
class Example:
    """One record, or one piece of a long text, as tokens."""

    ids: np.ndarray
    """(L,) int32"""
    trained: np.ndarray
    """(L,) bool: tokens in the loss; never the first, which nothing predicts"""
    source: str
    """its file, or file/source where a file has several"""

    @property
    def count(self) -> int:
        """Number of tokens in the loss."""
        return int(self.trained.sum())


Row = list[Example]


def _example(ids: Sequence[int], trained: Sequence[bool], source: str) -> Example:
    mask = np.asarray(trained, dtype=bool).copy()
    mask[:1] = False
    return Example(np.asarray(ids, dtype=np.int32), mask, source)


def encode_records(
    records: Sequence[Dialogue | Text], chat: ChatFormat, config: SFTConfig
) -> tuple[list[Example], list[str]]:
    """Tokenise; returns the examples and lines that say what was cut, truncated or dropped."""
    examples: list[Example] = []
    dropped = truncated = ended = cut = pieces = 0
    for record, groups in zip(records, groups_of(records), strict=True):
        if isinstance(record, Text):
            ids = chat.encode_text(record.text)
            step = config.max_length - 1
            starts = range(0, max(len(ids) - 1, 1), step)
            parts = [ids[s : s + step + 1] for s in starts]
            examples += [_example(part, [True] * len(part), groups[-1]) for part in parts]
            cut += len(starts) > 1
            pieces += len(starts) if len(starts) > 1 else 0
            continue
        tokens, mask = chat.encode_dialogue(record.messages, record.untrained)
        fitted = fit_dialogue(tokens, mask, config.max_length, config.overlong, chat.bos_id)
        if fitted is None:
            dropped += 1
            continue
        truncated += fitted.cut == "left"
        ended += fitted.cut == "answer"
        examples.append(_example(fitted.ids, fitted.trained, groups[-1]))
    examples = [e for e in examples if e.count]
    lines = [f"{len(examples)} examples, {sum(e.count for e in examples)} trained tokens"]
    if truncated:
        lines.append(f"{truncated} dialogues over max_length {config.max_length} lost the left of their prompt")
    if ended:
        lines.append(
            f"{ended} dialogues whose last answer alone is about max_length {config.max_length} or over lost that answer's end"
        )
    if dropped:
        why = f"over max_length {config.max_length}, or without an assistant turn in it"
        lines.append(f"{dropped} dialogues dropped: {why}")
    if cut:
        lines.append(f"{cut} texts over max_length {config.max_length} cut into {pieces} pieces, nothing lost")
    return examples, lines


def make_rows(examples: Sequence[Example], config: SFTConfig) -> list[Row]:
    """Rows of at most ``max_length`` tokens (packing), or of one record each."""
    if not config.packing:
        return [[e] for e in examples]
    return [[examples[i] for i in row] for row in pack([len(e.ids) for e in examples], config.max_length, config.seed)]


def row_length(row: Row) -> int:
    return sum(len(e.ids) for e in row)


@dataclass(frozen=True)
class RowBatch:
    """Rows of one forward pass."""

    ids: Tensor
    """(R, S)"""
    lengths: Tensor | None
    """(R,) of the rows without pads, or None when packed: then position ids say which tokens belong together"""
    position_ids: Tensor | None
    """(R, S), from 0 for each record; None when not packed"""
    before: Tensor
    """(N,) flat positions whose hidden states predict a trained token"""
    targets: Tensor
    """(N,) those tokens"""


def collate(rows: Sequence[Row], *, packed: bool, pad_id: int, device: torch.device) -> RowBatch:
    """Pad rows on the right. Pads of packed rows have position 0 each: records of one token that nothing reads."""
    ids, mask = pad_sequences([np.concatenate([e.ids for e in row]) for row in rows], pad_id)
    trained, _ = pad_sequences([np.concatenate([e.trained for e in row]) for row in rows], 0, dtype=torch.bool)
    positions = None
    if packed:
        positions, _ = pad_sequences([np.concatenate([np.arange(len(e.ids)) for e in row]) for row in rows], 0)
        positions = positions.to(device)
    where = trained.flatten().nonzero().squeeze(-1)
    # a record's first token is never trained, so where - 1 lies in the same record
    return RowBatch(
        ids.to(device),
        None if packed else mask.sum(dim=1).to(device),
        positions,
        (where - 1).to(device),
        ids.flatten()[where].to(device),
    )


def batch_of(model: nn.Module, rows: Sequence[Row], *, packed: bool, pad_id: int, device: torch.device) -> RowBatch:
    """Rows for a pass of ``model``; one that leaves pads out of its passes gets packed records each as a row of its own.

    Not where a few long records among many short ones would make that SPARSE times as many places as tokens: hidden states
    have all of them.
    """
    if packed and takes_rows_in_one(model):
        records = [[record] for row in rows for record in row]
        lengths = [row_length(record) for record in records]
        if len(records) * max(lengths) <= SPARSE * sum(lengths):
            rows, packed = records, False
    return collate(rows, packed=packed, pad_id=pad_id, device=device)


def predicting_states(model: nn.Module, batch: RowBatch) -> Tensor:
    """Hidden states (N, D) before each trained token."""
    hidden = hidden_states(model, batch.ids, batch.lengths, batch.position_ids)
    return hidden.flatten(0, 1)[batch.before]


@whole_pass
def token_nll(model: nn.Module, batch: RowBatch) -> Tensor:
    """Negative log-likelihood (N,) of every trained token, float32."""
    return -token_logprobs(model, predicting_states(model, batch), batch.targets)[0]


@torch.no_grad()
def require_packing(model: nn.Module, device: torch.device) -> None:
    """Refuse packing for a backbone that lets one record see another: two records in a row against one alone."""
    second = [3, 1, 2, 4]
    ids = torch.tensor([[1, 2, 3, *second]], device=device)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]], device=device)
    try:
        together = hidden_states(model, ids, None, positions)[0, 3:]
    except TypeError:  # no position ids at all
        together = torch.full((1,), math.nan, device=device)
    alone = hidden_states(model, ids[:, 3:], None)[0]
    if together.shape != alone.shape or not torch.allclose(together, alone, rtol=1e-2, atol=1e-3):
        raise UserError(f"packing: {type(model).__name__} does not keep packed records apart; set packing to false")


# ----------------------------------------------------------------------------------------- evaluation


@whole_pass
def nll_and_hits(model: Any, batch: RowBatch) -> Tensor:
    """For each trained token its NLL, whether it is the likeliest one, and 1: (N, 3), float64 on the CPU."""
    hidden = predicting_states(model, batch)
    chunk = max(1, CHUNK_ELEMENTS // model.config.get_text_config().vocab_size)
    cells = [torch.zeros(0, 3, dtype=torch.float64)]
    for start in range(0, len(hidden), chunk):
        logits, targets = unembed(model, hidden[start : start + chunk]), batch.targets[start : start + chunk]
        nll = nn.functional.cross_entropy(logits, targets, reduction="none")
        right = logits.argmax(-1) == targets
        cells.append(torch.stack([nll, right.float(), torch.ones_like(nll)], dim=1).double().cpu())
    return torch.cat(cells)


@torch.no_grad()
def evaluate_lm(
    model: Any, examples: Sequence[Example], config: SFTConfig, ranks: Ranks, pad_id: int
) -> dict[str, Any]:
    """Loss (nats a trained token), perplexity = exp(loss), token accuracy; overall and by ``sources``."""
    names = sorted({e.source for e in examples})
    sums = torch.zeros(len(names), 3, dtype=torch.float64)  # NLL, right guesses, tokens
    everything = make_rows(examples, config)
    mine = ranks.share(everything)
    for group in even_passes(token_budget([row_length(r) for r in mine], config.micro_batch_tokens), model):
        rows = [mine[i] for i in group] or everything[:1]
        batch = batch_of(model, rows, packed=config.packing, pad_id=pad_id, device=ranks.device)
        owner = torch.tensor([names.index(e.source) for row in rows for e in row for _ in range(e.count)])
        with precision(ranks.device, config.precision):
            cells = nll_and_hits(model, batch)
        if group:
            sums.index_add_(0, owner, cells)
    sums = ranks.sum(sums.to(ranks.device, torch.float64)).cpu()
    return {**_rates(sums.sum(0)), "sources": {name: _rates(row) for name, row in zip(names, sums, strict=True)}}


def _rates(sums: Tensor) -> dict[str, Any]:
    nll, right, tokens = sums.tolist()
    loss = nll / max(tokens, 1.0)
    perplexity = math.exp(min(loss, 700.0))
    return {
        "loss": loss,
        "perplexity": perplexity,
        "token_accuracy": right / max(tokens, 1.0),
        "tokens": int(tokens),
    }


def _flat(evaluation: dict[str, Any]) -> dict[str, float]:
    """Keys for metrics.jsonl."""
    flat = {f"eval/{k}": evaluation[k] for k in ("loss", "perplexity", "token_accuracy")}
    return flat | {f"eval/perplexity/{name}": row["perplexity"] for name, row in evaluation["sources"].items()}


# ------------------------------------------------------------------------------------------- training


def train_sft(
    config: SFTConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    records: Sequence[Dialogue | Text] | None = None,
    eval_records: Sequence[Dialogue | Text] | None = None,
    resume: bool = False,
) -> SFTResult:
    """Fine-tune and write the run directory.

    ``model`` and ``tokenizer`` in memory stand for ``config.model`` (the model is trained in place), ``records`` and
    ``eval_records`` for ``config.data`` and ``config.eval_data``. Raises UserError for settings or data that cannot
    work, before anything is written.
    """
    ranks = join(config.device)
    device = ranks.device
    given = {"model": model, "tokenizer": tokenizer, "records": records, "eval_records": eval_records}

    # Models and data first: their mistakes must not leave a run directory behind.
    tokenizer = loading.check_tokenizer(tokenizer) if tokenizer is not None else loading.load_tokenizer(
        config.model, config.trust_remote_code
    )  # fmt: skip
    records, held_out, data_lines = load_records(config, "dialogue", records, eval_records)
    has_dialogues = any(isinstance(r, Dialogue) for r in records)
    own_template = has_dialogues or tokenizer.chat_template or config.chat_template != "model"
    chat = ChatFormat(tokenizer, config.chat_template if own_template else "human_assistant_en")
    examples, encoded = encode_records(records, chat, config)
    eval_examples, eval_encoded = encode_records(held_out, chat, config)
    data_lines += [f"training: {line}" for line in encoded] + [f"held out: {line}" for line in eval_encoded]
    if not examples:
        raise UserError(f"data: no training example is left ({'; '.join(encoded)}); raise max_length or add data")
    with in_turn(ranks):
        where = first_device(config.parallel, ranks)
        if model is None:
            model = loading.load_causal_lm(config.model, where, config.trust_remote_code)
        model = model.to(where).float().eval().requires_grad_(True)
        loading.quicken(model, where)
        loading.check_fits(model, tokenizer, config.max_length)
        if config.packing:
            require_packing(model, model.device)
        seed_everything(config.seed)
        if config.lora is not None:
            model = loading.add_lora(model, config.lora, "CAUSAL_LM")
        divide(model, config.parallel, ranks, config.precision)

    run = RunDirectory.open(config, ranks, resume=resume)
    with run.undone_if_nothing_came():
        record_start(run, config, data_lines, **given)
    if ranks.is_main:
        print("\n".join(data_lines), flush=True)
    ranks.say(*(f"warning: {w}" for w in [*warnings_for(config), *idle(config.parallel, ranks)]))
    optimizer = make_optimizer(model, config.optim)
    pad_id = tokenizer.pad_token_id
    rows = make_rows(examples, config)
    order = EpochOrder(len(rows), config.seed)
    rows_in_all = max(1, round(config.epochs * len(rows)))
    total = math.ceil(rows_in_all / config.batch_size)
    first_evaluation: dict[str, Any] = {}

    start, states = run.restore(CHECKPOINT_PARTS, "update")
    if states:
        loading.load_trainable_state(model, placed(states["model"], loading.trainable_state(model)))
        load_optimizer(optimizer, states["optimizer"])
        order.load_state_dict(states["progress"]["order"])
        first_evaluation = states["progress"]["first_evaluation"]
        restore_rng(states["rng"], device)

    history = run.read()
    evaluated_last: dict[str, float] = {}
    courses = {"loss": course(history, "loss/train"), "held_out_loss": course(history, "eval/loss")}
    bar = ProgressLine("sft", total, done=start, quiet=not ranks.is_main, sparklines=courses)
    with Requests(run, "update") as requests, bar:
        for update in range(start, total):
            began = time.perf_counter()
            metrics: dict[str, float] = {}
            # A line holds the model *after* `update` updates: the first one is the start model's.
            if eval_examples and (update == 0 or (config.eval_every and update % config.eval_every == 0)):
                evaluation = evaluate_lm(model, eval_examples, config, ranks, pad_id)
                first_evaluation = first_evaluation or evaluation
                metrics |= _flat(evaluation)
                evaluated_last = {"held_out_loss": evaluation["loss"]}
            evaluated = time.perf_counter()

            step_rows = [rows[i] for i in order.take(min(config.batch_size, rows_in_all - order.position))]
            tokens = sum(e.count for row in step_rows for e in row)
            mine = ranks.share(step_rows)
            nll_sum = torch.zeros((), device=device, dtype=torch.float64)
            for group in even_passes(token_budget([row_length(r) for r in mine], config.micro_batch_tokens), model):
                part = [mine[i] for i in group] or step_rows[:1]
                batch = batch_of(model, part, packed=config.packing, pad_id=pad_id, device=device)
                with precision(device, config.precision):
                    nll = token_nll(model, batch).sum() * bool(group)
                (nll / tokens).backward()
                nll_sum += nll.detach()
            ranks.sum_gradients(model.parameters())
            grad_norm = clip_gradients(model, max_norm=config.max_grad_norm)[0]
            lr = learning_rate(config.optim, update, total)
            set_learning_rate(optimizer, lr)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            loss = ranks.sum(nll_sum).item() / tokens
            if not math.isfinite(loss) or not math.isfinite(grad_norm):
                raise UserError(f"update {update}: loss {loss}, gradient norm {grad_norm}; lower optim.lr")
            seconds = time.perf_counter() - evaluated
            metrics |= {"loss/train": loss, "grad_norm": grad_norm, "lr": lr, "tokens": tokens}
            metrics |= {"time/eval": evaluated - began, "time/update": seconds, "throughput/tokens": tokens / seconds}
            metrics |= peak_memory(ranks)
            run.log({"update": update, "epoch": order.position / len(rows), **metrics})
            bar.step(loss=loss, perplexity=math.exp(min(loss, 700.0)), **evaluated_last, tokens_s=tokens / seconds)
            done, requested = update + 1, requests.take()
            if done == total or requested or (config.checkpoint.every and done % config.checkpoint.every == 0):
                parts = {
                    "model": loading.trainable_state(model),
                    "optimizer": optimizer.state_dict(),
                    "rng": rng_state(device),
                    "progress": {"order": order.state_dict(), "first_evaluation": first_evaluation},
                }
                run.checkpoint(done, parts, config.checkpoint.keep)
            requests.obeyed(requested, update, done, last=done == total)

    results: dict[str, Any] = {}
    if eval_examples:
        results = evaluate_lm(model, eval_examples, config, ranks, pad_id)
        run.log({"update": total, "epoch": order.position / len(rows), **_flat(results)})
    _finish(
        run, config, to_save(model), tokenizer, chat if has_dialogues else None, data_lines, first_evaluation, results
    )
    return SFTResult(run.path, results, model, tokenizer)


def _finish(
    run: RunDirectory,
    config: SFTConfig,
    model: Any,
    tokenizer: Any,
    chat: ChatFormat | None,
    data_lines: Sequence[str],
    before: dict[str, Any],
    after: dict[str, Any],
) -> None:
    """evaluation.json, final/ and the comparison with the start model. ``chat`` is None for a base model."""
    if not run.ranks.is_main:
        run.ranks.barrier()
        return
    columns = ("loss", "perplexity", "token_accuracy")
    rows: dict[str, dict[str, Any]] = {}
    if after:
        rows = {"start model": {k: before[k] for k in columns}, "trained": {k: after[k] for k in columns}}
        for name, values in after["sources"].items() if len(after["sources"]) > 1 else ():
            rows[f"start model, {name}"] = {k: before["sources"][name][k] for k in columns}
            rows[f"trained, {name}"] = {k: values[k] for k in columns}
        run.write(
            "evaluation.json", json.dumps({"start": before, "trained": after}, indent=2, ensure_ascii=False) + "\n"
        )
        for name, row in rows.items():
            print(f"held out, {name}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items()), flush=True)
    kind = "Language model" if chat is None else "Supervised fine-tuned model"
    summary = "Trained on plain text, loss on every token." if chat is None else "Loss on assistant turns only."
    saved = copy.deepcopy(tokenizer)
    if chat is not None:
        saved.chat_template = chat.jinja
    card = model_card(
        title=kind, summary=summary, stage="base" if chat is None else "sft", task="text-generation", base=config.model,
        data=data_lines, results={"Held-out evaluation": rows}, config=config,
    )  # fmt: skip
    loading.save_final(model, saved, run.final, stage="base" if chat is None else "sft", card=card)
    print(f"saved {run.final}", flush=True)
    run.ranks.barrier()
