"""Documentation and messages name settings that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from defectory.config.resolve import defaults

ROOT = Path(__file__).parents[2]
KEYS = set(defaults())
SECTIONS = {key.rpartition(".")[0] for key in KEYS} - {""}
NAMED = re.compile(rf"(?<![\w./])(?:{'|'.join(sorted({s.split('.')[0] for s in SECTIONS}))})(?:\.[a-z_]+)+(?![\w./(*])")
FILES = {".md", ".png", ".jpg", ".yaml", ".yml", ".json", ".xml", ".py", ".csv", ".jinja"}
PAST = ("docs/results", "docs/decisions")
"""Records of what was true on their day."""


def unknown(text: str) -> Iterator[str]:
    for found in NAMED.findall(text):
        if found not in KEYS | SECTIONS and Path(found).suffix not in FILES:
            yield found


def test_the_documentation_names_settings_that_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    pages = [page for page in pages if not page.relative_to(ROOT).as_posix().startswith(PAST)]
    assert len(pages) > 15
    wrong = [(page.name, key) for page in pages for key in unknown(page.read_text(encoding="utf-8"))]
    assert not wrong


def test_messages_name_settings_that_exist() -> None:
    wrong: list[tuple[str, str]] = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                wrong += [(file.name, key) for key in unknown(node.value)]
    assert not wrong
