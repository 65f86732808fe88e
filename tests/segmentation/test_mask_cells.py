"""What mask cells can show of a defect."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from defectory.segmentation.mask_cells import best_mask_iou, mask_cells_of, mean_best_iou
from defectory.segmentation.models.family import Build, build_segmenter


def test_a_compact_defect_loses_nothing_and_a_thin_one_in_a_wide_box_most() -> None:
    assert best_mask_iou(np.ones((40, 60), bool), 28) > 0.999
    rows, columns = np.mgrid[:200, :300]
    line = np.abs(rows * 1.5 - columns) < 3
    coarse, fine = best_mask_iou(line, 28), best_mask_iou(line, 112)
    assert coarse < 0.6 < fine
    assert mean_best_iou([np.ones((40, 60), bool), line], 28) == pytest.approx((1 + coarse) / 2, abs=1e-3)
    assert mean_best_iou([], 28) is None


@pytest.mark.parametrize("kind", ["light", "efficientnet_lite0", "resnet50"])
def test_a_family_says_in_how_many_cells_it_draws(kind: str) -> None:
    model, _ = build_segmenter(kind, Build(num_classes=2, init="random"), seed=0)
    heads = model.roi_heads
    boxes = [torch.tensor([[4.0, 4.0, 40.0, 60.0]])]
    size_hw = (64, 96)
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, *size_hw))
        logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, boxes, [size_hw])))
    assert logits.shape[-2:] == (mask_cells_of(kind),) * 2


def test_a_family_without_cells_says_so() -> None:
    pytest.importorskip("transformers")
    assert mask_cells_of("mask2former") is None
