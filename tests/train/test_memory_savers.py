"""What saves memory changes no number: layers computed again, frozen models that come and go, passes made for others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ppomax.config import LoraConfig, ParallelConfig, PPOConfig, SFTConfig
from ppomax.errors import UserError
from ppomax.models.adapters import adapter
from ppomax.models.loading import add_lora
from ppomax.models.passes import device_of, even_passes, whole, whole_pass
from ppomax.models.responses import response_logprobs
from ppomax.options import from_mapping, warnings_for
from ppomax.rollout.engine import Completion
from ppomax.rollout.experience import Experience
from ppomax.train.parallel import Ranks, lost_rank
from ppomax.train.ppo_update import to_batch
from ppomax.train.sharding import checkpoint_activations, divide, go_home, idle, layers, offload, put_aside, to_save

sys.path.insert(0, str(Path(__file__).parent))
from ppo_tools import make_config, make_policy

CPU = torch.device("cpu")
BATCH = to_batch(
    Experience.from_completions([Completion([5, 6, 7], [8, 9], True), Completion([10, 11], [12, 13, 14], False)]), CPU
)


def gradients(model: Any) -> list[torch.Tensor]:
    logprobs, entropy = response_logprobs(model, BATCH, entropy=True)
    assert entropy is not None
    (logprobs.sum() + entropy.sum()).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def count_forwards(model: Any) -> list[int]:
    calls = [0]

    def counted(*args: Any) -> None:
        calls[0] += 1

    layers(model)[0].mlp.up_proj.register_forward_hook(counted)  # type: ignore[union-attr, operator]
    return calls


def test_layers_computed_again_give_the_same_gradients() -> None:
    plain, again = make_policy(), make_policy()
    checkpoint_activations(again)
    calls = count_forwards(again)
    for a, b in zip(gradients(plain), gradients(again), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert calls == [2], "once forward, once in the backward pass"
    with torch.no_grad():
        response_logprobs(again, BATCH)
    assert calls == [3]


def test_layers_are_computed_again_through_the_adapters_of_their_forward_pass() -> None:
    def make() -> Any:
        torch.manual_seed(0)
        model = add_lora(make_policy(), LoraConfig(rank=2), "CAUSAL_LM")
        model.add_adapter("other", model.peft_config["default"])
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.copy_(torch.randn_like(p))
                p.requires_grad_(".other." in name)
        return model

    plain, again = make(), make()
    checkpoint_activations(again)
    found = []
    for model in (plain, again):
        with adapter(model, "other"):
            logprobs, _ = response_logprobs(model, BATCH)
        logprobs.sum().backward()  # the switch is back on "default" here
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for a, b in zip(*found, strict=True):
        assert a is not None and b is not None and a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_model_without_marked_layers_is_named() -> None:
    with pytest.raises(UserError, match=r"parallel.activation_checkpointing: Linear has no layers"):
        checkpoint_activations(nn.Linear(2, 2))


def test_offloaded_models_take_turns_on_the_device() -> None:
    bench: list[Any] = []
    first, second = make_policy(1), make_policy(2)
    wanted = response_logprobs(first, BATCH)[0].detach()
    for model in (first, second):
        offload(model.requires_grad_(False), CPU, bench)
    torch.testing.assert_close(response_logprobs(first, BATCH)[0], wanted, rtol=0, atol=0)
    assert [o.here for o in bench] == [True, False]
    response_logprobs(second, BATCH)
    assert [o.here for o in bench] == [False, True]
    with whole(first) as model:
        assert model is first and [o.here for o in bench] == [True, False]
    go_home(bench)
    assert [o.here for o in bench] == [False, False]
    assert device_of(first) == CPU


class Busy:
    """A division whose other rank has three groups."""

    device = CPU

    def __init__(self) -> None:
        self.passes = 0

    def run(self, function: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        self.passes += 1
        return function(model, *args, **kwargs)

    def most(self, count: int) -> int:
        return max(count, 3)


def test_passes_are_made_beside_busier_ranks() -> None:
    @whole_pass
    def double(model: Any, value: int) -> int:
        return 2 * value

    shared, alone = nn.Linear(1, 1), nn.Linear(1, 1)
    shared.division = Busy()  # type: ignore[assignment]
    assert even_passes([[1], [0]], alone) == [[1], [0]]
    assert even_passes([[1], [0]], alone, None, shared) == [[1], [0], []]
    assert even_passes([[3], [2], [1], [0]], shared) == [[3], [2], [1], [0]]
    assert double(alone, 4) == double(shared, 4) == 8
    assert shared.division.passes == 1


def test_one_rank_has_nothing_to_divide() -> None:
    model = make_policy()
    divide(model, ParallelConfig(shard="zero3"), Ranks(), "float32")
    assert idle(ParallelConfig(shard="zero3"), Ranks()) == ["parallel.shard: zero3 does nothing on a single rank"]
    assert idle(ParallelConfig(), Ranks()) == []
    put_aside(model, ParallelConfig(frozen="shard"), Ranks(), "float32", [])
    assert not hasattr(model, "division") and to_save(model) is model


def test_options_that_do_nothing_are_named(tmp_path: Path) -> None:
    sft = from_mapping(SFTConfig, {
        "model": "m", "data": ["d"], "output_dir": str(tmp_path), "parallel": {"frozen": "shard"},
        "lora": {"shared_base": True},
    })  # fmt: skip
    told = "\n".join(warnings_for(sft))
    assert "parallel.frozen does nothing: only ppo has frozen models" in told
    assert "lora.shared_base does nothing: only ppo has several models" in told
    ppo = make_config(tmp_path, lora={"shared_base": True}, **{"parallel.frozen": "offload"})
    assert any(w.startswith("parallel.frozen does nothing: lora.shared_base") for w in warnings_for(ppo))
    for changes in ({"reference": "somewhere"}, {"critic": {"init": "somewhere"}}):
        with pytest.raises(UserError, match=r"lora.shared_base"):
            from_mapping(PPOConfig, {
                "model": "m", "prompts": ["p"], "reward": "r", "output_dir": str(tmp_path),
                "lora": {"shared_base": True}, **changes,
            })  # fmt: skip


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), True),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_a_lost_rank_is_told_from_other_mistakes(error: Exception, lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    told = lost_rank(error)
    assert (told is not None) == lost
    if told:
        assert told.startswith("rank 3 of 8: another rank has ended") and "--resume" in told
        assert "\n" not in told and "pair.cc" not in told
