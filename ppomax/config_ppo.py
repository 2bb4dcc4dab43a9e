"""PPO's settings: sampling, reward sources, the twelve details, what is watched."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from ppomax.config_base import ChatTemplate, LoraConfig, Mixture, OptimConfig, RunConfig, Section, overlay
from ppomax.config_judge import JudgeConfig, LLMConfig, RewardSources, as_judges

# ---------------------------------------------------------------------------------------------- ppo


class SamplingConfig(Section):
    """How responses are drawn. PPO by default samples from the policy itself, evaluation as the paper's evaluation does."""

    max_new_tokens: int = Field(128, ge=1)
    """longest response in tokens"""
    temperature: float = Field(1.0, ge=0)
    """divides the logits; 0 = greedy"""
    top_p: float = Field(1.0, gt=0, le=1)
    """nucleus: the smallest set of tokens with at least this probability"""
    top_k: int = Field(0, ge=0)
    """only the k likeliest tokens; 0 = off"""
    repetition_penalty: float = Field(1.0, ge=0.01)
    """logits of tokens seen before are divided (positive) or multiplied (negative) by this; 1 = off"""
    repetition_scope: Literal["generated", "all"] = "generated"
    """tokens that count as seen: generated ones (released code), or the prompt's as well"""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """strings that end a response, besides the end-of-sequence token; rewards see them, as the policy wrote them"""
    samples_per_prompt: int = Field(1, ge=1)
    """responses drawn for each prompt"""
    batch_size: int = Field(128, ge=1)
    """sequences decoded at once; affects memory and speed only"""


class RolloutConfig(Section):
    """What draws the responses: the policy in this process, or a vLLM server that is given its weights (docs/vllm.md)."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """`vllm`: the server at `url`; start one by `ppomax serve-rollouts MODEL`"""
    url: str = "http://127.0.0.1:8000"
    """address of the server"""
    transfer: Literal["auto", "file", "nccl", "ipc"] = "auto"
    """weights go by a file in the run's folder, NCCL (GPUs of its own) or CUDA IPC (same GPU); auto: as the server was started"""
    colocated: bool = False
    """the server shares the trainer's GPU: it sleeps while the policy is trained"""
    timeout: float = Field(600.0, gt=0)
    """seconds until one reply must be there"""
    retries: int = Field(5, ge=0)
    """further attempts after a failure, with growing pauses; then the run stops and can be resumed"""
    first_pause: float = Field(1.0, gt=0)
    """seconds before the second attempt; each further pause is twice as long, up to a minute"""
    importance_clip: float | None = Field(None, gt=0)
    """truncated importance weighting: each token's policy loss times min(pi_old / pi_sampler, this); null = off"""


class KLConfig(Section):
    """Detail 1: token-level KL penalty (eq. 3, 19)."""

    coef: float = Field(0.05, ge=0)
    """eta (kl_coef); 0 = off, the KL is still measured"""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """per-token estimate used in the penalty"""
    controller: Literal["fixed", "adaptive"] = "fixed"
    """keep `coef`, or steer it towards `target`"""
    target: float = Field(6.0, gt=0)
    """adaptive: KL to hold, in nats per response"""
    horizon: int = Field(10000, ge=1)
    """adaptive: samples over which a 100% error changes the coefficient by at most 20%"""


class RewardShapingConfig(Section):
    """Details 4 and 5: what happens to the score before the KL penalty is added."""

    scale: bool = False
    """detail 4: divide by the running std, keep the mean"""
    normalise: bool = True
    """detail 5: subtract the historical mean and divide by the historical std (eq. 18)"""
    clip: float | None = Field(0.8, gt=0)
    """detail 5: clip the score to +- this after scaling or normalising; null = off"""
    missing_eos_penalty: float = Field(0.0, ge=0)
    """subtracted from the score of a response that hit the length limit"""
    length_penalty: float = Field(0.0, ge=0)
    """subtracted from the score for each response token"""


class AdvantageConfig(Section):
    """Detail 6: advantages, per minibatch and over valid tokens only."""

    normalise: bool = False
    """subtract the mean and divide by the std"""
    clip: float | None = Field(None, gt=0)
    """clip to +- this after normalising; null = off"""
    std: Literal["unbiased", "biased"] = "unbiased"
    """unbiased std with eps 1e-8, or the released code's biased variance with eps 1e-6"""


class GAEConfig(Section):
    """Detail 10: generalised advantage estimation (eq. 9)."""

    gamma: float = Field(1.0, ge=0, le=1)
    """discount"""
    lam: float = Field(0.9, ge=0, le=1)
    """0 = TD (eq. 10), 1 = Monte Carlo (eq. 11)"""
    target: Literal["gae", "reward_to_go"] = "gae"
    """what the critic learns: A + V_old (code, Fig. 1), or the discounted reward-to-go (eq. 16)"""


class SurrogateConfig(Section):
    """Details 2 and 11: the policy's objective."""

    kind: Literal["clip", "penalty", "none"] = "clip"
    """PPO-clip (eq. 15), PPO-penalty (eq. 14), or the bare ratio times advantage"""
    clip_range: float = Field(0.2, gt=0)
    """detail 11: the ratio is clipped to 1 +- this"""
    clip_range_high: float | None = Field(None, gt=0)
    """asymmetric clip: upper side, when it differs from `clip_range`"""
    dual_clip: float | None = Field(None, gt=1)
    """for negative advantages the loss is at most this times |A|; null = off"""
    penalty_coef: float = Field(1.0, ge=0)
    """`penalty`: weight of KL(pi_old || pi)"""
    denominator: Literal["old", "reference"] = "old"
    """detail 2: the ratio's denominator is the policy that sampled, or the reference model"""


class EntropyConfig(Section):
    """Detail 3: entropy bonus."""

    coef: float = Field(0.0, ge=0)
    """weight; 0 = off (.01 in the paper's ablation)"""
    target: float | None = Field(None, gt=0)
    """nats: the loss is coef * |mean entropy - target| as in the released code; null: plain bonus"""


class CriticConfig(Section):
    """Detail 8 and the critic's own training."""

    init: str = "reward"
    """`reward` (the first reward model), `policy` (its backbone with a fresh head), or a model directory"""
    calibrate: bool = True
    """values are less the calibration offset of the reward model that they start from, as its scores are; off: they begin
    that far from what they shall predict"""
    value_clip: float | None = Field(0.2, gt=0)
    """detail 7: values move at most this far from the old ones before the loss is computed; null = off"""
    pretrain_iterations: int = Field(10, ge=0)
    """detail 8: iterations of value loss only, policy frozen; 0 = off"""
    pretrain_plateau: float = Field(0.0, ge=0)
    """end pre-training sooner: once 5 iterations improve on the 5 before by less than this share; 0 = off"""


class GradClipConfig(Section):
    """Detail 12: global gradient norm clip."""

    norm: float = Field(1.0, ge=0)
    """largest norm; 0 = off"""
    joint: bool = False
    """one norm over policy and critic together (released code), or one each"""


class PtxConfig(Section):
    """PPO-ptx (eq. 17): language-modelling loss mixed in against the alignment tax."""

    coef: float = Field(0.0, ge=0)
    """lambda_ptx; 0 = off"""
    data: Mixture = []
    """dialogues (loss on assistant tokens, as released) or plain text"""
    batch_ratio: float = Field(1.0, gt=0)
    """ptx records for each PPO sample of a minibatch"""
    max_length: int = Field(512, ge=8)
    """longest ptx record in tokens"""


class WatchConfig(Section):
    """Fixed held-out prompts, answered at intervals and judged against the reference's answers; and the collapse watch."""

    prompts: Mixture = []
    """held-out prompts; empty: as many of the training data as are needed, taken out of training"""
    eval_prompts: int = Field(16, ge=0)
    """how many are answered in samples.jsonl, the first ones"""
    every: int = Field(10, ge=1)
    """iterations between samples"""
    judge: Annotated[list[JudgeConfig], BeforeValidator(as_judges)] = []
    """what judges: `world`, `llm:MODEL`, or as in `reward` (weighted sum); win rates go to evaluations.jsonl; empty = off"""
    llm: LLMConfig = LLMConfig()
    """how an `llm:MODEL` judge is asked; a key is read from the environment"""
    judge_every: int = Field(10, ge=1)
    """iterations of the policy between evaluations; there is one at the start and one at the end besides"""
    judge_prompts: int = Field(256, ge=1)
    """how many held-out prompts are judged, the first ones"""
    tie_band: float = Field(0.05, ge=0)
    """a difference of the judge's scores up to this is a tie; an LLM names ties itself"""
    baselines: list[Literal["sampled", "greedy"]] = Field(["sampled"], min_length=1)
    """the reference's answers to beat: drawn as the policy draws, or greedily; the first makes eval/win_rate"""
    keep_best: bool = True
    """keep the policy with the highest eval/win_rate in RUN/best"""
    detect: bool = True
    """look for signs of collapse in every iteration's metrics; alarms go to alarms.jsonl"""
    on_collapse: Literal["warn", "stop", "rollback"] = "warn"
    """at an alarm of level collapse: go on, end the run, or go back to the last healthy checkpoint with a larger `kl.coef`"""
    rollback_factor: float = Field(4.0, ge=1)
    """rollback: the KL coefficient is multiplied by this"""
    rollback_kl: float = Field(0.05, gt=0)
    """rollback: the KL coefficient where it was 0"""
    max_rollbacks: int = Field(3, ge=1)
    """rollback: so many times at most; later alarms are told only"""
    webhook: str | None = None
    """address to which alarms are posted as {"text": ...}, or $NAME of an environment variable that holds it"""


class PPOConfig(RunConfig):
    """PPO (sections 3.2, 5). The defaults are the preset `ppo_max`."""

    model: str
    """detail 9: directory or hub name of the policy's start, normally the SFT model; in memory: its name in the card"""
    reference: str | None = None
    """frozen reference model; default: the policy's start"""
    reward: RewardSources = []
    """reward sources: one or a weighted sum"""
    prompts: Mixture = Field(min_length=1)
    """training prompts; pairs and dialogues give their prompts; any name where prompts are in memory"""
    chat_template: ChatTemplate = "model"
    """how dialogues become text"""
    max_prompt_length: int = Field(256, ge=1)
    """longest prompt in tokens"""
    overlong: Literal["drop", "truncate"] = "drop"
    """longer prompts are dropped, or lose their left; either is counted and reported"""
    split_seed: int = 0
    """seed of all hash splits"""
    preset: Literal["ppo_max", "ppo_max_ptx", "vanilla", "vanilla_noclip", "moss_rlhf"] = "ppo_max"
    """named set of algorithm switches; fields given beside it win"""
    iterations: int = Field(100, ge=1)
    """iterations: each draws `rollout_batch` samples and makes their updates"""
    rollout_batch: int = Field(128, ge=1)
    """samples an iteration, over all ranks"""
    minibatch: int = Field(32, ge=1)
    """samples an update, over all ranks"""
    ppo_epochs: int = Field(1, ge=1)
    """passes over the buffer an iteration"""
    buffer_iterations: int = Field(1, ge=1)
    """iterations of samples kept in the buffer: 1 = only fresh ones"""
    micro_batch_tokens: int = Field(2048, ge=1)
    """padded tokens of one forward pass; affects memory and speed only: few are best on a CPU, more on a large GPU"""
    logprobs: Literal["raw", "scaled"] = "raw"
    """log-probabilities of the raw logits (released code), or of logits divided by the sampling temperature"""
    sampling: SamplingConfig = SamplingConfig()
    """how responses are drawn"""
    rollout: RolloutConfig = RolloutConfig()
    """what draws them"""
    kl: KLConfig = KLConfig()
    """detail 1"""
    reward_shaping: RewardShapingConfig = RewardShapingConfig()
    """details 4 and 5"""
    advantage: AdvantageConfig = AdvantageConfig()
    """detail 6"""
    gae: GAEConfig = GAEConfig()
    """detail 10"""
    surrogate: SurrogateConfig = SurrogateConfig()
    """details 2 and 11"""
    entropy: EntropyConfig = EntropyConfig()
    """detail 3"""
    critic: CriticConfig = CriticConfig()
    """details 7 and 8"""
    grad_clip: GradClipConfig = GradClipConfig()
    """detail 12"""
    ptx: PtxConfig = PtxConfig()
    """language-modelling mix"""
    policy_optim: OptimConfig = OptimConfig(lr=1e-5)
    """policy optimiser"""
    critic_optim: OptimConfig = OptimConfig(lr=3e-5)
    """critic optimiser"""
    lora: LoraConfig | None = None
    """adapters for policy and critic; the reference is the policy without its adapter"""
    watch: WatchConfig = WatchConfig()
    """samples of fixed prompts at intervals"""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        """The preset's switches lie under what is given: PPOConfig(preset="vanilla", kl={"coef": 0.1})."""
        if not isinstance(values, Mapping):
            return values
        file = resources.files("ppomax") / "presets" / f"{values.get('preset', 'ppo_max')}.yaml"
        if not file.is_file():  # the field's own check will say so
            return values
        return overlay(yaml.safe_load(file.read_text(encoding="utf-8")) or {}, values)
