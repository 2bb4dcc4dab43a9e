"""``ppomax sft|reward|ppo [CONFIG.yaml] [--any.field value ...]``, and how verbs read their words."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from ppomax.config import PPOConfig, RewardConfig, RunConfig, SFTConfig
from ppomax.options import dump_yaml, resolve

# verb -> (configuration, module, function(config, resume=bool))
STAGES: dict[str, tuple[type[RunConfig], str, str]] = {
    "sft": (SFTConfig, "ppomax.train.sft", "train_sft"),
    "reward": (RewardConfig, "ppomax.train.reward", "train_reward"),
    "ppo": (PPOConfig, "ppomax.train.ppo", "train_ppo"),
}


@dataclass
class Words:
    """The words of one verb, sorted: files and names first, then options; switches may stand anywhere."""

    leading: list[str]
    options: list[str]
    switches: set[str]


def sort_words(words: Sequence[str], switches: Sequence[str]) -> Words:
    """Take the named switches out (``-h`` is ``--help``), and split at the first option."""
    known = {"--help", *switches}
    found: set[str] = set()
    rest: list[str] = []
    for word in words:
        name = "--help" if word == "-h" else word.replace("_", "-")
        if name in known:
            found.add(name)
        else:
            rest.append(word)
    first = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    return Words(rest[:first], rest[first:], found)


def main(verb: str, words: list[str]) -> int:
    """Resolve the options, then print them or train."""
    cls, module, function = STAGES[verb]
    given = sort_words(words, ["--print-config", "--resume"])
    if "--help" in given.switches:
        from ppomax.options_help import help_text

        print(help_text(cls, verb))
        return 0
    yaml_path = given.leading.pop(0) if given.leading else None
    config = resolve(cls, [*given.leading, *given.options], yaml_path=yaml_path)
    if "--print-config" in given.switches:
        print(dump_yaml(config), end="")
        return 0
    getattr(importlib.import_module(module), function)(config, resume="--resume" in given.switches)
    return 0
