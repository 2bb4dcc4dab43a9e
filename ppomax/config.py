"""Every option of every stage: one frozen model a stage, a docstring under every field (``--help`` shows them).

Learning rates, lengths and batch sizes belong to recipes; ``presets/*.yaml`` hold algorithm switches only.
How files and command-line words become these models is in ``options.py``. What all stages share is in ``config_base.py``,
judges in ``config_judge.py``, PPO in ``config_ppo.py``; all are to be had from here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ppomax.config_base import (
    ChatTemplate,
    CheckpointConfig,
    DataSource,
    Layout,
    LoraConfig,
    Mixture,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    Section,
)
from ppomax.config_judge import (
    EndpointConfig,
    JudgeConfig,
    LLMConfig,
    RewardSourceConfig,
    RewardSources,
    as_judges,
    as_reward_sources,
    check_judges,
)
from ppomax.config_ppo import (
    AdvantageConfig,
    CriticConfig,
    EntropyConfig,
    GAEConfig,
    GradClipConfig,
    KLConfig,
    PPOConfig,
    PtxConfig,
    RewardShapingConfig,
    RolloutConfig,
    SamplingConfig,
    SurrogateConfig,
    WatchConfig,
)

__all__ = [
    "AdvantageConfig",
    "ChatTemplate",
    "CheckpointConfig",
    "CriticConfig",
    "DataSource",
    "EndpointConfig",
    "EntropyConfig",
    "GAEConfig",
    "GradClipConfig",
    "JudgeConfig",
    "KLConfig",
    "LLMConfig",
    "Layout",
    "LoraConfig",
    "Mixture",
    "OptimConfig",
    "PPOConfig",
    "ParallelConfig",
    "PtxConfig",
    "RewardConfig",
    "RewardShapingConfig",
    "RewardSourceConfig",
    "RewardSources",
    "RolloutConfig",
    "RunConfig",
    "SFTConfig",
    "SamplingConfig",
    "Section",
    "SurrogateConfig",
    "TextDataConfig",
    "WatchConfig",
    "as_judges",
    "as_reward_sources",
    "check_judges",
]


class TextDataConfig(RunConfig):
    """What stages that read records share."""

    chat_template: ChatTemplate = "model"
    """how dialogues become text: the model's own template, or plain turns in English or Chinese"""
    max_length: int = Field(512, ge=8)
    """longest record in tokens"""
    overlong: Literal["drop", "truncate"] = "truncate"
    """longer records are dropped, or lose the left of their prompt; either is counted and reported"""
    split_seed: int = 0
    """seed of all hash splits: the same in every stage keeps held-out prompts held out"""
    eval_fraction: float = Field(0.05, ge=0, lt=1)
    """share of prompts held out from `data` when `eval_data` is empty"""


# ----------------------------------------------------------------------------------------------- sft


class SFTConfig(TextDataConfig):
    """Supervised fine-tuning (section 1), and language modelling on plain text with the same loop."""

    model: str
    """directory or hub name of the model to start from; where one is passed in memory, its name in the model card"""
    data: Mixture = Field(min_length=1)
    """dialogues (loss on assistant turns only) or plain text (loss on everything); any name where records are in memory"""
    eval_data: Mixture = []
    """held-out records; empty: `eval_fraction` of `data`"""
    epochs: float = Field(2.0, gt=0)
    """passes over the data"""
    batch_size: int = Field(16, ge=1)
    """rows of `max_length` tokens (packing) or records (no packing) an update, over all ranks"""
    packing: bool = True
    """several records in one row; attention and positions never cross records"""
    micro_batch_tokens: int = Field(2048, ge=1)
    """padded tokens of one forward pass; affects memory and speed only: few are best on a CPU, more on a large GPU"""
    optim: OptimConfig = OptimConfig(lr=1e-4, schedule="cosine", min_lr_ratio=0.1)
    """optimiser; the paper's course is cosine to 10% of the peak"""
    max_grad_norm: float = Field(1.0, ge=0)
    """global gradient norm clip; 0 = off"""
    eval_every: int = Field(0, ge=0)
    """updates between evaluations; 0 = at the end of the run only"""
    lora: LoraConfig | None = None
    """adapters instead of full training"""


# -------------------------------------------------------------------------------------- reward model


class RewardConfig(TextDataConfig):
    """Reward model (sections 3.1 and 4): -log sigmoid(r_w - r_l - margin) + lm_coef * NLL(y_w | x)."""

    model: str
    """directory or hub name of the SFT model whose backbone is used; in memory: its name in the model card"""
    data: Mixture = Field(min_length=1)
    """preference pairs; any name where pairs are in memory"""
    eval_data: Mixture = []
    """held-out pairs; empty: `eval_fraction` of `data`"""
    calibration_data: Mixture = []
    """demonstrations whose mean reward becomes 0 (an offset in the model's config); empty: no offset"""
    eval_fraction: float = Field(0.1, ge=0, lt=1)
    """share of prompts held out from `data` when `eval_data` is empty"""
    epochs: float = Field(1.0, gt=0)
    """passes over the pairs (the paper: about 1.06)"""
    lm_coef: float = Field(1.0, ge=0)
    """beta_rm, weight of the imitation loss on the preferred answer (1 in the paper, 0 in the released scripts)"""
    margin: bool = False
    """subtract the pair's own `margin` from the reward gap before the sigmoid"""
    batch_tokens: int = Field(8192, ge=1)
    """tokens an update, over all ranks: batches are balanced by tokens, not by pairs"""
    min_pairs: int = Field(4, ge=1)
    """fewest pairs of a batch"""
    max_pairs: int = Field(128, ge=1)
    """most pairs of a batch"""
    micro_batch_tokens: int = Field(2048, ge=1)
    """padded tokens of one forward pass; affects memory and speed only: few are best on a CPU, more on a large GPU"""
    optim: OptimConfig = OptimConfig(lr=5e-5, schedule="constant", warmup=0.1)
    """optimiser; the paper warms up over the first 10% of steps"""
    max_grad_norm: float = Field(1.0, ge=0)
    """global gradient norm clip; 0 = off"""
    eval_every: int = Field(0, ge=0)
    """updates between evaluations on held-out pairs; 0 = at the end of the run only"""
    lora: LoraConfig | None = None
    """adapters instead of full training"""
