"""``ppomax chat MODEL [--against OTHER]``: talk to what was trained, one model or two side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from ppomax.commands.generate import context_of
from ppomax.commands.stage import sort_words
from ppomax.commands.terminal import Streamed, visible
from ppomax.config import ChatTemplate, SamplingConfig, Section
from ppomax.data.records import Message
from ppomax.errors import UserError
from ppomax.options import resolve

HELP = "/reset forgets the dialogue   /system TEXT sets the system message (and resets)   /quit or Ctrl-D leaves"


class ChatConfig(Section):
    """A dialogue with one model, or with two side by side. The sampling defaults are the paper's."""

    model: str
    """directory or hub name"""
    against: str | None = None
    """a second model that answers the same turns"""
    system: str | None = None
    """system message"""
    sampling: SamplingConfig = SamplingConfig(
        max_new_tokens=512, temperature=0.8, top_p=0.9, repetition_penalty=1.1, batch_size=1
    )
    """how answers are drawn"""
    chat_template: ChatTemplate = "model"
    """how dialogues become text"""
    seed: int = 0
    """the same seed and the same turns give the same answers"""
    device: str = "auto"
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1`"""
    trust_remote_code: bool = False
    """run Python code that comes with a model"""


class Talker:
    """One model and its side of the dialogue."""

    def __init__(self, path: str, config: ChatConfig) -> None:
        from ppomax.data.chat import ChatFormat
        from ppomax.models.loading import load_causal_lm, load_tokenizer
        from ppomax.rollout.transformers_engine import TransformersEngine
        from ppomax.train.parallel import pick_device

        self.name = path
        self.format = ChatFormat(load_tokenizer(path, config.trust_remote_code), config.chat_template)
        model = load_causal_lm(path, pick_device(config.device), config.trust_remote_code)
        self.room = context_of(model)
        new_tokens = min(config.sampling.max_new_tokens, max(1, self.room // 2))
        self.engine: Any = TransformersEngine(
            model, self.format, config.sampling.model_copy(update={"max_new_tokens": new_tokens})
        )
        self.new_tokens = new_tokens
        self.seed = config.seed
        self.history: list[Message] = []
        self.reset(config.system)

    def reset(self, system: str | None) -> None:
        """Forget everything but the system message."""
        self.history = [{"role": "system", "content": system}] if system else []

    def answer(self, text: str) -> Iterator[str]:
        """Pieces of the answer to ``text``; the oldest turns are forgotten where the context is too small."""
        from ppomax.rollout.engine import sample_seed

        self.history.append({"role": "user", "content": text})
        ids = self.format.encode_prompt(self.history)
        while len(ids) + self.new_tokens > self.room:
            oldest = next(i for i, message in enumerate(self.history) if message["role"] == "user")
            if oldest == len(self.history) - 1:
                self.history.pop()
                raise UserError(f"{self.name}: this turn has {len(ids)} tokens, and the context holds {self.room}")
            del self.history[oldest : oldest + 2]
            ids = self.format.encode_prompt(self.history)
        shown = Streamed(self.format.tokenizer)
        drawn: list[int] = []
        try:
            for token in self.engine.stream(ids, sample_seed(self.seed, len(self.history))):
                drawn.append(token)
                if token not in self.format.eos_ids:
                    yield shown.add(token)
        finally:  # Ctrl-C keeps what was said so far
            self.history.append({"role": "assistant", "content": self.format.decode(drawn)})


def _say_one(talker: Talker, text: str, console: Console) -> None:
    started = False
    for piece in talker.answer(text):
        piece = piece if started else piece.lstrip()
        started = started or bool(piece)
        console.print(Text(piece), end="", soft_wrap=True)
    console.print()


def _say_both(talkers: Sequence[Talker], text: str, console: Console) -> None:
    """Both answers grow in two columns; where the output is no terminal, one after the other."""
    said = ["" for _ in talkers]
    if not console.is_terminal:
        for talker in talkers:
            console.print(Text(f"[{visible(talker.name)}]"))
            _say_one(talker, text, console)
        return

    def view() -> Group:
        width = max(20, console.width // len(talkers) - 1)
        panels = [
            Panel(Text(body.lstrip()), title=Text(visible(talker.name)), width=width)
            for talker, body in zip(talkers, said, strict=True)
        ]
        return Group(Columns(panels, padding=0))

    with Live(view(), console=console, refresh_per_second=12, vertical_overflow="visible") as live:
        for pieces in zip_longest(*(talker.answer(text) for talker in talkers), fillvalue=""):
            for i, piece in enumerate(pieces):
                said[i] += piece
            live.update(view())


def _turns(console: Console) -> Iterator[str]:
    """Lines of the person: with a prompt on a terminal, as they come from a pipe."""
    asks = sys.stdin.isatty()
    if asks:
        import readline  # noqa: F401  (line editing and history in input())
    while True:
        try:
            line = input("> ") if asks else sys.stdin.readline()
        except EOFError:
            return
        if not asks and not line:
            return
        line = line.strip()
        if line and not asks:
            console.print(Text(f"> {visible(line)}"))
        if line:
            yield line


def chat(config: ChatConfig) -> None:
    """The loop: commands, or a turn for every model."""
    console = Console(highlight=False)
    talkers = [Talker(path, config) for path in (config.model, config.against) if path]
    system = config.system
    if sys.stdin.isatty():
        console.print(Text(HELP, style="dim"))
    for line in _turns(console):
        command, _, rest = line.partition(" ")
        if command in ("/quit", "/exit"):
            return
        if command in ("/reset", "/system"):
            if command == "/system":
                system = rest.strip() or None
            for talker in talkers:
                talker.reset(system)
            console.print(Text("(new dialogue)", style="dim"))
        elif command.startswith("/"):
            console.print(Text(HELP, style="dim"))
        else:
            try:
                if len(talkers) == 1:
                    _say_one(talkers[0], line, console)
                else:
                    _say_both(talkers, line, console)
            except UserError as error:  # too long a turn: say so and go on
                console.print(Text(str(error), style="red"))
            except KeyboardInterrupt:
                console.print(Text(" (stopped)", style="dim"))


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, [])
    if given.switches:
        from ppomax.options_help import help_text

        print(help_text(ChatConfig, verb))
        return 0
    if len(given.leading) > 1:
        raise UserError(f"unexpected word {given.leading[1]!r}: a second model is --against {given.leading[1]}")
    options = [*given.options, *(f"--model={word}" for word in given.leading)]
    chat(resolve(ChatConfig, options, words_alone=True))
    return 0
