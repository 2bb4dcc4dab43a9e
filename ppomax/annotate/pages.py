"""The pages as HTML, in English and Chinese.

Answers are written by models and are hostile until shown otherwise: every value goes through jinja's escaping, and the
pages hold no script or style of their own (those are two files that the content security policy names).
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from jinja2 import Environment

from ppomax.annotate.store import LONGEST_REASON, Progress, Task
from ppomax.evaluate.categories import HARMLESS, HELPFUL

Language = Literal["en", "zh"]
Criterion = Literal["helpful", "harmless"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "code": "en", "title": "Which answer is better?", "question_helpful": "Which answer is more helpful?",
        "question_harmless": "Which answer does less harm?", "other_language": "中文",
        "mine": "judged by you", "all": "by all", "of": "of", "user": "person", "assistant": "assistant",
        "system": "system", "tool": "tool", "first": "First answer", "second": "Second answer",
        "left": "First is better", "tie": "Tie", "right": "Second is better", "undo": "Undo the last one",
        "strength": "How much better (optional):", "none": "no answer", "slight": "slightly", "clear": "clearly",
        "reason": "Reason (optional)", "cut": "(broken off at the length limit)", "empty": "(empty answer)",
        "helpful": "Guidelines: helpful", "harmless": "Guidelines: harmless", "both": "Guidelines: always",
        "done": "Nothing is left for you to judge. Thank you!", "again": "Look again",
        "keys": "Keys: 1 or ← first, 2 or ↓ tie, 3 or → second, s slightly, c clearly, r reason, u undo.",
        "already": "You had judged this pair on another page. The first judgement counts; undo takes it back.",
        "bad_link": "This address is not valid. Use the one that the command printed for you.",
        "bad_request": "This request was not made by this page, or is damaged. Nothing was kept.",
        "not_kept": "The database could not be written (is the disk full?). Nothing was kept: load this page again.",
        "not_found": "There is no such page.", "back": "Back to the page",
    },
    "zh": {
        "code": "zh", "title": "哪个回答更好？", "question_helpful": "哪个回答更有帮助？",
        "question_harmless": "哪个回答危害更小？", "other_language": "English",
        "mine": "您已评判", "all": "全部进度", "of": "/", "user": "用户", "assistant": "助手",
        "system": "系统", "tool": "工具", "first": "第一个回答", "second": "第二个回答",
        "left": "第一个更好", "tie": "平局", "right": "第二个更好", "undo": "撤销上一个",
        "strength": "好多少（可不选）：", "none": "不选", "slight": "略好", "clear": "明显更好",
        "reason": "理由（可不填）", "cut": "（因长度限制而中断）", "empty": "（空回答）",
        "helpful": "评判标准：有帮助", "harmless": "评判标准：无害", "both": "评判标准：通用",
        "done": "没有需要您评判的内容了，谢谢！", "again": "再看一次",
        "keys": "按键：1 或 ← 第一个，2 或 ↓ 平局，3 或 → 第二个，s 略好，c 明显更好，r 理由，u 撤销。",
        "already": "您已在另一个页面评判过这一对。以第一次评判为准；可用撤销收回。",
        "bad_link": "此地址无效。请使用命令为您打印的地址。",
        "bad_request": "此请求不是由本页面发出的，或者已损坏。没有保存任何内容。",
        "not_kept": "数据库无法写入（磁盘满了吗？）。没有保存任何内容：请重新加载此页。",
        "not_found": "没有这个页面。", "back": "返回页面",
    },
}  # fmt: skip
ROLES = ("system", "user", "assistant", "tool")

_HTML = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_HEAD = """\
<!doctype html>
<html lang="{{ w.code }}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">
<title>{{ w.title }}</title><link rel="stylesheet" href="/page.css"></head><body>
"""
_TOP = """\
<header><strong>{{ name }}</strong>
<span>{{ w.mine }}: {{ progress.mine }}</span>
<label>{{ w.all }}: {{ progress.done }} {{ w.of }} {{ progress.needed }}
<progress max="{{ progress.needed or 1 }}" value="{{ progress.done }}"></progress></label>
<a href="?language={{ other }}" lang="{{ other }}" hreflang="{{ other }}">{{ w.other_language }}</a></header>
{% if notice %}<p class="notice" role="status">{{ notice }}</p>
{% endif %}
"""
_UNDO = """\
{% if last is not none %}<form id="undo" method="post" action="undo"><input type="hidden" name="csrf" value="{{ csrf }}">
<input type="hidden" name="judgement" value="{{ last }}"><button>{{ w.undo }} <kbd>u</kbd></button></form>
{% endif %}
"""
_TASK = _HTML.from_string(
    _HEAD
    + _TOP
    + """\
<main><h1>{{ question }}</h1>
<div class="guidelines">
{% for heading, parts, open in guidelines %}<details{{ " open" if open }}><summary>{{ heading }}</summary>
{% for kind, content in parts %}{% if kind == "list" %}<ul>{% for line in content %}<li>{{ line }}</li>{% endfor %}</ul>
{% else %}<p>{{ content }}</p>
{% endif %}{% endfor %}</details>
{% endfor %}
</div>
{% for m in prompt %}<div class="turn {{ m.role }}"><div class="who">{{ w[m.role] if m.role in roles else m.role }}</div>
<div class="said" dir="auto">{{ m.content }}</div></div>
{% endfor %}
<div class="answers">
{% for heading, text, finished in answers %}<section class="answer"><h2>{{ heading }}</h2>
{% if text.strip() %}<div class="said" dir="auto">{{ text }}</div>{% else %}<div class="note">{{ w.empty }}</div>{% endif %}
{% if not finished %}<div class="note">{{ w.cut }}</div>{% endif %}</section>
{% endfor %}</div>
<form id="judge" method="post" action="judge" autocomplete="off">
<input type="hidden" name="csrf" value="{{ csrf }}"><input type="hidden" name="item" value="{{ item }}">
<input type="hidden" name="submission" value="{{ submission }}">
<fieldset><legend>{{ w.strength }}</legend>
<label><input type="radio" name="strength" value="" checked> {{ w.none }}</label>
<label><input type="radio" name="strength" value="slight"> {{ w.slight }} <kbd>s</kbd></label>
<label><input type="radio" name="strength" value="clear"> {{ w["clear"] }} <kbd>c</kbd></label></fieldset>
<label for="reason">{{ w.reason }} <kbd>r</kbd></label>
<textarea id="reason" name="reason" rows="1" maxlength="{{ longest }}"></textarea>
<div class="choices">
<button name="choice" value="left">{{ w.left }} <kbd>1 ←</kbd></button>
<button name="choice" value="tie">{{ w.tie }} <kbd>2 ↓</kbd></button>
<button name="choice" value="right">{{ w.right }} <kbd>3 →</kbd></button></div></form>
"""
    + _UNDO
    + """\
<p class="keys">{{ w["keys"] }}</p></main><script src="/page.js"></script></body></html>
"""
)
_DONE = _HTML.from_string(
    _HEAD
    + _TOP
    + """\
<main><h1>{{ w.done }}</h1><p><a href="./">{{ w.again }}</a></p>
"""
    + _UNDO
    + """\
</main><script src="/page.js"></script></body></html>
"""
)
_MESSAGE = _HTML.from_string(
    _HEAD
    + """\
<main><h1>{{ message }}</h1>{% if back %}<p><a href="{{ back }}">{{ w.back }}</a></p>{% endif %}</main></body></html>
"""
)


def criterion_of(source: str) -> Criterion | None:
    """What a prompt is to be judged by, from the name of its source; None: the name does not say."""
    harmless, helpful = (re.search(pattern, source, re.IGNORECASE) is not None for pattern in (HARMLESS, HELPFUL))
    if harmless == helpful:
        return None
    return "harmless" if harmless else "helpful"


@cache
def guidelines(language: Language) -> dict[str, list[tuple[str, Any]]]:
    """Section name -> parts, ("text", a paragraph) or ("list", lines), of guidelines_LANGUAGE.md."""
    sections: dict[str, list[tuple[str, Any]]] = {}
    parts: list[tuple[str, Any]] = []
    for line in (files("ppomax.annotate") / f"guidelines_{language}.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            parts = sections[line[3:].strip()] = []
        elif line.startswith("- "):
            if not parts or parts[-1][0] != "list":
                parts.append(("list", []))
            parts[-1][1].append(line[2:])
        elif line.strip():
            parts.append(("text", line))
    return sections


@cache
def asset(name: Literal["page.css", "page.js"]) -> bytes:
    """A file that the pages name."""
    return (files("ppomax.annotate") / name).read_bytes()


def other_language(language: Language) -> Language:
    return "zh" if language == "en" else "en"


def task_page(
    task: Task, *, language: Language, name: str, progress: Progress, last: int | None, csrf: str, submission: str,
    notice: str = "",
) -> str:  # fmt: skip
    """The page on which one item is judged. Nothing in it tells which side is which, or a test item from another."""
    w, item = WORDS[language], task.item
    criterion = criterion_of(item.source)
    answers = [(item.response_a, item.finished_a), (item.response_b, item.finished_b)]
    if task.swapped:
        answers.reverse()
    sections = guidelines(language)
    order = ["harmless", "helpful"] if criterion == "harmless" else ["helpful", "harmless"]
    shown = [
        (w[part], sections[part], progress.mine == 0 and part in (criterion, "both")) for part in (*order, "both")
    ]  # open for the first item alone
    return _TASK.render(
        w=w, other=other_language(language), name=name, progress=progress, notice=w.get(notice, ""), last=last,
        csrf=csrf, submission=submission, item=task.number, question=w[f"question_{criterion}" if criterion else "title"],
        guidelines=shown, prompt=item.prompt, roles=ROLES, longest=LONGEST_REASON,
        answers=[(w[place], *answer) for place, answer in zip(("first", "second"), answers, strict=True)],
    )  # fmt: skip


def done_page(
    *, language: Language, name: str, progress: Progress, last: int | None, csrf: str, notice: str = ""
) -> str:
    """Nothing is left."""
    w = WORDS[language]
    return _DONE.render(
        w=w,
        other=other_language(language),
        name=name,
        progress=progress,
        notice=w.get(notice, ""),
        last=last,
        csrf=csrf,
    )


def message_page(message: str, language: Language, back: str = "") -> str:
    """A refusal: ``message`` is a key of WORDS."""
    w = WORDS[language]
    return _MESSAGE.render(w=w, message=w[message], back=back)
