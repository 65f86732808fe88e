"""The split certificate: which images each consumer used, and whether val and test stayed out of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ModelWrapValidatorHandler, model_validator

from defectory.artifacts.value import Value
from defectory.files import write_json

UsableSubset = Literal["train", "pool", "val", "test"]


class ReadFile(Value):
    """A file that was read for the certificate, relative to the run, and its SHA-256."""

    name: str
    sha256: str


class ImagesUsed(Value):
    """Which images a stage used, by purpose, as the stage records it beside its outcome."""

    image_ids: dict[str, tuple[int, ...]]


class ImageUse(Value):
    """What one consumer used, read from the files of a run."""

    consumer: str
    """Such as `mask bank`."""
    may_use: tuple[UsableSubset, ...]
    image_ids: tuple[int, ...]
    files: tuple[ReadFile, ...]
    unread: tuple[str, ...] = ()
    """Files that are missing, changed since their stage wrote them, or not readable."""


class CertifiedUse(Value):
    """What one consumer used, and what is wrong with it."""

    consumer: str
    may_use: tuple[UsableSubset, ...]
    num_images: int
    images_digest: str
    """Digest of the sorted ids of the images."""
    files: tuple[ReadFile, ...]
    unread: tuple[str, ...] = ()
    """Files that are missing, changed since their stage wrote them, or not readable."""
    crossed: tuple[str, ...] = ()
    """Images of another subset than it may use, and near-duplicates of held-out images."""

    @property
    def holds(self) -> bool:
        """Return whether nothing is wrong with this use."""
        return not self.unread and not self.crossed


class Certificate(Value):
    """The outcome of checking a finished run against its split, sealed by a digest of its content.

    The file also stores the seal, so that an edited certificate is rejected. Equal files of a run give an equal seal.
    """

    dataset_digest: str
    split_digest: str
    num_images: int
    """Number of image files whose SHA-256 was compared with the import."""
    num_compared: int
    """Number of images among which near-duplicates were searched."""
    duplicate_threshold: float
    uses: tuple[CertifiedUse, ...]
    problems: tuple[str, ...] = ()
    """What is wrong with the images, the split, or the search for near-duplicates."""

    @model_validator(mode="wrap")
    @classmethod
    def _is_as_it_was_sealed(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        told = None
        if isinstance(data, Mapping):
            fields: dict[str, Any] = dict(data)
            told, data = fields.pop("seal", None), fields
            fields.pop("verdict", None)
        certificate = handler(data)
        if told is not None and told != certificate.seal:
            raise ValueError("its content was changed after it was sealed")
        return certificate

    @property
    def seal(self) -> str:
        """Return the digest of the whole content."""
        return self.digest()

    @property
    def broken(self) -> tuple[str, ...]:
        """Return everything that is wrong, one line each; empty if the split holds."""
        unread = tuple(f"{use.consumer}: {problem}" for use in self.uses for problem in use.unread)
        return (*self.crossed, *self.problems, *unread)

    @property
    def crossed(self) -> tuple[str, ...]:
        """Return where the split was crossed, one line each; the other findings are of damaged files."""
        return tuple(f"{use.consumer}: {problem}" for use in self.uses for problem in use.crossed)

    @property
    def verdict(self) -> Literal["holds", "broken"]:
        """Return whether the split holds."""
        return "broken" if self.broken else "holds"

    def save(self, path: Path) -> None:
        """Write the certificate, its verdict and its seal to a JSON file atomically."""
        write_json(path, {**self.model_dump(mode="json"), "verdict": self.verdict, "seal": self.seal})
