"""What a case is: a set as people have it, and what is right to do with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .makers import Made


@dataclass(frozen=True)
class Read:
    """The set is read: counts, true masks on the right pixels, and what is said."""

    images: int = 11
    instances: int = 8
    classes: tuple[str, ...] | None = ("scratch", "dent")
    defect_free: int | None = None
    says: tuple[str, ...] = ()
    """Words that a remark must hold."""
    layout: str = ""
    min_iou: float = 0.98


@dataclass(frozen=True)
class Refused:
    """One line with these words, and nothing is written."""

    says: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A kind of input, how it is made, and what is right."""

    name: str
    have: str
    make: Callable[[Made], str]
    """Lays the set out in a folder; gives the source's path in it."""
    right: Read | Refused
    options: dict[str, Any] = field(default_factory=dict)
    """Of the data section; paths relative to the folder."""
    within_s: float | None = None


def judge(case: Case, root: Path) -> str:
    """Import a case and say what happened in one line; AssertionError where it is not what is right."""
    import time

    from defectory.artifacts.dataset import Dataset
    from defectory.dataset.config import DataConfig
    from defectory.dataset.importer import import_dataset
    from defectory.errors import InputError

    made = Made(root=root / "set")
    made.root.mkdir(parents=True)
    source = case.make(made)
    before = tree_of(made.root)
    out = root / "out"
    began = time.monotonic()
    try:
        import_dataset(DataConfig(path=source, **case.options), out, base_folder=made.root)
    except InputError as error:
        said = str(error)
        assert isinstance(case.right, Refused), f"refused: {said}"
        assert "\n" not in said
        for words in case.right.says:
            assert words.lower() in said.lower(), f"{words!r} is not in {said!r}"
        assert not out.exists()
        assert tree_of(made.root) == before
        return f"refused: {said.replace(str(made.root), '')}"
    took = time.monotonic() - began
    dataset = Dataset.load(out / "dataset.json")
    right = case.right
    assert isinstance(right, Read), (
        f"read {len(dataset.images)} images, {sum(len(r.instances) for r in dataset.images)} instances"
    )
    assert tree_of(made.root) == before
    assert (len(dataset.images), sum(len(r.instances) for r in dataset.images)) == (right.images, right.instances)
    if right.classes is not None:
        assert {c.name for c in dataset.categories} == set(right.classes)
    if right.defect_free is not None:
        assert sum(r.is_defect_free for r in dataset.images) == right.defect_free
    worst = worst_iou(dataset, made)
    assert worst >= right.min_iou, f"a mask has IoU {worst:.3f} with what is true"
    for words in right.says:
        assert any(words.lower() in remark.lower() for remark in dataset.remarks), (
            f"{words!r} is in no remark: {dataset.remarks}"
        )
    assert str(made.root) not in " ".join(dataset.remarks)
    assert right.layout.lower() in dataset.layout.lower(), dataset.layout
    assert case.within_s is None or took < case.within_s, f"took {took:.1f} s"
    told = f"; {'; '.join(dataset.remarks)}" if dataset.remarks else ""
    return f"{dataset.layout}: {right.images} images, {right.instances} instances{told}"


def worst_iou(dataset: Any, made: Made) -> float:
    """The least IoU of a class's masks on an image with what is true of that image's content."""
    from defectory.rle import decode

    worst = 1.0
    for record in dataset.images:
        truth = made.truth[record.sha256]
        found: dict[str, np.ndarray] = {}
        for instance in record.instances:
            name = dataset.category_name(instance.category_id)
            found[name] = found.get(name, np.zeros(record.size_hw, bool)) | decode(instance.rle)
        if len(truth) == len(found) == 1 and set(truth) != set(found):
            truth = dict(zip(found, truth.values(), strict=True))  # classes of other names are compared by count above
        assert set(found) == set(truth), f"{record.file_name}: {sorted(found)} found, {sorted(truth)} true"
        for name, mask in truth.items():
            worst = min(worst, float((mask & found[name]).sum() / (mask | found[name]).sum()))
    return worst


def tree_of(root: Path) -> dict[str, bytes]:
    """Every file under a folder with its content."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
