"""Load images with masks, as found by the folder and table formats, into a raw data set, one image at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.errors import AnnotationError, ImageError
from defectory.formats.class_masks import MaskImage, by_colour, histogram, load_mask
from defectory.formats.components import component_rles, rles_by_value
from defectory.formats.lookup import settle_unlabelled
from defectory.formats.mask_survey import Survey
from defectory.formats.mask_values import Reading, refuse_noisy
from defectory.formats.raw import LoadOptions, RawDataset, RawImage, RawInstance, Sieve, Subset, checked_size_hw
from defectory.rle import Rle, area_px, encode

EVERY = "*"


@dataclass(frozen=True, kw_only=True)
class MaskFile:
    """One mask file of an image."""

    path: Path
    class_name: str = ""
    """Class of everything drawn; empty if values are classes."""
    is_instance: bool = False
    """Whether the file is one instance, however many parts it has; otherwise each connected part is one."""


@dataclass(frozen=True, kw_only=True)
class MaskedImage:
    """An image and its mask files; without masks it is unlabelled, unless `says_good` is set."""

    path: Path
    name: str
    """Its name in the data set, relative to the source's image root."""
    group: str
    masks: tuple[MaskFile, ...] = ()
    subset: Subset | None = None
    says_good: bool = False
    """Whether the data states that the image has no defects; a mask that shows one contradicts it."""
    says_defect: bool = False
    """Whether the data states that the image has a defect; masks that show none contradict it."""
    where: str = ""
    """Named in errors: the row of a table, or the image."""
    fault: Callable[[], None] | None = None
    """Raises the error of the image's entry when the image is processed."""


@dataclass(frozen=True, kw_only=True)
class MaskedSet:
    """What a loader has found and what is to be read."""

    root: Path
    images: Sequence[MaskedImage]
    class_names: tuple[str, ...]
    readings: Mapping[str, tuple[Reading, Survey]]
    """How to read masks, by the class that a mask file states; `EVERY` for all others."""
    looked_for: str
    layout: str
    what: str = "mask"


def read_masked(found: MaskedSet, options: LoadOptions, sieve: Sieve) -> RawDataset:
    """Read images and masks, one image at a time; errors go through the sieve.

    Raises:
        AnnotationError, ImageError: there is an error, and bad entries are not skipped.
    """
    unlabelled = {
        image.name for image in found.images if not image.masks and not image.says_good and image.fault is None
    }
    settle_unlabelled(
        [image.name for image in found.images if image.name in unlabelled],
        sum(bool(image.masks) for image in found.images),
        options,
        sieve,
        where=found.root,
        what=found.what,
        looked_for=found.looked_for,
    )
    images: list[RawImage] = []
    for image in found.images:
        if image.name in unlabelled and options.unlabelled != "defect-free":
            continue
        made = sieve.attempt(image.name, lambda image=image: _read(image, found, options, sieve))
        if made is not None:
            images.append(made)
    images = without_useless_subsets(images, sieve)
    used = {instance.class_name for image in images for instance in image.instances}
    return RawDataset(
        class_names=tuple(
            name for name in dict.fromkeys(found.class_names) if name in used or len(found.class_names) == 1
        ),
        images=tuple(images),
        rejected=tuple(sieve.rejected),
        remarks=sieve.remarks,
        layout=found.layout,
    )


def without_useless_subsets(images: list[RawImage], sieve: Sieve) -> list[RawImage]:
    """Drop the source's own split if its train subset has no defects, as in anomaly detection sets; add a remark."""
    subsets = {image.subset for image in images}
    if len(subsets - {None}) < 2:
        return [image if image.subset is None else replaced_subset(image, None) for image in images]
    counts = {subset: sum(image.subset == subset for image in images) for subset in ("train", "val", "test")}
    if not any(image.subset == "train" and image.instances for image in images):
        sieve.remark(
            "the data set's own split has no defects in train, as is usual for anomaly detection; it is not offered"
        )
        return [replaced_subset(image, None) for image in images]
    told = ", ".join(f"{count} {subset}" for subset, count in counts.items() if count)
    sieve.remark(f"the data set comes with its own split ({told}); split.from_data = true keeps it")
    return images


def replaced_subset(image: RawImage, subset: Subset | None) -> RawImage:
    """Return an image with another subset."""
    return RawImage(
        path=image.path,
        file_name=image.file_name,
        size_hw=image.size_hw,
        group=image.group,
        instances=image.instances,
        is_defect_free=image.is_defect_free,
        subset=subset,
    )


def _read(image: MaskedImage, found: MaskedSet, options: LoadOptions, sieve: Sieve) -> RawImage:
    if image.fault is not None:
        image.fault()
    size_hw = checked_size_hw(image.path, None, image.where or image.path)
    instances: list[RawInstance] = []
    drawn = hidden = False
    for mask_file in image.masks:
        reading, survey = found.readings.get(mask_file.class_name) or found.readings[EVERY]
        refuse_noisy(mask_file.path, reading, survey)
        drawing = _read_mask(mask_file, reading, size_hw, options.min_area_px)
        drawn, hidden = drawn or drawing.shows_defect, hidden or drawing.may_hide
        instances += drawing.instances
    if image.says_good and drawn:
        raise AnnotationError(
            image.where or image.path, "is called good, but its mask shows a defect", "correct one of them"
        )
    if not drawn and hidden:
        sieve.remark("only ignored pixels in the mask: left out, because they may hide a defect", image.name)
    if not drawn and image.says_defect and image.masks:
        sieve.remark("said to show a defect, but the mask is empty: left out", image.name)
    return RawImage(
        path=image.path,
        file_name=image.name,
        size_hw=size_hw,
        group=image.group,
        instances=tuple(instances),
        # an image without masks gets here only if the data or the import says that it has no defects
        is_defect_free=not drawn and not hidden and not (image.masks and image.says_defect),
        subset=image.subset,
    )


@dataclass
class _Drawing:
    """The content of one mask file."""

    shows_defect: bool = False
    """True also if every part is too small to be an instance."""
    may_hide: bool = False
    """Whether nothing is drawn, but ignored pixels lie inside the image."""
    instances: list[RawInstance] = field(default_factory=list)

    def add(self, class_name: str, rles: Iterable[Rle]) -> None:
        """Add instances of a class."""
        self.shows_defect = True
        self.instances += [RawInstance(class_name=class_name, rle=rle) for rle in rles]


def _read_mask(mask_file: MaskFile, reading: Reading, size_hw: tuple[int, int], min_area_px: int) -> _Drawing:
    mask = load_mask(mask_file.path)
    if mask.size_hw != size_hw:
        raise ImageError(
            mask_file.path,
            f"mask is {mask.size_hw[0]}x{mask.size_hw[1]}, image is {size_hw[0]}x{size_hw[1]} (height x width)",
            "re-export the mask at image size",
        )

    def instances_of(pixels: NDArray[np.bool_]) -> list[Rle]:
        if not mask_file.is_instance:
            return component_rles(pixels, min_area_px=min_area_px, where=mask_file.path)
        return [rle for rle in [encode(pixels)] if area_px(rle) >= min_area_px]

    drawing = _Drawing()
    if reading.threshold is not None and not reading.apart:
        over = brightest(mask) >= reading.threshold
        if over.any():
            drawing.add(mask_file.class_name or reading.default, instances_of(over))
    elif reading.colours is not None and reading.threshold is None:
        places, ignored = by_colour(mask, reading.colours, mask_file.path)
        for place in _present(places):
            name = mask_file.class_name or reading.colours.class_names[place - 1]
            drawing.add(name, instances_of(places == place))
        drawing.may_hide = not drawing.shows_defect and _hides(ignored)
    else:
        _add_values(drawing, mask_file, reading, mask.values, min_area_px, instances_of)
    return drawing


def _add_values(
    drawing: _Drawing,
    mask_file: MaskFile,
    reading: Reading,
    values: NDArray[Any],
    min_area_px: int,
    instances_of: Callable[[NDArray[np.bool_]], list[Rle]],
) -> None:
    """Add the content of a mask whose values are classes, or number the instances of one or several classes."""
    present = [value for value in _present(values) if value not in reading.ignored]
    numbered = {v for v in present if reading.apart or (reading.divisor > 1 and v >= reading.divisor)}
    of_class: dict[str, list[int]] = {}
    for value in present:
        kind = value // reading.divisor if value in numbered else value
        if reading.threshold is None and kind not in reading.names:
            raise ImageError(mask_file.path, f"value {value} is in no other mask and has no class", "correct the mask")
        of_class.setdefault(mask_file.class_name or reading.names.get(kind, reading.default), []).append(value)
    rles = rles_by_value(values, where=mask_file.path) if numbered else {}
    for name, drawn in of_class.items():
        drawing.add(name, [rles[v] for v in drawn if v in numbered and area_px(rles[v]) >= min_area_px])
        plain = [v for v in drawn if v not in numbered]
        if plain:
            drawing.add(name, instances_of(values == plain[0] if len(plain) == 1 else np.isin(values, plain)))
    if not present and reading.ignored:
        drawing.may_hide = _hides(np.isin(values, list(reading.ignored)))


def brightest(mask: MaskImage) -> NDArray[Any]:
    """Return the values of a mask; for a colour mask, the maximum of the three channels."""
    if mask.kind != "colour":
        return mask.values
    packed = mask.values
    return np.maximum(np.maximum(packed >> 16 & 255, packed >> 8 & 255), packed & 255)


def _present(values: NDArray[Any]) -> list[int]:
    if values.dtype == np.uint32:
        return [int(value) for value in np.unique(values[values > 0])]
    return [int(value) for value in np.flatnonzero(histogram(values)) if value > 0]


def _hides(ignored: NDArray[np.bool_]) -> bool:
    """Return whether an ignored part lies inside the image: parts that touch its border are margins."""
    import cv2

    if not ignored.any():
        return False
    count, labels = cv2.connectedComponents(ignored.astype(np.uint8), connectivity=8)
    rim = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return count - 1 > int((rim > 0).sum())


def relative_name(path: Path, root: Path) -> PurePosixPath:
    """Return a path relative to the source, with `/` as separator."""
    return PurePosixPath(path.relative_to(root).as_posix())
