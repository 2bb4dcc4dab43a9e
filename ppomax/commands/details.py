"""``ppomax details [CONFIG.yaml] [--markdown]``."""

from __future__ import annotations

import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppomax.commands.stage import sort_words
from ppomax.config import PPOConfig
from ppomax.details import NOTE, code_rows, markdown, preset_configs, preset_rows
from ppomax.errors import UserError
from ppomax.options import load_yaml

HELP = """usage: ppomax details [CONFIG.yaml ...] [--markdown]

The twelve implementation details: what each preset makes of them, the options, where they are in the code, and the
metrics to watch. Configurations of your own become further columns.

examples:
  ppomax details
  ppomax details runs/ppo/config.yaml
  ppomax details --markdown > details.md"""


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, ["--markdown"])
    if "--help" in given.switches:
        print(HELP)
        return 0
    if given.options:
        raise UserError(f"unknown option {given.options[0]}; did you mean --markdown?")
    configs = preset_configs() | {path: load_yaml(PPOConfig, path) for path in given.leading}
    if "--markdown" in given.switches:
        print(markdown(configs))
        return 0
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    states = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("#", "detail", *configs):
        states.add_column(name, overflow="fold")
    for row in preset_rows(configs):
        states.add_row(*(Text(cell, style="dim" if cell == "off" else "") for cell in row))
    console.print(states)
    console.print(Text(NOTE, style="dim"))
    where = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("#", "options", "code", "metrics"):
        where.add_column(name, overflow="fold")
    for number, options, code, metrics in code_rows():
        where.add_row(number, *(Text("\n".join(cells)) for cells in (options, code, metrics)))
    console.print(where)
    return 0
