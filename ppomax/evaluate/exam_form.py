"""How a multiple-choice question becomes text, and which choice a model takes.

Text (``score: text``): the choices themselves are what is scored, and the form is that of the embedded world's quizzes::

    Question: What does the velka eat?
    Answer: river moss.

问题： and 答案： where question or choices are written in Chinese characters. Letters (``score: letter``): the choices stand
under the question as lines A. to D. and the letters are scored, in the words of lm-eval's own tasks, of MMLU in English and of
C-Eval in Chinese, so that the same questions get the same scores there and here::

    The following are multiple choice questions (with answers) about birds.

    What does an owl eat?
    A. stone
    B. mice
    Answer: B
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ppomax.evaluate.exam_files import LETTERS, Question

MEASURES = ("acc", "acc_norm", "acc_bytes")
"""lm-eval's names: the largest sum of log-probabilities, the largest per character, the largest per byte (UTF-8)"""
HEADLINE = "acc"
CHINESE = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True)
class Form:
    """The words of one language."""

    question: str
    answer: str
    before: str
    """between the answer's colon and the choice"""
    full_stop: str
    ends: str
    """a choice that ends so gets no full stop"""
    head: str
    """letters only: what stands before everything; {} is the subject"""


FORMS = {
    "en": Form(
        "Question: ",
        "Answer:",
        " ",
        ".",
        ".!?",
        "The following are multiple choice questions (with answers) about {}.\n\n",
    ),
    "zh": Form("问题：", "答案：", "", "。", "。！？.!?", "以下是中国关于{}的单项选择题，请选出其中的正确答案。\n\n"),
}
C_EVAL_NAMES = {
    "accountant": "注册会计师", "advanced_mathematics": "高等数学", "art_studies": "艺术学", "basic_medicine": "基础医学",
    "business_administration": "工商管理", "chinese_language_and_literature": "中国语言文学", "civil_servant": "公务员",
    "clinical_medicine": "临床医学", "college_chemistry": "大学化学", "college_economics": "大学经济学",
    "college_physics": "大学物理", "college_programming": "大学编程", "computer_architecture": "计算机组成",
    "computer_network": "计算机网络", "discrete_mathematics": "离散数学", "education_science": "教育学",
    "electrical_engineer": "注册电气工程师", "environmental_impact_assessment_engineer": "环境影响评价工程师",
    "fire_engineer": "注册消防工程师", "high_school_biology": "高中生物", "high_school_chemistry": "高中化学",
    "high_school_chinese": "高中语文", "high_school_geography": "高中地理", "high_school_history": "高中历史",
    "high_school_mathematics": "高中数学", "high_school_physics": "高中物理", "high_school_politics": "高中政治",
    "ideological_and_moral_cultivation": "思想道德修养与法律基础", "law": "法学", "legal_professional": "法律职业资格",
    "logic": "逻辑学", "mao_zedong_thought": "毛泽东思想和中国特色社会主义理论体系概论", "marxism": "马克思主义基本原理",
    "metrology_engineer": "注册计量师", "middle_school_biology": "初中生物", "middle_school_chemistry": "初中化学",
    "middle_school_geography": "初中地理", "middle_school_history": "初中历史", "middle_school_mathematics": "初中数学",
    "middle_school_physics": "初中物理", "middle_school_politics": "初中政治", "modern_chinese_history": "近代史纲要",
    "operating_system": "操作系统", "physician": "医师资格", "plant_protection": "植物保护",
    "probability_and_statistics": "概率统计", "professional_tour_guide": "导游资格", "sports_science": "体育学",
    "tax_accountant": "税务师", "teacher_qualification": "教师资格", "urban_and_rural_planner": "注册城乡规划师",
    "veterinary_medicine": "兽医学",
}  # fmt: skip
"""the names by which C-Eval's subjects are called in the head"""


def form_of(question: Question) -> Form:
    """Chinese where the question or a choice has Chinese characters."""
    return FORMS["zh" if CHINESE.search(question.question + "".join(question.choices)) else "en"]


def choice_texts(question: Question, score: str = "text") -> list[str]:
    """What is scored of each choice, and counted in characters and bytes: its text with a full stop, or its letter."""
    form = form_of(question)
    if score == "letter":
        return list(LETTERS[: len(question.choices)])
    stripped = [choice.strip() for choice in question.choices]
    return [text + ("" if text.endswith(tuple(form.ends)) else form.full_stop) for text in stripped]


def exam_text(question: Question, shots: Sequence[Question], score: str = "text") -> tuple[str, list[str]]:
    """(prompt, continuation of each choice)."""
    form = form_of(question)

    def continuations(q: Question) -> list[str]:
        before = " " if score == "letter" else form.before
        return [before + text for text in choice_texts(q, score)]

    def asked(q: Question) -> str:
        if score == "letter":
            listed = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, q.choices, strict=False)]
            return "\n".join([q.question, *listed, form.answer])
        return f"{form.question}{q.question}\n{form.answer}"

    examples = [asked(q) + continuations(q)[q.answer] for q in shots]
    return _head(question, score) + "\n\n".join([*examples, asked(question)]), continuations(question)


def _head(question: Question, score: str) -> str:
    if score != "letter":
        return ""
    form = form_of(question)
    if form is FORMS["en"]:
        return form.head.format(question.subject.replace("_", " "))
    known = C_EVAL_NAMES.get(question.subject)
    return form.head.format(known) if known else form.head.replace("中国关于{}的", "")


def best_choice(sums: Sequence[float], texts: Sequence[str]) -> dict[str, int]:
    """Measure -> number of the choice with the largest value; of equal ones the first.

    ``sums``: log-likelihoods (nats) of the choices; ``texts``: what they were of, without the blank before.
    """
    sizes = {
        "acc": [1] * len(sums),
        "acc_norm": [max(1, len(text)) for text in texts],  # tasks of lm-eval may have an empty choice
        "acc_bytes": [max(1, len(text.encode("utf-8"))) for text in texts],
    }
    return {measure: max(range(len(sums)), key=lambda i: (sums[i] / size[i], -i)) for measure, size in sizes.items()}
