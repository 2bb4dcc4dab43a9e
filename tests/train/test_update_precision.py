"""An update in bf16 arithmetic against the same one in float32, our reference path: losses, norms, gradients.

Weights, optimiser and losses are float32 in both. bf16 keeps 8 bits, so every product is off by up to 2^-9, and whole
gradients by a few of these: within 3% here, and in direction to a cosine of .999, but for tokens that a clip decides on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppomax.config import PPOConfig
from ppomax.models.norms import quicken_norms
from ppomax.models.precision import precision
from ppomax.models.responses import response_logprobs, response_values
from ppomax.rollout.experience import Experience
from ppomax.train.parallel import Ranks
from ppomax.train.ppo_update import Updater, to_batch

sys.path.insert(0, str(Path(__file__).parent))
from ppo_tools import make_config, make_critic, make_policy

WIDE: dict[str, Any] = {"width": 64, "layers": 3, "spread": 0.06}
CPU = torch.device("cpu")


class Recorder:
    """Stands in for an optimiser: keeps the gradients, as one vector, and changes nothing."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def step(self) -> None:
        self.gradient = torch.cat([p.grad.double().flatten() for p in self.model.parameters()])
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in self.model.parameters())

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.model.zero_grad(set_to_none=set_to_none)


def make_minibatch(policy: Any, critic: Any, size: int = 12) -> Experience:
    """Random tokens; what was sampled under lies .2 around what the policy says now, so that some ratios are clipped."""
    generator = torch.Generator().manual_seed(5)
    prompt = torch.randint(2, 9, (size,), generator=generator)
    length = prompt + torch.randint(3, 20, (size,), generator=generator)
    ids = torch.randint(0, policy.config.vocab_size, (size, int(length.max())), generator=generator)
    mask = torch.arange(int((length - prompt).max()))[None, :] < (length - prompt)[:, None]
    zeros = torch.zeros(mask.shape)

    def noise(spread: float) -> Tensor:
        return spread * torch.randn(mask.shape, generator=generator) * mask

    made = Experience(
        ids=ids, prompt_lengths=prompt, lengths=length, response_mask=mask, finished=torch.ones(size, dtype=torch.bool),
        logprobs=zeros, ref_logprobs=zeros, entropy=zeros, sequence_nll=torch.zeros(size), values=zeros,
        scores=torch.zeros(size), rewards=zeros, advantages=noise(1), returns=noise(1),
    )  # fmt: skip
    with torch.no_grad():
        made.logprobs = response_logprobs(policy, to_batch(made, CPU))[0] + noise(0.2)
        made.values = response_values(critic, to_batch(made, CPU)) + noise(0.2)
    made.ref_logprobs = made.logprobs.clone()
    return made


@pytest.fixture(scope="module", params=["clip", "none"])
def both(request: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Precision -> numbers and gradients, with the clipped surrogate and without a clip."""
    policy, critic = make_policy(0, **WIDE), make_critic(1, **WIDE)
    for model in (policy, critic):
        quicken_norms(model)
    minibatch = make_minibatch(policy, critic)
    made: dict[str, Any] = {"surrogate": request.param}
    for name in ("float32", "bf16"):
        config = make_config(
            tmp_path_factory.mktemp(name), precision=name, minibatch=12, micro_batch_tokens=150, preset="ppo_max",
            entropy={"coef": 0.01}, surrogate={"kind": request.param}, grad_clip={"norm": 0.0},
        )  # fmt: skip
        assert isinstance(config, PPOConfig) and config.critic.value_clip
        recorders = {"policy": Recorder(policy), "critic": Recorder(critic)}
        numbers = Updater(config, Ranks(), policy, critic, recorders).update(minibatch, [], policy=True)
        made[name] = (numbers, recorders)
    return made


@pytest.mark.parametrize("metric", ["loss/value", "grad_norm/policy", "grad_norm/critic", "policy/entropy_update"])
def test_sizes_agree(both: Any, metric: str) -> None:
    exact, rough = both["float32"][0][metric], both["bf16"][0][metric]
    assert rough == pytest.approx(exact, rel=0.01) and rough != exact


def test_the_policy_loss_agrees(both: Any) -> None:
    """A mean of signed numbers of size 1 may be near 0: compared with that size."""
    exact, rough = both["float32"][0], both["bf16"][0]
    assert rough["loss/policy"] == pytest.approx(exact["loss/policy"], abs=2e-3)
    assert rough["policy/approx_kl"] == pytest.approx(exact["policy/approx_kl"], abs=5e-4)
    assert 0.05 < exact["policy/clip_fraction"] < 0.9
    assert rough["policy/clip_fraction"] == pytest.approx(exact["policy/clip_fraction"], abs=0.02)


@pytest.mark.parametrize("model", ["policy", "critic"])
def test_gradients_agree(both: Any, model: str) -> None:
    """Where a token's ratio is close to the clip, rounding decides whether it counts: then single tokens differ."""
    exact, rough = (both[name][1][model].gradient for name in ("float32", "bf16"))
    off, cosine = 0.03, 0.999
    if model == "policy" and both["surrogate"] == "clip":
        off, cosine = 0.2, 0.98
    assert 1e-4 < float((rough - exact).norm() / exact.norm()) < off
    assert float(torch.nn.functional.cosine_similarity(rough, exact, dim=0)) > cosine


def test_old_and_new_log_probabilities_agree_bit_for_bit_in_bf16() -> None:
    """Scoring and updating pass through the same code: the first ratio is 1, in bf16 too."""
    policy = make_policy(0, **WIDE)
    quicken_norms(policy)
    batch = to_batch(make_minibatch(policy, make_critic(1, **WIDE)), CPU)
    with precision(CPU, "bf16"):
        new, _ = response_logprobs(policy, batch)
        with torch.no_grad():
            old, _ = response_logprobs(policy, batch)
    assert torch.equal(new, old)
