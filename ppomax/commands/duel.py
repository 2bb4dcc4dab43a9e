"""``ppomax duel A B [C ...] --prompts FILE --judge JUDGE --output_dir DIR``, ``ppomax duel CONFIG.yaml``, and
``ppomax duel report DIR DIR ...``: do the judges of finished duels agree?"""

from __future__ import annotations

from ppomax.commands.duel_tables import agreement_table, ratings_table, table, votes_table
from ppomax.commands.stage import sort_words
from ppomax.evaluate.duel import DuelConfig, run_duel
from ppomax.evaluate.duel_report import DuelReportConfig, report_duels
from ppomax.options import dump_yaml, help_text, resolve, warnings_for


def report_main(words: list[str]) -> int:
    """``ppomax duel report``."""
    given = sort_words(words, ["--print-config"])
    if "--help" in given.switches:
        print(help_text(DuelReportConfig, "duel report"))
        return 0
    leading = list(given.leading)
    yaml_path = leading.pop(0) if leading and leading[0].endswith((".yaml", ".yml")) else None
    config = resolve(
        DuelReportConfig, [*(["--duels", *leading] if leading else []), *given.options], yaml_path=yaml_path
    )
    if "--print-config" in given.switches:
        print(dump_yaml(config), end="")
        return 0
    report = report_duels(config)
    print(votes_table(report) if "files" in report else agreement_table(report))
    if config.output_dir:
        print(f"written to {config.output_dir}")
    return 0


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    if words and words[0] == "report":
        return report_main(words[1:])
    given = sort_words(words, ["--resume", "--print-config"])
    if "--help" in given.switches:
        print(help_text(DuelConfig, verb))
        return 0
    leading = list(given.leading)
    yaml_path = leading.pop(0) if leading and leading[0].endswith((".yaml", ".yml")) else None
    options = [f"--{side}={place}" for side, place in zip("ab", leading, strict=False)]
    options += ["--others", *leading[2:]] if leading[2:] else []
    config = resolve(DuelConfig, options + given.options, yaml_path=yaml_path)
    if "--print-config" in given.switches:
        print(dump_yaml(config), end="")
        return 0
    for warning in warnings_for(config):
        print(f"warning: {warning}")
    result = run_duel(config, resume="--resume" in given.switches)
    print(table(result))
    if "ratings" in result:
        print(f"\n{ratings_table(result)}")
    print(f"written to {config.output_dir}")
    return 0
