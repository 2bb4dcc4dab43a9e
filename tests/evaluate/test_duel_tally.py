"""From judged pairs to a duel's result, by hand."""

from __future__ import annotations

import pytest

from ppomax.data.records import Message
from ppomax.evaluate.answers import Answer
from ppomax.evaluate.duel_tally import compare


def test_parts_and_lengths_in_characters() -> None:
    """A Chinese character counts one, not its three bytes; each part counts its own prompts."""

    def answers(*texts: str) -> list[Answer]:
        return [Answer((Message(role="user", content=f"q{i}"),), text) for i, text in enumerate(texts)]

    a, b = answers("河里有鱼", "yes", "no"), answers("fish", "是", "maybe")
    result, rows = compare(a, b, [2.0, 1.0, 0.0], [1.0, 1.5, 0.25], ["x", "y", "y"], tie_band=0.25, tie_unit="score")
    assert [row["outcome"] for row in rows] == ["win", "lose", "tie"]
    assert [(row["length_a"], row["length_b"]) for row in rows] == [(4, 4), (3, 1), (2, 5)]
    assert result["overall"]["mean_length_a"] == 3 and result["overall"]["mean_length_b"] == pytest.approx(10 / 3)
    assert result["by_source"]["x"]["win_rate"]["value"] == 1 and result["by_source"]["y"]["win_rate"]["value"] == 0.25
    assert result["overall"]["win_rate"]["value"] == 0.5 and result["tie_band"] == 0.25
