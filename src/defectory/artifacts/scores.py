"""Scores of segmenters and of image sets."""

from __future__ import annotations

from defectory.artifacts.value import Value


class SegmenterScores(Value):
    """How a segmenter did on whole real images; all 0..1, higher is better but for `hausdorff`."""

    segm_map: float
    bbox_map: float
    ap50: float
    iou: float
    """Mean over true instances of the IoU with the matched prediction; a missed instance counts 0."""
    iou_matched: float
    """Mean over matched instances alone; 0 where none matched."""
    hausdorff: float
    """Mean over true instances of the symmetric Hausdorff distance / image diagonal; a missed instance counts 1."""
    score_threshold: float
    """Weaker detections counted neither for IoU nor for Hausdorff distance."""
    num_instances: int
    per_class_segm_map: dict[str, float]


class DefectContrast(Value):
    """Median RMS contrast of one class's defects to their surroundings, 0 or more."""

    synthetic: float
    real: float
    """Of train tiles."""
    num_synthetic: int
    num_real: int


class BaseScores(Value):
    """How well a base draws its own procedural world: accuracies of a classifier 0..1, on held-out images and on
    samples for their captions.
    """

    num_samples: int
    material_accuracy: float
    material_accuracy_of_samples: float
    defect_accuracy: float
    defect_accuracy_of_samples: float
    encoder: str
    kid: float
    """Of samples to held-out images."""
    kid_floor: float
    """Of other procedural images to the held-out ones."""


class ImageSetScores(Value):
    """How close a set of synthetic tiles is to real test tiles."""

    encoder: str
    kid: float
    kid_interval: tuple[float, float]
    kid_floor: float
    """KID of real train to real test tiles."""
    fid: float
    fid_floor: float
    mean_wasserstein: float
    """Wasserstein distance of tile means, grey levels."""
    mean_wasserstein_floor: float
    std_wasserstein: float
    std_wasserstein_floor: float
    num_synthetic: int
    num_real: int
