"""Charts of the report: the ladder of arms, missed defects against false alarms, and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from defectory.artifacts.primary_metric import METRIC_NAMES, MetricChoice
from defectory.artifacts.segmenter_card import SegmenterCard
from defectory.config.project import ProjectConfig
from defectory.report.charts import smooth
from defectory.report.content import Chart, Curve
from defectory.report.intervals import Bar, ladder_chart
from defectory.runs.store import RunStore
from defectory.stages.parts.report_tables import arm_name, in_order
from defectory.stages.segment import uses_synthetic

SMOOTHED_STEPS = 20


def ladder(scores: Mapping[str, Any]) -> str:
    """Draw the primary metric of every arm on test with its interval, as an SVG element."""
    verdict = scores["verdict"]
    chosen = MetricChoice.model_validate(scores["primary_metric"])
    intervals = {figure["arm"]: figure["interval"] for figure in verdict.get("arms", ())}
    arms = in_order(scores)
    bars = [
        Bar(
            name=arm_name(arm),
            mean=own[chosen.metric],
            interval=intervals.get(arm),
            single=[seed[chosen.metric] for seed in own["per_seed"]],
            group="with synthetic data" if uses_synthetic(arm) else "without",
        )
        for arm, own in arms.items()
    ]
    reference = arms.get(str(verdict.get("reference")))
    title = f"{chosen.words[:1].upper()}{chosen.words[1:]} on test" + (
        ", with 95% intervals" if any(intervals.values()) else ""
    )
    return ladder_chart(title, chosen.words, bars, level=None if reference is None else reference[chosen.metric])


def plant_chart(scores: Mapping[str, Any], card: SegmenterCard | None) -> Chart:
    """Draw missed defects against false alarms at all score thresholds, with the exported segmenter as a dot.

    Without good test images, missed defects are drawn against the score threshold.
    """
    arms = in_order(scores)
    has_good = any(seed["plant"]["num_good_images"] for own in arms.values() for seed in own["per_seed"])
    key = "false_alarms_per_100_good_images" if has_good else "score_thresholds"
    curves = [
        Curve(name=arm_name(arm), points=list(zip(across, missed, strict=True)))
        for arm, own in arms.items()
        if (across := _mean(own["per_seed"], key)) and (missed := _mean(own["per_seed"], "missed_defect_rate", 100))
    ]
    if card is not None and card.num_defects:
        at = 100 * card.num_false_alarms / card.num_good_images if card.num_good_images else card.score_threshold
        missed_share = 100 * (1 - card.num_found / card.num_defects)
        curves.append(Curve(name="best segmenter", points=[(at, missed_share)]))
    return Chart(
        title="Missed defects against false alarms",
        x_label="false alarms per 100 good images" if has_good else "score threshold",
        y_label="missed defects, %",
        curves=curves,
    )


def _mean(seeds: Sequence[Mapping[str, Any]], key: str, factor: float = 1.0) -> list[float]:
    """Return the mean curve over seeds; empty where there is nothing to count."""
    values = [seed["plant"]["curve"][key] for seed in seeds]
    return [] if None in values else [factor * value for value in np.mean(values, axis=0).tolist()]


def training_charts(inputs: RunStore, config: ProjectConfig) -> list[Chart]:
    """Draw the losses of both phases, and losses and validation of the first seed's segmenters."""
    charts: list[Chart] = []
    for title, phase in (("Learn the concept", "concept"), ("Learn the condition", "control")):
        lines = inputs.losses(phase)
        losses = [line["loss"] for line in lines if "loss" in line]
        held_out = [(line["step"], line["held_out_loss"]) for line in lines if "held_out_loss" in line]
        curves = [Curve(name=f"train, mean of {SMOOTHED_STEPS}", points=smooth(losses, SMOOTHED_STEPS))]
        curves += [Curve(name="held out, unweighted", points=held_out)] if held_out else []
        charts.append(Chart(title=title, x_label="step", y_label="loss", curves=curves))
    losses_of: list[Curve] = []
    scores_of: list[Curve] = []
    seed, label = config.segmentation.seeds[0], ""
    for arm in config.segmentation.arms:
        segmenter = inputs.segmenter(arm, seed)
        if segmenter.skipped is None:
            log = segmenter.log
            losses_of.append(Curve(name=arm_name(arm), points=smooth(log["losses"], SMOOTHED_STEPS)))
            label = METRIC_NAMES[log["metric"]]
            scores_of.append(Curve(name=arm_name(arm), points=[(step, value) for step, value in log["val_scores"]]))
    loss_label = f"loss, mean of {SMOOTHED_STEPS}"
    validation = f"Segmenter on real validation, seed {seed}"
    return [
        *charts,
        Chart(title=f"Segmenter, seed {seed}", x_label="step", y_label=loss_label, curves=losses_of),
        Chart(title=validation, x_label="step", y_label=label, curves=scores_of),
    ]
