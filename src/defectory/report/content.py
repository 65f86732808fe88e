"""Defines the content of a report page as plain values, and escapes texts for HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.next_step import NextStep
from defectory.terminal import printable

Image = NDArray[np.uint8]


def escape(text: object, *, quote: bool = True) -> str:
    """Escape a text for a page: its markup, and control and direction characters."""
    return html.escape(printable(text), quote=quote)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The verdict (`use it`, `no worse and no better`, `do not use it` or `not enough evidence`) and the reason in one
    sentence.
    """

    outcome: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts; the first column is left-aligned, the others right-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points (x, y) of one line."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A line chart."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A picture, RGB uint8 [H,W,3], with a caption."""

    image: Image
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows of pictures, each row with a name."""

    title: str
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A way in which synthesis can fail.

    Attributes:
        name: of the failure, unique on the page.
        detected: whether it was detected; None if unknown.
        figure: the figure that decides and its limit, or why nothing is known; short, for the first screen.
        evidence: all figures.
        advice: what to do about it, with commands between backticks.
    """

    name: str
    detected: bool | None
    figure: str
    evidence: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """The whole content of a page, in display order.

    Attributes:
        use: what to use, a sentence or two each, with commands and names of folders between backticks.
        project_file: name of the file in whose folder the commands of the next steps work.
        red_flags: those of `signatures` that belong on the first screen.
        figures: charts of the scores, as SVG elements.
        made: what the run cost, and what it takes to make it again.
    """

    title: str
    outcome: Outcome
    use: Sequence[str]
    next_steps: Sequence[NextStep]
    project_file: str
    red_flags: Sequence[Signature]
    facts: Sequence[tuple[str, str]]
    figures: Sequence[str]
    scores: Sequence[Table]
    grids: Sequence[Grid]
    signatures: Sequence[Signature]
    measures: Sequence[Table]
    charts: Sequence[Chart]
    made: Sequence[Table]
    appendix: Sequence[Table]
