"""What a side of a duel may be: several systems, best of n, AlpacaEval's outputs; figures and tables of such duels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ppomax.cli import main
from ppomax.errors import UserError
from ppomax.evaluate import answers as answers_module
from ppomax.evaluate.answers import Answer
from ppomax.evaluate.best_of import choose, kl_bound
from ppomax.evaluate.duel import DuelConfig, run_duel
from ppomax.evaluate.judges import SourceScorer
from ppomax.evaluate.sides import name_side
from ppomax.models.fresh import new_model
from ppomax.options import from_mapping

JUDGE = "sides_test_judge:digits"
QUICK = {"max_new_tokens": 6, "batch_size": 4}


@pytest.fixture(autouse=True)
def judge_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`digits`: the number that a response holds, else 0. `long`: its length. CALLS: how many answers at each call."""
    code = "CALLS = []\ndef digits(prompts, responses):\n    CALLS.append(len(responses))\n"
    code += "    return [float(''.join(c for c in r if c.isdigit()) or 0) for r in responses]\n"
    code += "def long(prompts, responses):\n    return [float(len(r)) for r in responses]\n"
    (tmp_path / "sides_test_judge.py").write_text(code)
    monkeypatch.delitem(__import__("sys").modules, "sides_test_judge", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "sft"
    new_model(folder, ["some words to answer with, and 几个字"] * 5, size="1m", vocab_size=300, seed=0)
    return str(folder)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def duel(folder: Path, resume: bool = False, **fields: Any) -> dict[str, Any]:
    values = {"output_dir": str(folder), "judge": JUDGE, "resamples": 200, "device": "cpu", "tie_band": 0.0, **fields}
    return run_duel(from_mapping(DuelConfig, values), resume=resume)


QUESTIONS = [
    ("how?", "helpful"),
    ("why?", "helpful"),
    ("怎么做？", "helpful"),
    ("steal?", "harmless"),
    ("偷什么？", "harmless"),
]
NUMBERS = {"a": "51332", "b": "14320", "c": "09991"}


def three(tmp_path: Path) -> dict[str, str]:
    return {
        name: write(
            tmp_path / f"{name}.jsonl",
            [{"prompt": q, "response": n, "source": s} for (q, s), n in zip(QUESTIONS, numbers, strict=True)],
        )
        for name, numbers in NUMBERS.items()
    }


def test_prompts_given_twice_count_once_and_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = three(tmp_path)
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": q, "source": s} for q, s in QUESTIONS])
    result = duel(tmp_path / "run", a=files["a"], b=files["b"], prompts=[{"path": prompts, "weight": 3}])
    assert result["overall"]["prompts"] == 5 and result["left_out"]["given more than once"] == 10
    assert "10 of 15 prompts are given more than once and count once" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- several systems


def test_three_systems_by_hand(tmp_path: Path) -> None:
    files = three(tmp_path)
    result = duel(tmp_path / "run", a=files["a"], b=files["b"], others=[files["c"]])
    counts = {
        pair["one"] + pair["other"]: [pair["overall"][k] for k in ("win", "tie", "lose")] for pair in result["pairs"]
    }
    # A 5 1 3 3 2, B 1 4 3 2 0, C 0 9 9 9 1
    assert counts == {"ab": [3, 1, 1], "ac": [2, 0, 3], "bc": [1, 0, 4]}
    assert result["overall"] == result["pairs"][0]["overall"] and result["systems"]["c"] == files["c"]
    wins = {letter: r["win_rate"] for letter, r in result["ratings"]["ratings"].items()}
    assert wins == pytest.approx({"a": 5.5 / 10, "b": 2.5 / 10, "c": 7 / 10})
    values = {letter: r["value"] for letter, r in result["ratings"]["ratings"].items()}
    assert values["c"] > values["a"] > values["b"] and sum(values.values()) == pytest.approx(0, abs=1e-9)
    # at the optimum each system's expected wins are those that it has, but for the prior
    for letter, number in (("a", 5.5), ("b", 2.5), ("c", 7.0)):
        expected = sum(5 / (1 + math.exp(values[o] - values[letter])) for o in values if o != letter)
        assert number - expected == pytest.approx(0.01 * values[letter], abs=1e-8)
    strongest = result["against_strongest"]
    assert strongest["opponent"] == "c" and set(strongest["loses"]) == {"a", "b"}
    losses = {letter: {k: e["value"] for k, e in parts.items()} for letter, parts in strongest["loses"].items()}
    assert losses["a"] == {"helpful en": 0.5, "helpful zh": 1, "harmless en": 1, "harmless zh": 0, "all": 0.6}
    assert losses["b"]["all"] == 0.8
    (gap,) = strongest["differences"]  # on the same prompts: B alone loses the last one
    assert (gap["one"], gap["other"], gap["one_only"], gap["other_only"], gap["sign_test_p"]) == ("a", "b", 0, 1, 1.0)
    assert gap["value"] == pytest.approx(-0.2) and gap["low"] <= -0.2 <= gap["high"] <= 0
    assert set(result["by_category"]) == {"helpful en", "helpful zh", "harmless en", "harmless zh"}
    assert set(result["ratings_by_category"]) == set(result["by_category"])
    assert result["by_category"]["helpful en"]["prompts"] == 2
    import sides_test_judge  # type: ignore[import-not-found]

    first, *calls = sides_test_judge.CALLS
    assert first == 2  # an empty answer to a prompt of each source, to see whether it judges such prompts
    assert sum(calls) == 14  # each answer once, though each meets two others; 3 was given by A and B
    assert [r["outcome"] for r in read(tmp_path / "run" / "judgements_a_c.jsonl")] == [
        "win",
        "lose",
        "lose",
        "lose",
        "win",
    ]
    assert read(tmp_path / "run" / "judgements.jsonl")[2]["category"] == "helpful zh"
    # the pair A, B is what a duel of the two alone gives
    alone = duel(tmp_path / "two", a=files["a"], b=files["b"])
    assert alone["overall"] == result["overall"] and "ratings" not in alone


def test_figures_stand_beside_the_result(tmp_path: Path) -> None:
    files = three(tmp_path)
    duel(tmp_path / "run", a=files["a"], b=files["b"], others=[files["c"]])
    for stem in ("win_tie_lose", "against_strongest"):
        assert (tmp_path / "run" / f"{stem}.png").read_bytes()[:4] == b"\x89PNG"
        svg = (tmp_path / "run" / f"{stem}.svg").read_text()
        assert svg.rstrip().endswith("</svg>")
    duel(tmp_path / "two", a=files["a"], b=files["b"])
    assert (
        not (tmp_path / "two" / "against_strongest.png").exists() and (tmp_path / "two" / "win_tie_lose.svg").exists()
    )


def test_several_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = three(tmp_path)
    words = ["duel", *files.values(), "--judge", JUDGE, "--output_dir", str(tmp_path / "run"), "--tie_band", "0"]
    assert main([*words, "--resamples", "200", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "loses to the strongest by rating, C: A 60.0% [" in out and "harmless zh " in out
    assert "by the ratings" in out and "Bradley-Terry" in out
    table = out[out.index("wins, mean") :].split("\n")
    assert [line.split()[0] for line in table[1:4]] == ["C", "A", "B"]  # the best first
    assert "70.0%" in table[1] and files["c"] in table[1]
    assert main(["duel", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "best_of:16:runs/sft/final" in shown and "endpoint:MODEL" in shown and "--others" in shown


def test_models_are_drawn_once_and_a_killed_duel_goes_on(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": f"say {i}"} for i in range(6)])
    fields = {
        "a": model, "b": f"best_of:3:{model}", "others": [f"best_of:2:{model}"], "best_of_reward": "sides_test_judge:long",
        "prompts": prompts, "sampling": QUICK, "judge": "sides_test_judge:long",
    }  # fmt: skip
    whole = duel(tmp_path / "whole", **fields)
    drawn = [0]
    generate = answers_module.TransformersEngine.generate

    def count(self: Any, some: Any, seeds: Any) -> Any:
        if drawn[0] + len(some) > 6 + 16 and limit[0]:
            raise KeyboardInterrupt
        drawn[0] += len(some)
        return generate(self, some, seeds)

    monkeypatch.setattr(answers_module.TransformersEngine, "generate", count)
    limit = [True]
    with pytest.raises(KeyboardInterrupt):
        duel(tmp_path / "killed", **fields)
    limit[0] = False
    assert len(read(tmp_path / "killed" / "candidates_b.jsonl")) == 16
    assert duel(tmp_path / "killed", resume=True, **fields) == whole
    assert drawn[0] == 6 + 18 + 12  # each once
    for file in ("answers_a.jsonl", "answers_b.jsonl", "answers_c.jsonl", "result.json", "judgements_b_c.jsonl"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


# --------------------------------------------------------------------------------------------- best of n


def test_choice_and_its_kl_by_hand() -> None:
    assert kl_bound(1) == 0 and kl_bound(2) == pytest.approx(0.19314718) and kl_bound(16) == pytest.approx(1.83508872)
    drawn = [Answer(({"role": "user", "content": q},), r) for q, r in zip("ppppqqqq", "abbbcded", strict=True)]
    scores = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 2.0, "e": 0.0}
    chosen, best, about = choose(drawn, 4, lambda answers: [scores[a.response] for a in answers], quiet=True)
    assert chosen == [drawn[1], drawn[4]] and best == [3.0, 2.0]  # of equal ones the first
    assert about["mean_score_chosen"] == 2.5 and about["mean_score_drawn"] == pytest.approx(16 / 8)
    assert about["distinct"] == 2.5 and about["kl_bound"] == pytest.approx(math.log(4) - 0.75)
    assert "upper bound" in about["kl_note"]


def test_kl_is_a_bound_that_distinct_answers_approach() -> None:
    """Best of 3 among K equally likely answers of different score: the k-th best has chance (k/K)^3 - ((k-1)/K)^3."""

    def exact(size: int, n: int) -> float:
        p = [((k / size) ** n - ((k - 1) / size) ** n) for k in range(1, size + 1)]
        return sum(x * math.log(x * size) for x in p)

    assert exact(2, 3) < exact(20, 3) < exact(5000, 3) < kl_bound(3)
    assert exact(5000, 3) == pytest.approx(kl_bound(3), abs=1e-3)


def test_what_the_chooser_cut_is_counted(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SourceScorer, "truncated", lambda self: 3)
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "say 1"}, {"prompt": "say 2"}])
    fields = {"prompts": prompts, "sampling": QUICK, "best_of_reward": "sides_test_judge:long"}
    result = duel(tmp_path / "run", a=f"best_of:2:{model}", b=model, judge="sides_test_judge:long", **fields)
    assert result["best_of_truncated"] == 3
    assert "3 dialogues were longer than the context of --best_of_reward" in capsys.readouterr().err


def test_best_of_n_wins_by_what_chooses_it(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": f"say {i}"} for i in range(12)])
    fields = {"prompts": prompts, "sampling": QUICK, "judge": "sides_test_judge:long"}
    fields |= {"best_of_reward": "sides_test_judge:long"}
    result = duel(tmp_path / "run", a=f"best_of:8:{model}", b=model, **fields)
    assert "both chooses the best of n and judges" in capsys.readouterr().err
    assert result["overall"]["win_rate"]["value"] > 0.7
    about = result["best_of"]["a"]
    assert about["n"] == 8 and about["kl_bound"] == pytest.approx(math.log(8) - 7 / 8)
    assert result["best_of_reward"] == ["sides_test_judge:long"]
    candidates, chosen = (read(tmp_path / "run" / f"{name}_a.jsonl") for name in ("candidates", "answers"))
    for i, row in enumerate(chosen):
        lengths = [len(c["response"]) for c in candidates[8 * i : 8 * i + 8]]
        assert (
            row["chosen_score"] == max(lengths) == len(row["response"]) and row["prompt"] == candidates[8 * i]["prompt"]
        )
    assert len({c["seed"] for c in candidates}) == 96
    # best of one is the model itself, with the same random numbers
    one = duel(tmp_path / "one", a=f"best_of:1:{model}", b=model, **fields)
    plain = duel(tmp_path / "plain", a=model, b=model, **fields)
    assert one["overall"] == plain["overall"] and one["best_of"]["a"]["kl_bound"] == 0


# --------------------------------------------------------------------------------------------- AlpacaEval


def outputs(path: Path, rows: list[tuple[str, str, str]], generator: str = "gpt") -> str:
    path.write_text(
        json.dumps([
            {"instruction": i, "output": o, "generator": generator, **({"dataset": d} if d else {})} for i, o, d in rows
        ])
    )  # fmt: skip
    return str(path)


def test_alpaca_outputs_and_all_that_does_not_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = outputs(
        tmp_path / "a.json",
        [("one\n", "5", "koala"), ("two", "1", "vicuna"), ("nowhere", "9", ""), ("two", "8", ""), ("lost", "9", "")],
    )
    b = write(
        tmp_path / "b.jsonl", [{"prompt": q, "response": r} for q, r in (("one", "1"), ("two", "4"), ("six", "6"))]
    )
    prompts = write(tmp_path / "p.jsonl", [{"prompt": q, "source": "set"} for q in ("one", "two", "three")])
    result = duel(tmp_path / "run", a=a, b=b, prompts=prompts)
    assert [result["overall"][k] for k in ("prompts", "win", "lose")] == [2, 1, 1]
    assert result["files"] == {
        "a": {"records": 5, "matched": 2, "without_prompt": 2, "repeated": 1},
        "b": {"records": 3, "matched": 2, "without_prompt": 1, "repeated": 0},
    }
    assert result["left_out"]["no answer in a file"] == 1
    told = capsys.readouterr().err
    assert "a.json: 2 of 4 answers belong to no prompt, first: 'nowhere'" in told and "1 further answers" in told
    # without prompts, the first file's; its datasets are the sources
    alone = duel(tmp_path / "alone", a=a, b=b)
    assert set(alone["by_source"]) == {"koala", "vicuna"} and alone["left_out"]["no answer in a file"] == 2
    rows = [{"prompt": " one", "response": "1"}, {"prompt": "two\n", "response": "4"}]
    blanks = write(tmp_path / "blanks.jsonl", rows)
    for other in (duel(tmp_path / "r1", a=a, b=blanks), duel(tmp_path / "r2", a=b, b=blanks, prompts=prompts)):
        assert other["files"]["b"]["matched"] == 2, "blanks are overlooked whichever side has them"
    capsys.readouterr()
    words = ["duel", a, b, "--judge", JUDGE, "--output_dir", str(tmp_path / "cli"), "--prompts", prompts]
    assert main([*words, "--resamples", "100"]) == 0
    shown = capsys.readouterr().out
    assert "file A: 2 of 5 records matched, 2 belong to no prompt, 1 repeat one" in shown
    assert "prompts left out: 1 no answer in a file" in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "malformed JSON"),
        ("{}", "a list of records"),
        ("[]", "a list of records"),
        ("[1]", "record 0: an object"),
        ('[{"instruction": "x"}]', "record 0: output: text is expected, not NoneType"),
        ('[{"instruction": " ", "output": "x"}]', "record 0: instruction: is empty"),
        (
            '[{"instruction": "x", "output": "", "generator": "m"}, {"instruction": "y", "output": "", "generator": "n"}]',
            "record 1: generator 'n', while record 0 is of 'm'",
        ),
    ],
)
def test_bad_outputs(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    b = write(tmp_path / "b.jsonl", [{"prompt": "x", "response": "1"}])
    with pytest.raises(UserError) as error:
        duel(tmp_path / "run", a=str(tmp_path / "bad.json"), b=b)
    assert message in str(error.value) and "bad.json" in str(error.value) and not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------- names


def test_names() -> None:
    side = name_side("c", "best_of:16:runs/sft/final")
    assert (side.kind, side.n, side.target, side.title) == (
        "best_of",
        16,
        "runs/sft/final",
        "best_of:16:runs/sft/final",
    )
    assert name_side("a", "endpoint:org/model:tag").target == "org/model:tag"
    assert name_side("a", "x.json").kind == name_side("a", "x.jsonl.gz").kind == "file"
    assert name_side("a", "runs/ppo/final").kind == "model"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"b": "endpoint: "}, "b: endpoint: needs the name of a model"),
        ({"b": "best_of:0:x"}, "best_of:N:PATH is expected"),
        ({"b": "best_of:x"}, "best_of:N:PATH is expected"),
        ({"b": "best_of:2:x.jsonl"}, "is a file"),
        ({"b": "best_of:2:x"}, "give --best_of_reward"),
        ({"b": "best_of:2:x", "b_iteration": 3}, "is no file of answers, and has no iterations"),
        ({"others": ["x.jsonl"] * 25}, "27 systems; at most 26"),
        ({"others": ["absent.jsonl"]}, "cannot be read"),
        ({"llm": {"harmless": "("}}, "llm.harmless: '(' is no pattern"),
        ({"b": "endpoint:m", "endpoint": {"key_variable": "NOT_SET_ANYWHERE"}}, "NOT_SET_ANYWHERE holds no key"),
        ({"b": "endpoint:m", "endpoint": {"base_url": "host:80"}}, "endpoint.base_url: 'host:80' must begin with http"),
    ],
)
def test_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    files = three(tmp_path)
    with pytest.raises(UserError) as error:
        duel(tmp_path / "run", **{"a": files["a"], "b": files["b"], **fields})
    assert message in str(error.value) and not (tmp_path / "run").exists()
