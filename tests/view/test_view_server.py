"""Who gets in, what can be asked for, and what the pages hold."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from view_tools import HOSTILE, Client, finish, make_run, serving

from ppomax.cli import main
from ppomax.train.requests import LOCK, asked


def key_of(client: Client) -> str:
    (run,) = client.json("/api/runs")["runs"]
    return str(run["key"])


def test_nothing_without_the_token(tmp_path: Path) -> None:
    make_run(tmp_path / "run", text="secret words")
    with serving(tmp_path) as (server, client):
        stranger = Client(server)
        key = key_of(client.enter())
        for path in ("/", "/api/runs", f"/run/{key}", f"/api/run/{key}", "/?token=wrong", "/nowhere"):
            status, body, _ = stranger.ask(path)
            assert status == 403 and "secret" not in body and server.request_token not in body, path
        stranger.cookie = f"{server.cookie}=wrong"
        assert stranger.ask("/api/runs")[0] == 403
        stranger.cookie = "\x01;=;;"
        assert stranger.ask("/api/runs")[0] == 403
        assert stranger.post(f"/api/run/{key}/stop") == 403
        assert client.ask("/")[0] == client.ask(f"/run/{key}")[0] == 200
        assert len(server.token) >= 32 and server.token not in server.request_token
    with serving(tmp_path) as (other, _):
        assert other.token != server.token and other.server_address[0] == "127.0.0.1"


OTHERS = ['o={"a":"b c"}', "o[x]=1", "o=\xe4", "o=a b c", "flag", "path=1", 'o="unclosed', "=", ""]


@pytest.mark.parametrize("other", OTHERS)
def test_cookies_of_other_servers_lock_nobody_out(tmp_path: Path, other: str) -> None:
    make_run(tmp_path / "run")
    with serving(tmp_path) as (_, client):
        own = client.enter().cookie
        for client.cookie in (f"{other}; {own}", f"{own}; {other}"):
            assert client.ask("/api/runs")[0] == 200
        client.cookie = other
        assert client.ask("/api/runs")[0] == 403


def test_what_is_no_address_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run")
    with serving(tmp_path) as (server, client):
        key = key_of(client.enter())
        with socket.create_connection(
            ("127.0.0.1", server.port), timeout=60
        ) as raw:  # http.client refuses to ask for it
            raw.sendall(b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert raw.recv(1000).startswith(b"HTTP/1.1 400 ")
        assert client.post(f"/api/run/{key}/stop", Origin="http://[") == 403
    assert "Traceback" not in capsys.readouterr().err


def test_foreign_names_are_refused(tmp_path: Path) -> None:
    """A web site that points its own name at 127.0.0.1 (DNS rebinding) gets nothing, not even with the cookie."""
    make_run(tmp_path / "run")
    with serving(tmp_path) as (server, client):
        client.enter()
        for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "", "[::1", "10.0.0.1"):
            assert client.ask("/api/runs", headers={"Host": host})[0] == 421, host
        for host in ("localhost", "127.0.0.1:80", "[::1]:8766"):
            assert client.ask("/api/runs", headers={"Host": host})[0] == 200, host


def test_requests_to_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with serving(tmp_path) as (server, client):
        key = key_of(client.enter())
        path = f"/api/run/{key}"
        assert client.post(f"{path}/stop") == 409, "it does not hold a lock"
        with (run / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(f"on {socket.gethostname()}")
            for headers in (
                {"X-Request-Token": ""}, {"X-Request-Token": server.token}, {"Origin": "http://evil.example"},
                {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
            ):  # fmt: skip
                assert client.post(f"{path}/stop", **headers) == 403, headers
            assert client.post(f"{path}/stop", Host="evil.example") == 421
            for wrong in ("delete", "..%2Fstop", "stop/", "Stop", ""):
                assert client.post(f"{path}/{wrong}") == 404, wrong
            assert client.post("/api/run/abc/stop") == 404
            token = {"X-Request-Token": server.request_token}
            assert client.ask(f"{path}/stop", "POST", token, "x" * 2000)[0] == 413
            assert client.ask(f"{path}/stop")[0] == 404, "not by GET"
            assert asked(run) == []
            assert client.post(f"{path}/checkpoint", Origin=f"http://127.0.0.1:{server.port}") == 200
            assert asked(run) == ["checkpoint"] and client.json(path)["head"]["asked"] == ["checkpoint"]
            assert client.post(f"{path}/stop") == client.post(f"{path}/stop") == 200
            assert asked(run) == ["checkpoint", "stop"]
        assert client.post(f"{path}/stop") == 409
        finish(run)
        assert client.json(path)["head"]["state"] == "dead"


def test_a_run_that_cannot_be_asked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "requests").write_text("a file where the folder should be")
    with serving(tmp_path) as (server, client), (run / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        key = key_of(client.enter())
        token = {"X-Request-Token": server.request_token}
        status, body, _ = client.ask(f"/api/run/{key}/stop", "POST", token, "")
        assert status == 409 and "The run cannot be asked: File exists." in body


def test_addresses_are_no_paths(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "one")
    make_run(tmp_path / "outside")
    with serving(tmp_path / "runs") as (_, client):
        client.enter()
        for path in (
            "/api/run/../outside", "/api/run/%2e%2e%2foutside", "/api/run/one", "/api/run//", "/view.py", "/../view.css",
            "/run/..", "/favicon.ico",
        ):  # fmt: skip
            assert client.ask(path)[0] == 404, path


def test_a_run_that_was_resumed_with_more_iterations(tmp_path: Path) -> None:
    config = make_run(tmp_path / "run") / "config.yaml"
    with serving(tmp_path) as (server, client):
        key = key_of(client.enter())
        assert client.json(f"/api/run/{key}")["head"]["planned"] == 30
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace("\niterations: 20\n", "\niterations: 40\n"), encoding="utf-8")
        server._looked = float("-inf")
        assert client.json(f"/api/run/{key}")["head"]["planned"] == 50


def test_a_run_that_vanishes_and_one_that_comes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with serving(tmp_path) as (server, client):
        key = key_of(client.enter())
        first = client.json(f"/api/run/{key}")
        assert set(client.json(f"/api/run/{key}?version={first['version']}")) == {"now", "version"}
        shutil.rmtree(run)
        status, body, _ = client.ask(f"/api/run/{key}")
        assert status == 404 and json.loads(body)["error"] == "This run is no longer there."
        make_run(tmp_path / "other")
        server._looked = float("-inf")
        assert [r["name"] for r in client.json("/api/runs")["runs"]] == ["other"]


def test_pages_hold_no_text_of_runs_and_load_nothing(tmp_path: Path) -> None:
    root = tmp_path / "<b>runs"
    make_run(root / "<img src=x onerror=alert(1)>", text=HOSTILE)
    with serving(root) as (server, client):
        key = key_of(client.enter())
        status, page, headers = client.ask(f"/run/{key}")
        assert status == 200 and "&lt;b&gt;runs" in page and "<b>" not in page and "<img" not in page
        assert (
            "http" not in page
            and page.count("<script") == 1
            and '<script type="module" src="/view.js"></script>' in page
        )
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
        status, body, headers = client.ask(f"/api/run/{key}")
        assert headers["Content-Type"] == "application/json" and "\u202e" not in body
        script = client.ask("/view.js")[1] + client.ask("/charts.js")[1]
        assert not [
            word for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(") if word in script
        ]
        assert client.ask("/view.css")[0] == 200
        cookie = client.ask(f"/?token={server.token}")[2]["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Lax" in cookie


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path) as (server, _):
        assert main(["view", str(tmp_path), "--port", str(server.port)]) == 2
    assert "choose another address or port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "which folder? ppomax view RUNS_DIR"),
        (["NOWHERE"], "NOWHERE: no such directory"),
        (["a", "b"], "unexpected word 'b'"),
        (["a", "--prot", "3"], "prot"),
        (["a", "--host", "0.0.0.0"], "host"),
    ],
)
def test_mistakes(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", *words]) == 2
    assert told in capsys.readouterr().err


def test_the_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-m", "ppomax", "view", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: __import__("signal").signal(2, __import__("signal").default_int_handler),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith(f"1 runs below {tmp_path}: http://127.0.0.1:")
        url = first.split()[-1]
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(url.partition("?")[0], timeout=30)
    finally:
        process.send_signal(2)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out.endswith("stopped\n") and err == ""
