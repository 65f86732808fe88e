"""Chooses which drafts share a delivered image: their changes never overlap, and there are as many as in train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from defectory.artifacts.annotation import Instance
from defectory.artifacts.plan import Job
from defectory.rle import box_of

Box = tuple[int, int, int, int]
"""Upper left and lower right corner (x0, y0, x1, y1), pixels."""


def change_boxes(
    instances: Sequence[Instance],
    *,
    margin_px: int,
    corner_yx: tuple[int, int],
    valid_hw: tuple[int, int],
    size_hw: tuple[int, int],
) -> list[Box]:
    """Return a box for each label that holds everything its defect changes, image pixels.

    Args:
        instances: labels as drawn, tile pixels.
        margin_px: of insertion, tile pixels.
        corner_yx: of the window that the tile shows, image pixels.
        valid_hw: image part of the tile, tile pixels.
        size_hw: of the window, image pixels.
    """
    (top, left), (height, width) = corner_yx, size_hw
    factors = width / valid_hw[1], height / valid_hw[0]
    # resizing reaches a pixel farther
    more = 0 if size_hw == valid_hw else 1
    boxes: list[Box] = []
    for instance in instances:
        x0, y0, x1, y1 = box_of(instance.rle)
        boxes.append(
            (
                left + max(0, int(np.floor((x0 - margin_px) * factors[0])) - more),
                top + max(0, int(np.floor((y0 - margin_px) * factors[1])) - more),
                left + min(width, int(np.ceil((x1 + margin_px) * factors[0])) + more),
                top + min(height, int(np.ceil((y1 + margin_px) * factors[1])) + more),
            )
        )
    return boxes


def overlap(boxes: Iterable[Box], others: Sequence[Box]) -> bool:
    """Return whether a box of the one list shares a pixel with a box of the other."""
    return any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a in boxes for b in others)


class FrameSizes:
    """How much each delivered image holds: as many defects as defective images of train have, or a number of drafts.

    Args:
        counts: instances of each defective image of train.
        drafts_per_frame: `auto` for as many defects as in train, or the most drafts.
        seed: of the run.
    """

    def __init__(self, counts: Sequence[int], *, drafts_per_frame: Literal["auto"] | int, seed: int) -> None:
        assert counts, "train holds a defect"
        self._counts, self._wanted, self._seed = sorted(counts), drafts_per_frame, seed

    def wanted(self, image_id: int, number: int) -> int:
        """Return how much the image with this number, of those made from a pool image, is to hold.

        It depends on nothing else, so that plan and export agree.
        """
        if isinstance(self._wanted, int):
            return self._wanted
        rng = np.random.default_rng([61, self._seed, image_id, number])
        return self._counts[int(rng.integers(len(self._counts)))]

    def size_of(self, job: Job) -> int:
        """Return how much a job adds."""
        return len(job.instances) if self._wanted == "auto" else 1

    @property
    def counts_defects(self) -> bool:
        """Return whether defects are counted, not drafts."""
        return self._wanted == "auto"


def share_frames(
    jobs: Sequence[Job], boxes_of: Callable[[Job], Sequence[Box]], *, image_id: int, sizes: FrameSizes
) -> list[list[Job]]:
    """Divide the jobs of one pool image among delivered images; every job is in one of them.

    Jobs are taken in the order of their ids, so that the outcome depends on nothing but the jobs.

    Args:
        jobs: with accepted drafts.
        boxes_of: returns the boxes that a job changes, image pixels.
        image_id: of the pool image.
        sizes: how much each delivered image holds.
    """
    left = sorted(jobs, key=lambda job: job.id)
    frames: list[list[Job]] = []
    while left:
        wanted = sizes.wanted(image_id, len(frames))
        chosen, boxes = [left[0]], list(boxes_of(left[0]))
        have = sizes.size_of(left[0])
        for job in left[1:]:
            own = boxes_of(job)
            if have + sizes.size_of(job) <= wanted and not overlap(own, boxes):
                chosen.append(job)
                boxes += own
                have += sizes.size_of(job)
        taken = {job.id for job in chosen}
        left = [job for job in left if job.id not in taken]
        frames.append(chosen)
    return frames
