"""The client of a vLLM server against a stand-in: what it is asked, and what happens when it fails."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppomax.errors import UserError
from ppomax.rollout.vllm_server import Drawn, Fault, VLLMServer, read_completion, require_supported

sys.path.insert(0, str(Path(__file__).parent))
from vllm_fake import FakeVLLM


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


def client(fake: FakeVLLM, **changes: Any) -> VLLMServer:
    return VLLMServer(fake.url, **{"timeout": 5.0, "retries": 2, "first_pause": 0.01, **changes})


def request(first: int, seed: int = 0) -> dict[str, Any]:
    return {"prompt": [first, 2, 3], "seed": seed, "max_tokens": 8}


def test_facts(fake: FakeVLLM) -> None:
    facts = client(fake).facts()
    assert (facts.version, facts.model, facts.dtype, facts.device) == ("0.32.0", "policy", "float32", "cpu")
    assert (facts.max_length, facts.logprobs_mode, facts.transfer) == (512, "raw_logprobs", None)
    assert not facts.can_sleep and facts.packs_tied_head
    fake.transfer, fake.sleep_mode, fake.worker_extension = "nccl", True, ""
    facts = client(fake).facts()
    assert facts.transfer == "nccl" and facts.can_sleep and not facts.packs_tied_head


@pytest.mark.parametrize(
    ("version", "good"),
    [("0.32.0", True), ("0.32.1rc1", True), ("0.31.9", False), ("0.33.0", False), ("1.0", False), ("dev", False), ("", False)],
)  # fmt: skip
def test_versions(version: str, good: bool) -> None:
    if good:
        require_supported(version, "here")
    else:
        with pytest.raises(UserError, match=r"vLLM .*is not supported; use >=0\.32,<0\.33"):
            require_supported(version, "here")


def test_a_version_that_is_not_supported_is_told_at_connection(fake: FakeVLLM) -> None:
    fake.version = "0.11.2"
    with pytest.raises(UserError, match=r"vLLM 0\.11\.2 is not supported"):
        client(fake).facts()


def test_a_server_without_the_routes_for_weights(fake: FakeVLLM) -> None:
    fake.development = False
    with pytest.raises(UserError, match=r"without VLLM_SERVER_DEV_MODE=1.*serve-rollouts"):
        client(fake).facts()


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://x",
        "http://",
        "http://me:secret@host",
        "http://host?key=1",
        "http://host:80000",
        "http://host:abc",
        "http://[::1",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UserError, match=r"rollout\.url") as error:
        VLLMServer(url, timeout=1, retries=0, first_pause=1)
    assert "secret" not in str(error.value)


def test_an_address_that_is_not_the_root(fake: FakeVLLM) -> None:
    fake.faults["/version"] = [404]
    with pytest.raises(UserError, match="not the root address of a vLLM server"):
        client(fake).facts()


@pytest.mark.parametrize("key", ["\u043a\u043b\u044e\u0447", "a\nb"])
def test_a_key_that_cannot_stand_in_a_header(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(UserError, match="VLLM_API_KEY: a key is made of ASCII") as error:
        client(fake).facts()
    assert key not in str(error.value)


def test_responses_come_in_order_each_with_its_own_seed(fake: FakeVLLM) -> None:
    drawn = client(fake).draw([request(i, i + 10) for i in range(40)], at_once=7)
    assert drawn == [Drawn([i, i + 10, 7], [-0.5, -0.25, -1.5], True) for i in range(40)]
    assert client(fake).draw([], at_once=7) == []


def test_no_more_than_so_many_are_under_way(fake: FakeVLLM) -> None:
    under_way: list[int] = []
    most: list[int] = []

    met = threading.Barrier(3, timeout=60)

    def sampler(body: dict[str, Any]) -> tuple[list[int], list[float], str]:
        under_way.append(1)
        most.append(len(under_way))
        met.wait()  # none is answered before three are under way
        under_way.pop()
        return [1], [-1.0], "length"

    fake.sampler = sampler
    client(fake, timeout=60.0).draw([request(1) for _ in range(12)], at_once=3)
    assert max(most) == 3


@pytest.mark.parametrize("fault", [500, 503, 429, 408, "hang", "html", "empty"])
def test_what_may_pass_is_tried_again(fake: FakeVLLM, fault: Any) -> None:
    fake.faults["/v1/completions"] = [fault, fault]
    assert client(fake).draw([request(3)], 1)[0].ids == [3, 0, 7]
    fake.faults["/v1/completions"] = [fault] * 3
    with pytest.raises(UserError, match=r"failed 3 times at /v1/completions.*continue the run with --resume"):
        client(fake).draw([request(3)], 1)


def test_a_slow_reply_is_given_up(fake: FakeVLLM) -> None:
    fake.faults["/v1/completions"] = ["slow"]
    assert client(fake, timeout=1.0).draw([request(3)], 1)[0].ids == [3, 0, 7]
    fake.faults["/v1/completions"] = ["slow"] * 2
    with pytest.raises(UserError, match="no reply within 1 s"):
        client(fake, timeout=1.0, retries=1).draw([request(3)], 1)


def test_pauses_grow(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.faults["/weight_info"] = [500] * 3
    server, pauses = client(fake, retries=3, first_pause=0.05), []
    monkeypatch.setattr(server._halt, "wait", pauses.append)
    assert server.weight_version() == "default"
    assert pauses == [0.05, 0.1, 0.2]


def test_a_failure_does_not_wait_for_the_pauses_of_the_others(fake: FakeVLLM) -> None:
    fake.faults["/v1/completions"] = [400, *[500] * 50]
    began = time.monotonic()
    with pytest.raises(UserError, match="refuses to sample"):
        client(fake, retries=9, first_pause=20).draw([request(i) for i in range(6)], at_once=6)
    assert time.monotonic() - began < 15


def test_a_server_that_is_gone() -> None:
    with FakeVLLM() as gone:
        server = client(gone)
        assert server.weight_version() == "default"
    with pytest.raises(UserError, match=r"failed 3 times at /weight_info.*ppomax serve-rollouts"):
        server.weight_version()


def test_a_refusal_is_not_tried_again(fake: FakeVLLM) -> None:
    fake.faults["/v1/completions"] = [400]
    with pytest.raises(UserError, match="refuses to sample: HTTP status 400: out of luck"):
        client(fake).draw([request(3)], 1)
    assert fake.requests == []
    fake.faults["/sleep"] = [404]
    with pytest.raises(UserError, match="refuses /sleep: HTTP status 404"):
        client(fake).tell("/sleep")


def test_the_key_goes_along_and_into_no_message(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    seen: list[str] = []
    original = fake.RequestHandlerClass.respond  # type: ignore[attr-defined]

    def respond(handler: Any, body: dict[str, Any]) -> None:
        seen.append(handler.headers["Authorization"])
        original(handler, body)

    monkeypatch.setattr(fake.RequestHandlerClass, "respond", respond)
    fake.faults["/weight_info"] = [500] * 3
    with pytest.raises(UserError) as error:
        client(fake).weight_version()
    assert seen == ["Bearer sesame"] * 3 and "sesame" not in str(error.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused(fake: FakeVLLM, status: int) -> None:
    fake.faults["/version"] = [status]
    with pytest.raises(UserError, match="refuses our key; set VLLM_API_KEY to the same secret here and there"):
        client(fake).facts()


def reply(**changes: Any) -> dict[str, Any]:
    choice = {
        "token_ids": [5, 6], "prompt_token_ids": [1, 2], "finish_reason": "length", "logprobs": {"token_logprobs": [-1, -2.5]},
    }  # fmt: skip
    return {"choices": [{**choice, **changes}]}


def test_a_completion_is_read() -> None:
    assert read_completion(reply(), [1, 2], 2) == Drawn([5, 6], [-1.0, -2.5], False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_token_ids": [0, 1, 2]},  # something was put before the prompt
        {"token_ids": []}, {"token_ids": [5, 6, 7]}, {"token_ids": [5, "6"]}, {"token_ids": [5, -1]}, {"token_ids": None},
        {"logprobs": {"token_logprobs": [-1.0]}}, {"logprobs": {"token_logprobs": [-1.0, None]}}, {"logprobs": None},
        {"logprobs": {"token_logprobs": [-1.0, float("nan")]}}, {"finish_reason": "abort"}, {"finish_reason": None},
    ],
)  # fmt: skip
def test_a_reply_that_is_not_what_was_asked_for_is_a_fault(fake: FakeVLLM, wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        read_completion(reply(**wrong), [1, 2], 2)
    fake.faults["/v1/completions"] = [lambda good: reply(**wrong)]
    with pytest.raises(Fault, match="cannot be read"):
        client(fake).once("POST", "/v1/completions", body=request(1), read=lambda r: read_completion(r, [1, 2], 2))
