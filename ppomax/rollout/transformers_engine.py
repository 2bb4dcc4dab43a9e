"""Sampling with a transformers model: its forward pass and cache, our decoding loop.

The loop is ours, not ``model.generate``, for three things that the latter cannot do: each sample has its own random
numbers (so that batches, ranks and resumption do not change what is drawn), finished rows leave the batch, and the
cache is written in place where a dynamic cache copies itself at every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ppomax.config import SamplingConfig
from ppomax.data.batches import pad_sequences
from ppomax.data.chat import ChatFormat
from ppomax.errors import UserError
from ppomax.models.logprobs import inner_model, unembed
from ppomax.models.passes import device_of, whole
from ppomax.models.precision import precision
from ppomax.rollout.engine import Completion, Engine
from ppomax.rollout.sampling import next_tokens

COMPACT_BELOW = 0.75
"""rows are dropped from the cache (a copy) once this share of them or fewer is still running"""
STOP_WINDOW = 32
"""tokens looked back for a stop string"""


class InPlaceLayer(DynamicLayer):
    """One layer's cache with room for ``capacity`` positions from the start."""

    is_initialized: bool

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            rows, heads, _, width = key_states.shape
            # attention under autocast on a CPU is float32 (models/precision.py): a bf16 cache would be copied at every token
            cpu = key_states.device.type == "cpu" and torch.is_autocast_enabled("cpu")
            kind = torch.float32 if cpu else key_states.dtype
            self.keys = key_states.new_empty(rows, heads, self.capacity, width, dtype=kind)
            self.values = value_states.new_empty(rows, heads, self.capacity, value_states.shape[-1], dtype=kind)
            self.is_initialized = True
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length


def make_cache(model: Any, capacity: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    if all(type(layer) is DynamicLayer for layer in cache.layers):  # sliding or linear attention keep their own kind
        cache.layers = [InPlaceLayer(capacity) for _ in cache.layers]
    return cache


class TransformersEngine(Engine):
    """Implements `Engine` for a causal language model that lives in this process."""

    def __init__(self, model: Any, chat_format: ChatFormat, sampling: SamplingConfig, *, bf16: bool = False) -> None:
        self.model, self.format, self.sampling, self.bf16 = model, chat_format, sampling, bf16
        self.window = STOP_WINDOW + max((len(s.encode()) for s in sampling.stop), default=0)
        """tokens that are looked through for a stop string: each has a byte of it at least"""

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Completion]:
        """One completion for each prompt, in order; ``seeds`` holds one seed a sample."""
        tokens: list[list[int]] = [[] for _ in prompts]
        finished = [False] * len(prompts)
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        # around all steps: the weights are gathered, and made bf16, once and not at every token
        with self.precision(), whole(self.model) as model:
            for start in range(0, len(prompts), self.sampling.batch_size):
                chosen = by_length[start : start + self.sampling.batch_size]
                drawing = self._decode(model, [prompts[i] for i in chosen], [seeds[i] for i in chosen])
                for rows, drawn, ends in drawing:
                    for row, token, end in zip(rows, drawn, ends, strict=True):
                        tokens[chosen[row]].append(token)
                        finished[chosen[row]] = end
        return [Completion(list(p), t, f) for p, t, f in zip(prompts, tokens, finished, strict=True)]

    def stream(self, prompt: Sequence[int], seed: int) -> Iterator[int]:
        """Tokens of one response as they are drawn."""
        for _, drawn, _ in self._decode(self.model, [prompt], [seed]):
            yield drawn[0]

    def precision(self) -> AbstractContextManager[None]:
        return precision(device_of(self.model), "bf16" if self.bf16 else "float32")

    def _ends(self, row: list[int], token: int) -> bool:
        if token in self.format.eos_ids:
            return True
        if not self.sampling.stop:
            return False
        tail = self.format.tokenizer.decode([*row, token][-self.window :])
        return any(s in tail for s in self.sampling.stop)

    @torch.no_grad()
    def _decode(
        self, model: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int]
    ) -> Iterator[tuple[list[int], list[int], list[bool]]]:
        """Yield, for every position, the rows still running, their new tokens, and which of them ended with it."""
        config, inner = self.sampling, inner_model(model)
        device = next(inner.parameters()).device
        longest = max(map(len, prompts))
        room = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
        if room is not None and longest + config.max_new_tokens > room:
            raise UserError(
                f"a prompt of {longest} tokens and {config.max_new_tokens} new tokens exceed the model's context of {room}; "
                "lower max_prompt_length or sampling.max_new_tokens"
            )
        ids, mask = pad_sequences(prompts, pad_id=0, side="left")
        ids, mask = ids.to(device), mask.to(device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        uniforms = torch.stack(
            [torch.rand(config.max_new_tokens, generator=torch.Generator().manual_seed(s)) for s in seeds]
        ).to(device)
        seen = None
        if config.repetition_penalty != 1:
            seen = torch.zeros(len(prompts), inner.config.get_text_config().vocab_size, dtype=torch.bool, device=device)
            if config.repetition_scope == "all":
                for i, prompt in enumerate(prompts):
                    seen[i, torch.tensor(prompt, device=device)] = True
        cache = make_cache(inner, longest + config.max_new_tokens)
        backbone = getattr(inner, inner.base_model_prefix)
        mask = torch.cat([mask, mask.new_ones(len(prompts), config.max_new_tokens)], dim=1)
        padded = bool((mask == 0).any())
        rows = list(range(len(prompts)))  # cache row -> prompt
        running = [True] * len(prompts)  # by cache row
        texts: list[list[int]] = [[] for _ in prompts]
        for step in range(config.max_new_tokens):
            with self.precision():
                hidden = backbone(
                    input_ids=ids, attention_mask=mask[:, : longest + step] if padded else None, position_ids=positions,
                    past_key_values=cache, use_cache=True,
                ).last_hidden_state[:, -1]  # fmt: skip
                logits = unembed(model, hidden)
            drawn = next_tokens(logits, uniforms[:, step], seen, config)
            if seen is not None:
                seen.scatter_(1, drawn[:, None], True)
            live: list[int] = []
            tokens: list[int] = []
            ends: list[bool] = []
            for i, token in enumerate(drawn.tolist()):
                if running[i]:
                    ended = self._ends(texts[i], token)
                    texts[i].append(token)
                    running[i] = not ended
                    live.append(rows[i])
                    tokens.append(token)
                    ends.append(ended)
            yield live, tokens, ends
            alive = sum(running)
            if alive == 0:
                return
            ids, positions = drawn[:, None], positions[:, -1:] + 1
            if alive <= COMPACT_BELOW * len(running):
                keep = torch.tensor([i for i, r in enumerate(running) if r], device=device)
                cache.reorder_cache(keep)  # takes rows out of every kind of layer, states of linear attention too
                ids, positions, mask, uniforms = ids[keep], positions[keep], mask[keep], uniforms[keep]
                seen = None if seen is None else seen[keep]
                rows, texts = [rows[i] for i in keep.tolist()], [texts[i] for i in keep.tolist()]
                running = [True] * alive
