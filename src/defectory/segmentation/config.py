"""Configuration of the downstream segmenter."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from defectory.artifacts.config import Section
from defectory.engine.config import MixedPrecision
from defectory.registry import Registry
from defectory.segmentation.arms import ARMS
from defectory.segmentation.models.registry import DEFAULT, SEGMENTERS
from defectory.segmentation.policies import AUTO, POLICIES

TUNING = ("max_num_steps", "patience", "tuning_num_steps", "tuning_seeds")
"""Settings by which validation chooses how segmenters are trained."""
MAX_TOLD = 60
"""Longer wrong names are cut in messages."""
Init = Literal["segmenter", "encoder", "random"]


class SegmentationConfig(Section):
    """The segmenter and its training arms. All arms take the same number of optimiser steps."""

    model: str = DEFAULT
    """Segmenter family: `unet` (finds pixels; its backbone has seen photographs, the rest is shipped),
    `efficientnet_lite0` (a Mask R-CNN with the same backbone), `light` (a Mask R-CNN with shipped weights that have
    seen rendered images alone), `resnet50` and `resnet50_v2` (torchvision's Mask R-CNN, which needs `weights`),
    `mask2former` (a folder of transformers as `weights`), a family of an installed package, or
    `package.module:attribute`.
    """
    weights: str | None = None
    """Initial weights for the families that have none of their own: a file, `.pth` or `.safetensors`, in torchvision's
    layout, such as its COCO weights; a folder of transformers for `mask2former`; a pretraining's folder, in place of
    what is shipped of `efficientnet_lite0` or `unet`. None looks for torchvision's in torch's own download folder.
    """
    arms: tuple[str, ...] = ("real", "copy_paste", "mixed")
    """Training arms: `real_plain`, `real_resampled`, `real`, `copy_paste`, `procedural`, `mixed`, `mixed_50`,
    `mixed_75`, `mixed_90`, `hybrid`, `synthetic`, `synthetic_then_real`, arms of installed packages, or
    `package.module:attribute`.
    """
    input_px: int = Field(default=256, ge=64, le=4096)
    """Longest side, in the pixels that the segmenter sees, of what it sees at once in training. Larger images are
    shown in crops. Raise it as far as memory allows.
    """
    scale: float | None = Field(default=None, gt=0, le=8)
    """Pixels that the segmenter sees per image pixel. None: whole images where defects stay wide enough, else crops.
    """
    num_steps: int = Field(default=400, ge=2)
    """Optimiser steps of each segmenter. Raise it if a segmenter learns nothing."""
    max_num_steps: int | None = Field(default=None, ge=2)
    """Set it to let validation choose `num_steps`: the real arm trains until `patience` validations in a row bring no
    rise, at most so many steps, and every arm takes the number that was best. None keeps `num_steps`.
    """
    patience: int = Field(default=3, ge=1)
    """Validations in a row without a rise that end the search for the number of steps."""
    fold_steps: int | None = Field(default=None, ge=2)
    """Optimiser steps of the fold segmenters, which serve `synthesis.focus`, the check `agreement` and
    `curation.ignore`, and of all segmenters of `synthesis.rounds`; None uses `num_steps`.
    """
    batch_size: int = Field(default=8, ge=1)
    """Images per optimiser step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=1e-3, ge=0)
    """Decoupled weight decay of the optimiser."""
    ema_decay: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the moving average of the weights, which is what is validated and saved; 0 turns it off."""
    mixed_precision: MixedPrecision = "auto"
    """Precision of the training step: `bf16`, `no` for fp32 throughout, or `auto`: `bf16` where the processor has
    instructions for it. Prediction always runs in fp32.
    """
    augmentation: str = "flips"
    """How training images are varied: `flips`, which suits a few hundred steps, `exposure` (also contrast, blur and
    noise), `scale` (also zoom), `turns` (also rotation; harmful where light comes from one side), a policy of an
    installed package, or `package.module:attribute`. `auto` lets validation choose among all of them.
    """
    tuning_num_steps: int | None = Field(default=None, ge=2)
    """Optimiser steps of each training that compares policies; None uses `num_steps`."""
    tuning_seeds: tuple[int, ...] = Field(default=(0, 1), min_length=1)
    """Seeds of the trainings that choose policy and number of steps."""
    mirrored: bool = True
    """Predict each image also mirrored at one and at both axes, and average, which finds more in four times as much
    time. For families that find pixels, where the augmentation mirrors images in training.
    """
    resampling_threshold: float = Field(default=0.2, ge=0, le=1)
    """Images of a class that fewer than this share of the defective images show are shown more often, by the square
    root of the ratio. 0 turns it off.
    """
    defect_free_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of defect-free real images in each batch, the same in every arm."""
    real_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of real images among the defective ones of a batch, in the arm `mixed`."""
    final_real_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the steps, at the end, in which arms that mix see real images alone."""
    real_share_of_steps: float = Field(default=0.5, gt=0, lt=1)
    """Share of the steps that the arm `synthetic_then_real` spends on real images at the end."""
    validate_every: int = Field(default=100, ge=1)
    """Steps between two validations."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between two checkpoints."""
    primary_metric: Literal["auto", "segm_map", "pixel_ap"] = "auto"
    """Score on validation by which checkpoints, steps and arms are chosen, and on test the verdict: `segm_map` (COCO's
    mAP of masks), `pixel_ap` (of pixels), or `auto`: pixels where the train labels are so thin that the segmenter's
    masks could not fit them.
    """
    max_val_images: int = Field(default=60, ge=1)
    """Most val images scored at each validation. Defect-free images never outnumber defective ones."""
    score_threshold: float | None = Field(default=None, ge=0, le=1)
    """Detections below this score do not count for IoU and Hausdorff distance; None picks, per segmenter, the score
    around which F1 on real val is best.
    """
    init: Init = "segmenter"
    """Initial weights of `light`, `efficientnet_lite0` and `unet` in every arm: `segmenter` (also all other layers,
    trained on procedural defects), `encoder` (the encoder alone) or `random`.
    """
    seeds: tuple[int, ...] = (0,)
    """Seeds that each arm is trained with. Use at least three for a verdict."""

    def of_one_training(self) -> dict[str, object]:
        """Return the settings that decide how one segmenter is trained, JSON-compatible."""
        return self.model_dump(mode="json", exclude={"arms", "seeds", "fold_steps", *TUNING})

    def of_tuning(self) -> dict[str, object]:
        """Return the settings by which validation chooses how segmenters are trained, JSON-compatible."""
        return self.model_dump(mode="json", include=set(TUNING))

    @field_validator("model")
    @classmethod
    def _is_a_known_family(cls, value: str) -> str:
        return _known(value, SEGMENTERS)

    @field_validator("augmentation")
    @classmethod
    def _is_a_known_policy(cls, value: str) -> str:
        return value if value == AUTO else _known(value, POLICIES)

    @field_validator("arms")
    @classmethod
    def _are_known_arms(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known(value, ARMS) for value in values)


def _known(name: str, registry: Registry[Any]) -> str:
    """Return a name that a registry has, or may import."""
    if ":" not in name and name not in registry.names():
        told = name if len(name) <= MAX_TOLD else f"{name[:MAX_TOLD]}..."
        raise ValueError(f"{told!r} is not one of {', '.join(registry.names())}, nor `package.module:attribute`")
    return name
