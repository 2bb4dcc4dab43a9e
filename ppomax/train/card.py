"""The model card of a trained model: what it came from, what it was trained on, what it scored, its settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from ppomax import __version__
from ppomax.config import RunConfig
from ppomax.data.records import Record
from ppomax.options import dump_yaml

Rows = Mapping[str, Mapping[str, float | int | str | None]]
"""a table: row name -> column name -> cell"""


def fingerprint(records: Sequence[Record]) -> str:
    """12 hex digits that change with the text or the order of the records, wherever they were read from."""
    digest = hashlib.blake2b(digest_size=6)
    for record in records:
        fields = {k: v for k, v in vars(record).items() if k not in ("source", "origin")}
        digest.update(repr((type(record).__name__, fields)).encode())
    return digest.hexdigest()


def table(rows: Rows) -> str:
    """Markdown table; columns in order of first appearance, empty cells where a row lacks one."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(_cell(row.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def _cell(value: float | int | str | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def model_card(
    *,
    title: str,
    summary: str,
    stage: str,
    task: str,
    base: str,
    data: Sequence[str],
    results: Mapping[str, Rows],
    config: RunConfig,
) -> str:
    """README.md of ``final/``: ``task`` is a Hugging Face pipeline tag, ``data`` what the load reports say."""
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags: [ppomax, {stage}]\n---",
        f"# {title}",
        f"{summary} Started from `{base}`; made with ppomax {__version__}.",
        "## Data\n\n" + "\n".join(f"- {line}" for line in data),
    ]
    parts += [f"## {name}\n\n{table(rows)}" for name, rows in results.items() if rows]
    parts.append(f"## Settings\n\n```yaml\n{dump_yaml(config).strip()}\n```")
    return "\n\n".join(parts) + "\n"
