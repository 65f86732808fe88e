"""Doors and benches that run projects know the public API, and nothing behind it."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOR_DOORS = {"api", "errors", "events", "files", "folders", "images", "launch", "memory", "studies", "terminal"}
"""What doors may import beside themselves."""
BENCHES = sorted((ROOT / "bench").glob("*.py"))


def test_the_contract_of_doors_forbids_every_other_module() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [of for of in settings if of.get("source_modules") == ["defectory.cli"]]
    package = ROOT / "src" / "defectory"
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("__")}
    modules |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert modules > FOR_DOORS
    assert set(contract["forbidden_modules"]) == {f"defectory.{name}" for name in modules - FOR_DOORS - {"cli"}}
    assert contract["type"] == "forbidden"


@pytest.mark.parametrize("bench", BENCHES, ids=[path.stem for path in BENCHES])
def test_a_bench_runs_projects_through_the_public_api(bench: Path) -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(bench.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    behind = ("defectory.runs.", "defectory.config.", "defectory.stages.all.run_all")
    assert not [name for name in imported if name.startswith(behind)]
