"""``ppomax evaluate MODEL... --data PAIRS... [--output_dir DIR]``, or ``ppomax evaluate CONFIG.yaml``."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppomax.commands.stage import sort_words
from ppomax.evaluate.reward_evaluation import EvaluateConfig, run_evaluation
from ppomax.options import dump_yaml, help_text, resolve
from ppomax.report.reward_page import names_of, tables_of, verdict


def show(result: dict[str, Any], console: Console) -> None:
    """The result for a terminal: a table for each part, a column a model."""
    for model, short in names_of(list(result["models"])).items():
        console.print(Text(f"{short} = {model}"))
    for part in tables_of(result):
        table = Table(title=Text(part["title"]), caption=Text(part["note"]))
        for i, name in enumerate(part["head"]):
            table.add_column(Text(name), justify="right" if i else "left", overflow="fold")
        for row in part["rows"]:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    console.print(Text(verdict(result)))


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, ["--resume", "--print-config"])
    if "--help" in given.switches:
        print(help_text(EvaluateConfig, verb))
        return 0
    leading = list(given.leading)
    yaml_path = leading.pop(0) if leading and leading[0].endswith((".yaml", ".yml")) else None
    options = [*(["--models", *leading] if leading else []), *given.options]
    config = resolve(EvaluateConfig, options, yaml_path=yaml_path)
    if "--print-config" in given.switches:
        print(dump_yaml(config), end="")
        return 0
    result = run_evaluation(config, resume="--resume" in given.switches)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140  # a file has room
    show(result, console)
    if config.output_dir:
        print(f"written to {config.output_dir}")
    return 0
