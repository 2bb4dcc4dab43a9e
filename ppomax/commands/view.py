"""``ppomax view RUNS_DIR``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from ppomax.commands.stage import sort_words
from ppomax.commands.terminal import visible
from ppomax.config import Section
from ppomax.errors import UserError
from ppomax.options import help_text, resolve
from ppomax.regular_file import expand_path

USAGE = "usage: ppomax view RUNS_DIR [--port NUMBER]"
EXAMPLES = """\
examples:
  ppomax view runs
  ppomax view runs/ppo --port 8766
  ssh -L 8766:127.0.0.1:8766 machine     # then, there: ppomax view runs --port 8766"""


class ViewConfig(Section):
    """A local web page of the runs below a folder, live: state, panels, alarms, newest samples, and the buttons
    "checkpoint now" and "stop after this iteration"."""

    folder: str
    """where the runs are; a run directory itself will do"""
    port: int = Field(0, ge=0, le=65535)
    """of 127.0.0.1, where it listens; 0: any free one. From another machine: `ssh -L`"""


def view(config: ViewConfig) -> None:
    """Serve until Ctrl-C."""
    from ppomax.view.server import ViewServer

    root = Path(expand_path(config.folder))
    if not root.is_dir():
        raise UserError(f"{root}: no such directory; give the folder in which the runs are")
    server = ViewServer(root, port=config.port)
    print(f"{len(server.runs())} runs below {visible(str(root))}: {server.url}")
    print("Ctrl-C stops; runs go on without this page", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped")


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, [])
    if given.switches:
        page = help_text(ViewConfig, verb)
        print(f"{USAGE}\n{page.partition(chr(10))[2]}\n\n{EXAMPLES}")
        return 0
    if len(given.leading) > 1:
        raise UserError(f"unexpected word {given.leading[1]!r}: one folder is shown, with all runs below it")
    if not given.leading and not any(word.startswith("--folder") for word in given.options):
        raise UserError("which folder? ppomax view RUNS_DIR (see ppomax view --help)")
    view(resolve(ViewConfig, [*(f"--folder={word}" for word in given.leading), *given.options], words_alone=True))
    return 0
