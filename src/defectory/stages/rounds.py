"""Stages round-2, round-3, ...: draw more drafts of what segmenters miss that know the drafts so far."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from defectory.artifacts.difficulty import Difficulty
from defectory.artifacts.plan import Plan as PlanValue
from defectory.artifacts.primary_metric import METRIC_NAMES, PrimaryMetric
from defectory.artifacts.targets import Targets, ValidationScore
from defectory.config.project import ProjectConfig
from defectory.curation.config import DOUBT_SETTINGS
from defectory.errors import ConfigError
from defectory.events import Notice, Progress, Work, relayed
from defectory.files import DRAWN_NAME
from defectory.folders.swap import remove_leftovers, remove_ours
from defectory.masks.placement import RELATIONS
from defectory.rle import area_px
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.runs.stored import DraftFolder
from defectory.segmentation.arms import ARMS
from defectory.segmentation.sizing import Sizing
from defectory.stages.curate import Curate, curate_drafts, reference_ids
from defectory.stages.export import Export, accepted_jobs, image_ids_of_jobs, write_set
from defectory.stages.folds import NUM_FOLDS, Folds, fold_settings, folds_of, judge_train, train_folds
from defectory.stages.parts.also_controls import also_key
from defectory.stages.parts.further_rounds import further_rounds, round_name
from defectory.stages.parts.images_used import record_images
from defectory.stages.parts.mask_supply import Focus, mask_supply, places_in_train
from defectory.stages.parts.primary_metric import SCORES, choose_metric
from defectory.stages.parts.segmenter_images import made_images, real_images, sizing_of
from defectory.stages.parts.student import student_stage
from defectory.stages.parts.validation import predict, val_records
from defectory.stages.plan import Plan, write_plan
from defectory.stages.segment import Segment
from defectory.stages.synthesize import Synthesize, draw_drafts
from defectory.synthesis.targets import JudgedInstance, cells_of, weights_of

if TYPE_CHECKING:
    from defectory.segmentation.data import SegmentationImage

T = TypeVar("T")
WITHOUT, WITH = "real", "mixed"
"""Arms of the segmenters that are compared on validation: without drafts, and with all drafts so far."""
ENDED = "the rounds had ended"
STEPS: tuple[type[Stage], ...] = (Folds, Plan, Synthesize, Curate, Export, Segment)
"""Stages whose code a round runs."""


class Round(Stage):
    """Draws a further round of drafts, if those so far have raised the score on validation.

    Segmenters that are trained on real images and the drafts so far judge train images that they have not seen, nor any
    draft that takes its background or a mask from them. Yet the base, the control network and a mask model have learned
    from all of train, so the drafts are not wholly new to these images.

    Args:
        number: of the round, from 2.
    """

    VERSION = 5
    is_resumable = True

    def __init__(self, number: int) -> None:
        self.number = number
        self.name, self.folder = round_name(number), layout.round_folder(number)

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read what plan, synthesize and curate read, and the drafts of all rounds before."""
        curation = config.curation
        judged = "agreement" in curation.checks or "segmenter" in curation.ignore
        return (
            *("import", "split", "tiles", "learn-concept", "learn-condition", *student_stage(config)),
            *(("folds",) if judged else ()),
            *(("learn-masks",) if config.masks.sources.diffusion > 0 else ()),
            *("plan", "calibrate", "synthesize", "curate"),
            *further_rounds(config, before=self.number),
        )

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on everything that decides what is missed, drawn and accepted."""
        segmentation, curation = config.segmentation, config.curation
        synthesis = config.synthesis.of_round(self.number)
        return {
            "code of its steps": [stage.VERSION for stage in STEPS],
            "segmentation": {**segmentation.of_one_training(), "fold_steps": segmentation.fold_steps},
            "arms": [ARMS.get(arm).content() for arm in (WITHOUT, WITH)],
            "masks": config.masks.model_dump(mode="json"),
            "drivers": config.drivers.model_dump(mode="json"),
            "augmentation": config.augmentation.model_dump(mode="json"),
            # the focus is that of the first round
            "synthesis": synthesis.model_dump(mode="json", exclude={"rounds", "focus", "also_controls"}),
            **also_key(config, sources),
            "curation": curation.model_dump(mode="json", exclude=None if curation.ignore else set(DOUBT_SETTINGS)),
            "prompts.defect_noun": config.prompts.defect_noun,
            "seed": config.seed,
            "files of segmentation.weights": sources.listing(segmentation.weights),
            "files of masks.expert": sources.listing(config.masks.expert),
            "files of masks.regions": sources.listing(config.masks.regions),
            "files of drivers.drawings": sources.listing(config.drivers.drawings),
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Validate, judge train, and draw and curate drafts of what is missed."""
        remove_leftovers(out)
        work = _Round(inputs, config, out, number=self.number)
        targets, plan = yield from work.targets()
        record_images(
            out,
            validation=[of.id for of in work.val] if targets.validation else (),
            reference=() if targets.is_over else reference_ids(inputs, config),
        )
        targets.save(out / layout.TARGETS_FILE)
        if plan is None:
            return "; ".join([*_told_scores(targets), f"no further draft: {targets.why}"])
        drafts = DraftFolder(folder=out / layout.ROUND_DRAFTS)
        yield from _noted("drafts", draw_drafts(inputs, config, plan, drafts.folder))
        earlier = [(job, inputs.drafts.pair(job)[0]) for job in inputs.plan.jobs]
        curated = yield from _noted("curation", curate_drafts(inputs, config, plan, drafts, out, earlier=earlier))
        # what is finished needs no list of finished drafts
        (drafts.folder / DRAWN_NAME).unlink(missing_ok=True)
        cells = f"{targets.num_missed_cells} of {len(targets.cells)} cells of class, size and place"
        drawn = f"{len(plan.jobs)} drafts for what is missed in {cells}"
        return "; ".join([*_told_scores(targets), drawn, curated])


def _told_scores(targets: Targets) -> list[str]:
    names = {WITHOUT: "without drafts", WITH: "with the drafts so far"}
    shown = ", ".join(f"{of.score:.3f} {names[of.arm]}" for of in targets.validation)
    before = "" if targets.best_before is None else f" (best before {targets.best_before:.3f})"
    return [f"validation {METRIC_NAMES[targets.metric]} {shown}{before}"] if shown else []


class _Round:
    """The steps of a round. Each leaves files behind, so that a killed round goes on where it was."""

    def __init__(self, inputs: RunStore, config: ProjectConfig, out: Path, *, number: int) -> None:
        from defectory.engine.devices import device_of

        self._inputs, self._config, self._out, self._number = inputs, config, out, number
        self._device = device_of(config.device, threads=config.threads)
        self._stage = round_name(number)
        self._accepted = accepted_jobs(inputs.plan, inputs.decisions)
        self.val = val_records(inputs, config.segmentation.max_val_images)
        self._metric: PrimaryMetric = choose_metric(inputs, config.segmentation).metric

    def targets(self) -> Work[tuple[Targets, PlanValue | None]]:
        """Decide for which cells the round draws drafts, and plan these; the plan is None if it draws none."""
        rounds = self._inputs.rounds
        last = rounds[-1] if rounds else None
        found = Targets(
            round=self._number,
            earlier_digest=self._inputs.plan.digest(),
            metric=self._metric,
            best_before=None if last is None else last.best,
        )
        if last is not None and last.is_over:
            return _over(found, ENDED), None
        newest = {job.id for job in self._inputs.plan.jobs[-self._part(self._number - 1) :]}
        if not any(job.id in newest for job in self._accepted):
            return _over(found, f"curation accepted no draft of round {self._number - 1}"), None
        scores: list[ValidationScore] = []
        for arm in (WITHOUT, WITH) if last is None else (WITH,):
            score = yield from self._validated(arm)
            scores.append(ValidationScore(arm=arm, score=score))
        found = found.model_copy(update={"validation": tuple(scores)})
        before = max([of.score for of in scores[:-1]], default=found.best_before)
        if before is not None and scores[-1].score <= before:
            return _over(found, f"the drafts of round {self._number - 1} did not raise the score on validation"), None
        difficulty = yield from self._difficulty()
        instances = judged_instances(self._inputs, self._config, difficulty)
        cells = cells_of(instances, num_drafts=self._part(self._number))
        left_out = len(difficulty.instances) - len(instances)
        found = found.model_copy(update={"cells": cells, "num_left_out": left_out})
        if not found.num_missed_cells:
            return _over(found, "segmenters miss no defect of train that masks can be taken from"), None
        try:
            plan = self._plan(Focus(weights=weights_of(instances, cells), others=0.0))
        except ConfigError as error:
            # what was drawn is kept: few masks are missed, and these may not fit or may be used up
            return _over(found, f"its drafts cannot be planned ({error})"), None
        return found.model_copy(update={"num_drafts": len(plan.jobs)}), plan

    def _part(self, number: int) -> int:
        return self._config.synthesis.of_round(number).num_images

    def _validated(self, arm: str) -> Work[float]:
        """Train a segmenter on real images, and on all accepted drafts if the arm takes them; return its best score."""
        from defectory.engine.training.events import plain
        from defectory.segmentation.training import train_segmenter

        inputs, config, folder = self._inputs, self._config, self._out / layout.validation_folder(arm)
        data, split, settings = inputs.data, inputs.split, fold_settings(config.segmentation)
        log = folder / layout.SEGMENTER_LOG
        # it is written last
        if not log.is_file():
            sizing = sizing_of(inputs, input_px=settings.input_px, scale=settings.scale)
            real, free = real_images(inputs, sizing, seed=config.seed, stage=self._stage)
            made = self._made((), sizing) if arm == WITH else []

            def validate(model: Any) -> float:
                results = predict(model, data, self.val, sizing.scale)
                return SCORES[self._metric](self.val, data.dataset.categories, results)

            training = train_segmenter(
                # accepted labels may all be too small to see
                arm=arm if made else WITHOUT,
                images={"real": real, "defect_free": free, **({"synthetic": made} if made else {})},
                validate=validate,
                categories=data.dataset.categories,
                sizing=sizing,
                config=settings,
                seed=config.seed,
                out=folder,
                metric=self._metric,
                device=self._device,
                weights=None if settings.weights is None else inputs.sources.path(settings.weights),
                value_range=data.dataset.value_range,
                require=lambda ids, what: split.require_training_ids(ids, stage=f"{self._stage}, {what}"),
            )
            yield from _noted(f"validation, {arm}", plain(training))
        _keep_log(folder)
        return max(0.0, float(json.loads(log.read_bytes())["best_val_score"]))

    def _difficulty(self) -> Work[Difficulty]:
        """Score every train instance with fold segmenters that have seen neither its image nor a draft made from it."""
        inputs, config, out = self._inputs, self._config, self._out
        folders = [out / layout.fold_folder(fold) for fold in range(NUM_FOLDS)]
        path = out / layout.DIFFICULTY_FILE
        if not path.is_file():
            fold_of = folds_of(inputs.data.dataset, inputs.split.train, seed=config.seed)
            training = train_folds(
                inputs, config, fold_of, out=out, device=self._device, stage=self._stage, drafts=self._made
            )
            yield from _noted("folds", training)
            judge_train(inputs, fold_of, out=out, device=self._device, stage=self._stage).save(path)
        for folder in folders:
            _keep_log(folder)
        return Difficulty.load(path)

    def _made(self, left_out: Collection[int], sizing: Sizing) -> list[SegmentationImage]:
        """Return the accepted drafts with no background and no mask from some images, as a user would load them."""
        inputs, config, folder = self._inputs, self._config, self._out / layout.ROUND_SET
        image_ids = image_ids_of_jobs(inputs, self._accepted)
        only = {job.id for job in self._accepted if not set(image_ids[job.id]) & set(left_out)}
        if not only:
            return []
        write_set(inputs, config, folder, only=only)
        made = made_images(folder, inputs, sizing, seed=config.seed)
        remove_ours(folder)
        return made

    def _plan(self, focus: Focus) -> PlanValue:
        """Return the plan of the round, which continues those before."""
        path, earlier = self._out / layout.PLAN_FILE, self._inputs.plan.jobs
        if not path.is_file():
            supply = mask_supply(self._inputs, self._config, focus=focus, earlier=earlier)
            write_plan(self._inputs, self._config, supply, focus, self._out, number=self._number, earlier=earlier)
        return PlanValue.load(path)


def judged_instances(inputs: RunStore, config: ProjectConfig, difficulty: Difficulty) -> list[JudgedInstance]:
    """Return the train instances of the mask bank with area, place, and how well segmenters find them."""
    ious = {(of.image_id, of.number): of.iou for of in difficulty.instances}
    dataset = inputs.data.dataset
    return [
        JudgedInstance(
            image_id=entry.image_id,
            number=entry.number,
            category_id=entry.category_id,
            area_px=area_px(dataset.image(entry.image_id).instances[entry.number].rle),
            place=RELATIONS[place],
            iou=ious[entry.image_id, entry.number],
        )
        for entry, place in places_in_train(inputs, config)
    ]


def _over(targets: Targets, why: str) -> Targets:
    return targets.model_copy(update={"is_over": True, "why": why})


def _keep_log(folder: Path) -> None:
    """Remove the weights of a segmenter, which nothing needs once it has been scored."""
    from defectory.engine.training.checkpoint import remove_checkpoint
    from defectory.segmentation.training import FILES

    remove_checkpoint(folder / "checkpoint")
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def _noted(note: str, work: Work[T]) -> Work[T]:
    """Pass on the events of a step, with its name."""

    def told(event: Progress | Notice) -> Iterable[Progress | Notice]:
        if isinstance(event, Progress):
            event = Progress(done=event.done, total=event.total, note=f"{note}, {event.note}" if event.note else note)
        yield event

    return relayed(work, told)
