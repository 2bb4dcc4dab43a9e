"""Reward models that are encoders (BERT, DeBERTa, ...): sequence classification with one label and no causal backbone.

They read question and answer as a *pair* of texts, which their tokenizer joins in its own way ([CLS] question [SEP] answer [SEP]);
the reward is the stock forward pass's only logit. A prompt of several turns is written as lines ``Human: `` and ``Assistant: ``.
They can be evaluated, and compared with others; PPO takes causal reward models alone, whose critic starts from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ppomax.data.batches import token_budget
from ppomax.data.records import Message
from ppomax.errors import UserError
from ppomax.models.loading import adapter_of, load_pretrained, load_weights, require_model, settle
from ppomax.models.precision import precision

NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}


def is_encoder(path: str, trust_remote_code: bool = False) -> bool:
    """Whether a directory or hub name is a sequence classifier whose head is no ``score`` on a causal backbone."""
    require_model(path)
    if adapter_of(path):
        return False
    config = load_pretrained("config", path, AutoConfig, trust_remote_code=trust_remote_code)
    if not any("SequenceClassification" in kind for kind in config.architectures or []) or config.num_labels != 1:
        return False
    try:
        with torch.device("meta"):  # its shape alone: nothing is read or drawn
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError:
        return False
    return not hasattr(model, "score")


def question_text(prompt: Sequence[Message]) -> str:
    """A single question as it is; several turns as lines that name who speaks."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{NAMES.get(m['role'], m['role'])}: {m['content']}" for m in prompt)


class EncoderReward:
    """An encoder with its tokenizer; ``truncated`` counts pairs of texts that lost the left of the question."""

    def __init__(self, path: str, device: torch.device, trust_remote_code: bool = False) -> None:
        self.path, self.device = path, device
        self.tokenizer = load_pretrained("tokenizer", path, AutoTokenizer, trust_remote_code=trust_remote_code)
        if self.tokenizer.pad_token_id is None:
            raise UserError(f"{path}: the tokenizer has no pad token: answers cannot be read side by side")
        self.model = settle(
            load_weights("reward model", path, AutoModelForSequenceClassification, trust_remote_code=trust_remote_code),
            device,
        )
        room = getattr(self.model.config, "max_position_embeddings", None) or 10**9
        # RoBERTa and its kind count positions from the pad's number + 1
        shifted = self.model.config.model_type in ("roberta", "xlm-roberta", "camembert", "longformer")
        self.room = min(self.tokenizer.model_max_length, room - 2 * shifted)
        self.truncated = 0

    @torch.no_grad()
    def __call__(
        self, pairs: Sequence[tuple[str, str]], micro_batch_tokens: int, *, bf16: bool = False,
        step: Callable[[int], None] = lambda count: None,
    ) -> list[float]:  # fmt: skip
        """One reward for each (question, answer)."""
        rows = [self._encode(question, answer) for question, answer in pairs]
        out = [0.0] * len(rows)
        for group in token_budget([len(row["input_ids"]) for row in rows], micro_batch_tokens):
            batch = self.tokenizer.pad([rows[i] for i in group], return_tensors="pt").to(self.device)
            with precision(self.device, "bf16" if bf16 else "float32"):
                logits = self.model(**batch).logits
            for i, value in zip(group, logits[:, 0].float().tolist(), strict=True):
                out[i] = value
            step(len(group))
        return out

    def _encode(self, question: str, answer: str) -> dict[str, Any]:
        row = dict(self.tokenizer(question, answer))
        over = len(row["input_ids"]) - self.room
        if over <= 0:
            return row
        self.truncated += 1
        ids = self.tokenizer(question, add_special_tokens=False)["input_ids"]
        kept = self.tokenizer.decode(ids[over:]) if over < len(ids) else ""
        side, self.tokenizer.truncation_side = self.tokenizer.truncation_side, "left"
        row = dict(self.tokenizer(kept, answer, truncation="longest_first", max_length=self.room))
        self.tokenizer.truncation_side = side
        return row
