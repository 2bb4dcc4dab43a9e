"""``ppomax world OUT [--language zh] [--seed N] ...``: the embedded world as files."""

from __future__ import annotations

from ppomax.commands.stage import sort_words
from ppomax.errors import UserError
from ppomax.options import help_text, resolve
from ppomax.world.make import WorldConfig, report, write_world


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, [])
    if given.switches:
        print(help_text(WorldConfig, verb))
        return 0
    if len(given.leading) > 1:
        raise UserError(f"unexpected word {given.leading[1]!r}: one folder is made (ppomax world OUT --seed 0)")
    options = [f"--output_dir={given.leading[0]}"] if given.leading else []
    config = resolve(WorldConfig, [*options, *given.options], words_alone=True)
    for line in report(write_world(config), config.output_dir):
        print(line)
    return 0
