"""From a YAML file and command-line words to a configuration: defaults < preset < YAML < command line.

``tyro`` was considered and not taken: mixtures are lists of mappings that must be writable as one YAML value on the
command line, presets sit between defaults and file, and every mistake must come out as one line that names the file,
the line and the nearest field. That is this file with ``layers.py``; the models themselves are in ``config.py``.

    config = resolve(PPOConfig, ["--kl.coef", "0.1", "--preset=vanilla"], yaml_path="ppo.yaml")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ppomax import yaml_tree
from ppomax.config import PPOConfig, Section
from ppomax.errors import UserError
from ppomax.layers import Layer, defaults, merge, preset_layer, words_to_layers
from ppomax.options_check import refuse_contradictions, warnings_for
from ppomax.options_help import help_text

__all__ = ["build", "differences", "dump_yaml", "from_mapping", "help_text", "load_yaml", "resolve", "warnings_for"]

C = TypeVar("C", bound=Section)


def resolve(cls: type[C], words: Sequence[str] = (), *, yaml_path: str | None = None, words_alone: bool = False) -> C:
    """The configuration of a stage from its YAML file and command-line words. Mistakes are UserErrors of one line.

    ``words_alone``: the command takes no YAML file, so nobody is told to write one.
    """
    layers: list[Layer] = []
    if yaml_path is not None:
        tree = yaml_tree.read(yaml_path)
        if tree.value is None:
            tree.value = {}
        if not isinstance(tree.value, dict):
            raise UserError(f"{yaml_path}: a mapping of fields to values is expected, not a {_kind(tree.value)}")
        layers.append(Layer(str(yaml_path), tree))
    layers += words_to_layers(cls, words)
    return build(cls, layers, words_alone=words_alone)


def from_mapping(cls: type[C], values: Mapping[str, Any], *, origin: str = "values") -> C:
    """The configuration from nested plain data: preset and class defaults are filled in as for a YAML file."""
    tree = yaml_tree.parse(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True), origin)
    tree.value = tree.value or {}
    return build(cls, [Layer(origin, tree)])


def build(cls: type[C], layers: Sequence[Layer], *, words_alone: bool = False) -> C:
    """Merge layers over the defaults (and, for PPO, the preset they name), then validate."""
    values = defaults(cls)
    if cls is PPOConfig:
        name = values["preset"]
        where = "defaults"
        for layer in layers:
            if "preset" in layer.tree.value:
                name, where = layer.tree.value["preset"], layer.place(("preset",)) or where
        values = merge(cls, values, preset_layer(name, where))
    for layer in layers:
        values = merge(cls, values, layer)
    try:
        config = cls.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, layers, words_alone)) from None
    refuse_contradictions(config)
    return config


EXPECTED = {
    "float": "a number is expected",
    "int": "an integer is expected",
    "bool": "true or false is expected",
    "string": "text is expected",
    "list": "a list is expected",
    "tuple": "a list is expected",
    "model": "a mapping of fields is expected",
    "dict": "a mapping is expected",
}
"""pydantic's error types, by the word before their first underscore, in the words of a YAML author"""


def _explain(error: ValidationError, layers: Sequence[Layer], words_alone: bool) -> str:
    """pydantic's report as one line: the first wrong value and the number of others, or all missing fields."""
    problems = error.errors(include_url=False)
    wrong = [problem for problem in problems if problem["type"] != "missing"]
    if not wrong:
        missing = [".".join(map(str, problem["loc"])) for problem in problems]
        elsewhere = "" if words_alone else " or set it in the YAML file"
        return f"missing {', '.join(missing)}: give {' '.join(f'--{m} ...' for m in missing)}{elsewhere}"
    problem = wrong[0]
    # unions add a name such as 'str' or 'list[str]' to the location
    loc = tuple(part for part in problem["loc"] if isinstance(part, int) or part.isidentifier())
    while len(loc) > 1 and loc[-1] in ("str", "int", "float", "bool"):
        loc = loc[:-1]
    where = next((place for layer in reversed(layers) if (place := layer.place(loc))), "defaults")
    name = ".".join(map(str, loc))
    given = problem["input"]
    shown = "null" if given is None else str(given).lower() if isinstance(given, bool) else repr(given)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    others = len({other["loc"][:1] for other in problems}) - 1
    return f"{where}: {name} = {shown}: {_expected(problem)}" + (
        f" (and {others} more mistake{'s' if others > 1 else ''})" if others else ""
    )


def _expected(problem: ErrorDetails) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        return f"expected one of {context['expected']}"
    if kind.startswith(("greater_than", "less_than")):
        sign = (">" if kind.startswith("greater") else "<") + ("=" if kind.endswith("equal") else "")
        return f"must be {sign} {next(iter(context.values()))}"
    if kind == "too_short":
        return f"at least {context['min_length']} needed"
    return EXPECTED.get(kind.split("_")[0], problem["msg"].removeprefix("Value error, "))


def _kind(value: Any) -> str:
    return {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}.get(type(value), "value")


def load_yaml(cls: type[C], path: str | Path) -> C:
    """The configuration that a file alone describes."""
    return resolve(cls, yaml_path=str(path))


def differences(old: Section, new: Section) -> list[str]:
    """Dotted names of the fields in which two configurations of one class differ."""
    names = []
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, Section) and type(before) is type(after):
            names += [f"{name}.{below}" for below in differences(before, after)]
        elif before != after:
            names.append(name)
    return names


def dump_yaml(config: Section) -> str:
    """The whole configuration; reading it back gives an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
