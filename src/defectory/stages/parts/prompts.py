"""Makes prompts of tiles, the same for drafts as in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.tiles import Tile
from defectory.artifacts.weights import Concept
from defectory.engine.backbones.prompts import condition_prompt


def prompt_of(concept: Concept, names: Sequence[str], tone: str, *, defect_noun: str) -> str:
    """Return the prompt of an image with defects of these classes; no classes mean a defect-free image."""
    return condition_prompt(concept.instance_token, names, defect_noun=defect_noun, tone=tone)


def tone_of(tile: Tile, image: NDArray[np.uint8], concept: Concept) -> str:
    """Return the words for the tones of a tile's image RGB uint8 [H,W,3]; empty if the concept uses none."""
    from defectory.engine.training.data import TrainingTile

    if not concept.tone_words:
        return ""
    masks = masks_of(tile.instances)
    # classes do not matter for tones
    names = ("",) * len(masks)
    return TrainingTile(id=tile.id, image=image, instances=masks, class_names=names, valid_hw=tile.valid_hw).tone
