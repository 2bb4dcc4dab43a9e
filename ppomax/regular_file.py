"""Files and folders among what anybody may have put there."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from ppomax.errors import UserError

FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def expand_path(path: str) -> str:
    """``~`` and $VARIABLES expanded; $PPOMAX_DATA is ../shared/data where it is not set."""
    if "PPOMAX_DATA" not in os.environ:
        path = re.sub(r"\$(?:PPOMAX_DATA\b|\{PPOMAX_DATA\})", "../shared/data", path)
    expanded = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111 (Path would lose a hub name's form)
    left = re.search(r"\$\{?(\w+)", expanded)
    place = Path(expanded)
    literal = any("$" in path.name and path.exists() for path in (place, *place.parents))  # a name may hold a $
    if left and not literal:
        raise UserError(f"path {path}: the environment variable {left[1]} is not set")
    return expanded


def open_regular(path: Path) -> BinaryIO:
    """Open for reading. OSError for what is no regular file: a pipe waits for a writer, a device may never end."""
    handle = os.open(path, FLAGS)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


def require_place(path: Path, what: str) -> None:
    """UserError where ``path`` can never be made: told before the work whose results would go there."""
    above = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise UserError(f"{what}: {path} cannot be made: {above} is no folder that can be written to")
