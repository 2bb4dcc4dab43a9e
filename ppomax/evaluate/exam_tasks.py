"""Exams by lm-evaluation-harness: its tasks by its own names, with its prompts, its few-shot examples and its scores.

    pip install 'ppomax[lm-eval]'
    ppomax exam runs/sft/final runs/ppo/final --tasks ceval-valid mmlu --shots 5 --output_dir runs/exam

What lm-eval found is put into the same rows as questions from local files, one a question, so that groups, intervals and
comparisons are the same. Its data come from the hub; task files of one's own (``--task_folder``) may name local data.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ppomax.errors import UserError
from ppomax.evaluate.exam_files import GROUP_OF, GROUPS, LETTERS, NO_GROUP
from ppomax.evaluate.exam_form import best_choice
from ppomax.layers import did_you_mean
from ppomax.regular_file import expand_path

PACKAGE = "lm_eval"
QUIET = ("lm_eval", "huggingface_hub", "datasets", "fsspec", "httpx")
"""whose warnings would bury the line that says what is wrong"""


@dataclass(frozen=True)
class Tasks:
    """lm-eval's tasks, with their data at hand."""

    tasks: dict[str, Any]
    """name -> task"""
    category: dict[str, str]
    asked: dict[str, str]
    """task -> the name that it was asked for by, such as mmlu"""

    @property
    def questions(self) -> int:
        """All of them, before any limit."""
        return sum(len(task.eval_docs) for task in self.tasks.values())

    def counts(self) -> dict[str, dict[str, int]]:
        """By the name that was asked for: questions and examples, as ``Exam.counts`` of files."""
        found: dict[str, dict[str, int]] = {}
        for name, task in self.tasks.items():
            own = found.setdefault(self.asked[name], {"tasks": 0, "questions": 0})
            own["tasks"] += 1
            own["questions"] += len(task.eval_docs)
        return found

    def lines(self) -> list[str]:
        """The report for a terminal."""
        return [
            f"{name}: {n['questions']} questions in {n['tasks']} tasks of lm-eval" for name, n in self.counts().items()
        ]


def load_tasks(names: Sequence[str], folder: str | None = None, shots: int = 0) -> Tasks:
    """Tasks, groups and tags by lm-eval's names, and further ones from the YAML files in ``folder``.

    UserError for a missing package, an unknown name, data that cannot be reached, and a task that is no choice.
    """
    library = _library()
    if folder is not None and not Path(expand_path(folder)).is_dir():
        raise UserError(f"task_folder: {folder} is no folder")
    print("lm-eval: looking through its tasks", file=sys.stderr, flush=True)  # seconds to a minute
    with _quiet():
        manager = library.tasks.TaskManager(include_path=expand_path(folder) if folder is not None else None)
        _check_names(names, manager.all_tasks)
        found: dict[str, Any] = {}
        category: dict[str, str] = {}
        asked: dict[str, str] = {}
        for name in names:
            print(f"lm-eval: {name}: its data", file=sys.stderr, flush=True)
            matching = [known for known in manager.all_tasks if fnmatchcase(known, name)]
            try:
                loaded = manager.load(matching)
            except Exception as error:  # of datasets, the hub, a YAML file, a task's own code: there is no common kind
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"tasks: {name}: lm-eval cannot load it: {first}; where no hub is in reach, give files with --data"
                ) from error
            for task_name, task in loaded["tasks"].items():
                if task.config.output_type != "multiple_choice":
                    raise UserError(
                        f"tasks: {task_name} is no multiple-choice task ({task.config.output_type}); an exam compares choices"
                    )
                if task.config.num_fewshot != 0:  # 0 in the task's own file is meant so, as lm-eval takes it
                    task.set_config(key="num_fewshot", value=shots)
                task.set_fewshot_seed(seed=1234)
                found[task_name] = task
                asked.setdefault(task_name, name)
                category.setdefault(task_name, category_of(task_name, _above(task_name, manager, loaded)))
    return Tasks(found, category, asked)


def category_of(name: str, above: Sequence[str] = ()) -> str:
    """STEM, social_sciences, humanities or other: by C-Eval's table of subjects, or the tags and groups ``above`` (MMLU)."""
    subject = name.removeprefix("ceval-valid_")
    if subject != name and subject in GROUP_OF:
        return GROUP_OF[subject]
    for word in above:
        for group in GROUPS:
            if word.removesuffix("_tasks").lower().endswith(f"_{group.lower()}"):
                return group
    return NO_GROUP


def sit_tasks(
    model: Any, tokenizer: Any, tasks: Tasks, *, per_task: int | None, batch_size: int, bf16: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(a row a question in lm-eval's order, lm-eval's own figures by task)."""
    library = _library()
    with _quiet():
        network = importlib.import_module(f"{PACKAGE}.models.huggingface").HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            mixed_precision_dtype="bfloat16" if bf16 else None,
        )
        found = library.simple_evaluate(
            model=network, tasks=list(tasks.tasks.values()), limit=per_task, bootstrap_iters=0, log_samples=True
        )
    rows = []
    for name, task in tasks.tasks.items():
        for sample in sorted(found["samples"][name], key=lambda s: s["doc_id"]):
            rows.append(_row(network, task, name, tasks, sample))
    figures = {
        name: {key.removesuffix(",none"): value for key, value in own.items() if isinstance(value, int | float)}
        for name, own in found["results"].items()
    }
    return rows, {"version": importlib.import_module("importlib.metadata").version(PACKAGE), "results": figures}


def _row(network: Any, task: Any, name: str, tasks: Tasks, sample: dict[str, Any]) -> dict[str, Any]:
    doc = sample["doc"]
    choices = [str(choice) for choice in task.doc_to_choice(doc)]
    if len(choices) > len(LETTERS):
        raise UserError(
            f"tasks: {name}: {len(choices)} choices at a question; at most {len(LETTERS)} can be told apart"
        )
    sums = [float(reply[0]) for reply in sample["filtered_resps"]][: len(choices)]
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    right = {choices.index(g) if isinstance(g, str) else int(g) for g in (gold if isinstance(gold, list) else [gold])}
    chosen = best_choice(sums, choices)
    pairs = list(sample_arguments(sample))[: len(choices)]
    context = pairs[0][0]
    longest = max(len(network.tok_encode(before + after)) for before, after in pairs)
    return {
        "where": f"{name}:{sample['doc_id']}", "data": tasks.asked[name], "subject": name,
        "category": tasks.category[name], "question": context.rsplit("\n\n", 1)[-1], "choices": choices,
        "answer": "".join(LETTERS[i] for i in sorted(right)), "shots": task.config.num_fewshot or 0, "shots_dropped": 0,
        # lm-eval feeds all tokens but the last, and cuts the left of what is longer than the context
        "cut": longest - 1 > network.max_length, "too_long": False, "loglikelihood": sums,
        "chosen": {measure: LETTERS[i] for measure, i in chosen.items()},
    }  # fmt: skip


def sample_arguments(sample: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(context, continuation) of each choice of a logged sample."""
    given = sample["arguments"]
    for one in given.values() if isinstance(given, dict) else given:
        yield (one["arg_0"], one["arg_1"]) if isinstance(one, dict) else (one[0], one[1])


def _library() -> Any:
    try:
        library = importlib.import_module(PACKAGE)
        importlib.import_module(f"{PACKAGE}.tasks")
    except ImportError:
        raise UserError("tasks: need the package lm_eval; install ppomax[lm-eval], or give files with --data") from None
    return library


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if not any(fnmatchcase(one, name) for one in known):
            hint = did_you_mean(name, known) or "; `lm-eval ls tasks` lists them"
            raise UserError(f"tasks: lm-eval knows no task {name!r}{hint}")


def _above(name: str, manager: Any, loaded: Any) -> list[str]:
    """Tags that a task bears, and groups that hold it."""
    tags = [tag for tag in manager.all_tags if name in manager.task_index[tag].tags]
    return tags + [group for group, children in loaded.get("group_map", {}).items() if name in children]


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in QUIET]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
