"""Stage report: gathers the results of all stages and passes them to the report as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from defectory.config.project import ProjectConfig
from defectory.events import Work
from defectory.files import write_json
from defectory.report.charts import smooth
from defectory.report.content import Chart, Curve, Outcome, ReportContent
from defectory.report.page import write_report
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.stages.parts.leakage import leakage_of
from defectory.stages.parts.report_grids import decision_grid, main_grid
from defectory.stages.parts.report_tables import appendix, arm_name, facts, measures, score_tables
from defectory.stages.parts.signatures import memorisation, signatures
from defectory.stages.segment import stage_name

SMOOTHED_STEPS = 20


class Report(Stage):
    """Writes the report, a self-contained HTML file."""

    VERSION = 2
    name, folder = "report", layout.REPORT
    copies = MappingProxyType({layout.REPORT_FILE: layout.RUN_REPORT})

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read everything that is shown."""
        segmenters = [stage_name(arm, seed) for seed in config.segmentation.seeds for arm in config.segmentation.arms]
        made = ("import", "split", "tiles", "learn-concept", "learn-condition", "plan", "calibrate", "synthesize")
        return (*made, "curate", "test-tiles", "evaluate", *segmenters)

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on every setting, since the report shows all of them."""
        drawings = {"files of drivers.drawings": sources.listing(config.drivers.drawings)}
        return {**config.of_results(), **drawings}

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Measure leakage and memorisation, and write the page."""
        yield from ()
        scores = inputs.scores
        leak, copied = leakage_of(inputs, config), memorisation(inputs)
        content = ReportContent(
            title=f"{config.name}: does synthetic data help?",
            outcome=Outcome(outcome=scores["verdict"]["outcome"], sentence=scores["verdict"]["sentence"]),
            facts=facts(inputs, config),
            scores=score_tables(scores),
            grids=[main_grid(inputs), decision_grid(inputs, difference_threshold=config.curation.difference_threshold)],
            signatures=signatures(scores, leak, copied, drivers=config.drivers),
            measures=measures(inputs, scores, leak, copied),
            charts=_charts(inputs, config),
            appendix=appendix(inputs, config),
        )
        write_report(content, out / layout.REPORT_FILE)
        likeness = (
            None
            if copied is None
            else {"draft_to_train": copied.draft_to_train, "train_to_train": copied.train_to_train}
        )
        summary = {
            "leakage_auc": None if leak is None else {"auc": leak.auc, "interval": leak.interval},
            "memorisation": likeness,
            "signatures": {s.name: s.detected for s in content.signatures},
        }
        write_json(out / layout.SUMMARY_FILE, summary)
        found = [s.name for s in content.signatures if s.detected]
        return f"{layout.RUN_REPORT}; failures found: {', '.join(found) or 'none'}"


def _charts(inputs: RunStore, config: ProjectConfig) -> list[Chart]:
    charts: list[Chart] = []
    for title, phase in (("Learn the concept", "concept"), ("Learn the condition", "control")):
        lines = inputs.losses(phase)
        losses = [line["loss"] for line in lines if "loss" in line]
        held_out = [(line["step"], line["held_out_loss"]) for line in lines if "held_out_loss" in line]
        curves = [Curve(name=f"train, mean of {SMOOTHED_STEPS}", points=smooth(losses, SMOOTHED_STEPS))]
        curves += [Curve(name="held out, unweighted", points=held_out)] if held_out else []
        charts.append(Chart(title=title, x_label="step", y_label="loss", curves=curves))
    losses_of: list[Curve] = []
    maps_of: list[Curve] = []
    seed = config.segmentation.seeds[0]
    for arm in config.segmentation.arms:
        segmenter = inputs.segmenter(arm, seed)
        if segmenter.skipped is None:
            log = segmenter.log
            losses_of.append(Curve(name=arm_name(arm), points=smooth(log["losses"], SMOOTHED_STEPS)))
            maps_of.append(Curve(name=arm_name(arm), points=[(step, value) for step, value in log["val_map"]]))
    loss_label = f"loss, mean of {SMOOTHED_STEPS}"
    validation = f"Segmenter on real validation, seed {seed}"
    return [
        *charts,
        Chart(title=f"Segmenter, seed {seed}", x_label="step", y_label=loss_label, curves=losses_of),
        Chart(title=validation, x_label="step", y_label="segm mAP", curves=maps_of),
    ]
