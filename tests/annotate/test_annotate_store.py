"""The database of an annotation: who gets what, what is kept, and what no order of events can break."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from annotate_tools import begin, item, known

from ppomax.annotate.store import Store, Task
from ppomax.commands.annotate import _export
from ppomax.errors import UserError


def work_off(store: Store, who: int, choice: str = "tie") -> list[Task]:
    """Judge until nothing is left."""
    done = []
    while (task := store.next(who)) is not None:
        assert store.submit(who, task.number, f"{who}-{len(done)}-{task.number}", choice) == "kept"
        done.append(task)
    return done


def valid(store: Store) -> list[tuple[str, int]]:
    return [(j.annotator, j.number) for j in store.judgements() if j.withdrawn is None and j.kind == "duel"]


@pytest.mark.parametrize("overlap", [0.0, 0.3, 1.0])
def test_each_item_goes_to_one_and_the_share_of_overlap_to_two(tmp_path: Path, overlap: float) -> None:
    store = begin(tmp_path, [item(i) for i in range(20)], overlap=overlap)
    anna, bo = store.add_annotators(["anna", "bo"])
    open_ = {anna.number, bo.number}
    n = 0
    while open_:  # in turns
        for who in sorted(open_):
            task = store.next(who)
            if task is None:
                open_.remove(who)
            else:
                store.submit(who, task.number, f"{n}", "left")
                n += 1
    counts = Counter(number for _, number in valid(store))
    assert sorted(counts.values()) == [1] * round(20 * (1 - overlap)) + [2] * round(20 * overlap)
    assert (p := store.progress(anna.number)).done == p.needed == round(20 * (1 + overlap)) == n
    assert store.progress(anna.number).mine + store.progress(bo.number).mine == n


def test_sides_are_random_fixed_and_different_for_each_annotator(tmp_path: Path) -> None:
    items = [item(i) for i in range(150)]
    sides = []
    for name in ("one", "two"):
        (folder := tmp_path / name).mkdir()
        store = begin(folder, items, overlap=1.0, seed=5)
        people = store.add_annotators(["anna", "bo"])
        sides.append([{t.item.prompt[0]["content"]: t.swapped for t in work_off(store, p.number)} for p in people])
    assert sides[0] == sides[1]  # the same seed
    anna, bo = sides[0]
    for share in (sum(anna.values()) / 150, sum(bo.values()) / 150, sum(anna[k] == bo[k] for k in anna) / 150):
        assert abs(share - 0.5) < 0.164  # four standard deviations
    order = list(anna)
    assert order != sorted(order, key=lambda text: int(text.split()[1]))


def test_outcome_is_of_a_on_whichever_side_it_stood(tmp_path: Path) -> None:
    store = begin(tmp_path, [item(i) for i in range(12)])
    (anna,) = store.add_annotators(["anna"])
    tasks = {task.number: task for task in work_off(store, anna.number, "left")}
    assert {task.swapped for task in tasks.values()} == {True, False}
    for judgement in store.judgements():
        assert judgement.outcome == ("lose" if tasks[judgement.number].swapped else "win")


def test_submission_counts_once_and_the_first_judgement_stays(tmp_path: Path) -> None:
    store = begin(tmp_path, [item(0), item(1)])
    anna, bo = (a.number for a in store.add_annotators(["anna", "bo"]))
    task = store.next(anna)
    assert task is not None and store.next(anna) == task  # asking twice hands out nothing new
    assert store.submit(anna, task.number, "x", "left", "clear", "why") == "kept"
    assert store.submit(anna, task.number, "x", "left", "clear", "why") == "repeated"
    assert store.submit(anna, task.number, "y", "right") == "already judged"
    (judgement,) = store.judgements()
    assert (judgement.choice, judgement.strength, judgement.reason) == ("left", "clear", "why")
    last = store.last(anna)
    assert last is not None
    assert not store.undo(bo, last)  # not bo's
    assert store.undo(anna, last) and not store.undo(anna, last)
    assert store.submit(anna, task.number, "x", "left") == "repeated"  # a late copy of what was undone
    assert valid(store) == [] and store.next(anna) == task
    assert store.submit(anna, task.number, "z", "right") == "kept"
    assert [(j.choice, j.withdrawn is None) for j in store.judgements()] == [("left", False), ("right", True)]


def test_what_no_page_sends_is_refused(tmp_path: Path) -> None:
    store = begin(tmp_path, [item(0), item(1)])
    anna, bo = (a.number for a in store.add_annotators(["anna", "bo"]))
    task = store.next(anna)
    assert task is not None
    for who, number, submission, choice, strength in (
        (anna, task.number, "x", "win", None), (anna, task.number, "x", "left", "huge"),
        (anna, task.number, "", "left", None), (anna, task.number, "x" * 65, "left", None),
        (bo, task.number, "x", "left", None), (anna, 99, "x", "left", None),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            store.submit(who, number, submission, choice, strength)
    assert store.judgements() == []


def test_nobody_waits_for_an_annotator_who_has_left(tmp_path: Path) -> None:
    store = begin(tmp_path, [item(i) for i in range(3)])
    anna, bo = (a.number for a in store.add_annotators(["anna", "bo"]))
    left_open = store.next(anna)
    assert left_open is not None
    assert [t.number for t in work_off(store, bo)][-1] == left_open.number  # last, since anna might have come back
    assert store.next(anna) == left_open  # and may still


def test_test_items_are_spread_and_every_annotator_gets_them(tmp_path: Path) -> None:
    store = begin(tmp_path, [item(i) for i in range(100)], [known(i) for i in range(5)], overlap=1.0)
    orders = []
    for who in store.add_annotators(["anna", "bo"]):
        kinds = ["known" in t.item.prompt[0]["content"] for t in work_off(store, who.number)]
        places = [i - n for n, i in enumerate(i for i, k in enumerate(kinds) if k)]  # among the others
        assert [place // 20 for place in places] == [0, 1, 2, 3, 4]  # one a stretch
        orders.append([*places])
    assert orders[0] != orders[1]
    progress = store.progress(1)
    assert (progress.mine, progress.done, progress.needed) == (105, 210, 210)
    assert sum(j.kind == "test" for j in store.judgements()) == 10


def test_going_on_needs_the_same_items(tmp_path: Path) -> None:
    items, tests = [item(0), item(1)], [known(0)]
    store = begin(tmp_path, items, tests)
    (anna,) = store.add_annotators(["anna"])
    task = store.next(anna.number)
    store.close()
    again = begin(
        tmp_path, items, None, overlap=1.0, seed=99
    )  # other order of events, another seed: what was begun counts
    assert again.add_annotators(["bo", "anna"])[1] == anna  # with the same token
    assert again.next(anna.number) == task and set(again.needed().values()) == {2}
    assert again.meta()["seed"] == "0"
    again.close()
    with pytest.raises(UserError, match="begun with other answers than these; use another --output_dir"):
        begin(tmp_path, [*items, item(2)])
    with pytest.raises(UserError, match="begun with other test items"):
        begin(tmp_path, items, [known(1)])
    with pytest.raises(UserError, match="does not exist: no annotation has begun"):
        Store.open(tmp_path / "nowhere.sqlite")
    (tmp_path / "duel").mkdir()
    (tmp_path / "duel" / "answers_a.jsonl").write_text("")
    with pytest.raises(UserError, match=r"duel/people/annotation\.sqlite does not exist"):
        _export([str(tmp_path / "duel")], ["--out", str(tmp_path / "out.jsonl")])
    (tmp_path / "text.sqlite").write_text("this is no database, and long enough to be told from an empty one" * 20)
    with pytest.raises(UserError, match="cannot be used as a database"):
        Store.open(tmp_path / "text.sqlite")


def test_same_answers_are_not_shown_and_odd_text_is_kept(tmp_path: Path) -> None:
    odd = item(1, "half \ud83d of a pair \x00 \u202e", "line\u2028end")
    store = begin(tmp_path, [item(0, "x", "x"), odd])
    (anna,) = store.add_annotators(["李雷"])
    assert [t.item for t in work_off(store, anna.number)] == [odd]
    assert list(store.items("same").values()) == [item(0, "x", "x")]


def test_database_is_safe_and_private(tmp_path: Path) -> None:
    store = Store.begin(tmp_path / "annotation.sqlite", [item(0)], None, overlap=0, seed=0)
    assert store._db.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert store._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.iterdir())
    with pytest.raises(sqlite3.IntegrityError), store._transaction() as db:
        db.execute("INSERT INTO judgements VALUES (1, 1, 1, 'x', 'left', NULL, '', '', NULL)")  # never handed out


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["judge", "judge", "judge", "look", "undo", "resend", "second page", "late page", "restart"]),
        st.integers(0, 1),
        st.sampled_from(["left", "tie", "right"]),
    ),
    max_size=40,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.sampled_from([0.0, 0.4, 1.0]), st.integers(0, 2))
def test_any_interleaving_keeps_every_judgement_once(
    steps: list[tuple[str, int, str]], overlap: float, tests: int
) -> None:
    """Against a model of two lines: a dict of what counts, and a list of what was withdrawn."""
    with tempfile.TemporaryDirectory() as folder:
        items, hidden = [item(i) for i in range(5)], [known(i) for i in range(tests)]
        store = begin(Path(folder), items, hidden, overlap=overlap)
        people = [a.number for a in store.add_annotators(["anna", "bo"])]
        counts: dict[tuple[int, int], str] = {}
        order: list[tuple[int, int, str]] = []  # of what counts
        sent: list[list[tuple[int, str, str]]] = [[], []]
        withdrawn = ids = 0
        for step, side, choice in steps:
            who = people[side]
            if step == "restart":
                store.close()
                store = begin(Path(folder), items, hidden, overlap=overlap)
            elif step == "undo":
                last = store.last(who)
                mine = [entry for entry in order if entry[0] == who]
                assert (last is None) == (not mine)
                if last is not None:
                    assert store.undo(who, last)
                    order.remove(mine[-1])
                    del counts[mine[-1][:2]]
                    withdrawn += 1
                    assert store.next(who) is not None
            elif step == "resend" and sent[side]:
                assert store.submit(who, *sent[side][-1]) == "repeated"
            elif step == "late page" and sent[side]:  # an old page, with an id of its own
                number, ids = sent[side][0][0], ids + 1
                kept = store.submit(who, number, f"id{ids}", choice)
                assert kept == ("already judged" if (who, number) in counts else "kept")
                if kept == "kept":
                    counts[who, number] = choice
                    order.append((who, number, choice))
                    sent[side].append((number, f"id{ids}", choice))
            elif step in ("judge", "look", "second page"):
                task = store.next(who)
                if task is None:
                    assert all(n >= 1 for n in Counter(number for _, number in counts).values())
                    continue
                assert (who, task.number) not in counts
                if step != "look":
                    ids += 1
                    assert store.submit(who, task.number, f"id{ids}", choice) == "kept"
                    counts[who, task.number] = choice
                    order.append((who, task.number, choice))
                    sent[side].append((task.number, f"id{ids}", choice))
                if step == "second page":
                    ids += 1
                    assert store.submit(who, task.number, f"id{ids}", "tie") == "already judged"
            rows = store.judgements()
            names = {"anna": people[0], "bo": people[1]}
            kept_rows = [(names[j.annotator], j.number, j.choice) for j in rows if j.withdrawn is None]
            assert kept_rows == order and {row[:2]: row[2] for row in kept_rows} == counts
            assert len(rows) - len(kept_rows) == withdrawn
        for who in people + people:  # whatever happened: the work can be finished
            work_off(store, who)
        seen = Counter(j.number for j in store.judgements() if j.withdrawn is None and j.kind == "duel")
        assert set(seen) == set(store.needed())
        assert all(store.needed()[number] <= n <= 2 for number, n in seen.items())
        progress = store.progress(people[0])
        assert progress.done == progress.needed
        store.close()
