"""A pipeline from a world to an exam, for real and tiny: run twice, and stopped within stages that have no checkpoints."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppomax.errors import UserError
from ppomax.pipeline import read_pipeline, run_pipeline, status_of
from ppomax.rollout.transformers_engine import TransformersEngine
from ppomax.world import make

WORLD = "size: small, texts: 20, dialogues: 20, train_prompts: 10, heldout_prompts: 5, pairs: 16"
SAMPLES = 'prompts: "${world}/prompts_train.jsonl"'
PIPELINE = f"""\
output_dir: run
defaults: {{device: cpu, max_length: 64, batch_size: 4, epochs: 1, max_pairs: 8}}
stages:
  - {{name: world, kind: world, {WORLD}}}
  - {{name: fresh, kind: new-model, size: 1m, vocab_size: 400, tokenizer_from: "${{world}}/text.jsonl"}}
  - {{name: base, kind: sft, model: "${{fresh}}", data: "${{world}}/text.jsonl"}}
  - {{name: sft, kind: sft, model: "${{base}}", data: "${{world}}/dialogues.jsonl"}}
  - {{name: t8, kind: generate, model: "${{sft}}", {SAMPLES}, sampling: {{max_new_tokens: 8, batch_size: 2}}}}
  - {{name: t3, kind: generate, model: "${{sft}}", {SAMPLES}, sampling: {{max_new_tokens: 8, temperature: 0.3}}}}
  - {{name: pairs, kind: world, {WORLD}, answers: ["${{t8}}", "${{t3}}"]}}
  - {{name: reward, kind: reward, model: "${{sft}}", data: "${{pairs}}/pairs.jsonl"}}
  - name: ppo
    kind: ppo
    model: ${{sft}}
    reward: ${{reward}}
    prompts: ${{world}}/prompts_train.jsonl
    iterations: 1
    rollout_batch: 4
    minibatch: 4
    sampling: {{max_new_tokens: 4}}
    critic: {{pretrain_iterations: 0}}
    watch: {{eval_prompts: 2}}
  - {{name: exam, kind: exam, models: ["${{sft}}", "${{ppo}}"], data: "${{world}}/exam.jsonl", per_subject: 1}}
"""
NAMES = ["world", "fresh", "base", "sft", "t8", "t3", "pairs", "reward", "ppo", "exam"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the pipeline has run once. Paths in it are relative, so that it can be copied."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "p.yaml").write_text(PIPELINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_pipeline("p.yaml")
    yield folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy" / "run"


def statuses() -> dict[str, str]:
    root, stages = read_pipeline("p.yaml")
    file = root / "pipeline.json"
    state = json.loads(file.read_text()) if file.exists() else {}
    return {stage.name: status_of(stage, state) for stage in stages}


def forget(run: Path, names: list[str]) -> None:
    """As if these stages had never run."""
    state = json.loads((run / "pipeline.json").read_text())
    for name in names:
        shutil.rmtree(run / name)
        del state[name]
    (run / "pipeline.json").write_text(json.dumps(state))


def test_what_the_stages_leave(finished: Path) -> None:
    run = finished / "run"
    said = json.loads((run / "pairs" / "world.json").read_text())
    assert said["samples"] == 20  # 10 prompts at two temperatures
    assert (run / "pairs" / "exam.jsonl").read_bytes() == (run / "world" / "exam.jsonl").read_bytes()
    assert (run / "pairs" / "pairs.jsonl").read_bytes() != (run / "world" / "pairs.jsonl").read_bytes()
    answers = [json.loads(line) for line in (run / "t8" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 10 and {a["model"] for a in answers} == {"run/sft/final"}
    result = json.loads((run / "exam" / "result.json").read_text())
    assert list(result["models"]) == ["run/sft/final", "run/ppo/final"] and result["questions"] > 4
    assert not [file for file in run.rglob("*") if file.name.endswith(".part")]


def test_the_second_time_everything_is_skipped(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    run_pipeline("p.yaml")
    assert capsys.readouterr().err.count("finished, skipped") == len(NAMES)
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before


def test_without_the_state_file_finished_stages_count(copy: Path) -> None:
    (copy / "pipeline.json").unlink()
    # answers do not tell how many there should be: those stages look, and find nothing left to do
    assert statuses() == dict.fromkeys(NAMES, "finished") | dict.fromkeys(("t8", "t3"), "interrupted")
    before = (copy / "t8" / "answers.jsonl").read_bytes()
    run_pipeline("p.yaml")
    assert (copy / "t8" / "answers.jsonl").read_bytes() == before and set(statuses().values()) == {"finished"}


class Kill(BaseException):
    """What ends a run without a chance to tidy up."""


def fail_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """The ``call``-th call of owner.name ends the run."""
    real, calls = getattr(owner, name), 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Kill
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


def test_a_killed_pipeline_ends_like_one_that_was_not(
    copy: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(copy, ["t8", "t3", "pairs", "reward", "ppo", "exam"])
    import ppomax.commands.generate
    import ppomax.evaluate.exam

    monkeypatch.setattr(ppomax.commands.generate, "CHUNK", 1)
    with monkeypatch.context() as patch:
        fail_at(patch, TransformersEngine, "generate", 3)
        with pytest.raises(Kill):
            run_pipeline("p.yaml")
    assert len((copy / "t8" / "answers.jsonl").read_text().splitlines()) == 4
    assert statuses()["t8"] == "interrupted"
    with monkeypatch.context() as patch:
        fail_at(patch, make, "_write", 4)
        with pytest.raises(Kill):
            run_pipeline("p.yaml")
    assert "[5/10] t8: resuming" in capsys.readouterr().err
    assert not (copy / "pairs").exists() and (copy / ".pairs.part").exists() and statuses()["pairs"] == "new"
    with monkeypatch.context() as patch:
        fail_at(patch, ppomax.evaluate.exam, "log_likelihoods", 2)  # the second model
        with pytest.raises(Kill):
            run_pipeline("p.yaml")
    assert not (copy / "exam").exists() and statuses()["exam"] == "new"
    with monkeypatch.context() as patch:
        fail_at(patch, ppomax.evaluate.exam, "write_atomic", 3)  # result.json, the last of its files
        with pytest.raises(Kill):
            run_pipeline("p.yaml")
    assert statuses()["exam"] == "interrupted"
    run_pipeline("p.yaml")
    assert set(statuses().values()) == {"finished"}
    for file in ("t8/answers.jsonl", "t3/answers.jsonl", "pairs/pairs.jsonl", "pairs/world.json", "exam/items.jsonl",
                 "exam/result.json"):  # fmt: skip
        assert (copy / file).read_bytes() == (finished / "run" / file).read_bytes()
    assert not (copy / ".pairs.part").exists()


def test_a_killed_first_world_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"output_dir: run\nstages:\n  - {{name: world, kind: world, {WORLD}}}\n")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        fail_at(patch, make, "fingerprint", 1)  # all data files are there, world.json is not
        with pytest.raises(Kill):
            run_pipeline("p.yaml")
    assert statuses() == {"world": "new"}
    run_pipeline("p.yaml")
    assert statuses() == {"world": "finished"}
    for file in (finished / "run" / "world").iterdir():
        assert file.read_bytes() == (tmp_path / "run" / "world" / file.name).read_bytes()


def test_changed_settings_are_refused(copy: Path) -> None:
    for words, expected in [
        (["--world.pairs", "17"], "stage world: pairs was 16 in run/world/config.yaml and is now 17"),
        (["--t8.sampling.temperature", "1"], "stage t8: sampling.temperature was 0.8"),
        (["--exam.shots", "0"], "stage exam: shots was 3"),
    ]:
        with pytest.raises(UserError) as caught:
            run_pipeline("p.yaml", words)
        assert expected in str(caught.value) and "remove" in str(caught.value)
    run_pipeline("p.yaml", ["--t8.sampling.batch-size", "7", "--exam.micro-batch-tokens", "99"])  # change nothing


def test_answers_made_anew_make_the_pairs_stale(copy: Path) -> None:
    forget(copy, ["t3"])
    with pytest.raises(UserError, match="stage pairs: its input, stage t3, has been made anew since"):
        run_pipeline("p.yaml")


def test_mistakes_leave_no_stage_behind(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forget(copy, ["t3", "pairs", "reward", "ppo", "exam"])
    with pytest.raises(UserError, match=r"^stage t3: .*absent"):
        run_pipeline("p.yaml", ["--t3.prompts", "absent.jsonl"])
    assert not (copy / "t3").exists()
    (copy / "t3").mkdir()
    (copy / "t3" / "answers.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match="stage t3: run/t3 is not empty and holds no answers of this pipeline"):
        run_pipeline("p.yaml")
    assert (copy / "t3" / "answers.jsonl").read_text() == "mine\n"


def test_the_pipeline_says_where_stages_write(copy: Path) -> None:
    text = Path("p.yaml").read_text()
    Path("p.yaml").write_text(text.replace("{name: t3, kind: generate,", "{name: t3, kind: generate, out: x.jsonl,"))
    with pytest.raises(UserError, match=r"p.yaml:9: out: this stage writes to run/t3/answers.jsonl; leave it out"):
        read_pipeline("p.yaml")


def test_two_ranks_give_what_one_gives(copy: Path, finished: Path) -> None:
    sampling = "sampling: {max_new_tokens: 8, batch_size: 2}"
    Path("two.yaml").write_text(f"""\
output_dir: two
defaults: {{device: cpu}}
stages:
  - {{name: t8, kind: generate, model: run/sft/final, prompts: run/world/prompts_train.jsonl, {sampling}}}
  - {{name: exam, kind: exam, models: [run/sft/final, run/ppo/final], data: run/world/exam.jsonl, per_subject: 1}}
""")
    port = random.SystemRandom().randrange(20_000, 32_000)  # below those that the system gives away by itself
    command = [sys.executable, "-m", "ppomax", "run", "two.yaml"]
    base = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    processes = [subprocess.Popen(command, env=base | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    assert [p.wait(timeout=300) for p in processes] == [0, 0]
    run = finished / "run"
    assert Path("two/t8/answers.jsonl").read_bytes() == (run / "t8" / "answers.jsonl").read_bytes()
    one, two = (
        [json.loads(line) for line in (folder / "exam" / "items.jsonl").read_text().splitlines()]
        for folder in (run, Path("two"))
    )
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.pop("loglikelihood") == pytest.approx(b.pop("loglikelihood"), abs=1e-4)
        assert a == b
