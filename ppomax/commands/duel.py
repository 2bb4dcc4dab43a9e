"""``ppomax duel A B --prompts FILE --judge MODEL --output_dir DIR``, or ``ppomax duel CONFIG.yaml``."""

from __future__ import annotations

from typing import Any

from ppomax.commands.stage import sort_words
from ppomax.evaluate.duel import UNIT, DuelConfig, run_duel
from ppomax.options import dump_yaml, help_text, resolve, warnings_for


def table(result: dict[str, Any]) -> str:
    """The result for a terminal: a line for each source of prompts, and one for all."""
    names = [*result["by_source"], "all"]
    width = max(map(len, names))
    head = f"{'':{width}}  prompts   win   tie  lose  win rate (95%)         length-controlled      sign test"
    lines = [f"A = {result['a']}", f"B = {result['b']}", f"judge = {', '.join(map(str, result['judge']))}", "", head]
    for name, part in [*result["by_source"].items(), ("all", result["overall"])]:
        plain, controlled = part["win_rate"], part["length_controlled"]
        rates = "  ".join(f"{r['value']:6.1%} [{r['low']:.1%}, {r['high']:.1%}]".ljust(21) for r in (plain, controlled))
        lines.append(
            f"{name:{width}}  {part['prompts']:7}  {part['win']:4}  {part['tie']:4}  {part['lose']:4}  {rates}  "
            f"p = {part['sign_test_p']:.2g}"
        )
    overall = result["overall"]
    lines += [
        "",
        f"mean length: A {overall['mean_length_a']:.0f}, B {overall['mean_length_b']:.0f} {UNIT}; "
        f"mean score: A {result['mean_score_a']:.3f}, B {result['mean_score_b']:.3f}; "
        f"a difference up to {result['tie_band']:.3g} is a tie",
        f"length control: {overall['length_controlled']['model']}",
    ]
    return "\n".join(lines)


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, ["--resume", "--print-config"])
    if "--help" in given.switches:
        print(help_text(DuelConfig, verb))
        return 0
    leading = list(given.leading)
    yaml_path = leading.pop(0) if leading and leading[0].endswith((".yaml", ".yml")) else None
    options = [f"--{side}={place}" for side, place in zip("ab", leading, strict=False)] + leading[2:] + given.options
    config = resolve(DuelConfig, options, yaml_path=yaml_path)
    if "--print-config" in given.switches:
        print(dump_yaml(config), end="")
        return 0
    for warning in warnings_for(config):
        print(f"warning: {warning}")
    print(table(run_duel(config, resume="--resume" in given.switches)))
    print(f"written to {config.output_dir}")
    return 0
