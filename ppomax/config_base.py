"""What the settings of all stages share: strict sections, data sources, optimiser, checkpoints, the run itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Strict and immutable: an unknown or wrongly typed field is an error, and nothing changes during a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


def _given(value: Any) -> Any:
    """What was set of a section, as plain data."""
    return value.model_dump(exclude_unset=True) if isinstance(value, Section) else value


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, section by section."""
    merged = dict(below)
    for name, value in above.items():
        old, new = merged.get(name), _given(value)
        merged[name] = overlay(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else value
    return merged


# ---------------------------------------------------------------------------------------------- data

Layout = Literal["auto", "hh", "preference", "messages", "prompt_completion", "prompt", "sharegpt", "text"]


class DataSource(Section):
    """One ingredient of a mixture."""

    path: str
    """file (.jsonl .json .parquet .csv, gzip or not), folder of such files, or hub name; $PPOMAX_DATA expands"""
    layout: Layout = "auto"
    """record layout; `auto` recognises it and says what it found"""
    weight: float = Field(1.0, gt=0)
    """how often each record occurs in an epoch: 2 = twice, 0.5 = a fixed half of them; once at most where it is evaluated"""
    split: str | None = None
    """`train`, `test`, ... (hub split, `split` field, file name), or a share of the prompts by hash such as `0%:50%`"""
    limit: int | None = Field(None, ge=1)
    """at most this many records, the first ones"""


def _as_sources(value: Any) -> Any:
    """A lone string or dict is a mixture of one; a string stands for {path: string}."""
    if isinstance(value, str | dict):
        value = [value]
    return [{"path": v} if isinstance(v, str) else v for v in value] if isinstance(value, list | tuple) else value


Mixture = Annotated[list[DataSource], BeforeValidator(_as_sources)]
ChatTemplate = Literal["model", "human_assistant_en", "human_assistant_zh"]


class OptimConfig(Section):
    """AdamW and its schedule."""

    lr: float = Field(1e-4, ge=0)
    """peak learning rate"""
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "constant"
    """course of the learning rate after warm-up"""
    warmup: float = Field(0.1, ge=0, le=1)
    """share of all updates over which the learning rate rises from 0"""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """cosine and linear end at this share of the peak"""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas"""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon"""
    weight_decay: float = Field(0.0, ge=0)
    """decoupled weight decay, on matrices only"""


class LoraConfig(Section):
    """Low-rank adapters instead of full training (needs peft)."""

    rank: int = Field(16, ge=1)
    """rank of the adapters"""
    alpha: float = Field(32, gt=0)
    """scale: the adapter's output is multiplied by alpha / rank"""
    target_modules: str | list[str] = "all-linear"
    """which layers get an adapter"""
    shared_base: bool = False
    """ppo: policy, critic and reward models are adapters on one base, and the reference is the base: a quarter of the memory"""


class CheckpointConfig(Section):
    """When a run writes down everything it needs to go on."""

    every: int = Field(50, ge=0)
    """iterations (ppo) or updates (sft, reward) between checkpoints; 0 = only at the end"""
    keep: int = Field(2, ge=1)
    """how many of the newest checkpoints stay"""


class ParallelConfig(Section):
    """How weights are divided among the ranks that torchrun starts, and what else saves memory."""

    shard: Literal["none", "zero2", "zero3"] = "none"
    """trained models: whole on every rank, or in parts whose layers are gathered from forward to backward (zero2), or for
    each pass by itself (zero3: least memory)"""
    frozen: Literal["replicate", "shard", "offload"] = "replicate"
    """ppo's frozen models: whole on every rank, in parts as zero3, or on the CPU except while they score"""
    activation_checkpointing: bool = False
    """trained models keep only each layer's input for the backward pass and compute the rest again"""


TrackerName = Literal["tensorboard", "wandb", "trackio"]
Trackers = Annotated[list[TrackerName], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class RunConfig(Section):
    """What all stages share."""

    output_dir: str
    """run directory; one that already holds a run is refused unless --resume is given"""
    seed: int = Field(0, ge=0)
    """seeds data order, fresh heads and sampling"""
    device: str = "auto"
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1`"""
    precision: Literal["float32", "bf16"] = "float32"
    """of the passes: weights, losses and optimiser stay float32. bf16 pays on GPUs and CPUs that have it (AVX512-BF16, AMX)"""
    trust_remote_code: bool = False
    """run Python code that comes with a model"""
    parallel: ParallelConfig = ParallelConfig()
    """many devices, and memory"""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """checkpoints and how many are kept"""
    trackers: Trackers = []
    """what gets the metrics, samples and alarms beside metrics.jsonl; keys come from the trackers' own environment variables"""
    tracker_project: str = Field("ppomax", min_length=1)
    """project in Weights & Biases and trackio"""
    tracker_name: str | None = None
    """the run's name there; null: the name of the run directory"""

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, values: Any) -> Any:
        """A section given in part keeps the stage's own defaults: SFT(optim={"lr": 1e-3}) still decays by a cosine."""
        if not isinstance(values, Mapping):
            return values
        fields = {name: field.default for name, field in cls.model_fields.items()}
        sections = {name: default.model_dump() for name, default in fields.items() if isinstance(default, Section)}
        return overlay({name: sections[name] for name in sections if name in values}, values)
