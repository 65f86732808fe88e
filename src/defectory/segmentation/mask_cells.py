"""What a Mask R-CNN's cells can show of a mask, whatever it learns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from defectory.segmentation.models.registry import SEGMENTERS


def mask_cells_of(kind: str) -> int | None:
    """Return the number of cells along each side of a box in which a family draws masks; None without such cells.

    Raises:
        ConfigError: the family is unknown.
    """
    return getattr(SEGMENTERS.get(kind), "mask_cells", None)


def best_mask_iou(mask: NDArray[np.bool_], num_cells: int) -> float:
    """Return the IoU of a mask with what is left of it after it was put into cells as in training, and drawn back.

    It is the best that a segmenter with such cells reaches, box and cells being right. Thin cracks that fill a long box
    lose most.

    Args:
        mask: cropped to its box, bool [H,W].
        num_cells: along each side of the box.
    """
    height, width = mask.shape
    box = torch.tensor([[0.0, 0.0, width, height]])
    truth = torch.from_numpy(mask.astype(np.float32))[None]
    cells = project_masks_on_boxes(truth, box, torch.zeros(1, dtype=torch.int64), num_cells)
    shown = paste_masks_in_image(cells[:, None], box, (height, width))[0, 0].numpy() > 0.5
    return float((shown & mask).sum() / (shown | mask).sum())


def mean_best_iou(masks: Sequence[NDArray[np.bool_]], num_cells: int) -> float | None:
    """Return the mean of `best_mask_iou`; None without a mask."""
    return float(np.mean([best_mask_iou(mask, num_cells) for mask in masks])) if masks else None
