"""Refuses user files that show an image of val or test, under any name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from defectory.artifacts.split import Split
from defectory.dataset.descriptor import ImageDescriptor, describe
from defectory.dataset.duplicates import copies_of
from defectory.errors import ImageError
from defectory.files import digest_file
from defectory.images.load import load_rgb
from defectory.runs.store import RunStore
from defectory.runs.stored import DataFolder


@dataclass(frozen=True, kw_only=True)
class HeldOutCopy:
    """The val or test image that a file shows, and their similarity; 1 means equal pixels."""

    file_name: str
    subset: str
    similarity: float

    def told(self) -> str:
        """Describe the copy for a message."""
        same = "" if self.similarity == 1 else f", similarity {self.similarity:.2f}"
        return f"is an image of validation or test, or a copy of one ({self.file_name} of {self.subset}{same})"


class HeldOutImages:
    """The images of val and test, found by the descriptors of the stage `split`.

    Args:
        data: the imported data set.
        split: of it.
        descriptors: of every image, by id.
    """

    def __init__(self, data: DataFolder, split: Split, descriptors: Mapping[int, ImageDescriptor]) -> None:
        self._dataset, self._split = data.dataset, split
        self._subset_of = dict.fromkeys(split.val, "validation") | dict.fromkeys(split.test, "test")
        allowed = frozenset({*split.train, *split.pool})
        self._held_out = {image_id: of for image_id, of in descriptors.items() if image_id in self._subset_of}
        self._own = frozenset(descriptors[image_id].pixel_digest for image_id in allowed)
        self._by_file = {self._dataset.image(image_id).sha256: image_id for image_id in self._subset_of}

    def copy_of(self, image_file: Path) -> HeldOutCopy | None:
        """Return the val or test image that a file equals or nearly equals; None if there is none.

        Files are compared by bytes, by decoded pixels after the data set's conversion, and by descriptor. Images of
        train and pool never count as copies.

        Raises:
            ImageError: the file is missing or cannot be read.
        """
        if not image_file.is_file():
            raise ImageError(image_file, "no such image file", "check the file name")
        same = self._by_file.get(digest_file(image_file))
        if same is not None:
            return self._told(same, 1.0)
        descriptor = describe(load_rgb(image_file, self._dataset.value_range))
        equal = [i for i, value in self._held_out.items() if value.pixel_digest == descriptor.pixel_digest]
        if equal:
            return self._told(equal[0], 1.0)
        if descriptor.pixel_digest in self._own:
            return None
        found = copies_of(descriptor, self._held_out, threshold=self._split.duplicate_threshold)
        return self._told(*found[0]) if found else None

    def _told(self, image_id: int, similarity: float) -> HeldOutCopy:
        name = self._dataset.image(image_id).file_name
        return HeldOutCopy(file_name=name, subset=self._subset_of[image_id], similarity=similarity)


def held_out_images(inputs: RunStore) -> HeldOutImages:
    """Return the held-out images of a run."""
    return HeldOutImages(inputs.data, inputs.split, inputs.descriptors)


def require_not_held_out(inputs: RunStore, image_file: Path) -> None:
    """Require that an image is not in val or test and not a copy of such an image.

    Copies are recognised even if they are re-saved, mirrored, rotated, cropped, shifted, brightened or resized.

    Raises:
        ImageError: the file is missing, cannot be read, or shows what a held-out image shows.
    """
    found = held_out_images(inputs).copy_of(image_file)
    if found is not None:
        raise ImageError(image_file, found.told(), "insert into images of train, of the pool, or into new ones")
