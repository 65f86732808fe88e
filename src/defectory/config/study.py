"""Configuration of studies."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from defectory.artifacts.config import Section, registered_name
from defectory.config.recipes import RECIPES
from defectory.segmentation.arms import ARMS


class StudyConfig(Section):
    """What `defectory study` trains and compares. Its cells are runs of this project with other settings."""

    recipe: str = "ladder"
    """`ladder` (every rung), `scarcity` (5 to all labelled images), `ratio` (numbers of drafts, shares of real images),
    `ablation` (parts of the method), `concepts` (ways to learn the concept), `networks` (condition networks and their
    strength), `compare` (beside inpainting, as in the paper), `transfer` (another data set), a
    recipe of an installed package, or `package.module:attribute`.
    """
    out: str = "runs/study"
    """Folder of the study, relative to the project file. Studies of one folder share what they have trained."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds. Each draws the labelled images and trains concept, control network, drafts and segmenters anew; the test
    images stay the same. A verdict needs three.
    """
    num_labelled: tuple[int, ...] = ()
    """Numbers of labelled training images; empty takes those of the recipe. A number above those there are means all.
    """
    fractions: tuple[float, ...] = ()
    """Shares of the labelled training images, in place of numbers."""
    with_all: bool = True
    """Whether all labelled images are a further point, the ceiling."""
    arms: tuple[str, ...] = ()
    """Training arms; empty takes those of the recipe."""
    variants: tuple[str, ...] = ()
    """Further variants, each `name: key=value, key=value`, such as `weak: synthesis.controlnet_conditioning_scale=0.5`.
    """
    folds: int | None = Field(default=None, ge=2)
    """Number of folds; each image is then test once, and the generator is trained anew for each fold. None takes the
    project's split. Use it where test has few defects.
    """
    others: tuple[str, ...] = ()
    """Folders of images made elsewhere, which `compare` scores beside the drafts; samples of one driver share a folder
    in them.
    """
    transfer_to: str | None = None
    """Data set that the segmenters of every cell are tested on as well, for `transfer`; classes go by their names."""
    num_parallel: int | None = Field(default=None, ge=1)
    """Cells trained side by side; None takes one per CPU thread, at most 4, and one on a GPU."""
    keep: Literal["runs", "results"] = "runs"
    """`runs` keeps what cells made, so that a further study takes it over. `results` keeps scores and predictions."""

    @field_validator("recipe")
    @classmethod
    def _is_a_recipe(cls, value: str) -> str:
        return registered_name(value, RECIPES)

    @field_validator("arms")
    @classmethod
    def _are_arms(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(registered_name(value, ARMS) for value in values)

    @field_validator("num_labelled")
    @classmethod
    def _are_counts(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if any(value < 2 for value in values):
            raise ValueError("a number of labelled images is below 2: one to train on and one to validate are needed")
        return values

    @field_validator("fractions")
    @classmethod
    def _are_shares(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < value <= 1 for value in values):
            raise ValueError("a share is not above 0 and at most 1")
        return values

    @model_validator(mode="after")
    def _numbers_or_shares(self) -> StudyConfig:
        if self.num_labelled and self.fractions:
            raise ValueError("num_labelled and fractions are both set: choose one")
        return self
