"""What the store of a run returns: values together with the folders of their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.dataset import Dataset, ImageRecord, image_path
from defectory.artifacts.distilled import Distilled
from defectory.artifacts.plan import Job
from defectory.artifacts.tiles import Tile, TileSet
from defectory.artifacts.weights import Concept, Control
from defectory.images.load import load_rgb
from defectory.runs import layout
from defectory.synthesis.drafts import draft_paths

Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class DataFolder:
    """The imported data set: its value and its image files."""

    dataset: Dataset
    folder: Path

    def path(self, record: ImageRecord) -> Path:
        """Return the file of an image."""
        return image_path(self.folder, record)

    def image(self, record: ImageRecord) -> Image:
        """Load an image in the data set's value range, RGB uint8 [H,W,3]."""
        return load_rgb(self.path(record), self.dataset.value_range)


@dataclass(frozen=True, kw_only=True)
class TileFolder:
    """A tile set: its value and its image files."""

    tileset: TileSet
    folder: Path

    def path(self, tile: Tile) -> Path:
        """Return the file of a tile."""
        return self.folder / tile.file_name

    def image(self, tile: Tile) -> Image:
        """Load a tile, RGB uint8 [tile_px,tile_px,3]."""
        return load_rgb(self.path(tile))


@dataclass(frozen=True, kw_only=True)
class ConceptFolder:
    """The outcome of phase 1: its value, the adapted base, and the folder that holds both."""

    concept: Concept
    folder: Path

    @property
    def base(self) -> Path:
        """Return the adapted base's folder."""
        return self.folder / layout.CONCEPT_BASE


@dataclass(frozen=True, kw_only=True)
class ControlFolder:
    """The outcome of phase 2: its value, the control network, and the folder that holds both."""

    control: Control
    folder: Path

    @property
    def network(self) -> Path:
        """Return the control network's folder."""
        return self.folder / layout.CONTROL_NETWORK


@dataclass(frozen=True, kw_only=True)
class DistilledFolder:
    """The outcome of distillation: its value, and the folder that holds it and the student's LoRA."""

    distilled: Distilled
    folder: Path

    @property
    def lora(self) -> Path:
        """Return the folder of the LoRA, which `load_lora_weights` of diffusers opens."""
        return self.folder / layout.DISTILLED_LORA


@dataclass(frozen=True, kw_only=True)
class DraftFolder:
    """Drafts by job id: each an image, the same without its mask, and the driver.

    Attributes:
        folder: of the first round.
        later: folder of each draft of a further round, by job id.
    """

    folder: Path
    later: Mapping[str, Path] = field(default_factory=lambda: dict[str, Path]())

    def paths(self, job: Job) -> tuple[Path, Path, Path]:
        """Return the files of a draft: with its mask, without, and the driver."""
        return draft_paths(self.later.get(job.id, self.folder), job.id)

    def pair(self, job: Job) -> tuple[Path, Path]:
        """Return the files of a draft: with its mask and without."""
        return self.paths(job)[:2]

    def image(self, job: Job) -> Image:
        """Load a draft, RGB uint8 [tile_px,tile_px,3]."""
        return load_rgb(self.pair(job)[0])

    def without(self, job: Job) -> Image:
        """Load the counterfactual half of a draft."""
        return load_rgb(self.pair(job)[1])

    def driver(self, job: Job) -> Image:
        """Load the driver of a draft."""
        return load_rgb(self.paths(job)[2])


@dataclass(frozen=True, kw_only=True)
class SegmenterFolder:
    """A trained segmenter, or the reason for skipping it.

    Attributes:
        folder: weights and description.
        log: losses, validation scores, and the ids of the images it was trained on; empty if skipped.
        skipped: why no segmenter was trained; None if one was.
    """

    folder: Path
    log: Mapping[str, Any]
    skipped: str | None
