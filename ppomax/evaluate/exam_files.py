"""Multiple-choice questions from local files, in three layouts that are told apart by name and columns.

* JSON lines (.jsonl, .jsonl.gz): ``subject``, ``category``, ``split``, ``question``, ``choices``, ``answer`` (a letter, or
  the choice's number from 0); other columns are left alone. ``ppomax world`` writes this layout.
* C-Eval's CSV files: columns ``id, question, A, B, C, D, answer``, named ``SUBJECT_dev.csv``, ``SUBJECT_val.csv``,
  ``SUBJECT_test.csv``; the subject's group follows C-Eval's own table.
* A folder of such files. Of a folder that ``ppomax world`` made, its exam.jsonl alone.

Rows of the split ``dev`` are few-shot examples; those of test, val and validation are the questions.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppomax.errors import UserError
from ppomax.regular_file import expand_path

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")
EXAMPLES = ("dev", "train")
QUESTIONS = ("test", "val", "validation")
NO_GROUP = "other"
"""group of a subject that the file and C-Eval's table say nothing about"""
GROUPS = {
    "STEM": "computer_network operating_system computer_architecture college_programming college_physics "
    "college_chemistry advanced_mathematics probability_and_statistics discrete_mathematics electrical_engineer "
    "metrology_engineer high_school_mathematics high_school_physics high_school_chemistry high_school_biology "
    "middle_school_mathematics middle_school_biology middle_school_physics middle_school_chemistry veterinary_medicine",
    "social_sciences": "college_economics business_administration marxism mao_zedong_thought education_science "
    "teacher_qualification high_school_politics high_school_geography middle_school_politics middle_school_geography",
    "humanities": "modern_chinese_history ideological_and_moral_cultivation logic law chinese_language_and_literature "
    "art_studies professional_tour_guide legal_professional high_school_chinese high_school_history "
    "middle_school_history",
    "other": "civil_servant sports_science plant_protection basic_medicine clinical_medicine urban_and_rural_planner "
    "accountant fire_engineer environmental_impact_assessment_engineer tax_accountant physician",
}
"""the 52 subjects of C-Eval by group"""
GROUP_OF = {subject: group for group, subjects in GROUPS.items() for subject in subjects.split()}
SHOWN = 5
"""bad rows of a file that are named one by one"""


@dataclass(frozen=True)
class Question:
    """One multiple-choice question. ``answer`` is the right choice's number."""

    data: str
    """the file or folder that was asked for: examples come from the same one"""
    where: str
    """file:line"""
    subject: str
    category: str
    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass
class Exam:
    """All questions, their few-shot examples by (data, subject), and what was found in the files."""

    questions: list[Question] = field(default_factory=list)
    examples: dict[tuple[str, str], list[Question]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """by data: questions, examples, bad_rows, without_answer (published test sets keep theirs back)"""
    complaints: list[str] = field(default_factory=list)
    """bad rows, one line each with file:line, at most `SHOWN` a file"""

    def lines(self) -> list[str]:
        """The report for a terminal."""
        out = [
            f"{data}: {n['questions']} questions, {n['examples']} examples"
            + (f", {n['without_answer']} without an answer left out" if n["without_answer"] else "")
            + (f", {n['bad_rows']} bad rows left out" if n["bad_rows"] else "")
            for data, n in self.counts.items()
        ]
        return [*out, *self.complaints]


class _NoAnswer(Exception):
    """A row that is whole but for its answer."""


def load_exam(paths: Sequence[str]) -> Exam:
    """Read files and folders. A bad row is left out, counted and named; nothing left at all is a UserError."""
    exam = Exam()
    for path in dict.fromkeys(paths):
        counts = exam.counts[path] = dict.fromkeys(("questions", "examples", "bad_rows", "without_answer"), 0)
        for file in _files(path):
            bad: list[str] = []
            for split, question in _read(file, path, bad, counts):
                if split in EXAMPLES:
                    counts["examples"] += 1
                    exam.examples.setdefault((path, question.subject), []).append(question)
                else:
                    counts["questions"] += 1
                    exam.questions.append(question)
            counts["bad_rows"] += len(bad)
            exam.complaints += bad[:SHOWN]
            if len(bad) > SHOWN:
                exam.complaints.append(f"{file}: {len(bad) - SHOWN} more bad rows")
        if not counts["questions"]:
            why = f" ({exam.complaints[0]})" if counts["bad_rows"] else ""
            without = f", {counts['without_answer']} have no answer" if counts["without_answer"] else ""
            raise UserError(
                f"data {path}: no question in it: {counts['examples']} examples, {counts['bad_rows']} bad rows{why}{without}"
            )
    return exam


def _files(path: str) -> list[Path]:
    place = Path(expand_path(path))
    if place.is_dir():
        if (place / "world.json").exists():
            return [place / "exam.jsonl"]
        found = sorted(f for f in place.rglob("*") if f.name.endswith(SUFFIXES) and f.is_file())
        if not found:
            raise UserError(f"data {path}: the folder has no {', '.join(SUFFIXES[::2])} file")
        return found
    if not place.is_file():
        raise UserError(f"data {path}: no such file or folder")
    if not place.name.endswith(SUFFIXES):
        raise UserError(f"data {path}: {', '.join(SUFFIXES)} files are read (JSON lines, or C-Eval's CSV)")
    return [place]


def _read(file: Path, data: str, bad: list[str], counts: dict[str, int]) -> Iterator[tuple[str, Question]]:
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text: {error}") from None
    stem = file.name.split(".")[0]
    rows = _csv_rows(text, file, stem) if ".csv" in file.suffixes else _json_rows(text)
    for number, row in rows:
        where = f"{file}:{number}"
        try:
            yield _question(row, data, where, stem)
        except _NoAnswer:
            counts["without_answer"] += 1
        except ValueError as error:
            bad.append(f"{where}: {error}")


def _json_rows(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row = ValueError(f"malformed JSON: {error}")
            yield number, row


def _csv_rows(text: str, file: Path, stem: str) -> Iterator[tuple[int, Any]]:
    """C-Eval's columns as a row of the JSON layout; a row may span lines, and is named by its first one."""
    named = re.fullmatch(r"(.+)_(dev|val|test)", stem)
    subject, split = (named[1], named[2]) if named else (stem, "test")
    csv.field_size_limit(2**31 - 1)  # the default refuses long questions
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = reader.fieldnames or []
    letters = [letter for letter in LETTERS if letter in columns]
    if "question" not in columns or letters[:2] != ["A", "B"]:
        raise UserError(f"{file}:1: columns question, A, B, ... are expected, found {', '.join(columns) or 'none'}")
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:  # such as a quote that never ends: nothing after it can be told apart
            raise UserError(f"{file}:{number}: malformed CSV: {error}") from None
        if row is None:
            return
        if None in row or None in row.values():
            yield number, ValueError("the number of fields differs from the header's")
            continue
        choices = [(row[letter] or "").strip() for letter in letters]
        yield number, {"subject": subject, "split": split, "question": row["question"], "choices": choices,
                       "answer": (row.get("answer") or "").strip()}  # fmt: skip


def _question(row: Any, data: str, where: str, stem: str) -> tuple[str, Question]:
    """(split, question); ValueError says what is wrong."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError("an object with question, choices and answer is expected")
    question, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise ValueError("question: text is expected")
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError("choices: a list of texts is expected, none of them empty")
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"choices: 2 to {len(LETTERS)} are expected, found {len(choices)}")
    split = row.get("split", "test")
    if split not in EXAMPLES + QUESTIONS:
        raise ValueError(f"split {split!r}: one of {', '.join(EXAMPLES + QUESTIONS)} is expected")
    if answer is None or answer == "":
        raise _NoAnswer
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in LETTERS:
        number = LETTERS.index(answer.strip().upper())
    elif isinstance(answer, int) and not isinstance(answer, bool):
        number = answer
    else:
        raise ValueError(f"answer {answer!r}: a letter, or the choice's number from 0, is expected")
    if not 0 <= number < len(choices):
        raise ValueError(f"answer {answer!r}: there are {len(choices)} choices")
    subject = str(row.get("subject") or stem)
    category = str(row.get("category") or GROUP_OF.get(subject, NO_GROUP))
    return str(split), Question(data, where, subject, category, question.strip(), tuple(choices), number)


def first_of_each(questions: Sequence[Question], per_subject: int | None) -> list[Question]:
    """The first ``per_subject`` questions of each subject of each file or folder; null: all."""
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for question in questions:
        seen[question.data, question.subject] += 1
        if per_subject is None or seen[question.data, question.subject] <= per_subject:
            kept.append(question)
    return kept
