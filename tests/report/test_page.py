from __future__ import annotations

import html
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from defectory.artifacts.next_step import NextStep
from defectory.report.charts import line_chart, smooth, thin
from defectory.report.content import Cell, Chart, Curve, Grid, Outcome, ReportContent, Signature, Table
from defectory.report.intervals import Bar, ladder_chart
from defectory.report.page import render_report

HOSTILE = '<script>alert("x")</script> & "quotes"'
VOID = {"meta", "img", "br"}
COMMAND = "defectory run 'my \"a\" <b>.toml' -o 'segmentation.seeds=[0,1,2]'"


def signature(name: str, *, detected: bool | None, figure: str = "0.4, limit 0.5", advice: str = "train") -> Signature:
    return Signature(name=name, detected=detected, figure=figure, evidence="0.4", advice=advice)


def step(title: str = "Train longer", *, command: str = COMMAND, seconds: float | None = 240.0) -> NextStep:
    return NextStep(title=title, why=f"Because {HOSTILE}.", command=command, seconds=seconds)


class Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def content(**changes: object) -> ReportContent:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    large = np.zeros((200, 300, 3), np.uint8)
    values: dict[str, object] = {
        "title": f"demo {HOSTILE}",
        "outcome": Outcome(outcome="do not use it", sentence=f"No gain {HOSTILE}"),
        "use": [f"Use `best_segmenter` {HOSTILE}."],
        "next_steps": [step()],
        "project_file": 'my "a" <b>.toml',
        "red_flags": [],
        "facts": [("train", "12 images")],
        "figures": [ladder_chart("Ladder", "segm mAP", [Bar(name=HOSTILE, mean=0.3, interval=(0.2, 0.4))])],
        "scores": [
            Table(title="Scores", columns=["arm", "mAP"], rows=[["real", "0.300"], [HOSTILE, "0.2"]], note="a note")
        ],
        "grids": [
            Grid(
                title="Pictures",
                rows=[("real", [Cell(image=image, caption=HOSTILE)]), ("large", [Cell(image=large)]), ("none", [])],
            )
        ],
        "signatures": [
            signature(name, detected=detected)
            for name, detected in (("control collapse", True), ("memorisation", False), ("driver leakage", None))
        ],
        "measures": [],
        "charts": [
            Chart(
                title="Loss", x_label="step", y_label="loss", curves=[Curve(name="train", points=[(1, 2.0), (2, 1.0)])]
            )
        ],
        "made": [Table(title="Cost", columns=["stage", "seconds"], rows=[["all", "7"]])],
        "appendix": [Table(title="Settings", columns=["key", "value"], rows=[["seed", "0"]])],
    }
    return ReportContent(**(values | changes))  # type: ignore[arg-type]


def test_the_page_is_balanced_self_contained_and_says_the_outcome_first() -> None:
    page = render_report(content())
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.images) == 2
    assert all(uri.startswith("data:image/") for uri in parser.images)
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "url(" not in page
    assert "http" not in page
    order = (
        "do not use it",
        ">What to use<",
        ">What to do next<",
        ">Red flags<",
        ">Key facts<",
        ">Scores<",
        ">Pictures<",
    )
    places = [page.index(text) for text in order]
    assert places == sorted(places)


def test_texts_are_escaped() -> None:
    page = render_report(content())
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert "Use <code>best_segmenter</code> &lt;" in page


def test_commands_in_advice_are_set_as_code() -> None:
    advice = f"run `defectory drivers tune {HOSTILE}`, then look"
    page = render_report(content(signatures=[signature("leak", detected=True, advice=advice)]))
    assert "run <code>defectory drivers tune &lt;" in page
    assert "</code>, then look</td>" in page
    assert "<script" not in page


def test_three_states_of_a_signature_are_told_apart() -> None:
    page = render_report(content())
    for words in ("detected", "not detected", "cannot be told"):
        assert f">{words}</td>" in page


def test_each_step_shows_its_reason_its_time_and_a_command_that_can_be_copied() -> None:
    page = render_report(content(next_steps=[step("One"), step("Two", seconds=None), step("Three", seconds=7200.0)]))
    found = [html.unescape(text) for text in re.findall(r"<pre><code>(.*?)</code></pre>", page)]
    assert found == [COMMAND] * 3
    for words in ("One", "takes about 4 min", "Two", "Three", "takes about 2.0 hours"):
        assert words in page
    assert page.count("the command takes") == 2
    assert "one command at a time" in page
    assert "<b>.toml" not in page


def test_a_setting_of_one_command_is_explained_only_where_a_command_has_one() -> None:
    assert "holds for that command alone" in render_report(content())
    assert "holds for that command alone" not in render_report(
        content(next_steps=[step(command="defectory export p.toml")])
    )


def test_a_red_flag_shows_its_figure_and_leads_to_its_row() -> None:
    signatures = [
        signature("driver leakage", detected=True, figure="AUC 0.89, limit 0.65"),
        signature("memorisation", detected=None, figure="fewer than 4 drafts"),
        signature("control collapse", detected=False),
    ]
    page = render_report(content(signatures=signatures, red_flags=signatures[:2]))
    first_screen = page[page.index(">Red flags<") : page.index(">Key facts<")]
    for words in ("AUC 0.89, limit 0.65", "(cannot be told)", "fewer than 4 drafts"):
        assert words in first_screen
    assert "control collapse" not in first_screen
    links = re.findall(r'href="#([^"]*)"', first_screen)
    assert links == ["driver-leakage", "memorisation"]
    assert all(page.count(f'id="{link}"') == 1 for link in links)


def test_without_red_flags_the_page_says_so() -> None:
    page = render_report(content())
    assert "None found" in page[page.index(">Red flags<") : page.index(">Key facts<")]
    assert 'id="failures"' in page


def test_an_empty_report_still_renders() -> None:
    page = render_report(
        content(use=[], figures=[], scores=[], grids=[], charts=[], signatures=[], made=[], appendix=[], next_steps=[])
    )
    parser = Balance()
    parser.feed(page)
    assert parser.open == []


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, math.nan), (2.0, math.inf)], [(1.0, 3.0), (2.0, 3.0)]])
def test_charts_of_no_one_bad_or_equal_points_hold_only_finite_numbers(points: list[tuple[float, float]]) -> None:
    svg = line_chart(Chart(title="t", x_label="x", y_label="y", curves=[Curve(name="c", points=points)]))
    assert "nan" not in svg
    assert "inf" not in svg
    assert svg.endswith("</svg>")


def test_a_line_runs_from_left_to_right_and_higher_values_are_higher() -> None:
    svg = line_chart(Chart(title="t", x_label="x", y_label="y", curves=[Curve(name="c", points=[(0, 0), (10, 5)])]))
    path = re.search(r'd="M ([\d.]+) ([\d.]+) L ([\d.]+) ([\d.]+)" style="fill: none; stroke: #0072b2', svg)
    assert path is not None
    x0, y0, x1, y1 = (float(v) for v in path.groups())
    assert x0 < x1
    assert y0 > y1


def test_a_chart_is_the_same_at_every_run_and_names_nothing_outside_itself() -> None:
    curves = [Curve(name=f"curve {n}", points=[(float(x), x * n * 0.5) for x in range(9)]) for n in range(8)]
    chart = Chart(title="t", x_label="x", y_label="y", curves=curves)
    svg = line_chart(chart)
    assert svg == line_chart(chart)
    for word in ("http", "url(", " id=", "<style", "<!", "#010203", "#040506", "#000000", "#ffffff"):
        assert word not in svg
    assert "currentColor" in svg
    assert "var(--line)" in svg


def test_texts_of_a_chart_stay_as_they_are() -> None:
    name = f'_a $x^2$ id="1" \x1b[2J {HOSTILE}'
    svg = line_chart(Chart(title=name, x_label="x", y_label="y", curves=[Curve(name=name, points=[(0, 0), (1, 1)])]))
    shown = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    assert shown.count(name.replace("\x1b", "\\x1b")) == 2


def test_importing_the_report_imports_no_matplotlib_and_drawing_leaves_nothing_at_home(tmp_path: Path) -> None:
    code = """
import sys
from defectory.report.content import Chart, Curve
from defectory.report.charts import line_chart
assert "matplotlib" not in sys.modules
for _ in range(2):
    line_chart(Chart(title="t", x_label="x", y_label="y", curves=[Curve(name="c", points=[(0, 0), (1, 1)])]))
import os
assert "MPLCONFIGDIR" not in os.environ
"""
    hidden = ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment | home, check=True)
    assert list(tmp_path.iterdir()) == []


def test_smoothing_is_a_running_mean_and_thinning_keeps_the_ends() -> None:
    assert smooth([1, 3, 5, 7], 2) == [(1, 1.0), (2, 2.0), (3, 4.0), (4, 6.0)]
    line = [(float(i), 0.0) for i in range(1001)]
    kept = thin(line, 100)
    assert (kept[0], kept[-1]) == (line[0], line[-1])
    assert len(kept) < 110


def test_scores_that_hardly_differ_do_not_look_far_apart() -> None:
    def ticks(*means: float) -> list[float]:
        chart = ladder_chart("Ladder", "segm mAP", [Bar(name="arm", mean=mean, interval=None) for mean in means])
        return [float(text) for text in re.findall(r">(\d\.\d+)<", chart)]

    near = ticks(0.1283, 0.1246)
    assert max(near) - min(near) >= 0.06
    assert min(ticks(0.001, 0.002)) == 0.0
    assert max(ticks(0.1, 0.6)) > 0.55
