"""Initial weights of the light segmenters: one class, `defect`, learned from procedural images alone.

Every arm starts from the same weights. Users of larger Mask R-CNNs start from COCO weights for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from defectory.errors import WeightsError
from defectory.files import digest_file, write_json
from defectory.folders.swap import atomic_folder
from defectory.rle import encode
from defectory.segmentation.data import SegmentationImage

CLASS_NAME = "defect"
CLASS_HEADS = ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred", "roi_heads.mask_predictor.2")
"""Layers with rows per class, background first. Box regression has four rows per class."""
MIN_AREA_PX = 12
SHIPPED = Path(str(files("defectory.segmentation") / "weights"))
"""Folder of the shipped initial weights, by family."""


def shipped_start(family: str = "light") -> Path:
    """Return the folder of a family's shipped initial weights."""
    return SHIPPED / family


def image_of_class_map(name: str, image: NDArray[np.uint8], class_map: NDArray[np.uint8]) -> SegmentationImage:
    """Convert a procedural image to a training image; each connected region of a defect word is an instance."""
    instances: list[tuple[int, Any]] = []
    for word in np.unique(class_map[class_map > 0]):
        count, labels = cv2.connectedComponents((class_map == word).astype(np.uint8), connectivity=8)
        regions = (labels == index for index in range(1, count))
        instances += [(1, encode(region)) for region in regions if region.sum() >= MIN_AREA_PX]
    return SegmentationImage(id=name, image=image, instances=tuple(instances))


def save_start(trained: Path, out: Path, *, without: tuple[str, ...] = ()) -> None:
    """Write a one-class segmenter trained on procedural images as fp16 weights with their digest.

    Args:
        trained: its folder.
        out: folder, replaced.
        without: tensors whose names begin with one of these are left out, since they come from elsewhere.
    """
    whole = load_file(trained / "model.safetensors")
    state = {name: value for name, value in whole.items() if not without or not name.startswith(without)}
    with atomic_folder(out, kind="base") as folder:
        save_file({name: value.half().contiguous() for name, value in state.items()}, folder / "model.safetensors")
        write_json(folder / "config.json", {"class": CLASS_NAME, "sha256": digest_file(folder / "model.safetensors")})


def apply_start(
    model: nn.Module,
    num_classes: int,
    folder: Path | None = None,
    *,
    without: tuple[str, ...] = (),
    heads: tuple[str, ...] = CLASS_HEADS,
) -> None:
    """Load the initial weights into a segmenter; the rows of every class start as those of `defect`.

    Args:
        model: of a family with a start.
        num_classes: defect classes, background not counted.
        folder: of the initial weights; None means the shipped ones of the family `light`.
        without: tensors whose names begin with one of these are not in the folder, and keep their values.
        heads: layers with rows per class, background first; the first of them, if there is one, gives the chance of a
            class.

    Raises:
        WeightsError: the weights are missing, do not match their digest, or are of another family.
    """
    folder = folder or shipped_start()
    is_shipped = folder.is_relative_to(SHIPPED)
    todo = "reinstall defectory" if is_shipped else "name a folder that a pretraining of this family made"
    weights, about = folder / "model.safetensors", folder / "config.json"
    if not weights.is_file() or not about.is_file():
        raise WeightsError(folder, "no segmenter start here (model.safetensors and config.json expected)", todo)
    if f'"{digest_file(weights)}"' not in about.read_text():
        raise WeightsError(weights, "digest differs from config.json, the file is damaged or was changed", todo)
    state = {name: value.float() for name, value in load_file(weights).items()}
    own = {name: value for name, value in model.state_dict().items() if without and name.startswith(without)}
    if {*own, *state} != {*model.state_dict()} or not own.keys().isdisjoint(state):
        raise WeightsError(weights, "holds weights of another family", todo)
    for layer in heads:
        rows = 4 if layer.endswith("bbox_pred") else 1
        for part in ("weight", "bias"):
            state[f"{layer}.{part}"] = spread_rows(state[f"{layer}.{part}"], rows, num_classes)
    if heads:
        # the chance of `defect` is shared among the classes
        state[f"{heads[0]}.bias"][1:] -= float(np.log(num_classes))
    model.load_state_dict({**own, **state})


def spread_rows(rows_of_two: Tensor, rows: int, num_classes: int) -> Tensor:
    """Expand the rows of background and `defect` to background and `num_classes` classes."""
    background, defect = rows_of_two[:rows], rows_of_two[rows : 2 * rows]
    return torch.cat([background, *([defect] * num_classes)])


def split_images(images: Sequence[SegmentationImage]) -> tuple[list[SegmentationImage], list[SegmentationImage]]:
    """Split images into those with instances and those without."""
    return [i for i in images if i.instances], [i for i in images if not i.instances]
