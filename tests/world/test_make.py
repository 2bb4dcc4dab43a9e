"""``ppomax world``: ordinary files that every command reads, and a judge that they lead to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppomax.cli import main
from ppomax.config import DataSource, RewardSourceConfig
from ppomax.data.records import Dialogue, PreferencePair, Prompt, Text
from ppomax.data.sources import load_mixture
from ppomax.errors import UserError
from ppomax.rollout.reward_sources import Sample, make_source
from ppomax.world import World, fingerprint
from ppomax.world.reward import score

FEW = [
    "--texts",
    "40",
    "--dialogues",
    "60",
    "--train-prompts",
    "50",
    "--heldout-prompts",
    "40",
    "--pairs",
    "60",
    "--size",
    "small",
]


@pytest.fixture(scope="module", params=["en", "zh"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("worlds") / request.param
    assert main(["world", str(out), "--language", request.param, "--seed", "3", *FEW]) == 0
    return out


@pytest.mark.parametrize(("name", "purpose", "kind", "n"), [
    ("text", "dialogue", Text, 40), ("dialogues", "dialogue", Dialogue, 60), ("prompts_train", "prompt", Prompt, 50),
    ("prompts_heldout", "prompt", Prompt, 40), ("pairs", "pair", PreferencePair, 60),
])  # fmt: skip
def test_files_are_read_like_any_other_data(made: Path, name: str, purpose: str, kind: type, n: int) -> None:
    records, report = load_mixture([DataSource(path=str(made / f"{name}.jsonl"))], purpose)  # type: ignore[arg-type]
    assert len(records) == n and all(isinstance(r, kind) for r in records)
    assert "0 dropped" not in " ".join(report.lines())


def test_world_json_says_where_it_comes_from(made: Path) -> None:
    said = json.loads((made / "world.json").read_text(encoding="utf-8"))
    assert (said["seed"], said["size"], said["language"]) == (3, "small", made.name)
    assert said["hash"] == fingerprint() and said["version"]
    assert said["records"]["pairs"] == 60 and 0.6 < said["annotators"]["accuracy"] <= 1
    assert set(said["demonstrations"]) == {"helpful", "harmful", "unanswerable"}


def test_progress_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world", str(tmp_path / "w"), *FEW]) == 0
    assert "world, pairs 60/60" in capsys.readouterr().err


def test_twice_the_same_files(made: Path, tmp_path: Path) -> None:
    assert main(["world", str(tmp_path / "again"), "--language", made.name, "--seed", "3", *FEW]) == 0
    for file in made.glob("*.json*"):  # config.yaml names the folder
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_the_judge_is_a_reward_function(made: Path) -> None:
    """What PPO and duel get from ``--reward ppomax.world.reward:score`` is the judge's overall score."""
    records, _ = load_mixture([DataSource(path=str(made / "prompts_heldout.jsonl"))], "prompt")
    world = World(made.name, 3, "small")
    prompts = [r for r in records if isinstance(r, Prompt)]
    samples = [Sample(p.messages, world.opponent(p), [], [], metadata=dict(p.metadata)) for p in prompts]
    scores = make_source(RewardSourceConfig(function="ppomax.world.reward:score"), None)(samples)
    assert scores == [world.judge(p, s.response).overall for p, s in zip(prompts, samples, strict=True)]
    assert {r.source for r in prompts} == {"helpful", "harmful", "unanswerable"}
    fact = next(dict(p.metadata) for p in prompts if dict(p.metadata)["kind"] == "fact")
    for wrong in ({"entity": 10_000}, {"attribute": "first"}):
        with pytest.raises(UserError, match=f"name what the world {fact['world']} does not have"):
            score(["?"], [world.opponent(prompts[0])], **{name: [value] for name, value in {**fact, **wrong}.items()})


def test_answers_of_a_model_become_candidates(made: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (made / "prompts_train.jsonl").read_text(encoding="utf-8").splitlines()[:5]]
    file = tmp_path / "answers.jsonl"
    lines = [json.dumps({"prompt": r["prompt"], "response": f"answer {i}"}) for r in rows for i in range(2)]
    file.write_text("\n".join(lines), encoding="utf-8")
    words = ["world", str(tmp_path / "w"), "--language", made.name, "--seed", "3", *FEW, "--answers", str(file)]
    assert main(words) == 0
    assert "answer 1" in (tmp_path / "w" / "pairs.jsonl").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "w" / "world.json").read_text(encoding="utf-8"))["samples"] == 10


@pytest.mark.parametrize(("line", "message"), [
    ('{"prompt": "x"}', "answers.jsonl:1: expected an object"), ("nonsense", "answers.jsonl:1: expected an object"),
    ('{"prompt": "Who won?", "response": "me"}', "answers.jsonl:1: not a prompt of this world"),
])  # fmt: skip
def test_wrong_answer_files_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    (tmp_path / "answers.jsonl").write_text(line, encoding="utf-8")
    assert main(["world", str(tmp_path / "w"), *FEW, "--answers", str(tmp_path / "answers.jsonl")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_wrong_options_are_told(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in [
        ([str(made)], "already exists"),
        ([str(tmp_path / "x"), "--language", "fr"], "language"),
        ([str(tmp_path / "x"), "--seed", "-1"], "seed"),
        ([str(tmp_path / "x"), *FEW, "--heldout-prompts", "90000"], "different heldout prompts"),
        ([str(tmp_path / "x"), "y"], "unexpected word"),
        ([], "output_dir"),
    ]:
        assert main(["world", *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
