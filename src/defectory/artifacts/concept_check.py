"""Outcome of the concept check: whether images of the concept alone are copies of training tiles."""

from __future__ import annotations

from defectory.artifacts.value import Value


class CheckedImage(Value):
    """One image of the concept, and the training tile that it is most like."""

    prompt: str
    seed: int
    similarity: float
    """From 0 to 1, as in the check `novelty` of curation."""
    nearest: str
    """Id of the training tile; empty if nothing is alike."""


class ConceptCheck(Value):
    """Images that a concept draws without a driver, compared with training tiles."""

    concept_digest: str
    limit: float
    """Similarity above which an image counts as a copy."""
    images: tuple[CheckedImage, ...]

    @property
    def copies(self) -> tuple[CheckedImage, ...]:
        """Return the images that count as copies."""
        return tuple(image for image in self.images if image.similarity > self.limit)

    @property
    def highest(self) -> float:
        """Return the highest similarity of an image to a training tile."""
        return max((image.similarity for image in self.images), default=0.0)
