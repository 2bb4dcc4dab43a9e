"""Words of a duel's tables."""

from __future__ import annotations

from ppomax.commands.duel_tables import more_often


def test_a_difference_of_shares_in_words() -> None:
    assert more_often({"value": 0.25, "low": 0.1, "high": 0.4}) == "25.0% [10.0%, 40.0%] more often"
    assert more_often({"value": -0.625, "low": -0.75, "high": 0.1}) == "62.5% [-10.0%, 75.0%] less often"
    assert more_often({"value": -0.5, "low": None, "high": None}) == "50.0% [-, -] less often"
    assert more_often({"value": None, "low": None, "high": None}) == "- more often"
