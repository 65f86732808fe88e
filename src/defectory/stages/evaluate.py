"""Stage evaluate: scores every segmenter on test. Only it and the report, which shows a few, open test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from defectory.artifacts.annotation import Instance
from defectory.artifacts.plan import Job
from defectory.artifacts.primary_metric import PrimaryMetric
from defectory.artifacts.scores import DefectContrast, PlantScores, SegmenterScores
from defectory.artifacts.verdict import Verdict
from defectory.config.project import ProjectConfig
from defectory.errors import StageError
from defectory.evaluation.contrast import score_contrast
from defectory.evaluation.image_metrics import score_diversity
from defectory.evaluation.mask_metrics import score_with_table
from defectory.evaluation.match_tables import MatchTable
from defectory.evaluation.scenes import check_results
from defectory.evaluation.statistics import TestScores, resampled_scores, scores_of_tables
from defectory.evaluation.tables import ScoreTable, table_pixel_ap
from defectory.evaluation.verdict import verdict
from defectory.events import Progress, Work
from defectory.files import write_json
from defectory.rle import decode
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.runs.stored import SegmenterFolder
from defectory.stages.export import accepted_jobs
from defectory.stages.parts.further_rounds import further_rounds
from defectory.stages.parts.primary_metric import choose_metric
from defectory.stages.parts.real_tiles import RealTiles
from defectory.stages.parts.validation import predict
from defectory.stages.segment import stage_name, uses_synthetic

MAX_DRIVERS, MAX_SAMPLES = 10, 10
"""Drivers, and drafts of each, that are compared for diversity, as in the paper."""
NO_DRAFTS: dict[str, Any] = {"fidelity": None, "image_sets": None, "diversity": None, "defect_contrast": {}}
SCORE_KEYS = (
    "segm_map",
    "bbox_map",
    "ap50",
    "bbox_ap50",
    "segm_ar100",
    "bbox_ar100",
    "pixel_ap",
    "pixel_f1_max",
    "pixel_ap_any_class",
    "pixel_f1_max_any_class",
    "iou",
    "iou_matched",
    "dice",
    "hausdorff",
    "hd95",
    "boundary_f1_2px",
    "cldice",
)
PLANT_KEYS = ("missed_defect_rate", "missed_image_rate", "false_alarms_per_100_good_images")
"""Scores of a segmenter, and its plant figures, that are averaged over seeds."""


class Evaluate(Stage):
    """Predicts test with every segmenter, and gathers all scores."""

    VERSION = 9
    name, folder = "evaluate", layout.EVALUATION
    copies = MappingProxyType({layout.GATHERED_SCORES: layout.RUN_SCORES})

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read images, tiles, drafts, decisions and every segmenter."""
        segmenters = [stage_name(arm, seed) for seed in config.segmentation.seeds for arm in config.segmentation.arms]
        made = ("tiles", "test-tiles", "plan", "synthesize", "curate", *further_rounds(config))
        return ("import", "split", *(made if _uses_drafts(config) else ()), *segmenters)

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the evaluation section, on the list of segmenters and on the score that decides."""
        return {
            "evaluation": config.evaluation.model_dump(mode="json"),
            "segmentation.primary_metric": config.segmentation.primary_metric,
            "segmentation.arms": list(config.segmentation.arms),
            "segmentation.seeds": list(config.segmentation.seeds),
            "seed": config.seed,
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Predict, score, and judge whether synthetic data helps."""
        chosen = choose_metric(inputs, config.segmentation)
        arms, judged = yield from self._score_arms(inputs, config, out, chosen.metric)
        scores = {
            "arms": arms,
            "primary_metric": chosen.model_dump(mode="json"),
            **(scores_of_drafts(inputs, config) if _uses_drafts(config) else NO_DRAFTS),
            "verdict": judged.model_dump(mode="json"),
        }
        write_json(out / layout.SCORES_FILE, scores)
        # the run folder gets a copy of this file
        others = {key: value for key, value in scores.items() if key != "arms"}
        write_json(out / layout.GATHERED_SCORES, {**arms, **others})
        return " ".join([judged.sentence, *_silent(arms)])

    def _score_arms(
        self, inputs: RunStore, config: ProjectConfig, out: Path, metric: PrimaryMetric
    ) -> Work[tuple[dict[str, Any], Verdict]]:
        from defectory.engine.devices import device_of
        from defectory.segmentation.training import load_segmenter, score_threshold_of

        data, device = inputs.data, device_of(config.device, threads=config.threads)
        test = [data.dataset.image(i) for i in inputs.split.test]
        pairs = [(arm, seed) for arm in config.segmentation.arms for seed in config.segmentation.seeds]
        per_arm: dict[str, list[SegmenterScores]] = {}
        tables: dict[str, list[MatchTable]] = {}
        saved: dict[str, list[Path]] = {}
        validation: dict[str, list[float]] = {}
        exposures: dict[str, dict[str, dict[str, int]]] = {}
        for done, (arm, seed) in enumerate(pairs):
            segmenter = inputs.segmenter(arm, seed)
            if segmenter.skipped is None:
                yield Progress(done=done, total=len(pairs), note=f"test images, {arm}, seed {seed}")
                _require_unseen_test(inputs, segmenter, stage_name(arm, seed))
                model, _, sizing = load_segmenter(segmenter.folder, device)
                results = predict(model, data, test, sizing.scale)
                check_results(test, results)
                write_json(out / layout.PREDICTIONS / f"{layout.segmenter_name(arm, seed)}.json", results)
                scores, table = score_with_table(
                    test, data.dataset.categories, results, score_threshold=score_threshold_of(segmenter.folder)
                )
                saved.setdefault(arm, []).append(out / layout.score_table(arm, seed))
                table.save(saved[arm][-1])
                per_arm.setdefault(arm, []).append(scores)
                tables.setdefault(arm, []).append(table.matches)
                validation.setdefault(arm, []).append(float(segmenter.log["best_val_score"]))
                exposures[arm] = {
                    source: {"shown": shown, "images": segmenter.log["num_images"][source]}
                    for source, shown in segmenter.log["exposures"].items()
                }
        yield Progress(done=len(pairs), total=len(pairs))
        arms = {
            arm: {
                **{key: float(np.mean([getattr(s, key) for s in of])) for key in SCORE_KEYS},
                "plant": _mean_plant([s.plant for s in of]),
                "validation": validation[arm],
                "exposures": exposures[arm],
                "per_seed": [s.model_dump(mode="json") for s in of],
            }
            for arm, of in per_arm.items()
        }
        groups = [record.group for record in test]

        def pixel_ap() -> list[TestScores]:
            # loaded again where they are needed at all: the pixels of all segmenters together take much memory
            of_pixels = {arm: [ScoreTable.load(path) for path in of] for arm, of in saved.items()}
            has_defects = next(iter(of_pixels.values()))[0].num_defects > 0
            return [resampled_scores(of_pixels, table_pixel_ap, groups, has_defects=has_defects, seed=config.seed)]

        judged = verdict(
            pixel_ap() if metric == "pixel_ap" else [scores_of_tables(tables, groups, seed=config.seed)],
            uses_synthetic={arm: uses_synthetic(arm) for arm in tables},
            validation=validation,
            metric=metric,
            pixel_ap=pixel_ap,
        )
        return arms, judged


def _uses_drafts(config: ProjectConfig) -> bool:
    """Return whether any arm needs drafts; a comparison of arms without them needs no generator."""
    return any(uses_synthetic(arm) for arm in config.segmentation.arms)


def scores_of_drafts(inputs: RunStore, config: ProjectConfig) -> dict[str, Any]:
    """Return fidelity, distance to real tiles, diversity and contrast of a run's drafts; no segmenter is needed."""
    return {
        "fidelity": inputs.fidelity.model_dump(mode="json"),
        "image_sets": _image_sets(inputs, config),
        "diversity": _diversity(inputs),
        "defect_contrast": {name: value.model_dump(mode="json") for name, value in _contrast(inputs, config).items()},
    }


def _mean_plant(of: Sequence[PlantScores]) -> dict[str, float | None]:
    """Return mean plant figures over seeds, None where there is nothing to count."""
    means: dict[str, float | None] = {}
    for key in PLANT_KEYS:
        values = [value for plant in of if (value := getattr(plant, key)) is not None]
        means[key] = float(np.mean(values)) if values else None
    return means


def _silent(arms: Mapping[str, Any]) -> list[str]:
    """Return a sentence that names the arms with a segmenter that predicts nothing, if there are any."""
    silent = [arm for arm, scores in arms.items() if any(not of["num_predictions"] for of in scores["per_seed"])]
    return [f"No detection on any test image with at least one seed: {', '.join(silent)}."] if silent else []


def _require_unseen_test(inputs: RunStore, segmenter: SegmenterFolder, name: str) -> None:
    """Require that a segmenter was trained on images of train and pool alone, by its log.

    Raises:
        FirewallError: it was trained on another image.
        StageError: its log does not say.
    """
    ids = segmenter.log.get("image_ids")
    if not ids:
        raise StageError(f"{name}: its log does not say which images it was trained on; run the stage `{name}` again")
    inputs.split.require_training_ids(ids, stage=name)


def _image_sets(inputs: RunStore, config: ProjectConfig) -> dict[str, Any] | None:
    """Compare synthetic and real tiles as image sets; None with too few of either."""
    limit = config.evaluation.max_kid_tiles
    jobs = list(accepted_jobs(inputs.plan, inputs.decisions))[:limit] or inputs.plan.jobs[:limit]
    synthetic = [inputs.drafts.image(job) for job in jobs]
    real = RealTiles(inputs, config.evaluation, seed=config.seed)
    return real.score(synthetic).model_dump(mode="json") if real.suffice_for(synthetic) else None


def _diversity(inputs: RunStore) -> dict[str, Any] | None:
    """Measure how much drafts of one driver differ, of all drafts before curation; None if each has its own driver."""
    of_driver: dict[object, list[Job]] = {}
    for job in inputs.plan.jobs:
        of_driver.setdefault((job.tile_id, job.augmentation_seed, job.mask_sources), []).append(job)
    shared = [jobs[:MAX_SAMPLES] for jobs in of_driver.values() if len(jobs) > 1][:MAX_DRIVERS]
    scores = score_diversity([[inputs.drafts.image(job) for job in jobs] for jobs in shared])
    return None if scores is None else scores.model_dump(mode="json")


def _contrast(inputs: RunStore, config: ProjectConfig) -> dict[str, DefectContrast]:
    """Compare the contrast of defects in all drafts, before curation, with that in train tiles."""
    tiles, drafts, limit = inputs.tiles, inputs.drafts, config.evaluation.max_kid_tiles
    names = {category.id: category.name for category in tiles.tileset.categories}

    def masks(instances: Sequence[Instance]) -> list[tuple[str, Any]]:
        return [(names[i.category_id], decode(i.rle)) for i in instances if not i.is_crowd]

    return score_contrast(
        ((drafts.image(job), masks(job.instances)) for job in inputs.plan.jobs[:limit]),
        ((tiles.image(tile), masks(tile.instances)) for tile in tiles.tileset.of("train")[:limit]),
    )
