"""Sampling by a vLLM server in an environment of its own, which follows the policy's weights (docs/vllm.md).

Every sample is one request with its own seed, so that what is drawn does not depend on which samples are asked for
together (the batch can still change the last digits of the logits, and through them, rarely, a token).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from ppomax.config import PPOConfig
from ppomax.errors import UserError
from ppomax.rollout.engine import Completion, Engine
from ppomax.rollout.vllm_sampling import refuse_unlike_vllm, wanted_logprobs
from ppomax.rollout.vllm_server import Drawn, ServerFacts, VLLMServer


class WeightTransfer(Protocol):
    """One way for the policy's weights to the server (ppomax/train/weight_transfer.py)."""

    name: str

    def send(self, version: str) -> None:
        """Give the server the policy's weights as they are now. All ranks together."""
        ...

    def repeat(self, version: str) -> None:
        """Give the server once more what was last sent, from this rank alone. UserError where that is impossible."""
        ...

    def close(self) -> None: ...


class VLLMEngine(Engine):
    """Implements `Engine`. All ranks ask the same server; the main one (``is_main``) gives it orders.

    ``session``: one word for all ranks, and another one for every life of a run. Raises UserError for settings that vLLM
    cannot follow, and for a server that does not fit, before anything is drawn.
    """

    def __init__(
        self, config: PPOConfig, eos_ids: set[int], server: VLLMServer, facts: ServerFacts, transfer: WeightTransfer, *,
        session: str, is_main: bool = True, barrier: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        refuse_unlike_vllm(config)
        self.sampling, self.rollout, self.eos_ids = config.sampling, config.rollout, sorted(eos_ids)
        self.server, self.facts, self.transfer = server, facts, transfer
        self.session, self.is_main, self.barrier = session, is_main, barrier
        self.version: str | None = None
        mode = wanted_logprobs(config)
        if facts.logprobs_mode != mode:
            raise UserError(
                f"rollout.url {server.url}: tells {facts.logprobs_mode}, but logprobs = {config.logprobs} at "
                f"sampling.temperature = {config.sampling.temperature:g} needs {mode}; start it by `ppomax serve-rollouts "
                f"MODEL --logprobs {mode.removesuffix('_logprobs')}`"
            )
        if self.rollout.colocated and not facts.can_sleep:
            raise UserError(
                "rollout.colocated: the server cannot sleep; start it by `ppomax serve-rollouts MODEL --colocated true`"
            )

    def wake(self, version: str) -> None:
        """The server holds the policy's weights of ``version`` when this returns. All ranks together."""
        wanted = f"{self.session}-{version}"
        if self.rollout.colocated and self.is_main:
            torch.cuda.empty_cache()  # what training has freed is the server's now
            self.server.tell("/wake_up", query={"tags": "weights"})
        elif self.version is None and self.is_main:
            self.server.tell("/wake_up")  # a colocated run that was killed may have left it asleep
        if wanted != self.version:
            self.transfer.send(wanted)
            self.version = wanted
        if self.rollout.colocated and self.is_main:
            self.server.tell("/wake_up", query={"tags": "kv_cache"})
        self.barrier()

    def sleep(self) -> None:
        """Colocated: the GPU's memory is the trainer's again. All ranks together."""
        if self.rollout.colocated:
            self.barrier()  # nobody draws any more
            if self.is_main:
                self.server.tell("/sleep", query={"level": 1})
            self.barrier()

    def close(self) -> None:
        self.transfer.close()

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Completion]:
        """One completion for each prompt, in order, with the sampler's log-probabilities.

        A server that was started again in between, and has other weights, is given ours once more.
        """
        assert self.version is not None, "wake comes first"
        longest = max(map(len, prompts), default=0)
        if longest + self.sampling.max_new_tokens > self.facts.max_length:
            raise UserError(
                f"a prompt of {longest} tokens and {self.sampling.max_new_tokens} new tokens exceed vLLM's limit of "
                f"{self.facts.max_length}; start it with a larger --max-length, or lower sampling.max_new_tokens"
            )
        requests = [self._request(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        for _ in range(self.rollout.retries + 1):
            if self.server.weight_version() == self.version:
                drawn = self.server.draw(requests, self.sampling.batch_size)
                if self.server.weight_version() == self.version:
                    return [self._completion(p, d) for p, d in zip(prompts, drawn, strict=True)]
            self.transfer.repeat(self.version)
        raise lost(self.server)

    def _request(self, prompt: Sequence[int], seed: int) -> dict[str, Any]:
        """Every setting is given: none is left to the server's or the model's defaults."""
        s = self.sampling
        return {
            "model": self.facts.model, "prompt": list(prompt), "add_special_tokens": False, "seed": seed, "n": 1,
            "max_tokens": s.max_new_tokens, "temperature": s.temperature, "top_p": s.top_p, "top_k": s.top_k, "min_p": 0.0,
            "repetition_penalty": s.repetition_penalty, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "stop": s.stop, "include_stop_str_in_output": True, "skip_special_tokens": False,
            "stop_token_ids": self.eos_ids, "ignore_eos": True,  # the ids of ours alone end a response
            "logprobs": 0, "return_token_ids": True, "return_tokens_as_token_ids": True,
        }  # fmt: skip

    def _completion(self, prompt: Sequence[int], drawn: Drawn) -> Completion:
        return Completion(list(prompt), drawn.ids, drawn.finished, drawn.logprobs)


def lost(server: VLLMServer) -> UserError:
    """The server keeps getting out of step."""
    return UserError(
        f"rollout.url {server.url}: vLLM has lost this run's weights (was it started again, or does another run use it?); "
        "continue the run with --resume"
    )
