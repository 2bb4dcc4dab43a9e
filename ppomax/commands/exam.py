"""``ppomax exam MODEL... --data FILE... [--text FILE...] [--output_dir DIR]``, ``ppomax exam MODEL... --tasks NAME...``, or
``ppomax exam CONFIG.yaml``."""

from __future__ import annotations

from typing import Any

from ppomax.commands.stage import sort_words
from ppomax.evaluate.exam import ExamConfig, run_exam
from ppomax.options import dump_yaml, help_text, resolve

ABOUT = {
    "acc": "the likeliest answer as a whole",
    "acc_norm": "per character of the choice",
    "acc_bytes": "per byte of the choice",
}
CELL = 22
"""characters of a model's column"""


def table(result: dict[str, Any]) -> str:
    """The result for a terminal: a line for each group and one for all, a column a model, other measures, loss on text."""
    letters = [f"model {i}" for i in range(1, len(result["models"]) + 1)]
    lines = [f"{letter} = {name}" for letter, name in zip(letters, result["models"], strict=True)]
    if result["questions"]:
        lines += _questions(result, letters)
    if "text" in result:
        lines += _text(result["text"], letters)
    return "\n".join(lines)


def _row(head: str, cells: list[str]) -> str:
    return (head + "".join(cell.ljust(CELL) for cell in cells)).rstrip()


def _questions(result: dict[str, Any], letters: list[str]) -> list[str]:
    models, headline = result["models"], result["headline"]
    groups = list(dict.fromkeys(group for found in models.values() for group in found["by_category"]))
    width = max(map(len, [*groups, "all"]))
    lines = ["", _row(f"{'':{width}}  questions  chance  ", letters)]
    for group in [*groups, "all"]:
        parts = [m["overall"] if group == "all" else m["by_category"].get(group) for m in models.values()]
        known = next(part for part in parts if part is not None)
        cells = []
        for part in parts:
            if part is None:
                cells.append("-")
                continue
            low, high = part[headline]["interval"]
            cells.append(f"{part[headline]['accuracy']:6.1%} [{low:.1%}, {high:.1%}]")
        lines.append(_row(f"{group:{width}}  {known['n']:9}  {known['chance']:6.1%}  ", cells))
    lines.append("")
    measures = {name: about for name, about in ABOUT.items() if name in next(iter(models.values()))["overall"]}
    for measure, about in measures.items():
        values = "  ".join(f"{m['overall'][measure]['accuracy']:.1%}" for m in models.values())
        lines.append(f"{measure:9}  {values}  ({about}{'; shown above' if measure == headline else ''})")
    for letter, (_, gap) in zip(letters[1:], result["against_first"].items(), strict=True):
        if gap["n"]:
            lines.append(
                f"{letter} - model 1: {gap['difference']:+.1%} ({gap['gained']} gained, {gap['lost']} lost, "
                f"sign test p = {gap['sign_test_p']:.2g})"
            )
    return lines


def _text(found: dict[str, Any], letters: list[str]) -> list[str]:
    def cell(part: dict[str, Any] | None, sign: str = "") -> str:
        if part is None:
            return "-"
        low, high = part["interval"]
        return f"{part['value']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"

    named = {"loss": "nats a token", "bits_per_byte": "bits a byte"}
    width = max(map(len, named.values()))
    lines = ["", _row(f"{'text':{width}}  ", letters)]
    for key, words in named.items():
        lines.append(_row(f"{words:{width}}  ", [cell(m[key]) for m in found["models"].values()]))
    for letter, gap in zip(letters[1:], found["against_first"].values(), strict=True):
        key = "loss" if gap["loss"] is not None else "bits_per_byte"
        lines.append(f"{letter} - model 1: {cell(gap[key], '+')} {named[key]}")
    lines.append(f"{found['texts']} texts, {found['bytes']} bytes")
    return lines


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, ["--resume", "--print-config"])
    if "--help" in given.switches:
        print(help_text(ExamConfig, verb))
        return 0
    leading = list(given.leading)
    yaml_path = leading.pop(0) if leading and leading[0].endswith((".yaml", ".yml")) else None
    options = [*(["--models", *leading] if leading else []), *given.options]
    config = resolve(ExamConfig, options, yaml_path=yaml_path)
    if "--print-config" in given.switches:
        print(dump_yaml(config), end="")
        return 0
    print(table(run_exam(config, resume="--resume" in given.switches)))
    if config.output_dir:
        print(f"written to {config.output_dir}")
    return 0
