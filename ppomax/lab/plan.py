"""From claims to runs: every arm and seed resolved, its start named by content, identical ones found.

A stage of the start is named after a hash of what it is made from (its settings, its seed, the stages it uses, the world's
code), as ``sft-1a2b3c4d``: whatever changes gets a new name, whatever does not is made once. ``${sft}`` in a setting is
the stage of the run's own seed, ``${sft@next}`` that of the next seed. A run's key is a hash of its PPO settings (but for
places and speed) and of its last evaluation, in which stages stand by name; settings at their defaults do not count, so
that a new option of ppomax leaves old results valid, while a changed default is found by comparing with the header.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ppomax import pipeline
from ppomax.config import PPOConfig, Section
from ppomax.errors import UserError
from ppomax.lab.claims import Claim, Common, EndpointConfig, Settings, overlay
from ppomax.layers import defaults, did_you_mean
from ppomax.options import from_mapping

REFERENCE = re.compile(r"\$\{([A-Za-z0-9_]+)(@next)?(\.dir)?\}")
SPEED = (
    "output_dir", "device", "checkpoint", "micro_batch_tokens", "sampling.batch_size", "watch.keep_best", "trackers",
    "tracker_project", "tracker_name",
)  # fmt: skip
"""PPO settings that change where and how fast, not what"""
BEFORE = {"critic.calibrate": False}
"""what settings that came after the first counted runs are in these, and so in `lab/common.yaml`: keys stay as they were"""
STARTS = "starts"
SHARED = "shared"


@dataclass(frozen=True)
class Stage:
    """A stage of one seed's start, named by content. References in ``fields`` are to other such names."""

    name: str
    seed: int
    kind: str
    fields: Settings = field(hash=False)
    uses: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """Below the lab's working folder."""
        return f"{STARTS}/seed-{self.seed}"


@dataclass
class Run:
    """One arm with one seed."""

    arm: str
    seed: int
    claims: list[str]
    """claims that this run serves"""
    variant: str | None
    settings: Settings
    """PPO settings; stages by name (``${sft-1a2b3c4d}``), or plain places where the start was given"""
    endpoint: Settings
    stages: dict[str, Stage]
    """every stage it needs, by place, in the order in which they are made"""
    overrides: Settings
    """what the arm itself says: base, PPO settings, variant"""
    config: PPOConfig
    """the resolved settings, with stages by name"""
    key: str = ""

    def __post_init__(self) -> None:
        self.key = run_key(self.config, self.endpoint)

    @property
    def name(self) -> str:
        """As a file: ``C4/eta_02-seed1-1a2b3c4d5e``; runs of several claims lie in ``shared``."""
        place = self.claims[0] if len(self.claims) == 1 else SHARED
        return f"{place}/{self.arm}-seed{self.seed}-{self.key}"

    @property
    def iterations(self) -> int:
        """Those of the critic alone included."""
        return self.config.iterations + self.config.critic.pretrain_iterations

    def identity(self) -> dict[str, Any]:
        """Dotted name -> value of everything that makes this run what it is."""
        return identity(self.config, self.endpoint)


@dataclass(frozen=True)
class Mode:
    """How the claims are run this time."""

    fast: bool = False
    given: Mapping[str, str] = field(default_factory=dict)
    """stage -> place, where the start is given (a real model) instead of made"""
    ppo: Settings = field(default_factory=dict)
    """over everything: what the command line says"""
    endpoint: Settings = field(default_factory=dict)
    """over the endpoint's settings"""


class Planner:
    """Resolves arms; remembers stages, since most arms share them."""

    def __init__(self, common: Common, mode: Mode | None = None) -> None:
        self.common, self.mode = common, mode or Mode()
        self.raw = {str(stage.get("name")): stage for stage in common.start.stages}
        self._made: dict[tuple[str, int, str | None], Stage] = {}
        self._configs: dict[str, PPOConfig] = {}
        self._endpoints: set[str] = set()
        self.left_out: list[str] = []

    def runs(
        self, claims: Mapping[str, Claim], chosen: Sequence[str], seeds: Sequence[int] | None = None
    ) -> dict[str, dict[str, dict[int, Run]]]:
        """Claim -> arm -> seed -> run, for the chosen claims; an identical run of several claims is one object.

        ``claims`` are all there are: they decide which runs are shared, whatever is chosen. ``seeds``: instead of the
        claims' own; a claim with seeds of its own takes as many of these for counted ones. Where the start is given,
        arms that need more than was given are left out (``left_out``).
        """
        self.left_out = []
        serves: dict[str, list[str]] = {}  # key with the first seed -> claims
        names: dict[str, str] = {}
        first: dict[tuple[str, str], str] = {}
        for name, claim in claims.items():
            for arm in self.arms(claim):
                try:
                    key = self.run(name, claim, arm, self.common.seeds[0]).key
                except UserError as error:
                    if not self.mode.given:
                        raise
                    if name in chosen:
                        self.left_out.append(str(error))
                    continue
                first[name, arm] = key
                names.setdefault(key, arm)
                if name not in serves.setdefault(key, []):
                    serves[key].append(name)
        made: dict[str, Run] = {}
        out: dict[str, dict[str, dict[int, Run]]] = {}
        for name in chosen:
            for arm in self.arms(claims[name]):
                if (name, arm) not in first:
                    continue
                for seed in self.seeds(claims[name], seeds)[: claims[name].arms[arm].seeds]:
                    run = self.run(name, claims[name], arm, seed)
                    run.claims, run.arm = serves[first[name, arm]], names[first[name, arm]]
                    out.setdefault(name, {}).setdefault(arm, {})[seed] = made.setdefault(run.key, run)
        return out

    def arms(self, claim: Claim) -> list[str]:
        return list(claim.fast.arms) if self.mode.fast else list(claim.arms)

    def seeds(self, claim: Claim, asked: Sequence[int] | None = None) -> Sequence[int]:
        counted = claim.own_seeds or self.common.seeds
        if asked is None:
            return counted[: self.common.fast.seeds if self.mode.fast else claim.seeds]
        own = bool(claim.own_seeds) and set(asked) <= set(self.common.seeds)
        return counted[: len(asked)] if own else asked

    def next_seed(self, seed: int) -> int:
        """The counted seeds follow one another in a circle; others go up."""
        seeds = self.common.seeds
        return seeds[(seeds.index(seed) + 1) % len(seeds)] if seed in seeds else seed + 1

    def run(self, claim_name: str, claim: Claim, arm_name: str, seed: int) -> Run:
        """One arm with one seed. UserError names claim and arm."""
        common, arm, fast = self.common, claim.arms[arm_name], self.mode.fast
        iterations = claim.iterations or common.iterations
        if fast:
            iterations = claim.fast.iterations or common.fast.iterations
        layers = [common.ppo, common.bases[arm.base], common.fast.ppo if fast else {}, {"iterations": iterations}]
        layers += [arm.ppo, self.mode.ppo, {"seed": seed, "output_dir": "lab"}]
        ppo: Settings = {}
        for layer in layers:
            ppo = overlay(ppo, layer)
        endpoint = overlay(common.endpoint.model_dump(), common.fast.endpoint if fast else {})
        endpoint = overlay(endpoint, self.mode.endpoint)
        where = f"{claim_name}, arm {arm_name}"
        if self.mode.given and arm.variant is not None:
            raise UserError(f"{where}: needs the variant {arm.variant} of the start, and the start was given")
        stages: dict[str, Stage] = {}
        try:
            ppo, endpoint = (self._name_stages(tree, seed, arm.variant, stages) for tree in (ppo, endpoint))
            config = self._checked(ppo, endpoint)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        overrides = {"base": arm.base, "ppo": arm.ppo, **({"variant": arm.variant} if arm.variant else {})}
        return Run(arm_name, seed, [claim_name], arm.variant, ppo, endpoint, stages, overrides, config)

    def _checked(self, ppo: Settings, endpoint: Settings) -> PPOConfig:
        """The settings as a configuration. Most arms occur in several claims: each is checked once."""
        judged, asked = (json.dumps(tree, sort_keys=True, default=str) for tree in (endpoint, ppo))
        if judged not in self._endpoints:
            from_mapping(EndpointConfig, endpoint, origin="endpoint")
            self._endpoints.add(judged)
        if asked not in self._configs:
            self._configs[asked] = from_mapping(PPOConfig, ppo, origin="settings")
        return self._configs[asked]

    def _name_stages(self, tree: Any, seed: int, variant: str | None, stages: dict[str, Stage]) -> Any:
        """``${sft}`` -> ``${sft-1a2b3c4d}``, or the place where it was given; the stages needed are collected."""

        def one(match: re.Match[str]) -> str:
            name, other, directory = match.groups()
            if name in self.mode.given and not other:
                return self.mode.given[name]
            if self.mode.given:
                raise UserError(f"needs {match[0]}, which was not given (--given {name}=PLACE)")
            stage = self.stage(name, self.next_seed(seed) if other else seed, variant)
            for used in self._closure(stage, variant):  # a world may be the same for all seeds: one in each root
                stages.setdefault(f"{used.root}/{used.name}", used)
            return f"${{{stage.name}{directory or ''}}}"

        return _walk(tree, one)

    def stage(self, name: str, seed: int, variant: str | None) -> Stage:
        """A stage of the start by its plain name."""
        if (name, seed, variant) in self._made:
            return self._made[name, seed, variant]
        if name not in self.raw:
            raise UserError(f"${{{name}}}: no stage of the start is called so{did_you_mean(name, list(self.raw))}")
        own = self.raw[name]
        kind = str(own.get("kind", "")).replace("_", "-")
        if kind not in pipeline.KINDS:
            raise UserError(f"start: stage {name}: unknown kind {kind!r}; choose from {', '.join(pipeline.KINDS)}")
        known = pipeline.load(pipeline.KINDS[kind].config).model_fields
        shared = {k: v for k, v in {"seed": seed, **self.common.start.defaults}.items() if k in known}
        fields = overlay(shared, {k: v for k, v in own.items() if k not in ("name", "kind")})
        if variant is not None:
            fields = overlay(fields, self.common.variants[variant].get(name, {}))
        if self.mode.fast:
            fields = overlay(fields, self.common.fast.start.get(name, {}))
        uses: list[str] = []
        before = list(self.raw)[: list(self.raw).index(name)]

        def rename(match: re.Match[str]) -> str:
            if match[1] not in before:
                raise UserError(f"start: stage {name}: {match[0]} is no earlier stage")
            used = self.stage(match[1], seed, variant)
            uses.append(used.name)
            return f"${{{used.name}{match[3] or ''}}}"

        fields = _walk(fields, rename)
        code = world_code() if kind == "world" else ""
        # where it runs is no part of what it is
        content = {k: v for k, v in fields.items() if k not in ("device", "checkpoint", "micro_batch_tokens")}
        digest = _digest([kind, content, code])[:8]
        made = Stage(f"{name}-{digest}", seed, kind, fields, tuple(dict.fromkeys(uses)))
        self._made[name, seed, variant] = made
        return made

    def _closure(self, stage: Stage, variant: str | None) -> Iterator[Stage]:
        """The stage after everything that it needs."""
        for used in stage.uses:
            yield from self._closure(self.stage(used.rsplit("-", 1)[0], stage.seed, variant), variant)
        yield stage


# ------------------------------------------------------------------------------------------- identity


def plain_values() -> dict[str, Any]:
    """Dotted name -> what a run has where nothing else is said."""
    return {**flatten(defaults(PPOConfig)), **BEFORE, **flatten({"endpoint": defaults(EndpointConfig)})}


def run_key(config: PPOConfig, endpoint: Mapping[str, Any]) -> str:
    """Hash of everything that is not at its default."""
    plain = plain_values()
    own = {k: v for k, v in identity(config, endpoint).items() if k not in plain or plain[k] != v}
    return _digest(own)[:10]


def identity(config: PPOConfig, endpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> value, without places and speed."""
    flat = {**flatten(config.model_dump(mode="json")), **flatten({"endpoint": endpoint})}
    return {k: v for k, v in flat.items() if not any(k == s or k.startswith(f"{s}.") for s in SPEED)}


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names; sections and tuples become plain data."""
    if isinstance(tree, Section):
        tree = tree.model_dump(mode="json")
    if isinstance(tree, Mapping) and (tree or not prefix):
        return {k: v for name, below in tree.items() for k, v in flatten(below, f"{prefix}{name}.").items()}
    return {prefix[:-1]: json.loads(json.dumps(tree, default=lambda x: x.model_dump(mode="json")))}


@cache
def world_code() -> str:
    """Version and hash of what the world says and judges."""
    from ppomax.world import VERSION, fingerprint

    return f"{VERSION}/{fingerprint()}"


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _walk(value: Any, replace: Any) -> Any:
    if isinstance(value, str):
        return REFERENCE.sub(replace, value)
    if isinstance(value, Mapping):
        return {k: _walk(v, replace) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(v, replace) for v in value]
    return value


# --------------------------------------------------------------------------------------------- places


NAMED = re.compile(r"\$\{([A-Za-z0-9_]+-[0-9a-f]{8})(\.dir)?\}")


def placed(tree: Any, stages: Mapping[str, Stage], work: Path) -> Any:
    """Names of stages -> where they lie below the working folder."""
    named = {stage.name: stage for stage in stages.values()}

    def one(match: re.Match[str]) -> str:
        stage = named[match[1]]
        folder = work / stage.root / stage.name
        return str(folder if match[2] else folder / pipeline.KINDS[stage.kind].product)

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return NAMED.sub(one, value)
        if isinstance(value, Mapping):
            return {k: walk(v) for k, v in value.items()}
        return [walk(v) for v in value] if isinstance(value, list | tuple) else value

    return walk(tree)


def start_pipelines(stages: Mapping[str, Stage], work: Path) -> dict[str, Settings]:
    """Root folder -> an ordinary pipeline (for ``ppomax run``) that makes these stages there, one root a seed."""
    out: dict[str, Settings] = {}
    for stage in stages.values():
        root = str(work / stage.root)
        made = out.setdefault(root, {"output_dir": root, "stages": []})
        made["stages"].append({"name": stage.name, "kind": stage.kind, **stage.fields})
    return out
