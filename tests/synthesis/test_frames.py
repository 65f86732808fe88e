from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defectory.artifacts.annotation import Instance
from defectory.artifacts.plan import Job
from defectory.geometry import distance_to
from defectory.rle import encode
from defectory.synthesis.frames import Box, FrameSizes, change_boxes, overlap, share_frames

TILE_HW = (48, 64)


def job(number: int, *boxes: Box) -> Job:
    instances: list[Instance] = []
    for x0, y0, x1, y1 in boxes:
        mask = np.zeros(TILE_HW, bool)
        mask[y0:y1, x0:x1] = True
        instances.append(Instance(category_id=1, rle=encode(mask)))
    return Job(
        id=f"{number:06d}",
        tile_id="p",
        augmentation_seed=None,
        instances=tuple(instances),
        mask_sources=(),
        prompt="",
        prompt_without="",
        seed=number,
    )


def boxes_of(of: Job) -> list[Box]:
    return change_boxes(of.instances, margin_px=4, corner_yx=(0, 0), valid_hw=TILE_HW, size_hw=TILE_HW)


def random_jobs(seed: int, count: int) -> list[Job]:
    rng = np.random.default_rng(seed)
    jobs: list[Job] = []
    for number in range(count):
        boxes: list[Box] = []
        for _ in range(int(rng.integers(1, 4))):
            y, x = int(rng.integers(0, 40)), int(rng.integers(0, 54))
            boxes.append((x, y, x + int(rng.integers(1, 9)), y + int(rng.integers(1, 8))))
        jobs.append(job(number, *boxes))
    return jobs


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 25), wanted=st.sampled_from(["auto", 1, 2, 5]))
def test_every_draft_is_in_one_image_and_changes_never_overlap(seed: int, count: int, wanted: object) -> None:
    jobs = random_jobs(seed, count)
    sizes = FrameSizes([1, 2, 2, 3, 6], drafts_per_frame=wanted, seed=seed)  # type: ignore[arg-type]
    frames = share_frames(jobs, boxes_of, image_id=7, sizes=sizes)
    assert sorted(of.id for frame in frames for of in frame) == [of.id for of in jobs]
    for number, frame in enumerate(frames):
        for at, first in enumerate(frame):
            for second in frame[at + 1 :]:
                assert not overlap(boxes_of(first), boxes_of(second))
        if len(frame) > 1:
            assert sum(sizes.size_of(of) for of in frame) <= sizes.wanted(7, number)


def test_the_division_does_not_depend_on_the_order_of_the_jobs() -> None:
    jobs = random_jobs(3, 20)
    sizes = FrameSizes([1, 2, 3], drafts_per_frame="auto", seed=0)
    assert share_frames(jobs, boxes_of, image_id=1, sizes=sizes) == share_frames(
        jobs[::-1], boxes_of, image_id=1, sizes=sizes
    )


def test_images_hold_as_many_defects_as_those_of_train() -> None:
    counts = [1] * 6 + [2] * 3 + [5]
    sizes = FrameSizes(counts, drafts_per_frame="auto", seed=0)
    drawn = Counter(sizes.wanted(image_id, 0) for image_id in range(2000))
    assert {count: drawn[count] / 2000 for count in (1, 2, 5)} == pytest.approx({1: 0.6, 2: 0.3, 5: 0.1}, abs=0.04)
    assert sizes.wanted(3, 1) == FrameSizes(counts[::-1], drafts_per_frame="auto", seed=0).wanted(3, 1)
    assert len({sizes.wanted(3, number) for number in range(30)}) > 1
    assert {FrameSizes(counts, drafts_per_frame=4, seed=0).wanted(i, 0) for i in range(9)} == {4}


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), zoom=st.sampled_from([1.0, 1.7, 0.6, 2.0]), margin=st.integers(2, 9))
def test_a_box_holds_all_that_insertion_changes(seed: int, zoom: float, margin: int) -> None:
    import cv2

    (of,) = random_jobs(seed, 1)
    size_hw = round(TILE_HW[0] * zoom), round(TILE_HW[1] * zoom)
    boxes = change_boxes(of.instances, margin_px=margin, corner_yx=(5, 9), valid_hw=TILE_HW, size_hw=size_hw)
    held = np.zeros((200, 200), bool)
    for x0, y0, x1, y1 in boxes:
        held[y0:y1, x0:x1] = True
    label = np.any([np.asarray(mask) for mask in _masks(of)], axis=0)
    reached = (distance_to(label) < margin).astype(np.uint8)
    if size_hw != TILE_HW:
        reached = cv2.resize(reached, size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    changed = np.zeros_like(held)
    changed[5 : 5 + size_hw[0], 9 : 9 + size_hw[1]] = reached > 0
    assert not (changed & ~held).any()


def _masks(of: Job) -> list[np.ndarray]:
    from defectory.rle import decode

    return [decode(instance.rle) for instance in of.instances]
