"""Line charts as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from defectory.report.content import Chart, escape

WIDTH, HEIGHT = 460, 268
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 26, 66
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, told apart by most people with a colour-vision deficiency."""
DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3", "10 2")


def line_chart(chart: Chart) -> str:
    """Return a chart as an SVG element; points that are not finite are left out."""
    curves = [(c.name, [(x, y) for x, y in c.points if math.isfinite(x) and math.isfinite(y)]) for c in chart.curves]
    points = [point for _, line in curves for point in line]
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title, quote=True)}">',
        f'<text x="{LEFT}" y="16" class="chart-title">{escape(chart.title)}</text>',
    ]
    if not points:
        parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no data</text></svg>')
        return "".join(parts)
    x_low, x_high = _range([x for x, _ in points])
    y_low, y_high = _range([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    for value in ticks(y_low, y_high):
        _, y = place(x_low, value)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" class="grid-line"/><text x="{LEFT - 6}" y="{y + 4:.1f}" '
            f'text-anchor="end">{_number(value)}</text>'
        )
    for value in ticks(x_low, x_high):
        x, _ = place(value, y_low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_number(value)}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - BOTTOM + 32}" '
        f'text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(chart.y_label)}</text>'
    )
    for index, (name, line) in enumerate(curves):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        placed = [place(x, y) for x, y in thin(line)]
        if len(placed) == 1:
            parts.append(f'<circle cx="{placed[0][0]:.1f}" cy="{placed[0][1]:.1f}" r="3" fill="{colour}"/>')
        elif placed:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
            parts.append(
                f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dash}"/>'
            )
        x = LEFT + (index % 3) * 132
        y = HEIGHT - 16 + (index // 3) * 13
        parts.append(
            f'<path d="M{x} {y - 4}h20" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/><text '
            f'x="{x + 25}" y="{y}">{escape(name)}</text>'
        )
    parts.append("</svg>")
    return "".join(parts)


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


def ticks(low: float, high: float) -> list[float]:
    """Return round values within a range, three to seven of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= 6:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-12:
        margin = abs(low) * 0.1 or 1.0
        return low - margin, high + margin
    margin = (high - low) * 0.04
    return (0.0 if 0 <= low < margin * 8 else low - margin), high + margin


def _number(value: float) -> str:
    return f"{value:g}"
