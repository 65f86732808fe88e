"""Pictures of test images beside what segmenters find on them: the best and the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.dataset import ImageRecord
from defectory.artifacts.segmenter_card import SegmenterCard
from defectory.drawing import Colour, draw_outlines, fitted_size_hw
from defectory.drivers.palette import palette
from defectory.evaluation.scenes import Region, Scene, mask_within, scenes_of, union_box
from defectory.report.content import Cell, Grid
from defectory.runs.store import RunStore
from defectory.stages.parts.report_tables import arm_name

Window = tuple[slice, slice]
NUM_IMAGES = 6
MOST_RIGHT, MOST_WRONG = "most right", "most wrong"
WINDOW_PX, CELL_PX, MARGIN_PX = 512, 288, 24
"""Larger images are cut to this side around their regions; side of a picture; and what it shows around a region."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A segmenter whose detections are shown.

    Attributes:
        name: of its row.
        scenes: by image id, with detections at or above its score threshold.
    """

    name: str
    scenes: Mapping[int, Scene]


def prediction_grids(inputs: RunStore, scores: Mapping[str, Any], card: SegmenterCard | None) -> list[Grid]:
    """Return the test images on which the best segmenter is most right and most wrong, beside the compared arm.

    Args:
        inputs: of the stage; test images are shown, and nothing is trained afterwards.
        scores: of the stage `evaluate`.
        card: of the best segmenter; without one there are no pictures.
    """
    if card is None:
        return []
    verdict, data = scores["verdict"], inputs.data
    records = [data.dataset.image(image_id) for image_id in inputs.split.test]
    best = _shown(inputs, records, card.arm, card.seed, name=f"{card.arm_words}, the best segmenter")
    chosen = choose_images([best.scenes[record.id] for record in records])
    drawn = [record for images in chosen.values() for record in images]
    others = [
        _shown(inputs, drawn, arm, card.seed, name=f"{arm_name(arm)}, for comparison")
        for arm in dict.fromkeys((verdict.get("reference"), verdict.get("candidate")))
        if arm in scores["arms"] and arm != card.arm and inputs.segmenter(arm, card.seed).skipped is None
    ]
    note = (
        "Whole images, or a part of large ones, by the IoU of all labels with all detections from the score threshold "
        "on. Half of the wrong ones are good images with false alarms, where there are any. Outlines have the colours "
        "of the classes."
    )
    return [
        Grid(
            title=f"Test images on which the best segmenter is {which}",
            rows=_rows(inputs, images, [best, *others]),
            note=note if which == MOST_RIGHT else "",
        )
        for which, images in chosen.items()
        if images
    ]


def choose_images(scenes: Sequence[Scene]) -> dict[str, list[ImageRecord]]:
    """Choose defective images by their agreement, and good images by their strongest false alarm."""
    defective = sorted(
        (scene for scene in scenes if scene.true), key=lambda scene: (agreement(scene) or 0.0, scene.record.id)
    )
    alarmed = sorted(
        (scene for scene in scenes if scene.record.is_defect_free and scene.found),
        key=lambda scene: -max(region.score for region in scene.found),
    )[: NUM_IMAGES // 2]
    right = [scene for scene in defective[::-1] if agreement(scene)][: min(NUM_IMAGES, -(-len(defective) // 2))]
    wrong = [scene for scene in defective if scene not in right][: NUM_IMAGES - len(alarmed)]
    return {MOST_RIGHT: [s.record for s in right], MOST_WRONG: [s.record for s in (*wrong, *alarmed)]}


def agreement(scene: Scene) -> float | None:
    """Return the IoU of all labels with all detections; None where there is neither."""
    regions = [*scene.true, *scene.found]
    if not regions:
        return None
    box = union_box(regions)
    true, found = mask_within(scene.true, box), mask_within(scene.found, box)
    return float((true & found).sum()) / float((true | found).sum())


def _shown(inputs: RunStore, records: Sequence[ImageRecord], arm: str, seed: int, *, name: str) -> Shown:
    from defectory.segmentation.training import score_threshold_of

    threshold = score_threshold_of(inputs.segmenter(arm, seed).folder)
    results = [found for found in inputs.predictions(arm, seed) if found["score"] >= threshold]
    return Shown(name=name, scenes={scene.record.id: scene for scene in scenes_of(records, results)})


def _rows(inputs: RunStore, images: Sequence[ImageRecord], shown: Sequence[Shown]) -> list[tuple[str, list[Cell]]]:
    names = {category.id: category.name for category in inputs.data.dataset.categories}
    colours = [(int(row[0]), int(row[1]), int(row[2])) for row in palette(len(names))]
    rows: list[tuple[str, list[Cell]]] = [(name, []) for name in ("label", *(of.name for of in shown))]
    for record in images:
        scenes = [of.scenes[record.id] for of in shown]
        window, true = _window(record, scenes), scenes[0].true
        part = inputs.data.image(record)[window]

        def picture(regions: Sequence[Region], part: Any = part, window: Window = window) -> Any:
            return _outlined(part, [(colours[region.category_id - 1], _mask(region, window)) for region in regions])

        classes = ", ".join(dict.fromkeys(names[region.category_id] for region in true)) or "no defect"
        rows[0][1].append(Cell(image=picture(true), caption=f"{record.file_name}: {classes}"))
        for (_, cells), scene in zip(rows[1:], scenes, strict=True):
            told = ", ".join(f"{names[region.category_id]} {region.score:.2f}" for region in scene.found)
            rated = agreement(scene)
            overlap = "" if rated is None else f"IoU {rated:.2f}: "
            cells.append(Cell(image=picture(scene.found), caption=f"{overlap}{told or 'nothing found'}"))
    return rows


def _outlined(part: NDArray[np.uint8], masks: Sequence[tuple[Colour, NDArray[np.bool_]]]) -> NDArray[np.uint8]:
    """Draw outlines on a part of an image, at most `CELL_PX` large, and enlarged if it is much smaller."""
    height, width = fitted_size_hw((part.shape[0], part.shape[1]), CELL_PX)
    if height < part.shape[0]:
        part = np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        # thin defects stay whole
        masks = [
            (colour, cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0)
            for colour, mask in masks
        ]
    return draw_outlines(part, masks, zoom=max(1, height // part.shape[0]))


def _mask(region: Region, window: Window) -> NDArray[np.bool_]:
    """Return a region within rows and columns of its image, bool."""
    rows, columns = window
    mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), bool)
    left, top = region.box[0] - columns.start, region.box[1] - rows.start
    ys, xs = np.nonzero(region.crop)
    inside = (ys + top >= 0) & (ys + top < mask.shape[0]) & (xs + left >= 0) & (xs + left < mask.shape[1])
    mask[ys[inside] + top, xs[inside] + left] = True
    return mask


def _window(record: ImageRecord, scenes: Sequence[Scene]) -> Window:
    """Return the rows and columns to show: the whole image, or a part of a large one around its largest region."""
    if max(record.size_hw) <= WINDOW_PX:
        return slice(0, record.size_hw[0]), slice(0, record.size_hw[1])
    regions = [region for scene in scenes for region in scene.true or scene.found]
    largest = max(regions, key=lambda region: region.area_px)
    left, top, right, bottom = largest.box
    side = max(WINDOW_PX // 2, right - left + 2 * MARGIN_PX, bottom - top + 2 * MARGIN_PX)

    def part(begin: int, end: int, whole: int) -> slice:
        first = max(0, min((begin + end) // 2 - side // 2, whole - side))
        return slice(first, min(whole, first + side))

    return part(top, bottom, record.size_hw[0]), part(left, right, record.size_hw[1])
