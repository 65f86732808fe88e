"""Make the reference pages: one per package, and one line per file, read from docstrings; nothing is imported."""

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
    pages.append(("every file", map_of_files()))
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    del reference[1:]
    for name, text in pages:
        uri = f"reference/{name.replace(' ', '-')}.md"
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


def map_of_files() -> str:
    """Return the Markdown of a page with the first line of every file's docstring, folder by folder."""
    parts = ["# Every file", "What each file is for, in its own words: where to look, and where to change something."]
    for folder in [SOURCE, *sorted(path for path in SOURCE.rglob("*") if (path / "__init__.py").is_file())]:
        name = folder.relative_to(SOURCE.parent).as_posix()
        rows = [
            f"| `{path.name}` | {first_line(path)} |"
            for path in sorted(folder.glob("*.py"))
            if path.stem not in ("__init__", "__main__")
        ]
        about = "Foundations." if folder == SOURCE else first_line(folder / "__init__.py")
        parts += [f"## {name}", about, "\n".join(["| file | what it is for |", "|---|---|", *rows])] if rows else []
    return "\n\n".join(parts) + "\n"


def first_line(path: Path) -> str:
    """Return the first line of a file's docstring, safe in a table."""
    text = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def page(title: str, text: str, modules: list[str]) -> str:
    """Return the Markdown of a page that describes modules."""
    return "\n\n".join([f"# {title}", text, *(f"::: {name}" for name in modules)]) + "\n"
