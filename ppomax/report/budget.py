"""A page's bytes: it must open on a phone, so its texts and its pictures share one budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ppomax.report.frame import HTML, Figures, data_url

MOST_BYTES = 4_500_000
"""of a page, as UTF-8"""
MOST_TEXT = 2_000_000
"""of these, bytes of dialogues and pairs, with their marks; pictures get what all text leaves"""
ARTICLE = HTML.from_string("""\
<article>
{% for turn in item.turns %}<p><span class="name">{{ turn.role }}</span> \
<span class="text" dir="auto"{{ turn.content | lang }}>{{ turn.content }}</span></p>
{% endfor %}
<div class="grid">{% for answer in item.answers %}<div><span class="name">{{ answer.title }}</span>
<p class="text" dir="auto"{{ answer.text | lang }}>{% if shaded and answer.shades %}\
{% for text, shade in answer.shades %}{% if shade %}<span class="{{ shade }}">{{ text }}</span>\
{% else %}{{ text }}{% endif %}{% endfor %}{% else %}{{ answer.text }}{% endif %}</p><small class="about">{{ answer.numbers }}</small>
{% if shaded and answer.largest %}<details><summary>Tokens with the largest KL</summary><table>
<tr><th scope="col">token</th><th scope="col">nats</th></tr>
{% for token, kl in answer.largest %}<tr><td{{ token | lang }}>{{ token }}</td><td>{{ kl }}</td></tr>
{% endfor %}</table></details>
{% endif %}</div>
{% endfor %}</div>
{% if item.from %}<small class="about">{{ item.from }}</small>
{% endif %}</article>
""")
"""a dialogue with its answers, or a pair; tokens are marked by their KL where ``shaded``"""


@dataclass(frozen=True)
class Articles:
    """What of a list a page has room for."""

    shown: list[Markup]
    left_out: int
    plain: int
    """of those shown, how many had to do without the shades of their tokens"""

    @property
    def bytes(self) -> int:
        return sum(map(_size, self.shown))


def fit_articles(items: Sequence[Mapping[str, Any]], room: int) -> Articles:
    """As many as ``room`` bytes hold, in order; then, in order, as many with shaded tokens as there is room left."""
    kept: list[tuple[Mapping[str, Any], Markup]] = []
    for item in items:
        plain = Markup(ARTICLE.render(item=item, shaded=False))
        if _size(plain) <= room:
            room -= _size(plain)
            kept.append((item, plain))
    shown, without = [], 0
    for item, plain in kept:
        best = plain
        if any(answer.get("shades") for answer in item["answers"]):
            shaded = Markup(ARTICLE.render(item=item, shaded=True))
            if (more := _size(shaded) - _size(plain)) <= room:
                room -= more
                best = shaded
            else:
                without += 1
        shown.append(best)
    return Articles(shown, len(items) - len(shown), without)


def _size(text: str) -> int:
    return len(text.encode())


# ------------------------------------------------------------------------------------------ pictures


@dataclass(frozen=True)
class Drawn:
    """A picture as it stands in a page."""

    about: str
    source: str


@dataclass(frozen=True)
class DrawnFigures:
    """Those of its pictures that a page has room for."""

    title: str
    pictures: list[Drawn]
    caption: str


def fit_pictures(figures: Sequence[Figures], room: int, drawn: Callable[[], None] = lambda: None) -> list[DrawnFigures]:
    """In ``room`` bytes: as SVG, but the largest as PNG until all fit; where even so there is no room, those that show
    all runs at once come before those of a single run, and the captions tell how many are left out.

    ``drawn`` is called after each picture.
    """
    every = [(place, picture) for place, figure in enumerate(figures) for picture in figure.pictures]
    sources: list[str] = []
    for _, picture in every:
        sources.append(picture.source)
        drawn()
    for i in sorted(range(len(every)), key=lambda i: -len(sources[i])):
        if sum(map(len, sources)) <= room:
            break
        sources[i] = min(sources[i], data_url(every[i][1].png, "png"), key=len)
    kept: set[int] = set()
    for i in sorted(range(len(every)), key=lambda i: _of_one_run(figures[every[i][0]])):  # stable: else in their order
        if len(sources[i]) <= room:
            room -= len(sources[i])
            kept.add(i)
    out = []
    for place, figure in enumerate(figures):
        pictures = [
            Drawn(picture.about, sources[i]) for i, (at, picture) in enumerate(every) if at == place and i in kept
        ]
        missing = len(figure.pictures) - len(pictures)
        told = f"{missing} more pictures: a page of fewer runs has room for them." if missing else ""
        out.append(DrawnFigures(figure.title, pictures, " ".join(filter(None, [figure.caption, told]))))
    return out


def _of_one_run(figure: Figures) -> bool:
    return figure.whole is None and len(figure.pictures) > 1


def without_pictures(figures: Sequence[Figures]) -> list[DrawnFigures]:
    """The same, all pictures empty: what a page weighs besides them."""
    return [
        DrawnFigures(f.title, [Drawn(p.about, "") for p in f.pictures], f"{f.caption} {' ' * 100}") for f in figures
    ]
