"""The page of a study, as plain values, and its rendering as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from defectory.files import write_text
from defectory.report.content import Outcome, Table
from defectory.report.page import VERDICT_CLASSES, environment


@dataclass(frozen=True, kw_only=True)
class Section:
    """One point of a study: its verdict, its ladder and its tables.

    Attributes:
        title: of the point.
        outcome: its verdict; None until a seed is complete.
        charts: SVG elements.
        tables: scores, gains, figures of images.
        note: how much of it is finished.
    """

    title: str
    outcome: Outcome | None
    charts: Sequence[str]
    tables: Sequence[Table]
    note: str


@dataclass(frozen=True, kw_only=True)
class StudyContent:
    """The whole content of a study's page, in display order."""

    title: str
    summary: str
    facts: Sequence[tuple[str, str]]
    remarks: Sequence[str]
    curves: Sequence[str]
    """SVG elements of the curves over the amount of labelled images."""
    sections: Sequence[Section]


def write_study_page(content: StudyContent, path: Path) -> None:
    """Write the page atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    page = environment().get_template("study.html.jinja")
    write_text(path, page.render(content=content, verdict_class=_verdict_class, svg=Markup))


def _verdict_class(outcome: Outcome) -> str:
    return VERDICT_CLASSES.get(outcome.outcome, "open")
