"""The frozen split, and the firewall that keeps validation and test images out of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ModelWrapValidatorHandler, model_validator

from defectory.artifacts.dataset import Dataset
from defectory.artifacts.value import Value
from defectory.errors import FirewallError, InputError
from defectory.files import write_json

MAX_NAMED = 5
"""Maximum number of ids named in a message."""
AGAIN = "do not edit it: run the stage `split` again"


class Split(Value):
    """Image ids of every subset; no id is in two subsets.

    The pool holds defect-free images of train or of groups of their own. If `pool_source` is `train_crops`, `pool` is
    empty and the pool consists of defect-free crops of train. The file also stores a digest of its content, so that an
    edited file is rejected.
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
    source: Literal["drawn", "data"] = "drawn"
    """`drawn` by group, or `data` if the data set supplies the split."""
    duplicate_threshold: float = 1.0
    """Minimum similarity at which two images count as copies of each other."""
    num_merges: int = 0
    """Number of times two groups were merged because they share near-duplicates."""
    moved_duplicates: tuple[str, ...] = ()
    """The first of these merges, one line each."""
    left_out_of_pool: tuple[int, ...] = ()
    """Defect-free images left out because they are copies of images with defects."""
    remarks: tuple[str, ...] = ()
    """Remarks on the split for the user, one line each."""

    @model_validator(mode="wrap")
    @classmethod
    def _is_disjoint_and_as_it_was_written(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        told = None
        if isinstance(data, Mapping):
            fields: dict[str, Any] = dict(data)
            told, data = fields.pop("digest", None), fields
        split = handler(data)
        split._require_disjoint()
        if told is not None and told != split.digest():
            raise ValueError("its content was changed after it was written")
        return split

    def _require_disjoint(self) -> None:
        subsets = {name: getattr(self, name) for name in ("train", "val", "test", "pool", "left_out_of_pool")}
        for name, ids in subsets.items():
            twice = sorted(image_id for image_id, count in Counter(ids).items() if count > 1)
            if twice:
                raise ValueError(f"{name} holds {_ids(twice)} twice")
        names = list(subsets)
        for place, first in enumerate(names):
            for second in names[place + 1 :]:
                shared = sorted(set(subsets[first]) & set(subsets[second]))
                if shared:
                    raise ValueError(f"{first} and {second} share {_ids(shared)}")

    def save(self, path: Path) -> None:
        """Write the split and its digest to a JSON file atomically."""
        write_json(path, {**self.model_dump(mode="json"), "digest": self.digest()})

    def require_dataset(self, dataset: Dataset, *, where: Path) -> None:
        """Check that the split was made from this data set and keeps its groups together.

        Args:
            dataset: the run's current data set.
            where: file of the split, for messages.

        Raises:
            InputError: the split contains images that are not in the data set, the data set has changed, or a group is
                in several subsets.
        """
        group_of = {record.id: record.group for record in dataset.images}
        unknown = sorted({*self.train, *self.val, *self.test, *self.pool, *self.left_out_of_pool} - group_of.keys())
        if unknown:
            raise InputError(where, f"{_ids(unknown)} are not in the data set", AGAIN)
        if self.source == "drawn":
            subset_of: dict[str, str] = {}
            for subset, ids in (("train", (*self.train, *self.pool)), ("val", self.val), ("test", self.test)):
                for image_id in ids:
                    other = subset_of.setdefault(group_of[image_id], subset)
                    if other != subset:
                        raise InputError(
                            where,
                            f"group {group_of[image_id]!r} is in {other} and in {subset} (image id {image_id})",
                            AGAIN,
                        )
        if dataset.digest() != self.dataset_digest:
            raise InputError(where, "the data set was changed after the split was made", "run the stage `split` again")

    def require_training_ids(self, image_ids: Iterable[int], *, stage: str) -> None:
        """Check that all ids are in train or pool.

        Raises:
            FirewallError: a validation, test or unknown image was passed to a training stage.
        """
        allowed = set(self.train) | set(self.pool)
        forbidden = sorted(set(image_ids) - allowed)
        if forbidden:
            raise FirewallError(
                f"{stage}: image ids {forbidden[:MAX_NAMED]} are not in train or pool; use only images of these subsets"
            )


def _ids(ids: Sequence[int]) -> str:
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return f"image ids {list(ids[:MAX_NAMED])}{more}"
