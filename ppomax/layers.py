"""Values from several places, laid over one another: what a field is, where a value was given, how layers merge.

A layer is the nested data of one YAML file, one preset or the command line, with the place of every value, so that any
complaint can name it. ``options.py`` puts the layers together.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from ppomax import yaml_tree
from ppomax.config import PPOConfig, Section
from ppomax.errors import UserError
from ppomax.yaml_tree import Path, Tree

COMMAND_LINE = "command line"


# ------------------------------------------------------------------------------------- what a field is


def is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def section_of(annotation: Any) -> type[Section] | None:
    """The section model behind ``Section`` or ``Section | None``."""
    parts = typing.get_args(annotation) if is_union(annotation) else (annotation,)
    for part in parts:
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
    if is_union(annotation):
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
        """file:line of the value at ``path`` or of the nearest thing around it; None where this layer has nothing."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.tree.lines:
                if self.origin == COMMAND_LINE:
                    return COMMAND_LINE
                return f"{self.origin}:{self.tree.lines[path[:length]]}"
        return None


def words_to_layers(cls: type[Section], words: Sequence[str], *, prefix: str = "") -> list[Layer]:
    """``--a.b value``, ``--a.b=value`` and ``--flag``; changes to list elements (``--data.0.weight 2``) come last.

    ``prefix``: what was taken off the options' names before; complaints name them with it.
    """
    whole, elements = Layer(COMMAND_LINE, Tree(value={})), Layer(COMMAND_LINE, Tree(value={}))
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise UserError(
                f"unexpected word {word!r} on the command line: options are --field value, and files come before them"
            )
        name, equals, text = word[2:].partition("=")
        path, annotation = _locate(cls, name, prefix)
        name = prefix + name
        many: list[str] = []
        if not equals:
            if rest and not rest[0].startswith("--"):
                text = rest.pop(0)
                while _takes_many(annotation) and rest and not rest[0].startswith("--"):
                    many = [*(many or [text]), rest.pop(0)]
            elif _accepts(annotation, bool):
                text = "true"
            elif section_of(annotation) is not None:
                text = "{}"
            else:
                raise UserError(f"--{name} needs a value")
        tree = (elements if any(isinstance(part, int) for part in path) else whole).tree
        if path in tree.lines and typing.get_origin(annotation) is list:
            raise UserError(f"--{name} is given twice; give all values at once: --{name} A B")
        if many or (_takes_many(annotation) and not text.lstrip().startswith(("[", "{")) and not _is_null(text)):
            parsed = _several(many or [text], name)
        else:
            parsed = Tree(value=text) if _is_plain_text(annotation, text) else yaml_tree.parse(text, f"--{name}")
        tree.lines[path] = 1
        tree.texts[path] = text
        tree.lines.update({(*path, *below): line for below, line in parsed.lines.items()})
        tree.texts.update({(*path, *below): written for below, written in parsed.texts.items()})
        _put(tree.value, path, parsed.value)
    return [whole, elements]


def _is_null(text: str) -> bool:
    return text.strip() in ("null", "Null", "NULL", "~", "")


def _is_quoted(text: str) -> bool:
    """One quoted YAML scalar: whoever writes '"\\n"' means a line break."""
    try:
        return text.lstrip()[:1] in ("'", '"') and isinstance(yaml.safe_load(text), str)
    except yaml.YAMLError:  # such as "\\d": then it is meant as it stands
        return False


def _takes_many(annotation: Any) -> bool:
    """Whether ``--data a b`` means the list [a, b]."""
    return typing.get_origin(annotation) is list


def _several(words: Sequence[str], name: str) -> Tree:
    """Words as a list of texts and, where they open a brace, mappings."""
    out = Tree(value=[])
    for i, word in enumerate(words):
        is_yaml = word.lstrip().startswith("{") or _is_quoted(word)
        one = yaml_tree.parse(word, f"--{name}") if is_yaml else Tree(word, {(): 1}, {(): word})
        out.value.append(one.value)
        out.lines.update({(i, *below): line for below, line in one.lines.items()})
        out.texts.update({(i, *below): written for below, written in one.texts.items()})
    return out


def _is_plain_text(annotation: Any, text: str) -> bool:
    """A text field on the command line takes its word as it is, whatever YAML would make of it (`a: b`, `[x`, `*`)."""
    if not _accepts(annotation, str) or _is_null(text) or _is_quoted(text):
        return False
    lists_too = any(typing.get_origin(part) is list for part in typing.get_args(annotation))
    return not (lists_too and text.lstrip().startswith("["))


def _locate(cls: type[Section], name: str, prefix: str = "") -> tuple[Path, Any]:
    """Path and annotation of the option called ``name``; an unknown one is refused with its neighbours."""
    path: list[str | int] = []
    current: type[Section] | None = cls
    annotation: Any = cls
    in_list = False
    for part in name.replace("-", "_").split("."):
        if in_list and part.isdigit():
            path.append(int(part))
            annotation, in_list = current, False
        elif current is not None and not in_list and part in current.model_fields:
            path.append(part)
            annotation = current.model_fields[part].annotation
            in_list = element_of(annotation) is not None
            current = section_of(annotation) or element_of(annotation)
        else:
            names = list(field_names(cls))
            hint = did_you_mean(name.replace("-", "_"), names, f"--{prefix}")
            raise UserError(f"unknown option --{prefix}{name}{hint}")
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


def merge(cls: type[Section], base: Mapping[str, Any], layer: Layer, path: Path = ()) -> dict[str, Any]:
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
            out[name] = merge(below, start if isinstance(start, dict) else defaults(below), layer, here)
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
            items[index] = merge(element, items[index], layer, (*here, index))
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
    """Text fields keep numbers as they were written: ``output_dir: 2024`` is 2024. A truth value is no number."""
    if isinstance(value, bool) and not _accepts(annotation, bool) and not _accepts(annotation, str):
        name = ".".join(map(str, here))
        raise UserError(f"{layer.place(here)}: {name} = {str(value).lower()}: true and false do not fit this field")
    if isinstance(value, bool | int | float) and _accepts(annotation, str) and not _accepts(annotation, type(value)):
        return layer.tree.texts.get(here, str(value))
    if isinstance(value, list) and list[str] in (annotation, *typing.get_args(annotation)):
        return [_as_written(str, item, layer, (*here, i)) for i, item in enumerate(value)]
    return value


def _unknown_key(cls: type[Section], key: str, layer: Layer, here: Path) -> str:
    above = "".join(f"{part}." for part in here[:-1])
    hint = did_you_mean(key.replace("-", "_"), list(field_names(cls)), above)
    full = ".".join(map(str, here))
    return f"{layer.place(here)}: unknown field {full!r}{hint}"


# ------------------------------------------------------------------------------------------- presets


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return list(typing.get_args(PPOConfig.model_fields["preset"].annotation))


def preset_layer(name: str, where: str = "preset") -> Layer:
    """A preset's differences from the defaults; an unknown name is refused with the nearest one."""
    names = preset_names()
    if name not in names:
        raise UserError(
            f"{where}: unknown preset {name!r}{did_you_mean(str(name), names)} (there are {', '.join(names)})"
        )
    text = (resources.files("ppomax") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return Layer(f"presets/{name}.yaml", yaml_tree.parse(text, f"presets/{name}.yaml"))
