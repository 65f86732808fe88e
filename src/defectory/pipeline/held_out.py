"""Keeps images of validation and test, and copies of them under any name, out of what a user hands in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from defectory.artifacts.dataset import image_path
from defectory.dataset.descriptor import DESCRIPTORS, ImageDescriptor, describe, load_descriptors
from defectory.dataset.duplicates import copies_of
from defectory.errors import ImageError
from defectory.files import digest_file
from defectory.imageio import load_rgb
from defectory.pipeline.stage import Project
from defectory.pipeline.values import dataset_of, split_of
from defectory.pipeline.verify import checked


@dataclass(frozen=True, kw_only=True)
class HeldOutCopy:
    """The image of validation or test that a file shows, and how alike they are: 1 for equal pixels."""

    file_name: str
    part: str
    similarity: float

    def told(self) -> str:
        """Return what a message says of it."""
        same = "" if self.similarity == 1 else f", similarity {self.similarity:.2f}"
        return f"is an image of validation or test, or a copy of one ({self.file_name} of {self.part}{same})"


class HeldOutImages:
    """The images of validation and test of a project, as descriptors that the stage `split` left, or of the images
    themselves.

    Args:
        project: whose split has been made.

    Raises:
        InputError: the split or its descriptors are damaged or of another data set.
    """

    def __init__(self, project: Project) -> None:
        self._dataset, self._split = dataset_of(project), split_of(project)
        self._part_of = dict.fromkeys(self._split.val, "validation") | dict.fromkeys(self._split.test, "test")
        self._allowed = frozenset({*self._split.train, *self._split.pool})
        if project.path("split", DESCRIPTORS).is_file():
            found = load_descriptors(checked(project, "split", DESCRIPTORS), dataset_digest=self._dataset.digest())
        else:  # a split that was made before there were descriptors
            images = (self._dataset.image(i) for i in sorted({*self._part_of, *self._allowed}))
            folder = project.path("data")
            found = {
                record.id: describe(load_rgb(image_path(folder, record), self._dataset.value_range))
                for record in images
            }
        self._held_out = {image_id: descriptor for image_id, descriptor in found.items() if image_id in self._part_of}
        self._own = frozenset(found[image_id].pixel_digest for image_id in self._allowed)
        self._by_file = {self._dataset.image(image_id).sha256: image_id for image_id in self._part_of}

    def copy_of(self, image_file: Path) -> HeldOutCopy | None:
        """Return the image of validation or test that an image file equals or is a near-duplicate of; None where there
        is none.

        Files are compared by bytes, by decoded pixels after the data set's conversion, and by what they show. An image
        that the split has in train or pool is none, however alike others are.

        Raises:
            ImageError: the file is missing or cannot be read.
        """
        if not image_file.is_file():
            raise ImageError(image_file, "no such image file", "check the file name")
        same = self._by_file.get(digest_file(image_file))
        if same is not None:
            return self._told(same, 1.0)
        descriptor: ImageDescriptor = describe(load_rgb(image_file, self._dataset.value_range))
        equal = [
            image_id for image_id, value in self._held_out.items() if value.pixel_digest == descriptor.pixel_digest
        ]
        if equal:
            return self._told(equal[0], 1.0)
        if descriptor.pixel_digest in self._own:
            return None
        found = copies_of(descriptor, self._held_out, threshold=self._split.duplicate_threshold)
        return self._told(*found[0]) if found else None

    def _told(self, image_id: int, similarity: float) -> HeldOutCopy:
        return HeldOutCopy(
            file_name=self._dataset.image(image_id).file_name, part=self._part_of[image_id], similarity=similarity
        )


def require_not_held_out(project: Project, image_file: Path) -> None:
    """Refuse an image of validation or test, or a copy of one: re-saved, mirrored, turned, cropped, shifted, brightened
    or resized.

    Args:
        project: whose split has been made.
        image_file: of the user.

    Raises:
        ImageError: the file is missing, cannot be read, or shows what a held-out image shows.
    """
    if not image_file.is_file():
        raise ImageError(image_file, "no such image file", "check the file name")
    found = HeldOutImages(project).copy_of(image_file)
    if found is not None:
        raise ImageError(image_file, found.told(), "insert into images of train, of the pool, or into new ones")
