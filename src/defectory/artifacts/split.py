"""The frozen split and its firewall."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from defectory.artifacts.value import Value
from defectory.errors import FirewallError


class Split(Value):
    """Image ids of every part, disjoint by group; pool holds defect-free images of train groups or of groups of its own.

    Where `pool_source` is `train_crops`, `pool` is empty and the pool is made of defect-free crops of train.
    """

    dataset_digest: str
    seed: int
    fraction: float
    fold: int | None = None
    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    pool: tuple[int, ...]
    pool_source: Literal["images", "train_crops"]
    moved_duplicates: tuple[str, ...] = ()
    left_out_of_pool: tuple[int, ...] = ()

    def require_training_ids(self, image_ids: Iterable[int], *, stage: str) -> None:
        """Refuse ids that are not in train or pool.

        Raises:
            FirewallError: an image of validation or test, or an unknown one, was offered to a training stage.
        """
        allowed = set(self.train) | set(self.pool)
        forbidden = sorted(set(image_ids) - allowed)
        if forbidden:
            raise FirewallError(f"{stage}: image ids {forbidden[:5]} are not in train or pool; only those may reach this stage")
