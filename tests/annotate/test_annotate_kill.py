"""Two annotators at work while the server is killed again and again: nothing lost, nothing twice."""

from __future__ import annotations

import http.client
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from annotate_tools import Browser, item

from ppomax.annotate.store import Store

SERVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from annotate_tools import item
from ppomax.annotate.server import AnnotationServer
from ppomax.annotate.store import Store

store = Store.begin(Path(sys.argv[2]), [item(i) for i in range(40)], None, overlap=0.5, seed=1)
server = AnnotationServer(store, store.add_annotators(["anna", "bo"]), port=int(sys.argv[3]))
print(server.port, *(server.url(a) for a in store.annotators()), flush=True)
server.serve_forever()
"""


def start(path: Path, port: int = 0) -> tuple[subprocess.Popen[str], list[str]]:
    words = [sys.executable, "-c", SERVER, str(Path(__file__).parent), str(path), str(port)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().split()


class Person(threading.Thread):
    """Judges all there is. Where no answer comes, the same form is sent again, as a reload does."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.browser = Browser(url)
        self.told: list[str] = []
        """submissions that the server said it had kept"""
        self.again = 0

    def _until_answered(self, work: object) -> object:
        end = time.monotonic() + 60
        while True:
            try:
                return work()  # type: ignore[operator]
            except (OSError, http.client.HTTPException):
                self.again += 1
                assert time.monotonic() < end
                time.sleep(0.02)

    def run(self) -> None:
        self._until_answered(self.browser.enter)
        while not self.browser.done:
            form = {**self.browser.hidden("judge"), "choice": "left"}
            assert self._until_answered(lambda form=form: self.browser.post("judge", form)) == 303
            self.told.append(form["submission"])
            self._until_answered(self.browser.look)


def test_killed_between_any_two_moments(tmp_path: Path) -> None:
    path = tmp_path / "annotation.sqlite"
    server, (port, *urls) = start(path)
    people = [Person(url) for url in urls]
    for person in people:
        person.start()
    kills = 0
    try:
        while any(person.is_alive() for person in people):
            aim = sum(len(person.told) for person in people) + 12
            while sum(len(person.told) for person in people) < aim and any(person.is_alive() for person in people):
                time.sleep(0.001)
            if kills < 4 and any(person.is_alive() for person in people):
                before = [list(person.told) for person in people]
                server.send_signal(signal.SIGKILL)
                server.wait()
                kills += 1
                with sqlite3.connect(path) as db:
                    kept = {row[0] for row in db.execute("SELECT submission FROM judgements")}
                db.close()
                assert {submission for told in before for submission in told} <= kept  # what was told is on disk
                server, again = start(path, int(port))
                assert again == [port, *urls]  # pages that are open go on
    finally:
        server.kill()
        server.wait()
    store = Store.open(path)
    rows = store.judgements()
    assert kills >= 3 and sum(person.again for person in people) > 0
    assert {row.withdrawn for row in rows} == {None}
    pairs = [(row.annotator, row.number) for row in rows]
    assert len(set(pairs)) == len(pairs) == sum(len(person.told) for person in people)
    assert {number for _, number in pairs} == set(store.needed()) and 60 <= len(pairs) <= 61
    assert store._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    store.close()


def test_killed_while_the_database_is_made(tmp_path: Path) -> None:
    """What a kill leaves before the first transaction is whole: a file without tables."""
    path = tmp_path / "annotation.sqlite"
    sqlite3.connect(path).close()
    path.touch()
    store = Store.begin(path, [item(0)], None, overlap=0.0, seed=0)
    assert len(store.items("duel")) == 1
    store.close()
