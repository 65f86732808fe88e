from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.artifacts.dataset import ImageRecord
from defectory.rle import Rle, decode, encode
from defectory.segmentation.sizing import Sizing, box_statistics, choose_sizing
from defectory.segmentation.windows import cut_windows, visible

BRIGHT = 250
Box = tuple[int, int, int, int]


def scene(size_hw: tuple[int, int], *boxes: Box) -> tuple[NDArray[np.uint8], list[tuple[int, Rle]]]:
    """A dark image with bright rectangles (x0, y0, x1, y1), of classes 1, 2, ..."""
    image = np.full((*size_hw, 3), 30, np.uint8)
    instances: list[tuple[int, Rle]] = []
    for number, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        mask = np.zeros(size_hw, bool)
        mask[y0:y1, x0:x1] = True
        image[mask] = BRIGHT
        instances.append((number, encode(mask)))
    return image, instances


def record(size_hw: tuple[int, int], *boxes: Box) -> ImageRecord:
    _, instances = scene(size_hw, *boxes)
    found = tuple(Instance(category_id=label, rle=rle) for label, rle in instances)
    return ImageRecord(id=1, file_name="a.png", size_hw=size_hw, sha256="", group="g", instances=found)


def test_an_image_that_fits_stays_whole() -> None:
    image, instances = scene((100, 120), (10, 20, 30, 60))
    real, free = cut_windows(
        image, instances, name="a", image_ids=(4,), sizing=Sizing(scale=0.5, input_px=64), seed=0, num_free=3
    )
    (whole,) = real
    assert not free
    assert whole.image.shape == (50, 60, 3)
    assert whole.image_ids == (4,)
    assert np.array_equal(decode(whole.instances[0][1]), whole.image[..., 0] > 140)
    empty, alone = cut_windows(
        image, (), name="b", image_ids=(5,), sizing=Sizing(scale=0.5, input_px=64), seed=0, num_free=3
    )
    assert not empty
    assert [window.image.shape for window in alone] == [(50, 60, 3)]


def test_every_defect_of_a_large_image_lies_whole_in_a_window_and_free_windows_show_none() -> None:
    image, instances = scene((700, 900), (20, 30, 60, 50), (850, 640, 890, 690), (30, 60, 50, 70))
    sizing = Sizing(scale=1.0, input_px=64)
    real, free = cut_windows(image, instances, name="a", image_ids=(1,), sizing=sizing, seed=3, num_free=5)
    areas = {1: 800, 2: 2000, 3: 200}
    seen = {label: int(decode(rle).sum()) for window in real for label, rle in window.instances}
    assert seen == areas
    for window in real:
        assert window.image.shape == (128, 128, 3)
        union = np.any([decode(rle) for _, rle in window.instances], axis=0)
        assert np.array_equal(union, window.image[..., 0] == BRIGHT)
    assert len(free) == 5
    assert all((window.image == 30).all() and not window.instances for window in free)
    again, _ = cut_windows(image, instances, name="a", image_ids=(1,), sizing=sizing, seed=3)
    assert [w.digest() for w in again] == [w.digest() for w in real]
    other, _ = cut_windows(image, instances, name="a", image_ids=(1,), sizing=sizing, seed=4)
    assert [w.digest() for w in other] != [w.digest() for w in real]


def test_a_crowd_is_neither_an_instance_nor_defect_free_ground() -> None:
    image, instances = scene((700, 900), (20, 30, 60, 50), (300, 300, 600, 600))
    crowd = instances[1][1]
    _, free = cut_windows(
        image,
        instances[:1],
        name="a",
        image_ids=(1,),
        sizing=Sizing(scale=1.0, input_px=64),
        seed=0,
        num_free=100,
        crowds=[crowd],
    )
    assert free
    assert all((window.image == 30).all() for window in free)
    small, alone = scene((100, 120), (10, 20, 30, 60))
    sizing = Sizing(scale=0.5, input_px=64)
    none = cut_windows(small, (), name="b", image_ids=(2,), sizing=sizing, seed=0, num_free=3, crowds=[alone[0][1]])
    assert none == ([], [])


def test_a_defect_larger_than_a_window_is_shown_in_part() -> None:
    image, instances = scene((300, 1200), (20, 140, 1180, 150))
    (window,), _ = cut_windows(
        image, instances, name="a", image_ids=(1,), sizing=Sizing(scale=1.0, input_px=64), seed=0
    )
    assert int(decode(window.instances[0][1]).sum()) >= 640


def test_a_sliver_is_not_an_instance() -> None:
    mask = np.ones((10, 12), bool)
    assert visible(mask, (4, 5), (40, 50)) is not None
    assert visible(mask, (-8, 5), (40, 50)) is None, "a fifth of it"
    part = visible(mask, (-7, 5), (40, 50))
    assert part is not None
    assert part[0].shape == (3, 12)
    assert visible(mask, (60, 5), (40, 50)) is None


@pytest.mark.parametrize(
    ("size_hw", "box", "scale"),
    [
        ((200, 160), (10, 10, 50, 50), 1.0),  # fits as it is, and is never enlarged
        ((400, 512), (10, 10, 110, 110), 0.5),  # whole images
        ((3000, 4000), (10, 10, 30, 30), 0.25),  # a defect of 20 px must keep 5
        ((3000, 4000), (10, 10, 90, 14), 1.0),  # a crack of 4 px keeps all
    ],
)
def test_the_scale_shows_whole_images_unless_defects_become_thin(
    size_hw: tuple[int, int], box: Box, scale: float
) -> None:
    chosen = choose_sizing([record(size_hw, box)], input_px=256, scale=None)
    assert chosen.scale == pytest.approx(scale)
    assert chosen.reason.startswith("whole images" if scale in (1.0, 0.5) and size_hw != (3000, 4000) else "crops")
    assert choose_sizing([record(size_hw, box)], input_px=256, scale=0.7).scale == 0.7


def test_statistics_of_boxes() -> None:
    found = box_statistics([(10.0, 10.0)] * 50 + [(40.0, 160.0)] * 50)
    assert found is not None
    assert (found.small_px, found.large_px, found.elongation) == (10.0, 80.0, 4.0)
    assert box_statistics([]) is None
