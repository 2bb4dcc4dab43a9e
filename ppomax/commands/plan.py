"""``ppomax plan [CONFIG.yaml] --model SHAPE --devices 8x80GB``: memory, seconds and settings that fit, before a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppomax import yaml_tree
from ppomax.commands.stage import sort_words
from ppomax.config import PPOConfig, Section
from ppomax.errors import UserError
from ppomax.layers import Layer, words_to_layers
from ppomax.options import build, resolve
from ppomax.plan.devices import KINDS, Devices, Rates, Shares, parse_devices
from ppomax.yaml_tree import Tree

if TYPE_CHECKING:
    from ppomax.plan.memory import Work
    from ppomax.plan.search import Plan

GIB = 2**30


class PlanConfig(Section):
    """Of the devices; every option of `ppomax ppo` may stand beside these, and describes the run that is planned."""

    devices: str
    """what there is: 8x80GB (devices x memory), 8xh100, 8x8x80GB (nodes x devices x memory), cpu"""
    device_type: str | None = None
    """a100, a100-40gb, h100, h200, b200, l40s, rtx-4090 or cpu: whose speed is assumed; null: by the memory"""
    rates: Rates = Rates()
    """rates of one device where you know better than its type's"""
    shares: Shares = Shares()
    """what is reached of the rates, and what is lost"""
    show: int = Field(6, ge=1)
    """so many of the settings that fit, fastest first"""


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of the plan itself, and those of the run."""
    own: list[str] = []
    rest: list[str] = []
    into = rest
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].partition(".")[0].replace("-", "_")
            into = own if name in PlanConfig.model_fields else rest
        into.append(word)
    return own, rest


def run_config(words: Sequence[str], yaml_path: str | None) -> PPOConfig:
    """The PPO configuration that is planned; prompts and output_dir, which a plan does not read, need not be given."""
    layers = [Layer("plan", Tree(value={"prompts": "none", "output_dir": "none"}))]
    if yaml_path is not None:
        tree = yaml_tree.read(yaml_path)
        if not isinstance(tree.value, dict):
            raise UserError(f"{yaml_path}: a mapping of fields to values is expected")
        layers.append(Layer(yaml_path, tree))
    layers += words_to_layers(PPOConfig, words)
    return build(PPOConfig, layers)


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, ["--json"])
    if "--help" in given.switches:
        from ppomax.options_help import help_text

        print(help_text(PlanConfig, verb))
        return 0
    if len(given.leading) > 1:
        raise UserError(f"unexpected word {given.leading[1]!r}: one configuration is planned")
    own, rest = split_words(given.options)
    config = resolve(PlanConfig, own, words_alone=True)
    devices = parse_devices(config.devices, config.rates, config.device_type)
    run = run_config(rest, given.leading[0] if given.leading else None)

    from ppomax.plan.search import best, least, plan, remedies
    from ppomax.plan.work import settings_of, work_of

    work, settings = work_of(run), settings_of(run)
    if devices.count > min(work.rollout_batch, work.minibatch):
        raise UserError(
            f"devices = {config.devices!r}: {devices.count} ranks share minibatches of {work.minibatch} of "
            f"{work.rollout_batch} samples, so some would have none; raise --minibatch and --rollout_batch"
        )
    asked = plan(work, settings, devices, config.shares)
    fitting = best(work, settings, devices, config.shares)
    if "--json" in given.switches:
        said = as_json(work, devices, config.shares, asked, fitting[: config.show])
        if not fitting:
            said["least"] = _plan_json(least(work, settings, devices, config.shares))
            said["what_would_fit"] = remedies(work, settings, devices, config.shares)
        print(json.dumps(said, indent=2))
        return 0
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    console.print(Text("\n".join(head(work, devices, config.shares))))
    console.print(memory_table(asked))
    console.print(Text(verdict(asked, devices)))
    if fitting:
        console.print(fit_table(fitting[: config.show]))
    else:
        tightest = least(work, settings, devices, config.shares)
        console.print(Text(nothing_fits(tightest, devices), style="bold"))
        console.print(Text("what would fit: " + "; ".join(remedies(work, settings, devices, config.shares))))
    return 0


# ------------------------------------------------------------------------------------------------- in words


def gib(count: float) -> str:
    """Three digits, in GiB or, where that is little, in MiB."""
    if count == 0:
        return "."
    return f"{count / GIB:.1f}" if count >= 100 * GIB / 1024 else f"{count / GIB:.3f}"


def head(work: Work, devices: Devices, shares: Shares) -> list[str]:
    """What is planned, and everything that is assumed."""
    billions = f"{work.policy.causal / 1e9:.3g}" if work.policy.causal >= 1e8 else f"{work.policy.causal / 1e9:.4f}"
    kind = KINDS[devices.kind]
    server = [f"responses: from a vLLM server on {devices.per_node} more such devices"] if work.server else []
    frozen = ", ".join(
        [*(["the reference"] if work.reference else []), *(f"reward model {s.name}" for s in work.rewards)]
    )
    nodes = f"{devices.nodes} nodes x {devices.per_node}" if devices.nodes > 1 else f"{devices.count}"
    return [
        f"{work.policy.name}: {billions} billion parameters, critic {work.critic.name}, frozen: {frozen or 'none'}; "
        f"{work.precision}",
        f"an iteration: {work.rollout_batch} samples of {work.prompt} + {work.response} tokens (all at their longest), "
        f"{work.updates} updates of {work.minibatch}",
        *server,
        f"devices: {nodes} of {devices.memory / GIB:.0f} GiB, {devices.usable(shares) / GIB:.1f} of them for tensors; "
        f"speed of {kind.about}:",
        f"  {devices.bf16_flops / 1e12:g} TFLOP/s bf16, {devices.float32_flops / 1e12:g} float32, memory "
        f"{devices.memory_rate / 1e9:g} GB/s, links {devices.link_rate / 1e9:g} GB/s, network {devices.network_rate / 1e9:g} GB/s",
        f"assumed shares: update {shares.update:.0%}, score {shares.score:.0%}, decode {shares.decode:.0%} of the memory's rate, "
        f"links {shares.link:.0%}; {shares.layer_us:g} us a layer and token at least. Formulas: docs/plan.md",
    ]


def memory_table(asked: Plan) -> Table:
    """GiB of one device by part and phase."""
    from ppomax.plan.memory import PARTS

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title="GiB on each device, settings as given")
    table.add_column("part")
    phases = asked.memory.phases
    for phase in phases:
        table.add_column(phase, justify="right", style="bold" if phase == asked.memory.peak_phase else "")
    table.add_column("", style="dim", overflow="fold")
    for part, about in PARTS.items():
        if not any(parts[part] for parts in phases.values()):
            continue
        table.add_row(part, *(gib(phases[phase][part]) for phase in phases), about)
    table.add_row("total", *(gib(asked.memory.total(phase)) for phase in phases), "", style="bold")
    table.add_row(
        "seconds", *(f"{asked.seconds[p]:.3g}" if p in asked.seconds else "" for p in phases), "step: in update"
    )
    return table


def verdict(asked: Plan, devices: Devices) -> str:
    """Whether the settings as given fit, and the whole iteration's seconds."""
    options = ", ".join(f"{name} {shown(value)}" for name, value in asked.settings.options().items())
    over = asked.memory.peak - asked.room
    fits = f"fits, {-over / GIB:.1f} GiB are left" if over <= 0 else f"does not fit: {over / GIB:.1f} GiB too much"
    host = f"; {asked.memory.host * devices.per_node / GIB:.0f} GiB of a node's own memory" if asked.memory.host else ""
    return (
        f"{options}\n  {fits} (peak {asked.memory.peak / GIB:.1f} of {asked.room / GIB:.1f} GiB, while it does: "
        f"{asked.memory.peak_phase}){host}; {asked.seconds['total']:.3g} s an iteration"
    )


def shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def fit_table(fitting: Sequence[Plan]) -> Table:
    """Settings that fit, fastest first, one line for each way to divide the work."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title="settings that fit, fastest first")
    for name in fitting[0].settings.options():
        table.add_column(name.replace("activation_checkpointing", "act._checkpointing"))
    for name in ("GiB", "sample s", "score s", "update s", "total s"):
        table.add_column(name, justify="right")
    for found in fitting:
        table.add_row(
            *(shown(value) for value in found.settings.options().values()), f"{found.memory.peak / GIB:.1f}",
            *(f"{found.seconds[phase]:.3g}" for phase in ("sample", "score", "update", "total")),
        )  # fmt: skip
    return table


def nothing_fits(tightest: Plan, devices: Devices) -> str:
    over = (tightest.memory.peak - tightest.room) / GIB
    options = ", ".join(f"{name} {shown(value)}" for name, value in tightest.settings.options().items())
    return (
        f"nothing fits on {devices.count} of {devices.memory / GIB:.0f} GiB: the tightest settings ({options}) need "
        f"{tightest.memory.peak / GIB:.1f} GiB, {over:.1f} too much"
    )


# -------------------------------------------------------------------------------------------------- as JSON


def _plan_json(found: Plan) -> dict[str, Any]:
    return {
        "settings": found.settings.options(),
        "memory_bytes": found.memory.phases,
        "host_bytes": found.memory.host,
        "peak_bytes": found.memory.peak,
        "peak_phase": found.memory.peak_phase,
        "room_bytes": found.room,
        "fits": found.fits,
        "seconds": found.seconds,
    }


def as_json(work: Work, devices: Devices, shares: Shares, asked: Plan, fitting: Sequence[Plan]) -> dict[str, Any]:
    """Everything the tables say, and the shapes behind it."""
    return {
        "work": asdict(work),
        "devices": {**asdict(devices), "count": devices.count},
        "shares": shares.model_dump(),
        "given": _plan_json(asked),
        "fits": [_plan_json(found) for found in fitting],
    }
