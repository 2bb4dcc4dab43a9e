"""The table of the twelve details agrees with presets, options, code and metrics."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from ppomax.config import PPOConfig
from ppomax.details import DETAILS, code_rows, markdown, place, preset_configs, preset_rows
from ppomax.layers import field_names
from ppomax.options import resolve


def states(preset: str) -> dict[str, str]:
    configs = preset_configs()
    column = list(configs).index(preset) + 2
    return {row[0].rstrip("*"): row[column] for row in preset_rows(configs)}


def test_twelve_details_and_ptx() -> None:
    assert [d.number for d in DETAILS] == [*map(str, range(1, 13)), "ptx"]
    assert {d.number for d in DETAILS if d.starred} == {"1", "5", "7", "8", "10", "11", "12"}


def test_options_exist() -> None:
    names = set(field_names(PPOConfig))
    for detail in DETAILS:
        assert set(detail.options) <= names, detail.name


def test_states_follow_the_presets() -> None:
    on = {name: {n for n, s in states(name).items() if s != "off"} - {"2", "8", "9"} for name in preset_configs()}
    assert on["ppo_max"] == {"1", "5", "7", "10", "11", "12"}
    assert on["ppo_max_ptx"] == on["ppo_max"] | {"ptx"}
    assert on["vanilla"] == {"10", "11", "12"}
    assert on["vanilla_noclip"] == {"10", "11"}
    assert on["moss_rlhf"] == {"1", "4", "7", "10", "11", "12"}
    assert "pre-trained" in states("ppo_max")["8"] and "pre-trained" not in states("vanilla")["8"]
    assert states("moss_rlhf")["12"] == "1 joint" and states("moss_rlhf")["10"] == "lam 0.95"


@pytest.mark.parametrize(
    ("words", "number", "state"),
    [
        (["--kl.controller", "adaptive", "--kl.estimator", "k3"], "1", "0.05 k3 adaptive"),
        (["--surrogate.denominator", "reference"], "2", "ratio to reference"),
        (["--entropy.coef", "0.01", "--entropy.target", "2"], "3", "0.01, target 2 nats"),
        (["--reward-shaping.normalise", "no"], "5", "clip 0.8 only"),
        (["--advantage.clip", "0.5"], "6", "clip 0.5 only"),
        (["--advantage.clip", "0.5", "--advantage.normalise"], "6", "on, clip 0.5"),
        (["--surrogate.kind", "none"], "11", "off"),
        (["--surrogate.kind", "penalty"], "11", "penalty 1"),
        (["--surrogate.clip-range-high", "0.3", "--surrogate.dual-clip", "3"], "11", "clip 0.2/+0.3, dual 3"),
        (["--gae.target", "reward_to_go", "--gae.gamma", "0.9"], "10", "lam 0.9, gamma 0.9, target reward-to-go"),
        (["--grad-clip.norm", "0"], "12", "off"),
    ],
)
def test_state_of_a_configuration(words: list[str], number: str, state: str) -> None:
    config = resolve(PPOConfig, ["--model=m", "--reward=r", "--prompts=p", "--output-dir=o", *words])
    detail = next(d for d in DETAILS if d.number == number)
    assert detail.state(config) == state


def test_code_places_are_where_the_interpreter_finds_them() -> None:
    for detail in DETAILS:
        for code in detail.code:
            module, _, name = code.partition(":")
            found = importlib.import_module(f"ppomax.{module}")
            for part in name.split("."):
                found = getattr(found, part)
            # inspect counts decorators in
            file, line = place(code).split(" ")[0].rsplit(":", 1)
            source, first = inspect.getsourcelines(found)
            assert first <= int(line) < first + len(source) and file.endswith(module.split(".")[-1] + ".py")


def test_metrics_are_written_by_the_loop() -> None:
    package = Path(inspect.getsourcefile(PPOConfig) or "").parent
    source = "".join(
        (package / file).read_text() for file in ("train/ppo.py", "train/ppo_update.py", "watch/metrics.py")
    )
    source += "".join(source.replace("{name}", model) for model in ("policy", "critic"))
    for detail in DETAILS:
        for metric in detail.metrics:
            assert f'"{metric}"' in source, metric


def test_markdown_tables_are_whole() -> None:
    lines = [line for line in markdown(preset_configs()).splitlines() if line.startswith("|")]
    assert len(lines) == 2 * (2 + len(DETAILS))
    for line in lines[: len(lines) // 2]:
        assert line.count("|") == len(preset_configs()) + 3
    assert all(len(row) == 4 for row in code_rows())
