"""Finished stages that took long are not run again unasked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from defectory.api.project import Project
from defectory.cli import options
from defectory.events import Event, StageEnded
from defectory.runs.graph import State

Cli = Callable[..., Any]
STALE = State(stage="learn-concept", state="to be run again", why="concept.training.num_steps changed", seconds=3700.0)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A project in the current folder; which of its stages were started."""
    started: list[str] = []

    def events(self: Project, **_: object) -> list[Event]:
        started.append(self.config.name)
        return [StageEnded(stage="learn-concept", seconds=1.0, skipped=False, summary="done")]

    (tmp_path / "project.toml").write_text('name = "vanes"\ndevice = "cpu"\n[data]\npath = "labels.json"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Project, "events", events)
    return started


@pytest.mark.parametrize(
    ("seconds", "yes", "asks"), [(3700.0, False, True), (59.0, False, False), (3700.0, True, False)]
)
def test_without_a_terminal_a_long_finished_stage_is_replaced_only_with_yes(
    defectory: Cli, ran: list[str], monkeypatch: pytest.MonkeyPatch, seconds: float, yes: bool, asks: bool
) -> None:
    monkeypatch.setattr(Project, "states", lambda _: {"learn-concept": replace(STALE, seconds=seconds)})
    monkeypatch.setattr(Project, "stages", lambda _, **__: ["learn-concept"])
    outcome = defectory("run", *(["--yes"] if yes else []))
    if asks:
        assert outcome.code == 2
        assert "finished stages would run again: learn-concept (1 h" in outcome.error_line
        assert "concept.training.num_steps changed; pass --yes, or set another `out`" in outcome.error_line
    else:
        assert outcome.code == 0
    assert ran == ([] if asks else ["vanes"])


@pytest.mark.parametrize("answer", [True, False])
def test_at_a_terminal_the_answer_decides(
    defectory: Cli, ran: list[str], monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    monkeypatch.setattr(Project, "states", lambda _: {"learn-concept": STALE})
    monkeypatch.setattr(Project, "stages", lambda _, **__: ["learn-concept"])
    monkeypatch.setattr(options.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(options.typer, "confirm", lambda _: answer)
    outcome = defectory("run")
    assert ran == (["vanes"] if answer else [])
    assert (outcome.code == 0) == answer
    if not answer:
        assert "stopped; nothing was changed" in outcome.err
