"""Finds what is doubtful in the accepted drafts of a run, by the witnesses that the configuration names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.doubt import Doubts, DraftDoubt
from defectory.artifacts.plan import Decisions, Job, Plan
from defectory.config.project import ProjectConfig
from defectory.curation.doubt import (
    ClassMeans,
    Detection,
    Losses,
    by_difference,
    by_losses,
    class_means,
    judges_of,
    losses_of,
    no_doubt,
    require_cross_fitted,
)
from defectory.events import Progress, Work
from defectory.images.load import load_rgb
from defectory.rle import decode, encode
from defectory.runs import layout
from defectory.runs.store import RunStore
from defectory.runs.stored import DraftFolder
from defectory.stages.export import accepted_jobs, image_ids_of_jobs
from defectory.stages.folds import NUM_FOLDS, FoldSegmenters, tile_scale_of

Label = tuple[int, NDArray[np.bool_]]
REPORT_EVERY = 20
"""Drafts between two progress events."""


def doubts_of(
    inputs: RunStore, config: ProjectConfig, decisions: Decisions, *, plan: Plan, drafts: DraftFolder
) -> Work[Doubts]:
    """Find the doubtful pixels and instances of every accepted draft of a round.

    Args:
        inputs: of the stage.
        config: of the project.
        decisions: of the round.
        plan: of the round.
        drafts: of the round.

    Raises:
        FirewallError: a segmenter would judge a draft made from an image that it trained on.
    """
    curation, jobs = config.curation, accepted_jobs(plan, decisions)
    sizes_hw = {tile.id: tile.valid_hw for tile in inputs.tiles.tileset.of("pool")}
    judged = _Judged(inputs, config, jobs, drafts, sizes_hw) if "segmenter" in curation.ignore else None
    means = None if judged is None else (yield from judged.means())
    doubts: list[DraftDoubt] = []
    for job in jobs:
        labels, size_hw = _labels(job, sizes_hw[job.tile_id])
        found = no_doubt(labels, size_hw)
        if "difference" in curation.ignore and any(mask.any() for _, mask in labels):
            with_mask, without = (load_rgb(path)[: size_hw[0], : size_hw[1]] for path in drafts.pair(job))
            found |= by_difference(
                with_mask,
                without,
                [mask for _, mask in labels],
                difference_threshold=curation.difference_threshold,
                min_fidelity=curation.doubt_fidelity,
            )
        judges: tuple[int, ...] = ()
        if judged is not None and means is not None:
            judges = judged.judges[job.id]
            if judges:
                categories = [category_id for category_id, _ in labels]
                found |= by_losses(judged.losses(job), categories, means, multiple=curation.doubt_multiple)
        doubts.append(
            DraftDoubt(job_id=job.id, ignore=encode(found.ignore), is_doubtful=found.is_doubtful, judges=judges)
        )
    return Doubts(plan_digest=plan.digest(), witnesses=curation.ignore, drafts=tuple(doubts))


def _labels(job: Job, size_hw: tuple[int, int]) -> tuple[list[Label], tuple[int, int]]:
    """Return the label of a job on the image part of its tile, and the size of that part."""
    height, width = size_hw
    return [(i.category_id, decode(i.rle)[:height, :width]) for i in job.instances], size_hw


class _Judged:
    """What the fold segmenters find on drafts, each draft judged only by those that know none of its images."""

    def __init__(
        self,
        inputs: RunStore,
        config: ProjectConfig,
        jobs: Sequence[Job],
        drafts: DraftFolder,
        sizes_hw: Mapping[str, tuple[int, int]],
    ) -> None:
        self._inputs, self._config, self._jobs, self._sizes_hw = inputs, config, jobs, sizes_hw
        self._drafts = drafts
        logs = [inputs.fold(fold) / layout.SEGMENTER_LOG for fold in range(NUM_FOLDS)]
        trained_on = [frozenset[int](json.loads(path.read_bytes())["image_ids"]) for path in logs]
        image_ids = image_ids_of_jobs(inputs, jobs)
        self.judges = {job.id: judges_of(image_ids[job.id], trained_on) for job in jobs}
        for job in jobs:
            require_cross_fitted(self.judges[job.id], image_ids[job.id], trained_on, what=f"draft {job.id}")
        self._seen: dict[str, list[list[Detection]]] = {}

    def means(self) -> Work[ClassMeans]:
        """Detect defects on all drafts that have a judge, and compute the mean losses by class."""
        from defectory.engine.devices import device_of

        inputs, config = self._inputs, self._config
        segmenters = FoldSegmenters(
            [inputs.fold(fold) for fold in range(NUM_FOLDS)],
            device_of(config.device, threads=config.threads),
            tile_scale=tile_scale_of(inputs.tiles.tileset),
        )
        judged = [job for job in self._jobs if self.judges[job.id]]
        for done, job in enumerate(judged, start=1):
            height, width = self._sizes_hw[job.tile_id]
            image = np.ascontiguousarray(self._drafts.image(job)[:height, :width])
            self._seen[job.id] = segmenters.detections(image, folds=self.judges[job.id])
            if done % REPORT_EVERY == 0 or done == len(judged):
                yield Progress(done=done, total=len(judged), note="doubt")
        return class_means((self.losses(job), [i.category_id for i in job.instances]) for job in judged)

    def losses(self, job: Job) -> Losses:
        """Return the losses of a draft; masks stay run lengths meanwhile, since pixel maps of all would fill memory."""
        return losses_of(self._seen[job.id], *_labels(job, self._sizes_hw[job.tile_id]))
