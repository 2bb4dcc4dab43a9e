"""Example dialogues, two systems side by side (Tables 2-5 of the paper), chosen by a rule and never by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ppomax.report.markdown import table, verbatim

Row = Mapping[str, Any]


def every_kth(judgements: Sequence[Row], count: int, unquoted: str) -> tuple[list[Row], int, int]:
    """(rows, k, eligible): each k-th judgement from the first on, in file order, k = eligible // count.

    Judgements whose source matches the pattern ``unquoted`` are not eligible.
    """
    eligible = [row for row in judgements if not (unquoted and re.search(unquoted, str(row["source"])))]
    step = max(1, len(eligible) // max(1, count))
    return list(eligible[::step][:count]), step, len(eligible)


def conversation(prompt: Sequence[Mapping[str, str]]) -> str:
    """The turns of a prompt in a table cell; a single question by itself."""
    if len(prompt) == 1:
        return verbatim(prompt[0]["content"])
    return "<br>".join(f"**{turn['role']}:** {verbatim(turn['content'], 350)}" for turn in prompt)


def dialogue_section(judgements: Sequence[Row], *, a: str, b: str, count: int, unquoted: str) -> list[str]:
    """Blocks of Markdown; none where there is no judgement to show."""
    rows, step, eligible = every_kth(judgements, count, unquoted)
    if not rows:
        return []
    words = {"win": f"{a} wins", "tie": "tie", "lose": f"{b} wins"}
    nth = {1: "each", 2: "every 2nd", 3: "every 3rd"}.get(step, f"every {step}th")
    out = [
        f"## {len(rows)} dialogues, {b} beside {a}",
        f"Chosen by rule, not by hand: {nth} of the {eligible} eligible held-out prompts of the duel in file order, from "
        f"the first one on, up to {count}. Prompts of sources that match `{unquoted.replace('|', ' or ')}`, which were "
        "written to provoke offence, are judged above but not shown. Long texts are cut ([…]).",
    ]
    for i, row in enumerate(rows, 1):
        heads = [
            name if row.get(f"score_{side}") is None else f"{name}, score {row[f'score_{side}']:.2f}"
            for name, side in ((b, "b"), (a, "a"))  # a judge that compares gives no scores
        ]
        out.append(f"**{i}.** {conversation(row['prompt'])}  \n*{row['source']}; {words[row['outcome']]}*")
        out.append(table(heads, [[verbatim(row["response_b"]), verbatim(row["response_a"])]]))
    return out
