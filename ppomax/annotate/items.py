"""What is compared: the answers of a duel or of two files, and test items from preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ppomax.annotate.store import Item
from ppomax.config import DataSource
from ppomax.data.records import Message, PreferencePair
from ppomax.data.sources import load_mixture
from ppomax.errors import UserError
from ppomax.regular_file import expand_path


def answer_files(places: Sequence[str]) -> tuple[str, str]:
    """The two files of answers of a duel's folder, or those that are named."""
    if len(places) == 2:
        return places[0], places[1]
    if len(places) != 1:
        raise UserError("give the folder of a duel, or two files of answers: ppomax annotate A.jsonl B.jsonl")
    folder = Path(expand_path(places[0]))
    files = folder / "answers_a.jsonl", folder / "answers_b.jsonl"
    if not all(file.is_file() for file in files):
        raise UserError(f"{folder}: no answers_a.jsonl and answers_b.jsonl in it: give the folder of a duel")
    return str(files[0]), str(files[1])


def duel_items(file_a: str, file_b: str) -> tuple[list[Item], list[str]]:
    """(items, lines that say what was left out): one item a prompt that both files answer."""
    from ppomax.evaluate.answers import read_answers  # imports the models' libraries: slow

    (a, more_a), (b, more_b) = read_answers(file_a), read_answers(file_b)
    items = [
        Item(left.prompt, left.response, b[key].response, left.source, left.finished, b[key].finished)
        for key, left in a.items()
        if key in b
    ]
    if not items:
        raise UserError(f"{file_a} and {file_b} answer no prompt in common")
    counts = {
        "prompts without an answer in the other file": len(a) + len(b) - 2 * len(items),
        "further answers to the same prompt": more_a + more_b,
    }
    return items, [f"left out: {n} {what}" for what, n in counts.items() if n]


def attention_items(path: str) -> tuple[list[Item], list[str]]:
    """(items, lines for people) from preference pairs: the chosen answer is the known better one."""
    records, report = load_mixture([DataSource(path=path)], "pair")
    items = {}
    for record in records:
        assert isinstance(record, PreferencePair)
        item = Item(record.prompt, _text(record.chosen), _text(record.rejected), record.source)
        items[item.record] = item
    lines = report.lines()
    if len(items) < len(records):
        lines.append(f"left out: {len(records) - len(items)} repeated test items")
    return list(items.values()), lines


def _text(messages: Sequence[Message]) -> str:
    """An answer as text; the turns of a longer continuation are named."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
