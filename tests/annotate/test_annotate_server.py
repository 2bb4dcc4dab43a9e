"""The page over HTTP: judging, undo, languages, and everything that must be refused."""

from __future__ import annotations

import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from annotate_tools import Browser, begin, item, known, serving

from ppomax.annotate.pages import WORDS, criterion_of, guidelines
from ppomax.annotate.server import AnnotationServer
from ppomax.annotate.store import LONGEST_REASON, Store
from ppomax.errors import UserError

HOSTILE = [
    "</div><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<form action=//evil.example><button>Tie</button></form>",
    "{{ w.tie }} {% raw %} &lt;b&gt; &amp; ]]> <!-- <style>*{display:none}</style>",
    "\u202ereversed \x00\x1b[31m \u2028 \x85",
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = begin(tmp_path, [item(i) for i in range(3)], overlap=1.0)
    yield opened
    opened.close()


@pytest.fixture
def served(store: Store) -> Iterator[tuple[AnnotationServer, list[Browser]]]:
    with serving(store, ["anna", "bo"]) as (server, browsers):
        yield server, browsers


def test_judging_undo_and_the_end(served: tuple[AnnotationServer, list[Browser]], store: Store) -> None:
    anna = served[1][0].enter()
    assert "judged by you: 0" in anna.page and "by all: 0 of 6" in anna.page and "<details open>" in anna.page
    assert 'id="undo"' not in anna.page
    first = anna.shown()
    fields = {**anna.hidden("judge"), "choice": "left", "strength": "clear", "reason": "  它更好 & <b>  "}
    assert anna.post("judge", fields) == 303 and anna.went_to == "/1/"
    (kept,) = store.judgements()
    assert (kept.annotator, kept.choice, kept.strength, kept.reason) == ("anna", "left", "clear", "它更好 & <b>")
    text = anna.shown()[1] if anna.look().shown() == first else first[1]
    shown_item = store.items("duel")[kept.number]
    assert text == (
        shown_item.response_b if kept.swapped else shown_item.response_a
    )  # left on the page is left in the data
    assert "judged by you: 1" in anna.page and anna.shown() != first and "<details open>" not in anna.page
    assert anna.post("undo", anna.hidden("undo")) == 303
    assert anna.look().shown() == first and "judged by you: 0" in anna.page
    for choice in ("tie", "right", "left"):
        assert anna.post("judge", {**anna.hidden("judge"), "choice": choice, "strength": "", "reason": ""}) == 303
        anna.look()
    assert anna.done and "Nothing is left" in anna.page and "by all: 3 of 6" in anna.page
    assert anna.post("undo", anna.hidden("undo")) == 303 and not anna.look().done  # from the last page too


def test_sent_twice_and_from_two_pages(served: tuple[AnnotationServer, list[Browser]], store: Store) -> None:
    anna = served[1][0].enter()
    fields = {**anna.hidden("judge"), "choice": "left"}
    second_page = {**anna.look().hidden("judge"), "choice": "right"}
    assert second_page["item"] == fields["item"] and second_page["submission"] != fields["submission"]
    for _ in range(3):
        assert anna.post("judge", fields) == 303 and anna.went_to == "/1/"
    assert anna.post("judge", second_page) == 303 and anna.went_to == "/1/?notice=already"
    assert anna.request("GET", anna.went_to).status == 200 and WORDS["en"]["already"] in anna.page
    assert [j.choice for j in store.judgements()] == ["left"]


def test_token_is_needed_and_is_each_annotators_own(
    served: tuple[AnnotationServer, list[Browser]], store: Store
) -> None:
    server, (anna, bo) = served
    stranger = Browser(server.url(store.annotators()[0]))
    for path in (
        "/1/",
        "/1/?token=",
        "/1/?token=wrong",
        f"/1/?token={store.annotators()[1].token}",
        "/3/",
        "/1/?token=%ff",
    ):
        assert stranger.request("GET", path).status == 403
        assert stranger.cookies == {} and "question" not in stranger.page
    anna.enter()
    assert "token" not in anna.page and store.annotators()[0].token not in anna.page
    assert anna.request("GET", "/2/").status == 403
    cookie = anna.request("GET", f"/1/?{anna.address.query}").headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
    bo.cookies = anna.cookies  # one browser, two people: each page keeps to its own
    bo.enter()
    fields = {**anna.look().hidden("judge"), "choice": "left"}
    assert bo.post("judge", fields) == 403  # anna's form at bo's address
    assert anna.post("judge", fields) == 303
    assert [j.annotator for j in store.judgements()] == ["anna"]


@pytest.mark.parametrize(
    ("change", "headers", "status"),
    [
        ({"csrf": ""}, {}, 403),
        ({"csrf": "0" * 64}, {}, 403),
        ({"csrf": "ü"}, {}, 403),
        ({}, {"Origin": "http://evil.example"}, 403),
        ({}, {"Origin": "null"}, 403),
        ({}, {"Sec-Fetch-Site": "cross-site"}, 403),
        ({}, {"Sec-Fetch-Site": "same-site"}, 403),
        ({}, {"Host": "evil.example"}, 421),
        ({}, {"Host": "127.0.0.1.evil.example:80"}, 421),
        ({}, {"Host": ""}, 421),
        ({}, {"Host": "[::bad"}, 421),
        ({}, {"Content-Type": "text/plain"}, 400),
        ({}, {"Cookie": ""}, 403),
        ({}, {"Cookie": 'a="; ;;=\x07'}, 403),
        ({"choice": "win"}, {}, 400),
        ({"choice": ""}, {}, 400),
        ({"item": "2"}, {}, 400),
        ({"item": "-1"}, {}, 400),
        ({"item": "٣"}, {}, 400),
        ({"item": "9" * 30}, {}, 400),
        ({"strength": "very"}, {}, 400),
        ({"submission": "x" * 65}, {}, 400),
        ({"submission": ""}, {}, 400),
        ({"reason": "x" * 70_000}, {}, 413),
    ],
)
def test_what_our_page_did_not_send_is_refused(
    served: tuple[AnnotationServer, list[Browser]],
    store: Store,
    change: dict[str, str],
    headers: dict[str, str],
    status: int,
) -> None:
    anna = served[1][0].enter()
    good = {**anna.hidden("judge"), "choice": "left", "strength": "", "reason": ""}
    assert good["item"] != "2"
    assert anna.post("judge", {**good, **change}, headers) == status
    assert store.judgements() == []
    assert (
        anna.post("judge", good, {"Origin": f"http://127.0.0.1:{served[0].port}", "Sec-Fetch-Site": "same-origin"})
        == 303
    )


def test_half_a_form_is_no_judgement(served: tuple[AnnotationServer, list[Browser]], store: Store) -> None:
    anna = served[1][0].enter()
    cookie = "; ".join(f"{k}={v}" for k, v in anna.cookies.items())
    fields = anna.hidden("judge")
    body = "&".join(f"{k}={v}" for k, v in fields.items()) + "&choice=left"
    head = (
        f"POST /1/judge HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
    )
    for extra in (f"Content-Length: {len(body) + 20}\r\n", "Transfer-Encoding: chunked\r\n", "Content-Length: -1\r\n"):
        with socket.create_connection(("127.0.0.1", served[0].port), timeout=10) as line:
            line.sendall(f"{head}{extra}\r\n{body}".encode())
            line.shutdown(socket.SHUT_WR)
            assert b" 400 " in line.recv(4096)
    assert store.judgements() == []


def test_every_answer_carries_the_policy(served: tuple[AnnotationServer, list[Browser]]) -> None:
    anna = served[1][0].enter()
    for path in ("/1/", "/page.js", "/page.css", "/nowhere", "/1/judge", "/2/", "/../server.py", "/page.js/../x"):
        response = anna.request("GET", path)
        assert response.status == {"/2/": 403}.get(path, 200 if path in ("/1/", "/page.js", "/page.css") else 404)
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert (
            response.headers["Cache-Control"] == "no-store" and response.headers["X-Content-Type-Options"] == "nosniff"
        )
    page = anna.look().page
    assert re.findall(r"<script[^>]*>", page) == ['<script src="/page.js">'] and "style=" not in page
    assert not re.search(r"\son\w+=", page) and "http://" not in page and "https://" not in page


@pytest.mark.parametrize("language", ["en", "zh"])
def test_hostile_text_stays_text(tmp_path: Path, language: str) -> None:
    for n, text in enumerate(HOSTILE):
        (folder := tmp_path / str(n)).mkdir()
        store = begin(folder, [item(0, text, f"other {text}", source=text)])
        store._db.execute(
            'UPDATE items SET record = replace(record, \'"role": "user"\', \'"role": "\\"><b onclick=1>"\')'
        )
        with serving(store, [text.replace("\x00", "")], language=language) as (_, (browser,)):
            page = browser.enter().page
            shown = browser.shown()
        store.close()
        assert sorted(shown[1:]) == sorted([text, f"other {text}"])
        assert page.count("<script") == 1 and page.count("<form") == 1 and page.count("<button") == 3
        assert "<img" not in page and "<b " not in page and "<style" not in page and "<!--" not in page


def test_nothing_on_the_page_tells_sides_or_test_items(tmp_path: Path) -> None:
    store = begin(tmp_path, [item(i) for i in range(12)], [known(i) for i in range(4)])
    seen: list[tuple[str, str, int]] = []
    with serving(store, ["anna"]) as (_, (anna,)):
        anna.enter()
        while not anna.done:
            prompt, *answers = anna.shown()
            fields = anna.hidden("judge")
            page = anna.page.replace(prompt, "PROMPT").replace(fields["submission"], "ID")
            for text in answers:
                page = page.replace(text, "ANSWER")
            page = re.sub(r"<details open>", "<details>", page)  # open on the first page
            page = re.sub(
                r'judged by you: \d+|by all: \d+|value="\d+"|<form id="undo".*?</form>\s*', "", page, flags=re.DOTALL
            )
            counter = re.findall(r"(?:judged by you|by all): (\d+)", anna.page)
            assert counter == [str(len(seen))] * 2 and "of 16" in anna.page  # a test item counts like another
            seen.append((prompt, page.replace("\n", ""), int(fields["item"])))
            anna.post("judge", {**fields, "choice": "tie"})
            anna.look()
    numbers = {kind: [n for prompt, _, n in seen if prompt.startswith(kind)] for kind in ("known", "question")}
    assert len(numbers["known"]) == 4 and len(numbers["question"]) == 12
    assert max(numbers["known"]) != 16 or min(numbers["known"]) < 12  # not the last or first ones of all
    store.close()
    helpful = {page for prompt, page, _ in seen if prompt.startswith("question")}
    assert len(helpful) == 1
    title, guide = WORDS["en"]["title"], WORDS["en"]["question_helpful"]
    (known_page,) = {page for prompt, page, _ in seen if prompt.startswith("known")}
    assert known_page == helpful.pop().replace(f"<h1>{guide}", f"<h1>{title}")  # their source names no criterion
    assert "swapped" not in known_page and "source" not in known_page


def test_both_languages_are_whole_and_can_be_changed(served: tuple[AnnotationServer, list[Browser]]) -> None:
    assert WORDS["en"].keys() == WORDS["zh"].keys()
    assert guidelines("en").keys() == guidelines("zh").keys() == {"helpful", "harmless", "both"}
    for part, parts in guidelines("en").items():
        assert [(kind, len(content) if kind == "list" else 1) for kind, content in parts] == [
            (kind, len(content) if kind == "list" else 1) for kind, content in guidelines("zh")[part]
        ]
    anna = served[1][0].enter()
    assert '<html lang="en">' in anna.page and WORDS["en"]["left"] in anna.page
    assert anna.request("GET", "/1/?language=zh").status == 303
    page = anna.look().page
    assert '<html lang="zh">' in page and "哪个回答更有帮助" in page and "judged" not in page
    assert anna.request("GET", "/1/?language=xx").status == 200 and '<html lang="zh">' in anna.page


@pytest.mark.parametrize(
    ("source", "criterion"),
    [
        ("harmless", "harmless"), ("hh-red-team", "harmless"), ("helpful-base", "helpful"), ("Unsafe", "harmless"),
        ("alpaca", None), ("helpful and harmless", None), ("无害", "harmless"), ("有用", "helpful"),
    ],
)  # fmt: skip
def test_criterion_from_the_source(source: str, criterion: str | None) -> None:
    assert criterion_of(source) == criterion


def test_cut_and_empty_answers_and_long_reasons(tmp_path: Path) -> None:
    from dataclasses import replace

    store = begin(tmp_path, [replace(item(0, "x", " "), response_b=" ", finished_a=False)])
    with serving(store, ["anna"]) as (_, (anna,)):
        page = anna.enter().page
        assert page.count(WORDS["en"]["cut"]) == 1 and page.count(WORDS["en"]["empty"]) == 1
        assert anna.post("judge", {**anna.hidden("judge"), "choice": "left", "reason": "理" * 2500}) == 303
    assert store.judgements()[0].reason == "理" * LONGEST_REASON
    store.close()


def test_two_annotators_at_once(tmp_path: Path) -> None:
    store = begin(tmp_path, [item(i) for i in range(20)], overlap=0.5)

    def work(browser: Browser) -> None:
        browser.enter()
        while not browser.done:
            assert browser.post("judge", {**browser.hidden("judge"), "choice": "left"}) == 303
            browser.look()

    with serving(store, ["anna", "bo"]) as (_, browsers):
        threads = [threading.Thread(target=work, args=(browser,)) for browser in browsers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    rows = [(j.annotator, j.number) for j in store.judgements()]
    assert len(rows) == len(set(rows)) and {n for _, n in rows} == set(store.needed())
    assert 30 <= len(rows) <= 31  # one may have been open when the other ran out of work
    store.close()


def test_full_disk_is_told_and_can_be_mended(
    served: tuple[AnnotationServer, list[Browser]], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    anna = served[1][0].enter()
    fields = {**anna.hidden("judge"), "choice": "left"}
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    assert store._db.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0] == pages
    long = {**fields, "reason": "x" * 2000}
    answers = []
    for n in range(40):  # some fit into pages that are there
        answers.append(anna.post("judge", {**long, "submission": f"s{n}"}))
        if answers[-1] == 503:
            break
        assert anna.post("undo", anna.look().hidden("undo")) == 303
    assert answers[-1] == 503 and "Nothing was kept" in anna.page
    assert "disk is full" in capsys.readouterr().err
    kept = len(store.judgements())
    assert kept == len(answers) - 1
    store._db.execute("PRAGMA max_page_count = 100000")
    assert anna.post("judge", {**long, "submission": f"s{len(answers) - 1}"}) == 303  # the reload
    assert len(store.judgements()) == kept + 1


def test_hosts_and_addresses(store: Store) -> None:
    (anna,) = store.add_annotators(["anna"])
    with serving(store, ["anna"]) as (server, _):
        assert server.server_address[0] == "127.0.0.1"
        for header in ("127.0.0.1", "localhost:9000", "[::1]:80", "LOCALHOST"):
            assert server.knows_host(header)
        for header in (
            "192.168.0.7",
            "evil.example",
            socket.gethostname() + ".evil",
            "",
            "a b",
            "127.0.0.1@evil.example",
        ):
            assert not server.knows_host(header)
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1 port {server.port}"):
            AnnotationServer(store, [anna], port=server.port)
    with serving(store, ["anna"], host="0.0.0.0") as (server, _):
        assert server.knows_host("192.168.0.7:80") and server.knows_host(socket.gethostname())
        assert not server.knows_host("evil.example")
        assert server.url(anna).startswith(f"http://{socket.gethostname()}:")
