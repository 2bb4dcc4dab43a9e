"""How the policy's weights come to a vLLM server: by a file that both can read, by NCCL, or by CUDA IPC.

All three use vLLM's own interfaces. Gathering sharded weights is a collective of all ranks; the main rank alone talks to the
server. After every update the server's prefix cache is emptied, since it holds keys and values of the old weights, and the
weights get a version, by which sampling from others is noticed.
"""

from __future__ import annotations

import base64
import pickle
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ppomax.errors import UserError
from ppomax.models.logprobs import inner_model
from ppomax.models.shared_base import Role
from ppomax.rollout.vllm_engine import WeightTransfer, lost
from ppomax.rollout.vllm_server import ServerFacts, VLLMServer
from ppomax.train.parallel import Ranks

UPDATING = "updating"
"""version of weights that are on their way: should an update end half-way, nobody takes the weights for whole"""


def named_weights(policy: Any) -> Iterator[tuple[str, Tensor, Any]]:
    """(Hugging Face name, parameter as it is held here, the peft layer whose adapters belong to it or None)."""
    inner = inner_model(policy)
    modules = dict(inner.named_modules())
    for name, parameter in inner.named_parameters():
        if any(part.startswith("lora_") for part in name.split(".")):
            continue
        owner, _, own = name.rpartition(".base_layer.")
        name = f"{owner}.{own}" if owner else own
        yield name.replace("_orig_mod.", ""), parameter, modules[owner] if owner and own == "weight" else None


@torch.no_grad()
def whole_weights(policy: Any) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters, adapters merged in (the policy itself is left alone). Tied parameters come once.

    Sharded parameters are gathered one by one, which all ranks must do together.
    """
    for name, parameter, adapted in named_weights(policy):
        weight: Any = parameter.detach()
        if adapted is not None:  # on a shared base lie the adapters of other models too
            for adapter in [policy.name] if isinstance(policy, Role) else adapted.active_adapters:
                weight = weight + adapted.get_delta_weight(adapter)
        yield name, weight.full_tensor() if hasattr(weight, "full_tensor") else weight


class FileTransfer:
    """A safetensors file in ``folder``, which the server must see under the same path; it reloads its weights from there."""

    name = "file"

    def __init__(
        self, server: VLLMServer, facts: ServerFacts, policy: Any, dtype: torch.dtype, ranks: Ranks, folder: Path
    ) -> None:
        self.server, self.policy, self.dtype, self.ranks, self.folder = server, policy, dtype, ranks, folder.resolve()
        inner = inner_model(policy)
        tied = inner.get_output_embeddings().weight is inner.get_input_embeddings().weight
        self.pack_tied_head = tied and facts.device == "cpu"
        if self.pack_tied_head and not facts.packs_tied_head:
            raise UserError(
                f"rollout.url {server.url}: on a CPU vLLM does not reload an output layer that is tied to the embeddings; "
                "start it by `ppomax serve-rollouts MODEL`, which mends that"
            )

    def send(self, version: str) -> None:
        gathered: dict[str, Tensor] = {}
        for name, weight in whole_weights(self.policy):
            if self.ranks.is_main:
                gathered[name] = weight.to("cpu", self.dtype).contiguous()
        if not self.ranks.is_main:
            return
        whole = self._place(version)
        part = whole.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file(gathered, part / "model.safetensors", metadata={"format": "pt"})
        shutil.rmtree(whole, ignore_errors=True)
        part.rename(whole)
        self.repeat(version)
        for old in self.folder.iterdir():
            if old != whole:
                shutil.rmtree(old, ignore_errors=True)

    def repeat(self, version: str) -> None:
        self.server.tell("/update_weight_version", {"new_version": UPDATING})
        order = {"method": "reload_weights", "kwargs": {"weights_path": str(self._place(version))}}
        self.server.tell("/collective_rpc", order)
        if self.pack_tied_head:
            self.server.tell("/collective_rpc", {"method": "pack_tied_head"})
        empty_prefix_cache(self.server)
        self.server.tell("/update_weight_version", {"new_version": version})

    def close(self) -> None:
        if self.ranks.is_main:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, version: str) -> Path:
        return self.folder / f"weights-{version}"


class NCCLTransfer:
    """Broadcasts from the trainer's main rank (NCCL rank 0) to the server's workers, which sit on GPUs of their own."""

    name = "nccl"

    def __init__(self, server: VLLMServer, policy: Any, dtype: torch.dtype, ranks: Ranks) -> None:
        self.server, self.policy, self.dtype, self.ranks = server, policy, dtype, ranks
        self._group: Any = None

    def send(self, version: str) -> None:
        if not self.ranks.is_main:
            for _ in whole_weights(self.policy):  # takes part in the gathering
                pass
            return
        nccl = torch.cuda.nccl
        if self._group is None:
            self._group = self._join()
        shapes = [(name, list(parameter.shape)) for name, parameter, _ in named_weights(self.policy)]
        info = {
            "names": [name for name, _ in shapes], "shapes": [shape for _, shape in shapes],
            "dtype_names": [str(self.dtype).removeprefix("torch.")] * len(shapes),
        }  # fmt: skip
        self.server.tell("/update_weight_version", {"new_version": UPDATING})
        self.server.tell("/start_weight_update")
        with beside(lambda: self.server.tell("/update_weights", {"update_info": info})) as received:
            sent = 0
            for _, weight in whole_weights(self.policy):
                if received.done():  # it receives until the last weight: it failed
                    break
                nccl.broadcast([weight.to(self.ranks.device, self.dtype).contiguous()], 0, comms=[self._group])
                sent += 1
            received.result()
            if sent < len(shapes):
                raise UserError(
                    f"rollout.url {self.server.url}: vLLM called the weights received after {sent} of {len(shapes)}; start "
                    "the server again and continue the run with --resume"
                )
        self.server.tell("/finish_weight_update", {"weight_version": version})
        empty_prefix_cache(self.server)

    def repeat(self, version: str) -> None:
        if self.ranks.size > 1:
            raise lost(self.server)
        self._group = None
        self.send(version)

    def close(self) -> None:
        self._group = None

    def _join(self) -> Any:
        """A communicator of this process and all workers; vLLM's side begins with a sum of one element, and so do we."""
        nccl = torch.cuda.nccl
        workers = self.server.ask("GET", "/get_world_size", read=lambda reply: int(reply["world_size"]))
        identity = nccl.unique_id()
        info = {
            "nccl_unique_id_b64": base64.b64encode(identity).decode(), "rank_offset": 1, "world_size": workers + 1,
            "packed": False,
        }  # fmt: skip
        with beside(lambda: self.server.tell("/init_weight_transfer_engine", {"init_info": info})) as joined:
            group = nccl.init_rank(workers + 1, identity, 0)
            nccl.all_reduce([torch.zeros(1, device=self.ranks.device)], comms=[group])
            joined.result()
        return group


class IPCTransfer:
    """Handles of the policy's own memory, for a server on the same GPU: nothing is copied by us."""

    name = "ipc"

    def __init__(self, server: VLLMServer, policy: Any, ranks: Ranks) -> None:
        if ranks.size > 1:
            raise UserError("rollout.transfer: ipc needs trainer and server on one GPU; with several ranks use nccl")
        self.server, self.policy, self.ranks = server, policy, ranks
        self._ready = False

    def send(self, version: str) -> None:
        from torch.multiprocessing.reductions import reduce_tensor

        if not self._ready:
            self.server.tell("/init_weight_transfer_engine", {"init_info": {"packed": False}})
            self._ready = True
        uuid = str(torch.cuda.get_device_properties(self.ranks.device).uuid)
        kept = [
            (name, weight.contiguous()) for name, weight in whole_weights(self.policy)
        ]  # alive until the server has read them
        torch.cuda.synchronize(self.ranks.device)
        handles = [{uuid: reduce_tensor(weight)[1]} for _, weight in kept]
        info = {
            "names": [name for name, _ in kept], "shapes": [list(weight.shape) for _, weight in kept],
            "dtype_names": [str(weight.dtype).removeprefix("torch.") for _, weight in kept],
            # the form in which vLLM takes handles over HTTP; nothing is ever unpickled on this side
            "ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode(),
        }  # fmt: skip
        self.server.tell("/update_weight_version", {"new_version": UPDATING})
        self.server.tell("/start_weight_update")
        self.server.tell("/update_weights", {"update_info": info})
        self.server.tell("/finish_weight_update", {"weight_version": version})
        empty_prefix_cache(self.server)
        torch.cuda.ipc_collect()

    def repeat(self, version: str) -> None:
        self._ready = False
        self.send(version)

    def close(self) -> None:
        self._ready = False


def make_transfer(
    kind: str, server: VLLMServer, facts: ServerFacts, policy: Any, ranks: Ranks, folder: Path
) -> WeightTransfer:
    """``kind`` as in `rollout.transfer`: auto is what the server was started for, and a file where that is nothing."""
    if kind == "auto":
        kind = facts.transfer or "file"
    if kind in ("nccl", "ipc"):
        if facts.transfer != kind:
            raise UserError(
                f"rollout.transfer: {kind}, but the server was started for {facts.transfer or 'files only'}; start it by "
                f"`ppomax serve-rollouts MODEL --transfer {kind}`, or set rollout.transfer to auto"
            )
        if ranks.device.type != "cuda":
            raise UserError(f"rollout.transfer: {kind} needs the policy on a GPU, not on {ranks.device}; use file")
    dtype: torch.dtype = getattr(torch, facts.dtype)
    if kind == "file":
        return FileTransfer(server, facts, policy, dtype, ranks, folder)
    if kind == "nccl":
        return NCCLTransfer(server, policy, dtype, ranks)
    if kind == "ipc":
        return IPCTransfer(server, policy, ranks)
    raise UserError(f"rollout.url {server.url}: its weight transfer is {kind!r}; expected nccl or ipc, or none")


def empty_prefix_cache(server: VLLMServer) -> None:
    """What is cached belongs to the weights before."""

    def emptied(reply: Any) -> None:
        if not reply["success"]:
            raise ValueError("the prefix cache is still in use")

    server.ask("POST", "/reset_prefix_cache", body={}, read=emptied)


class beside:
    """``with beside(request) as future``: the request runs in another thread, since server and trainer must meet.

    Where the block fails, the thread is not waited for: it may wait for us.
    """

    def __init__(self, request: Callable[[], Any]) -> None:
        self.request = request
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="vllm-weights")

    def __enter__(self) -> Future[Any]:
        return self.pool.submit(self.request)

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(wait=False)
