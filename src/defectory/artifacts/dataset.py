"""The data set folder as a value: images untouched, instances as run-length encoding."""

from __future__ import annotations

from pathlib import Path

from pydantic import PrivateAttr

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.value import Value

MANIFEST = "dataset.json"


class ImageRecord(Value):
    """One image of a data set; `file_name` is relative to the data set folder's `images/`."""

    id: int
    file_name: str
    size_hw: tuple[int, int]
    sha256: str
    group: str
    instances: tuple[Instance, ...] = ()

    @property
    def is_defect_free(self) -> bool:
        """Tell whether the image carries no instance."""
        return not self.instances


class Dataset(Value):
    """A data set: classes and images; the folder itself is passed beside it, never part of it."""

    categories: tuple[Category, ...]
    images: tuple[ImageRecord, ...]
    _index: dict[int, ImageRecord] | None = PrivateAttr(default=None)

    def image(self, image_id: int) -> ImageRecord:
        """Give the record with this id."""
        return self._by_id()[image_id]

    def _by_id(self) -> dict[int, ImageRecord]:
        if self._index is None:
            self._index = {record.id: record for record in self.images}
        return self._index

    def category_name(self, category_id: int) -> str:
        """Give the class name of a category id."""
        return self.categories[category_id - 1].name


def image_path(folder: Path, record: ImageRecord) -> Path:
    """Give the path of a record's image file in a data set folder."""
    return folder / "images" / record.file_name
