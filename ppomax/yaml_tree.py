"""YAML that remembers where each value came from and how it was written.

Scalars follow the YAML 1.2 core schema: ``no``, ``off`` and dates are text, ``1e-5`` is a number (PyYAML's YAML 1.1
reads them as False, False, a date and a string). Duplicate keys are errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from ppomax.errors import UserError

Path = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader with the implicit types of YAML 1.2."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  (PyYAML's own class attribute)


for _tag, _pattern, _first in (
    ("null", r"^(?:null|Null|NULL|~|)$", ["n", "N", "~", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9][0-9_]*$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:(?:[0-9][0-9_]*)?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*\.?(?:[eE][-+]?[0-9]+)|[0-9]+\."
        r"|\.inf|\.Inf|\.INF)$|^\.(?:nan|NaN|NAN)$",
        list("-+.0123456789"),
    ),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """PyYAML reads 0-led integers as octal."""
    return int(str(loader.construct_scalar(node)).replace("_", ""))


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


@dataclass
class Tree:
    """A parsed document: ``value``, the line of every path in it, and the text of every scalar."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    texts: dict[Path, str] = field(default_factory=dict)


def parse(text: str, where: str) -> Tree:
    """Parse one document; ``where`` (a file name or an option) opens the error message."""
    tree = Tree()
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                tree.value = _construct(loader, node, (), tree, where)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark is not None else where
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{place}: not valid YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"{where}: not usable YAML: it contains itself, or is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{where}: not valid YAML: {error}") from None
    return tree


def read(path: str | FilePath) -> Tree:
    """Parse a file; a missing or unreadable one is a UserError."""
    file = FilePath(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{file}: is a directory; a YAML file is expected") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{file}: cannot be read: {reason}") from None
    return parse(text, str(file))


def _construct(loader: _Loader, node: yaml.Node, path: Path, tree: Tree, where: str) -> Any:
    tree.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        given: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node.value, str) else ""
            if key in given and key_node.tag != "tag:yaml.org,2002:merge":
                line = key_node.start_mark.line + 1
                raise UserError(f"{where}:{line}: key {key!r} occurs twice in one mapping; keep one")
            given.add(key)
        loader.flatten_mapping(node)
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{where}:{key_node.start_mark.line + 1}: a key must be a plain word")
            below = (*path, key_node.value)
            tree.lines[below] = key_node.start_mark.line + 1
            out[key_node.value] = _construct(loader, value_node, below, tree, where)
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*path, i), tree, where) for i, item in enumerate(node.value)]
    tree.texts[path] = node.value
    return loader.construct_object(node)
