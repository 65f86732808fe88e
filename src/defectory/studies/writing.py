"""Writes a study's outcome: values as JSON, all figures as CSV, charts as SVG, and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from defectory.artifacts.primary_metric import METRIC_NAMES, PrimaryMetric
from defectory.artifacts.study import Point, Series, StudyOutcome, StudyScore
from defectory.files import write_json, write_text
from defectory.folders.marker import record_files
from defectory.report.charts import svg_file
from defectory.report.content import Outcome, Table
from defectory.report.intervals import Bar, amount_chart, ladder_chart
from defectory.report.study_page import Section, StudyContent, write_study_page

SHOWN = {
    "segm_map": "segm mAP",
    "bbox_map": "bbox mAP",
    "ap50": "segm AP50",
    "pixel_ap": "pixel AP",
    "iou": "IoU",
    "boundary_f1_2px": "boundary F1",
    "missed_defect_rate": "missed defects",
    "false_alarms_per_100_good_images": "false alarms /100",
}
GAINS = {
    "segm_map": "segm mAP",
    "pixel_ap": "pixel AP",
    "missed_defect_rate": "missed defects",
    "false_alarms_per_100_good_images": "false alarms /100",
}
FIGURES = {"kid": "KID", "kid_floor": "KID floor", "fid": "FID", "fid_floor": "FID floor", "l2": "L2"}
"""Names of figures of drafts that are not plain words."""
COLUMNS = ("point", "num_labelled", "variant", "arm", "score", "mean", "low", "high", "per_seed")


def write_outcome(outcome: StudyOutcome, folder: Path, *, name: str) -> None:
    """Write `NAME.json`, `NAME.csv`, `NAME.html` and a chart `NAME-*.svg` for each curve and ladder.

    Raises:
        OutputError: a file cannot be written.
    """
    curves = _curves(outcome)
    ladders = {point.label: _ladder(point) for point in outcome.points if point.series}
    files = {f"{name}.csv": _csv(outcome)}
    files |= {f"{name}-{score}.svg": svg_file(chart) for score, chart in curves.items()}
    files |= {f"{name}-{label.replace(' ', '-')}.svg": svg_file(chart) for label, chart in ladders.items()}
    write_json(folder / f"{name}.json", outcome.model_dump(mode="json"))
    for file_name, text in files.items():
        write_text(folder / file_name, text)
    write_study_page(_content(outcome, list(curves.values()), ladders), folder / f"{name}.html")
    record_files(folder, [f"{name}.json", f"{name}.html", *files])


def figure(score: StudyScore | None) -> str:
    """Return a score with its interval for people; a dash where it is not known."""
    if score is None:
        return "-"
    places = 1 if score.mean >= 10 else 3
    mean = f"{score.mean:.{places}f}"
    return (
        mean if score.interval is None else f"{mean} ({score.interval[0]:.{places}f} to {score.interval[1]:.{places}f})"
    )


def readable(name: str) -> str:
    """Return the name of an arm or series for people."""
    return name.replace("_", " ")


def rows_of(point: Point) -> Iterator[list[str]]:
    """Yield a row of texts for each series of a point: its name and the scores of `SHOWN`."""
    for series in point.series:
        yield [readable(series.name), *(figure(series.scores.get(score)) for score in SHOWN)]


def gain_rows_of(point: Point) -> Iterator[list[str]]:
    """Yield a row of texts for each pair of series that is compared at a point: names and gains."""
    pairs = dict.fromkeys((gain.series, gain.reference) for gain in point.gains)
    for series, reference in pairs:
        of = {gain.score: gain for gain in point.gains if (gain.series, gain.reference) == (series, reference)}
        cells: list[str] = []
        for score in GAINS:
            gain = of.get(score)
            if gain is None:
                cells.append("-")
                continue
            told = f"{gain.mean:+.3f}"
            if gain.interval is not None:
                told += f" ({gain.interval[0]:+.3f} to {gain.interval[1]:+.3f})"
            cells.append(told)
        p_value = of[_metric_of(point)].p_value
        yield [f"{readable(series)} over {readable(reference)}", *cells, "-" if p_value is None else f"{p_value:.3f}"]


def _csv(outcome: StudyOutcome) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)

    def row(point: Point, variant: str, arm: str, name: str, score: StudyScore) -> None:
        low, high = score.interval or ("", "")
        per_seed = " ".join(f"{value:.6g}" for value in score.per_seed)
        writer.writerow(
            [point.label, f"{point.num_labelled:g}", variant, arm, name, f"{score.mean:.6g}", low, high, per_seed]
        )

    for point in outcome.points:
        for series in point.series:
            for name, score in series.scores.items():
                row(point, series.variant, series.arm, name, score)
        for images in point.images:
            for name, score in images.figures.items():
                row(point, images.variant, "", name, score)
        for series in point.transfer:
            for name, score in series.scores.items():
                row(point, series.variant, series.arm, f"transfer {name}", score)
    return stream.getvalue()


def _bar(series: Series, score: str, *, x: float = 0.0) -> Bar:
    value = series.scores[score]
    return Bar(
        name=readable(series.name),
        mean=value.mean,
        interval=value.interval,
        single=value.per_seed,
        group="with synthetic data" if series.uses_synthetic else "without",
        x=x,
    )


def _metric_of(point: Point) -> PrimaryMetric:
    return "segm_map" if point.verdict is None else point.verdict.metric


def _ladder(point: Point) -> str:
    reference = None if point.verdict is None else point.verdict.reference
    metric = _metric_of(point)
    words = METRIC_NAMES[metric]
    level = next((s.scores[metric].mean for s in point.series if s.name == reference), None)
    bars = [_bar(series, metric) for series in point.series]
    title = f"{words[:1].upper()}{words[1:]} on test, {_of(point)}"
    return ladder_chart(title, words, bars, level=level)


def _curves(outcome: StudyOutcome) -> dict[str, str]:
    """Draw a curve for each score of `GAINS` that is known, if there are several amounts of labelled images."""
    points = sorted((point for point in outcome.points if point.series), key=lambda point: point.num_labelled)
    if len(points) < 2:
        return {}
    names = dict.fromkeys(series.name for point in points for series in point.series)
    charts: dict[str, str] = {}
    for score, label in GAINS.items():
        if not all(score in s.scores for point in points for s in point.series):
            continue
        curves = [
            (readable(name), [_bar(s, score, x=p.num_labelled) for p in points for s in p.series if s.name == name])
            for name in names
        ]
        charts[score] = amount_chart(f"{label} on test", "labelled images with a defect", label, curves)
    return charts


def _of(point: Point) -> str:
    return f"{point.num_labelled:.0f} labelled images" if point.num_labelled else point.label


def _content(outcome: StudyOutcome, curves: Sequence[str], ladders: dict[str, str]) -> StudyContent:
    finished = sum(point.num_finished for point in outcome.points)
    cells = sum(point.num_cells for point in outcome.points)
    facts = [
        ("project", outcome.project),
        ("seeds", ", ".join(map(str, outcome.seeds))),
        ("folds", str(outcome.folds) if outcome.folds else "none, one frozen test part"),
        ("cells", f"{finished} of {cells} finished"),
        ("training", f"{outcome.hours:.1f} hours"),
    ]
    return StudyContent(
        title=f"Study {outcome.recipe}: {outcome.project}",
        summary=f"{outcome.summary[:1].upper()}{outcome.summary[1:]}. Each seed draws the labelled images and trains "
        "everything anew; test images stay the same. Intervals are 95%, over seeds and groups of test images for segm "
        "mAP, pixel AP, missed defects and false alarms, over seeds alone for the others.",
        facts=facts,
        remarks=outcome.remarks,
        curves=curves,
        sections=[_section(point, ladders.get(point.label)) for point in outcome.points],
    )


def _section(point: Point, ladder: str | None) -> Section:
    tables: list[Table] = []
    if point.series:
        tables.append(Table(title="Scores on test", columns=["", *SHOWN.values()], rows=list(rows_of(point))))
    if point.gains:
        tables.append(
            Table(
                title="Gains",
                columns=["", *GAINS.values(), f"p ({METRIC_NAMES[_metric_of(point)]})"],
                rows=list(gain_rows_of(point)),
                note="Paired by seed and test image. p is corrected for the number of comparisons (Holm). For missed "
                "defects and false alarms, lower is better. Both depend on the score threshold that validation chose: "
                "fewer missed defects at more false alarms are no gain.",
            )
        )
    figures = [of for of in point.images if of.figures]
    if figures:
        names = list(dict.fromkeys(name for of in figures for name in of.figures))
        rows = [[of.variant or "as it is", *(figure(of.figures.get(name)) for name in names)] for of in figures]
        shown = [FIGURES.get(name, readable(name)) for name in names]
        tables.append(Table(title="Drafts", columns=["", *shown], rows=rows))
    if point.transfer:
        rows = [[readable(s.name), *(figure(s.scores.get(score)) for score in GAINS)] for s in point.transfer]
        tables.append(Table(title="On the other data set", columns=["", *GAINS.values()], rows=rows))
    exposed = [series for series in point.series if series.exposures]
    if exposed:
        sources = list(dict.fromkeys(source for series in exposed for source in series.exposures))
        rows = [[readable(s.name), *(f"{s.exposures.get(of, 0):.0f}" for of in sources)] for s in exposed]
        tables.append(Table(title="Images that a training saw", columns=["", *map(readable, sources)], rows=rows))
    judged = point.verdict
    return Section(
        title=point.label
        if not point.num_labelled
        else f"{point.label} ({point.num_labelled:.0f} labelled)"
        if point.label == "all"
        else point.label,
        outcome=None if judged is None else Outcome(outcome=judged.outcome, sentence=judged.sentence),
        charts=[] if ladder is None else [ladder],
        tables=tables,
        note=f"{point.num_finished} of {point.num_cells} cells finished.",
    )
