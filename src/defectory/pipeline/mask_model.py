"""Stage learn-masks: a small diffusion model of the training masks, and reading it back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from defectory.artifacts.plan import MaskBank
from defectory.masks.sources import MaskModel
from defectory.pipeline.mask_check import bank_from_train, expert_listing, expert_masks
from defectory.pipeline.stage import Notice, Progress, Project
from defectory.pipeline.training import device_of, training_progress
from defectory.rle import decode

if TYPE_CHECKING:
    from defectory.masks.diffusion import MaskDiffusion

FOLDER = "mask_model"
LEARNED_FROM = frozenset(
    {
        "diffusion",
        "expert",
        "min_area_px",
        "rotate_degrees",
        "scale_range",
        "shear",
        "flip",
        "elastic_px",
        "thickness_share",
    }
)
"""Settings of masks that decide what the model learns."""


def mask_model_settings(project: Project) -> object:
    """Settings that decide the model, and the state of an expert's files."""
    masks = project.config.masks.model_dump(mode="json", include=set(LEARNED_FROM))
    return {"masks": masks, "files": expert_listing(project), "seed": project.config.seed}


def run_learn_masks(project: Project) -> Iterator[Progress | Notice | str]:
    """Train the model on the bank, an expert's corrections included."""
    # for the project's number of threads alone: so small a model stays on the CPU
    device_of(project)
    _, bank = expert_masks(project, bank_from_train(project))
    yield from training_progress("learn-masks", _model(project, bank).learn(project.path(FOLDER)))


def mask_diffusion_of(project: Project, bank: MaskBank) -> MaskModel | None:
    """Give the trained model of a bank's masks, None where it has no share.

    Raises:
        WeightsError: it has not been trained, or is damaged.
    """
    from defectory.masks.diffusion import MODEL_FILE

    if project.config.masks.sources.diffusion == 0:
        return None
    model = _model(project, bank)
    model.load(project.path(FOLDER, MODEL_FILE))
    return model


def _model(project: Project, bank: MaskBank) -> MaskDiffusion:
    from defectory.masks.diffusion import MaskDiffusion

    masks = [(entry.category_id, decode(entry.mask.rle)) for entry in bank.entries]
    return MaskDiffusion(masks, config=project.config.masks, seed=project.config.seed)
