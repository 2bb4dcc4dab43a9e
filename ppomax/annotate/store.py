"""The database of one annotation: items, who is shown what, and every judgement, in one SQLite file.

A judgement is on disk (write-ahead log, synchronous=FULL, one transaction) before `submit` returns, so a power cut loses
nothing that an annotator was told is kept. Nothing counts twice: the page sends a submission id, and an item has at most
one valid judgement of each annotator (a unique index, not only code). Nothing is ever deleted: an undone judgement stays
with the time at which it was withdrawn.

Items are handed out as they are asked for, in an order that the seed fixes. Each goes to one annotator, a chosen share to
two. Where an annotator has left an item open and no other work remains, another one gets it too: nobody is waited for.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from ppomax.data.records import Message, unit_hash
from ppomax.errors import UserError

Kind = Literal["duel", "test", "same"]
"""same: both sides gave the same answer, a tie that nobody has to look at"""
Kept = Literal["kept", "repeated", "already judged"]
CHOICES = ("left", "tie", "right")
STRENGTHS = ("slight", "clear")
OUTCOMES = ("win", "tie", "lose")
"""of A, the first side of the duel"""
LONGEST_REASON = 2000
"""characters"""
VERSION = 1
SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE items (item INTEGER PRIMARY KEY, kind TEXT NOT NULL, needed INTEGER NOT NULL, record TEXT NOT NULL)",
    "CREATE TABLE annotators (annotator INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token TEXT NOT NULL)",
    """CREATE TABLE assignments (
        annotator INTEGER NOT NULL REFERENCES annotators, item INTEGER NOT NULL REFERENCES items,
        sequence INTEGER NOT NULL, swapped INTEGER NOT NULL,
        PRIMARY KEY (annotator, item), UNIQUE (annotator, sequence))""",
    "CREATE INDEX handed_out ON assignments (item)",
    """CREATE TABLE judgements (
        judgement INTEGER PRIMARY KEY AUTOINCREMENT, annotator INTEGER NOT NULL, item INTEGER NOT NULL,
        submission TEXT NOT NULL, choice TEXT NOT NULL CHECK (choice IN ('left', 'tie', 'right')), strength TEXT,
        reason TEXT NOT NULL, time TEXT NOT NULL, withdrawn TEXT,
        UNIQUE (annotator, submission), FOREIGN KEY (annotator, item) REFERENCES assignments)""",
    "CREATE UNIQUE INDEX one_valid ON judgements (annotator, item) WHERE withdrawn IS NULL",
    "CREATE INDEX by_item ON judgements (item) WHERE withdrawn IS NULL",
)
_OPEN = (
    "NOT EXISTS (SELECT 1 FROM judgements j WHERE j.annotator = s.annotator AND j.item = s.item AND withdrawn IS NULL)"
)
_VALID = "(SELECT COUNT(*) FROM judgements j WHERE j.item = i.item AND withdrawn IS NULL)"
_HANDED_OUT = "(SELECT COUNT(*) FROM assignments s WHERE s.item = i.item)"


@dataclass(frozen=True)
class Item:
    """Two answers to one prompt. Of a test item, A is the better one."""

    prompt: tuple[Message, ...]
    response_a: str
    response_b: str
    source: str
    finished_a: bool = True
    finished_b: bool = True

    @property
    def same(self) -> bool:
        """Nothing to choose between."""
        return self.response_a == self.response_b

    @property
    def record(self) -> str:
        """As kept: JSON in ASCII, since an answer may hold half of a surrogate pair."""
        prompt = [{"role": message["role"], "content": message["content"]} for message in self.prompt]
        return json.dumps({**asdict(self), "prompt": prompt})

    @classmethod
    def from_record(cls, text: str) -> Item:
        values = json.loads(text)
        return cls(**{**values, "prompt": tuple(values["prompt"])})


@dataclass(frozen=True)
class Annotator:
    """A person, and the secret of their address."""

    number: int
    name: str
    token: str


@dataclass(frozen=True)
class Task:
    """An item as one annotator is shown it. ``swapped``: B stands at the left."""

    number: int
    item: Item
    swapped: bool


@dataclass(frozen=True)
class Judgement:
    """One judgement of one annotator."""

    annotator: str
    number: int
    kind: Kind
    choice: str
    swapped: bool
    strength: str | None
    reason: str
    time: str
    withdrawn: str | None

    @property
    def outcome(self) -> str:
        """win, tie or lose of A, whichever side it stood on."""
        better = {"left": "lose" if self.swapped else "win", "right": "win" if self.swapped else "lose"}
        return better.get(self.choice, "tie")


@dataclass(frozen=True)
class Progress:
    """Judgements of one annotator, and of all out of those needed: with test items, which would show otherwise."""

    mine: int
    done: int
    needed: int


def _digest(items: Sequence[Item]) -> str:
    return blake2b("\n".join(sorted(item.record for item in items)).encode(), digest_size=16).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Store:
    """An open database; safe to use from several threads, and from several processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it holds the annotators' tokens
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: cannot be used as a database: {error}") from None
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have ended it
                    self._db.execute("ROLLBACK")
                raise

    # ------------------------------------------------------------------------------------------- set up

    @classmethod
    def begin(
        cls, path: Path, items: Sequence[Item], tests: Sequence[Item] | None, *, overlap: float, seed: int
    ) -> Store:
        """Make the database, or go on with it: the items must be the same ones. ``tests`` None: those it has.

        ``overlap`` (share of the items that two annotators see) may change from one start to the next.
        """
        store = cls(path)
        try:
            with store._transaction() as db:
                if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                    store._create(db, items, tests or (), seed)
                store._check(items, tests)
                rows = db.execute("SELECT item, record FROM items WHERE kind = 'duel'").fetchall()
                kept_seed = store._meta("seed")
                ordered = sorted(rows, key=lambda row: unit_hash(f"overlap\x00{row[1]}", int(kept_seed)))
                twice = {row[0] for row in ordered[: round(overlap * len(rows))]}
                db.executemany(
                    "UPDATE items SET needed = ? WHERE item = ?", [(1 + (row[0] in twice), row[0]) for row in rows]
                )
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, path: Path) -> Store:
        """An existing database. Raises UserError where there is none."""
        if not path.is_file():
            raise UserError(f"{path} does not exist: no annotation has begun; start it with `ppomax annotate`")
        store = cls(path)
        store._check_version()
        return store

    def _create(self, db: sqlite3.Connection, items: Sequence[Item], tests: Sequence[Item], seed: int) -> None:
        for statement in SCHEMA:
            db.execute(statement)
        parts = [("same" if item.same else "duel", item.record) for item in items]
        parts += [("test", item.record) for item in tests]
        # one order for all kinds: the page holds an item's number, which must not tell a test item
        parts.sort(key=lambda part: unit_hash(f"order\x00{part[1]}", seed))
        db.executemany("INSERT INTO items (kind, needed, record) VALUES (?, 1, ?)", parts)
        meta = {"seed": str(seed), "items": _digest(items), "tests": _digest(tests), "begun": _now()}
        db.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))
        db.execute(f"PRAGMA user_version = {VERSION}")

    def _check_version(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            raise UserError(f"{self.path}: made by another version of ppomax ({version}, this one reads {VERSION})")

    def _check(self, items: Sequence[Item], tests: Sequence[Item] | None) -> None:
        self._check_version()
        if self._meta("items") != _digest(items):
            raise UserError(f"{self.path}: begun with other answers than these; use another --output_dir")
        if tests is not None and self._meta("tests") != _digest(tests):
            raise UserError(f"{self.path}: begun with other test items; leave --tests out, or use another --output_dir")

    def _meta(self, key: str) -> str:
        return str(self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0])

    def annotators(self) -> list[Annotator]:
        """All that ever had an address."""
        with self._lock:
            rows = self._db.execute("SELECT annotator, name, token FROM annotators ORDER BY annotator").fetchall()
        return [Annotator(*row) for row in rows]

    def add_annotators(self, names: Sequence[str]) -> list[Annotator]:
        """The annotators of these names, in this order; new ones get a random token."""
        with self._transaction() as db:
            db.executemany(
                "INSERT INTO annotators (name, token) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
                [(name, secrets.token_urlsafe(24)) for name in names],
            )
        known = {annotator.name: annotator for annotator in self.annotators()}
        return [known[name] for name in names]

    # ------------------------------------------------------------------------------------------ the work

    def next(self, annotator: int) -> Task | None:
        """The item that this annotator is to judge now: the first open one, or a new one; None: nothing is left."""
        with self._transaction() as db:
            found = db.execute(
                f"SELECT item, swapped FROM assignments s WHERE annotator = ? AND {_OPEN} ORDER BY sequence LIMIT 1",
                (annotator,),
            ).fetchone()
            if found is None:
                item = self._choose(db, annotator)
                if item is None:
                    return None
                found = (item, self._assign(db, annotator, item))
            record = db.execute("SELECT record FROM items WHERE item = ?", (found[0],)).fetchone()[0]
        return Task(found[0], Item.from_record(record), bool(found[1]))

    def _choose(self, db: sqlite3.Connection, annotator: int) -> int | None:
        mine = "SELECT item FROM assignments WHERE annotator = ?"
        test = self._test_due(db, annotator)
        for condition in (f"{_HANDED_OUT} < needed", f"{_VALID} < needed"):
            row = db.execute(
                f"SELECT item FROM items i WHERE kind = 'duel' AND item NOT IN ({mine}) AND {condition} "
                "ORDER BY item LIMIT 1",
                (annotator,),
            ).fetchone()
            if row is not None:
                return int(row[0]) if test is None else test
        return None  # test items are of use only among others

    def _test_due(self, db: sqlite3.Connection, annotator: int) -> int | None:
        """Test items are spread evenly over an annotator's expected share, each at a random place of its stretch."""
        seed, name = int(self._meta("seed")), self._name(db, annotator)
        kinds = dict(
            db.execute(
                "SELECT kind, COUNT(*) FROM assignments NATURAL JOIN items WHERE annotator = ? GROUP BY kind",
                (annotator,),
            ).fetchall()
        )
        tests = [row[0] for row in db.execute("SELECT item FROM items WHERE kind = 'test'")]
        seen = kinds.get("test", 0)
        if seen >= len(tests):
            return None
        needed, people = db.execute(
            "SELECT (SELECT SUM(needed) FROM items WHERE kind = 'duel'), (SELECT COUNT(*) FROM annotators)"
        ).fetchone()
        stretch = math.ceil((needed or 0) / people) / len(tests)  # there may be no duels, only tests
        if kinds.get("duel", 0) < math.floor((seen + unit_hash(f"test\x00{name}\x00{seen}", seed)) * stretch):
            return None
        tests.sort(key=lambda item: unit_hash(f"tests\x00{name}\x00{item}", seed))
        done = {row[0] for row in db.execute("SELECT item FROM assignments WHERE annotator = ?", (annotator,))}
        return next(item for item in tests if item not in done)

    def _name(self, db: sqlite3.Connection, annotator: int) -> str:
        return str(db.execute("SELECT name FROM annotators WHERE annotator = ?", (annotator,)).fetchone()[0])

    def _assign(self, db: sqlite3.Connection, annotator: int, item: int) -> bool:
        record = db.execute("SELECT record FROM items WHERE item = ?", (item,)).fetchone()[0]
        name = self._name(db, annotator)
        swapped = unit_hash(f"side\x00{name}\x00{record}", int(self._meta("seed"))) < 0.5
        db.execute(
            "INSERT INTO assignments SELECT ?1, ?2, 1 + COUNT(*), ?3 FROM assignments WHERE annotator = ?1",
            (annotator, item, swapped),
        )
        return swapped

    def submit(
        self, annotator: int, item: int, submission: str, choice: str, strength: str | None = None, reason: str = ""
    ) -> Kept:
        """Keep a judgement; on disk when this returns. A submission id counts once, however often it is sent.

        "already judged": another page of the same annotator was faster; the first judgement stays. Raises ValueError
        for what no page of ours sends.
        """
        if choice not in CHOICES or strength not in (None, *STRENGTHS) or not 0 < len(submission) <= 64:
            raise ValueError("choice, strength or submission is none that the page offers")
        with self._transaction() as db:
            known = db.execute(
                "SELECT item FROM judgements WHERE annotator = ? AND submission = ?", (annotator, submission)
            ).fetchone()
            if known is not None:
                return "repeated"
            pair = (annotator, item)
            if db.execute("SELECT 1 FROM assignments WHERE annotator = ? AND item = ?", pair).fetchone() is None:
                raise ValueError("the item was never shown to this annotator")
            valid = "SELECT 1 FROM judgements WHERE annotator = ? AND item = ? AND withdrawn IS NULL"
            if db.execute(valid, pair).fetchone() is not None:
                return "already judged"
            db.execute(
                "INSERT INTO judgements (annotator, item, submission, choice, strength, reason, time) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*pair, submission, choice, None if choice == "tie" else strength, reason[:LONGEST_REASON], _now()),
            )
        return "kept"

    def last(self, annotator: int) -> int | None:
        """Number of the annotator's latest valid judgement: what undo takes back."""
        with self._lock:
            row = self._db.execute(
                "SELECT MAX(judgement) FROM judgements WHERE annotator = ? AND withdrawn IS NULL", (annotator,)
            ).fetchone()
        return None if row[0] is None else int(row[0])

    def undo(self, annotator: int, judgement: int) -> bool:
        """Withdraw one of the annotator's own judgements; the item is open again. False: it was withdrawn before."""
        with self._transaction() as db:
            done = db.execute(
                "UPDATE judgements SET withdrawn = ? WHERE judgement = ? AND annotator = ? AND withdrawn IS NULL",
                (_now(), judgement, annotator),
            )
            return done.rowcount == 1

    # ------------------------------------------------------------------------------------------ reading

    def progress(self, annotator: int) -> Progress:
        """How far one annotator is, and all together (an item needs no more judgements than there are annotators)."""
        with self._lock:
            people = self._db.execute("SELECT COUNT(*) FROM annotators").fetchone()[0]
            mine = self._db.execute(
                "SELECT COUNT(*) FROM judgements WHERE annotator = ? AND withdrawn IS NULL", (annotator,)
            ).fetchone()[0]
            done, needed = self._db.execute(
                f"SELECT SUM(MIN({_VALID}, needed, ?1)), SUM(MIN(needed, ?1)) FROM items i WHERE kind = 'duel'",
                (people,),
            ).fetchone()
            tests, tested = self._db.execute(
                f"SELECT COUNT(*) * ?1, SUM({_VALID}) FROM items i WHERE kind = 'test'", (people,)
            ).fetchone()
        done, needed, tested = done or 0, needed or 0, tested or 0
        return Progress(mine, done + tested, (needed + tests) if done < needed else done + tested)

    def items(self, kind: Kind) -> dict[int, Item]:
        """All items of one kind by number."""
        with self._lock:
            rows = self._db.execute("SELECT item, record FROM items WHERE kind = ? ORDER BY item", (kind,)).fetchall()
        return {number: Item.from_record(record) for number, record in rows}

    def needed(self) -> dict[int, int]:
        """How many annotators each item of the duel is meant for."""
        with self._lock:
            return dict(self._db.execute("SELECT item, needed FROM items WHERE kind = 'duel'").fetchall())

    def judgements(self) -> list[Judgement]:
        """Every judgement ever made, withdrawn ones too, in the order of time."""
        with self._lock:
            rows = self._db.execute(
                "SELECT name, item, kind, choice, swapped, strength, reason, time, withdrawn FROM judgements "
                "JOIN annotators USING (annotator) JOIN assignments USING (annotator, item) JOIN items USING (item) "
                "ORDER BY judgement"
            ).fetchall()
        return [
            Judgement(name, number, kind, choice, bool(swapped), strength, reason, time, withdrawn)
            for name, number, kind, choice, swapped, strength, reason, time, withdrawn in rows
        ]

    def meta(self) -> dict[str, Any]:
        """seed, begun (time), and digests of items and tests."""
        with self._lock:
            return dict(self._db.execute("SELECT key, value FROM meta").fetchall())
