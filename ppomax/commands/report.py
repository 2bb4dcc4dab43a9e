"""``ppomax report RUN... [--out FILE] [--figures DIR]``."""

from __future__ import annotations

import os
from pathlib import Path

from ppomax.commands.stage import sort_words
from ppomax.errors import UserError
from ppomax.regular_file import expand_path

HELP = """usage: ppomax report RUN... [--out FILE.html] [--figures DIR]

One page of PPO and reward-model runs, from their own files: verdict, curves, dialogues, settings. It opens from disk and
needs no network. Several runs are laid over each other, with a table of the settings in which they differ.

  --out FILE.html   where the page goes: RUN/report.html for one run, report.html here for several
  --figures DIR     write every figure as PNG and SVG, too

examples:
  ppomax report runs/ppo
  ppomax report runs/quickstart/ppo_max runs/quickstart/vanilla --out both.html
  ppomax report runs/reward --figures figures"""


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, [])
    if "--help" in given.switches:
        print(HELP)
        return 0
    options = _options(given.options)
    if not given.leading:
        raise UserError("which run? ppomax report RUN... (see ppomax report --help)")
    runs = [Path(expand_path(word)) for word in given.leading]
    out = runs[0] / "report.html" if len(runs) == 1 else Path("report.html")
    out = Path(expand_path(options["out"])) if "out" in options else out
    if out.suffix != ".html":
        raise UserError(f"--out: {out}: the page must end in .html")
    if "out" in options and not os.access(out.parent, os.W_OK):  # told before the figures are drawn
        known = "cannot be written into" if out.parent.is_dir() else "no such folder; make it first"
        raise UserError(f"--out: {out.parent}: {known}")

    from ppomax.report.page import report
    from ppomax.train.checkpoint import write_atomic
    from ppomax.train.progress import ProgressLine

    made = report(runs)
    files: list[Path] = []
    try:
        write_atomic(out, made.html)
        if "figures" in options:
            folder = Path(expand_path(options["figures"]))
            folder.mkdir(parents=True, exist_ok=True)
            taken: set[str] = set()
            with ProgressLine("files of figures", len(made.figures)) as bar:
                for figure in made.figures:
                    files += figure.save(folder, taken)
                    bar.step()
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written: {error.strerror}") from None
    print(f"written: {out} ({len(made.html.encode()) / 1e6:.1f} MB)" + (f", {len(files)} figures" if files else ""))
    return 0


def _options(words: list[str]) -> dict[str, str]:
    """``--out FILE --figures DIR``, with a space or an equals sign."""
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name not in ("--out", "--figures"):
            raise UserError(f"unknown option {name}; ppomax report takes --out and --figures, after the runs")
        if not equals:
            if not rest:
                raise UserError(f"{name}: a value is missing")
            value = rest.pop(0)
        found[name.removeprefix("--")] = value
    return found
