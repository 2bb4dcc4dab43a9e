"""May a command write into its ``output_dir``? One answer for training runs, duels, exams and evaluations."""

from __future__ import annotations

from collections.abc import Collection
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from ppomax.config import Section
from ppomax.errors import UserError
from ppomax.options import differences
from ppomax.regular_file import expand_path, require_place

S = TypeVar("S", bound=Section)


def claim(
    config: Section, output_dir: str, what: str, *, resume: bool, may_change: Collection[str]
) -> tuple[Path, bool]:
    """(folder, whether it already holds this very work). Nothing is written.

    ``what``: what such a folder holds, with its article. UserError for a file, for a folder that holds something else,
    for work that is not to be resumed, or was begun with other settings than ``may_change``.
    """
    path = Path(expand_path(output_dir))
    saved = path / "config.yaml"
    if path.exists() and not path.is_dir():
        raise UserError(f"output_dir: {path} is a file")
    require_place(path, "output_dir")
    if saved.exists():
        before = read_settings(type(config), saved)
        if not resume:
            raise UserError(
                f"output_dir: {path} already holds {what}; add --resume to go on with it, or name another directory"
            )
        changed = [name for name in differences(before, config) if name not in may_change]
        if changed:
            told = ", ".join(f"{name}{_values(before, config, name)}" for name in changed)
            raise UserError(
                f"{saved}: cannot resume with other settings: {told}; give this file as the settings to go on as it was begun"
            )
        return path, True
    if path.exists() and any(f.name != ".config.yaml.part" for f in path.iterdir()):  # of a kill at the start
        raise UserError(f"output_dir: {path} is not empty and holds no {what.split(' ', 1)[1]}; name another directory")
    return path, False


def read_settings(cls: type[S], saved: Path) -> S:
    """The settings of an earlier run, complete as they were written: no presets, and data may have been in memory."""
    try:
        content: Any = yaml.safe_load(saved.read_text(encoding="utf-8"))
        return cls.model_validate(content)
    except ValidationError as error:
        first, kind = error.errors()[0], cls.__name__[:-6].lower()
        field = ".".join(str(part) for part in first["loc"]) or "all of it"
        raise UserError(
            f"{saved}: not the settings of a {kind} run ({field}: {first['msg']}): name another directory"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{saved}: not the settings of a {cls.__name__[:-6].lower()} run: {told}") from None


def _values(before: Section, config: Section, name: str) -> str:
    """What a dotted name of `differences` held and holds, where that is short."""
    then, now = attrgetter(name)(before), attrgetter(name)(config)
    short = all(value is None or isinstance(value, str | int | float) for value in (then, now))
    return f" ({then}, now {now})" if short else ""
