"""The card of an exported segmenter: why it was chosen, what it finds, and what it was made from."""

from __future__ import annotations

from defectory.artifacts.primary_metric import PrimaryMetric
from defectory.artifacts.scores import finds_nothing
from defectory.artifacts.value import Value


class TrainedOn(Value):
    """Images of one source that a segmenter was trained on."""

    source: str
    num_images: int
    """Whole images or crops of them."""
    num_shown: int
    """How often images of the source were shown, all together."""


class SegmenterCard(Value):
    """What is known of an exported segmenter."""

    project: str
    arm: str
    seed: int
    why: str
    """Why this arm and this seed were chosen."""
    outcome: str
    """Outcome of the verdict."""
    verdict: str
    """The verdict's sentence."""
    metric: PrimaryMetric
    """The primary metric of the run."""
    validation_score: float
    """Primary metric on validation images, by which the seed was chosen; negative if no validation counted."""
    score_threshold: float
    """Weaker detections do not count."""
    is_threshold_chosen: bool
    """Whether the score threshold was chosen on validation images; else the project fixes it."""
    scores: dict[str, float]
    """Scores on test images by name."""
    num_defects: int
    num_found: int
    """Defects of the test images that a detection touches, at the score threshold."""
    num_good_images: int
    num_false_alarms: int
    """Good test images with a detection, at the score threshold."""
    classes: tuple[str, ...]
    family: str
    scale: float
    """Pixels that the segmenter sees per image pixel."""
    input_px: int
    """Longest side that it saw at once in training, in the pixels that it sees."""
    value_range: tuple[float, float] | None
    """Values that become 0 and 255; None for images of 8 bit."""
    num_train: int
    """Labelled images of train."""
    train_share: float
    """Share of the labelled images, left for training, that train holds."""
    trained_on: tuple[TrainedOn, ...]
    digests: dict[str, str]
    """SHA-256 digests of the weights and of what they were trained on."""
    initial_weights: str
    """Where training started, and under which licence."""
    synthetic_licence: str | None
    """Licence of the base that drew the synthetic images; None if none were trained on."""
    version: str
    """Version of Defectory."""

    @property
    def finds_nothing(self) -> bool:
        """Return whether it has learnt nothing, by its scores on test."""
        return finds_nothing(self.scores)

    @property
    def arm_words(self) -> str:
        """Return the arm's readable name."""
        return self.arm.replace("_", " ")

    @property
    def plant_words(self) -> str:
        """Return what an inspector sees on the test images, for the middle of a sentence."""
        told = f"found {self.num_found} of {self.num_defects} defects" if self.num_defects else "no defect to find"
        if not self.num_good_images:
            return f"{told}, no good image to test false alarms on"
        return f"{told}, false alarms on {self.num_false_alarms} of {self.num_good_images} good images"

    @property
    def words(self) -> str:
        """Return arm and plant figures, and plainly that it finds nothing if that is so."""
        if self.finds_nothing:
            return f"{self.arm_words}, finds nothing: segm mAP {self.scores['segm_map']:.3f} on test"
        return f"{self.arm_words}, {self.plant_words}"
