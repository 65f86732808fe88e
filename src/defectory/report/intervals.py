"""Draws figures with their intervals: a row for each rung of a ladder, or curves over the amount of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from defectory.report.charts import COLOURS, DASHES, INK, svg_element
from defectory.terminal import printable

ROW_PX, AROUND_PX, WIDTH_PX = 26, 96, 560
MIN_SPAN = 0.1
"""Of the axis of scores: what one more seed changes must not look like much."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A figure with its interval and the figures that it is the mean of.

    Attributes:
        name: of the row.
        mean: the figure.
        interval: its interval; None if it is not known.
        single: figures of single seeds.
        group: rows of one group have one colour.
        x: place on the axis across, for curves.
    """

    name: str
    mean: float
    interval: tuple[float, float] | None
    single: Sequence[float] = ()
    group: str = ""
    x: float = 0.0


def ladder_chart(title: str, label: str, bars: Sequence[Bar], *, level: float | None = None) -> str:
    """Draw a row for each figure: its mean, its interval as a line, single seeds as small dots.

    Args:
        title: of the chart.
        label: of the axis.
        bars: from top to bottom.
        level: draws a line across all rows, for the figure that others are compared with.
    """
    groups = list(dict.fromkeys(bar.group for bar in bars))
    colour_of = dict(zip(groups, cycle(COLOURS), strict=False))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot(title=printable(title), xlabel=printable(label))
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        for row, bar in enumerate(bars):
            colour = colour_of[bar.group]
            if bar.interval is not None:
                axes.plot(bar.interval, (row, row), color=colour, solid_capstyle="butt", linewidth=2.2)
            for single in bar.single if len(bar.single) > 1 else ():
                _dot(axes, single, row + 0.26, colour=colour, size=3.5)
            _dot(axes, bar.mean, row, colour=colour, size=9)
        if level is not None:
            axes.axvline(level, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(bars)), [printable(bar.name) for bar in bars])
        axes.set_ylim(len(bars) - 0.4, -0.6)
        low, high = axes.get_xlim()
        if high - low < MIN_SPAN:
            low = max(0.0, (low + high - MIN_SPAN) / 2)
            axes.set_xlim(low, low + MIN_SPAN)

    return svg_element(title, draw, size_px=(WIDTH_PX, AROUND_PX + ROW_PX * max(1, len(bars))))


def amount_chart(title: str, x_label: str, y_label: str, curves: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Draw a curve with intervals for each series over the amount of labelled images, on a logarithmic axis.

    Args:
        title: of the chart.
        x_label: of the axis across.
        y_label: of the axis up.
        curves: name and figures of each, ascending in `x`.
    """
    ticks = sorted({bar.x for _, bars in curves for bar in bars})

    def draw(figure: Any) -> None:
        axes = figure.add_subplot(title=printable(title), xlabel=printable(x_label), ylabel=printable(y_label))
        for number, ((name, bars), colour, dashes) in enumerate(
            zip(curves, cycle(COLOURS), cycle(DASHES), strict=False)
        ):
            # curves side by side, so that no interval hides another
            shift = 1.012 ** (number - (len(curves) - 1) / 2)
            xs, ys = [bar.x * shift for bar in bars], [bar.mean for bar in bars]
            axes.plot(xs, ys, color=colour, linestyle=dashes, label=printable(name))
            for x, bar in zip(xs, bars, strict=True):
                _dot(axes, x, bar.mean, colour=colour, size=7)
                if bar.interval is not None:
                    axes.plot((x, x), bar.interval, color=colour, linewidth=1.2, alpha=0.8)
        if ticks and ticks[0] > 0 and len(ticks) > 1:
            axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        figure.legend(loc="outside lower left", ncols=3, frameon=False, handlelength=2.4)

    return svg_element(title, draw, size_px=(WIDTH_PX, 320))


def _dot(axes: Any, x: float, y: float, *, colour: str, size: float) -> None:
    # matplotlib draws markers through definitions, which elements of a page do not have
    axes.plot((x, x), (y, y), color=colour, solid_capstyle="round", linewidth=size)
