"""How weights come to a vLLM server: names, merged adapters, files, and the orders for NCCL and CUDA IPC (stand-ins)."""

from __future__ import annotations

import base64
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ppomax.config import LoraConfig
from ppomax.errors import UserError
from ppomax.models.loading import add_lora
from ppomax.models.shared_base import SharedBase
from ppomax.rollout.vllm_server import VLLMServer
from ppomax.train.parallel import Ranks
from ppomax.train.weight_transfer import FileTransfer, IPCTransfer, NCCLTransfer, make_transfer, whole_weights

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "rollout"))
from ppo_tools import make_policy
from vllm_fake import FakeVLLM

Loaded = list[dict[str, Tensor]]


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


def client(fake: FakeVLLM, retries: int = 1) -> VLLMServer:
    return VLLMServer(fake.url, timeout=5, retries=retries, first_pause=0.01)


def make(fake: FakeVLLM, policy: Any, folder: Path, kind: str = "auto", ranks: Ranks | None = None) -> Any:
    server = client(fake)
    return make_transfer(kind, server, server.facts(), policy, ranks or Ranks(), folder)


def tied_policy() -> Any:
    policy = make_policy()
    policy.config.tie_word_embeddings = True
    policy.lm_head.weight = policy.model.embed_tokens.weight
    return policy


# ------------------------------------------------------------------------------------------ which weights


def test_names_are_those_of_a_saved_model(tmp_path: Path) -> None:
    policy = make_policy()
    weights = dict(whole_weights(policy))
    assert weights.keys() == policy.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in policy.state_dict().items())


def test_tied_weights_come_once() -> None:
    names = [name for name, _ in whole_weights(tied_policy())]
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names


def test_adapters_are_merged_and_the_policy_is_left_alone() -> None:
    policy = add_lora(make_policy(), LoraConfig(rank=2), "CAUSAL_LM")
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn_like(p))
    before = {name: p.clone() for name, p in policy.named_parameters()}
    weights = dict(whole_weights(policy))
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    expected = policy.merge_and_unload().state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.allclose(weights[name], expected[name], atol=1e-7) for name in expected)
    assert not torch.allclose(weights["model.layers.0.self_attn.q_proj.weight"],
                              make_policy().state_dict()["model.layers.0.self_attn.q_proj.weight"])  # fmt: skip


def test_on_a_shared_base_the_policys_adapters_alone_are_merged() -> None:
    base = SharedBase(make_policy(), LoraConfig(rank=2), torch.device("cpu"))
    policy, _ = base.policy_role(), base.fresh_critic(pad_id=0, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in base.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn_like(p))
    weights = dict(whole_weights(policy))
    expected = policy.saved(policy).merge_and_unload().state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.allclose(weights[name], expected[name], atol=1e-6) for name in expected)


# ------------------------------------------------------------------------------------------ by file


def test_by_file(fake: FakeVLLM, tmp_path: Path) -> None:
    loaded: Loaded = []
    fake.on_load = loaded.append
    policy = make_policy()
    transfer = make(fake, policy, tmp_path / "rollout")
    assert isinstance(transfer, FileTransfer)
    transfer.send("a-1")
    assert fake.weights == "a-1"
    assert [path for path, _ in fake.calls] == [
        "/update_weight_version", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version"
    ]  # fmt: skip
    assert fake.calls[0][1] == {"new_version": "updating"}  # half-loaded weights are nobody's
    assert all(torch.equal(loaded[0][name], value) for name, value in policy.state_dict().items())
    with torch.no_grad():
        policy.lm_head.weight.add_(1)
    transfer.send("a-2")
    assert torch.equal(loaded[1]["lm_head.weight"], policy.lm_head.weight)
    assert [p.name for p in (tmp_path / "rollout").iterdir()] == ["weights-a-2"]  # one at a time
    transfer.repeat("a-2")
    assert torch.equal(loaded[2]["lm_head.weight"], policy.lm_head.weight)
    transfer.close()
    assert not (tmp_path / "rollout").exists()


def test_files_have_the_servers_precision(fake: FakeVLLM, tmp_path: Path) -> None:
    loaded: Loaded = []
    fake.on_load, fake.dtype = loaded.append, "torch.bfloat16"
    make(fake, make_policy(), tmp_path).send("1")
    assert {value.dtype for value in loaded[0].values()} == {torch.bfloat16}


def test_an_output_layer_that_is_tied_is_packed_anew_on_a_cpu(fake: FakeVLLM, tmp_path: Path) -> None:
    make(fake, tied_policy(), tmp_path).send("1")
    assert [body.get("method") for path, body in fake.calls if path == "/collective_rpc"] == [
        "reload_weights", "pack_tied_head"
    ]  # fmt: skip
    fake.worker_extension = ""
    with pytest.raises(UserError, match="does not reload an output layer that is tied.*ppomax serve-rollouts"):  # noqa: RUF043
        make(fake, tied_policy(), tmp_path)
    make(fake, make_policy(), tmp_path)  # not tied
    fake.device, fake.calls = "cuda", []
    make(fake, tied_policy(), tmp_path).send("2")
    assert "pack_tied_head" not in str(fake.calls)


def test_a_failed_load_leaves_weights_that_are_nobodys(fake: FakeVLLM, tmp_path: Path) -> None:
    transfer = make(fake, make_policy(), tmp_path)
    fake.faults["/collective_rpc"] = [500, 500]
    with pytest.raises(UserError, match="failed 2 times at /collective_rpc"):
        transfer.send("1")
    assert fake.weights == "updating"


def test_a_prefix_cache_in_use_is_waited_for(fake: FakeVLLM, tmp_path: Path) -> None:
    fake.faults["/reset_prefix_cache"] = [lambda reply: {"success": False}]
    make(fake, make_policy(), tmp_path).send("1")
    assert [path for path, _ in fake.calls].count("/reset_prefix_cache") == 2
    fake.faults["/reset_prefix_cache"] = [lambda reply: {"success": False}] * 2
    with pytest.raises(UserError, match="the prefix cache is still in use"):
        make(fake, make_policy(), tmp_path).send("2")


def test_other_ranks_gather_and_write_nothing(fake: FakeVLLM, tmp_path: Path) -> None:
    make(fake, make_policy(), tmp_path / "x", ranks=Ranks(1, 2)).send("1")
    assert fake.calls == [] and not (tmp_path / "x").exists()


# ------------------------------------------------------------------------------------------ on GPUs: the orders alone


def test_what_the_server_was_started_for(fake: FakeVLLM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rollout\.transfer: nccl, but the server was started for files only"):
        make(fake, make_policy(), tmp_path, "nccl")
    fake.transfer = "nccl"
    with pytest.raises(UserError, match=r"nccl needs the policy on a GPU, not on cpu"):
        make(fake, make_policy(), tmp_path)  # auto
    with pytest.raises(UserError, match=r"rollout\.transfer: ipc, but the server was started for nccl"):
        make(fake, make_policy(), tmp_path, "ipc")
    assert make(fake, make_policy(), tmp_path, "file").name == "file"
    on_gpu = Ranks(device=torch.device("cuda:0"))
    assert isinstance(make(fake, make_policy(), tmp_path, ranks=on_gpu), NCCLTransfer)
    fake.transfer = "sharded_rdt"
    with pytest.raises(UserError, match="'sharded_rdt'; expected nccl or ipc"):
        make(fake, make_policy(), tmp_path)
    fake.transfer = "ipc"
    assert isinstance(make(fake, make_policy(), tmp_path, ranks=on_gpu), IPCTransfer)
    with pytest.raises(UserError, match="ipc needs trainer and server on one GPU"):
        make(fake, make_policy(), tmp_path, ranks=Ranks(0, 2, torch.device("cuda:0")))


class Group:
    """A stand-in for torch.cuda.nccl; ``pause``: seconds that a broadcast takes."""

    def __init__(self, pause: float = 0.0) -> None:
        self.sent: list[Tensor] = []
        self.did: list[Any] = []
        self.pause = pause

    def has(self, count: int) -> Callable[[Any], Any]:
        """A server's answer that comes when ``count`` weights have been broadcast, as vLLM's does."""

        def when_there(reply: Any) -> Any:
            for _ in range(500):
                if len(self.sent) >= count:
                    return reply
                time.sleep(0.01)
            return None

        return when_there

    def unique_id(self) -> bytes:
        return bytes(range(128))

    def init_rank(self, size: int, identity: bytes, rank: int) -> str:
        self.did.append(("join", size, identity, rank))
        return "group"

    def all_reduce(self, inputs: list[Tensor], comms: list[Any]) -> None:
        self.did.append(("warm up", inputs[0].numel(), comms))

    def broadcast(self, inputs: list[Tensor], root: int, comms: list[Any]) -> None:
        assert (root, comms) == (0, ["group"])
        self.sent.append(inputs[0].clone())
        time.sleep(self.pause)


def test_by_nccl(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group()
    monkeypatch.setattr(torch.cuda, "nccl", group)
    policy = make_policy()
    count = len(policy.state_dict())
    fake.faults["/update_weights"] = [group.has(count), group.has(2 * count)]
    transfer = NCCLTransfer(client(fake), policy, torch.bfloat16, Ranks())
    transfer.send("1")
    transfer.send("2")
    assert group.did == [("join", 3, bytes(range(128)), 0), ("warm up", 1, ["group"])]  # two workers and us, once
    paths = [path for path, _ in fake.calls]
    one_update = [
        "/update_weight_version", "/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"
    ]  # fmt: skip
    assert paths == ["/init_weight_transfer_engine", *one_update, *one_update]
    init = fake.calls[0][1]["init_info"]
    assert base64.b64decode(init["nccl_unique_id_b64"]) == bytes(range(128))
    assert (init["rank_offset"], init["world_size"], init["packed"]) == (1, 3, False)
    info = fake.calls[3][1]["update_info"]
    assert info["names"] == list(policy.state_dict()) and set(info["dtype_names"]) == {"bfloat16"}
    assert info["shapes"] == [list(value.shape) for value in policy.state_dict().values()]
    expected = [value.bfloat16() for value in policy.state_dict().values()] * 2
    assert all(torch.equal(a, b) for a, b in zip(group.sent, expected, strict=True))
    assert fake.weights == "2"


def test_a_server_that_has_enough_before_the_last_weight(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "nccl", Group(pause=0.1))
    policy = make_policy()
    with pytest.raises(UserError, match=rf"called the weights received after \d+ of {len(policy.state_dict())}; start"):
        NCCLTransfer(client(fake), policy, torch.float32, Ranks()).send("1")
    assert fake.weights == "updating"


def test_a_server_that_fails_to_receive_by_nccl(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "nccl", Group())
    fake.faults["/update_weights"] = [500, 500]
    with pytest.raises(UserError, match="failed 2 times at /update_weights"):
        NCCLTransfer(client(fake), make_policy(), torch.float32, Ranks()).send("1")
    assert fake.weights == "updating"


def test_nccl_with_several_ranks_cannot_be_repeated_by_one(fake: FakeVLLM) -> None:
    with pytest.raises(UserError, match="--resume"):
        NCCLTransfer(client(fake), make_policy(), torch.float32, Ranks(0, 2)).repeat("1")


def test_by_ipc(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-1"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    import torch.multiprocessing.reductions as reductions

    monkeypatch.setattr(reductions, "reduce_tensor", lambda t: (None, (tuple(t.shape), float(t.double().sum()))))
    policy = make_policy()
    transfer = IPCTransfer(client(fake), policy, Ranks())
    transfer.send("1")
    assert [path for path, _ in fake.calls] == [
        "/init_weight_transfer_engine", "/update_weight_version", "/start_weight_update", "/update_weights",
        "/finish_weight_update", "/reset_prefix_cache",
    ]  # fmt: skip
    info = fake.calls[3][1]["update_info"]
    handles = pickle.loads(base64.b64decode(info["ipc_handles_pickled"]))
    assert info["names"] == list(policy.state_dict()) and set(info["dtype_names"]) == {"float32"}
    for handle, (name, value), shape in zip(handles, policy.state_dict().items(), info["shapes"], strict=True):
        assert handle == {"GPU-1": (tuple(value.shape), float(value.double().sum()))}, name
        assert shape == list(value.shape)
    assert fake.weights == "1"
