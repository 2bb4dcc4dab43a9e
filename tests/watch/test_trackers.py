"""Trackers: what they get, what they must not get, and that none of them ever stops or delays a run."""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from ppomax.config import PPOConfig, SFTConfig
from ppomax.errors import UserError
from ppomax.options import warnings_for
from ppomax.train.parallel import Ranks
from ppomax.train.run import RunDirectory
from ppomax.watch import trackers
from ppomax.watch.trackers import About, Trackers, numbers_of, without_secrets

LINE = {"iteration": 3, "phase": "policy", "reward/mean": 0.5, "kl/ref": math.nan, "flag": True}
EVALUATION = {
    "iteration": 0, "eval/win_rate": 0.5, "rewards": [0.25, 0.75],
    "histograms": {"eval/reward": {"counts": [1, 1], "edges": [0.25, 0.5, 0.75]}},
}  # fmt: skip
SAMPLE = {"iteration": 0, "prompt": [{"role": "user", "content": "a | b"}], "response": "<b>c</b>\nd", "score": 1.25}


class Recorder:
    """A library that remembers what it was told, and fails where asked."""

    def __init__(self, fail: str = "", error: BaseException | None = None) -> None:
        self.fail, self.error = fail, error or RuntimeError("the server said no\nsecond line")
        self.calls: list[tuple[Any, ...]] = []
        self.thread = ""

    def __call__(self, about: About, first: int) -> Recorder:
        self.about = about
        self.thread = threading.current_thread().name
        self._do("init", first)
        return self

    def _do(self, name: str, *rest: Any) -> None:
        self.calls.append((name, *rest))
        if self.fail == name:
            raise self.error

    def numbers(self, step: int, values: Any) -> None:
        self._do("numbers", step, values)

    def table(self, step: int, name: str, columns: Any, rows: Any) -> None:
        self._do("table", name, step, columns, rows)

    def histogram(self, step: int, name: str, counts: Any, edges: Any) -> None:
        self._do("histogram", name, step, counts, edges)

    def close(self) -> None:
        self._do("close")


@pytest.fixture
def about(tmp_path: Path) -> About:
    return About("name", "project", "id", tmp_path, {"seed": 1})


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put recorders in the place of libraries."""

    def put(name: str, recorder: Any) -> Any:
        monkeypatch.setitem(trackers.LIBRARIES, name, recorder)
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        return recorder

    return put


def config(folder: Path, **changes: Any) -> SFTConfig:
    values = {"output_dir": str(folder), "model": "m", "data": "d", "device": "cpu", "trackers": ["wandb"]} | changes
    return SFTConfig.model_validate(values)


# -------------------------------------------------------------------------------------------- messages


def test_numbers_tables_and_close(library: Any, about: About) -> None:
    seen = library("wandb", Recorder())
    tracked = Trackers(["wandb", "wandb"], about)
    tracked.log(SAMPLE, "samples.jsonl")
    tracked.log(SAMPLE | {"response": "e"}, "samples.jsonl")
    tracked.log(EVALUATION, "evaluations.jsonl")
    tracked.log({"anything": 1}, "answers_a.jsonl")  # not a tracker's
    assert not seen.calls
    tracked.log(LINE)
    tracked.log({"iteration": 4, "level": "warning", "message": "m", "score": math.inf}, "alarms.jsonl")
    tracked.close()
    columns = ["iteration", "prompt", "response", "score"]
    rows = [[0, "user: a | b", "<b>c</b>\nd", 1.25], [0, "user: a | b", "e", 1.25]]
    assert seen.calls == [
        ("init", 0),
        ("table", "samples", 0, columns, rows),
        ("numbers", 0, {"iteration": 0, "eval/win_rate": 0.5}),
        ("histogram", "histogram/eval/reward", 0, [1, 1], [0.25, 0.5, 0.75]),
        ("numbers", 3, {"iteration": 3, "reward/mean": 0.5}),
        ("table", "alarms", 4, ["iteration", "level", "message", "score"], [[4, "warning", "m", None]]),
        ("close",),
    ]
    assert seen.thread == "tracker wandb" and seen.about is about


def test_a_run_without_metrics_leaves_nothing(library: Any, about: About) -> None:
    seen = library("wandb", Recorder())
    tracked = Trackers(["wandb"], about)
    tracked.log(SAMPLE, "samples.jsonl")
    tracked.log({"iteration": 0, "eval/win_rate": 0.5}, "evaluations.jsonl")
    tracked.close()
    assert not seen.calls


def test_steps_are_iterations_else_updates_else_lines(library: Any, about: About) -> None:
    seen = library("wandb", Recorder())
    tracked = Trackers(["wandb"], about)
    for line in ({"iteration": 7, "update": 2, "x": 1.0}, {"update": 9, "x": 1.0}, {"x": 1.0}):
        tracked.log(line)
    tracked.close()
    assert [call[1] for call in seen.calls if call[0] == "numbers"] == [7, 9, 2]


def test_numbers_are_finite_and_no_words() -> None:
    assert numbers_of(LINE | {"i": math.inf, "n": None, "s": "1"}) == {"iteration": 3, "reward/mean": 0.5}


# ------------------------------------------------------------------------------------------- mishaps


@pytest.mark.parametrize("fail", ["init", "numbers", "table", "histogram", "close"])
@pytest.mark.parametrize("error", [None, SystemExit(1), KeyError("k")])
def test_one_that_fails_is_off_with_one_line(
    fail: str, error: BaseException | None, library: Any, about: About, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = library("wandb", Recorder(fail, error)), library("trackio", Recorder())
    tracked = Trackers(["wandb", "trackio"], about)
    for i in range(5):
        tracked.log(SAMPLE | {"iteration": i}, "samples.jsonl")
        tracked.log(EVALUATION | {"iteration": i}, "held_out.jsonl")
        tracked.log(LINE | {"iteration": i})
        time.sleep(0.01)
    tracked.close()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("tracker wandb is off: ") and "metrics.jsonl" in err
    assert type(bad.error).__name__ in err and "second line" not in err
    assert [call[0] for call in good.calls].count("numbers") == 10 and good.calls[-1] == ("close",)
    if fail != "close":
        assert [call[0] for call in bad.calls].count(fail) == 1  # not asked again


def test_one_that_is_not_installed(about: About, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tracked = Trackers(["wandb"], about)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "pip install 'ppomax[wandb]'" in err
    tracked.log(LINE)
    tracked.close()
    assert capsys.readouterr().err == ""


def test_one_that_hangs_holds_nothing_up(
    library: Any, about: About, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    free = threading.Event()

    class Hanging(Recorder):
        def numbers(self, step: int, values: Any) -> None:
            free.wait(30)

    library("wandb", Hanging())
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
    tracked = Trackers(["wandb"], about)
    began = time.perf_counter()
    for i in range(1000):
        tracked.log(LINE | {"iteration": i})
    assert time.perf_counter() - began < 5
    tracked.close()
    assert time.perf_counter() - began < 10
    assert "has not finished within 0.2 s" in capsys.readouterr().err
    free.set()


def test_one_that_falls_behind_is_off(library: Any, about: About, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    free = threading.Event()

    class Slow(Recorder):
        def numbers(self, step: int, values: Any) -> None:
            free.wait(30)

    library("wandb", Slow())
    monkeypatch.setattr(trackers, "WAITING", 3)
    tracked = Trackers(["wandb"], about)
    for i in range(20):
        tracked.log(LINE | {"iteration": i})
    tracked.close()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "3 messages wait" in err
    free.set()


# --------------------------------------------------------------------------------------------- secrets


def test_settings_are_sent_without_secrets() -> None:
    settings = {
        "watch": {"webhook": "https://hooks.example/T/abc", "judge": [{"url": "https://me:pw@host:8/score?key=1#x"}]},
        "api_key": "abc", "hf_token": "abc", "max_new_tokens": 5, "batch_tokens": 7, "keyword": "stays",
        "model": "owner/name", "note": "see http://h/p?token=9 and more", "none": None, "webhook": None,
        "password": "$PASSWORD", "path": "/data/long-secret-value/x", "list": ["a", 1.5, True],
    }  # fmt: skip
    got = without_secrets(settings, {"MY_TOKEN": "long-secret-value", "SHORT_KEY": "a", "HOME": "owner/name"})
    assert got == settings | {
        "watch": {"webhook": "(not shown)", "judge": [{"url": "https://host:8/score"}]},
        "api_key": "(not shown)", "hf_token": "(not shown)", "note": "see http://h/p and more",
        "path": "(not shown)",
    }  # fmt: skip
    assert without_secrets({"url": "http://[bad"}, {}) == {"url": "(not shown)"}


# ----------------------------------------------------------------------------------- the run directory


def test_run_directory_feeds_trackers_of_the_main_rank_alone(library: Any, tmp_path: Path) -> None:
    seen = library("wandb", Recorder())
    run = RunDirectory.open(config(tmp_path / "run"), Ranks())
    run.log(SAMPLE, "samples.jsonl")
    run.log(LINE)
    run.write("evaluations.jsonl", '{"iteration": 0, "eval/win_rate": 0.1}\n{"iteration": 5, "eval/win_rate": 0.5}\n')
    run.trackers.close()
    assert [call[0] for call in seen.calls] == ["init", "table", "numbers", "numbers", "close"]
    assert seen.calls[3] == ("numbers", 5, {"iteration": 5, "eval/win_rate": 0.5})
    assert seen.about.name == "run" and seen.about.project == "ppomax" and not seen.about.resumed
    assert seen.about.config["model"] == "m" and seen.about.folder == tmp_path / "run"
    assert json.loads((run.path / "metrics.jsonl").read_text())["kl/ref"] is None  # as ever

    other = library("wandb", Recorder())
    second = RunDirectory.open(config(tmp_path / "run"), Ranks(rank=1, size=1), resume=True)
    second.log(LINE)
    second.trackers.close()
    assert not other.calls


def test_a_resumed_run_keeps_its_id_and_may_change_trackers(library: Any, tmp_path: Path) -> None:
    seen = library("wandb", Recorder())
    for trackers_now, resume in ((["wandb"], False), ([], True), ("wandb", True)):
        settings = config(tmp_path / "run", trackers=trackers_now, tracker_name="mine", tracker_project="p")
        run = RunDirectory.open(settings, Ranks(), resume=resume)
        run.log(LINE)
        if not resume:
            first = run
        run.trackers.close()
    assert [call[0] for call in seen.calls] == ["init", "numbers", "close"] * 2
    assert seen.about.resumed and (seen.about.name, seen.about.project) == ("mine", "p")
    assert seen.about.id == json.loads((first.path / "trackers.json").read_text())["id"]


def test_trackers_close_when_the_run_is_let_go(library: Any, tmp_path: Path) -> None:
    seen = library("wandb", Recorder())

    def train() -> None:
        RunDirectory.open(config(tmp_path / "run"), Ranks()).log(LINE)
        raise UserError("the run failed")

    with pytest.raises(UserError):
        train()
    gc.collect()
    assert seen.calls[-1] == ("close",)


def test_nothing_came_leaves_nothing_behind(library: Any, tmp_path: Path) -> None:
    """The baseline's answers and the best policy are written before the first iteration may fail."""
    library("wandb", Recorder())

    def fail(path: Path, *, after: str | None) -> None:
        run = RunDirectory.open(config(path), Ranks())
        with run.undone_if_nothing_came():
            for folder in ("judge", "best"):
                (path / folder / "inner").mkdir(parents=True)
                (path / folder / "inner" / "file.jsonl").write_text("{}\n")
            run.write("evaluations.jsonl", '{"iteration": 0}\n')
            run.log(SAMPLE, "samples.jsonl")
            if after:
                run.log(LINE, after)
            raise UserError("the reward function raised")

    with pytest.raises(UserError):
        fail(tmp_path / "nothing", after=None)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(UserError):
        fail(tmp_path / "something", after="metrics.jsonl")
    assert (tmp_path / "something/best/inner/file.jsonl").exists()

    (tmp_path / "other").mkdir()
    run = RunDirectory.open(config(tmp_path / "other"), Ranks())
    (tmp_path / "other/mine").mkdir()  # not a run's: stays
    with pytest.raises(UserError), run.undone_if_nothing_came():
        raise UserError("x")
    assert [f.name for f in (tmp_path / "other").iterdir()] == ["mine"]

    RunDirectory.open(config(tmp_path / "killed"), Ranks())  # before its first line
    (tmp_path / "killed/notes.txt").write_text("mine")
    (tmp_path / "killed/judge").mkdir()
    before = sorted((tmp_path / "killed").rglob("*"))
    run = RunDirectory.open(config(tmp_path / "killed"), Ranks(), resume=True)
    with pytest.raises(UserError), run.undone_if_nothing_came():
        raise UserError("x")
    assert sorted((tmp_path / "killed").rglob("*")) == before


def test_a_line_that_ends_within_a_letter_is_dropped_on_resume(tmp_path: Path) -> None:
    run = RunDirectory.open(config(tmp_path / "run"), Ranks())
    run.log({"iteration": 0, "text": "中"})
    file = tmp_path / "run/metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + whole[: whole.index("中".encode()) + 2])
    assert RunDirectory._cut(file, "iteration", 5) == 1
    assert file.read_bytes() == whole and [line["text"] for line in run.read()] == ["中"]


def test_options(tmp_path: Path) -> None:
    assert config(tmp_path, trackers="tensorboard").trackers == ["tensorboard"]
    with pytest.raises(ValueError, match="tensorboard"):
        config(tmp_path, trackers=["mlflow"])
    warned = warnings_for(config(tmp_path, trackers=["tensorboard"], tracker_project="x"))
    assert any(line.startswith("tracker_project does nothing") for line in warned)
    assert not any("tracker" in line for line in warnings_for(config(tmp_path, tracker_project="x")))
    assert PPOConfig.model_fields["trackers"].default == []


# ------------------------------------------------------------------------------------ the real libraries

SCRIPT = """
import json, sys
from pathlib import Path
from ppomax.train.parallel import Ranks
from ppomax.train.run import RunDirectory
from ppomax.config import SFTConfig
folder, name, resume = sys.argv[1:4]
config = SFTConfig(output_dir=folder, model="m", data="d", device="cpu", trackers=[name], tracker_project="tests")
run = RunDirectory.open(config, Ranks(), resume=resume == "resume")
start = 2 if resume == "resume" else 0
for i in range(start, start + 3):
    sample = {"iteration": i, "prompt": [{"role": "user", "content": "a | b"}], "response": "<b>河</b>", "score": i / 2}
    run.log(sample, "samples.jsonl")
    shape = {"counts": [1, 3], "edges": [0.0, 1.0, 2.0]}
    run.log({"iteration": i, "eval/reward": 1.25, "histograms": {"eval/reward": shape}}, "held_out.jsonl")
    run.log({"iteration": i, "phase": "policy", "reward/mean": i + 0.5 + 10 * start})
"""


def track(folder: Path, name: str, *, resume: bool = False, **variables: str) -> str:
    """A run in a process of its own (the libraries read their environment once); what it said on stderr."""
    words = [sys.executable, "-c", SCRIPT, str(folder), name, "resume" if resume else "new", "hidden-word"]
    given = {k: v for k, v in (os.environ | variables).items() if v}
    done = subprocess.run(words, env=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "is off" not in done.stderr
    return done.stderr


def test_real_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(tmp_path / "run", "tensorboard")
    track(tmp_path / "run", "tensorboard", resume=True)  # begins again at step 2
    events = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    scalars = [(e.step, e.value) for e in events.Scalars("reward/mean")]
    assert scalars == [(0, 0.5), (1, 1.5), (2, 22.5), (3, 23.5), (4, 24.5)]
    counts = events.Histograms("histogram/eval/reward")
    assert [e.step for e in counts] == [0, 1, 2, 3, 4]
    shape = counts[0].histogram_value
    assert (list(shape.bucket), list(shape.bucket_limit)) == ([1, 3], [1, 2])
    assert (shape.min, shape.max, shape.num, shape.sum, shape.sum_squares) == (0, 2, 4, 5, 7)
    tags = events.Tags()["tensors"]
    assert any(tag.startswith("samples") for tag in tags) and any(tag.startswith("settings") for tag in tags)
    tag = next(tag for tag in tags if tag.startswith("samples"))
    text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    assert "&lt;b&gt;河&lt;/b&gt;" in text and "&#124;" in text


def test_real_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    key = "0123456789abcdef" * 2 + "01234567"
    folder = tmp_path / "run"
    track(folder, "wandb", WANDB_MODE="offline", WANDB_API_KEY=key)
    files = [f for f in (folder / "wandb").rglob("*") if f.is_file()]
    assert any(f.suffix == ".wandb" for f in files)
    for file in folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert key.encode() not in content and b"hidden-word" not in content, file
    summary = b"".join(f.read_bytes() for f in files)
    assert b"reward/mean" in summary and b"samples" in summary
    assert b"histogram/eval/reward" in summary and b'"histogram"' in summary
    # no key and no mode: offline, and no question asked
    variables = {"WANDB_MODE": "", "WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    track(tmp_path / "keyless", "wandb", **variables)
    assert any((tmp_path / "keyless/wandb").glob("offline-run-*"))


def test_real_trackio(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    import sqlite3

    track(tmp_path / "run", "trackio", TRACKIO_DIR=str(tmp_path / "store"))
    stores = list((tmp_path / "store").glob("*.db"))
    assert len(stores) == 1
    with sqlite3.connect(stores[0]) as store:
        rows = [(step, json.loads(metrics)) for step, metrics in store.execute("select step, metrics from metrics")]
    values = {step: row["reward/mean"] for step, row in rows if "reward/mean" in row}
    assert values == {0: 0.5, 1: 1.5, 2: 2.5}
    assert sum("samples" in row for _, row in rows) == 3
    shapes = [row["histogram/eval/reward"] for _, row in rows if "histogram/eval/reward" in row]
    assert shapes == [{"_type": "trackio.histogram", "bins": [0, 1, 2], "values": [1, 3]}] * 3


def test_training_goes_on_with_a_broken_tracker(library: Any, tmp_path: Path, capsys: Any) -> None:
    """A whole stage: the same metrics with and without."""
    from ppomax.data.records import Dialogue
    from ppomax.models.fresh import new_model
    from ppomax.train.sft import train_sft

    library("wandb", Recorder("numbers"))
    new_model(tmp_path / "base", ["Where does the river go? To the sea."] * 4, size="1m", vocab_size=320)
    turns = ({"role": "user", "content": "Where?"}, {"role": "assistant", "content": "To the sea."})
    lines = []
    for names in ([], ["wandb"]):
        torch.manual_seed(0)
        settings = config(
            tmp_path / f"run{len(names)}", model=str(tmp_path / "base"), trackers=names, batch_size=2, max_length=64
        )
        train_sft(settings, records=[Dialogue(turns)] * 8, eval_records=[Dialogue(turns)])
        text = (tmp_path / f"run{len(names)}" / "metrics.jsonl").read_text()
        lines.append([{k: v for k, v in json.loads(line).items() if not k.startswith(("time/", "throughput/", "memory/"))}
                      for line in text.splitlines()])  # fmt: skip
    assert lines[0] == lines[1] and len(lines[0]) > 1
    gc.collect()
    assert capsys.readouterr().err.count("tracker wandb is off") == 1
