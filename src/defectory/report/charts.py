"""Draws line charts with matplotlib as inline SVG, in the colours of the page's light and dark style."""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from defectory.report.content import Chart, escape
from defectory.terminal import printable

SIZE_PX = (460, 268)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, which most people with a colour-vision deficiency can tell apart."""
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)), (0, (1, 3)), (0, (7, 1.5)))
INK, LINE = "#010203", "#040506"
"""Placeholders for the page's colours of text and lines, which matplotlib cannot name."""
STYLE = {
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "grid.color": LINE,
    "legend.fontsize": 11,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "defectory",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "xtick.labelsize": 11,
    "xtick.major.size": 0,
    "ytick.color": INK,
    "ytick.labelsize": 11,
    "ytick.major.size": 0,
}


def line_chart(chart: Chart) -> str:
    """Draw a chart as an SVG element; points that are not finite are left out. Equal charts give equal text."""
    curves = [(c.name, [(x, y) for x, y in c.points if math.isfinite(x) and math.isfinite(y)]) for c in chart.curves]

    def draw(figure: Any) -> None:
        from matplotlib.lines import Line2D

        title, across, up = (printable(text) for text in (chart.title, chart.x_label, chart.y_label))
        axes = figure.add_subplot(title=title, xlabel=across, ylabel=up)
        handles: list[Any] = []
        for (_, points), colour, dashes in zip(curves, cycle(COLOURS), cycle(DASHES), strict=False):
            line: dict[str, Any] = (
                {"solid_capstyle": "round", "linewidth": 6} if len(points) == 1 else {"linestyle": dashes}
            )
            drawn = [*points, *points] if len(points) == 1 else thin(points)
            axes.plot([x for x, _ in drawn], [y for _, y in drawn], color=colour, **line)
            handles.append(Line2D([], [], color=colour, linestyle=dashes))
        if any(points for _, points in curves):
            names = [printable(name) for name, _ in curves]
            figure.legend(handles, names, loc="outside lower left", ncols=3, frameon=False, handlelength=2.4)
        else:
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "no data", ha="center", transform=axes.transAxes)

    return svg_element(chart.title, draw)


def svg_element(title: str, draw: Callable[[Any], None], *, size_px: tuple[int, int] = SIZE_PX) -> str:
    """Draw a matplotlib figure as an SVG element of a page, in the page's colours and font.

    Args:
        title: for readers of the screen.
        draw: draws on the figure.
        size_px: width and height.
    """
    stream = io.StringIO()
    with _matplotlib():
        from matplotlib import style
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        with style.context(["default", STYLE]):
            # matplotlib writes 72 SVG units per inch
            figure = Figure(figsize=(size_px[0] / 72, size_px[1] / 72), layout="constrained")
            draw(figure)
            FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None, "Format": None})
    return _for_page(stream.getvalue(), title, size_px)


def svg_file(element: str) -> str:
    """Return the text of an SVG file of an element of a page, with colours of its own."""
    text = element.replace("currentColor", "#222222").replace("var(--line)", "#cccccc")
    return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _for_page(svg: str, title: str, size_px: tuple[int, int]) -> str:
    """Reduce an SVG file to an element of a page, in the page's colours and font.

    The result defines no ids and no style sheet, so that charts of one page cannot affect each other. Clip paths are
    not needed, since no line leaves its axes.
    """
    svg = re.sub(r"<(metadata|defs)>.*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<[^<>]*>", lambda tag: _tag_for_page(tag[0]), svg)
    opening = f'<svg class="chart" viewBox="0 0 {size_px[0]} {size_px[1]}" role="img" aria-label="{escape(title)}">'
    return opening + re.sub(r">\s+<", "><", svg[svg.index(">") + 1 :]).strip()


def _tag_for_page(tag: str) -> str:
    tag = re.sub(r' (id|clip-path)="[^"]*"', "", tag)
    tag = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"(\.\d)\d+", r"\1", " ".join(path[0].split())), tag)
    return tag.replace("'DejaVu Sans'", "system-ui").replace(INK, "currentColor").replace(LINE, "var(--line)")


@contextmanager
def _matplotlib() -> Generator[None]:
    """Keep matplotlib's font list in a temporary folder meanwhile, unless the user has a matplotlib folder."""
    own = (Path.home() / folder / "matplotlib" for folder in (".config", ".cache", ".matplotlib"))
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ or any(folder.is_dir() for folder in own):
        yield
        return
    with TemporaryDirectory() as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            yield
        finally:
            del os.environ["MPLCONFIGDIR"]


def smooth(values: Sequence[float], window: int) -> list[tuple[float, float]]:
    """Return (step, mean of the last `window` values), steps counted from 1."""
    result: list[tuple[float, float]] = []
    total = 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        result.append((index + 1.0, total / min(index + 1, window)))
    return result


def thin(line: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """Return at most about `most` of the points, first and last among them."""
    step = max(1, len(line) // most)
    kept = list(line[::step])
    return kept if not line or kept[-1] == line[-1] else [*kept, line[-1]]
