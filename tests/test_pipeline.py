"""Pipelines: references, defaults, overrides, skipping, resuming, changed settings, mistakes."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppomax import pipeline
from ppomax.errors import UserError
from ppomax.options import dump_yaml
from ppomax.pipeline import Kind, read_pipeline, run_pipeline

PIPELINE = """\
output_dir: {root}
defaults: {{seed: 7, max_length: 64}}
stages:
  - {{name: base, kind: new-model, size: 1m, tokenizer_from: [a.jsonl]}}
  - name: sft
    kind: sft
    model: ${{base}}
    data: {{path: "${{PPOMAX_DATA}}/d.jsonl"}}
    epochs: 1
  - {{name: rm, kind: reward, model: "${{sft}}", data: p.jsonl}}
  - name: ppo-max
    kind: ppo
    model: ${{sft}}
    reward: [{{model: "${{rm}}", weight: 2}}]
    prompts: ["${{sft.dir}}/samples.jsonl"]
    preset: vanilla
"""


class Fakes:
    """Stage functions that write what the real ones do, and remember their calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool]] = []
        self.fail_in: str | None = None

    def train(self, config: Any, resume: bool = False) -> None:
        folder = Path(config.output_dir)
        self.calls.append((folder.name, resume))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump_yaml(config))
        if self.fail_in == folder.name:
            raise UserError("the data ran out")
        product = folder if folder.name == "base" else folder / "final"
        product.mkdir(exist_ok=True)
        (product / "config.json").write_text("{}")

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes()
    module = types.ModuleType("fake_stages")
    module.train = fakes.train  # type: ignore[attr-defined]
    module.make = lambda config: fakes.train(config)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_stages", module)
    kinds = {
        name: Kind(k.config, f"fake_stages:{'train' if k.resumes else 'make'}", k.product, k.resumes, k.on_all_ranks)
        for name, k in pipeline.KINDS.items()
    }
    monkeypatch.setattr(pipeline, "KINDS", kinds)
    return fakes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "p.yaml"
    file.write_text(PIPELINE.format(root=tmp_path / "run"))
    return file


def error_of(function: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_references_defaults_and_presets(file: Path, tmp_path: Path) -> None:
    root, stages = read_pipeline(str(file))
    assert root == tmp_path / "run"
    base, sft, rm, ppo = (stage.config for stage in stages)
    assert sft.model == str(root / "base") and rm.model == str(root / "sft" / "final")
    assert ppo.model == rm.model and ppo.reward[0].model == str(root / "rm" / "final") and ppo.reward[0].weight == 2
    assert ppo.prompts[0].path == str(root / "sft") + "/samples.jsonl"
    assert sft.data[0].path == "${PPOMAX_DATA}/d.jsonl"  # for whoever reads the data
    assert {c.seed for c in (base, sft, rm, ppo)} == {7}
    assert sft.max_length == rm.max_length == 64  # PPO has no such field
    assert ppo.kl.coef == 0 and ppo.output_dir == str(root / "ppo-max")
    assert [stage.uses for stage in stages] == [[], ["base"], ["sft"], ["rm", "sft"]]


@pytest.mark.parametrize("place", ["~/deep/run", "$SOMEWHERE/run", "${SOMEWHERE}/run"])
def test_places_may_name_the_home_and_variables(
    place: str, tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOMEWHERE", str(tmp_path / "deep"))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "p.yaml"
    file.write_text(PIPELINE.format(root=place))
    run_pipeline(str(file))
    assert (tmp_path / "deep" / "run" / "pipeline.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "p.yaml"]
    run_pipeline(str(file))
    assert len(fakes.calls) == 4, "the second time everything is there"
    monkeypatch.delenv("SOMEWHERE")
    if "SOMEWHERE" in place:
        assert "the environment variable SOMEWHERE is not set" in error_of(read_pipeline, str(file))


def test_defaults_may_be_written_with_hyphens(file: Path) -> None:
    file.write_text(file.read_text().replace("max_length: 64", "max-length: 64"))
    assert read_pipeline(str(file))[1][1].config.max_length == 64


def test_command_line_reaches_one_stage(file: Path, tmp_path: Path) -> None:
    words = [
        "--sft.optim.lr",
        "1e-3",
        "--ppo-max.kl.coef=0.2",
        "--ppo-max.iterations",
        "5",
        "--output-dir",
        str(tmp_path / "o"),
    ]
    root, stages = read_pipeline(str(file), words)
    assert root == tmp_path / "o" and stages[1].config.model == str(tmp_path / "o" / "base")
    assert stages[1].config.optim.lr == 1e-3 and stages[1].config.optim.schedule == "cosine"
    assert (stages[3].config.kl.coef, stages[3].config.iterations, stages[2].config.optim.lr) == (0.2, 5, 5e-5)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    place = tmp_path / "mine"
    place.mkdir()
    return place


def test_what_is_given_is_not_made(file: Path, tmp_path: Path, model: Path, fakes: Fakes) -> None:
    file.write_text(file.read_text().replace("${sft.dir}/", ""))
    root, stages = read_pipeline(str(file), ["--sft", str(model)])
    assert [stage.name for stage in stages] == ["rm", "ppo-max"]  # base serves sft alone
    rm, ppo = (stage.config for stage in stages)
    assert rm.model == ppo.model == str(model) and ppo.reward[0].model == str(root / "rm" / "final")
    run_pipeline(str(file), ["--sft", str(model)])
    run_pipeline(str(file), [f"--sft={model}"])
    assert fakes.calls == [("rm", False), ("ppo-max", False)]
    assert "model was" in error_of(run_pipeline, str(file), [f"--sft={tmp_path}"])
    # as before, though sft was made here meanwhile
    pipeline._write_state(root, pipeline._read_state(root) | {"sft": {"from": {}, "made": 5}})
    run_pipeline(str(file), [f"--sft={model}"])
    assert len(fakes.calls) == 2
    # rm needs sft still, though nobody needs rm
    assert [stage.name for stage in read_pipeline(str(file), ["--rm", str(model)])[1]] == ["base", "sft", "ppo-max"]
    assert [stage.name for stage in read_pipeline(str(file), ["--base", str(model)])[1]] == ["sft", "rm", "ppo-max"]


def test_mistakes_in_what_is_given(file: Path, tmp_path: Path, model: Path) -> None:
    assert "${sft.dir}: stage sft was given" in error_of(read_pipeline, str(file), ["--sft", str(model)])
    words = ["--sft", str(model), "--ppo-max", str(model)]  # rm serves ppo-max alone, and nobody asks for the folder
    assert "no stage is left to run, with --sft and --ppo-max given" in error_of(read_pipeline, str(file), words)
    file.write_text(file.read_text().replace("${sft.dir}/", ""))
    for words, expected in (
        (["--sft", str(tmp_path / "none")], f"--sft {tmp_path / 'none'}: no such file or folder"),
        (["--sft"], "--sft needs a value"),
        (["--sft", str(model), "--sft.epochs", "2"], "stage sft is not run, with --sft given"),
        (["--base.seed", "2", "--sft", str(model)], "stage base is not run, with --sft given"),
    ):
        assert expected in error_of(read_pipeline, str(file), words)


def test_stages_run_once(file: Path, tmp_path: Path, fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    run_pipeline(str(file))
    assert fakes.calls == [("base", False), ("sft", False), ("rm", False), ("ppo-max", False)]
    fakes.calls.clear()
    run_pipeline(str(file))
    assert fakes.calls == []
    assert capsys.readouterr().err.count("finished, skipped") == 4


def test_an_interrupted_stage_is_resumed(file: Path, fakes: Fakes) -> None:
    fakes.fail_in = "rm"
    assert error_of(run_pipeline, str(file)) == "stage rm: the data ran out"
    fakes.fail_in = None
    fakes.calls.clear()
    run_pipeline(str(file))
    assert fakes.calls == [("rm", True), ("ppo-max", False)]


def test_a_stage_killed_after_its_model_was_written_is_resumed(file: Path, fakes: Fakes, tmp_path: Path) -> None:
    run_pipeline(str(file))
    state = json.loads((tmp_path / "run" / "pipeline.json").read_text())
    del state["ppo-max"]["made"]
    (tmp_path / "run" / "pipeline.json").write_text(json.dumps(state))
    fakes.calls.clear()
    run_pipeline(str(file))
    assert fakes.calls == [("ppo-max", True)]


def test_stages_made_by_their_own_verbs_count(file: Path, fakes: Fakes, tmp_path: Path) -> None:
    run_pipeline(str(file))
    (tmp_path / "run" / "pipeline.json").unlink()
    fakes.calls.clear()
    run_pipeline(str(file))
    assert fakes.calls == []


def test_changed_settings_are_refused(file: Path, fakes: Fakes, tmp_path: Path) -> None:
    run_pipeline(str(file))
    fakes.calls.clear()
    message = error_of(run_pipeline, str(file), ["--rm.lm-coef", "0", "--rm.epochs", "3"])
    assert message.startswith("stage rm: epochs was 1.0 in ") or message.startswith("stage rm: lm_coef was 1.0 in ")
    assert "remove" in message and "epochs" in message and "lm_coef" in message
    assert fakes.calls == []
    run_pipeline(
        str(file), ["--rm.micro-batch-tokens", "99", "--rm.checkpoint.every", "3"]
    )  # changes nothing that matters
    assert fakes.calls == []


def test_what_depends_on_a_stage_made_anew_is_refused(file: Path, fakes: Fakes, tmp_path: Path) -> None:
    run_pipeline(str(file))
    shutil.rmtree(tmp_path / "run" / "sft")
    fakes.calls.clear()
    message = error_of(run_pipeline, str(file))
    assert fakes.names == ["sft"]
    assert message.startswith("stage rm: its input, stage sft, has been made anew since") and "remove" in message
    for name in ("rm", "ppo-max"):
        shutil.rmtree(tmp_path / "run" / name)
    run_pipeline(str(file))
    assert fakes.names == ["sft", "rm", "ppo-max"]


def test_all_stages_are_checked_before_the_first_runs(file: Path, fakes: Fakes) -> None:
    assert "ppo-max" in error_of(run_pipeline, str(file), ["--ppo-max.kl.coef", "x"])
    assert fakes.calls == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "model: ${base}",
            "model: ${bse}",
            ":7: ${bse} is no earlier stage and no environment variable; did you mean base",
        ),
        ("model: ${base}", "model: ${rm}", ":7: ${rm}: stage rm does not come before this one"),
        ("model: ${base}", "model: ${sft}", ":7: ${sft}: stage sft does not come before this one"),
        ("${sft.dir}", "${sft.path}", "a stage has ${sft} (its model) and ${sft.dir}"),
        ("kind: sft", "kind: stf", ":5: stage sft: unknown kind 'stf'; did you mean sft"),
        ("name: rm", "name: sft", "a second stage called 'sft'"),
        ("name: rm", "name: r/m", "stage name 'r/m'"),
        ("name: rm, ", "", "this stage has no name"),
        ("epochs: 1", "epoch: 1", ":9: unknown field 'epoch'; did you mean epochs"),
        ("epochs: 1", "epochs: x", ":9: epochs = 'x': a number is expected"),
        ("epochs: 1", "output_dir: x", ":9: output_dir"),
        ("seed: 7", "sed: 7", ":2: no stage has a field 'sed'; did you mean seed"),
        ("seed: 7", "seed: x", ":2: seed = 'x': an integer is expected"),
        ("defaults:", "default:", ":2: unknown field 'default'; did you mean defaults"),
        ("defaults: {", "defaults: [", "defaults"),
        ("preset: vanilla", "preset: vanila", ":16: unknown preset 'vanila'"),
        ("data: p.jsonl", "margin: true", "stage rm: missing data"),
    ],
)
def test_mistakes_in_the_file(old: str, new: str, expected: str, file: Path) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(
        text.replace(old, new, 1) if new != "defaults: [" else text.replace("{seed: 7, max_length: 64}", "[1]")
    )
    message = error_of(read_pipeline, str(file))
    assert (expected in message and str(file) in message) or "missing" in expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--sfft.epochs", "2"],
            "unknown option --sfft.epochs: options are --stage.field value or --stage PLACE, and the stages are base, sft",
        ),
        (["--sft.epoch", "2"], "unknown option --sft.epoch; did you mean --sft.epochs"),
        (["--epochs", "2"], "unknown option --epochs"),
        (["x"], "unexpected word 'x'"),
        (["--sft.epochs"], "--sft.epochs needs a value"),
        (["--output-dir"], "--output-dir needs a value"),
    ],
)
def test_mistakes_on_the_command_line(words: list[str], expected: str, file: Path) -> None:
    assert expected in error_of(read_pipeline, str(file), words)


@pytest.mark.parametrize("text", ["", "stages: []", "stages: {a: b}", "a: [", "- x", "stages: [x]"])
def test_files_that_are_no_pipelines(text: str, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(text)
    assert str(file) in error_of(read_pipeline, str(file))


def test_missing_output_dir(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("stages: [{name: a, kind: sft, model: m, data: d}]")
    assert "`output_dir` is missing" in error_of(read_pipeline, str(file))
    assert read_pipeline(str(file), ["--output_dir", "o"])[0] == Path("o")
