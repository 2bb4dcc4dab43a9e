"""What README says must stay true: the table of details, the links, the names that Python code uses."""

from __future__ import annotations

import re
from pathlib import Path

import ppomax
from ppomax.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_table_of_details_is_the_commands(capsys: object) -> None:
    assert main(["details", "--markdown"]) == 0
    printed = capsys.readouterr().out  # type: ignore[attr-defined]
    table = printed.split("\n\n")[0].strip()
    assert table.startswith("| # | detail |") and table in README


def test_local_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_names_in_the_python_example_exist() -> None:
    for names in re.findall(r"from ppomax import (.+)", README):
        for name in names.split(","):
            assert hasattr(ppomax, name.strip())
