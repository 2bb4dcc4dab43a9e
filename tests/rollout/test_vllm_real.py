"""vLLM itself: sample, update the weights, sample again, and each time agree with our own engine.

Minutes long, and needs vLLM: PPOMAX_VLLM=DIR pytest -m slow tests/rollout/test_vllm_real.py, where DIR is what
`bash scripts/vllm_environment.sh DIR cpu` made.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ppomax.commands.serve_rollouts import ready
from ppomax.config import PPOConfig
from ppomax.data.chat import ChatFormat
from ppomax.models.fresh import new_model
from ppomax.models.loading import load_causal_lm, load_tokenizer
from ppomax.models.responses import response_logprobs
from ppomax.rollout.engine import Completion
from ppomax.rollout.experience import Experience
from ppomax.rollout.transformers_engine import TransformersEngine
from ppomax.rollout.vllm_engine import VLLMEngine
from ppomax.rollout.vllm_server import VLLMServer
from ppomax.train.parallel import Ranks
from ppomax.train.ppo_update import to_batch
from ppomax.train.weight_transfer import make_transfer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("PPOMAX_VLLM" not in os.environ, reason="PPOMAX_VLLM names no environment with vLLM"),
]
SENTENCE = "the cat sat on a mat and the dog ran to the big red house where people eat bread every day"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
START_LIMIT = 900.0
"""seconds"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, heads of 32, tied embeddings."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    new_model(str(folder), TEXTS, size="1m", vocab_size=300, seed=0, config_yaml="")
    return folder


@pytest.fixture(scope="module")
def url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    words = [
        sys.executable, "-m", "ppomax", "serve-rollouts", str(model), "--environment", os.environ["PPOMAX_VLLM"],
        "--port", str(port), "--dtype", "float32", "--max-length", "256", "--cache-gib", "0.25", "--compile", "false",
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out)
    try:
        began = time.monotonic()
        while not ready("127.0.0.1", port):
            assert process.poll() is None and time.monotonic() - began < START_LIMIT, log.read_text()[-3000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not ready("127.0.0.1", port)


def sampling(url: str, **changes: Any) -> PPOConfig:
    return PPOConfig(
        model="m", prompts=["p"], reward=["rm"], output_dir="o",  # type: ignore[arg-type]
        sampling={"max_new_tokens": 24, **changes}, rollout={"engine": "vllm", "url": url, "timeout": 300.0},  # type: ignore[arg-type]
    )  # fmt: skip


def gap(policy: Any, drawn: list[Completion]) -> float:
    """Largest difference between the sampler's log-probabilities and the policy's."""
    experience = Experience.from_completions(drawn)
    with torch.no_grad():
        logprobs, _ = response_logprobs(policy, to_batch(experience, torch.device("cpu")))
    return ((logprobs - experience.sampler_logprobs).abs() * experience.response_mask).max().item()


def test_sample_update_sample(url: str, model: Path, tmp_path: Path) -> None:
    policy, chat = load_causal_lm(str(model)), ChatFormat(load_tokenizer(str(model)))
    server = VLLMServer(url, timeout=300, retries=2, first_pause=1)
    facts = server.facts()
    assert (facts.device, facts.dtype, facts.max_length) == ("cpu", "float32", 256)
    transfer = make_transfer("auto", server, facts, policy, Ranks(), tmp_path / "rollout")

    def engine(**changes: Any) -> VLLMEngine:
        made = VLLMEngine(sampling(url, **changes), chat.eos_ids, server, facts, transfer, session="test")
        made.version = f"test-{version}"
        return made

    prompts = [chat.encode_prompt([{"role": "user", "content": text}]) for text in TEXTS[:8]]
    seeds = [2**61 + i for i in range(8)]
    first: list[Completion] = []
    for version in range(3):
        if version:
            torch.manual_seed(version)
            with torch.no_grad():
                for p in policy.parameters():
                    p.add_(0.1 * torch.randn_like(p))
        VLLMEngine(sampling(url), chat.eos_ids, server, facts, transfer, session="test").wake(str(version))
        for changes in (
            {}, {"temperature": 0.7, "top_p": 0.9, "top_k": 50},
            {"repetition_penalty": 1.3, "repetition_scope": "all"}, {"stop": ["at"]},
        ):  # fmt: skip
            drawn = engine(**changes).generate(prompts, seeds)
            assert gap(policy, drawn) < 1e-3, (version, changes)
            assert drawn == engine(**changes).generate(prompts, seeds)  # a seed is a seed
            for completion in drawn:
                text = chat.tokenizer.decode(completion.response_ids)
                ended = completion.response_ids[-1] in chat.eos_ids or any(s in text for s in changes.get("stop", []))
                assert completion.finished == ended
                assert ended or len(completion.response_ids) == 24
        greedy = {"temperature": 0.0}
        for changes in ({}, {"repetition_penalty": 1.3, "repetition_scope": "all"}, {"stop": ["e", "o"]}):
            ours = TransformersEngine(policy, chat, sampling(url, **greedy, **changes).sampling)
            theirs = engine(**greedy, **changes).generate(prompts, seeds)
            assert [(c.response_ids, c.finished) for c in theirs] == [
                (c.response_ids, c.finished) for c in ours.generate(prompts, seeds)
            ], (version, changes)
        drawn = engine().generate(prompts, seeds)
        assert drawn != first
        first = drawn
