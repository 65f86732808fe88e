"""Compares images with the defective real tiles of a run, as image sets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.scores import ImageSetScores
from defectory.evaluation.config import EvaluationConfig
from defectory.evaluation.image_metrics import score_image_sets
from defectory.runs.store import RunStore

MIN_IMAGES = 4
"""Image sets with fewer images are not compared."""
Image = NDArray[np.uint8]


class RealTiles:
    """Defective tiles of train and of test, at most `EvaluationConfig.max_kid_tiles` of each.

    Args:
        store: of a run with tiles and test tiles.
        config: how many tiles, and settings of the bootstrap.
        seed: of the bootstrap.

    Attributes:
        train: RGB uint8 [H,W,3] each.
        test: likewise.
    """

    def __init__(self, store: RunStore, config: EvaluationConfig, *, seed: int) -> None:
        self._config, self._seed = config, seed
        limit = config.max_kid_tiles
        self.train = [store.tiles.image(t) for t in store.tiles.tileset.of("train") if t.instances][:limit]
        shown = [t for t in store.test_tiles.tileset.tiles if t.instances][:limit]
        self.test = [store.test_tiles.image(t) for t in shown]
        self._test_files = [store.data.dataset.image(tile.image_id).file_name for tile in shown]

    def suffice_for(self, images: Sequence[Image]) -> bool:
        """Return whether there are enough of all three."""
        return min(len(images), len(self.train), len(self.test)) >= MIN_IMAGES

    def score(self, images: Sequence[Image]) -> ImageSetScores:
        """Score images against the tiles of test; the tiles of train against them are the floor.

        Args:
            images: RGB uint8 [H,W,3] each.
        """
        from defectory.engine.features.encoder import embed_images

        encoder, name = self._encoder
        return score_image_sets(
            synthetic=images,
            real_train=self.train,
            real_test=self.test,
            features=(embed_images(encoder, images), *self._features),
            test_files=self._test_files,
            encoder_name=name,
            config=self._config,
            seed=self._seed,
        )

    @cached_property
    def _encoder(self):
        from defectory.engine.features.encoder import load_encoder

        return load_encoder()

    @cached_property
    def _features(self):
        from defectory.engine.features.encoder import embed_images

        return embed_images(self._encoder[0], self.train), embed_images(self._encoder[0], self.test)
