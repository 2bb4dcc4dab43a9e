"""Where vLLM's sampling settings mean the same as ours, and where they do not. No vLLM and no torch is needed to know.

Both apply repetition penalty, temperature, top-k and top-p in this order, with the same nucleus and the same treatment of
ties at the k-th place; end-of-sequence ids, stop strings and the length limit are sent with every request.
"""

from __future__ import annotations

from ppomax.config import PPOConfig
from ppomax.errors import UserError

LOWEST_TEMPERATURE = 0.01
"""vLLM raises lower ones to this; 0 is greedy in both"""


def refuse_unlike_vllm(config: PPOConfig) -> None:
    """UserError for sampling settings that vLLM knows in another sense or not at all."""
    s = config.sampling
    if s.repetition_penalty != 1 and s.repetition_scope == "generated":
        raise UserError(
            "sampling.repetition_scope: vLLM counts the prompt's tokens as seen; set it to all, or repetition_penalty to 1"
        )
    if 0 < s.temperature < LOWEST_TEMPERATURE:
        raise UserError(
            f"sampling.temperature: vLLM cannot go below {LOWEST_TEMPERATURE} (got {s.temperature:g}); raise it, or set it to 0"
        )
    if wanted_logprobs(config) == "processed_logprobs" and (s.top_p < 1 or s.top_k or s.repetition_penalty != 1):
        raise UserError(
            "logprobs: scaled cannot be compared with vLLM's under top_p, top_k or repetition_penalty; set logprobs to raw"
        )


def wanted_logprobs(config: PPOConfig) -> str:
    """vLLM's word for what our log-probabilities are of."""
    scaled = config.logprobs == "scaled" and config.sampling.temperature not in (0, 1)
    return "processed_logprobs" if scaled else "raw_logprobs"
