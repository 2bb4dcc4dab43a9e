"""What all pages share: head and style, the one script, figures that lie within the page.

A page opens from disk and asks no network for anything: its content security policy forbids all but its own style,
images within the page, and a script of exactly the text below. What models and data wrote is untrusted: every value goes
through `visible` and jinja's escaping.
"""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import matplotlib
from jinja2 import Environment
from markupsafe import Markup
from matplotlib import font_manager

from ppomax.report.figures import Files
from ppomax.report.text import language, visible

Draw = Callable[[Files], None]
"""draws one figure into a file, PNG or SVG by its suffix, or into several"""
LARGEST_SVG = 200_000
"""bytes; a figure with more (thousands of points) goes into a page as PNG"""
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei", "SimHei")
"""for Chinese names in PNG files, where one is installed; within a page the browser brings its own"""

HTML = Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True,
    finalize=lambda value: visible(value) if type(value) is str else value,
)  # fmt: skip

SCRIPT = """
for (const list of document.querySelectorAll("[data-search]")) {
  const box = list.querySelector(".search");
  const field = box.querySelector("input");
  const told = box.querySelector("output");
  const items = [...list.querySelectorAll("article")];
  const words_of = (item) => [...item.querySelectorAll(".name, .text, .about")].map((part) => part.textContent);
  const texts = items.map((item) => words_of(item).join(" ").toLowerCase());
  const search = () => {
    const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    items.forEach((item, i) => {
      item.hidden = !words.every((word) => texts[i].includes(word));
      shown += item.hidden ? 0 : 1;
    });
    told.textContent = words.length ? `${shown} of ${items.length}` : "";
  };
  field.addEventListener("input", search);
  box.hidden = false;
}
"""
"""shows, of every list, the articles that hold all words of its search field; without it all are shown"""
_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
HEAD = (
    """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
script-src 'sha256-"""
    + _HASH
    + """'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1, h2 { line-height: 1.2; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
td, th { border: 1px solid #8886; padding: .4rem; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { hyphens: auto; }
.who { width: 6.5rem; }
td, .text { white-space: pre-wrap; }
.text { unicode-bidi: isolate; }
.wide { overflow-x: auto; margin: .8rem 0; }
article details { font-size: .85rem; }
article details table { width: auto; table-layout: auto; }
.wide table { min-width: calc(11rem + 8rem * var(--columns, 2)); }
img { max-width: 100%; height: auto; }
figure { margin: 0; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.grid > :only-child { max-width: 44rem; }
@media (prefers-color-scheme: dark) { img { filter: invert(1) hue-rotate(180deg); } }
pre { overflow-x: auto; background: #8882; padding: .6rem; white-space: pre-wrap; }
article { border-top: 1px solid #8886; padding: .6rem 0; }
article p { margin: .2rem 0 .6rem; }
[hidden] { display: none; }
.name { font-weight: 600; }
.more1 { background: #e69f0033; } .more2 { background: #e69f0077; } .more3 { background: #d55e0099; }
.less1 { background: #56b4e933; } .less2 { background: #56b4e977; } .less3 { background: #0072b299; }
.alarm { border-left: .4rem solid #8888; padding-left: .6rem; margin: .4rem 0; }
.alarm.warning { border-color: #e69f00; }
.alarm.collapse { border-color: #d55e00; }
.verdict { font-size: 1.1rem; }
input[type=search] { font: inherit; width: min(100%, 20rem); }
:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
</style></head><body>
<main>
<h1>{{ title }}</h1>
"""
)
"""beginning of every page; needs ``title``, and ``</main></body></html>`` at the end"""
WIDE = """\
{% macro wide(about, columns) %}
<div class="wide" tabindex="0" role="region" aria-label="{{ about }}" style="--columns: {{ columns }}"><table>
{{ caller() }}</table></div>
{% endmacro %}
"""
"""a table that scrolls sideways where it must, with the keys too: ``{% call wide(what it holds, columns of values) %}``"""
FIGURES = """\
{% for figure in figures %}<h2>{{ figure.title }}</h2>
<div class="grid">{% for picture in figure.pictures %}
<figure><img alt="{{ picture.about }}" src="{{ picture.source }}"></figure>
{% endfor %}</div>
{% if figure.caption %}<p>{{ figure.caption }}</p>
{% endif %}
{% endfor %}
"""
"""needs ``figures``: `Figures`, what `embedded` makes, or what `budget.fit_pictures` leaves of them"""


@dataclass(frozen=True)
class Picture:
    """One image of a page."""

    name: str
    """of its files"""
    about: str
    """what it shows, for those who do not see it"""
    draw: Draw

    @cached_property
    def svg(self) -> bytes:
        """Sharp at every width, and with the fonts of whoever reads it."""
        data = re.sub(rb"<metadata>.*?</metadata>", b"", self._file("figure.svg"), flags=re.DOTALL)
        return re.sub(rb' d="[^"]*"', lambda path: re.sub(rb"(\.\d\d)\d+", rb"\1", path[0]), data)  # 0.01 pt is enough

    @cached_property
    def png(self) -> bytes:
        return self._file("figure.png")

    def _file(self, name: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder, _for_pages():
            file = Path(folder) / name
            self.draw(file)
            return file.read_bytes()

    @property
    def source(self) -> str:
        """Data URL: of the SVG, unless it is large."""
        return data_url(self.svg, "svg+xml") if len(self.svg) <= LARGEST_SVG else data_url(self.png, "png")


def data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Figures:
    """Pictures under one heading; ``whole`` draws them all into one file, where there are many."""

    name: str
    title: str
    pictures: Sequence[Picture]
    caption: str = ""
    whole: Draw | None = field(default=None)

    def save(self, folder: Path, taken: set[str]) -> list[Path]:
        """PNG and SVG files: one of the whole, or one a picture. Names that are ``taken`` get a number, and join them."""
        drawn = [(self.name, self.whole)] if self.whole else [(p.name, p.draw) for p in self.pictures]
        files = []
        for name, draw in drawn:
            plain = stem = re.sub(r"[^\w.-]+", "_", name)
            again = 2
            while stem.casefold() in taken:  # runs may be called `a b` and `a+b`
                stem, again = f"{plain}_{again}", again + 1
            taken.add(stem.casefold())
            both = [folder / f"{stem}.{suffix}" for suffix in ("png", "svg")]
            with _fonts():
                draw(both)
            files += both
        return files


def embedded(title: str, draw: Draw, caption: str = "") -> Figures:
    """A single picture under a heading."""
    return Figures(title, title, [Picture(title, title, draw)], caption)


@contextmanager
def _fonts() -> Iterator[None]:
    """Chinese in names where there is a font for it; where there is none, boxes and no warning for each character."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    family = ["DejaVu Sans", *(name for name in CJK_FONTS if name in installed)]
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rc("font", family=family)
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        yield


@contextmanager
def _for_pages() -> Iterator[None]:
    """No background of its own, so that dark pages stay dark; text as text; the same file for the same numbers."""
    with _fonts():
        matplotlib.rc("savefig", transparent=True)
        matplotlib.rc("svg", fonttype="none", hashsalt="ppomax")
        yield


def code(text: str) -> Markup:
    """Markdown's backticks as HTML: sentences are shared with pages in Markdown."""
    parts = [Markup.escape(visible(part)) for part in text.split("`")]
    out = Markup("")
    for i, part in enumerate(parts):
        closed = i % 2 and i < len(parts) - 1
        out += Markup("<code>{}</code>").format(part) if closed else part
    return out


def lang(text: str) -> Markup:
    """A ``lang`` attribute for text that is in another language than the page, where its script tells which."""
    found = language(text)
    return Markup(' lang="{}"').format(found) if found else Markup("")


HTML.filters["code"] = code
HTML.filters["lang"] = lang
