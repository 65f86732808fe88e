"""Stages of judgement: segmenters, evaluation, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from defectory.artifacts.annotation import Instance
from defectory.artifacts.dataset import ImageRecord, image_path
from defectory.artifacts.plan import Job
from defectory.artifacts.scores import DefectContrast, SegmenterScores
from defectory.errors import StageError
from defectory.evaluation.contrast import score_contrast
from defectory.evaluation.image_metrics import score_image_sets
from defectory.evaluation.mask_metrics import best_score_threshold, score_segmenter
from defectory.files import write_json
from defectory.imageio import load_rgb
from defectory.pipeline.curate_stage import accepted_jobs, decisions_of, fidelity_of
from defectory.pipeline.folds_stage import segmentation_tiles, training_tiles
from defectory.pipeline.generate_stages import plan_of
from defectory.pipeline.mask_check import bank_from_train
from defectory.pipeline.stage import Progress, Project
from defectory.pipeline.training import device_of
from defectory.pipeline.values import dataset_of, split_of, tileset_of
from defectory.pipeline.verify import checked
from defectory.rle import decode

if TYPE_CHECKING:
    from defectory.segmentation.data import SegmentationTile

RUN_SCORES = "run_scores.json"
SCORE_KEYS = ("segm_map", "bbox_map", "ap50", "iou", "iou_matched", "hausdorff")


def stage_name(arm: str, seed: int) -> str:
    """Give the name of the stage that trains one segmenter."""
    return f"segment-{arm}-seed{seed}"


def arm_folder(arm: str, seed: int) -> str:
    """Give the folder of one trained segmenter, relative to the run."""
    return f"segment/{arm}-seed{seed}"


def segment_runner(arm: str, seed: int) -> Callable[[Project], Iterator[Progress | str]]:
    """Give the stage that trains one arm with one seed and predicts test once."""

    def run(project: Project) -> Iterator[Progress | str]:
        from defectory.engine.training.events import Step
        from defectory.segmentation.predict import coco_results, predict_images
        from defectory.segmentation.training import load_segmenter, record_score_threshold, train_segmenter

        dataset, split, tileset = dataset_of(project), split_of(project), tileset_of(project)
        config, device, name = project.config.segmentation, device_of(project), stage_name(arm, seed)

        defective, pool = training_tiles(project, stage=name)
        # the real arm needs no plan, and may be trained before there is one
        synthetic = [] if arm == "real" else _synthetic_tiles(project)
        if arm != "real" and not synthetic:
            write_json(project.path(arm_folder(arm, seed), "skipped.json"), {"reason": "curation accepted no draft"})
            yield "skipped: curation accepted no draft"
            return
        val = _with_few_defect_free([dataset.image(i) for i in split.val], config.max_val_images)

        def validate(model: Any) -> float:
            results = _predict(project, model, val, tileset.tiling, predict_images, coco_results)
            return score_segmenter(
                val, dataset.categories, results, score_threshold=0.5
            ).segm_map  # mAP knows no threshold

        out = project.path(arm_folder(arm, seed))
        for event in train_segmenter(
            arm=arm,
            tiles={
                "real": segmentation_tiles(project, defective),
                "synthetic": synthetic,
                "defect_free": segmentation_tiles(project, pool),
            },
            validate=validate,
            categories=dataset.categories,
            tiling=tileset.tiling,
            config=config,
            seed=seed,
            out=out,
            device=device,
            value_range=dataset.value_range,
            require=lambda ids, what: split.require_training_ids(ids, stage=f"{name}, {what}"),
        ):
            if isinstance(event, Step):
                yield Progress(stage=name, done=event.done, total=event.total, note=event.note)
        model, _, _ = load_segmenter(out, device)
        threshold = config.score_threshold
        if threshold is None:
            threshold = best_score_threshold(
                val, _predict(project, model, val, tileset.tiling, predict_images, coco_results)
            )
        record_score_threshold(out, threshold)
        test = [dataset.image(i) for i in split.test]
        results = _predict(project, model, test, tileset.tiling, predict_images, coco_results)
        write_json(out / "predictions.json", results)
        scores = score_segmenter(test, dataset.categories, results, score_threshold=threshold)
        scores.save(out / "scores.json")
        yield (
            f"test segm mAP {scores.segm_map:.3f}, box mAP {scores.bbox_map:.3f}, AP50 {scores.ap50:.3f}, IoU "
            f"{scores.iou:.3f}, HD {scores.hausdorff:.3f}"
        )

    return run


def _synthetic_tiles(project: Project) -> list[SegmentationTile]:
    """Return the accepted drafts, each with the ids of the images that its background and its masks come from.

    Raises:
        StageError: a draft names a tile or a mask that is not of train or pool.
    """
    from defectory.segmentation.data import SegmentationTile

    background = {tile.id: tile.image_id for part in ("train", "pool") for tile in tileset_of(project).of(part)}
    bank = {entry.id: entry.image_id for entry in bank_from_train(project).entries}

    def image_ids(job: Job) -> tuple[int, ...]:
        named = [
            ("tile", job.tile_id, background),
            *(("mask", s.bank_id, bank) for s in job.mask_sources if s.kind == "bank"),
        ]
        for what, name, known in named:
            if name not in known:
                raise StageError(
                    f"draft {job.id}: its {what} {name!r} is none of train or pool; run the stage `plan` again"
                )
        return tuple(sorted({known[name] for _, name, known in named}))

    return [
        SegmentationTile(
            id=job.id,
            image=load_rgb(project.path("drafts", "images", f"{job.id}.png")),
            instances=tuple((i.category_id, i.rle) for i in job.instances),
            image_ids=image_ids(job),
        )
        for job in accepted_jobs(plan_of(project), decisions_of(project))
    ]


def _require_unseen_test(project: Project, arm: str, seed: int) -> None:
    """Refuse to judge a segmenter whose log does not say that it was trained on images of train and pool alone."""
    log = json.loads(checked(project, arm_folder(arm, seed), "log.json").read_text())
    ids = log.get("image_ids") if isinstance(log, dict) else None
    if not ids:
        raise StageError(
            f"{stage_name(arm, seed)}: its log does not say which images it was trained on; run the stage "
            f"`{stage_name(arm, seed)}` again"
        )
    split_of(project).require_training_ids(ids, stage=stage_name(arm, seed))


def _with_few_defect_free(records: list[ImageRecord], limit: int) -> list[ImageRecord]:
    """Give defective val images and as many defect-free ones at most, within a limit: val is scored often."""
    defective = [r for r in records if r.instances]
    free = [r for r in records if not r.instances]
    chosen = defective[: max(1, limit * 2 // 3)]
    return chosen + free[: min(len(chosen), max(0, limit - len(chosen)))]


def _predict(
    project: Project, model: Any, records: list[ImageRecord], tiling: Any, predict_images: Any, coco_results: Any
) -> list[dict[str, object]]:
    value_range = dataset_of(project).value_range
    images = ((record.id, load_rgb(image_path(project.path("data"), record), value_range)) for record in records)
    return [row for found in predict_images(model, images, tiling) for row in coco_results(found)]


def run_evaluation(project: Project) -> Iterator[Progress | str]:
    """Gather all scores into `scores.json`, and in the form of the run folder's own `scores.json`."""
    from defectory.engine.features.encoder import embed_images, load_encoder

    config = project.config
    arms: dict[str, Any] = {}
    for arm in config.segmentation.arms:
        for seed in config.segmentation.seeds:
            if _scores(project, arm, seed) is not None:
                _require_unseen_test(project, arm, seed)
        per_seed = [s for seed in config.segmentation.seeds if (s := _scores(project, arm, seed)) is not None]
        if not per_seed:
            continue
        arms[arm] = {key: float(np.mean([getattr(s, key) for s in per_seed])) for key in SCORE_KEYS}
        arms[arm]["per_seed"] = [s.model_dump(mode="json") for s in per_seed]
    plan, decisions = plan_of(project), decisions_of(project)
    tileset, test_tiles = tileset_of(project), tileset_of(project, "test_tiles")
    limit = config.evaluation.max_kid_tiles
    synthetic = [
        load_rgb(project.path("drafts", "images", f"{job.id}.png"))
        for job in list(accepted_jobs(plan, decisions))[:limit]
    ]
    synthetic = synthetic or [load_rgb(project.path("drafts", "images", f"{job.id}.png")) for job in plan.jobs[:limit]]
    train = [load_rgb(project.path("tiles", t.file_name)) for t in tileset.of("train") if t.instances][:limit]
    test = [load_rgb(project.path("test_tiles", t.file_name)) for t in test_tiles.tiles if t.instances][:limit]
    image_sets: dict[str, Any] | None = None
    if min(len(synthetic), len(train), len(test)) >= 4:
        encoder, name = load_encoder()

        image_sets = score_image_sets(
            synthetic=synthetic,
            real_train=train,
            real_test=test,
            features=(embed_images(encoder, synthetic), embed_images(encoder, train), embed_images(encoder, test)),
            encoder_name=name,
            config=config.evaluation,
            seed=config.seed,
        ).model_dump(mode="json")
    judged = verdict(arms)
    scores = {
        "arms": arms,
        "fidelity": fidelity_of(project).model_dump(mode="json"),
        "image_sets": image_sets,
        "defect_contrast": {name: value.model_dump(mode="json") for name, value in _contrast(project).items()},
        "verdict": judged,
    }
    write_json(project.path("evaluation", "scores.json"), scores)
    # the run folder gets a copy of this one
    write_json(project.path("evaluation", RUN_SCORES), {**arms, **{k: v for k, v in scores.items() if k != "arms"}})
    yield str(judged["sentence"])


def _contrast(project: Project) -> dict[str, DefectContrast]:
    """Compare all drafts, before curation, with the train tiles."""
    tileset, plan = tileset_of(project), plan_of(project)
    names = {category.id: category.name for category in tileset.categories}

    def defects(path: Path, instances: Sequence[Instance]) -> tuple[Any, list[tuple[str, Any]]]:
        return load_rgb(path), [(names[i.category_id], decode(i.rle)) for i in instances if not i.is_crowd]

    limit = project.config.evaluation.max_kid_tiles
    return score_contrast(
        (defects(project.path("drafts", "images", f"{job.id}.png"), job.instances) for job in plan.jobs[:limit]),
        (defects(project.path("tiles", tile.file_name), tile.instances) for tile in tileset.of("train")[:limit]),
    )


def _scores(project: Project, arm: str, seed: int) -> SegmenterScores | None:
    path = checked(project, arm_folder(arm, seed), "scores.json")
    return SegmenterScores.load(path) if path.is_file() else None


def verdict(arms: dict[str, Any]) -> dict[str, Any]:
    """Judge synthetic-then-real against real by segm mAP: use it, do not use it, or not enough evidence.

    Three seeds or more are needed; the mean paired difference must exceed twice its standard error.
    """
    if "real" not in arms or "synthetic_then_real" not in arms:
        return {
            "outcome": "not enough evidence",
            "sentence": "Not enough evidence: the arms real and synthetic_then_real were not both trained.",
        }
    real = [s["segm_map"] for s in arms["real"]["per_seed"]]
    both = [s["segm_map"] for s in arms["synthetic_then_real"]["per_seed"]]
    count = min(len(real), len(both))
    gains = np.array(both[:count]) - np.array(real[:count])
    gain = float(gains.mean())
    text = (
        f"segm mAP {np.mean(real):.3f} with real images alone, {np.mean(both):.3f} with synthetic then real "
        f"({gain:+.3f}, {count} seed{'s' if count > 1 else ''})"
    )
    if count < 3:
        return {
            "outcome": "not enough evidence",
            "gain": gain,
            "sentence": f"Not enough evidence from {count} seed{'s' if count > 1 else ''}: {text}.",
        }
    error = float(gains.std(ddof=1) / np.sqrt(count))
    if gain > 2 * error and gain > 0:
        return {
            "outcome": "use it",
            "gain": gain,
            "standard_error": error,
            "sentence": f"Use it: {text}, standard error {error:.3f}.",
        }
    if gain < 0:
        return {
            "outcome": "do not use it",
            "gain": gain,
            "standard_error": error,
            "sentence": f"Do not use it: {text}, standard error {error:.3f}.",
        }
    return {
        "outcome": "not enough evidence",
        "gain": gain,
        "standard_error": error,
        "sentence": f"Not enough evidence: {text}, standard error {error:.3f}.",
    }


def read_scores(project: Project) -> dict[str, Any]:
    """Read the evaluation's scores."""
    return json.loads(checked(project, "evaluation", "scores.json").read_text())
