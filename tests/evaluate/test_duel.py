"""Duels between files, models and moments of a training run: hand-worked results, resumption, refusals."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from ppomax.cli import main
from ppomax.data.chat import ChatFormat
from ppomax.errors import UserError
from ppomax.evaluate import answers as answers_module
from ppomax.evaluate.duel import DuelConfig, run_duel
from ppomax.evaluate.duel_tally import duel_over_training
from ppomax.models.fresh import new_model
from ppomax.options import from_mapping

JUDGE = "duel_test_judge:digits"
QUICK = {"max_new_tokens": 6, "batch_size": 2}


@pytest.fixture(autouse=True)
def judge_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`digits`: the number that a response holds, else 0; called at most as often as CALLS says."""
    code = "CALLS = []\ndef digits(prompts, responses):\n    CALLS.append(len(responses))\n"
    code += "    return [float(''.join(c for c in r if c.isdigit()) or 0) for r in responses]\n"
    (tmp_path / "duel_test_judge.py").write_text(code)
    monkeypatch.delitem(__import__("sys").modules, "duel_test_judge", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two language models and a reward model that share a tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b")):
        new_model(folder / name, ["some words to answer with, and 几个字"] * 5, size="1m", vocab_size=300, seed=seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / "a")
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder / "a")
    config.num_labels = 1
    torch.manual_seed(7)
    LlamaForSequenceClassification(config).save_pretrained(folder / "rm")
    tokenizer.save_pretrained(folder / "rm")
    return {name: folder / name for name in ("a", "b", "rm")}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def duel(folder: Path, resume: bool = False, **fields: Any) -> dict[str, Any]:
    values = {"output_dir": str(folder), "judge": JUDGE, "resamples": 200, "device": "cpu", **fields}
    return run_duel(from_mapping(DuelConfig, values), resume=resume)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Scores of A: 5 1 3 2, of B: 1 4 3 2.x; the last prompt of B has no partner."""
    a = [("one", "5 apples", "x"), ("two", "1", "x"), ("three", "is 3", "y"), ("four", "2", "y")]
    b = [("four", "", "y"), ("three", "3", "y"), ("two", "4", "x"), ("one", "1 1", "x"), ("five", "9", "y")]
    rows = {n: [{"prompt": p, "response": r, "source": s} for p, r, s in side] for n, side in (("a", a), ("b", b))}
    return {name: write(tmp_path / f"{name}.jsonl", side) for name, side in rows.items()}


def test_files_by_hand(files: dict[str, str], tmp_path: Path) -> None:
    result = duel(tmp_path / "run", **files, tie_band=0.0)
    overall = result["overall"]
    assert [overall[k] for k in ("prompts", "win", "tie", "lose")] == [4, 1, 1, 2]  # 5-11, 1-4, 3-3, 2-0
    assert overall["win_rate"]["value"] == 0.375
    assert {s: [r["win"], r["tie"], r["lose"]] for s, r in result["by_source"].items()} == {
        "x": [0, 0, 2],
        "y": [1, 1, 0],
    }
    assert result["mean_score_a"] == pytest.approx(11 / 4) and result["mean_score_b"] == pytest.approx(18 / 4)
    assert overall["mean_length_a"] == pytest.approx((8 + 1 + 4 + 1) / 4)
    assert result["judge"] == [JUDGE] and result["left_out"]["no answer in a file"] == 0
    judged = read(tmp_path / "run" / "judgements.jsonl")
    assert [j["outcome"] for j in judged] == ["lose", "lose", "tie", "win"]
    first = judged[0]
    assert first["prompt"] == [{"role": "user", "content": "one"}] and first["source"] == "x"
    assert (first["response_a"], first["response_b"]) == ("5 apples", "1 1")
    assert (first["score_a"], first["score_b"], first["length_a"], first["length_b"]) == (5.0, 11.0, 8, 3)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert (tmp_path / "run" / "config.yaml").exists()


def test_exchanging_the_sides_mirrors_the_result(files: dict[str, str], tmp_path: Path) -> None:
    one = duel(tmp_path / "one", **files)
    other = duel(tmp_path / "other", a=files["b"], b=files["a"])
    assert (one["overall"]["win"], one["overall"]["lose"]) == (other["overall"]["lose"], other["overall"]["win"])
    assert one["tie_band"] == other["tie_band"] > 0
    for key in ("win_rate", "length_controlled"):
        assert one["overall"][key]["value"] == pytest.approx(1 - other["overall"][key]["value"], abs=1e-9)
    assert one["overall"]["sign_test_p"] == other["overall"]["sign_test_p"]


def test_tie_band_in_the_judges_own_units(files: dict[str, str], tmp_path: Path) -> None:
    assert duel(tmp_path / "run", **files, tie_band=0.7, tie_unit="score")["tie_band"] == 0.7


def test_tie_band_is_a_share_of_the_spread(files: dict[str, str], tmp_path: Path) -> None:
    scores = torch.tensor([5.0, 1, 3, 2, 11, 4, 3, 0])
    result = duel(tmp_path / "run", **files, tie_band=1.0)
    assert result["tie_band"] == pytest.approx(scores.std(unbiased=False).item(), rel=1e-6)  # 3.1: 1-4 and 2-0 tie
    assert [result["overall"][k] for k in ("win", "tie", "lose")] == [0, 3, 1]


def test_prompts_choose_and_name_the_sources(files: dict[str, str], tmp_path: Path) -> None:
    prompts = write(tmp_path / "held_out.jsonl", [{"prompt": p} for p in ("two", "one", "unknown")])
    result = duel(tmp_path / "run", **files, prompts=prompts, max_prompts=1)
    assert list(result["by_source"]) == ["held_out"] and result["overall"]["prompts"] == 1
    assert result["left_out"] == {"no answer in a file": 1, "beyond max_prompts": 1}
    assert read(tmp_path / "run" / "judgements.jsonl")[0]["response_b"] == "4"


def prompts_file(tmp_path: Path, count: int = 9) -> str:
    return write(tmp_path / "prompts.jsonl", [{"prompt": f"question {i}" * (1 + i % 3)} for i in range(count)])


def test_models_judged_by_a_reward_model(models: dict[str, Path], tmp_path: Path) -> None:
    fields = {
        "a": str(models["a"]),
        "b": str(models["b"]),
        "judge": str(models["rm"]),
        "prompts": prompts_file(tmp_path),
    }
    result = duel(tmp_path / "run", **fields, sampling=QUICK, tie_band=0)
    assert result["overall"]["prompts"] == 9 and result["sampled"] == {"max_new_tokens": 6}
    rows = {side: read(tmp_path / "run" / f"answers_{side}.jsonl") for side in "ab"}
    assert len({row["seed"] for side in "ab" for row in rows[side]}) == 18
    # scores as anyone would compute them with the reward model
    tokenizer = AutoTokenizer.from_pretrained(models["rm"])
    reward_model = AutoModelForSequenceClassification.from_pretrained(models["rm"]).eval()
    chat = ChatFormat(tokenizer)
    for i, judgement in enumerate(read(tmp_path / "run" / "judgements.jsonl")):
        for side in "ab":
            row = rows[side][i]
            ids = chat.encode_prompt(row["prompt"])
            ids += chat.encode_response(row["prompt"], row["response"], row["finished"])
            with torch.no_grad():
                expected = reward_model(torch.tensor([ids])).logits.item()
            assert judgement[f"score_{side}"] == pytest.approx(expected, abs=1e-5)
            assert judgement[f"response_{side}"] == row["response"]
        sign = judgement["score_a"] - judgement["score_b"]
        assert judgement["outcome"] == ("win" if sign > 0 else "lose")


def test_a_killed_duel_goes_on(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"a": str(models["a"]), "b": str(models["b"]), "prompts": prompts_file(tmp_path), "sampling": QUICK}
    whole = duel(tmp_path / "whole", **fields)
    calls = 0
    original = answers_module.TransformersEngine.generate

    def killed_in_the_second_chunk(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(answers_module.TransformersEngine, "generate", killed_in_the_second_chunk)
    with pytest.raises(KeyboardInterrupt):
        duel(tmp_path / "killed", **fields)
    kept = tmp_path / "killed" / "answers_a.jsonl"
    assert len(read(kept)) == 8
    kept.write_bytes(kept.read_bytes()[:-5])  # the kill came in the middle of a line
    with pytest.raises(UserError, match="already holds a run"):
        duel(tmp_path / "killed", **fields)
    assert duel(tmp_path / "killed", resume=True, **fields) == whole
    for file in ("answers_a.jsonl", "answers_b.jsonl", "judgements.jsonl", "result.json"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert calls == 2 + 1 + 2  # 8 and 1 of A (killed, then the rest: 2 prompts), 8 and 1 of B

    monkeypatch.setattr(answers_module.TransformersEngine, "generate", None)  # a finished duel draws nothing
    assert duel(tmp_path / "killed", resume=True, **fields) == whole
    with pytest.raises(UserError, match="other settings: tie_band"):
        duel(tmp_path / "killed", resume=True, **fields, tie_band=0.5)


def test_changed_prompts_do_not_reuse_answers(models: dict[str, Path], tmp_path: Path) -> None:
    fields = {"a": str(models["a"]), "b": str(models["b"]), "sampling": QUICK}
    duel(tmp_path / "run", **fields, prompts=prompts_file(tmp_path))
    (tmp_path / "run" / "result.json").unlink()
    write(tmp_path / "prompts.jsonl", [{"prompt": f"something else {i}"} for i in range(9)])
    with pytest.raises(UserError, match=r"answers_a.jsonl:1: does not answer prompt 1"):
        duel(tmp_path / "run", resume=True, **fields, prompts=str(tmp_path / "prompts.jsonl"))


def test_long_prompts_are_left_out_and_counted(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "short"}, {"prompt": "long " * 60}])
    result = duel(
        tmp_path / "run", a=str(models["a"]), b=str(models["b"]), prompts=prompts, sampling=QUICK, max_prompt_length=30
    )
    assert result["overall"]["prompts"] == 1 and result["left_out"]["over 30 tokens"] == 1
    assert "1 of 2 prompts over 30 tokens left out" in capsys.readouterr().err


def test_both_sides_get_the_room_that_the_context_leaves(models: dict[str, Path], tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "hello"}])
    fields = {"a": str(models["a"]), "b": str(models["b"]), "prompts": prompts}
    result = duel(tmp_path / "run", **fields, sampling={"max_new_tokens": 10**6, "temperature": 0.8})
    tokenizer = ChatFormat(AutoTokenizer.from_pretrained(models["a"]))
    prompt = tokenizer.encode_prompt([{"role": "user", "content": "hello"}])
    positions = json.loads((models["a"] / "config.json").read_text())["max_position_embeddings"]
    assert result["sampled"] == {"max_new_tokens": positions - len(prompt)}


# ----------------------------------------------------------------------------------------- over training


def samples(tmp_path: Path) -> str:
    """Critic pre-training took 3 iterations, so the SFT model's answers have iteration 3 and update 0."""
    texts = {3: ("1", "2", "3", "4"), 5: ("2", "2", "5", "4"), 7: ("0", "1", "9", "1")}
    rows = [
        {"iteration": i, "update": 4 * (i - 3), "prompt": [{"role": "user", "content": f"q{k}"}], "response": text,
         "score": float(k), "kl": 0.5 * (i - 3), "length": k + i, "finished": True}
        for i, side in texts.items() for k, text in enumerate(side)
    ]  # fmt: skip
    return write(tmp_path / "samples.jsonl", rows)


def test_over_training_by_hand(tmp_path: Path) -> None:
    def judge(answers: Any) -> list[float]:
        return [float(a.response) for a in answers]

    moments = duel_over_training(samples(tmp_path), judge, tie_band=0.0, resamples=200)
    assert [(m["iteration"], m["update"]) for m in moments] == [(3, 0), (5, 8), (7, 16)]
    assert [[m["overall"][k] for k in ("win", "tie", "lose")] for m in moments] == [[0, 4, 0], [2, 2, 0], [1, 0, 3]]
    assert [m["overall"]["win_rate"]["value"] for m in moments] == [0.5, 0.75, 0.25]
    assert [m["mean_score"] for m in moments] == [2.5, 3.25, 2.75] and moments[2]["mean_score_first"] == 2.5
    assert (moments[1]["trained_score"], moments[1]["kl"], moments[1]["length_tokens"]) == (1.5, 1.0, 6.5)


def test_over_training_beside_a_duel_between_its_moments(tmp_path: Path) -> None:
    file = samples(tmp_path)
    result = duel(tmp_path / "run", a=file, b=file, b_iteration=3, over_training=file, tie_band=0)
    assert result["overall"] == result["over_training"][-1]["overall"]
    assert result["a"] == file and result["b"] == f"{file} (iteration 3)"
    with pytest.raises(UserError, match="no answers at iteration 4: choose from 3, 5, 7"):
        duel(tmp_path / "other", a=file, b=file, b_iteration=4)


def test_over_training_knows_the_sources_of_the_prompts(tmp_path: Path) -> None:
    file = samples(tmp_path)
    prompts = write(
        tmp_path / "p.jsonl", [{"prompt": f"q{k}", "source": "even" if k % 2 == 0 else "odd"} for k in range(3)]
    )
    result = duel(tmp_path / "run", a=file, b=file, b_iteration=3, over_training=file, prompts=prompts)
    last = result["over_training"][-1]["by_source"]
    assert {name: part["prompts"] for name, part in last.items()} == {"even": 2, "odd": 1, "samples": 1}


def test_the_same_answer_is_judged_once(tmp_path: Path) -> None:
    file = samples(tmp_path)
    duel(tmp_path / "run", a=file, b=file, b_iteration=3, over_training=file)
    import duel_test_judge  # type: ignore[import-not-found]

    # first an empty answer, to see whether it judges such prompts; over training 12 answers: two new ones in the middle
    assert duel_test_judge.CALLS == [1, 4, 4, 2]


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": []}, "neither a nor b is a file of answers"),
        ({"sampling": {"samples_per_prompt": 2}}, "one answer a prompt"),
        ({"a_iteration": 3}, "is a model, and has no iterations"),
        ({"judge": []}, "judge = []: at least 1 needed"),
        ({"a": "nothing/here/at/all"}, "no such model directory"),
        ({"judge": "nowhere_to_be_found:f"}, "cannot import nowhere_to_be_found"),
        ({"judge": "wrld"}, "judge: 'wrld' is no folder of a reward model: give rm:PATH, world, llm:MODEL"),
        ({"judge": "rm:"}, "judge: '' is no folder"),
        ({"judge": "RM:runs/reward"}, "judge: 'RM:runs/reward' is no folder"),
        ({"judge": [{"model": "x", "function": "y:z"}]}, "exactly one of model, function, url"),
        ({"max_prompt_length": 1}, "all are longer than 1 tokens"),
        ({"tie_band": -1}, "tie_band = -1"),
        ({"judge": "world"}, "a prompt has no `world` column"),
    ],
)
def test_refused_before_anything_is_written(
    models: dict[str, Path], tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    given = {"a": str(models["a"]), "b": str(models["b"]), "prompts": prompts_file(tmp_path), "sampling": QUICK}
    with pytest.raises(UserError) as error:
        duel(tmp_path / "run", **(given | fields))
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "bad.jsonl:2: malformed JSON"),
        ("[" * 200_000, "bad.jsonl:2: malformed JSON"),
        (
            '{"question": "x", "answer": "y"}',
            "bad.jsonl:2: a record needs prompt and response, this one has answer, question",
        ),
        ('{"prompt": "x"}', "bad.jsonl:2: response: text is expected, not NoneType"),
        ('{"prompt": [{"role": "user"}], "response": "x"}', "bad.jsonl:2: prompt: text or a list of messages"),
        ('{"prompt": "", "response": "x"}', "bad.jsonl:2: prompt"),
        ("[1]", "bad.jsonl:2: an object with prompt and response"),
    ],
)
def test_bad_answer_files(files: dict[str, str], tmp_path: Path, line: str, message: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "one", "response": "1"}\n' + line + "\n")
    with pytest.raises(UserError) as error:
        duel(tmp_path / "run", a=str(bad), b=files["b"])
    assert message in str(error.value)


def test_answer_files_that_do_not_meet(files: dict[str, str], tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", [{"prompt": "elsewhere", "response": "1"}])
    with pytest.raises(UserError, match="no prompt in common"):
        duel(tmp_path / "run", a=files["a"], b=other)
    with pytest.raises(UserError, match="have no iteration"):
        duel(tmp_path / "run", **files, a_iteration=1)
    with pytest.raises(UserError, match="cannot be read"):
        duel(tmp_path / "run", a=str(tmp_path / "absent.jsonl"), b=files["b"])
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(Path(files["a"]).read_bytes() * 50)[:-9])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz: cannot be read"):
        duel(tmp_path / "run", a=str(cut), b=files["b"])


def test_command_line(files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["duel", files["a"], files["b"], "--judge", JUDGE, "--output-dir", str(tmp_path / "run"), "--tie-band", "0"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "37.5%" in out and "win rate" in out and "logistic regression" in out
    assert main(words) == 2
    assert "already holds a run" in capsys.readouterr().err
    again = ["duel", str(tmp_path / "run" / "config.yaml"), "--output-dir", str(tmp_path / "again")]
    assert main(again) == 0
    assert (tmp_path / "again" / "result.json").read_text() == (tmp_path / "run" / "result.json").read_text()
    assert main(["duel", "--help"]) == 0
    assert "--tie-band" in capsys.readouterr().out.replace("tie_band", "tie-band")
