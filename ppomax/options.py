"""From a YAML file and command-line words to a configuration: defaults < preset < YAML < command line.

``tyro`` was considered and not taken: mixtures are lists of mappings that must be writable as one YAML value on the
command line, presets sit between defaults and file, and every mistake must come out as one line that names the file, the
line and the nearest field. That is this file; the models themselves are in ``config.py``.

    config = resolve(PPOConfig, ["--kl.coef", "0.1", "--preset=vanilla"], yaml_path="ppo.yaml")
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

import yaml
from pydantic import BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from ppomax import yaml_tree
from ppomax.config import PPOConfig, Section
from ppomax.errors import UserError
from ppomax.yaml_tree import Path, Tree

C = TypeVar("C", bound=Section)
COMMAND_LINE = "command line"


# ------------------------------------------------------------------------------------- what a field is


def section_of(annotation: Any) -> type[Section] | None:
    """The section model behind ``Section`` or ``Section | None``."""
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None


def element_of(annotation: Any) -> type[Section] | None:
    """The section model behind ``list[Section]``."""
    if typing.get_origin(annotation) is list:
        return section_of(typing.get_args(annotation)[0])
    return None


def _accepts(annotation: Any, kind: type) -> bool:
    """Whether a scalar of this kind is one of the field's types."""
    if typing.get_origin(annotation) is typing.Literal:
        return any(isinstance(choice, kind) for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(_accepts(part, kind) for part in typing.get_args(annotation))
    return annotation is kind


def _normaliser(field: FieldInfo) -> Any:
    """The field's own shorthand reader (a lone path for a mixture), or identity."""
    for item in field.metadata:
        if isinstance(item, BeforeValidator):
            return item.func
    return lambda value: value


def field_names(cls: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields; those of list elements are written ``data.0.path``."""
    for name, field in cls.model_fields.items():
        yield prefix + name
        below = section_of(field.annotation)
        if below is not None:
            yield from field_names(below, f"{prefix}{name}.")
        element = element_of(field.annotation)
        if element is not None:
            yield from field_names(element, f"{prefix}{name}.0.")


def did_you_mean(word: str, names: Sequence[str], shown: str = "") -> str:
    """'; did you mean --kl.coef?' or nothing."""
    close = difflib.get_close_matches(word, names, n=2, cutoff=0.6)
    if not close:  # perhaps only the section is missing: coef -> kl.coef
        close = [name for name in names if name.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]][:3]
    return f"; did you mean {' or '.join(shown + name for name in close)}?" if close else ""


# -------------------------------------------------------------------------------------- layers of values


@dataclass
class Layer:
    """Values from one place: ``origin`` is a file name, or the command line."""

    origin: str
    tree: Tree

    def place(self, path: Path) -> str | None:
        """file:line of the value at ``path`` or of the nearest thing around it; None when this layer has nothing there."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.tree.lines:
                if self.origin == COMMAND_LINE:
                    return COMMAND_LINE
                return f"{self.origin}:{self.tree.lines[path[:length]]}"
        return None


def _words_to_layer(cls: type[Section], words: Sequence[str]) -> Layer:
    """``--a.b value``, ``--a.b=value`` and ``--flag`` as one nested mapping."""
    tree = Tree(value={})
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--") or word == "--":
            raise UserError(
                f"unexpected word {word!r} on the command line: options are --field value (several values are one "
                "YAML list: --data '[a, b]'), and the YAML file comes first"
            )
        name, equals, text = word[2:].partition("=")
        path, annotation = _locate(cls, name)
        if not equals:
            following = words[position] if position < len(words) else None
            taken = following is not None and not following.startswith("--")
            if taken:
                text = typing.cast(str, following)
                position += 1
            elif _accepts(annotation, bool):
                text = "true"
            elif section_of(annotation) is not None:
                text = "{}"
            else:
                raise UserError(f"--{name} needs a value")
        if path in tree.lines and typing.get_origin(annotation) is list:
            raise UserError(f"--{name} is given twice; several values are one YAML list: --{name} '[a, b]'")
        parsed = yaml_tree.parse(text, f"--{name}") if not _is_plain_text(annotation, text) else Tree(value=text)
        tree.lines[path] = 1
        tree.texts[path] = text
        for below, line in parsed.lines.items():
            tree.lines[(*path, *below)] = line
        for below, written in parsed.texts.items():
            tree.texts[(*path, *below)] = written
        _put(tree.value, path, parsed.value)
    return Layer(COMMAND_LINE, tree)


def _is_plain_text(annotation: Any, text: str) -> bool:
    """A text field on the command line takes its word as it is, whatever YAML would make of it (`a: b`, `[x`, `*`)."""
    if not _accepts(annotation, str) or text.strip().lower() in ("null", "~", ""):
        return False
    lists_too = typing.get_origin(annotation) in (typing.Union, types.UnionType) and any(
        typing.get_origin(part) is list for part in typing.get_args(annotation)
    )
    return not (lists_too and text.lstrip().startswith("["))


def _locate(cls: type[Section], name: str) -> tuple[Path, Any]:
    """Path and annotation of the option called ``name``; an unknown one is refused with its neighbours."""
    path: list[str | int] = []
    current: Any = cls
    annotation: Any = cls
    for part in name.replace("-", "_").split("."):
        if isinstance(current, type) and part in current.model_fields:
            annotation = current.model_fields[part].annotation
            path.append(part)
            current = section_of(annotation) or element_of(annotation)
            is_list = element_of(annotation) is not None
        elif path and part.isdigit() and is_list:
            path.append(int(part))
            annotation, is_list = current, False
        else:
            names = list(field_names(cls))
            raise UserError(f"unknown option --{name}{did_you_mean(name.replace('-', '_'), names, '--')}")
        if is_list and isinstance(path[-1], str):
            continue
    return tuple(path), annotation


def _put(target: dict[Any, Any], path: Path, value: Any) -> None:
    """Set ``value`` at ``path``; integer keys stay keys and select list elements when layers are merged."""
    for part in path[:-1]:
        below = target.setdefault(part, {})
        if not isinstance(below, dict):
            below = target[part] = {}
        target = below
    if isinstance(value, dict) and isinstance(target.get(path[-1]), dict):
        target[path[-1]] = {**target[path[-1]], **value}
    else:
        target[path[-1]] = value


# ------------------------------------------------------------------------------------------- merging


def defaults(cls: type[Section]) -> dict[str, Any]:
    """Default values as nested plain data; required fields are absent.

    Nested sections keep the defaults of *this* class: SFT's `optim` is cosine, and stays so when only its lr is given.
    """
    out: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        if field.is_required():
            continue
        value = field.get_default(call_default_factory=True)
        out[name] = value.model_dump() if isinstance(value, Section) else value
    return out


def _merge(cls: type[Section], base: Mapping[str, Any], layer: Layer, path: Path = ()) -> dict[str, Any]:
    """``base`` with this layer's values over it; unknown keys are refused here, with their place."""
    out = dict(base)
    given = layer.tree.value if not path else _at(layer.tree.value, path)
    for key, value in given.items():
        name = key.replace("-", "_") if isinstance(key, str) else key
        here: Path = (*path, key)
        if name not in cls.model_fields:
            raise UserError(_unknown_key(cls, str(key), layer, here))
        field = cls.model_fields[name]
        below, element = section_of(field.annotation), element_of(field.annotation)
        if below is not None and isinstance(value, dict):
            start = out.get(name)
            out[name] = _merge(below, start if isinstance(start, dict) else defaults(below), layer, here)
        elif below is not None and value is None and not _nullable(field.annotation):
            continue  # a section whose lines are all comments
        elif element is not None:
            out[name] = _merge_list(field, element, out.get(name), value, layer, here)
        else:
            out[name] = _as_written(field.annotation, value, layer, here)
    return out


def _merge_list(field: FieldInfo, element: type[Section], base: Any, value: Any, layer: Layer, here: Path) -> Any:
    """A whole new list, or changes to elements of the list below (``--data.0.weight 2``)."""
    normalise = _normaliser(field)
    if not (isinstance(value, dict) and value and all(isinstance(key, int) for key in value)):
        plain = normalise(value)
        if not isinstance(plain, list):
            return plain
        wrapped = isinstance(value, dict)  # a lone mapping: its keys' lines are one level up
        out = []
        for i, item in enumerate(plain):
            if isinstance(item, dict):
                at: Path = here if wrapped else (*here, i)
                item = {
                    key: _as_written(element.model_fields[key].annotation, v, layer, (*at, key))
                    if key in element.model_fields
                    else v
                    for key, v in item.items()
                }
                for key in item:
                    if key not in element.model_fields:
                        raise UserError(_unknown_key(element, str(key), layer, (*at, key)))
            out.append(item)
        return out
    items = [item.model_dump() if isinstance(item, Section) else item for item in normalise(base) or []]
    for index, change in value.items():
        if index >= len(items):
            name = ".".join(map(str, here))
            raise UserError(f"--{name}.{index}: there is no element {index}: {name} has {len(items)} (counted from 0)")
        if isinstance(change, dict):
            items[index] = _merge(element, items[index], layer, (*here, index))
        else:
            items[index] = change
    return items


def _at(value: Any, path: Path) -> Any:
    for part in path:
        value = value[part]
    return value


def _nullable(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _as_written(annotation: Any, value: Any, layer: Layer, here: Path) -> Any:
    """Text fields keep numbers as they were written: ``output_dir: 2024`` is the text 2024."""
    if isinstance(value, bool | int | float) and _accepts(annotation, str) and not _accepts(annotation, type(value)):
        return layer.tree.texts.get(here, str(value))
    if isinstance(value, list) and annotation == list[str]:
        return [_as_written(str, item, layer, (*here, i)) for i, item in enumerate(value)]
    return value


def _unknown_key(cls: type[Section], key: str, layer: Layer, here: Path) -> str:
    names = list(field_names(cls))
    hint = did_you_mean(key.replace("-", "_"), names)
    full = ".".join(map(str, here))
    return f"{layer.place(here)}: unknown field {full!r}{hint}"


# ------------------------------------------------------------------------------------------ resolving


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return list(typing.get_args(PPOConfig.model_fields["preset"].annotation))


def preset_layer(name: str) -> Layer:
    """A preset's differences from the defaults; an unknown name is refused with the nearest one."""
    if name not in preset_names():
        raise UserError(
            f"unknown preset {name!r}{did_you_mean(str(name), preset_names())} (there are {', '.join(preset_names())})"
        )
    text = (resources.files("ppomax") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return Layer(f"presets/{name}.yaml", yaml_tree.parse(text, f"presets/{name}.yaml"))


def resolve(cls: type[C], words: Sequence[str] = (), *, yaml_path: str | None = None) -> C:
    """The configuration of a stage from its YAML file and command-line words. Mistakes are UserErrors of one line."""
    layers = []
    if yaml_path is not None:
        tree = yaml_tree.read(yaml_path)
        if tree.value is None:
            tree.value = {}
        if not isinstance(tree.value, dict):
            raise UserError(f"{yaml_path}: a mapping of fields to values is expected, not a {_kind(tree.value)}")
        layers.append(Layer(str(yaml_path), tree))
    layers.append(_words_to_layer(cls, words))
    return build(cls, layers)


def from_mapping(cls: type[C], values: Mapping[str, Any], *, origin: str = "values") -> C:
    """The configuration from nested plain data: preset and class defaults are filled in as for a YAML file."""
    tree = yaml_tree.parse(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True), origin)
    tree.value = tree.value or {}
    return build(cls, [Layer(origin, tree)])


def build(cls: type[C], layers: Sequence[Layer]) -> C:
    """Merge layers over the defaults (and, for PPO, the preset they name), then validate."""
    values = defaults(cls)
    if cls is PPOConfig:
        name = values["preset"]
        for layer in layers:
            name = layer.tree.value.get("preset", name)
        values = _merge(cls, values, preset_layer(name))
    for layer in layers:
        values = _merge(cls, values, layer)
    try:
        config = cls.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, layers)) from None
    if isinstance(config, PPOConfig):
        from ppomax.options_check import refuse_contradictions

        refuse_contradictions(config)
    return config


def _explain(error: ValidationError, layers: Sequence[Layer]) -> str:
    """pydantic's report as one line: missing fields together, else the first wrong value and the number of others."""
    problems = error.errors(include_url=False)
    missing = [".".join(map(str, p["loc"])) for p in problems if p["type"] == "missing"]
    if missing:
        return f"missing {', '.join(missing)}: give {', '.join('--' + m for m in missing)} or set it in the YAML file"
    problem = problems[0]
    # unions add a name such as 'list[str]' to the location; only what is in a layer or is a field counts
    loc = tuple(part for part in problem["loc"] if not (isinstance(part, str) and not part.isidentifier()))
    while len(loc) > 1 and loc[-1] in ("str", "int", "float", "bool"):
        loc = loc[:-1]
    where = next((place for layer in reversed(layers) if (place := layer.place(loc))), "defaults")
    message = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
    given = problem["input"]
    shown = "null" if given is None else repr(given)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    more = len({p["loc"][:1] for p in problems}) - 1
    also = f" (and {more} more)" if more else ""
    return f"{where}: {'.'.join(map(str, loc))} = {shown}: {message}{also}"


def _kind(value: Any) -> str:
    return {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}.get(type(value), "value")


def dump_yaml(config: Section) -> str:
    """The whole configuration; reading it back gives an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
