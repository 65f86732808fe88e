"""Names the stages of further rounds of drafts."""

from __future__ import annotations

from defectory.config.project import ProjectConfig

PREFIX = "round-"


def round_name(number: int) -> str:
    """Return the name of the stage of a further round, from 2."""
    return f"{PREFIX}{number}"


def is_round(name: str) -> bool:
    """Return whether a stage is a further round."""
    return name.startswith(PREFIX)


def further_rounds(config: ProjectConfig, *, before: int | None = None) -> tuple[str, ...]:
    """Return the names of the stages of further rounds, in order.

    Args:
        config: of the project.
        before: only rounds before this one; None for all.
    """
    return tuple(round_name(number) for number in range(2, before or config.synthesis.rounds + 1))
