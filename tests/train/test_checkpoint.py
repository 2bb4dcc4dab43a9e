"""Checkpoints: bitwise round trips, whole or absent, retention, and what a damaged one says."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppomax.errors import UserError
from ppomax.rl.moments import RunningMoments
from ppomax.train import checkpoint as module
from ppomax.train.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_part,
    restore_rng,
    rng_state,
    save_checkpoint,
    save_part,
    seed_everything,
    step_of,
    write_atomic,
)

CPU = torch.device("cpu")


def same(a: Any, b: Any) -> bool:
    """Equal in type, structure and every bit (NaN equals NaN, 0.0 does not equal -0.0, True does not equal 1)."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        one, other = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(one, other)
    if isinstance(a, dict):
        return [*map(repr, a)] == [*map(repr, b)] and all(same(a[k], b[k]) for k in a)  # keys in order, 1 is not "1"
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()
    return a == b


def round_trip(folder: Path, state: Any) -> Any:
    save_part(folder, "part", state)
    return load_part(folder, "part")


# ---------------------------------------------------------------------------------------- round trips


TENSORS = {
    "float32": torch.tensor([[1.5, -0.0], [math.nan, math.inf]]),
    "bf16": torch.tensor([1.0, -3.14, math.nan, -math.inf], dtype=torch.bfloat16),
    "float16": torch.tensor([1e-7, 65504.0], dtype=torch.float16),
    "float64": torch.tensor([0.1, 1e-320], dtype=torch.float64),
    "int64": torch.tensor([2**62, -1]),
    "uint8": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "empty": torch.empty(0),
    "empty matrix": torch.empty(3, 0, dtype=torch.bfloat16),
    "scalar": torch.tensor(3.0),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "slice": torch.arange(10.0)[3:7:2],
    "expanded": torch.tensor([1.0]).expand(4),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    assert same(round_trip(tmp_path, {"x": TENSORS[name]}), {"x": TENSORS[name]})
    assert same(round_trip(tmp_path, TENSORS[name]), TENSORS[name])  # alone, too


def test_plain_values_come_back(tmp_path: Path) -> None:
    state = {
        "floats": [0.1, 1e-320, -0.0, math.nan, math.inf, -math.inf, 1.7976931348623157e308],
        "ints": [0, -1, 2**200],
        "others": (None, True, False, "", 'ä 中文 \n " \ud800', ()),
        "empty": {},
        "nested": [[], [[]], ({"a": (1, [2.0])},)],
        0: "zero",
        "0": "a word",
    }
    assert same(round_trip(tmp_path, state), state)


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.floats(width=32), max_size=3).map(torch.tensor),
    st.integers(0, 2**40).map(torch.tensor),
)
keys = st.one_of(st.integers(-3, 3), st.sampled_from(["a", "b", "a/b", "/", "", "1", "a'"]), st.text(max_size=3))
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(states)
def test_any_nested_state_comes_back(tmp_path_factory: pytest.TempPathFactory, state: Any) -> None:
    folder = tmp_path_factory.mktemp("state")
    assert same(round_trip(folder, state), state)
    shutil.rmtree(folder)


def test_keys_that_look_alike_do_not_meet(tmp_path: Path) -> None:
    a, b, c, d = (torch.full((2,), float(i)) for i in range(4))
    state = {"a/b": a, "a": {"b": b}, 1: c, "1": d}
    assert same(round_trip(tmp_path, state), state)


def test_tied_tensors_may_be_saved(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    state = {"embedding": shared, "head": shared, "part": shared[:2]}
    assert same(round_trip(tmp_path, state), state)


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"cannot save a set at /a/0"):
        save_part(tmp_path, "part", {"a": [{1}]})
    with pytest.raises(TypeError, match=r"cannot save a tuple as a key at /a"):
        save_part(tmp_path, "part", {"a": {(1, 2): 3}})


def test_there_is_no_pickle(tmp_path: Path) -> None:
    save_part(tmp_path, "part", {"x": torch.ones(2), "n": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part.json", "part.safetensors"]
    json.loads((tmp_path / "part.json").read_text())


# -------------------------------------------------------------------------- a training goes on bit for bit


def test_model_optimizer_moments_and_rng_continue_bit_for_bit(tmp_path: Path) -> None:
    def start() -> tuple[torch.nn.Module, torch.optim.AdamW, RunningMoments]:
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
        groups = [{"params": [p], "weight_decay": 0.1 * p.ndim} for p in model.parameters()]
        return model, torch.optim.AdamW(groups, lr=0.05), RunningMoments()

    def train(model: torch.nn.Module, optimizer: torch.optim.AdamW, moments: RunningMoments) -> None:
        for _ in range(3):
            x = torch.randn(5, 3) * random.gauss(1, 0.1)
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            optimizer.step()
            moments.update(loss)

    seed_everything(3)
    one = start()
    train(*one)
    model, optimizer, moments = one
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "moments": moments.state_dict()}
    saved = save_checkpoint(tmp_path, 3, {"train": state, "rng": rng_state(CPU)}, keep=1)
    assert set(optimizer.state_dict()["state"]) == {0, 1, 2, 3}  # whole numbers as keys
    train(*one)

    seed_everything(99)
    other = start()
    loaded = load_part(saved, "train")
    assert same(loaded["optimizer"]["param_groups"], [dict(g) for g in state["optimizer"]["param_groups"]])
    for part, name in zip(other, ("model", "optimizer", "moments"), strict=True):
        part.load_state_dict(loaded[name])
    restore_rng(load_part(saved, "rng"), CPU)
    train(*other)
    assert same(dict(other[0].state_dict()), dict(model.state_dict()))
    assert same(other[1].state_dict()["state"], optimizer.state_dict()["state"])
    assert other[2] == moments


def test_rng_comes_back_with_its_spare_gaussian(tmp_path: Path) -> None:
    seed_everything(5)
    random.gauss(0, 1)  # Python draws these in pairs and keeps the second
    state = rng_state(CPU)
    assert state["python"][2] is not None
    assert same(round_trip(tmp_path, state), state)
    expected = random.gauss(0, 1), random.random(), torch.rand(3)
    random.seed(0)
    torch.rand(7)
    restore_rng(load_part(tmp_path, "part"), CPU)
    assert (random.gauss(0, 1), random.random()) == expected[:2]
    assert torch.equal(torch.rand(3), expected[2])


# ------------------------------------------------------------------------------------ whole or absent


def names(folder: Path) -> list[str]:
    return [p.name for p in list_checkpoints(folder)]


def parts(n: float) -> dict[str, Any]:
    return {"a": {"x": torch.full((3,), n)}, "b": {"n": n}}


class Killed(BaseException):
    """What a kill looks like from inside: nothing of the program runs any more."""


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """The ``call``-th use of a function is the run's last act; it has not happened."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def function(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, function)


@pytest.mark.parametrize("call", [1, 2])
def test_a_kill_while_writing_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    save_checkpoint(tmp_path, 1, parts(1), keep=5)
    with monkeypatch.context() as patch:
        kill_at(patch, module, "save_part", call)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, 2, parts(2), keep=5)
    assert names(tmp_path) == ["step-000001"]
    assert len([*tmp_path.iterdir()]) == 2  # the leftover lies hidden beside it,
    save_checkpoint(tmp_path, 3, parts(3), keep=5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000003"]  # and the next save clears it


@pytest.mark.parametrize(
    "owner, name", [(module, "_sync"), (Path, "replace"), (shutil, "rmtree"), (module, "save_part")]
)
def test_a_kill_anywhere_leaves_only_whole_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """Overwriting step 2 and retiring step 1, killed before every single step of the work that touches the disk."""
    for call in range(1, 12):
        folder = tmp_path / str(call)
        save_checkpoint(folder, 1, parts(1), keep=2)
        save_checkpoint(folder, 2, parts(2), keep=2)
        with monkeypatch.context() as patch:
            kill_at(patch, owner, name, call)
            try:
                save_checkpoint(folder, 2, parts(2.5), keep=1)
                break  # the work has fewer steps than that
            except Killed:
                pass
        assert names(folder)  # there is always one to go on from
        for found in list_checkpoints(folder):
            n = load_part(found, "b")["n"]
            assert n in ((1,) if step_of(found) == 1 else (2, 2.5))
            assert torch.equal(load_part(found, "a")["x"], torch.full((3,), float(n)))
        save_checkpoint(folder, 2, parts(7), keep=1)
        assert [p.name for p in folder.iterdir()] == ["step-000002"]
        assert load_part(folder / "step-000002", "b") == {"n": 7}
    assert call > 1


def test_a_kill_within_a_deletion_leaves_nothing_half_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rmtree` goes file by file: half-way through, a checkpoint must no longer bear a checkpoint's name."""

    def half(path: Path, **_: Any) -> None:
        next(iter(sorted(path.iterdir()))).unlink()
        raise Killed

    for again in (False, True):  # retention, and overwriting
        folder = tmp_path / str(again)
        save_checkpoint(folder, 1, parts(1), keep=2)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", half)
            with pytest.raises(Killed):
                save_checkpoint(folder, 1 if again else 2, parts(2), keep=1)
        for found in list_checkpoints(folder):
            assert len([*found.iterdir()]) == 4 and load_part(found, "a")


def test_a_checkpoint_appears_in_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        seen.append((len([*self.iterdir()]), target.exists()))
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    save_checkpoint(tmp_path, 2, parts(1), keep=1)
    assert seen == [(4, False)]  # all four files were there, and nothing of that name before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_real_kill_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    """A process that does nothing but save, overwrite and retire is killed at ten random moments."""
    rng = random.Random(0)
    for _ in range(10):
        child = os.fork()
        if child == 0:
            try:
                for step in range(1, 10**6):
                    for n in (step, step + 0.5):  # each step is written twice
                        save_checkpoint(tmp_path, step % 7, parts(n), keep=2)
            finally:
                os._exit(1)
        limit = time.monotonic() + 120
        while not list_checkpoints(tmp_path):  # the first child; on a slow disk none comes within ten short lives
            assert time.monotonic() < limit and os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.001)
        time.sleep(rng.uniform(0.02, 0.12))
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL  # not an error of its own
        for found in list_checkpoints(tmp_path):
            n = load_part(found, "b")["n"]
            assert int(n) % 7 == step_of(found)
            assert torch.equal(load_part(found, "a")["x"], torch.full((3,), float(n)))
    assert list_checkpoints(tmp_path)


def test_overwriting_a_step_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 4, {"old": 1, **parts(1)}, keep=1)
    target = save_checkpoint(tmp_path, 4, parts(2), keep=1)
    assert names(tmp_path) == ["step-000004"] and load_part(target, "b") == {"n": 2}
    assert not (target / "old.json").exists()


def test_write_atomic_keeps_the_old_text_until_the_new_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    write_atomic(file, "old: ä\n")
    with monkeypatch.context() as patch:
        kill_at(patch, Path, "replace", 1)
        with pytest.raises(Killed):
            write_atomic(file, "new: 中\n")
    assert file.read_text(encoding="utf-8") == "old: ä\n"
    write_atomic(file, "new: 中\n")
    assert file.read_bytes() == "new: 中\n".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


# ------------------------------------------------------------------------------- retention and listing


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for step in range(10, 60, 10):
        save_checkpoint(tmp_path, step, parts(step), keep=2)
    assert names(tmp_path) == ["step-000040", "step-000050"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000050"
    assert step_of(tmp_path / "step-000050") == 50


def test_what_was_just_written_stays_even_when_older_than_the_rest(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 100, parts(1), keep=1)
    target = save_checkpoint(tmp_path, 60, parts(2), keep=1)
    assert load_part(target, "b") == {"n": 2}


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):  # as words the second would come first, and be the one to go
        save_checkpoint(tmp_path, step, parts(1), keep=1)
    assert names(tmp_path) == ["step-1000000"]
    save_checkpoint(tmp_path, 2_000_000, parts(1), keep=2)
    assert names(tmp_path) == ["step-1000000", "step-2000000"]


def test_other_names_are_not_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == [] and latest_checkpoint(tmp_path) is None
    for name in ("step-000001.bak", "step-abc", ".step-000002.part", "final"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000003").write_text("a file")
    assert list_checkpoints(tmp_path) == [] and latest_checkpoint(tmp_path) is None
    with pytest.raises(UserError, match=r"step-abc: not a checkpoint"):
        step_of(tmp_path / "step-abc")


@pytest.mark.parametrize("damage", ["no json", "no tensors", "half json", "half tensors", "tensor lost"])
def test_a_damaged_part_is_named_in_one_line(tmp_path: Path, damage: str) -> None:
    target = save_checkpoint(tmp_path, 1, parts(1), keep=1)
    structure, tensors = target / "a.json", target / "a.safetensors"
    if damage == "no json":
        structure.unlink()
    elif damage == "no tensors":
        tensors.unlink()
    elif damage == "half json":
        structure.write_text(structure.read_text()[:9])
    elif damage == "half tensors":
        tensors.write_bytes(tensors.read_bytes()[:-4])
    else:
        structure.write_text(structure.read_text().replace("/x", "/y"))
    with pytest.raises(UserError, match=r"step-000001: part 'a' is missing or damaged") as caught:
        load_part(target, "a")
    assert "\n" not in str(caught.value)
