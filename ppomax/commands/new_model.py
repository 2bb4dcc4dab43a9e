"""``ppomax new-model OUT --tokenizer-from DATA...``: a base model where no hub can be reached."""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field

from ppomax.commands.stage import sort_words
from ppomax.config import DataSource, Mixture, Section
from ppomax.errors import UserError
from ppomax.options import dump_yaml, resolve


class NewModelConfig(Section):
    """A fresh small Llama with random weights, and a byte-level BPE tokenizer trained on data, in Hugging Face layout."""

    output_dir: str
    """folder to make; one that exists and is not empty is refused"""
    size: Literal["1m", "6m", "25m", "100m", "300m", "1b", "7b"] = "6m"
    """shape, by its rough number of parameters"""
    tokenizer_from: Mixture = Field(min_length=1)
    """records whose text trains the tokenizer: any layout, files, folders or hub names"""
    vocab_size: int | None = Field(None, ge=263)
    """entries of the tokenizer; null: by size (4096 up to 25m, 16384 for 100m, else 32000)"""
    seed: int = 0
    """draws the weights"""


def texts_of(sources: list[DataSource]) -> list[str]:
    """Every text in the records: whole dialogues, the prompt and the chosen answer of pairs, prompts, plain text."""
    from ppomax.data.records import Dialogue, Prompt, Text
    from ppomax.data.sources import LoadReport, load_mixture

    texts: list[str] = []
    for source in sources:
        report: LoadReport
        try:
            records, report = load_mixture([source], "dialogue")
        except UserError as first:
            try:
                records, report = load_mixture([source], "prompt")
            except UserError:
                raise first from None
        for line in report.lines():
            print(line, file=sys.stderr)
        for record in records:
            if isinstance(record, Text):
                texts.append(record.text)
            elif isinstance(record, Dialogue | Prompt):
                texts += [message["content"] for message in record.messages]
    return texts


def make_new_model(config: NewModelConfig) -> None:
    """Train the tokenizer, draw the model, save both, say what came out."""
    from ppomax.models.fresh import new_model, require_empty

    require_empty(config.output_dir)  # before minutes of reading
    texts = texts_of(config.tokenizer_from)
    print(f"training a tokenizer on {len(texts):,} texts, {sum(map(len, texts)):,} characters", file=sys.stderr)
    made = new_model(
        config.output_dir,
        texts,
        size=config.size,
        vocab_size=config.vocab_size,
        seed=config.seed,
        config_yaml=dump_yaml(config),
    )
    print(f"{config.output_dir}: {made['parameters']:,} parameters, vocabulary {made['vocabulary']:,}")


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, [])
    if given.switches:
        from ppomax.options_help import help_text

        print(help_text(NewModelConfig, verb))
        return 0
    if len(given.leading) > 1:
        raise UserError(
            f"unexpected word {given.leading[1]!r}: one folder is made (ppomax new-model OUT --tokenizer-from ...)"
        )
    options = [f"--output_dir={given.leading[0]}"] if given.leading else []
    make_new_model(resolve(NewModelConfig, [*options, *given.options], words_alone=True))
    return 0
