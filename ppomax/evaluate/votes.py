"""Agreement between judges from published files of votes, as MT-Bench's and AlpacaEval's authors give it.

    ppomax duel report human.jsonl gpt4_pair.jsonl --output_dir runs/mt_bench

A vote is one judge's word on one pair of answers; a pair may have any number of votes. Three layouts, told by their columns
(JSON lines, JSON, CSV, parquet):

* MT-Bench (Zheng et al. 2023): ``question_id, model_a, model_b, winner, judge, turn``; winner is model_a, model_b, tie, or
  tie (inconsistent), of a judge that contradicted itself when the answers were exchanged.
* FastChat's replies of such a judge: ``question_id, model_1, model_2, g1_winner, g2_winner, judge, turn``; other than twice
  the same winner is a tie.
* AlpacaEval: ``instruction, output_1, output_2, preference`` and, as it may be, ``annotator`` or ``annotator_index``.

Judges are taken together by kind: expert_1 and expert_2 are experts. The agreement of two kinds is that of two random votes,
one of each, by different people, on the same pair of answers: all such pairs of votes count alike (section 4.2 of that paper).
Questions are the independent units of the intervals.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, combinations_with_replacement, product
from pathlib import Path
from typing import Any

import numpy as np

from ppomax.data.sources import open_source
from ppomax.errors import UserError
from ppomax.evaluate.agreement import (
    Floats,
    alpha_of_coincidences,
    bootstrap,
    count_coincidences,
    kappa_of_tables,
    share,
)
from ppomax.regular_file import expand_path

Row = Mapping[str, Any]
VALUES = np.array([-1.0, 0.0, 1.0])
PEOPLE = "expert|author|annotator|human|user|worker|rater|crowd|person"
"""judges that are told apart by a number (expert_1, expert_2) and taken together; gpt_3 and gpt_4 are two judges"""


@dataclass(frozen=True)
class Vote:
    """One judge's word on one pair of answers, whose sides are in alphabetical order."""

    question: Hashable
    pair: Hashable
    part: str
    """ "turn 1", or "" where the layout knows no turns"""
    judge: str
    kind: str
    value: float
    """from -1 (second side better) over 0 (tie) to 1; fractions where the judge gave a probability"""

    @property
    def outcome(self) -> float:
        """+1, 0 or -1."""
        return float(np.sign(self.value))


class _NoVote(Exception):
    """A row without a winner; the message is why."""


def is_votes(place: str) -> bool:
    """A file, as opposed to the directory of a finished duel."""
    return Path(expand_path(place)).is_file()


def read_votes(place: str) -> tuple[list[Vote], dict[str, int]]:
    """(votes, rows without one by reason) of a file. UserError for an unknown layout or a value that means nothing."""
    votes: list[Vote] = []
    without: Counter[str] = Counter()
    stem = Path(place).name.split(".")[0]
    for path, _, _, given in open_source(place, None):
        rows = list(given)
        scale = _scale(path, [row for _, row in rows if "preference" in row])
        for origin, row in rows:
            try:
                if "preference" in row:
                    votes.append(_preference(row, origin, stem, scale))
                elif "winner" in row or "g1_winner" in row:
                    votes.append(_winner(row, origin))
                else:
                    raise UserError(
                        f"{origin}: not a vote: expected question_id, model_a, model_b, winner, judge, turn (MT-Bench) or "
                        f"instruction, output_1, output_2, preference (AlpacaEval); it has {', '.join(map(str, row))}"
                    )
            except KeyError as error:
                raise UserError(f"{origin}: {error.args[0]}: is missing") from None
            except _NoVote as why:
                without[str(why)] += 1
    return votes, dict(without)


def _winner(row: Row, origin: str) -> Vote:
    numbered = "g1_winner" in row
    sides = ("model_1", "model_2") if numbered else ("model_a", "model_b")
    a, b = (str(row[side]) for side in sides)
    named = [row["g1_winner"], row["g2_winner"]] if numbered else [row["winner"]]
    signs = []
    for word in named:
        if word is None or word in ("", "error"):
            raise _NoVote("no winner")
        if word in sides:
            signs.append(1.0 if word == sides[0] else -1.0)
        elif isinstance(word, str) and word.startswith("tie"):
            signs.append(0.0)
        else:
            raise UserError(f"{origin}: winner: {word!r} is none of {sides[0]}, {sides[1]}, tie, tie (inconsistent)")
    sign = signs[0] if len(set(signs)) == 1 else 0.0
    if a == b:
        raise _NoVote("both sides of one model")
    question, judge = _text(row["question_id"]), row["judge"]
    if isinstance(judge, list | tuple):  # FastChat: its name and its prompt, another one for the second turn
        judge = " ".join(re.sub(r"^pair-.*", "pair", str(part)) for part in judge)
    part = f"turn {_text(row['turn'])}" if row.get("turn") is not None else ""
    first, second = sorted((a, b))
    kind = re.sub(rf"^({PEOPLE})_\d+$", r"\1", str(judge))
    return Vote(question, (question, first, second), part, str(judge), kind, sign if first == a else 0.0 - sign)


def _text(value: Any) -> str:
    """An id as text: 81.0, as tables with gaps have it, is 81."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _number(value: Any) -> float | None:
    """A preference, also as a CSV file's text; None where there is none."""
    try:
        number = None if value is None or value == "" else math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.inf  # no preference reaches so far: refused
    return None if number is None or math.isnan(number) else number


def _scale(path: str, rows: Sequence[Row]) -> tuple[float, float]:
    """(preference of the first output, of the second): 1 and 2, or 0 and 1 where fractions below 1 show it."""
    values = {v for row in rows if (v := _number(row["preference"])) is not None}
    if any(v > 1 for v in values) or not values:
        return 1.0, 2.0
    if any(0 < v < 1 for v in values):
        return 0.0, 1.0
    raise UserError(
        f"{path}: preference: only {' and '.join(f'{v:g}' for v in sorted(values))} occur, which may be AlpacaEval's 1 (first "
        "output), 2 (second) and 0 (tie), or probabilities of the second; write 1, 2 and 1.5"
    )


def _preference(row: Row, origin: str, stem: str, scale: tuple[float, float]) -> Vote:
    given = _number(row["preference"])
    if given is None:
        raise _NoVote("no preference")
    low, high = scale
    if not (low <= given <= high or given == 0):
        raise UserError(
            f"{origin}: preference: {row['preference']!r} is no number from {low:g} (first output) to {high:g} (second)"
        )
    value = 0.0 if given == 0 and low == 1 else 1 - 2 * (given - low)
    question = (str(row["instruction"]), str(row.get("input") or ""))
    a, b = str(row["output_1"]), str(row["output_2"])
    name, index = row.get("annotator"), row.get("annotator_index")
    kind = str(name) if name is not None else stem
    # nobody named: every row is somebody else's
    judge = kind if name is not None and index is None else f"{kind} {index if index is not None else origin}"
    return Vote(question, (question, *sorted((a, b))), "", judge, kind, value if a <= b else 0.0 - value)


# ------------------------------------------------------------------------------------------ agreement


def report_votes(places: Sequence[str], *, seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """files (votes, without: rows by reason), kinds, and parts: for each turn, and for all, its agreement.

    kinds: votes, judges, pairs of answers, share of ties. A part: votes, alpha_nominal and alpha_ordinal of all votes, and
    pairs: of each two kinds what `agreement_of_kinds` gives. UserError where no two votes are on the same pair.
    """
    votes: list[Vote] = []
    files: dict[str, dict[str, Any]] = {}
    for place in places:
        if any(Path(expand_path(place)).samefile(expand_path(other)) for other in files):
            raise UserError(f"duels: {place} is given twice: its votes would count twice")
        own, without = read_votes(place)
        files[place] = {"votes": len(own), "without": without}
        votes += own
    parts = sorted({vote.part for vote in votes})
    chosen = {part or "all": [v for v in votes if v.part == part] for part in parts}
    if len(parts) > 1:
        chosen["all"] = votes
    found = {name: _part(own, seed, resamples) for name, own in chosen.items()}
    if not any(part["pairs"] for part in found.values()):
        raise UserError(f"duel report: no two votes in {', '.join(places)} are on the same pair of answers")
    kinds = {}
    for kind in dict.fromkeys(vote.kind for vote in votes):
        of = [vote for vote in votes if vote.kind == kind]
        kinds[kind] = {
            "votes": len(of), "judges": len({v.judge for v in of}), "pairs": len({(v.pair, v.part) for v in of}),
            "ties": sum(v.outcome == 0 for v in of) / len(of),
        }  # fmt: skip
    return {"files": files, "kinds": kinds, "parts": found, "seed": seed, "resamples": resamples}


def _part(votes: Sequence[Vote], seed: int, resamples: int) -> dict[str, Any]:
    items: dict[Hashable, list[Vote]] = defaultdict(list)
    for vote in votes:
        items[vote.pair, vote.part].append(vote)
    kinds = list(dict.fromkeys(vote.kind for vote in votes))
    pairs = [
        agreement_of_kinds(one, other, list(items.values()), seed=seed, resamples=resamples)
        for one, other in combinations_with_replacement(kinds, 2)
    ]
    # alpha does not ask who said what: a row for the first vote on each pair, one for the second, ...
    table = np.full((max(map(len, items.values()), default=1), len(items)), np.nan)
    for column, own in enumerate(items.values()):
        table[: len(own), column] = [vote.outcome for vote in own]
    coincidences, values = count_coincidences(table)
    questions = [own[0].question for own in items.values()]
    grouped = _by_question(questions, coincidences)

    def alpha(metric: Any) -> dict[str, float]:
        return asdict(
            bootstrap(
                lambda c: alpha_of_coincidences(c @ grouped, values, metric),
                len(grouped),
                seed=seed,
                resamples=resamples,
            )
        )

    return {
        "votes": len(votes), "items": len(items), "questions": len(set(questions)),
        "pairs": [pair for pair in pairs if pair["votes"] or pair["same_judge"]],
        "alpha_nominal": alpha("nominal"), "alpha_ordinal": alpha("ordinal"),
    }  # fmt: skip


def agreement_of_kinds(
    one: str, other: str, items: Sequence[Sequence[Vote]], *, seed: int = 0, resamples: int = 1000
) -> dict[str, Any]:
    """How often two random votes on the same pair of answers agree, one of each kind, or two of one kind.

    ``items``: the votes on each pair of answers. votes (pairs of votes), agreement (with ties; MT-Bench's setup S1),
    votes_decided and agreement_decided (where neither says tie; S2), agreement_half (1 - half the distance: a tie against a
    decision is half right; AlpacaEval's absolute rule), kappa (Cohen's, of the table of all pairs of votes), each with
    its interval; same_judge: pairs of votes by one and the same judge, which are left out.
    """
    questions, rows, cells = [], [], []
    same_judge = 0
    for votes in items:
        if one == other:
            both = list(combinations([v for v in votes if v.kind == one], 2))
        else:
            both = list(product([v for v in votes if v.kind == one], [v for v in votes if v.kind == other]))
        for a, b in both:
            if a.judge == b.judge:
                same_judge += 1
                continue
            equal, decided = a.outcome == b.outcome, bool(a.outcome and b.outcome)
            questions.append(a.question)
            rows.append([1.0, equal, decided, equal and decided, 1 - abs(a.value - b.value) / 2])
            table = np.zeros((3, 3))
            table[int(a.outcome) + 1, int(b.outcome) + 1] = 1
            # of two votes of one kind neither is the first
            cells.append((table + table.T if one == other else table).ravel())
    counts = _by_question(questions, np.array(rows, dtype=np.float64).reshape(-1, 5))
    tables = _by_question(questions, np.array(cells).reshape(-1, 9))

    def of(part: int, whole: int) -> dict[str, float]:
        return asdict(share(counts[:, part], counts[:, whole], seed=seed, resamples=resamples))

    def interval(statistic: Callable[[Floats], Floats]) -> dict[str, float]:
        return asdict(bootstrap(statistic, len(tables), seed=seed, resamples=resamples))

    total = counts.sum(axis=0)
    return {
        "one": one, "other": other, "votes": int(total[0]), "agreement": of(1, 0), "votes_decided": int(total[2]),
        "agreement_decided": of(3, 2), "agreement_half": of(4, 0),
        "kappa": interval(lambda c: kappa_of_tables(c @ tables, VALUES, "nominal")), "same_judge": same_judge,
    }  # fmt: skip


def _by_question(questions: Sequence[Hashable], numbers: Floats) -> Floats:
    """(questions, k) sums of (n, k) numbers."""
    place = {question: i for i, question in enumerate(dict.fromkeys(questions))}
    out = np.zeros((len(place), numbers.shape[1]))
    np.add.at(out, np.array([place[question] for question in questions], dtype=np.int64), numbers)
    return out
