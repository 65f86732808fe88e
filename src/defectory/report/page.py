"""Renders a report's content as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as Pillow

from defectory.files import write_text
from defectory.report.charts import line_chart
from defectory.report.content import Cell, Grid, Image, ReportContent, Signature, Table, escape

JPEG_QUALITY = 90
OUTCOME_CLASSES = {"use it": "good", "do not use it": "bad"}
STYLE = """

:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#d6dce4;--back:#fff;--panel:#f4f6f9;--good:#1a7f4b;
--bad:#b3261e;--open:#8a5a00}

@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b5;--line:#3a4452;--back:#12161c;--panel:#1b2129;
--good:#5fcf95;--bad:#ff8a80;--open:#f0b95a}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:1120px;margin:0 auto;
padding:24px}
h1{font-size:24px;margin:0 0 4px}
h2{font-size:19px;margin:36px 0 8px;border-bottom:1px solid var(--line);padding-bottom:4px}
h3{font-size:15px;margin:20px 0 6px}
.verdict{border-left:6px solid var(--open);background:var(--panel);padding:14px 18px;margin:14px 0;font-size:17px}
.verdict.good{border-color:var(--good)}.verdict.bad{border-color:var(--bad)}
.verdict b{display:block;font-size:21px;text-transform:capitalize}
.note{color:var(--soft);margin:4px 0 8px}
table{border-collapse:collapse;margin:4px 0 12px;font-variant-numeric:tabular-nums}
th,td{padding:4px 12px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left;padding-left:0}th{font-weight:600}
.facts{display:flex;flex-wrap:wrap;gap:8px 28px;margin:10px 0}.facts span{color:var(--soft)}.scroll{overflow-x:auto}
.row{display:flex;gap:6px;margin:0 0 6px;align-items:flex-start}
.row>div:first-child{flex:0 0 92px;color:var(--soft);font-size:13px}
figure{margin:0;flex:0 1 128px;min-width:64px}
figure img{width:100%;display:block;image-rendering:auto;border-radius:2px}
figcaption{font-size:11px;line-height:1.25;color:var(--soft);overflow-wrap:anywhere}
.charts{display:flex;flex-wrap:wrap;gap:12px}
.chart{flex:1 1 440px;max-width:540px;background:var(--panel);font-size:11px}.chart text{fill:var(--ink)}
.chart-title{font-size:13px;font-weight:600}.grid-line{stroke:var(--line);fill:none}
.yes{color:var(--bad);font-weight:600}.no{color:var(--good)}.unknown{color:var(--open)}details{margin:8px 0}
summary{cursor:pointer}
th.text,td.text{text-align:left;overflow-wrap:anywhere}@media print{body{max-width:none}h2{break-after:avoid}
.row,table{break-inside:avoid}}
"""


def render_report(content: ReportContent) -> str:
    """Return the page as HTML text, everything it shows inside it."""
    outcome = OUTCOME_CLASSES.get(content.outcome.outcome, "open")
    facts = "".join(f"<div><span>{escape(name)}</span> {escape(value)}</div>" for name, value in content.facts)
    body = [
        f"<h1>{escape(content.title)}</h1>",
        '<div class="verdict '
        f'{outcome}"><b>{escape(content.outcome.outcome)}</b>{escape(content.outcome.sentence)}</div>',
        f'<div class="facts">{facts}</div>',
        *(_table(table) for table in content.scores),
        "<h2>Pictures</h2>",
        *(_grid(grid) for grid in content.grids),
        "<h2>What can go wrong, and whether it did</h2>",
        _signatures(content.signatures),
        "<h2>Measures of the synthetic set</h2>",
        *(_table(table) for table in content.measures),
        "<h2>Training</h2>",
        f'<div class="charts">{"".join(line_chart(chart) for chart in content.charts)}</div>',
        "<h2>How it was made</h2>",
        *(
            f"<details><summary>{escape(table.title)}</summary>{_table(table, heading=False)}</details>"
            for table in content.appendix
        ),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1">'
        f"<title>{escape(content.title)}</title><style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def write_report(content: ReportContent, path: Path) -> None:
    """Write the page atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, render_report(content))


def picture_uri(image: Image) -> str:
    """Return an image RGB uint8 [H,W,3] as a `data:` URI: PNG when small, JPEG otherwise."""
    stream = io.BytesIO()
    if image.shape[0] * image.shape[1] <= 160 * 160:
        Pillow.fromarray(image).save(stream, "PNG", optimize=True)
        kind = "png"
    else:
        Pillow.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _table(table: Table, *, heading: bool = True) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    title = f"<h3>{escape(table.title)}</h3>" if heading else ""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f'{title}{note}<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _figure(cell: Cell) -> str:
    caption = f"<figcaption>{escape(cell.caption)}</figcaption>" if cell.caption else ""
    return (
        f'<figure><img src="{picture_uri(cell.image)}" '
        f'alt="{escape(cell.caption or "picture", quote=True)}">{caption}</figure>'
    )


def _grid(grid: Grid) -> str:
    rows = "".join(
        f'<div class="row"><div>{escape(name)}</div>{"".join(_figure(cell) for cell in cells)}</div>'
        for name, cells in grid.rows
        if cells
    )
    note = f'<p class="note">{escape(grid.note)}</p>' if grid.note else ""
    return f"<h3>{escape(grid.title)}</h3>{note}{rows or '<p>none</p>'}"


def _with_code(text: str) -> str:
    """Escape a text, with what stands between backticks set as code."""
    return "".join(
        f"<code>{escape(part)}</code>" if index % 2 else escape(part) for index, part in enumerate(text.split("`"))
    )


def _signatures(signatures: Sequence[Signature]) -> str:
    words = {True: ("yes", "detected"), False: ("no", "not detected"), None: ("unknown", "cannot be told")}
    rows = "".join(
        f'<tr><td>{escape(s.name)}</td><td class="{words[s.detected][0]}">{words[s.detected][1]}</td>'
        f'<td class="text">{escape(s.evidence)}</td><td class="text">{_with_code(s.advice)}</td></tr>'
        for s in signatures
    )
    return (
        '<div class="scroll"><table><thead><tr><th>failure</th><th>found</th><th class="text">figures</th><th '
        f'class="text">what to do</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
