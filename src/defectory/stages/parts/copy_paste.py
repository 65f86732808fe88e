"""Makes training images with defects pasted into defect-free ones, placed as the defects of train lie.

The defects are real ones, cut out, or procedural ones, rendered to look like them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.tiles import spread
from defectory.masks.config import MaskConfig
from defectory.masks.perturb import cropped, perturb
from defectory.masks.placement import Site, borders_of, place, place_like, relation_of, relation_shares, site_of
from defectory.rle import Rle, decode, encode
from defectory.surface import solid_pixels

if TYPE_CHECKING:
    from defectory.segmentation.copy_paste import Cutout
    from defectory.segmentation.data import SegmentationImage

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Shares = dict[int, NDArray[np.float64]]
Label = tuple[tuple[int, Rle], ...]
Take = Callable[[int, np.random.Generator], "Cutout"]
"""Returns a defect of a class."""
TRIES = 8
"""Most defect-free images and cutouts tried for one image."""
MAX_MEASURED = 200
"""Most train images whose defects' places are measured."""


def copy_paste_images(
    real: Sequence[SegmentationImage], free: Sequence[SegmentationImage], *, count: int, flip: bool, seed: int
) -> list[SegmentationImage]:
    """Return images with pasted defects; as many on each as a real image has, all classes alike.

    Args:
        real: windows with defects, which give the cutouts and the places.
        free: windows without defects. Without any, defects are pasted beside those of other real windows.
        count: images to make; fewer if defects find no place.
        flip: defects may be mirrored.
        seed: of everything that is drawn.
    """
    from defectory.segmentation.copy_paste import varied

    by_class = _cutouts(real)

    def take(category_id: int, rng: np.random.Generator) -> Cutout:
        return varied(by_class[category_id][int(rng.integers(len(by_class[category_id])))], rng, flip=flip)

    return _made(real, free, take, classes=sorted(by_class), count=count, stream=(74, seed), name="paste")


def procedural_images(
    real: Sequence[SegmentationImage], free: Sequence[SegmentationImage], *, count: int, masks: MaskConfig, seed: int
) -> list[SegmentationImage]:
    """Return images with procedural defects, as many on each as a real image has, all classes alike.

    Each has the perturbed shape of one defect of train, and the contrast and grain of another of its class.

    Args:
        real: windows with defects, which give shapes, looks and places.
        free: windows without defects. Without any, defects are drawn beside those of other real windows.
        count: images to make; fewer if defects find no place.
        masks: how shapes are perturbed.
        seed: of everything that is drawn.
    """
    from defectory.segmentation.rendered import look_of, rendered

    by_class = _cutouts(real)
    looks = {category_id: [look_of(cutout) for cutout in of] for category_id, of in by_class.items()}

    def take(category_id: int, rng: np.random.Generator) -> Cutout:
        shape, look = (int(number) for number in rng.integers(len(by_class[category_id]), size=2))
        of = by_class[category_id][shape]
        mask = perturb(cropped(of.mask), seed=int(rng.integers(2**31)), config=masks)
        return rendered(looks[category_id][look], mask, rng, image_ids=of.image_ids)

    return _made(real, free, take, classes=sorted(by_class), count=count, stream=(75, seed), name="render")


def _cutouts(real: Sequence[SegmentationImage]) -> dict[int, list[Cutout]]:
    from defectory.segmentation.copy_paste import cutouts_of

    by_class: dict[int, list[Cutout]] = {}
    for image in real:
        for cutout in cutouts_of(image):
            by_class.setdefault(cutout.category_id, []).append(cutout)
    return by_class


def _made(
    real: Sequence[SegmentationImage],
    free: Sequence[SegmentationImage],
    take: Take,
    *,
    classes: Sequence[int],
    count: int,
    stream: tuple[int, int],
    name: str,
) -> list[SegmentationImage]:
    """Paste defects of `classes`, as `take` returns them, into images."""
    from defectory.segmentation.data import SegmentationImage

    if not classes:
        return []
    shares = _places(real)
    numbers = [len(image.instances) for image in real]
    made: list[SegmentationImage] = []
    for index in range(count):
        rng = np.random.default_rng([*stream, index])
        for _ in range(TRIES):
            ground = (free or real)[int(rng.integers(len(free or real)))]
            wanted = numbers[int(rng.integers(len(numbers)))]
            image = _with_defects(ground, take, classes, shares, rng, wanted=wanted)
            if image is not None:
                pixels, instances, ids = image
                made.append(
                    SegmentationImage(id=f"{name}-{index:05d}", image=pixels, instances=instances, image_ids=ids)
                )
                break
    return made


def _places(real: Sequence[SegmentationImage]) -> Shares:
    """Measure where the defects of train lie relative to holes and edges, per class."""
    observed: list[tuple[int, int, float]] = []
    for image in spread(real, MAX_MEASURED):
        masks = [decode(rle) for _, rle in image.instances]
        borders = borders_of(solid_pixels(image.image, (image.image.shape[0], image.image.shape[1]), masks))
        for (category_id, _), mask in zip(image.instances, masks, strict=True):
            if mask.any():
                observed.append((category_id, relation_of(mask, borders), 1.0))
    return relation_shares(observed)


def _with_defects(
    ground: SegmentationImage,
    take: Take,
    classes: Sequence[int],
    shares: Shares,
    rng: np.random.Generator,
    *,
    wanted: int,
) -> tuple[Image, Label, tuple[int, ...]] | None:
    """Return an image with pasted defects, its instances and the ids of the images it shows; None if none fits."""
    from defectory.segmentation.copy_paste import pasted

    pixels = ground.image
    size_hw = (pixels.shape[0], pixels.shape[1])
    site = site_of(pixels, size_hw)
    taken = np.zeros(size_hw, bool)
    instances = list(ground.instances)
    for mask, (y, x) in ground.crops():
        taken[y : y + mask.shape[0], x : x + mask.shape[1]] |= mask
    ids = set(ground.image_ids)
    for _ in range(max(1, wanted)):
        category_id = classes[int(rng.integers(len(classes)))]
        cutout = take(category_id, rng)
        placed = _placed(cutout, shares.get(category_id), site, taken, rng)
        if placed is None:
            continue
        pixels, label = pasted(pixels, cutout, placed, keep=~site.allowed)
        if label.sum() < 0.5 * cutout.mask.sum():
            continue
        taken |= label
        instances.append((category_id, encode(label)))
        ids |= set(cutout.image_ids)
    if len(instances) == len(ground.instances):
        return None
    return pixels, tuple(instances), tuple(sorted(ids))


def _placed(
    cutout: Cutout, shares: NDArray[np.float64] | None, site: Site, taken: Mask, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Return where the cutout's first pixel goes, so that its defect lies like those of its class."""
    rows, columns = np.flatnonzero(cutout.mask.any(axis=1)), np.flatnonzero(cutout.mask.any(axis=0))
    tight = cutout.mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if shares is None:
        found = place(tight, size_hw=(taken.shape[0], taken.shape[1]), allowed=site.allowed, taken=taken, rng=rng)
    else:
        found = place_like(tight, shares, site=site, taken=taken, rng=rng)
    if found is None or found.sum() < 0.5 * tight.sum():
        return None
    # the placed mask may be cut; its overlap with the whole mask says where that lies
    corner = _corner_of(found, tight)
    return corner[0] - int(rows[0]), corner[1] - int(columns[0])


def _corner_of(found: Mask, tight: Mask) -> tuple[int, int]:
    """Return the corner at which a mask, moved as a whole, gives a placed one that may be cut."""
    padded = np.pad(found.astype(np.float32), ((tight.shape[0],) * 2, (tight.shape[1],) * 2))
    match = cv2.matchTemplate(padded, tight.astype(np.float32), cv2.TM_CCORR)
    _, _, _, (x, y) = cv2.minMaxLoc(match)
    return y - tight.shape[0], x - tight.shape[1]
