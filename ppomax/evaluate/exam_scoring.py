"""Log-likelihoods of choices and of plain texts.

Whole and prompt are encoded each as one text, and all tokens after the ones that the prompt and *all* choices of the
question share are scored: a tokenizer may merge the end of the prompt with the beginning of a choice, and no choice then
gets a token for nothing. Where nothing merges, these are the log-likelihoods of lm-evaluation-harness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ppomax.data.batches import pad_sequences, token_budget
from ppomax.data.chat import ChatFormat, truncate_left
from ppomax.evaluate.exam_files import Question
from ppomax.evaluate.exam_form import exam_text
from ppomax.models.precision import precision
from ppomax.models.responses import ResponseBatch, response_logprobs


@dataclass(frozen=True)
class Encoded:
    """The choices of a question, each after the prompt; the first ``shared`` tokens of all are the same."""

    ids: list[list[int]]
    shared: int
    shots: int
    """examples that fitted into the context"""
    cut: bool
    """the question itself lost its left"""


def encode(
    chat: ChatFormat, question: Question, shots: Sequence[Question], score: str, room: int | None
) -> Encoded | None:
    """Examples leave from the left until everything fits ``room`` tokens; then the question loses its own left.

    None where not even the longest choice fits.
    """
    for first in range(len(shots) + 1):
        prompt, choices = exam_text(question, shots[first:], score)
        start = chat.encode_text(prompt)[:-1]  # without eos
        ids = [chat.encode_text(prompt + choice)[:-1] for choice in choices]
        if room is None or max(map(len, ids)) <= room:
            return Encoded(ids, _shared(start, ids), len(shots) - first, False)
    assert room is not None
    shared = _shared(start, ids)
    longest = max(len(whole) - shared for whole in ids)
    fitted = truncate_left(start[:shared], [0] * longest, room, chat.bos_id)
    if fitted is None or not fitted[0]:
        return None
    prefix = fitted[0]
    return Encoded([prefix + whole[shared:] for whole in ids], len(prefix), 0, True)


def _shared(prompt: Sequence[int], wholes: Sequence[Sequence[int]]) -> int:
    """Length of the longest common beginning of the prompt and all wholes; at least 1, and a token is left of each."""
    shortest = min(len(prompt), *(len(whole) - 1 for whole in wholes))
    same = next((i for i in range(shortest) if any(whole[i] != prompt[i] for whole in wholes)), shortest)
    return max(1, same)


@torch.no_grad()
def log_likelihoods(
    model: nn.Module, encoded: Sequence[Encoded], device: torch.device, micro_batch_tokens: int,
    *, bf16: bool = False, step: Callable[[int], None] = lambda count: None,
) -> list[list[float]]:  # fmt: skip
    """Sum of log-probabilities (nats) of each choice's own tokens, in the order of ``encoded``.

    Right padding with a mask; ``step`` is told how many choices each forward pass did.
    """
    jobs = [(q, c) for q, item in enumerate(encoded) for c in range(len(item.ids))]
    out = [[0.0] * len(item.ids) for item in encoded]
    for group in token_budget([len(encoded[q].ids[c]) for q, c in jobs], micro_batch_tokens):
        rows = [encoded[q].ids[c] for q, c in (jobs[i] for i in group)]
        starts = [encoded[jobs[i][0]].shared for i in group]
        ids, _ = pad_sequences(rows, 0)
        lengths = torch.tensor([len(row) for row in rows])
        prompts = torch.tensor(starts)
        own = lengths - prompts
        mask = torch.arange(int(own.max()))[None, :] < own[:, None]
        batch = ResponseBatch(ids.to(device), lengths.to(device), prompts.to(device), mask.to(device))
        with precision(device, "bf16" if bf16 else "float32"):
            logprobs, _ = response_logprobs(model, batch)
        for i, total in zip(group, logprobs.double().sum(dim=1).tolist(), strict=True):
            q, c = jobs[i]
            out[q][c] = total
        step(len(group))
    return out
