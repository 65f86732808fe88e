"""Finds the pixels and instances of a draft whose label is doubtful, by two witnesses.

The witness `difference` compares the label with what was drawn. The witness `segmenter` compares it with what
segmenters find that were trained on real images, none of which the draft was made from. Doubt rejects no draft: what
is doubtful is ignored in training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectory.curation.fidelity import TOLERANCE_PX, compare, score_map
from defectory.errors import FirewallError
from defectory.geometry import distance_to
from defectory.rle import Rle, decode

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Labels = Sequence[tuple[int, Mask]]
"""Category id and mask bool [H,W] of each instance."""
MIN_CHANCE = 0.05
"""Chances are kept this far from 0 and 1, so that one confident error has a bounded loss (3.0)."""
DISAGREEMENT = float(np.log(2))
"""Loss at a chance of one half. At a lower loss the segmenters agree with the label, so nothing is doubtful."""
OUTSIDE = 0
"""Class of the pixels outside every label."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Doubt:
    """What one witness doubts: pixels bool [H,W], and a flag per instance."""

    ignore: Mask
    is_doubtful: tuple[bool, ...]

    def __or__(self, other: Doubt) -> Doubt:
        """Return what at least one of two witnesses doubts."""
        flags = tuple(a or b for a, b in zip(self.is_doubtful, other.is_doubtful, strict=True))
        return Doubt(ignore=self.ignore | other.ignore, is_doubtful=flags)


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One detection of a fold segmenter on a draft: class, score from 0 to 1, and mask of the draft's size."""

    category_id: int
    score: float
    rle: Rle


def no_doubt(labels: Labels, size_hw: tuple[int, int]) -> Doubt:
    """Return the doubt of a witness that doubts nothing."""
    return Doubt(ignore=np.zeros(size_hw, bool), is_doubtful=(False,) * len(labels))


def by_difference(
    with_mask: Image, without_mask: Image, masks: Sequence[Mask], *, difference_threshold: float, min_fidelity: float
) -> Doubt:
    """Return where the label and what was drawn disagree.

    Pixels more than 2 px inside a label where nothing was drawn are ignored, and so are stray pixels. An instance is
    doubtful if its own IoU is too low; a thin one, if its F1 at 2 px tolerance is.

    Args:
        with_mask: the draft, RGB uint8 [H,W,3].
        without_mask: its half without a mask.
        masks: bool [H,W] per instance, at least one that is not empty.
        difference_threshold: minimum difference that counts as drawn, in grey levels on a surface of grey level 128.
        min_fidelity: an instance with a lower IoU (or F1) is doubtful.
    """
    label = np.any(masks, axis=0)
    halves = compare(with_mask, without_mask, label)
    drawn, strays = halves.drawn(difference_threshold), halves.strays(difference_threshold)
    fidelity = score_map(drawn, masks, strays=strays)
    inside = distance_to(~label) > TOLERANCE_PX
    own = [iou if f1 is None else f1 for iou, f1 in zip(fidelity.per_instance_iou, fidelity.f1_2px, strict=True)]
    return Doubt(ignore=(inside & ~drawn) | strays, is_doubtful=tuple(value < min_fidelity for value in own))


def judges_of(image_ids: Collection[int], trained_on: Sequence[Collection[int]]) -> tuple[int, ...]:
    """Return the folds whose segmenters trained on none of a draft's images.

    Args:
        image_ids: of the images that the draft's background and masks come from.
        trained_on: ids of the images that the segmenter of each fold trained on.
    """
    return tuple(fold for fold, ids in enumerate(trained_on) if not set(ids) & set(image_ids))


def require_cross_fitted(
    judges: Sequence[int], image_ids: Collection[int], trained_on: Sequence[Collection[int]], *, what: str
) -> None:
    """Require that no judge of a draft trained on an image that the draft was made from.

    Args:
        judges: folds whose segmenters judge the draft.
        image_ids: of the draft.
        trained_on: ids of the images that the segmenter of each fold trained on.
        what: name of the draft, for the message.

    Raises:
        FirewallError: a judge trained on one of the images.
    """
    for fold in judges:
        known = sorted(set(trained_on[fold]) & set(image_ids))
        if known:
            raise FirewallError(
                f"{what}: the segmenter of fold {fold} trained on image {known[0]}, which the draft was made from, so "
                "it must not judge the draft; run the stages `folds` and `curate` again"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Losses:
    """The binary cross-entropy of segmenters against a draft's label.

    Attributes:
        pixels: loss of each pixel, float32 [H,W].
        classes: category id of each pixel, int [H,W]; `OUTSIDE` where there is no label.
        is_judged: bool [H,W]; false within 2 px of a label's border, where segmenters differ by nature.
        instances: mean loss over the pixels of each instance; None for one without pixels.
    """

    pixels: NDArray[np.float32]
    classes: NDArray[np.int64]
    is_judged: Mask
    instances: tuple[float | None, ...]


def losses_of(seen: Sequence[Sequence[Detection]], labels: Labels, size_hw: tuple[int, int]) -> Losses:
    """Compute the losses of a draft.

    The chance of a pixel is the highest score of a detection of its class there, averaged over segmenters; outside
    every label, of a detection of any class.

    Args:
        seen: detections of each judge; at least one judge.
        labels: of the draft.
        size_hw: of the draft, pixels.
    """
    chances: dict[int, NDArray[np.float32]] = {}
    for category_id in {OUTSIDE, *(c for c, _ in labels)}:
        maps = np.zeros((len(seen), *size_hw), np.float32)
        for one, found in zip(maps, seen, strict=True):
            for detection in found:
                if category_id in (OUTSIDE, detection.category_id):
                    mask = decode(detection.rle)
                    one[mask] = np.maximum(one[mask], detection.score)
        chances[category_id] = maps.mean(axis=0).clip(MIN_CHANCE, 1 - MIN_CHANCE)
    label = np.any([mask for _, mask in labels], axis=0) if labels else np.zeros(size_hw, bool)
    pixels, classes = -np.log(1 - chances[OUTSIDE]), np.full(size_hw, OUTSIDE, np.int64)
    pixels[label] = np.inf
    for category_id, mask in labels:
        own = -np.log(chances[category_id])
        # where labels of two classes overlap, a detection of either is right
        better = mask & (own < pixels)
        pixels[better], classes[better] = own[better], category_id
    border = (distance_to(label) <= TOLERANCE_PX) & (distance_to(~label) <= TOLERANCE_PX)
    instances = tuple(
        float(-np.log(chances[category_id])[mask].mean()) if mask.any() else None for category_id, mask in labels
    )
    return Losses(pixels=pixels.astype(np.float32), classes=classes, is_judged=~border, instances=instances)


@dataclass(frozen=True, kw_only=True)
class ClassMeans:
    """Mean losses over all judged drafts by class: of pixels (`OUTSIDE` among the classes) and of instances."""

    pixels: Mapping[int, float]
    instances: Mapping[int, float]


def class_means(drafts: Iterable[tuple[Losses, Sequence[int]]]) -> ClassMeans:
    """Compute the mean losses by class.

    Args:
        drafts: losses of each draft, and the category id of each of its instances.
    """
    sums: dict[int, float] = {}
    counts: dict[int, int] = {}
    of_instances: dict[int, list[float]] = {}
    for losses, category_ids in drafts:
        for category_id in np.unique(losses.classes[losses.is_judged]).tolist():
            chosen = losses.is_judged & (losses.classes == category_id)
            sums[category_id] = sums.get(category_id, 0.0) + float(losses.pixels[chosen].sum(dtype=np.float64))
            counts[category_id] = counts.get(category_id, 0) + int(chosen.sum())
        for category_id, loss in zip(category_ids, losses.instances, strict=True):
            if loss is not None:
                of_instances.setdefault(category_id, []).append(loss)
    return ClassMeans(
        pixels={category_id: total / counts[category_id] for category_id, total in sums.items()},
        instances={category_id: float(np.mean(values)) for category_id, values in of_instances.items()},
    )


def by_losses(losses: Losses, category_ids: Sequence[int], means: ClassMeans, *, multiple: float) -> Doubt:
    """Return where segmenters disagree with the label more than is usual for the class.

    A pixel or an instance is doubtful if its loss exceeds `multiple` times the mean of its class, and if the segmenters
    disagree with the label at all (`DISAGREEMENT`).

    Args:
        losses: of the draft.
        category_ids: of its instances.
        means: over all drafts.
        multiple: of the class mean.
    """
    limit = np.full(losses.pixels.shape, np.inf, np.float32)
    for category_id, mean in means.pixels.items():
        limit[losses.classes == category_id] = max(DISAGREEMENT, multiple * mean)
    flags = tuple(
        loss is not None and loss > max(DISAGREEMENT, multiple * means.instances[category_id])
        for category_id, loss in zip(category_ids, losses.instances, strict=True)
    )
    return Doubt(ignore=losses.is_judged & (losses.pixels > limit), is_doubtful=flags)
