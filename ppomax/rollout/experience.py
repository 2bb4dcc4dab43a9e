"""Experience: what one iteration collects, with the shape of every tensor.

B samples; S the longest prompt + response; T the longest response. Rows are packed to the left: prompt, response, pads.
State s_t is everything before response token t, so its hidden state stands at position prompt_length - 1 + t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor
from torch.nn.functional import pad

from ppomax.data.batches import pad_sequences
from ppomax.rollout.engine import Completion


@dataclass
class Experience:
    """Samples with everything known about them, on the CPU. (B, T) tensors are 0 outside ``response_mask``."""

    ids: Tensor
    """(B, S) long: prompt and response tokens, 0 beyond"""
    prompt_lengths: Tensor
    """(B,) long"""
    lengths: Tensor
    """(B,) long: prompt + response"""
    response_mask: Tensor
    """(B, T) bool: the policy's own tokens; may have gaps"""
    finished: Tensor
    """(B,) bool: ended by itself, not by the length limit"""
    logprobs: Tensor
    """(B, T) log pi_old of each response token"""
    ref_logprobs: Tensor
    """(B, T) log pi_ref"""
    entropy: Tensor
    """(B, T) entropy of pi_old in nats"""
    sequence_nll: Tensor
    """(B,) mean negative log-likelihood of all tokens but the first, prompt included, for the released perplexity"""
    values: Tensor
    """(B, T) V_old of the state before each token"""
    scores: Tensor
    """(B,) raw reward, before shaping"""
    rewards: Tensor
    """(B, T) shaped score at the last token, KL penalty at every token"""
    advantages: Tensor
    """(B, T)"""
    returns: Tensor
    """(B, T) the critic's targets"""
    sampler_logprobs: Tensor = field(default_factory=lambda: torch.empty(0))
    """(B, T) log-probabilities by the engine that drew the tokens; left out: the policy drew them, and they are its own"""

    def __post_init__(self) -> None:
        if not self.sampler_logprobs.numel():
            self.sampler_logprobs = self.logprobs

    @classmethod
    def from_completions(cls, completions: Sequence[Completion]) -> Experience:
        """Tokens and masks; everything else zero, to be filled in."""
        ids, _ = pad_sequences([c.prompt_ids + c.response_ids for c in completions], pad_id=0)
        prompt_lengths = torch.tensor([len(c.prompt_ids) for c in completions])
        response_lengths = torch.tensor([len(c.response_ids) for c in completions])
        mask = torch.arange(int(response_lengths.max()))[None, :] < response_lengths[:, None]
        zeros = torch.zeros(mask.shape)
        told = zeros.clone()
        for row, completion in zip(told, completions, strict=True):
            if completion.logprobs is not None:
                row[: len(completion.logprobs)] = torch.tensor(completion.logprobs)
        return cls(
            ids=ids, prompt_lengths=prompt_lengths, lengths=prompt_lengths + response_lengths, response_mask=mask,
            finished=torch.tensor([c.finished for c in completions]), sampler_logprobs=told,
            scores=torch.zeros(len(completions)), sequence_nll=torch.zeros(len(completions)),
            **{n: zeros.clone() for n in ("logprobs", "ref_logprobs", "entropy", "values", "rewards", "advantages", "returns")},
        )  # fmt: skip

    def __len__(self) -> int:
        return self.ids.shape[0]

    def select(self, rows: Sequence[int]) -> Experience:
        """The named samples, in that order, trimmed to their own longest lengths."""
        index = torch.as_tensor(rows, dtype=torch.long)
        picked = {f.name: getattr(self, f.name)[index] for f in fields(self)}
        total = int(picked["lengths"].max())
        response = int((picked["lengths"] - picked["prompt_lengths"]).max())
        for name, value in picked.items():
            if value.ndim == 2:
                picked[name] = value[:, : total if name == "ids" else response]
        return Experience(**picked)

    @classmethod
    def concatenate(cls, parts: Sequence[Experience]) -> Experience:
        """All samples of several experiences, padded to common shapes."""
        joined: dict[str, Tensor] = {}
        for f in fields(cls):
            values: list[Tensor] = [getattr(p, f.name) for p in parts]
            if values[0].ndim == 2:
                width = max(v.shape[1] for v in values)
                values = [pad(v, (0, width - v.shape[1])) for v in values]
            joined[f.name] = torch.cat(values)
        return cls(**joined)

    def state_dict(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def responses(self) -> list[list[int]]:
        """Response token ids of each sample."""
        return [
            row[p:n]
            for row, p, n in zip(self.ids.tolist(), self.prompt_lengths.tolist(), self.lengths.tolist(), strict=True)
        ]
