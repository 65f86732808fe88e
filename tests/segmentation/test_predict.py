from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import ImageRecord
from defectory.evaluation.detection import coco_truth
from defectory.images.load import load_rgb
from defectory.rle import decode, encode
from defectory.segmentation import predict
from defectory.segmentation.predict import coco_results, predict_images, write_overlay

CATEGORIES = (Category(id=1, name="crack"), Category(id=2, name="blowhole"))
Image = NDArray[np.uint8]


class FindsBright(nn.Module):
    """Takes every connected bright region for a defect: reddish ones are class 1, bluish ones class 2; larger ones
    score higher.
    """

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int]] = []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        (image,) = images
        self.seen.append((image.shape[1], image.shape[2]))
        pixels = image.numpy()
        count, labels = cv2.connectedComponents((pixels.max(axis=0) > 0.5).astype(np.uint8))
        masks = [labels == index for index in range(1, count)]
        scores = [min(0.99, 0.2 + mask.sum() / 1000) for mask in masks]
        classes = [1 if pixels[0][mask].mean() > pixels[2][mask].mean() else 2 for mask in masks]
        stacked = np.stack(masks)[:, None] if masks else np.zeros((0, 1, *labels.shape))
        return [
            {
                "scores": torch.tensor(scores),
                "labels": torch.tensor(classes),
                "masks": torch.from_numpy(stacked.astype(np.float32)),
            }
        ]


def scene(size_hw: tuple[int, int], *boxes: tuple[int, int, int, int, int]) -> tuple[Image, list[NDArray[np.bool_]]]:
    image, masks = np.full((*size_hw, 3), 20, np.uint8), []
    for x0, y0, x1, y1, category_id in boxes:
        mask = np.zeros(size_hw, bool)
        mask[y0:y1, x0:x1] = True
        image[mask] = (255, 60, 60) if category_id == 1 else (60, 60, 255)
        masks.append(mask)
    return image, masks


def test_masks_come_in_the_frame_of_the_whole_image() -> None:
    image, masks = scene((50, 80), (4, 6, 24, 26, 1), (50, 30, 70, 40, 2))
    (found,) = predict_images(FindsBright(), [(7, image)], scale=1.0)
    assert [(p.image_id, p.category_id) for p in found] == [(7, 1), (7, 2)]
    assert all(np.array_equal(decode(p.rle), mask) for p, mask in zip(found, masks, strict=True))


@pytest.mark.parametrize(
    ("scale", "seen_hw"), [(0.5, (60, 40)), (2.0, (240, 160)), (0.3, (36, 24)), (1.37, (164, 110))]
)
def test_images_are_seen_at_the_scale(scale: float, seen_hw: tuple[int, int]) -> None:
    image, masks = scene((120, 80), (8, 16, 48, 56, 1))
    model = FindsBright()
    (found,) = predict_images(model, [(0, image)], scale=scale)
    assert model.seen == [seen_hw]
    mask = decode(found[0].rle)
    assert mask.shape == (120, 80)
    assert (mask & masks[0]).sum() / (mask | masks[0]).sum() > 0.9


@pytest.mark.parametrize("scale", [0.5, 0.37, 2.0])
def test_masks_are_resized_as_opencv_resizes_the_whole(scale: float) -> None:
    rng = np.random.default_rng(4)
    soft_hw = (round(90 * scale), round(120 * scale))
    soft = np.zeros(soft_hw, np.float32)
    height, width = soft_hw[0] // 3, soft_hw[1] // 2
    soft[5 : 5 + height, 7 : 7 + width] = cv2.GaussianBlur(rng.random((height, width)).astype(np.float32), (5, 5), 0)
    ratio_yx = soft_hw[0] / 90, soft_hw[1] / 120
    mask, (y, x) = predict._at_native_size(soft, (0, 0), ratio_yx, (90, 120))
    found = np.zeros((90, 120), bool)
    found[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    whole = cv2.resize(soft, (120, 90), interpolation=cv2.INTER_LINEAR) >= 0.5
    assert whole.any()
    assert (found != whole).mean() < 0.002


def test_large_images_are_seen_in_windows_and_nothing_is_found_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "MAX_SIDE_PX", 64)
    monkeypatch.setattr(predict, "OVERLAP_PX", 24)
    # the second lies in the overlap of two windows, the third is cut by windows on either side, the fourth spans three
    # of them
    image, masks = scene((70, 150), (3, 4, 20, 20, 1), (44, 30, 60, 44, 2), (130, 55, 150, 70, 1), (25, 50, 125, 53, 1))
    model = FindsBright()
    (found,) = predict_images(model, [(0, image)], scale=1.0)
    assert set(model.seen) == {(64, 64)}
    assert len(model.seen) > 4
    assert len(found) == 4
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    assert {decode(p.rle).tobytes() for p in found} == {mask.tobytes() for mask in masks}


def test_neighbours_in_the_overlap_of_windows_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "MAX_SIDE_PX", 64)
    monkeypatch.setattr(predict, "OVERLAP_PX", 24)
    image, masks = scene((40, 104), (42, 5, 52, 35, 1), (54, 5, 62, 35, 1))
    (found,) = predict_images(FindsBright(), [(0, image)], scale=1.0)
    assert {decode(p.rle).tobytes() for p in found} == {mask.tobytes() for mask in masks}


@pytest.mark.parametrize("length", [64, 65, 100, 104, 105, 151, 500])
def test_windows_cover_every_pixel(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "MAX_SIDE_PX", 64)
    monkeypatch.setattr(predict, "OVERLAP_PX", 24)
    covered = np.zeros((30, length), bool)
    for y, x in predict._windows((30, length)):
        assert x + 64 <= length
        covered[y : y + 64, x : x + 64] = True
    assert covered.all()


def test_weak_detections_are_dropped_and_an_empty_image_gives_none() -> None:
    image, _ = scene((50, 80), (4, 6, 34, 36, 1), (60, 30, 64, 34, 2))  # scores 0.99 and 0.216
    (found,) = predict_images(FindsBright(), [(0, image)], scale=1.0, min_score=0.3)
    assert [p.category_id for p in found] == [1]
    assert list(predict_images(FindsBright(), [(0, scene((30, 40))[0])], scale=1.0)) == [[]]


def test_pycocotools_loads_the_results_and_a_perfect_segmenter_scores_one() -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, records = [], []
    for number, boxes in enumerate([[(4, 6, 24, 26, 1), (50, 30, 70, 40, 2)], [(10, 10, 30, 20, 2)]], start=1):
        image, masks = scene((50, 80), *boxes)
        instances = tuple(
            Instance(category_id=box[4], rle=encode(mask)) for box, mask in zip(boxes, masks, strict=True)
        )
        records.append(
            ImageRecord(
                id=number, file_name=f"{number}.png", size_hw=(50, 80), sha256="", group="g", instances=instances
            )
        )
        images.append((number, image))
    results = [row for found in predict_images(FindsBright(), images, scale=1.0) for row in coco_results(found)]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("error")
        truth = COCO()
        truth.dataset = coco_truth(records, CATEGORIES)
        truth.createIndex()
        for kind in ("segm", "bbox"):
            evaluation = COCOeval(truth, truth.loadRes([dict(row) for row in results]), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats[0] == pytest.approx(1.0)


def test_the_overlay_outlines_strong_predictions_and_leaves_the_rest(tmp_path: Path) -> None:
    image, masks = scene((80, 120), (30, 40, 70, 70, 1), (100, 10, 104, 14, 2))
    (found,) = predict_images(FindsBright(), [(0, image)], scale=1.0)
    write_overlay(tmp_path / "overlay.png", image, found, CATEGORIES, min_score=0.5)
    drawn = load_rgb(tmp_path / "overlay.png")
    assert drawn.shape == image.shape
    ring = (cv2.dilate(masks[0].astype(np.uint8), np.ones((3, 3), np.uint8)) > 0) & ~masks[0]
    changed = (drawn != image).any(axis=2)
    assert changed[ring].mean() > 0.9
    weak = slice(8, 16), slice(98, 106)
    assert not changed[weak].any()
    assert not changed[72:].any()
