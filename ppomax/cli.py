"""``ppomax VERB ...``: find the verb, run it, turn mistakes into one clear line.

Nothing heavy is imported before a verb needs it, so that ``--help`` answers at once. Exit codes: 0, 1 where another
rank was lost, 2 for a mistake that the user can mend, 130 after Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from ppomax import __version__
from ppomax.errors import UserError

# verb -> (module, one line). Each module has `main(verb: str, words: list[str]) -> int`.
VERBS: dict[str, tuple[str, str]] = {
    "world": ("ppomax.commands.world", "the embedded world: data in which human judgement can be computed"),
    "new-model": ("ppomax.commands.new_model", "a fresh small model and tokenizer, where no hub can be reached"),
    "sft": ("ppomax.commands.stage", "supervised fine-tuning on dialogues, or language modelling on plain text"),
    "reward": ("ppomax.commands.stage", "reward model from preference pairs"),
    "ppo": ("ppomax.commands.stage", "align a policy with a reward by PPO-max"),
    "serve-rollouts": ("ppomax.commands.serve_rollouts", "a vLLM server for PPO to sample from, on this machine"),
    "run": ("ppomax.commands.run", "several stages in sequence from one file"),
    "chat": ("ppomax.commands.chat", "talk to a model, or to two side by side"),
    "generate": ("ppomax.commands.generate", "answer files of prompts"),
    "duel": ("ppomax.commands.duel", "who answers better, by a judge: win, tie, lose, intervals, length-controlled"),
    "evaluate": (
        "ppomax.commands.evaluate",
        "reward models on held-out pairs: accuracy, calibration, length bias, agreement",
    ),
    "annotate": (
        "ppomax.commands.annotate",
        "people compare two answers blind on a local page; preference pairs from it",
    ),
    "exam": ("ppomax.commands.exam", "multiple-choice questions from local files, several models side by side"),
    "lab": ("ppomax.commands.lab", "the claims of the paper, tested in the embedded world: runs, verdicts, one page"),
    "view": (
        "ppomax.commands.view",
        "a local page of runs while they go: panels, alarms, samples, checkpoint now, stop",
    ),
    "report": ("ppomax.commands.report", "one page of PPO and reward-model runs: verdict, curves, dialogues, settings"),
    "plan": (
        "ppomax.commands.plan",
        "before a PPO run: memory by part, seconds, and the settings that fit your devices",
    ),
    "details": ("ppomax.commands.details", "the twelve implementation details: presets, options, code, metrics"),
}

HEAD = "ppomax: RLHF with PPO that stays stable, and that tells you when it does not"
EXAMPLES = """examples:
  ppomax new-model base --size 6m --tokenizer-from dialogues.jsonl
  ppomax sft --model base --data dialogues.jsonl --output-dir runs/sft
  ppomax reward --model runs/sft/final --data pairs.jsonl --output-dir runs/reward
  ppomax ppo --model runs/sft/final --reward runs/reward/final --prompts prompts.jsonl --output-dir runs/ppo
  ppomax chat runs/ppo/final --against runs/sft/final"""


def overview() -> str:
    """The text of ``ppomax --help``."""
    width = max(map(len, VERBS))
    lines = [HEAD, "", "usage: ppomax VERB ...   (ppomax VERB --help shows every option)", ""]
    lines += [f"  {verb:{width}}  {about}" for verb, (_, about) in VERBS.items()]
    return "\n".join([*lines, "", EXAMPLES])


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(overview())
        return 0 if words else 2
    verb = words[0]
    if verb in ("--version", "-V"):
        print(f"ppomax {__version__}")
        return 0
    if verb not in VERBS:
        import difflib

        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f": choose from {', '.join(VERBS)}"
        raise UserError(f"unknown verb {verb!r}{hint}")
    run: Callable[[str, list[str]], int] = importlib.import_module(VERBS[verb][0]).main
    return run(verb, words[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"ppomax: error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "WORLD_SIZE" not in os.environ:
            raise
        from ppomax.train.parallel import lost_rank

        if (told := lost_rank(error)) is None:
            raise
        print(f"ppomax: error: {told}", file=sys.stderr, flush=True)
        return 1
    except BrokenPipeError:  # `ppomax details | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        print(f"ppomax: error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ppomax: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
