"""What lab/*.yaml say: the common start and settings, and for each claim its arms, figure and rule.

lab/common.yaml holds everything that the arms share and that may be tuned; lab/C1.yaml, ... hold one claim each. A rule is
written before the first counted run: its words, the verdict function that applies it, and every threshold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from ppomax.config import Mixture, Section
from ppomax.errors import UserError
from ppomax.layers import did_you_mean
from ppomax.options import resolve

Settings = dict[str, Any]
COLDEST, HOTTEST = 0.05, 3.0
"""bounds within which the endpoint looks for the temperature at which SFT is as sharp as the policy"""
LAB = Path("lab")
CLAIM_FILE = re.compile(r"C([1-9][0-9]*)([a-z]?)\.yaml")


class StartConfig(Section):
    """Stages of an ordinary pipeline (ppomax run) that every arm may refer to: ``${sft}``, ``${world.dir}/text.jsonl``."""

    defaults: Settings = Field({})
    """for every stage that has the field"""
    stages: list[Settings] = Field([])
    """in order; only those that an arm needs are made"""


class EndpointConfig(Section):
    """How a finished policy is judged once more, with many answers."""

    prompts: Mixture = Field(min_length=1)
    """held-out prompts"""
    limit: int = Field(1000, ge=2)
    """how many of them, the first ones"""
    draws: int = Field(2, ge=1)
    """sampled answers of each model to a prompt; greedy answers are the same every time and drawn once"""
    entropy_prompts: int = Field(256, ge=8)
    """prompts on which SFT's entropy is measured while its temperature is matched to the policy's"""
    judge: Any = "ppomax.world.reward:score"
    """the truth: a reward source (module:function, model directory, address)"""
    tie_band: float = Field(0.05, ge=0)
    """a difference of the judge's scores up to this is a tie (absolute, in the judge's units)"""
    second_judge: str | None = None
    """another judge, such as a reward model that PPO never saw: its agreement with the truth is measured (C15)"""
    exam: str | None = None
    """file of multiple-choice questions, answered by policy and SFT (C12); null: no exam"""
    opponent: bool = False
    """also against the world's stronger opponent (C16)"""


class FastConfig(Section):
    """What `--fast` changes: a look in minutes, whose results are kept apart and never counted."""

    iterations: int = Field(12, ge=1)
    """of every arm"""
    seeds: int = Field(1, ge=1)
    """the first so many"""
    ppo: Settings = Field({})
    """over the common settings"""
    endpoint: Settings = Field({})
    """over the endpoint's settings"""
    start: dict[str, Settings] = Field({})
    """stage -> fields, over the start"""


class Common(Section):
    """lab/common.yaml."""

    seeds: list[int] = Field([1, 2, 3, 4, 5], min_length=1)
    """counted seeds; development seeds are 100 and above"""
    iterations: int = Field(100, ge=1)
    """of every arm whose claim says nothing else: arms of several claims are run once if they agree in everything"""
    start: StartConfig = Field(StartConfig())
    """world, base model, SFT, reward model: made once a seed, by `ppomax run`"""
    variants: dict[str, dict[str, Settings]] = Field({})
    """name -> stage -> fields: a start that differs from the common one"""
    ppo: Settings = Field({})
    """settings of PPO that all arms share: learning rates, sizes, sampling, watch"""
    bases: dict[str, Settings] = Field({})
    """name -> PPO settings that arms start from"""
    endpoint: EndpointConfig
    """the last, thorough evaluation"""
    fast: FastConfig = FastConfig()
    """`--fast`"""


class Arm(Section):
    """One curve of a figure."""

    base: str
    """which of common.yaml's bases it starts from"""
    ppo: Settings = Field({})
    """over the base"""
    variant: str | None = None
    """which of common.yaml's variants of the start it uses; null: the common start"""
    seeds: int | None = Field(None, ge=1)
    """at most so many seeds, where the rule needs no more; null: the claim's"""
    note: str = ""
    """what it is for, where the settings do not say it"""


class FastArms(Section):
    """The part of a claim that `--fast` runs."""

    arms: list[str] = Field([])
    """which arms; empty: none, the claim is left out"""
    iterations: int | None = Field(None, ge=1)
    """null: common.yaml's"""


class Rule(Section):
    """How results become a verdict; written before the runs."""

    words: str
    """the rule in words"""
    function: str
    """name in ppomax/lab/verdicts.py"""
    seeds: int = Field(3, ge=1)
    """with fewer seeds of every arm that the rule needs, it is inconclusive"""
    thresholds: Settings = Field({})
    """arms and numbers that the function is given"""


class Claim(Section):
    """lab/C1.yaml and its like: one claim of the paper."""

    claim: str
    """in words"""
    figure: str
    """of the paper"""
    iterations: int | None = Field(None, ge=1)
    """null: common.yaml's"""
    seeds: int = Field(3, ge=1)
    """how many of the counted seeds are run"""
    own_seeds: list[int] = Field([])
    """counted seeds of its own, where a claim is tried again with other settings; empty: common.yaml's"""
    arms: dict[str, Arm] = Field(min_length=1)
    """name -> arm"""
    metrics: list[str] = Field(["eval/win_rate", "eval/reward", "eval/kl_k3", "eval/length"], min_length=1)
    """what the figure shows, a panel each, over training"""
    rule: Rule
    """when the claim counts as reproduced"""
    fast: FastArms = FastArms()
    """the `--fast` part"""
    notes: str = ""
    """how the arms test the claim here, and what they cannot test"""


def read_common(path: Path) -> Common:
    """lab/common.yaml, or a file like it."""
    return resolve(Common, yaml_path=str(path))


def read_claims(folder: Path, common: Common) -> dict[str, Claim]:
    """All claims of a folder by name, in the order of their numbers; every arm's base and variant must exist."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: run this in the repository, or name the claims' folder with --lab DIR")
    files = [(int(m[1]), m[2], path) for path in folder.iterdir() if (m := CLAIM_FILE.fullmatch(path.name))]
    claims = {path.stem: resolve(Claim, yaml_path=str(path)) for *_, path in sorted(files)}
    if not claims:
        raise UserError(f"{folder}: no claim in it (C1.yaml and its like)")
    for name, claim in claims.items():
        where = folder / f"{name}.yaml"
        for arm_name, arm in claim.arms.items():
            _known(arm.base, common.bases, f"{where}: arms.{arm_name}.base")
            if arm.variant is not None:
                _known(arm.variant, common.variants, f"{where}: arms.{arm_name}.variant")
        for arm_name in claim.fast.arms:
            _known(arm_name, claim.arms, f"{where}: fast.arms")
    return claims


def choose(claims: Mapping[str, Claim], names: Sequence[str]) -> list[str]:
    """The named claims (``C1``, ``c1`` or ``1``; none: all), in order."""
    wanted: set[str] = set()
    for name in names:
        full = f"C{name.lower().removeprefix('c')}"
        _known(full, claims, "claim")
        wanted.add(full)
    return [name for name in claims if name in wanted or not names]


def _known(name: str, known: Mapping[str, Any], where: str) -> None:
    if name not in known:
        hint = did_you_mean(name, list(known)) or f"; choose from {', '.join(known) or 'none'}"
        raise UserError(f"{where}: unknown name {name!r}{hint}")


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> Settings:
    """``above`` over ``below``, mapping by mapping; dashes in names are underscores."""
    merged = dict(below)
    for raw, value in above.items():
        name = raw.replace("-", "_")
        old = merged.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[name] = overlay(old, value) if both else overlay({}, value) if isinstance(value, Mapping) else value  # type: ignore[arg-type]
    return merged
