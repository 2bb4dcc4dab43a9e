"""What a device is given while models are read and saved: never in float32 what will be halved, never a second copy.

The meta device stands for one that is not here. What is copied from it to the CPU becomes zeros, and what is put on it is
counted.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from ppomax.config import LoraConfig, RewardConfig, SFTConfig
from ppomax.data.records import PreferencePair
from ppomax.models import loading
from ppomax.models.loading import add_lora, cpu_copy, load_causal_lm, save_final
from ppomax.train import reward, sft
from ppomax.train.parallel import Ranks
from ppomax.train.ppo_setup import Setup, prepare
from ppomax.train.run import RunDirectory
from ppomax.train.sharding import to_save

sys.path.insert(0, str(Path(__file__).parent))
from ppo_tools import dialogues, make_config, make_policy, make_tokenizer, prompts
from test_shared_base import SETTINGS, write_models

DEVICE = Ranks(device=torch.device("meta"))


COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default)
FREQUENCIES = 8
"""numbers of a model's largest buffer, which the loader copies for itself; its smallest weight has 16"""


class Device(TorchDispatchMode):
    """``put``: numbers that were copied to the device or on it, by their type. (transformers makes models on meta, too.)"""

    def __init__(self) -> None:
        super().__init__()
        self.put: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        output = function(*args, **kwargs)
        if function in COPIES and output.is_meta and output.numel() > FREQUENCIES:
            self.put[output.dtype] += output.numel()
        return output


def on_device(*models: nn.Module) -> Counter[torch.dtype]:
    """Numbers of all weights that lie on the device, each counted once."""
    tensors = {id(t): t for model in models for t in model.parameters() if t.is_meta}
    found: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        found[tensor.dtype] += tensor.numel()
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_models(tmp_path_factory.mktemp("models"))


def prepared(models: tuple[str, str], folder: Path, **changes: Any) -> tuple[Setup, Device]:
    settings = {"critic.init": "reward", "model": models[0], "reward": models[1], "precision": "bf16", **changes}
    with Device() as device:
        setup = prepare(make_config(folder / "out", **settings), DEVICE, prompts=prompts())
    return setup, device


def test_a_shared_base_comes_to_the_device_halved(models: tuple[str, str], tmp_path: Path) -> None:
    setup, device = prepared(models, tmp_path, **SETTINGS)
    roles = [setup.policy, setup.critic, setup.sources[0].members[0].model]  # type: ignore[attr-defined]
    resident = on_device(*(role.get_base_model() for role in roles))
    start = make_policy()
    matrices = sum(p.numel() for layer in start.model.layers for p in layer.parameters() if p.ndim == 2)
    assert resident[torch.bfloat16] == matrices
    assert device.put == resident, "nothing was there that did not stay"
    assert not any(p.device.type == "cpu" for role in roles for p in role.get_base_model().parameters())


@pytest.mark.parametrize("reference", ["of the policy", "of its own"])
def test_frozen_models_come_to_the_device_halved(models: tuple[str, str], tmp_path: Path, reference: str) -> None:
    changes = {"reference": models[0]} if reference == "of its own" else {}
    setup, device = prepared(models, tmp_path, **changes)
    frozen = [setup.reference, setup.sources[0].members[0].model]  # type: ignore[attr-defined]
    matrices = sum(p.numel() for layer in make_policy().model.layers for p in layer.parameters() if p.ndim == 2)
    head = make_policy().lm_head.weight.numel()
    assert on_device(*frozen)[torch.bfloat16] == 2 * matrices + head
    assert all(p.is_meta for model in setup.models for p in model.parameters())
    assert device.put == on_device(*setup.models)
    assert on_device(setup.policy, setup.critic)[torch.bfloat16] == 0


def test_offloaded_models_are_not_put_there_at_all(models: tuple[str, str], tmp_path: Path) -> None:
    setup, device = prepared(models, tmp_path, **{"parallel.frozen": "offload"})
    assert device.put == on_device(setup.policy, setup.critic)
    assert {p.dtype for p in setup.reference.model.layers.parameters() if p.ndim == 2} == {torch.bfloat16}  # type: ignore[union-attr]


def test_a_role_is_copied_on_the_cpu_once(
    models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, _ = prepared(models, tmp_path, **SETTINGS)
    with Device() as device:
        copied = to_save(setup.policy)
        monkeypatch.setattr(loading, "cpu_copy", None)  # a copy is not copied again
        save_final(copied, make_tokenizer(), tmp_path / "final", stage="ppo", card="")
    assert not device.put
    assert {(p.device.type, p.dtype) for p in copied.parameters()} == {("cpu", torch.float32)}
    assert (tmp_path / "final" / "adapter" / "adapter_config.json").is_file()
    assert all(p.is_meta for p in setup.policy.get_base_model().parameters())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "final").dtype == torch.float32


def test_adapters_are_merged_on_the_cpu(tmp_path: Path) -> None:
    policy = add_lora(make_policy(), LoraConfig(rank=2), "CAUSAL_LM").to("meta")
    with Device() as device:
        save_final(to_save(policy), make_tokenizer(), tmp_path / "final", stage="sft", card="")
    assert not device.put and all(p.is_meta for p in policy.parameters())
    assert load_causal_lm(str(tmp_path / "final")).lm_head.weight.shape == make_policy().lm_head.weight.shape


@pytest.mark.parametrize("tied", [True, False])
def test_a_copy_is_equal_and_its_own(tied: bool) -> None:
    model = make_policy()
    model.model.layers[0].mlp.up_proj.to(torch.bfloat16)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.lm_head.weight.requires_grad_(False)
    for dtype in (None, torch.float32):
        copied = cpu_copy(model, dtype)
        named = dict(model.named_parameters())
        assert named.keys() == dict(copied.named_parameters()).keys() and copied.disposable
        for name, p in copied.named_parameters():
            assert torch.equal(p, named[name].to(p.dtype)) and p.dtype == (dtype or named[name].dtype)
            assert p.requires_grad == named[name].requires_grad
        assert (copied.lm_head.weight is copied.model.embed_tokens.weight) == tied
        with torch.no_grad():
            copied.lm_head.weight.zero_()
        assert model.lm_head.weight.abs().sum() > 0
    assert not hasattr(model, "disposable")


@pytest.mark.parametrize("stage", [sft, reward])
def test_a_rank_reads_and_divides_its_model_in_one_turn(
    stage: Any, models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the whole models of all ranks of a machine would lie in its memory at once."""
    seen: list[str] = []

    @contextlib.contextmanager
    def turn(ranks: Ranks) -> Iterator[None]:
        seen.append("begins")
        yield
        seen.append("ends")

    def noted(name: str, function: Any) -> Any:
        return lambda *args, **kwargs: (seen.append(name), function(*args, **kwargs))[1]

    monkeypatch.setattr(stage, "in_turn", turn)
    monkeypatch.setattr(stage, "divide", noted("divide", stage.divide))
    monkeypatch.setattr(loading, "load_causal_lm", noted("load", load_causal_lm))
    monkeypatch.setattr(stage.RunDirectory, "open", noted("open", RunDirectory.open))
    common = {"model": models[0], "data": "memory", "max_length": 64, "checkpoint": {"every": 0}, "device": "cpu"}
    if stage is sft:
        sft.train_sft(SFTConfig(output_dir=str(tmp_path / "o"), **common), records=dialogues())
    else:
        for figure in ("draw_gap_histogram", "draw_calibration", "draw_accuracy"):
            monkeypatch.setattr(reward, figure, lambda *args: None)
        answers = [({"role": "assistant", "content": text},) for text in ("yes", "no")]
        pairs = [PreferencePair(d.messages[:1], *answers) for d in dialogues()]
        reward.train_reward(RewardConfig(output_dir=str(tmp_path / "o"), **common), pairs=pairs)
    assert seen == ["begins", "load", "divide", "ends", "open"]
