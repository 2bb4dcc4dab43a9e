"""PPO that samples from a vLLM server, with a stand-in that holds a model of its own and loads what it is sent."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppomax.config import SamplingConfig
from ppomax.data.chat import ChatFormat
from ppomax.errors import UserError
from ppomax.models.responses import response_logprobs
from ppomax.rollout.experience import Experience
from ppomax.rollout.transformers_engine import TransformersEngine
from ppomax.train.ppo_update import to_batch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "rollout"))
from kill_tools import forget_to_sync, start_script
from ppo_tools import lines, make_policy, make_tokenizer, run, timeless, weights
from rank_tools import run_ranks, worst
from vllm_fake import FakeVLLM


class Served:
    """Draws as our own engine does, from weights of its own, and tells log-probabilities with an error of ``off``."""

    def __init__(self) -> None:
        self.model, self.off, self.loads = make_policy(seed=5), 0.0, 0  # not the policy's start
        self.format = ChatFormat(make_tokenizer())

    def load(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state)
        self.loads += 1

    def __call__(self, body: dict[str, Any]) -> tuple[list[int], list[float], str]:
        sampling = SamplingConfig(max_new_tokens=body["max_tokens"], temperature=body["temperature"])
        drawn = TransformersEngine(self.model, self.format, sampling).generate([body["prompt"]], [body["seed"]])
        with torch.no_grad():
            batch = to_batch(Experience.from_completions(drawn), torch.device("cpu"))
            logprobs, _ = response_logprobs(self.model, batch)
        return drawn[0].response_ids, (logprobs[0] + self.off).tolist(), "stop" if drawn[0].finished else "length"


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def fake(served: Served) -> Iterator[FakeVLLM]:
    with FakeVLLM(served, max_length=96) as server:
        server.on_load = served.load
        yield server


def by_vllm(fake: FakeVLLM, **changes: Any) -> dict[str, Any]:
    section = {"engine": "vllm", "url": fake.url, "retries": 1, "first_pause": 0.01}
    return {"rollout": section, "iterations": 3, **changes}


def test_a_run_is_that_of_our_own_engine(fake: FakeVLLM, served: Served, tmp_path: Path) -> None:
    ours = run(tmp_path / "ours", {"iterations": 3})
    theirs = run(tmp_path / "theirs", by_vllm(fake))
    assert served.loads == 4  # before each iteration, and before the last samples are shown
    for mine, other in zip(timeless(ours.metrics), timeless(theirs.metrics), strict=True):
        assert other.pop("rollout/logprob_gap") < 1e-5 and other.pop("rollout/logprob_gap_max") < 1e-4
        assert 0 <= other.pop("rollout/kl") < 1e-8
        assert other.pop("phase") == mine.pop("phase")
        assert other == pytest.approx(mine, rel=1e-5, abs=1e-7)
    for name, value in weights(ours.policy).items():
        assert torch.allclose(value, weights(theirs.policy)[name], atol=1e-6), name
    shown = [[row["response"] for row in lines(tmp_path / who / "samples.jsonl")] for who in ("ours", "theirs")]
    assert shown[0] == shown[1]
    assert not (tmp_path / "theirs" / "rollout").exists()


def test_the_gap_is_measured_and_corrected(fake: FakeVLLM, served: Served, tmp_path: Path) -> None:
    served.off = -0.4  # the sampler says exp(-0.4) of the policy's probability: weights of exp(0.4) = 1.49
    plain = run(tmp_path / "plain", by_vllm(fake, iterations=1))
    assert plain.metrics[0]["rollout/logprob_gap"] == pytest.approx(0.4, abs=1e-4)
    assert plain.metrics[0]["rollout/kl"] == pytest.approx(2.718281828**0.4 - 1 - 0.4, abs=1e-4)
    assert "rollout/importance_mean" not in plain.metrics[0]
    loss = {"policy_optim.lr": 0.0}  # the loss alone, on the same weights
    base = run(tmp_path / "base", by_vllm(fake, iterations=1, **loss)).metrics[0]
    wide = run(tmp_path / "wide", by_vllm(fake, iterations=1, **{"rollout.importance_clip": 2.0}, **loss)).metrics[0]
    tight = run(tmp_path / "tight", by_vllm(fake, iterations=1, **{"rollout.importance_clip": 1.2}, **loss)).metrics[0]
    assert wide["rollout/importance_mean"] == pytest.approx(2.718281828**0.4, abs=1e-4)
    assert (wide["rollout/importance_clipped"], tight["rollout/importance_clipped"]) == (0.0, 1.0)
    assert wide["loss/policy"] == pytest.approx(2.718281828**0.4 * base["loss/policy"], rel=1e-3)
    assert tight["loss/policy"] == pytest.approx(1.2 * base["loss/policy"], rel=1e-3)


def test_a_server_that_goes_away_stops_a_run_that_can_be_resumed(
    fake: FakeVLLM, served: Served, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", by_vllm(fake, **{"checkpoint.every": 1}))
    count = len(fake.requests)
    fake.requests.clear()
    original = fake.sampler

    def fails_later(body: dict[str, Any]) -> tuple[list[int], list[float], str]:
        if len(fake.requests) > count // 2:
            fake.gone = True
        return original(body)

    fake.sampler = fails_later
    with pytest.raises(UserError, match=r"vLLM failed 2 times at .*continue the run with --resume"):
        run(tmp_path / "cut", by_vllm(fake, **{"checkpoint.every": 1}))
    assert 0 < len(lines(tmp_path / "cut" / "metrics.jsonl")) < 3
    with FakeVLLM(served, max_length=96) as again:  # another server, at another address
        again.on_load = served.load
        result = run(tmp_path / "cut", by_vllm(again, **{"checkpoint.every": 1}), resume=True)
    assert timeless(result.metrics) == timeless(whole.metrics)
    assert all(torch.equal(value, weights(whole.policy)[name]) for name, value in weights(result.policy).items())


def test_a_server_that_starts_again_in_the_middle_changes_nothing(
    fake: FakeVLLM, served: Served, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", by_vllm(fake))
    fake.requests.clear()
    original, restarted = fake.sampler, []

    def restarts(body: dict[str, Any]) -> tuple[list[int], list[float], str]:
        if len(fake.requests) > 6 and not restarted:
            restarted.append(True)
            served.model = make_policy(seed=9)
            fake.restart()
        return original(body)

    fake.sampler = restarts
    result = run(tmp_path / "again", by_vllm(fake))
    assert restarted and timeless(result.metrics) == timeless(whole.metrics)


def test_no_server_leaves_no_run_behind(tmp_path: Path) -> None:
    with FakeVLLM() as gone:
        pass
    with pytest.raises(UserError, match=r"failed 2 times at /version.*ppomax serve-rollouts"):
        run(tmp_path / "run", by_vllm(gone))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------ several ranks

SCENARIOS: dict[str, dict[str, Any]] = {
    "whole weights, a rank without samples": {"rollout_batch": 4, "minibatch": 3, "watch.eval_prompts": 1},
    "divided weights and adapters": {
        "rollout_batch": 7,
        "minibatch": 3,
        "lora": {"rank": 2},
        "parallel.shard": "zero3",
    },
}


def two_ranks(folder: Path) -> None:
    """In a process of its own: each scenario on one rank by our engine, and on two by a server that this process is."""
    forget_to_sync()
    results: dict[str, Any] = {}

    def train(name: str, changes: dict[str, Any], rank: int) -> int:
        result = run(folder / name, changes)
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(timeless(result.metrics)))
        return 0

    for name, changes in SCENARIOS.items():
        alone = {k: v for k, v in changes.items() if not k.startswith("parallel")}
        own = functools.partial(train, f"{name}, ours", {"iterations": 3, **alone})
        assert run_ranks(own, 1, folder / "log") == [0], (folder / "log").read_text()
    for name, changes in SCENARIOS.items():
        served = Served()
        with FakeVLLM(served, max_length=96) as fake:
            fake.on_load = served.load
            codes = run_ranks(functools.partial(train, name, by_vllm(fake, **changes)), 2, folder / "log")
            assert codes == [0, 0], (folder / "log").read_text()
        results[name] = [json.loads((folder / f"{who}.json").read_text()) for who in (f"{name}, ours", name)]
        results[name].append(served.loads)
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return start_script(__file__, tmp_path_factory.mktemp("two-ranks"))


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_two_ranks_with_one_server(name: str, on_two_ranks: dict[str, Any]) -> None:
    ours, theirs, loads = on_two_ranks[name]
    assert loads == 4  # by the main rank alone
    for row in theirs:
        assert row.pop("rollout/logprob_gap_max") < 1e-4
        assert row.pop("rollout/logprob_gap") < 1e-5 and row.pop("rollout/kl") < 1e-8
    assert worst(theirs, ours, 1e-3) < 1e-3


if __name__ == "__main__":
    two_ranks(Path(sys.argv[1]))
