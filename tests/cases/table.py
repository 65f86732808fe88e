"""Print both tables of cases, or the cases of a folder: `python -m tests.cases.table [FOLDER]`.

FOLDER holds one folder per case, named by its number as in the first table (`01-json-bom`, `22-rle-kinds`, ...); each
is imported as a user would, and what happened stands beside what is right. Exit code 1 where a case is not as is right.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defectory.artifacts.dataset import Dataset
from defectory.dataset.config import DataConfig
from defectory.dataset.importer import import_dataset
from defectory.errors import InputError

from .common import COMMON
from .kinds import judge, tree_of
from .more import MORE


@dataclass(frozen=True)
class Given:
    """A case of a folder: the source in it, options, and what is right: counts (images, instances), or words of the one
    line.
    """

    source: str
    right: tuple[int, int] | str
    options: dict[str, Any] = field(default_factory=dict)
    says: str = ""


GIVEN: dict[str, tuple[Given, ...]] = {
    "01-json-bom": (Given("annotations.json", (11, 8)),),
    "05-size-null": (
        *(Given(f"{name}.json", (11, 8)) for name in ("annotations", "empty", "floats", "missing", "strings")),
        Given("zero.json", "0"),
    ),
    "07-same-category-name-twice": (Given("annotations.json", (11, 8), says="crack"),),
    "08-annotation-ids-repeat": (Given("annotations.json", (11, 8), says="id"),),
    "09-ids-of-other-type": (
        Given("annotations.json", (11, 8)),
        Given("image_id.json", (11, 8)),
        Given("category_list.json", "category_id"),
    ),
    "10-annotations-without-id": (Given("annotations.json", (11, 8)),),
    "12-iscrowd-as-text": (Given("annotations.json", (11, 8)),),
    "14-one-ring-of-two-points": (Given("annotations.json", (11, 8), says="ring"),),
    "19-self-crossing": (Given("annotations.json", (11, 8), says="cross"), Given("two_points_swapped.json", (11, 8))),
    "20-beyond-border": (Given("annotations.json", (11, 8), says="left"), Given("right.json", (11, 8), says="right")),
    "22-rle-kinds": (
        *(
            Given(f"{name}.json", (11, 8))
            for name in ("annotations", "bytes_repr", "float_counts", "last_zeros_left_out", "size_nulls")
        ),
        *(Given(f"{name}.json", "rle") for name in ("base64_counts", "counts_null", "too_long")),
        Given("size_number.json", "size"),
        Given("size_w_h.json", (11, 8)),
    ),
    "23-backslashes": (Given("result.json", (11, 8)), Given(".", (11, 8))),
    "24-label-studio-layout": (Given(".", (11, 8)),),
    "25-cvat-layout": (Given(".", (11, 8)), Given("annotations/instances_default.json", (11, 8))),
    "32-16bit": (Given("annotations.json", (11, 8), says="16"),),
    "33-float-tiff": (Given("annotations.json", (11, 8), says="float"),),
    "40-group-zero": (Given("annotations.json", (12, 12)),),
    "41b-dots": (Given("annotations.json", (13, 10)),),
    "41d-brackets": (Given("annotations.json", (13, 10)),),
    "46-ipynb-checkpoints": (Given(".", (11, 8)),),
    "49a-out-is-source": (Given("data/annotations.json", (11, 8)),),
    "50-out-is-project-folder": (Given("data/annotations.json", (11, 8)),),
    "51-mvtec-tree": (Given(".", (16, 8)),),
    "51c-same-names-csv": (Given("index.csv", (8, 8)),),
    "52-mask-suffix-per-class": (Given(".", (8, 8), says="3 images"),),
    "56-mask-jpeg-noise": (Given(".", "threshold"), Given(".", (11, 8), {"mask_threshold": 128})),
    "57b-defect-free-is-same-folder": (Given("annotations.json", "defect-free", {"defect_free": "."}),),
    "61-csv-bom": (Given("index.csv", (11, 8)),),
    "61d-csv-short-row": (Given("index.csv", "row"),),
    "61h-visa": (Given("image_anno.csv", (11, 8)), Given(".", (11, 8))),
    "66-roboflow-yolo": (Given("data.yaml", (11, 11), says="split"),),
    "69b-labels-beside-images": (Given("data.yaml", (8, 8), says="3 images"),),
    "70b-text": (Given("data.yaml", "class 1"),),
    "70c-dict-text": (Given("data.yaml", "names"),),
    "73-yolo-path": (Given("cfg/data.yaml", (8, 8), says="3 images"),),
    "84b-dense-outline": (Given("annotations.json", (5, 4)),),
}
"""Frames for `predict` and `insert` (85) are tried by tests/segmentation and tests/stages."""


def of_folder(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """Import every case of a folder; yield its name, what happened and whether that is right."""
    for name, given in GIVEN.items():
        for case in given:
            root = folder / name
            before = tree_of(root)
            with tempfile.TemporaryDirectory() as work:
                try:
                    import_dataset(DataConfig(path=case.source, **case.options), Path(work) / "out", base_folder=root)
                    dataset = Dataset.load(Path(work) / "out" / "dataset.json")
                    counts = len(dataset.images), sum(len(r.instances) for r in dataset.images)
                    told = f"{dataset.layout}: {counts[0]} images, {counts[1]} instances" + "".join(
                        f"; {r}" for r in dataset.remarks
                    )
                    right = counts == case.right and case.says.lower() in told.lower()
                except InputError as error:
                    told = f"refused: {str(error).replace(str(root), '')}"
                    right = isinstance(case.right, str) and case.right.lower() in told.lower()
                except Exception as error:  # a traceback is what the table is to show
                    told, right = f"TRACEBACK {type(error).__name__}: {error}", False
            yield f"{name} {case.source}", told, right and tree_of(root) == before


def of_tables() -> Iterator[tuple[str, str, bool]]:
    """Make and import every case of both tables."""
    for case in (*COMMON, *MORE):
        with tempfile.TemporaryDirectory() as work:
            try:
                yield case.name, judge(case, Path(work)).replace(work, ""), True
            except Exception as error:
                yield case.name, f"{type(error).__name__}: {error}".replace(work, ""), False


def main(arguments: list[str]) -> int:
    """Print the table as Markdown."""
    wrong = total = 0
    print("| case | what happens | right |\n|---|---|---|")
    for name, told, right in of_folder(Path(arguments[0])) if arguments else of_tables():
        shown = re.sub(r"\s+", " ", told).replace("|", "\\|")
        print(f"| {name} | {shown[:300]} | {'yes' if right else '**no**'} |", flush=True)
        total, wrong = total + 1, wrong + (not right)
    print(f"\n{total} cases, {total - wrong} right")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
