"""How much each delivered image holds, from the labelled images of train."""

from __future__ import annotations

from defectory.config.project import ProjectConfig
from defectory.runs.store import RunStore
from defectory.synthesis.frames import FrameSizes


def frame_sizes(inputs: RunStore, config: ProjectConfig) -> FrameSizes:
    """Return how much each delivered image holds.

    Raises:
        FirewallError: an image is not in train.
    """
    dataset, split = inputs.data.dataset, inputs.split
    split.require_training_ids(split.train, stage="frames")
    shown = [sum(not i.is_crowd for i in dataset.image(image_id).instances) for image_id in split.train]
    return FrameSizes(
        [count for count in shown if count] or [1], drafts_per_frame=config.synthesis.drafts_per_frame, seed=config.seed
    )
