"""``ppomax new-model OUT --tokenizer-from DATA...``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppomax.commands.words import Words


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def texts_of(paths: list[str]) -> Iterator[str]:
    """Every text in the records of these files."""
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else Path(path).open() as file:
            for line in file:
                yield from _strings(json.loads(line))


def main(verb: str, words: list[str]) -> int:
    """Train a tokenizer, draw a model, save both."""
    parser = Words(
        verb,
        "A fresh small Llama and a byte-level BPE tokenizer trained on your data, in Hugging Face layout.",
        "  ppomax new-model base --size 6m --tokenizer-from dialogues.jsonl texts.jsonl.gz",
    )
    parser.add_argument("out", metavar="OUT", help="folder to make; refused when it exists and is not empty")
    parser.add_argument("--size", default="6m", help="1m, 6m, 25m, 100m, 300m, 1b or 7b (default 6m)")
    parser.add_argument("--tokenizer-from", nargs="+", required=True, metavar="DATA", help="files, folders, hub names")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="entries of the tokenizer (default by size)")
    parser.add_argument("--seed", type=int, default=0, help="draws the weights (default 0)")
    options = parser.parse_args(words)

    from ppomax.models.fresh import new_model

    made = new_model(
        options.out,
        texts_of(options.tokenizer_from),
        size=options.size,
        vocab_size=options.vocab_size,
        seed=options.seed,
    )
    print(f"{options.out}: {made['parameters']:,} parameters, vocabulary {made['vocabulary']:,}")
    return 0
