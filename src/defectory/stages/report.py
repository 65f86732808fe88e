"""Stage report: gathers the results of all stages and passes them to the report as plain values."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from defectory.config.project import OF_PLACE_AND_SPEED, ProjectConfig
from defectory.drivers.tune import candidates_of
from defectory.events import Work
from defectory.files import write_json, write_text
from defectory.report.charts import line_chart, svg_file
from defectory.report.content import Outcome, ReportContent
from defectory.report.page import write_report
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.stages.check_concept import checks_concept
from defectory.stages.parts.durations import Durations
from defectory.stages.parts.further_rounds import further_rounds
from defectory.stages.parts.label_counts import label_counts
from defectory.stages.parts.leakage import leakage_of
from defectory.stages.parts.next_steps import Situation, next_steps
from defectory.stages.parts.report_charts import ladder, plant_chart, training_charts
from defectory.stages.parts.report_details import cost_table, missed_table, reproduce_table, scores_csv, size_table
from defectory.stages.parts.report_first import what_to_use
from defectory.stages.parts.report_grids import decision_grid, main_grid
from defectory.stages.parts.report_predictions import prediction_grids
from defectory.stages.parts.report_rounds import rounds_tables
from defectory.stages.parts.report_tables import (
    appendix,
    certificate_table,
    concept_check_table,
    exposure_table,
    facts,
    measures,
    score_tables,
)
from defectory.stages.parts.signatures import memorisation, red_flags, signatures, split_signature
from defectory.stages.parts.student import distills, student_stage, student_table
from defectory.stages.segment import stage_name


class Report(Stage):
    """Writes the report, a self-contained HTML file."""

    VERSION = 7
    name, folder = "report", layout.REPORT
    copies = MappingProxyType({layout.REPORT_FILE: layout.RUN_REPORT})

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read everything that is shown."""
        segmenters = [stage_name(arm, seed) for seed in config.segmentation.seeds for arm in config.segmentation.arms]
        made = ("import", "split", "tiles", "learn-concept", "learn-condition", "plan", "calibrate", "synthesize")
        scored = ("test-tiles", "evaluate", "certify", "best-segmenter", *segmenters)
        checked = ("check-concept",) if checks_concept(config) else ()
        return (*made, *student_stage(config), *checked, "curate", *further_rounds(config), *scored)

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on every setting, since the report shows all of them, and on how its commands open the project."""
        drawings = {"files of drivers.drawings": sources.listing(config.drivers.drawings)}
        opened = sources.command
        # the values of settings are there already
        command = {
            "project file": opened.file,
            "option --preset": opened.preset,
            "set beside the file": sorted(opened.settings.keys() - OF_PLACE_AND_SPEED),
        }
        return {**config.of_results(), **drawings, **command}

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Measure leakage and memorisation, and write the page."""
        yield from ()
        began, scores = time.monotonic(), inputs.scores
        if scores["fidelity"] is None:  # no arm uses drafts, so `evaluate` has not looked at them
            scores = {**scores, "fidelity": inputs.fidelity.model_dump(mode="json")}
        leak = leakage_of(inputs, config)
        leak_seconds = time.monotonic() - began
        copied, labels = memorisation(inputs), label_counts(inputs.data.dataset, inputs.split)
        failures = signatures(scores, leak, copied, drivers=config.drivers, labels=labels)
        failures.append(split_signature(inputs.certificate))
        recorded = {folder: float(manifest["info"]["seconds"]) for folder, manifest in inputs.manifests().items()}
        situation = Situation(
            config=config,
            command=inputs.sources.command,
            scores=scores,
            signatures=failures,
            labels=labels,
            finished=recorded.keys(),
            durations=_durations(inputs, config, recorded),
            tune_seconds=leak_seconds * len(candidates_of(config.drivers, tile_px=inputs.tiles.tileset.tiling.tile_px)),
        )
        card, drawn = inputs.segmenter_card, ladder(scores)
        content = ReportContent(
            title=f"{config.name}: does synthetic data help?",
            outcome=Outcome(outcome=scores["verdict"]["outcome"], sentence=scores["verdict"]["sentence"]),
            next_steps=next_steps(situation),
            project_file=inputs.sources.command.file,
            use=what_to_use(card, scores, inputs.sources.command),
            red_flags=red_flags(failures),
            facts=facts(inputs, config),
            figures=[drawn, line_chart(plant_chart(scores, card))],
            scores=[*score_tables(scores), missed_table(scores), size_table(scores)],
            grids=[
                *prediction_grids(inputs, scores, card),
                main_grid(inputs),
                decision_grid(inputs, difference_threshold=config.curation.difference_threshold),
            ],
            signatures=failures,
            measures=[
                exposure_table(scores),
                *rounds_tables(inputs),
                *measures(inputs, scores, leak, copied),
                *([concept_check_table(inputs.concept_check)] if checks_concept(config) else []),
                *([student_table(inputs.distilled.distilled)] if distills(config) else []),
            ],
            charts=training_charts(inputs, config),
            made=[
                certificate_table(inputs.certificate),
                cost_table(inputs),
                reproduce_table(inputs, base=Path(config.base).name, seed=config.seed),
            ],
            appendix=appendix(inputs, config),
        )
        write_report(content, out / layout.REPORT_FILE)
        write_text(out / layout.LADDER_FILE, svg_file(drawn))
        write_text(out / layout.SCORES_TABLE, scores_csv(scores, _seeds_of(inputs, config)))
        likeness = (
            None
            if copied is None
            else {"draft_to_train": copied.draft_to_train, "train_to_train": copied.train_to_train}
        )
        summary = {
            "leakage_auc": None if leak is None else {"auc": leak.auc, "interval": leak.interval},
            "memorisation": likeness,
            "signatures": {s.name: s.detected for s in content.signatures},
            "red_flags": [{"name": s.name, "detected": s.detected, "figure": s.figure} for s in content.red_flags],
            "next": [step.model_dump(mode="json") for step in content.next_steps],
        }
        write_json(out / layout.SUMMARY_FILE, summary)
        found = [s.name for s in content.signatures if s.detected]
        return f"{layout.RUN_REPORT}; failures found: {', '.join(found) or 'none'}"


def _seeds_of(inputs: RunStore, config: ProjectConfig) -> dict[str, list[int]]:
    """Return the seeds of every arm that was trained, in the order of its scores."""
    segmentation = config.segmentation
    return {
        arm: [seed for seed in segmentation.seeds if inputs.segmenter(arm, seed).skipped is None]
        for arm in segmentation.arms
    }


def _durations(inputs: RunStore, config: ProjectConfig, recorded: Mapping[str, float]) -> Durations:
    """Return the times of the run's stages, without those of segmenters that were skipped."""
    from defectory.stages.all import stages_of  # which imports this module

    segmenters = [inputs.segmenter(arm, seed) for seed in config.segmentation.seeds for arm in config.segmentation.arms]
    skipped = {s.folder.relative_to(inputs.folder).as_posix() for s in segmenters if s.skipped is not None}
    trained = {folder: seconds for folder, seconds in recorded.items() if folder not in skipped}
    return Durations(config=config, recorded=trained, stages_of=stages_of)
