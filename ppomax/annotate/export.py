"""From judgements of people to preference pairs, outcomes of a duel, and how well people agree.

Of several judgements of one item the most frequent outcome counts; where two are equally frequent the item is undecided:
no pair, and a tie in the duel (as for a judge that contradicts itself), marked and counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ppomax.annotate.store import Item, Judgement, Store
from ppomax.errors import UserError
from ppomax.evaluate.agreement import agreement_report
from ppomax.evaluate.winrate import summarise
from ppomax.train.checkpoint import write_atomic
from ppomax.train.run import plain

MARGINS = {"slight": 1 / 3, "clear": 1.0}
"""strength as a margin, on the scale on which worded strengths in preference data are read"""
SCORES = {"win": 1.0, "tie": 0.5, "lose": 0.0}
SIGNS = {"win": 1, "tie": 0, "lose": -1}
Row = dict[str, Any]


def decide(outcomes: Sequence[str]) -> str | None:
    """The most frequent outcome; None: two are equally frequent."""
    (first, n), *others = Counter(outcomes).most_common()
    return None if others and others[0][1] == n else first


def collect(judgements: Sequence[Judgement], without: Sequence[str] = ()) -> dict[int, list[Judgement]]:
    """Valid judgements of the duel by item, leaving annotators out by name."""
    found: dict[int, list[Judgement]] = {}
    for judgement in judgements:
        if judgement.kind == "duel" and judgement.withdrawn is None and judgement.annotator not in without:
            found.setdefault(judgement.number, []).append(judgement)
    return found


def preference_pairs(items: Mapping[int, Item], votes: Mapping[int, Sequence[Judgement]]) -> tuple[list[Row], Row]:
    """(rows that `ppomax reward` reads, counts): prompt, chosen, rejected, source, annotators, and margin.

    The margin is the mean strength that those who preferred the chosen answer gave; none, where nobody gave one.
    """
    rows: list[Row] = []
    counts = Counter({"pairs": 0, "ties": 0, "undecided": 0, "empty answers": 0})
    for number, given in votes.items():
        outcome, item = decide([vote.outcome for vote in given]), items[number]
        if outcome in (None, "tie"):
            counts["undecided" if outcome is None else "ties"] += 1
            continue
        sides = (item.response_a, item.response_b) if outcome == "win" else (item.response_b, item.response_a)
        if not all(side.strip() for side in sides):  # nothing to learn from by a reward model
            counts["empty answers"] += 1
            continue
        winning = [vote for vote in given if vote.outcome == outcome]
        strengths = [MARGINS[vote.strength] for vote in winning if vote.strength is not None]
        row: Row = {
            "prompt": list(item.prompt), "chosen": sides[0], "rejected": sides[1], "source": item.source,
            "annotators": {"for": len(winning), "of": len(given)},
        }  # fmt: skip
        if strengths:
            row["margin"] = sum(strengths) / len(strengths)
        rows.append(row)
        counts["pairs"] += 1
    return rows, dict(counts)


def duel_judgements(
    items: Mapping[int, Item], votes: Mapping[int, Sequence[Judgement]], same: Mapping[int, Item]
) -> list[Row]:
    """One row a prompt, as in a duel's judgements.jsonl; the scores are 1, 0.5 or 0 by the outcome.

    votes: how many said win, tie and lose. undecided: no outcome was the most frequent (then a tie). same: both sides
    gave the same answer (a tie without a vote).
    """
    rows = []
    for number, item in sorted({**items, **same}.items()):
        given = votes.get(number, ())
        if not given and number not in same:
            continue
        decided = decide([vote.outcome for vote in given]) if given else "tie"
        outcome = decided or "tie"
        tally = Counter(vote.outcome for vote in given)
        rows.append({
            "prompt": list(item.prompt), "response_a": item.response_a, "response_b": item.response_b,
            "score_a": SCORES[outcome], "score_b": 1 - SCORES[outcome],
            "length_a": len(item.response_a), "length_b": len(item.response_b),
            "outcome": outcome, "source": item.source,
            "votes": {name: tally[name] for name in SCORES}, "undecided": decided is None, "same": number in same,
        })  # fmt: skip
    return rows


def agreement(votes: Mapping[int, Sequence[Judgement]]) -> Row:
    """Raw agreement: items that two people judged, and how often they said the same, for each two and for all.

    ``decided`` counts only those where neither said tie: there chance alone gives a half.
    """
    pairs: dict[str, Counter[str]] = {}
    for given in votes.values():
        for one, other in combinations(sorted(given, key=lambda vote: vote.annotator), 2):
            for name in (f"{one.annotator} - {other.annotator}", "all"):
                tally = pairs.setdefault(name, Counter())
                equal = one.outcome == other.outcome
                tally.update(items=1, same=int(equal))
                if "tie" not in (one.outcome, other.outcome):
                    tally.update(decided=1, decided_same=int(equal))
    return {
        name: {
            "items": tally["items"], "same": tally["same"], "rate": tally["same"] / tally["items"],
            "decided": tally["decided"], "decided_same": tally["decided_same"],
            "decided_rate": tally["decided_same"] / tally["decided"] if tally["decided"] else None,
        }
        for name, tally in sorted(pairs.items(), key=lambda pair: pair[0] == "all")
    }  # fmt: skip


def beyond_chance(items: Mapping[int, Item], votes: Mapping[int, Sequence[Judgement]], resamples: int) -> Row | None:
    """Cohen's kappa of each two annotators and Krippendorff's alpha of all, with intervals; None for one annotator."""
    names = sorted({vote.annotator for given in votes.values() for vote in given})
    if len(names) < 2:
        return None
    numbers = list(votes)
    judges = {name: np.full(len(numbers), np.nan) for name in names}
    for place, number in enumerate(numbers):
        for vote in votes[number]:
            judges[vote.annotator][place] = SIGNS[vote.outcome]
    lengths = [[len(getattr(items[number], f"response_{side}")) for number in numbers] for side in "ab"]
    return agreement_report(judges, *lengths, resamples=resamples)


def people(judgements: Sequence[Judgement]) -> Row:
    """Of each annotator: valid judgements, withdrawn ones, outcomes, how often the left side won, and test items.

    A test item's known better answer is A, so a win is right; left and right need position bias to be told.
    """
    found: dict[str, Row] = {}
    for judgement in judgements:
        row = found.setdefault(
            judgement.annotator,
            {
                "judged": 0, "withdrawn": 0, "win": 0, "tie": 0, "lose": 0, "left": 0, "right": 0,
                "tests": {"right": 0, "tie": 0, "wrong": 0},
            },
        )  # fmt: skip
        if judgement.withdrawn is not None:
            row["withdrawn"] += 1
        elif judgement.kind == "test":
            row["tests"][{"win": "right", "tie": "tie", "lose": "wrong"}[judgement.outcome]] += 1
        else:
            row["judged"] += 1
            row[judgement.outcome] += 1
            if judgement.choice != "tie":
                row[judgement.choice] += 1
    return found


def export(folder: Path, out: Path, *, without: Sequence[str] = (), resamples: int = 1000) -> Row:
    """Write ``out`` (pairs), and judgements.jsonl, votes.jsonl and result.json in ``folder``; return the result.

    Raises UserError where no annotation has begun, nothing is judged, or ``out`` cannot be written.
    """
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a folder: make it first, or choose another --out")
    store = Store.open(folder / "annotation.sqlite")
    try:
        judgements, items, same = store.judgements(), store.items("duel"), store.items("same")
        needed, names = store.needed(), [annotator.name for annotator in store.annotators()]
    finally:
        store.close()
    if unknown := [name for name in without if name not in names]:
        raise UserError(f"without: there is no annotator {unknown[0]!r}; there are {', '.join(names)}")
    votes = collect(judgements, without)
    if not votes:
        raise UserError(f"{folder}: nothing is judged yet" + (" by the others" if without else ""))
    pairs, counts = preference_pairs(items, votes)
    rows = duel_judgements(items, votes, same)
    result: Row = {
        "judge": ["people"],
        **_summaries(rows, resamples),
        "pairs": counts,
        "items": {
            "all": len(items) + len(same), "same": len(same), "judged": len(votes), "open": len(items) - len(votes),
            "meant_for_two": sum(n > 1 for n in needed.values()),
            "judged_by_two": sum(len(given) > 1 for given in votes.values()),
            "undecided": sum(row["undecided"] for row in rows),
        },
        "agreement": agreement(votes),
        "beyond_chance": beyond_chance(items, votes, resamples),
        "annotators": people(judgements),
        "without": list(without),
    }  # fmt: skip
    result = plain(result)
    write_atomic(out, _lines(pairs))
    write_atomic(folder / "judgements.jsonl", _lines(rows))
    write_atomic(folder / "votes.jsonl", _lines([_vote(judgement, items) for judgement in judgements]))
    write_atomic(folder / "result.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    return result


def _summaries(rows: Sequence[Row], resamples: int) -> Row:
    """overall and by_source, as in a duel's result.json."""

    def summary(part: Sequence[Row]) -> Row:
        outcomes = np.array([SIGNS[row["outcome"]] for row in part], dtype=np.int8)
        lengths = [[row[f"length_{side}"] for row in part] for side in "ab"]
        return summarise(outcomes, *lengths, resamples=resamples)

    sources = dict.fromkeys(row["source"] for row in rows)
    by_source = {name: summary([row for row in rows if row["source"] == name]) for name in sources}
    return {"overall": summary(rows), "by_source": by_source}


def _vote(judgement: Judgement, items: Mapping[int, Item]) -> Row:
    """One person's judgement as it was given; ``prompt`` names the item (null: a test item)."""
    item = items.get(judgement.number)
    return {
        "annotator": judgement.annotator, "item": judgement.number, "kind": judgement.kind,
        "prompt": list(item.prompt) if item else None, "outcome": judgement.outcome, "choice": judgement.choice,
        "swapped": judgement.swapped, "strength": judgement.strength, "reason": judgement.reason,
        "time": judgement.time, "withdrawn": judgement.withdrawn,
    }  # fmt: skip


def _lines(rows: Sequence[Row]) -> str:
    return "".join(f"{_line(row)}\n" for row in rows)


def _line(row: Row) -> str:
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair in a model's answer
        return json.dumps(row)
    return text
