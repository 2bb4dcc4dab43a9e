"""``ppomax world OUT [--language zh] [--seed N] ...``: the embedded world as files."""

from __future__ import annotations

from ppomax.commands.stage import sort_words
from ppomax.errors import UserError
from ppomax.options import resolve
from ppomax.world.make import WorldConfig, report, write_world

EXAMPLES = """
examples:
  ppomax world world
  ppomax world world_zh --language zh --seed 7 --annotators.biased 0
  ppomax duel a/final b/final --prompts world/prompts_heldout.jsonl --judge ppomax.world.reward:score --output_dir duel"""


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, [])
    if given.switches:
        from ppomax.options_help import help_text

        print(
            "\n".join(
                ["usage: ppomax world OUT [--field value ...]", *help_text(WorldConfig, verb).split("\n")[1:], EXAMPLES]
            )
        )
        return 0
    if len(given.leading) > 1:
        raise UserError(f"unexpected word {given.leading[1]!r}: one folder is made (ppomax world OUT --seed 0)")
    options = [f"--output_dir={given.leading[0]}"] if given.leading else []
    config = resolve(WorldConfig, [*options, *given.options])
    for line in report(write_world(config), config.output_dir):
        print(line)
    return 0
