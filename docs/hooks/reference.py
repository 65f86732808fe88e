"""Make the reference pages: one per package of Defectory, read from docstrings without importing anything."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

SOURCE = Path(__file__).parents[2] / "src" / "defectory"
DOORS = {"cli", "__main__"}
"""Doors hold no functions to call; `--help` is their reference."""


def on_files(files: Files, config: Any) -> Files:
    """Add a page per package, one for the modules beside them, and list all of them in the navigation."""
    pages: list[tuple[str, str]] = []
    singles = [module_name(path) for path in sorted(SOURCE.glob("*.py")) if path.stem not in {*DOORS, "__init__"}]
    folders = sorted(p.parent for p in SOURCE.glob("*/__init__.py") if p.parent.name not in DOORS)
    for folder in folders:
        modules = [module_name(path) for path in sorted(folder.rglob("*.py")) if path.stem != "__init__"]
        pages.append((folder.name, page(f"defectory.{folder.name}", summary(folder / "__init__.py"), modules)))
    pages.append(("foundations", page("Foundations", "Modules that need nothing but each other.", singles)))
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    del reference[1:]
    for name, text in pages:
        uri = f"reference/{name}.md"
        files.append(File.generated(config, uri, content=text))
        reference.append({name: uri})
    decisions = next(entry["Decisions"] for entry in config.nav if "Decisions" in entry)
    del decisions[1:]
    names = sorted(
        f.src_uri for f in files if f.src_uri.startswith("decisions/") and not f.src_uri.endswith("index.md")
    )
    decisions.extend(names)
    return files


def module_name(path: Path) -> str:
    """Return the dotted name of a module's file."""
    return ".".join(("defectory", *path.relative_to(SOURCE).with_suffix("").parts))


def summary(path: Path) -> str:
    """Return the docstring of a package's `__init__`."""
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""


def page(title: str, text: str, modules: list[str]) -> str:
    """Return the Markdown of a page that describes modules."""
    return "\n\n".join([f"# {title}", text, *(f"::: {name}" for name in modules)]) + "\n"
