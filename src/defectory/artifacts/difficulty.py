"""What a segmenter finds hard: how well it drew each train instance that it had not seen."""

from __future__ import annotations

from collections.abc import Iterable

from defectory.artifacts.value import Value


class InstanceDifficulty(Value):
    """One train instance, by its image and its number there, and the IoU of the best detection of its class; 0 where it was missed."""

    image_id: int
    number: int
    category_id: int
    iou: float


class Difficulty(Value):
    """All train instances, each judged by the segmenter that was trained on the other folds; validation and test take no part."""

    split_digest: str
    num_folds: int
    instances: tuple[InstanceDifficulty, ...]

    def weights(self, *, floor: float) -> dict[tuple[int, int], float]:
        """Give how often each instance should serve, by (image id, number): its missing IoU above a floor, 1 on the mean."""
        raw = {(i.image_id, i.number): floor + 1.0 - i.iou for i in self.instances}
        mean = sum(raw.values()) / max(1, len(raw))
        return {key: value / mean for key, value in raw.items()}

    def per_class(self) -> dict[int, float]:
        """Give the mean IoU by category id."""
        return {c: _mean(i.iou for i in self.instances if i.category_id == c) for c in sorted({i.category_id for i in self.instances})}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / max(1, len(found))
