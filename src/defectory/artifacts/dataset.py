"""The data set folder as a value: unchanged image files and instances as run-length encoding."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import PrivateAttr, field_validator, model_validator

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.value import Value
from defectory.images.valuerange import ValueRange

MANIFEST = "dataset.json"


class ImageRecord(Value):
    """One image of a data set; `file_name` is relative to the `images/` subfolder."""

    id: int
    file_name: str
    size_hw: tuple[int, int]
    sha256: str
    group: str
    instances: tuple[Instance, ...] = ()
    subset: Literal["train", "val", "test"] | None = None
    """The image's subset in the source's own split, if the source has one."""

    @field_validator("file_name")
    @classmethod
    def _stays_in_its_folder(cls, name: str) -> str:
        path = PurePosixPath(name)
        if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
            raise ValueError("not a file name relative to images/")
        return name

    @property
    def is_defect_free(self) -> bool:
        """Return whether the image has no instances."""
        return not self.instances


class Dataset(Value):
    """A data set: classes and images. The folder is passed separately and is not part of the value."""

    categories: tuple[Category, ...]
    images: tuple[ImageRecord, ...]
    value_range: ValueRange | None = None
    """Black and white of the data set; None if every image has 8 bits per channel."""
    layout: str = ""
    """Readable name of the layout recognised in the source."""
    remarks: tuple[str, ...] = ()
    """Remarks from the import, one line each."""
    _index: dict[int, ImageRecord] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if [category.id for category in self.categories] != list(range(1, len(self.categories) + 1)):
            raise ValueError("category ids must be 1, 2, ... in this order")
        if len({record.id for record in self.images}) < len(self.images):
            raise ValueError("two images have one id")
        known = len(self.categories)
        for record in self.images:
            if not all(1 <= instance.category_id <= known for instance in record.instances):
                raise ValueError(f"image {record.id} has an instance of a class that is not listed")
        return self

    def image(self, image_id: int) -> ImageRecord:
        """Return the record with this id."""
        return self._by_id()[image_id]

    def _by_id(self) -> dict[int, ImageRecord]:
        if self._index is None:
            self._index = {record.id: record for record in self.images}
        return self._index

    def category_name(self, category_id: int) -> str:
        """Return the class name of a category id."""
        return self.categories[category_id - 1].name


def image_path(folder: Path, record: ImageRecord) -> Path:
    """Return the path of a record's image file in a data set folder."""
    return folder / "images" / record.file_name
