from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from defectory.cli.main import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The one line an error may print."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0]


@pytest.fixture
def defectory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line in this process."""

    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["defectory", *(str(arg) for arg in args)])
        capsys.readouterr()
        try:
            main()
            code: object = 0
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return Outcome(
            code=code if isinstance(code, int) else int(code is not None), out=captured.out, err=captured.err
        )

    return run
