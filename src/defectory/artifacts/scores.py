"""Scores of segmenters and of image sets."""

from __future__ import annotations

from defectory.artifacts.value import Value


class SegmenterScores(Value):
    """Scores of a segmenter on whole real images; all 0..1, and higher is better for all but `hausdorff`."""

    segm_map: float
    bbox_map: float
    ap50: float
    iou: float
    """Mean IoU of true instances with their matched predictions; a missed instance counts as 0."""
    iou_matched: float
    """Mean IoU over matched instances only; 0 if none matched."""
    hausdorff: float
    """Mean symmetric Hausdorff distance / image diagonal over true instances; a missed instance counts as 1."""
    score_threshold: float
    """Detections below this score are ignored for IoU and Hausdorff distance."""
    num_instances: int
    per_class_segm_map: dict[str, float]


class DefectContrast(Value):
    """Median RMS contrast of one class's defects against their surroundings, 0 or more."""

    synthetic: float
    real: float
    """Median contrast on train tiles."""
    num_synthetic: int
    num_real: int


class BaseScores(Value):
    """How well a base generates its own procedural world.

    The accuracies of a classifier (0..1) are measured on held-out images and on samples for their captions.
    """

    num_samples: int
    material_accuracy: float
    material_accuracy_of_samples: float
    defect_accuracy: float
    defect_accuracy_of_samples: float
    encoder: str
    kid: float
    """KID between samples and held-out images."""
    kid_floor: float
    """KID between other procedural images and the held-out ones."""


class ImageSetScores(Value):
    """How similar a set of synthetic tiles is to real test tiles."""

    encoder: str
    kid: float
    kid_interval: tuple[float, float]
    kid_floor: float
    """KID between real train tiles and real test tiles."""
    fid: float
    fid_floor: float
    mean_wasserstein: float
    """Wasserstein distance between the tile means, in grey levels."""
    mean_wasserstein_floor: float
    std_wasserstein: float
    std_wasserstein_floor: float
    num_synthetic: int
    num_real: int
