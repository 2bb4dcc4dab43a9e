"""``ppomax exam MODEL... --data FILE... [--output_dir DIR]``, or ``ppomax exam CONFIG.yaml``."""

from __future__ import annotations

from typing import Any

from ppomax.commands.stage import sort_words
from ppomax.evaluate.exam import MEASURES, ExamConfig, run_exam
from ppomax.options import dump_yaml, help_text, resolve


def table(result: dict[str, Any]) -> str:
    """The result for a terminal: a line for each group and one for all, a column a model, then the other measures."""
    models = result["models"]
    headline = result["headline"]
    letters = [f"model {i}" for i in range(1, len(models) + 1)]
    lines = [f"{letter} = {name}" for letter, name in zip(letters, models, strict=True)]
    groups = list(dict.fromkeys(group for found in models.values() for group in found["by_category"]))
    width = max(map(len, [*groups, "all"]))
    cell = 22
    lines += ["", f"{'':{width}}  questions  chance  " + "".join(letter.ljust(cell) for letter in letters).rstrip()]
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
        row = "".join(text.ljust(cell) for text in cells).rstrip()
        lines.append(f"{group:{width}}  {known['n']:9}  {known['chance']:6.1%}  {row}")
    about = {
        "acc": "the likeliest answer as a whole",
        "acc_norm": "per byte of the choice",
        "acc_token": "per token",
    }
    lines.append("")
    for measure in MEASURES:
        values = "  ".join(f"{m['overall'][measure]['accuracy']:.1%}" for m in models.values())
        lines.append(f"{measure:9}  {values}  ({about[measure]}{'; shown above' if measure == headline else ''})")
    for letter, (_, gap) in zip(letters[1:], result["against_first"].items(), strict=True):
        if gap["n"]:
            lines.append(
                f"{letter} - model 1: {gap['difference']:+.1%} ({gap['gained']} gained, {gap['lost']} lost, "
                f"sign test p = {gap['sign_test_p']:.2g})"
            )
    return "\n".join(lines)


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
