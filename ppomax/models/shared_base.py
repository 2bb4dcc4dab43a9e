"""Several models as adapters on one base: policy, critic and reward models are roles, and the reference is the base alone.

    base ---- adapter "default" + language-model head ........ policy
         |--- adapter "critic" + a linear unit ............... critic
         |--- adapters "reward0", "reward1" + their units .... reward models
         '--- no adapter + language-model head ............... reference

A base of 7B parameters lies in memory once, where four models of their own would lie there four times.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ppomax.config import LoraConfig
from ppomax.errors import UserError
from ppomax.models.adapters import adapter
from ppomax.models.loading import adapter_facts, add_lora, cpu_copy
from ppomax.models.logprobs import inner_model
from ppomax.models.passes import Division
from ppomax.models.scalar import on_backbone, reset_unit
from ppomax.regular_file import expand_path

R = TypeVar("R")
POLICY = "default"
"""peft's own name for a lone adapter: a saved policy is an ordinary one"""


class Role(nn.Module):
    """One of the models on a shared base. Its parameters are its own alone: its adapters and its linear unit.

    It is the `Division` of itself: each of its passes goes through its adapters (``name``; None: through none).
    """

    def __init__(self, model: Any, name: str | None, device: torch.device) -> None:
        super().__init__()
        self.model, self.name, self.device = model, name, device
        self.weights: Division | None = None
        """how the weights of the whole base are divided among ranks, if they are"""

    @property
    def config(self) -> Any:
        return inner_model(self.model).config

    @property
    def division(self) -> Division:
        return self

    def get_base_model(self) -> Any:
        return inner_model(self.model)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters(*args, **kwargs):
            if self.name is not None and (f".{self.name}." in name or name.startswith("score.")):
                yield name, parameter

    def run(self, function: Callable[..., R], model: nn.Module, *args: Any, **kwargs: Any) -> R:
        with adapter(self.model, self.name):
            if self.weights is None:
                return function(model, *args, **kwargs)
            return self.weights.run(function, model, *args, **kwargs)

    def most(self, count: int) -> int:
        return count if self.weights is None else self.weights.most(count)

    @contextlib.contextmanager
    def whole(self, model: nn.Module) -> Iterator[Any]:
        with adapter(self.model, self.name):
            if self.weights is None:
                yield self.model
            else:
                with self.weights.whole(self.model) as gathered:
                    yield gathered

    def saved(self, model: nn.Module) -> Any:
        """A float32 copy by itself on the CPU, the policy without the others' adapters; None on ranks that do not save."""
        division: Any = self.weights
        alone = cpu_copy(self.model, torch.float32) if division is None else division.saved(self.model)
        for other in set(getattr(alone, "peft_config", {})) - {POLICY}:
            alone.delete_adapter(other)
        return None if alone is None else alone.float()


@dataclass(frozen=True)
class RewardAdapter:
    """A reward model that was trained as adapters (RUN/final has them in ``adapter``)."""

    path: Path
    settings: dict[str, Any]
    config: dict[str, Any]
    """of the reward model: pad token, calibration offset"""

    @classmethod
    def read(cls, where: str, base: str | None) -> RewardAdapter:
        """From RUN/final or a folder of adapters. ``base``: the model they must belong to; None: it came from memory."""
        folder = Path(expand_path(where))
        path = folder / "adapter" if (folder / "adapter" / "adapter_config.json").is_file() else folder
        try:
            settings = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
            described = folder / "config.json"
            config = (
                json.loads(described.read_text(encoding="utf-8")) if described.is_file() else adapter_facts(str(path))
            )
        except OSError:
            raise UserError(
                f"lora.shared_base: {where} has no adapters (neither adapter_config.json nor adapter/): train the reward "
                "model with `lora`, from the model that PPO starts from"
            ) from None
        except ValueError as error:
            raise UserError(f"{where}: adapter_config.json or config.json is not valid JSON: {error}") from None
        if settings.get("task_type") != "SEQ_CLS":
            raise UserError(f"{where}: its adapters are not a reward model's (task_type SEQ_CLS is expected)")
        found = str(settings.get("base_model_name_or_path"))
        if base is not None and not _same_model(found, base):
            raise UserError(f"lora.shared_base: {where} was trained from {found}, and the policy starts from {base}")
        return cls(path, settings, config)

    def weights(self) -> tuple[dict[str, Tensor], Tensor]:
        """Adapter weights by peft's names, and the linear unit (1, D)."""
        import peft

        try:
            state = peft.load_peft_weights(str(self.path), device="cpu")
            unit = state.pop(next(name for name in state if name.endswith("score.weight")))
        except (OSError, StopIteration, ValueError) as error:
            raise UserError(f"{self.path}: its adapters cannot be read, or have no linear unit: {error}") from None
        return state, unit


def _same_model(one: str, other: str) -> bool:
    paths = Path(expand_path(one)), Path(expand_path(other))
    return one == other or (paths[0].exists() and paths[1].exists() and paths[0].samefile(paths[1]))


class SharedBase(nn.Module):
    """The base with every adapter and head on it: what is divided among ranks, and saved, as one."""

    def __init__(self, causal: Any, lora: LoraConfig, device: torch.device) -> None:
        super().__init__()
        self.policy = add_lora(causal, lora, "CAUSAL_LM")
        self.heads = nn.ModuleDict()
        self.device = device
        self.roles: dict[str | None, Role] = {}

    def policy_role(self) -> Role:
        return self._role(self.policy, POLICY)

    def reference_role(self) -> Role:
        return self._role(self.policy, None)

    def _role(self, model: Any, name: str | None) -> Role:
        self.roles[name] = Role(model, name, self.device)
        return self.roles[name]

    def fresh_critic(self, pad_id: int, seed: int) -> Role:
        """Adapters that change nothing yet, and a fresh unit."""
        self.policy.add_adapter("critic", copy.deepcopy(self.policy.peft_config[POLICY]))
        role = self._head("critic", pad_id)
        reset_unit(role.model, seed)
        return role

    def scalar(self, name: str, source: RewardAdapter, pad_id: int) -> Role:
        """A reward model, or a critic that starts from it, by its adapters."""
        import peft

        state, unit = source.weights()
        options = peft.LoraConfig.from_pretrained(str(source.path))
        options.modules_to_save, options.task_type, options.inference_mode = None, "CAUSAL_LM", False
        self.policy.add_adapter(name, options)
        report = peft.set_peft_model_state_dict(self.policy, state, adapter_name=name)
        lacking = [key for key in report.missing_keys if f".{name}." in key]
        if lacking or report.unexpected_keys:
            wrong = (lacking or report.unexpected_keys)[0]
            raise UserError(f"{source.path}: its adapters do not fit the policy's model ({wrong}, ...)")
        role = self._head(name, int(source.config.get("pad_token_id") or pad_id))
        if source.config.get("vocab_size", role.config.vocab_size) != role.config.vocab_size:
            raise UserError(
                f"lora.shared_base: the reward model of {source.path} has {source.config['vocab_size']} tokens and the "
                f"policy {role.config.vocab_size} (a pad token was added in its training): give the start model a pad token"
            )
        role.config.reward_offset = float(source.config.get("reward_offset") or 0.0)
        with torch.no_grad():
            role.model.score.weight.copy_(unit)
        return role

    def _head(self, name: str, pad_id: int) -> Role:
        self.heads[name] = on_backbone(self.policy.get_base_model(), pad_id=pad_id)
        return self._role(self.heads[name], name)

    def settle(self, *, bf16: bool) -> None:
        """Once all roles are there: the policy's and the critic's own parameters are trained, and nothing else is.

        ``bf16``: matrices of the base's layers lie in bf16, which is what the arithmetic would make of them each time.
        """
        self.requires_grad_(False)
        for name in (POLICY, "critic"):
            self.roles[name].requires_grad_(True)
        self.eval()
        if bf16:
            for module in self.modules():
                if isinstance(base := getattr(module, "base_layer", None), nn.Linear):
                    base.to(torch.bfloat16)
