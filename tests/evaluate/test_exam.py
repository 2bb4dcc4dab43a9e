"""Exams: scoring against an independent slow loop, layouts, counting, intervals, the command."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppomax.cli import main
from ppomax.data.chat import ChatFormat
from ppomax.errors import UserError
from ppomax.evaluate.exam import against, summarise
from ppomax.evaluate.exam_files import GROUP_OF, Question, load_exam
from ppomax.evaluate.exam_form import C_EVAL_NAMES, best_choice, choice_texts, exam_text
from ppomax.evaluate.exam_scoring import encode, log_likelihoods
from ppomax.models.fresh import new_model
from ppomax.world import World
from ppomax.world.exam import LETTERS, exam_prompt

CPU = torch.device("cpu")
ENGLISH: list[dict[str, Any]] = [
    {"subject": "birds", "category": "STEM", "split": "dev", "question": "What does an owl eat?",
     "choices": ["stone", "mice", "grass", "paper"], "answer": "B"},
    {"subject": "birds", "category": "STEM", "split": "dev", "question": "What does a crow say?",
     "choices": ["meow", "caw", "moo"], "answer": "B"},
    {"subject": "birds", "category": "STEM", "split": "test", "question": "Where does a duck swim?",
     "choices": ["a pond", "the sky", "a very large and old chimney", "sand"], "answer": "A"},
    {"subject": "law", "category": "humanities", "split": "test", "question": "Who may vote?",
     "choices": ["Nobody may.", "anyone of age"], "answer": 1},
]  # fmt: skip
CHINESE: list[dict[str, Any]] = [
    {"subject": "history", "split": "dev", "question": "谁最早？", "choices": ["甲", "乙", "丙", "丁"], "answer": "D"},
    {"subject": "history", "split": "val", "question": "谁住在山上？", "choices": ["老人", "一只猫", "鱼", "无人"],
     "answer": "C"},
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("exam") / "tiny"
    texts = ["Question: Where does a duck swim?\nAnswer: a pond.", "问题：谁住在山上？\n答案：老人。"] * 5
    new_model(folder, texts, size="1m", vocab_size=340, seed=3)
    return str(folder)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def error_of(function: Any, *args: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*args)
    return str(caught.value)


def question(text: str = "Who?", choices: tuple[str, ...] = ("a", "b"), answer: int = 0) -> Question:
    return Question("d", "d:1", "s", "c", text, choices, answer)


def slow_sums(model: str, prompt: str, continuations: list[str]) -> list[float]:
    """One forward pass a choice in float64, on whole texts: log P of what follows the tokens that all texts share."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model).double().eval()
    bos = [tokenizer.bos_token_id]
    start = bos + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    wholes = [bos + tokenizer(prompt + c, add_special_tokens=False)["input_ids"] for c in continuations]
    shared = 0
    while all(shared < len(t) and t[shared] == start[shared] for t in [start, *wholes]):
        shared += 1
        if shared == len(start):
            break
    out = []
    for ids in wholes:
        with torch.no_grad():
            logprobs = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        out.append(sum(float(logprobs[t - 1, ids[t]]) for t in range(shared, len(ids))))
    return out


# ------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize("score", ["text", "letter"])
@pytest.mark.parametrize("budget", [1, 300, 100_000])
def test_log_likelihoods_equal_a_slow_loop(model: str, tmp_path: Path, score: str, budget: int) -> None:
    exam = load_exam([write(tmp_path / "q.jsonl", ENGLISH + CHINESE)])
    chat = ChatFormat(AutoTokenizer.from_pretrained(model))
    shots = [exam.examples.get((q.data, q.subject), []) for q in exam.questions]
    assert [len(s) for s in shots] == [2, 0, 1]
    encoded = [encode(chat, q, s, score, None) for q, s in zip(exam.questions, shots, strict=True)]
    whole = [item for item in encoded if item is not None]
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    steps: list[int] = []
    sums = log_likelihoods(network, whole, CPU, budget, step=steps.append)
    assert sum(steps) == 4 + 2 + 4 and [len(s) for s in sums] == [4, 2, 4]
    for q, s, found in zip(exam.questions, shots, sums, strict=True):
        assert found == pytest.approx(slow_sums(model, *exam_text(q, s, score)), abs=2e-4)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_form_is_that_of_the_world(language: str) -> None:
    world = World(language, 5, "small")
    grammar = world.facts.grammar
    rows = world.exam()
    for row in [r for r in rows if r["split"] == "test"][:20]:
        shots = [r for r in rows if r["split"] == "dev" and r["subject"] == row["subject"]]
        asked, *examples = (
            question(r["question"], tuple(r["choices"]), LETTERS.index(r["answer"])) for r in [row, *shots]
        )
        prompt, continuations = exam_text(asked, examples)
        assert prompt == exam_prompt(grammar, row, shots)
        space = " " if language == "en" else ""
        assert continuations == [space + c + grammar.full_stop for c in row["choices"]]


def test_full_stops_are_not_doubled() -> None:
    assert exam_text(question("Who?", ("Nobody.", "me")), [])[1] == [" Nobody.", " me."]
    assert exam_text(question("谁？", ("没有人。", "我")), [])[1] == ["没有人。", "我。"]


def test_letters() -> None:
    """The words of lm-eval's tasks of MMLU and of C-Eval."""
    shot = question("Sky?", ("blue", "red"), 0)
    prompt, continuations = exam_text(question("Grass?", ("red", "green"), 1), [shot], "letter")
    head = "The following are multiple choice questions (with answers) about s.\n\n"
    assert prompt == f"{head}Sky?\nA. blue\nB. red\nAnswer: A\n\nGrass?\nA. red\nB. green\nAnswer:"
    assert continuations == [" A", " B"]
    asked = replace(question("谁？", ("甲", "乙"), 1), subject="law")
    prompt, continuations = exam_text(asked, [], "letter")
    assert prompt == "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n谁？\nA. 甲\nB. 乙\n答案："
    assert continuations == [" A", " B"]
    assert exam_text(replace(asked, subject="chess"), [], "letter")[0].startswith("以下是单项选择题，请选出")


class Merging:
    """A tokenizer of characters in which "： " and "：（" are one token each; id 0 is bos, 1 is eos."""

    bos_id = 0

    def encode_text(self, text: str) -> list[int]:
        text = text.replace("：（", "\ue000")
        return [0, *(ord(c) for c in text), 1]


def test_a_token_over_the_border_is_scored_for_all_choices() -> None:
    chat: Any = Merging()
    item = encode(chat, question("谁？", ("乙", "（甲）")), [], "text", None)
    assert item is not None
    prompt = "问题：谁？\n答案："
    # bos and the prompt without its last colon are common; the colon is scored in both
    assert item.shared == len(prompt) and [chr(ids[item.shared]) for ids in item.ids] == ["：", "\ue000"]
    item = encode(chat, question("谁？", ("甲", "乙")), [], "text", None)
    assert item is not None and item.shared == len(prompt) + 1


def test_three_measures_by_hand() -> None:
    texts = ["aa", "bbbbbbbb", "十甲乙"]  # 2, 8, 3 characters; 2, 8, 9 bytes
    # sums -4, -8, -6; per character -2, -1, -2; per byte -2, -1, -.67
    assert best_choice([-4.0, -8.0, -6.0], texts) == {"acc": 0, "acc_norm": 1, "acc_bytes": 2}
    assert best_choice([-4.0, -16.0, -18.0], texts) == {"acc": 0, "acc_norm": 0, "acc_bytes": 0}  # of equals the first
    asked = question("Q?", (" me ", "Nobody."), 0)
    assert choice_texts(asked) == ["me.", "Nobody."] and choice_texts(asked, "letter") == ["A", "B"]


# ------------------------------------------------------------------------------------- a short context


def test_examples_leave_from_the_left_then_the_question() -> None:
    chat: Any = Merging()
    shots = [question(f"Old {i}?", ("x", "y"), 0) for i in range(3)]
    asked = question("Who is it?", ("me", "you all"), 0)
    full = encode(chat, asked, shots, "text", None)
    assert full is not None and (full.shots, full.cut) == (3, False)
    room = max(map(len, full.ids)) - 1
    item = encode(chat, asked, shots, "text", room)
    assert item is not None and (item.shots, item.cut) == (2, False)
    text = "".join(map(chr, item.ids[1][1:]))
    assert text.startswith("Question: Old 1?\nAnswer: x.\n\nQuestion: Old 2?") and text.endswith("Answer: you all.")
    item = encode(chat, asked, shots, "text", 20)
    assert item is not None and (item.shots, item.cut, max(map(len, item.ids))) == (0, True, 20)
    text = "".join(map(chr, item.ids[1][1:]))
    assert item.ids[1][0] == 0 and text == " it?\nAnswer: you all."[-19:]
    assert [ids[: item.shared] for ids in item.ids] == [item.ids[0][: item.shared]] * 2
    assert encode(chat, asked, shots, "text", 8) is None


# ------------------------------------------------------------------------------------------- counting


def answered(right: str, *, chosen: str = "A", subject: str = "s", category: str = "c", n: int = 4) -> dict[str, Any]:
    return {
        "answer": right, "chosen": dict.fromkeys(("acc", "acc_norm", "acc_bytes"), chosen), "subject": subject,
        "category": category, "data": "d", "choices": ["x"] * n, "too_long": False, "shots_dropped": 0, "cut": False,
    }  # fmt: skip


def test_accuracies_and_wilson_intervals_by_hand() -> None:
    rows = [answered("A", category="one")] * 7 + [answered("B", category="two", n=2)] * 3
    found = summarise(rows)
    # p = .7, n = 10, z = 1.959964: centre .7 + .192073 over 1.384146, half z sqrt(.021 + .0096036) over the same
    assert found["overall"]["acc"]["accuracy"] == 0.7
    assert found["overall"]["acc"]["interval"] == pytest.approx([0.396776, 0.892211], abs=1e-5)
    assert found["overall"]["chance"] == pytest.approx(0.7 * 0.25 + 0.3 * 0.5)
    assert found["by_category"]["one"]["n"] == 7 and found["by_category"]["two"]["acc"]["accuracy"] == 0
    assert found["by_category"]["two"]["acc"]["interval"][0] == pytest.approx(0, abs=1e-9)


def test_models_are_compared_on_the_same_questions() -> None:
    first = [answered("A", chosen=c) for c in "AAABB"]
    other = [answered("A", chosen=c) for c in "ABBAA"]
    other[0]["too_long"] = True
    # gained 2, lost 2 of 4
    assert against(first, other) == {"n": 4, "gained": 2, "lost": 2, "difference": 0, "sign_test_p": 1}
    best = [answered("A")] * 5
    worst = [answered("A", chosen="B")] * 5
    assert against(best, worst) == {"n": 5, "gained": 0, "lost": 5, "difference": -1, "sign_test_p": 2 / 32}


# -------------------------------------------------------------------------------------------- layouts


def test_c_eval_folder(tmp_path: Path) -> None:
    for split in ("dev", "val", "test"):
        (tmp_path / split).mkdir()
    head = "id,question,A,B,C,D,answer"
    (tmp_path / "dev" / "law_dev.csv").write_text(
        f'{head},explanation\n0,"第一,行",甲,乙,丙,丁,B,因为\n', encoding="utf-8"
    )
    (tmp_path / "val" / "law_val.csv").write_text(
        f'\ufeff{head}\n0,"两\n行",甲,乙,丙,丁,A\n1,问,甲,乙,丙,丁,E\n2,又问,甲,乙,丙,丁,d\n', encoding="utf-8"
    )
    (tmp_path / "val" / "computer_network_val.csv").write_text(f"{head}\n0,问,甲,乙,丙,,A\n1,问,1,2,3,4,C\n")
    (tmp_path / "test" / "law_test.csv").write_text("id,question,A,B,C,D\n0,问,甲,乙,丙,丁\n1,问,甲,乙,丙,丁\n")
    exam = load_exam([str(tmp_path)])
    assert exam.counts[str(tmp_path)] == {"questions": 3, "examples": 1, "bad_rows": 2, "without_answer": 2}
    network, first, last = exam.questions
    assert (network.subject, network.category, network.choices[network.answer]) == ("computer_network", "STEM", "3")
    assert (first.subject, first.category, first.question, first.answer) == ("law", "humanities", "两\n行", 0)
    assert first.where == f"{tmp_path}/val/law_val.csv:2" and last.where == f"{tmp_path}/val/law_val.csv:5"
    assert [e.question for e in exam.examples[str(tmp_path), "law"]] == ["第一,行"]
    assert exam.complaints == [
        f"{tmp_path}/val/computer_network_val.csv:2: choices: a list of texts is expected, none of them empty",
        f"{tmp_path}/val/law_val.csv:4: answer 'E': there are 4 choices",
    ]
    assert "3 questions, 1 examples, 2 without an answer left out, 2 bad rows left out" in exam.lines()[0]


def test_c_eval_has_52_subjects() -> None:
    assert len(GROUP_OF) == 52 and C_EVAL_NAMES.keys() == GROUP_OF.keys()
    assert sorted(list(GROUP_OF.values()).count(g) for g in set(GROUP_OF.values())) == [10, 11, 11, 20]


def test_bad_rows_are_named_and_counted(tmp_path: Path) -> None:
    good = {"question": "Who?", "choices": ["a", "b"], "answer": "B"}
    bad: list[tuple[Any, str]] = [
        (["x"], "an object with question"),
        ({**good, "question": " "}, "question: text"),
        ({**good, "choices": ["a"]}, "2 to 26 are expected, found 1"),
        ({**good, "choices": ["a", 2]}, "choices: a list of texts"),
        ({**good, "answer": "C"}, "there are 2 choices"),
        ({**good, "answer": True}, "answer True: a letter"),
        ({**good, "answer": "both"}, "answer 'both': a letter"),
        ({**good, "answer": -1}, "answer -1: there are 2 choices"),
        ({**good, "split": "tset"}, "split 'tset'"),
    ]
    for row, expected in bad:
        file = write(tmp_path / "exam.jsonl", [good, row])
        exam = load_exam([file])
        assert exam.counts[file]["bad_rows"] == 1 and len(exam.questions) == 1
        assert exam.complaints[0].startswith(f"{file}:2: ") and expected in exam.complaints[0]
    file = write(tmp_path / "exam.jsonl", [good, *[row for row, _ in bad]])
    Path(file).write_text(Path(file).read_text() + "{nonsense\n")
    exam = load_exam([file])
    assert exam.counts[file]["bad_rows"] == 10 and exam.complaints[-1] == f"{file}: 5 more bad rows"
    assert (exam.questions[0].subject, exam.questions[0].category, exam.questions[0].answer) == ("exam", "other", 1)
    assert "no question in it" in error_of(load_exam, [write(tmp_path / "only.jsonl", [bad[0][0]])])
    assert "only.jsonl:1: an object" in error_of(load_exam, [str(tmp_path / "only.jsonl")])


def test_places_that_are_no_exam(tmp_path: Path) -> None:
    assert "no such file" in error_of(load_exam, [str(tmp_path / "absent.jsonl")])
    (tmp_path / "x.txt").write_text("x")
    assert ".jsonl" in error_of(load_exam, [str(tmp_path / "x.txt")])
    assert "the folder has no" in error_of(load_exam, [str(tmp_path)])
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    assert "x.csv:1: columns question, A, B" in error_of(load_exam, [str(tmp_path)])
    whole = gzip.compress(b'{"question": "a"}' * 50, mtime=0)
    for broken in (b"not gzip", whole[:-9], whole[:20] + b"\xff" * 9 + whole[29:]):
        (tmp_path / "y.jsonl.gz").write_bytes(broken)
        assert "y.jsonl.gz: cannot be read" in error_of(load_exam, [str(tmp_path / "y.jsonl.gz")])


def test_a_quote_that_never_ends_takes_no_questions_with_it(tmp_path: Path) -> None:
    rows = "id,question,A,B,C,D,answer\n0,q,a,b,c,d,A\n{}\n" + "2,q,a,b,c,d,A\n" * 99
    (tmp_path / "law_val.csv").write_text(rows.format('1,"q0,a,b,c,d,A'))
    assert "law_val.csv:3: malformed CSV" in error_of(load_exam, [str(tmp_path)])
    (tmp_path / "law_val.csv").write_text(rows.format("1,What is, b?,x,y,z,B,A,more"))
    exam = load_exam([str(tmp_path)])
    assert len(exam.questions) == 100
    assert exam.complaints == [f"{tmp_path}/law_val.csv:3: the number of fields differs from the header's"]
    (tmp_path / "deep.jsonl").write_text("[" * 200_000 + "\n")
    assert "deep.jsonl:1: malformed JSON" in error_of(load_exam, [str(tmp_path / "deep.jsonl")])


def test_examples_come_from_the_same_file(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", ENGLISH)
    two = write(tmp_path / "two.jsonl", ENGLISH[2:])
    exam = load_exam([one, two])
    assert len(exam.examples[one, "birds"]) == 2 and (two, "birds") not in exam.examples


def test_real_files(real_data: Path, model: str, tmp_path: Path) -> None:
    files = [real_data / f"multiple_choice_{language}.jsonl.gz" for language in ("en", "zh")]
    exam = load_exam([str(file) for file in files])
    for file in files:
        n = exam.counts[str(file)]
        assert n["bad_rows"] < 5 and n["without_answer"] == 0  # two have an empty choice
        with gzip.open(file) as lines:
            assert n["questions"] + n["examples"] + n["bad_rows"] == sum(1 for _ in lines) > 1000
    assert {q.category for q in exam.questions} == {"STEM", "social_sciences", "humanities", "other"}
    out = str(tmp_path / "exam")
    words = ["exam", model, "--data", str(files[1]), "--per-subject", "1", "--device", "cpu", "--output-dir", out]
    assert main(words) == 0
    found = json.loads((tmp_path / "exam" / "result.json").read_text())["models"][model]
    assert found["overall"]["n"] == len(found["by_subject"]) == 6 and found["too_long"] == 0


# ------------------------------------------------------------------------------------------ the command


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "exam.jsonl", ENGLISH + CHINESE)


def test_command(model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, out = str(tmp_path / "other"), tmp_path / "out"
    shutil.copytree(model, other)
    words = ["exam", model, other, "--data", data, "--device", "cpu", "--output-dir", str(out)]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"model 1 = {model}" in told and f"model 2 = {other}" in told
    assert "model 2 - model 1: +0.0% (0 gained, 0 lost" in told
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["models"][model] == result["models"][other]
    assert result["models"][model]["by_subject"].keys() == {"birds", "law", "history"}
    assert result["models"][model]["by_category"].keys() == {"STEM", "humanities", "other"}
    assert result["models"][model]["overall"]["chance"] == pytest.approx((0.25 + 0.5 + 0.25) / 3)
    items = [json.loads(line) for line in (out / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [item["model"] for item in items] == [model] * 3 + [other] * 3
    first = items[0]
    assert first["where"] == f"{data}:3" and first["shots"] == 2 and first["answer"] == "A"
    assert first["chosen"]["acc"] == "ABCD"[first["loglikelihood"].index(max(first["loglikelihood"]))]
    assert (out / "exam.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (out / "exam.svg").read_text()

    one = tmp_path / "one"
    assert main([*words[:-1], str(one), "--shots", "1"]) == 0
    shot, asked = (
        question(r["question"], tuple(r["choices"]), "ABCD".index(r["answer"])) for r in (ENGLISH[0], ENGLISH[2])
    )
    first = json.loads((one / "items.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["loglikelihood"] == pytest.approx(slow_sums(model, *exam_text(asked, [shot])), abs=2e-4)

    capsys.readouterr()
    assert main(words) == 2  # not over a finished one
    assert "already holds an exam; add --resume" in capsys.readouterr().err
    shutil.rmtree(other)
    assert main([*words, "--resume"]) == 0  # it is not sat again
    assert capsys.readouterr().out == told
    assert main([*words, "--resume", "--shots", "1"]) == 2
    assert "other settings: shots (3, now 1);" in capsys.readouterr().err
    (out / "result.json").unlink()
    assert main([*words[:2], *words[3:], "--resume"]) == 2  # other models
    again = tmp_path / "again"
    assert main(["exam", str(out / "config.yaml"), "--models", model, "--output-dir", str(again)]) == 0
    assert json.loads((again / "result.json").read_text())["models"] == {model: result["models"][model]}


def test_too_few_examples_are_told(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    birds = write(tmp_path / "birds.jsonl", ENGLISH[:3])  # two examples
    assert main(["exam", model, "--data", birds, "--device", "cpu", "--shots", "2"]) == 0
    assert "examples of their subject" not in capsys.readouterr().err
    both = write(tmp_path / "both.jsonl", ENGLISH)  # and none for law
    assert main(["exam", model, "--data", both, "--device", "cpu", "--shots", "2"]) == 0
    told = "1 of 2 questions have fewer than 2 examples of their subject (the least: 0)"
    assert told in capsys.readouterr().err


def test_without_a_folder_only_the_table(
    model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    assert main(["exam", model, "--data", data, "--device", "cpu", "--shots", "0"]) == 0
    assert "acc_norm" in capsys.readouterr().out and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("words", "expected"), [
    (["{model}"], "missing data"), (["--data", "{data}"], "missing models"),
    (["{model}", "{model}", "--data", "{data}"], "named twice"),
    (["{tmp}", "--data", "{data}", "--output-dir", "{tmp}/new"], "not a model directory"),
    (["{model}", "--data", "{data}", "--output-dir", "{tmp}"], "not empty and holds no exam"),
    (["{model}", "--data", "{data}", "--output-dir", "{data}"], "is a file"),
    (["{model}", "--data", "{tmp}/absent.jsonl", "--output-dir", "{tmp}/new"], "no such file"),
    (["{model}", "--data", "{data}", "--shot", "2"], "did you mean --shots"),
])  # fmt: skip
def test_mistakes(words: list[str], expected: str, model: str, data: str, tmp_path: Path,
                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    filled = [word.format(model=model, data=data, tmp=tmp_path) for word in words]
    assert main(["exam", "--device=cpu", *filled] if filled[0] == "--data" else ["exam", *filled]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ppomax: error: ") and expected in error
    assert not (tmp_path / "new").exists()


def test_a_broken_model_is_told(model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(float("nan"))
    shutil.copytree(model, tmp_path / "broken")
    broken.save_pretrained(tmp_path / "broken")
    assert main(["exam", str(tmp_path / "broken"), "--data", data, "--device", "cpu"]) == 2
    assert f"not a number at {data}:3" in capsys.readouterr().err


def test_a_short_context_is_told(model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = AutoModelForCausalLM.from_pretrained(model)
    short.config.max_position_embeddings = 30
    shutil.copytree(model, tmp_path / "short")
    short.save_pretrained(tmp_path / "short")
    assert main(["exam", str(tmp_path / "short"), "--data", data, "--device", "cpu"]) == 0
    told = capsys.readouterr().err
    assert "few-shot examples did not fit the context of 30 tokens" in told and "lost their left" in told


def test_questions_or_subjects_count_alike() -> None:
    """Subject s: 3 of 4, t: 0 of 1, u (another category): 1 of 1."""
    marks = [("s", "STEM", word) for word in "AAAB"] + [("t", "STEM", "B"), ("u", "law", "A")]
    rows = [
        {"subject": subject, "category": category, "data": "d", "choices": ["x", "y"], "answer": "A", "too_long": False,
         "chosen": dict.fromkeys(("acc", "acc_norm", "acc_bytes"), word), "shots_dropped": 0, "cut": False}
        for subject, category, word in marks
    ]  # fmt: skip
    found = summarise([*rows, {**rows[0], "too_long": True, "chosen": {}}])  # what did not fit counts for nothing
    assert (found["overall"]["n"], found["too_long"]) == (6, 1)
    assert found["overall"]["acc"]["accuracy"] == pytest.approx(4 / 6)
    assert found["by_category"]["STEM"]["acc"]["accuracy"] == pytest.approx(3 / 5)
    means = found["mean_over_subjects"]
    assert (
        means["overall"]["acc"]["accuracy"] == pytest.approx((3 / 4 + 0 + 1) / 3) and means["overall"]["acc"]["n"] == 3
    )
    assert means["by_category"]["STEM"]["acc_norm"]["accuracy"] == pytest.approx(3 / 8)
    assert found["by_subject"].keys() == {"s", "t", "u"}
    # another exam with a subject of the same name, wrong on both questions: a subject of its own
    twice = summarise([*rows, *({**rows[4], "subject": "s", "data": "e"} for _ in range(2))])
    assert twice["mean_over_subjects"]["overall"]["acc"]["accuracy"] == pytest.approx((3 / 4 + 0 + 1 + 0) / 4)
    assert {name: part["n"] for name, part in twice["by_subject"].items()} == {"d: s": 4, "t": 1, "u": 1, "e: s": 2}


def test_chance_where_several_answers_are_right() -> None:
    row = {"too_long": False, "choices": list("abcd"), "answer": "AB", "chosen": dict.fromkeys(("acc", "acc_norm", "acc_bytes"), "A"),
           "category": "x", "subject": "s", "data": "d", "shots_dropped": 0, "cut": False}  # fmt: skip
    assert summarise([row, {**row, "answer": "C"}])["overall"]["chance"] == (0.5 + 0.25) / 2


def test_an_empty_choice_has_a_length() -> None:
    assert best_choice([-1.0, -3.0], ["", "ab"]) == {"acc": 0, "acc_norm": 0, "acc_bytes": 0}
