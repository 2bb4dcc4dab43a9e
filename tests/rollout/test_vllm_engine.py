"""The engine that samples from a vLLM server, against a stand-in: settings, versions of the weights, sleep and wake."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppomax.config import PPOConfig
from ppomax.errors import UserError
from ppomax.options import warnings_for
from ppomax.options_check import refuse_contradictions
from ppomax.rollout.engine import Completion
from ppomax.rollout.vllm_engine import VLLMEngine
from ppomax.rollout.vllm_sampling import refuse_unlike_vllm, wanted_logprobs
from ppomax.rollout.vllm_server import VLLMServer

sys.path.insert(0, str(Path(__file__).parent))
from vllm_fake import FakeVLLM


class Recorded:
    """A transfer that only sets the version, and remembers."""

    name = "recorded"

    def __init__(self, fake: FakeVLLM) -> None:
        self.fake = fake
        self.did: list[tuple[str, str]] = []

    def send(self, version: str) -> None:
        self.did.append(("send", version))
        self.fake.weights = version

    def repeat(self, version: str) -> None:
        self.did.append(("repeat", version))
        self.fake.weights = version

    def close(self) -> None:
        self.did.append(("close", ""))


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


def config(url: str = "http://127.0.0.1:1", *, rollout: dict[str, Any] | None = None, **changes: Any) -> PPOConfig:
    section = {"engine": "vllm", "url": url, "retries": 2, "first_pause": 0.01, "timeout": 5.0, **(rollout or {})}
    return PPOConfig(model="m", prompts=["p"], reward=["rm"], output_dir="o", rollout=section, **changes)  # type: ignore[arg-type]


def engine(fake: FakeVLLM, *, rollout: dict[str, Any] | None = None, **changes: Any) -> tuple[VLLMEngine, Recorded]:
    settings = config(fake.url, rollout=rollout, **changes)
    server = VLLMServer(fake.url, timeout=5, retries=2, first_pause=0.01)
    transfer = Recorded(fake)
    return VLLMEngine(settings, {2, 9}, server, server.facts(), transfer, session="life"), transfer


def test_completions_come_with_the_samplers_logprobs(fake: FakeVLLM) -> None:
    made, _ = engine(fake)
    made.wake("0-0")
    assert made.generate([[4, 5], [6]], [11, 12]) == [
        Completion([4, 5], [4, 11, 7], True, [-0.5, -0.25, -1.5]), Completion([6], [6, 12, 7], True, [-0.5, -0.25, -1.5]),
    ]  # fmt: skip
    assert made.generate([], []) == []


def test_every_setting_is_sent(fake: FakeVLLM) -> None:
    sampling = {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.2, "repetition_scope": "all",
        "stop": ["\nHuman"], "max_new_tokens": 17,
    }  # fmt: skip
    made, _ = engine(fake, sampling=sampling)
    made.wake("0")
    made.generate([[1, 4, 5]], [2**62])
    assert fake.requests == [{
        "model": "policy", "prompt": [1, 4, 5], "seed": 2**62, "n": 1, "add_special_tokens": False,
        "max_tokens": 17, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.0, "repetition_penalty": 1.2,
        "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "stop": ["\nHuman"], "include_stop_str_in_output": True, "skip_special_tokens": False,
        "stop_token_ids": [2, 9], "ignore_eos": True,
        "logprobs": 0, "return_token_ids": True, "return_tokens_as_token_ids": True,
    }]  # fmt: skip


def test_weights_are_sent_when_they_changed(fake: FakeVLLM) -> None:
    made, transfer = engine(fake)
    for version in ("0-0", "0-0", "4-0", "4-1"):  # twice the same: critic pre-training
        made.wake(version)
        made.sleep()
    made.close()
    assert transfer.did == [("send", "life-0-0"), ("send", "life-4-0"), ("send", "life-4-1"), ("close", "")]
    assert fake.calls == [("/wake_up", {})]  # once, in case a killed run left it asleep


def test_a_server_that_was_started_again_gets_the_weights_once_more(fake: FakeVLLM) -> None:
    made, transfer = engine(fake)
    made.wake("3")
    fake.restart()
    assert len(made.generate([[4]], [1])) == 1
    assert transfer.did == [("send", "life-3"), ("repeat", "life-3")]
    assert len(fake.requests) == 1  # nothing was drawn from the weights of the start


def test_samples_of_other_weights_are_not_taken(fake: FakeVLLM) -> None:
    made, transfer = engine(fake)
    made.wake("3")
    original = fake.sampler

    def sampler(body: dict[str, Any]) -> tuple[list[int], list[float], str]:
        if len(fake.requests) == 1:
            fake.weights = "somebody-else's"
            return [13], [-1.0], "length"
        return original(body)

    fake.sampler = sampler
    assert made.generate([[4]], [1])[0].response_ids == [4, 1, 7]
    assert transfer.did[1:] == [("repeat", "life-3")]


def test_two_runs_at_one_server_stop(fake: FakeVLLM) -> None:
    made, transfer = engine(fake)
    made.wake("3")

    def sampler(body: dict[str, Any]) -> tuple[list[int], list[float], str]:
        fake.weights = "theirs"
        return [13], [-1.0], "length"

    fake.sampler = sampler
    with pytest.raises(UserError, match=r"lost this run's weights.*continue the run with --resume"):
        made.generate([[4]], [1])
    assert len(transfer.did) == 1 + 3  # retries + 1


def test_colocated(fake: FakeVLLM) -> None:
    with pytest.raises(UserError, match=r"rollout\.colocated: the server cannot sleep"):
        engine(fake, rollout={"colocated": True})
    fake.sleep_mode = True
    made, transfer = engine(fake, rollout={"colocated": True})
    order: list[Any] = transfer.did  # type: ignore[assignment]
    tell = made.server.tell

    def told(path: str, *args: Any, **kwargs: Any) -> Any:
        order.append((path, kwargs["query"]))
        return tell(path, *args, **kwargs)

    made.server.tell = told  # type: ignore[method-assign]
    made.wake("0")
    made.sleep()
    made.wake("0")
    assert order == [
        ("/wake_up", {"tags": "weights"}), ("send", "life-0"), ("/wake_up", {"tags": "kv_cache"}),
        ("/sleep", {"level": 1}),
        ("/wake_up", {"tags": "weights"}), ("/wake_up", {"tags": "kv_cache"}),
    ]  # fmt: skip


def test_ranks_beside_the_main_one_give_no_orders(fake: FakeVLLM) -> None:
    fake.sleep_mode = True
    server = VLLMServer(fake.url, timeout=5, retries=0, first_pause=0.01)
    met: list[str] = []
    settings = config(fake.url, rollout={"colocated": True})
    transfer = Recorded(fake)
    other = VLLMEngine(
        settings, {2}, server, server.facts(), transfer, session="s", is_main=False, barrier=lambda: met.append("met")
    )
    other.wake("1")
    other.sleep()
    assert transfer.did == [("send", "s-1")] and fake.calls == [] and len(met) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": {"repetition_penalty": 1.1}}, r"sampling\.repetition_scope: vLLM counts the prompt's tokens"),
        ({"sampling": {"temperature": 0.005}}, r"sampling\.temperature: vLLM cannot go below 0\.01"),
        ({"logprobs": "scaled", "sampling": {"temperature": 0.7, "top_p": 0.9}}, "logprobs: scaled cannot be compared"),
        ({"logprobs": "scaled", "sampling": {"temperature": 0.7, "top_k": 5}}, "logprobs: scaled cannot be compared"),
    ],
)
def test_settings_that_vllm_cannot_follow(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        refuse_unlike_vllm(config(**changes))
    with pytest.raises(UserError, match=message):
        refuse_contradictions(config(**changes))
    refuse_contradictions(config(**changes, rollout={"engine": "transformers"}))


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": {"repetition_penalty": 1.1, "repetition_scope": "all"}}, {"sampling": {"temperature": 0.0}},
        {"sampling": {"temperature": 0.8, "top_p": 0.9, "top_k": 5}},
    ],
)  # fmt: skip
def test_settings_that_it_can_follow(changes: dict[str, Any]) -> None:
    refuse_unlike_vllm(config(**changes))


def test_the_servers_logprobs_must_be_of_the_same_logits(fake: FakeVLLM) -> None:
    scaled: dict[str, Any] = {"logprobs": "scaled", "sampling": {"temperature": 0.7}}
    assert wanted_logprobs(config(**scaled)) == "processed_logprobs"
    assert wanted_logprobs(config(sampling={"temperature": 0.7})) == "raw_logprobs"
    assert wanted_logprobs(config(logprobs="scaled")) == "raw_logprobs"  # temperature 1
    with pytest.raises(UserError, match=r"tells raw_logprobs.*--logprobs processed"):
        engine(fake, **scaled)
    fake.logprobs_mode = "processed_logprobs"
    engine(fake, **scaled)
    with pytest.raises(UserError, match=r"tells processed_logprobs.*--logprobs raw"):
        engine(fake)


def test_a_prompt_that_the_server_cannot_hold(fake: FakeVLLM) -> None:
    fake.max_length = 20
    made, _ = engine(fake, sampling={"max_new_tokens": 16})
    made.wake("0")
    assert len(made.generate([[1] * 4], [0])) == 1
    with pytest.raises(UserError, match="a prompt of 5 tokens and 16 new tokens exceed vLLM's limit of 20"):
        made.generate([[1] * 4, [1] * 5], [0, 0])


def test_options_that_do_nothing_without_vllm_are_named() -> None:
    told = warnings_for(config(rollout={"engine": "transformers", "importance_clip": 2.0}))
    assert "rollout.importance_clip does nothing: rollout.engine is transformers" in told
    assert not [line for line in warnings_for(config(rollout={"importance_clip": 2.0})) if "rollout" in line]
