"""The twelve implementation details (Fig. 5 of the paper): state in each preset, options, code, metric to watch.

States are computed from the resolved presets and lines are looked up in the source, so the table cannot go stale.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ppomax.config import PPOConfig
from ppomax.layers import defaults, merge, preset_layer, preset_names


@dataclass(frozen=True)
class Detail:
    """One row. ``state`` says what a configuration makes of it; "off" where it does nothing."""

    number: str
    name: str
    starred: bool
    """part of PPO-max in Fig. 5"""
    options: tuple[str, ...]
    state: Callable[[PPOConfig], str]
    code: tuple[str, ...]
    """``module:function`` below ppomax"""
    metrics: tuple[str, ...]


def _off(value: float | None, text: str) -> str:
    return text if value else "off"


def _kl(c: PPOConfig) -> str:
    return _off(c.kl.coef, f"{c.kl.coef:g} {c.kl.estimator}" + (" adaptive" if c.kl.controller == "adaptive" else ""))


def _entropy(c: PPOConfig) -> str:
    target = "" if c.entropy.target is None else f", target {c.entropy.target:g} nats"
    return _off(c.entropy.coef, f"{c.entropy.coef:g}{target}")


def _reward(c: PPOConfig) -> str:
    clip = "no clip" if c.reward_shaping.clip is None else f"clip {c.reward_shaping.clip:g}"
    if c.reward_shaping.normalise:
        return f"on, {clip}"
    return "off" if c.reward_shaping.clip is None else f"{clip} only"


def _advantage(c: PPOConfig) -> str:
    clip = "" if c.advantage.clip is None else f"clip {c.advantage.clip:g}"
    if c.advantage.normalise:
        return ", ".join(filter(None, ("on", c.advantage.std if c.advantage.std == "biased" else "", clip)))
    return f"{clip} only" if clip else "off"


def _critic(c: PPOConfig) -> str:
    pretrained = f", pre-trained {c.critic.pretrain_iterations} it." if c.critic.pretrain_iterations else ""
    return f"from {c.critic.init}{pretrained}"


def _surrogate(c: PPOConfig) -> str:
    s = c.surrogate
    if s.kind != "clip":
        return "off" if s.kind == "none" else f"penalty {s.penalty_coef:g}"
    high = "" if s.clip_range_high is None else f"/+{s.clip_range_high:g}"
    return f"clip {s.clip_range:g}{high}" + ("" if s.dual_clip is None else f", dual {s.dual_clip:g}")


def _gae(c: PPOConfig) -> str:
    return f"lam {c.gae.lam:g}" + ("" if c.gae.gamma == 1 else f", gamma {c.gae.gamma:g}") + (
        "" if c.gae.target == "gae" else ", target reward-to-go"
    )  # fmt: skip


DETAILS = (
    Detail("1", "token-level KL penalty", True, ("kl.coef", "kl.estimator", "kl.controller"), _kl,
           ("rl.rewards:token_rewards", "rl.rewards:kl_estimate"), ("kl/ref", "kl/ref_k3", "kl/coef")),
    Detail("2", "importance sampling", False, ("surrogate.denominator",),
           lambda c: f"ratio to {c.surrogate.denominator}",
           ("train.ppo_update:policy_token_losses", "rl.losses:importance_ratio"),
           ("policy/ratio_deviation", "policy/approx_kl")),
    Detail("3", "entropy bonus", False, ("entropy.coef", "entropy.target"), _entropy,
           ("rl.losses:entropy_loss",), ("policy/entropy", "loss/entropy")),
    Detail("4", "reward scaling", False, ("reward_shaping.scale",),
           lambda c: "on" if c.reward_shaping.scale else "off",
           ("rl.rewards:shape_scores", "rl.moments:RunningMoments"), ("reward/history_std", "reward/shaped_mean")),
    Detail("5", "reward normalisation and clip", True, ("reward_shaping.normalise", "reward_shaping.clip"), _reward,
           ("rl.rewards:shape_scores", "rl.moments:RunningMoments"), ("reward/clip_fraction", "reward/shaped_mean", "reward/history_mean")),
    Detail("6", "advantage normalisation and clip", False,
           ("advantage.normalise", "advantage.clip", "advantage.std"), _advantage,
           ("train.ppo_update:minibatch_advantages", "rl.moments:whiten"),
           ("advantage/clip_fraction", "loss/policy", "grad_norm/policy")),
    Detail("7", "value-loss clip", True, ("critic.value_clip",),
           lambda c: _off(c.critic.value_clip, f"{c.critic.value_clip or 0:g}"),
           ("rl.losses:value_loss",), ("value/clip_fraction", "loss/value", "value/explained_variance")),
    Detail("8", "critic initialisation", True,
           ("critic.init", "critic.pretrain_iterations", "critic.pretrain_plateau"), _critic,
           ("train.ppo_setup:_critic", "train.ppo:pretraining_done"), ("value/explained_variance", "loss/value")),
    Detail("9", "policy initialisation", False, ("model",), lambda c: "as `model` says",
           ("train.ppo_setup:prepare",), ("policy/perplexity", "response/length")),
    Detail("10", "GAE", True, ("gae.lam", "gae.gamma", "gae.target"), _gae,
           ("rl.advantages:gae", "rl.advantages:reward_to_go"), ("value/explained_variance", "loss/policy")),
    Detail("11", "clipped surrogate", True,
           ("surrogate.kind", "surrogate.clip_range", "surrogate.clip_range_high", "surrogate.dual_clip"), _surrogate,
           ("rl.losses:surrogate_loss", "rl.losses:penalty_loss"), ("policy/clip_fraction", "policy/approx_kl")),
    Detail("12", "global gradient clip", True, ("grad_clip.norm", "grad_clip.joint"),
           lambda c: _off(c.grad_clip.norm, f"{c.grad_clip.norm:g}" + (" joint" if c.grad_clip.joint else "")),
           ("train.optim:clip_gradients",),
           ("grad_norm/policy", "grad_norm/critic", "grad_norm/policy_clipped", "grad_norm/critic_clipped")),
    Detail("ptx", "language-modelling mix (eq. 17)", False, ("ptx.coef", "ptx.data", "ptx.batch_ratio"),
           lambda c: _off(c.ptx.coef, f"{c.ptx.coef:g}"), ("train.ppo_update:Updater._ptx",), ("loss/ptx",)),
)  # fmt: skip
"""Details 1 to 12, and the ptx mix, which is no numbered detail but belongs to PPO-max"""


def preset_configs() -> dict[str, PPOConfig]:
    """Every preset resolved, with placeholders for what a run must give."""
    given = {"model": "MODEL", "prompts": "PROMPTS", "output_dir": "RUN"}
    configs = {}
    for name in preset_names():
        values = merge(PPOConfig, defaults(PPOConfig), preset_layer(name))
        configs[name] = PPOConfig.model_validate({**values, **given, "preset": name})
    return configs


@cache
def _lines(module: str) -> tuple[str, dict[str, int]]:
    """File of a module, and the lines of its functions, classes and methods; nothing is imported but the package."""
    spec = importlib.util.find_spec(f"ppomax.{module}")
    assert spec is not None and spec.origin is not None
    found: dict[str, int] = {}
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node.lineno
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{sub.name}": sub.lineno for sub in node.body if isinstance(sub, ast.FunctionDef)}
    return f"ppomax/{module.replace('.', '/')}.py", found


def place(code: str) -> str:
    """``rl.losses:value_loss`` as ``ppomax/rl/losses.py:51 value_loss``."""
    module, _, function = code.partition(":")
    file, lines = _lines(module)
    return f"{file}:{lines[function]} {function}"


def preset_rows(configs: Mapping[str, PPOConfig]) -> list[list[str]]:
    """(number, name, state in each configuration)."""
    return [
        [d.number + ("*" if d.starred else ""), d.name, *(d.state(config) for config in configs.values())]
        for d in DETAILS
    ]


def code_rows() -> list[tuple[str, tuple[str, ...], list[str], tuple[str, ...]]]:
    """(number, options, code places, metrics)."""
    return [(d.number, d.options, [place(code) for code in d.code], d.metrics) for d in DETAILS]


NOTE = "* = part of PPO-max in Fig. 5. The presets are ours: the paper names the details but not all their values."


def markdown(configs: Mapping[str, PPOConfig]) -> str:
    """Both tables for a documentation page."""

    def row(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    names = ["#", "detail", *(f"`{name}`" for name in configs)]
    lines = [row(names), row(["---"] * len(names)), *map(row, preset_rows(configs)), "", NOTE, ""]
    lines += [row(["#", "options", "code", "metrics"]), row(["---"] * 4)]
    for number, options, code, metrics in code_rows():
        lines.append(row([number, *("<br>".join(f"`{cell}`" for cell in cells) for cells in (options, code, metrics))]))
    return "\n".join(lines)
