"""argparse for the verbs that are no stage, with errors as UserErrors and help that keeps its line breaks."""

from __future__ import annotations

import argparse
from typing import NoReturn

from ppomax.errors import UserError


class Words(argparse.ArgumentParser):
    """``ArgumentParser`` for one verb."""

    def __init__(self, verb: str, about: str, examples: str) -> None:
        super().__init__(
            prog=f"ppomax {verb}",
            description=about,
            epilog="examples:\n" + examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """argparse's complaint in our form."""
        raise UserError(f"{message} (see {self.prog} --help)")
