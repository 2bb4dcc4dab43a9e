"""Policy, critic, reward model and reference as adapters on one base give what four models of their own give."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ppomax.config import LoraConfig
from ppomax.errors import UserError
from ppomax.models.loading import add_lora, load_causal_lm, load_scalar_model, save_final
from ppomax.models.passes import whole
from ppomax.models.responses import response_logprobs, response_values
from ppomax.models.scalar import on_backbone, reset_unit
from ppomax.rollout.engine import Completion
from ppomax.rollout.experience import Experience
from ppomax.train.parallel import Ranks
from ppomax.train.ppo import train_ppo
from ppomax.train.ppo_score import to_samples
from ppomax.train.ppo_setup import Setup, prepare
from ppomax.train.ppo_update import to_batch

sys.path.insert(0, str(Path(__file__).parent))
from ppo_tools import byte_sum, make_config, make_policy, make_tokenizer, prompts

SETTINGS: dict[str, Any] = {
    "lora": {"rank": 2, "shared_base": True}, "critic.init": "reward", "iterations": 2, "rollout_batch": 4, "minibatch": 2,
    "watch.eval_prompts": 1,
}  # fmt: skip


def write_models(folder: Path, **options: int) -> tuple[str, str]:
    """A start model (`make_policy`), and a reward model that was trained from it as adapters; its weights are random ones."""
    start, final = folder / "start", folder / "reward" / "final"
    tokenizer = make_tokenizer()
    make_policy(**options).save_pretrained(start)
    tokenizer.save_pretrained(start)
    scalar = on_backbone(load_causal_lm(str(start)), pad_id=tokenizer.pad_token_id)
    reset_unit(scalar, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # the other half of an adapter is drawn
        scalar = add_lora(scalar, LoraConfig(rank=3, alpha=6), "SEQ_CLS")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in scalar.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    save_final(scalar, tokenizer, final, stage="reward", card="card", reward_offset=0.25)
    return str(start), str(final)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def setup(models: tuple[str, str], tmp_path: Path) -> Setup:
    torch.manual_seed(0)
    config = make_config(tmp_path / "out", **SETTINGS, model=models[0], reward=models[1])
    return prepare(config, Ranks(), prompts=prompts())


COMPLETIONS = [Completion([5, 6, 7], [8, 9], True), Completion([10, 11], [12, 13, 14], False)]


def test_every_role_gives_what_its_own_model_gives(models: tuple[str, str], setup: Setup) -> None:
    batch = to_batch(Experience.from_completions(COMPLETIONS), torch.device("cpu"))
    base, reward = load_causal_lm(models[0]), load_scalar_model(models[1])
    close = {"rtol": 1e-5, "atol": 1e-5}
    with torch.no_grad():
        for role in (setup.policy, setup.reference):  # fresh adapters change nothing
            torch.testing.assert_close(response_logprobs(role, batch)[0], response_logprobs(base, batch)[0], **close)
        torch.testing.assert_close(response_values(setup.critic, batch), response_values(reward, batch), **close)
        # one after the other, in any order: no role leaves its adapters behind
        for name, p in setup.policy.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn_like(p))
        changed = response_logprobs(setup.policy, batch)[0]
        assert (changed - response_logprobs(base, batch)[0]).abs().max() > 0.1
        torch.testing.assert_close(
            response_logprobs(setup.reference, batch)[0], response_logprobs(base, batch)[0], **close
        )
        torch.testing.assert_close(response_values(setup.critic, batch), response_values(reward, batch), **close)
        with whole(setup.policy) as sampled:
            torch.testing.assert_close(response_logprobs(sampled, batch)[0], changed)
    samples = to_samples(setup, setup.prompts[:2], COMPLETIONS)
    own = prepare_own(models, samples)
    assert setup.sources[0](samples) == pytest.approx(own, rel=1e-5, abs=1e-5)
    assert setup.sources[0].name == "reward"


def prepare_own(models: tuple[str, str], samples: Any) -> list[float]:
    from ppomax.config import RewardSourceConfig
    from ppomax.data.chat import ChatFormat
    from ppomax.rollout.reward_sources import make_source

    source = make_source(RewardSourceConfig(model=models[1]), ChatFormat(make_tokenizer(), "model"))
    return source(samples)


def test_the_base_lies_in_memory_once(setup: Setup) -> None:
    roles = [setup.policy, setup.critic, setup.sources[0].members[0].model]  # type: ignore[attr-defined]
    everything = {id(p): p.numel() for role in roles for p in role.get_base_model().parameters()}
    base = sum(p.numel() for p in make_policy().parameters())
    own = [{id(p): p.numel() for p in role.parameters()} for role in roles]
    assert sum(everything.values()) == base + sum(sum(parameters.values()) for parameters in own)
    assert all(0 < sum(parameters.values()) < base / 2 for parameters in own)
    assert own[0].keys().isdisjoint(own[1]) and own[1].keys().isdisjoint(own[2])
    assert list(setup.reference.parameters()) == []


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_ppo_trains_two_adapters_and_nothing_else(models: tuple[str, str], tmp_path: Path, precision: str) -> None:
    changes = {**SETTINGS, "model": models[0], "reward": models[1], "precision": precision,
               "parallel.activation_checkpointing": True}  # fmt: skip
    result = train_ppo(make_config(tmp_path / "out", **changes), prompts=prompts())
    base, final = load_causal_lm(models[0]), AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "final")
    assert (final.model.layers[0].mlp.up_proj.weight - base.model.layers[0].mlp.up_proj.weight).abs().max() > 1e-5
    adapter = json.loads((tmp_path / "out" / "final" / "adapter" / "adapter_config.json").read_text())
    assert adapter["task_type"] == "CAUSAL_LM"
    inner = result.policy.get_base_model()
    for name, p in inner.named_parameters():
        if "lora" not in name:
            plain = base.get_parameter(name.replace(".base_layer", ""))
            torch.testing.assert_close(p, plain.to(p.dtype), rtol=0, atol=0)
            assert (p.dtype == torch.bfloat16) == (precision == "bf16" and "base_layer" in name)
    again = load_causal_lm(str(tmp_path / "out" / "final" / "adapter"))
    if precision == "float32":
        torch.testing.assert_close(again.lm_head.weight, final.lm_head.weight)
        torch.testing.assert_close(
            again.model.layers[1].mlp.up_proj.weight, final.model.layers[1].mlp.up_proj.weight
        )  # fmt: skip


def test_mistakes(models: tuple[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_policy(7).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    config = make_config(tmp_path / "out", **SETTINGS, model=str(other), reward=models[1])
    with pytest.raises(UserError, match=r"lora.shared_base: .* was trained from .*start, and the policy starts from"):
        prepare(config, Ranks(), prompts=prompts())
    config = make_config(tmp_path / "out", **SETTINGS, model=models[0], reward=str(other))
    with pytest.raises(UserError, match="has no adapters"):
        prepare(config, Ranks(), prompts=prompts())
    config = make_config(tmp_path / "out", **SETTINGS, model=models[0])
    with pytest.raises(UserError, match=r"critic.init = reward: no reward source is a model"):
        prepare(config, Ranks(), prompts=prompts(), reward=byte_sum)
