"""lm-evaluation-harness: its tasks by name, and scores of local files that agree with its own, item by item.

The tests that need the package skip without it: pip install 'ppomax[lm-eval]'.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ppomax.cli import main
from ppomax.evaluate.exam_files import load_exam
from ppomax.evaluate.exam_form import C_EVAL_NAMES, FORMS, MEASURES
from ppomax.evaluate.exam_tasks import category_of
from ppomax.models.fresh import new_model

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs ppomax[lm-eval]")
FILES = ("en", "zh")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tasks") / "tiny"
    texts = ["Where does a duck swim?\nAnswer: a pond.", "谁住在山上？\n答案：老人。"] * 5
    new_model(folder, texts, size="1m", vocab_size=340, seed=3)
    return str(folder)


@pytest.fixture(autouse=True)
def only_local_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own 14,000 task files are not read: that takes a minute."""
    if importlib.util.find_spec("lm_eval") is not None:
        import lm_eval.tasks as library

        whole = library.TaskManager

        class Manager(whole):  # type: ignore[misc, valid-type]
            def __init__(self, **kwargs: Any) -> None:
                super().__init__(include_defaults=False, **kwargs)

        monkeypatch.setattr(library, "TaskManager", Manager)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def items(language: str, subjects: tuple[str, ...]) -> list[dict[str, Any]]:
    """Invented questions with examples."""
    words = {"en": ("Where is number {}?", "in place {}"), "zh": ("第{}个在哪里？", "在第{}处")}[language]
    rows = []
    for subject in subjects:
        for i in range(8):
            choices = [words[1].format(3 * i + 7 * j + len(subject)) + "!?"[: j % 2] for j in range(4)]
            rows.append(
                {"subject": subject, "category": "STEM" if subject == subjects[0] else "humanities",
                 "split": "dev" if i < 3 else "test", "question": words[0].format(i), "choices": choices,
                 "answer": "ABCD"[(i * i) % 4]}
            )  # fmt: skip
    return rows


def write_tasks(folder: Path, rows: list[dict[str, Any]], language: str, score: str) -> list[str]:
    """One task file of lm-eval a subject, over the same items: its own way of writing a prompt down, not ours."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for subject in dict.fromkeys(row["subject"] for row in rows):
        name = f"local_{language}_{score}_{subject}"
        files = {}
        for split in ("dev", "test"):
            own = [r for r in rows if r["subject"] == subject and (r["split"] == "dev") == (split == "dev")]
            if own:
                files[split] = str(folder / f"{name}_{split}.jsonl")
                lines = [json.dumps({**r, "answer": "ABCD".index(r["answer"])}, ensure_ascii=False) for r in own]
                Path(files[split]).write_text("\n".join(lines) + "\n", encoding="utf-8")
        task: dict[str, Any] = {
            "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test",
            "output_type": "multiple_choice", "doc_to_target": "answer",
            "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in MEASURES],
            "tag": f"local_{rows[0]['category'].lower()}",
        }  # fmt: skip
        if "dev" in files:
            task |= {"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}}
        english = language == "en"
        if score == "letter":
            listed = "".join("\n%s. {{choices[%d]}}" % (letter, i) for i, letter in enumerate("ABCD"))  # noqa: UP031
            task["doc_to_text"] = "{{question.strip()}}" + listed + ("\nAnswer:" if english else "\n答案：")
            task["doc_to_choice"] = list("ABCD")
            about = f" (with answers) about {subject.replace('_', ' ')}"
            task["description"] = (
                f"The following are multiple choice questions{about}.\n\n"
                if english
                else "以下是单项选择题，请选出其中的正确答案。\n\n"
            )
        else:
            task["doc_to_text"] = (
                "Question: {{question.strip()}}\nAnswer:" if english else "问题：{{question.strip()}}\n答案："
            )
            stop, ends = (".", ".!?") if english else ("。", "。！？.!?")
            task["doc_to_choice"] = (
                "{%- set out = [] -%}{%- for c in choices -%}{%- set t = c.strip() -%}"
                "{%- set _ = out.append(t if t[-1] in '"
                + ends
                + "' else t + '"
                + stop
                + "') -%}{%- endfor -%}{{ out }}"
            )
            task["target_delimiter"] = " " if english else ""
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")
        names.append(name)
    return names


def sit(words: list[str], out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    assert main([*words, "--device", "cpu", "--output-dir", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    return json.loads((out / "result.json").read_text(encoding="utf-8")), rows


def agree(model: str, rows: list[dict[str, Any]], language: str, score: str, shots: int, folder: Path) -> int:
    """Both ways on the same items; how many of them decided on more than rounding."""
    names = write_tasks(folder / "tasks", rows, language, score)
    data = folder / f"{language}.jsonl"
    data.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    common = ["exam", model, "--shots", str(shots)]
    ours, own = sit([*common, "--data", str(data), "--score", score], folder / "ours")
    theirs, found = sit([*common, "--tasks", *names, "--task-folder", str(folder / "tasks")], folder / "theirs")
    assert len(own) == len(found) == ours["questions"] == theirs["questions"] > 0
    decided = 0
    for a, b in zip(sorted(own, key=place_ours), sorted(found, key=place_theirs), strict=True):
        assert a["answer"] == b["answer"] and a["shots"] == b["shots"] == shots and not (a["cut"] or b["cut"])
        assert a["loglikelihood"] == pytest.approx(b["loglikelihood"], abs=2e-3)
        first, second = sorted(a["loglikelihood"])[-2:][::-1]
        if first - second > 0.01:
            decided += 1
            assert a["chosen"]["acc"] == b["chosen"]["acc"]
    # lm-eval's own means, by task: the numbers that its command would print
    (own_figures,) = theirs["lm_eval"].values()
    for measure in MEASURES:
        right = sum(own_figures["results"][n][measure] * theirs["models"][model]["by_subject"][n]["n"] for n in names)
        there = theirs["models"][model]["overall"][measure]["accuracy"]
        assert right / len(found) == pytest.approx(there, abs=1e-9)
        here = ours["models"][model]["overall"][measure]["accuracy"]
        assert abs(here - there) * len(own) <= len(own) - decided + 1e-9
    return decided


def place_ours(row: dict[str, Any]) -> tuple[str, int]:
    return row["subject"], int(row["where"].rsplit(":", 1)[1])


def place_theirs(row: dict[str, Any]) -> tuple[str, int]:
    subject, number = row["where"].rsplit(":", 1)
    return subject.split("_", 3)[3], int(number)


@needs_lm_eval
@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("score", ["text", "letter"])
@pytest.mark.parametrize("language", FILES)
def test_local_files_score_as_in_lm_eval(model: str, language: str, score: str, shots: int, tmp_path: Path) -> None:
    assert agree(model, items(language, ("one_thing", "two")), language, score, shots, tmp_path) >= 5


@needs_lm_eval
@pytest.mark.parametrize("score", ["text", "letter"])
@pytest.mark.parametrize("language", FILES)
def test_real_files_score_as_in_lm_eval(real_data: Path, model: str, language: str, score: str, tmp_path: Path) -> None:
    """The first short questions of the real files."""
    with gzip.open(real_data / f"multiple_choice_{language}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    size = {"en": 300, "zh": 150}[language]
    short = [r for r in rows if len(r["question"]) + sum(map(len, r["choices"])) < size and r["split"] == "test"]
    short = [r for r in short if len(r["choices"]) == 4 and all(c.strip() for c in r["choices"])][:40]
    assert agree(model, short, language, score, 0, tmp_path) >= 10


@needs_lm_eval
def test_c_eval_files_score_as_in_lm_eval(model: str, tmp_path: Path) -> None:
    """C-Eval's CSV, by letter, against a task with the words of lm-eval's own `ceval-valid_law`."""
    csv, rows = tmp_path / "csv", items("zh", ("law",))
    csv.mkdir()
    for split in ("dev", "val"):
        lines = ["id,question,A,B,C,D,answer"]
        for i, row in enumerate(r for r in rows if (r["split"] == "dev") == (split == "dev")):
            lines.append(",".join([str(i), row["question"], *row["choices"], row["answer"]]))
        (csv / f"law_{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (name,) = write_tasks(tmp_path / "tasks", rows, "zh", "letter")
    file = tmp_path / "tasks" / f"{name}.yaml"
    task = yaml.safe_load(file.read_text(encoding="utf-8"))
    task["description"] = "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n"
    file.write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")
    common = ["exam", model, "--shots", "3"]
    ours, own = sit([*common, "--data", str(csv), "--score", "letter"], tmp_path / "ours")
    theirs, found = sit([*common, "--tasks", name, "--task-folder", str(tmp_path / "tasks")], tmp_path / "theirs")
    for a, b in zip(own, found, strict=True):
        assert a["loglikelihood"] == pytest.approx(b["loglikelihood"], abs=2e-3) and a["chosen"] == b["chosen"]
    assert ours["models"][model]["overall"] == theirs["models"][model]["overall"]
    assert list(ours["models"][model]["by_category"]) == ["humanities"]


@needs_lm_eval
def test_the_words_are_those_of_lm_eval() -> None:
    """Heads of C-Eval's and MMLU's tasks as they lie in the package."""
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent
    found = {}
    for file in (folder / "ceval").glob("ceval-valid_*.yaml"):
        task = yaml.safe_load(file.read_text(encoding="utf-8"))
        found[task["task"].removeprefix("ceval-valid_")] = task["description"]
    assert found == {subject: FORMS["zh"].head.format(name) for subject, name in C_EVAL_NAMES.items()}
    law = yaml.safe_load((folder / "mmlu" / "default" / "mmlu_professional_law.yaml").read_text(encoding="utf-8"))
    assert law["description"] == FORMS["en"].head.format("professional law")


@needs_lm_eval
def test_command(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files and tasks in one exam, groups from tags, a limit."""
    rows = items("en", ("one",))
    (name,) = write_tasks(tmp_path / "tasks", rows, "en", "text")
    data = tmp_path / "en.jsonl"
    data.write_text("".join(json.dumps({**r, "category": "other"}) + "\n" for r in rows), encoding="utf-8")
    words = ["exam", model, "--data", str(data), "--tasks", "local_en_*", "--task-folder", str(tmp_path / "tasks")]
    result, found = sit([*words, "--per-subject", "2", "--shots", "1"], tmp_path / "out")
    assert [row["where"] for row in found] == [f"{data}:4", f"{data}:5", f"{name}:0", f"{name}:1"]
    assert result["models"][model]["by_category"].keys() == {"other", "STEM"}
    assert result["tasks"] == {"local_en_*": {"tasks": 1, "questions": 5}} and result["beyond_per_subject"] == 6
    assert result["lm_eval"][model]["version"] and found[2]["loglikelihood"] == pytest.approx(
        found[0]["loglikelihood"], abs=2e-3
    )
    capsys.readouterr()
    for task, folder, expected in (
        ("local_en_text_on", tmp_path / "tasks", "knows no task 'local_en_text_on'; did you mean local_en_text_one or"),
        (name, tmp_path / "none", "is no folder"),
    ):
        assert main(["exam", model, "--tasks", task, "--task-folder", str(folder)]) == 2
        assert expected in capsys.readouterr().err.splitlines()[-1]


@needs_lm_eval
@pytest.mark.parametrize(("changed", "expected"), [
    ({"dataset_path": "owner/absent", "dataset_kwargs": {}}, "lm-eval cannot load it: "),
    ({"output_type": "generate_until", "doc_to_choice": None,
      "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]},
     "is no multiple-choice task (generate_until)"),
])  # fmt: skip
def test_tasks_that_cannot_be_sat(
    changed: dict[str, Any], expected: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = write_tasks(tmp_path / "tasks", items("en", ("one",)), "en", "text")
    file = tmp_path / "tasks" / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text(encoding="utf-8")), **changed}), encoding="utf-8")
    assert main(["exam", model, "--tasks", name, "--task-folder", str(tmp_path / "tasks"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ppomax: error: tasks: ") and expected in error


def test_without_the_package(model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["exam", model, "--tasks", "mmlu", "--device", "cpu"]) == 2
    assert "install ppomax[lm-eval], or give files with --data" in capsys.readouterr().err
    assert main(["exam", model, "--data", "x.jsonl", "--task-folder", "x"]) == 2
    assert main(["exam", model, "--device", "cpu"]) == 2
    assert "give --data FILES, --tasks NAMES or --text FILES" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "above", "expected"), [
    ("ceval-valid_law", (), "humanities"), ("ceval-valid_logic", (), "humanities"),
    ("ceval-valid_physician", ("ceval-valid",), "other"), ("ceval-valid_marxism", (), "social_sciences"),
    ("mmlu_anatomy", ("mmlu_stem_tasks",), "STEM"), ("mmlu_law", ("x", "mmlu_humanities_tasks"), "humanities"),
    ("x_sociology", ("x_social_sciences", "x"), "social_sciences"), ("arc_easy", ("ai2_arc",), "other"),
])  # fmt: skip
def test_groups(name: str, above: tuple[str, ...], expected: str) -> None:
    assert category_of(name, above) == expected


def test_the_first_rows_are_the_examples(tmp_path: Path) -> None:
    """As lm-eval's `first_n`, which its tasks of MMLU and C-Eval name."""
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in items("en", ("one",))), encoding="utf-8")
    assert [q.question for q in load_exam([str(file)]).examples[str(file), "one"]] == [
        f"Where is number {i}?" for i in range(3)
    ]
