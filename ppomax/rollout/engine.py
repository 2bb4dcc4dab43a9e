"""What a sampler must do, whatever draws the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol


@dataclass(frozen=True)
class Completion:
    """One response. ``response_ids`` include the end-of-sequence token where there is one, and are never empty."""

    prompt_ids: list[int]
    response_ids: list[int]
    finished: bool
    """ended by an end-of-sequence token or a stop string; False: cut at the length limit"""
    logprobs: list[float] | None = None
    """log-probability of each response token by the sampler that drew it; None: the sampler is the policy itself"""


class Engine(Protocol):
    """Draws one completion for each prompt, in order.

    What is drawn depends on weights, prompt, settings and the sample's own seed, not on the batch it happens to be in.
    """

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Completion]: ...

    def wake(self, version: str) -> None:
        """Be ready to draw from the policy's weights as they are now; ``version`` changes when they do. All ranks together."""
        return

    def sleep(self) -> None:
        """Nothing is drawn until the next `wake`: give memory back. All ranks together."""
        return

    def close(self) -> None:
        """The run is over."""
        return


def sample_seed(*parts: int) -> int:
    """Seed of one sample, from e.g. (run seed, iteration, sample number)."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1
