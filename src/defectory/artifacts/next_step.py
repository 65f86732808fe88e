"""What to do after a run: one step with its reason, its command and its expected duration."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from defectory.artifacts.value import Value


class NextStep(Value):
    """One thing to do next."""

    title: str
    why: str
    """One or two sentences."""
    verb: str = "run"
    settings: dict[str, Any] = Field(default_factory=dict)
    """Values by dotted key that the command changes."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the verb."""
    command: str
    """The whole command, for a POSIX shell."""
    seconds: float | None = None
    """Expected duration, from the times that the run's stages took; None if it is not known."""
