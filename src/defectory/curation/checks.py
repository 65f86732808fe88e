"""Every check of a draft besides fidelity, with limits learned from the real tiles of train and pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.plan import Check, CheckName
from defectory.curation.anomaly import Patches, PatchMemory, learn_memory
from defectory.curation.config import CurationConfig
from defectory.curation.exposure import RealFigures, figures_of, learn_figures
from defectory.curation.novelty import Originals, Thumbnail, learn_limit, thumbnail
from defectory.curation.realism import Features, RealTiles, learn_real_tiles

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
EXPOSURE_LIMIT = 0.25
BLUR_LIMIT = 1.5
CLIPPED_LIMIT = 0.02
"""How far the share of black and white pixels may exceed the maximum of the real tiles."""
DUPLICATE_LIMIT = 0.9
"""Minimum similarity, without shifting, at which two drafts count as the same picture."""
MAX_TRAIN, MAX_POOL = 600, 200
"""Maximum number of real tiles to use, sampled evenly."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """An image encoder for curation.

    It computes one vector per image, float64 [N,D], and features of patches, float32 [N,h,w,C].
    """

    embed: Callable[[Sequence[Image]], Features]
    patches: Callable[[Sequence[Image]], Patches]


@dataclass(frozen=True, kw_only=True, eq=False)
class RealTile:
    """A tile of train or pool.

    It has a name, RGB uint8 [H,W,3] pixels, the size of its image part, its image, its group (same part) and whether it
    shows a defect.
    """

    name: str
    image: Image
    valid_hw: tuple[int, int]
    image_id: int
    group: str
    is_defective: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """A draft to check: RGB uint8 [H,W,3], its half without a mask, and the size of the image part of both."""

    image: Image
    without: Image
    valid_hw: tuple[int, int]
    instances: tuple[tuple[int, Mask], ...] = ()
    """Category id and mask bool [H,W] of each label instance."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of segmenters trained only on train with a label.

    `overlap` returns the IoU of detections and label on an image, `expected` that of unseen train tiles with the given
    classes, and `limit` is the largest allowed shortfall, as a share.
    """

    overlap: Callable[[Image, Sequence[tuple[int, Mask]]], float]
    expected: Callable[[Sequence[int]], float]
    limit: float


class Checker:
    """Checks drafts in the order they are passed; near-duplicates are searched among earlier drafts.

    Args:
        real: tiles of train and pool; no others.
        prior: images the model generated for prior preservation, RGB uint8 [H,W,3].
        encoder: computes features.
        config: which checks to run, and their slack.
        seed: seed for the sampling while limits are learned.
        agreement: segmenters for the check `agreement`.
    """

    def __init__(
        self,
        real: Sequence[RealTile],
        prior: Sequence[Image],
        *,
        encoder: Encoder,
        config: CurationConfig,
        seed: int,
        agreement: Agreement | None = None,
    ) -> None:
        self._config, self._encoder, self._agreement = config, encoder, agreement
        defective = [tile for tile in real if tile.is_defective]
        free = [tile for tile in real if not tile.is_defective]
        both = [*defective, *free]
        self.figures: RealFigures | None = (
            learn_figures([figures_of(t.image, t.valid_hw) for t in both]) if both else None
        )
        ids = np.array([tile.image_id for tile in both], np.int64)
        self.realism: RealTiles | None = None
        if self._wants("realism") and both:
            self.realism = learn_real_tiles(encoder.embed([tile.image for tile in both]), ids)
        self.memory: PatchMemory | None = None
        if self._wants("anomaly") and free:
            self.memory = learn_memory(
                encoder.patches([t.image for t in free]), np.array([t.image_id for t in free], np.int64), seed=seed
            )
        self.originals = Originals([], [])
        self.copy_limit = 1.0
        if self._wants("novelty"):
            self.originals = Originals(
                [*(f"train tile {t.name}" for t in defective), *(f"prior image {i}" for i in range(len(prior)))],
                [*(t.image for t in defective), *prior],
                [*(t.valid_hw for t in defective), *((image.shape[0], image.shape[1]) for image in prior)],
            )
            # padding must not count as a similar region
            whole = [np.ascontiguousarray(t.image[: t.valid_hw[0], : t.valid_hw[1]]) for t in defective]
            self.copy_limit = learn_limit(whole, [t.group for t in defective], self.originals, seed=seed)
        self._seen: list[Thumbnail] = []
        self._features: list[Features] = []

    def remember(self, image: Image, valid_hw: tuple[int, int]) -> None:
        """Let later drafts be compared with one that another checker has judged, for the check `duplicate`."""
        self._seen.append(thumbnail(image, valid_hw))

    def _wants(self, name: CheckName) -> bool:
        return name in self._config.checks

    @property
    def features(self) -> Features:
        """Return the features of all drafts checked so far, float64 [N,D]."""
        return np.concatenate(self._features) if self._features else np.zeros((0, 1))

    def check(self, drafts: Sequence[Draft]) -> list[tuple[Check, ...]]:
        """Check drafts; return for each draft the checks that are enabled and could be learned."""
        slack = self._config.slack
        features = self._encoder.embed([draft.image for draft in drafts])
        self._features.append(features)
        far = self.realism.distances(features) if self.realism is not None else None
        odd = (
            self.memory.scores(self._encoder.patches([draft.without for draft in drafts]))
            if self.memory is not None
            else None
        )
        result: list[tuple[Check, ...]] = []
        for index, draft in enumerate(drafts):
            checks: list[Check] = []
            if self.figures is not None:
                figures = figures_of(draft.image, draft.valid_hw)
                checks += [
                    Check(name="exposure", value=self.figures.exposure(figures), limit=EXPOSURE_LIMIT * slack),
                    Check(name="blur", value=self.figures.blur(figures), limit=BLUR_LIMIT * slack),
                    Check(
                        name="clipping", value=figures.clipped, limit=self.figures.most_clipped + CLIPPED_LIMIT * slack
                    ),
                ]
            if self.memory is not None and odd is not None:
                checks.append(Check(name="anomaly", value=float(odd[index]), limit=self.memory.limit * slack))
            if self.realism is not None and far is not None:
                checks.append(Check(name="realism", value=float(far[index]), limit=self.realism.limit * slack))
            thumb = thumbnail(draft.image, draft.valid_hw)
            if len(self.originals):
                like = self.originals.likeness_of(thumb)
                checks.append(Check(name="novelty", value=like.value, limit=self.copy_limit, nearest=like.name))
            if self._seen:
                alike = np.tensordot(np.stack(self._seen), thumb, axes=2)
                nearest = int(alike.argmax())
                value = max(0.0, float(alike[nearest]))
                checks.append(
                    Check(name="duplicate", value=value, limit=DUPLICATE_LIMIT, nearest=f"draft number {nearest}")
                )
            if self._agreement is not None and draft.instances:
                share = self._agreement.overlap(draft.image, draft.instances) / self._agreement.expected(
                    [c for c, _ in draft.instances]
                )
                checks.append(Check(name="agreement", value=1.0 - share, limit=self._agreement.limit))
            self._seen.append(thumb)
            result.append(tuple(check for check in checks if self._wants(check.name)))
        return result


REASONS: dict[CheckName, str] = {
    "exposure": "brightness or contrast outside the range of real tiles by {value:.2f} of it (limit {limit:.2f})",
    "blur": "{value:.1f} times softer than the softest real tiles (limit {limit:.1f})",
    "clipping": "{value:.0%} of its pixels are black or white (limit {limit:.0%})",
    "anomaly": "the half without a mask shows a defect as well (anomaly {value:.2f}, limit {limit:.2f})",
    "realism": "unlike every real tile (distance {value:.2f}, limit {limit:.2f})",
    "novelty": "a copy of {nearest} (similarity {value:.2f}, limit {limit:.2f})",
    "agreement": "the segmenters disagree with the label (overlap {value:.0%} below that of train "
    "tiles, limit {limit:.0%})",
    "duplicate": "the same picture as {nearest} (similarity {value:.2f}, limit {limit:.2f})",
}


def reason_of(check: Check) -> str:
    """Return the reason for rejecting a draft that fails a check."""
    return REASONS[check.name].format(value=check.value, limit=check.limit, nearest=check.nearest)
