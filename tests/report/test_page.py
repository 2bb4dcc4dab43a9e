"""The page of a PPO run: complete in itself, and hostile text stays text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

from ppomax.report.page import ppo_page

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"' {{ 7 * 7 }} \x00 你好"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def write(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_page_is_self_contained_and_escapes_everything(tmp_path: Path) -> None:
    metrics = [
        {"iteration": i, "phase": "critic" if i == 0 else "policy", "update": 4 * i, "reward/mean": 0.1 * i, "kl/ref": 0.0,
         "response/length": 9.0, "policy/perplexity": 3.0, "time/total": 60.0}
        for i in range(4)
    ]  # fmt: skip
    write(tmp_path / "metrics.jsonl", metrics)
    samples = [
        {"iteration": i, "update": 4 * i, "prompt": [{"role": "user", "content": HOSTILE}], "response": f"{HOSTILE} {i}",
         "score": 0.5 * i, "kl": 0.1, "length": 3, "finished": True}
        for i in (0, 3)
    ]  # fmt: skip
    write(tmp_path / "samples.jsonl", samples)
    write(tmp_path / "alarms.jsonl", [{"iteration": 3, "level": "collapse", "message": HOSTILE}])
    (tmp_path / "config.yaml").write_text(f"model: '{HOSTILE[:20]}'\n", encoding="utf-8")
    page = ppo_page(tmp_path)
    tags = Tags()
    tags.feed(page)
    names = [name for name, _ in tags.seen]
    assert "script" not in names
    assert all(not key.startswith("on") for _, attrs in tags.seen for key in attrs)
    sources = [attrs["src"] for name, attrs in tags.seen if name == "img"]
    assert len(sources) == 2 and all(s is not None and s.startswith("data:image/png;base64,") for s in sources)
    assert "{{ 7 * 7 }}" in page and "49" not in page.split("</style>")[1].split("<img")[0]
    assert "http://" not in page and "https://" not in page
    assert "3 iterations, 12 policy updates, 1 iterations of critic pre-training, 4.0 minutes" in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4, "alarm, prompt, both answers"
    assert len(page) < 5_000_000


def test_page_of_a_run_without_samples(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [{"iteration": 0, "phase": "critic", "update": 0, "time/total": 1.0}])
    (tmp_path / "config.yaml").write_text("model: m\n", encoding="utf-8")
    assert "0 iterations, 0 policy updates" in ppo_page(tmp_path)
