"""Scores of segmenters and of image sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from defectory.artifacts.value import Value

COLLAPSED_MAP = 0.005
"""Segm mAP below which a segmenter has learnt nothing, unless its pixel AP says otherwise."""
TELLING_PIXEL_AP = 0.05
"""Pixel AP from which a segmenter finds defects though hardly a mask covers half of one, as with cracks a few pixels
wide. On such photographs, one that has learnt has .09 to .18; where hardly anything was learnt, .014 was seen.
"""


def finds_nothing(scores: Mapping[str, Any]) -> bool:
    """Return whether a segmenter, or the mean of several, has learnt nothing by its scores on test."""
    return scores["segm_map"] < COLLAPSED_MAP and scores.get("pixel_ap", 0.0) < TELLING_PIXEL_AP


class PlantCurve(Value):
    """Plant figures at score thresholds 0, .01, ... 1; a list is None where there is nothing to count."""

    score_thresholds: tuple[float, ...]
    missed_defect_rate: tuple[float, ...] | None
    missed_image_rate: tuple[float, ...] | None
    false_alarms_per_100_good_images: tuple[float, ...] | None


class PlantScores(Value):
    """What an inspector sees at the score threshold: an image with a detection is alarmed. Rates are 0..1.

    A figure is None where there is nothing to count, such as false alarms without a good image.
    """

    missed_defect_rate: float | None
    """Share of true instances that share no pixel with a detection of any class."""
    missed_image_rate: float | None
    """Share of defective images without an alarm."""
    false_alarms_per_100_good_images: float | None
    """Good images with an alarm, per 100 good images."""
    per_class_missed_defect_rate: dict[str, float]
    missed_defect_rate_by_size: dict[str, float | None]
    """COCO's sizes by area of the true mask: small below 32 x 32 px, medium below 96 x 96 px, large."""
    num_defects: int
    num_defects_by_size: dict[str, int]
    num_defective_images: int
    num_good_images: int
    curve: PlantCurve


class ClassScores(Value):
    """Scores of one class; as for `SegmenterScores`, over this class alone."""

    num_instances: int
    segm_map: float
    segm_ap50: float
    segm_ar100: float
    bbox_map: float
    pixel_ap: float
    pixel_f1_max: float
    iou: float
    iou_matched: float
    dice: float
    hausdorff: float
    hd95: float
    boundary_f1_2px: float
    cldice: float


class SegmenterScores(Value):
    """Scores of a segmenter on whole real images.

    All are 0..1, and higher is better for all but `hausdorff` and `hd95`. A score over classes is a mean over the
    classes that have a true instance. `docs/concepts/metrics.md` defines each.
    """

    segm_map: float
    bbox_map: float
    ap50: float
    """AP of masks at an IoU of .5."""
    bbox_ap50: float
    segm_ar100: float
    """COCO's average recall of masks, of at most 100 detections per image and class."""
    bbox_ar100: float
    segm_map_by_size: dict[str, float | None]
    """Segm mAP of small, medium and large instances (COCO's areas); None for a size that no instance has."""
    bbox_map_by_size: dict[str, float | None]
    pixel_ap: float
    """AP of pixels; a pixel's score is that of the strongest detection of its class that covers it."""
    pixel_f1_max: float
    """Best F1 of pixels over all score thresholds, chosen for each class."""
    pixel_ap_any_class: float
    """AP of pixels with all classes taken as one."""
    pixel_f1_max_any_class: float
    iou: float
    """Mean IoU of true instances with their matched predictions; a missed instance counts as 0."""
    iou_matched: float
    """Mean IoU over matched instances only; 0 if none matched."""
    dice: float
    """Mean Dice of true instances with their matched predictions; a missed instance counts as 0."""
    hausdorff: float
    """Mean symmetric Hausdorff distance / image diagonal over true instances; a missed instance counts as 1."""
    hd95: float
    """The same of the 95% quantile of border distances."""
    boundary_f1_2px: float
    """F1 of border pixels at a tolerance of 2 px, mean over the images and classes with a true instance."""
    cldice: float
    """Centreline Dice of skeletons, mean over the same."""
    score_threshold: float
    """Weaker detections are ignored for IoU, Dice, Hausdorff distances, boundary F1, clDice and plant figures."""
    num_instances: int
    num_predictions: int
    """Number of detections of any score; with 0, all scores are 0."""
    num_predictions_at_threshold: int
    per_class_segm_map: dict[str, float]
    per_class: dict[str, ClassScores]
    plant: PlantScores


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
    kid_floor_interval: tuple[float, float]
    images_least_like_train: tuple[str, ...]
    """File names of the test images farthest from every train tile, the farthest first."""
    fid: float
    fid_floor: float
    density: float
    """Mean number of real test tiles' neighbourhoods that hold a synthetic tile / 5; may exceed 1."""
    density_train: float
    """Density of real train tiles, the level to reach."""
    coverage: float
    """Share of real test tiles that have a synthetic tile in their neighbourhood."""
    coverage_train: float
    mean_wasserstein: float
    """Wasserstein distance between the tile means, in grey levels."""
    mean_wasserstein_floor: float
    std_wasserstein: float
    std_wasserstein_floor: float
    num_synthetic: int
    num_real: int


class DiversityScores(Value):
    """How much samples that share a driver differ, as means over pairs of samples of one driver."""

    l2: float
    """Euclidean distance of RGB values 0..1, scaled to an image of 512 x 512 pixels; higher is more diverse."""
    mutual_information_nats: float
    """Mutual information of grey levels in 32 bins; lower is more diverse."""
    num_drivers: int
    num_samples: int
