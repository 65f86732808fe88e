from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.artifacts.split import Split
from defectory.dataset.config import SplitConfig
from defectory.dataset.split.groups import MAX_TOLD
from defectory.dataset.split.make import make_split
from defectory.errors import ConfigError, InputError
from defectory.files import digest_file
from defectory.images.save import save_png
from defectory.rle import encode

SIZE_HW = (60, 84)
MASK = np.zeros(SIZE_HW, bool)
MASK[10:20, 30:44] = True
Image = NDArray[np.uint8]
# (group, category ids, subset)
Row = tuple[str, Sequence[int], Any]


def instance(category_id: int) -> Instance:
    return Instance(category_id=category_id, rle=encode(MASK))


def dataset_of(rows: Sequence[Row]) -> Dataset:
    """A data set whose images are not on disk: splits that look at no pixel need none."""
    records = tuple(
        ImageRecord(
            id=number,
            file_name=f"{number:03d}.png",
            size_hw=SIZE_HW,
            sha256=f"{number}",
            group=group,
            subset=subset,
            instances=tuple(instance(c) for c in categories),
        )
        for number, (group, categories, subset) in enumerate(rows, start=1)
    )
    return Dataset(categories=tuple(Category(id=i, name=f"class{i}") for i in (1, 2, 3)), images=records)


def split_blindly(rows: Sequence[Row], **config: Any) -> tuple[Dataset, Split]:
    dataset = dataset_of(rows)
    seed = int(config.pop("seed", 0))
    return dataset, make_split(Path("nowhere"), dataset, SplitConfig(**config), seed=seed, descriptors={})


def surface(seed: int, *, std: float = 30.0) -> Image:
    rng = np.random.default_rng([11, seed])
    grey = sum(cv2.GaussianBlur(rng.normal(0, 1, SIZE_HW).astype(np.float32), (0, 0), s) * s for s in (1.0, 2.0, 5.0))
    grey = 120 + std * (grey - grey.mean()) / grey.std()
    return np.clip(np.round(np.repeat(grey[..., None], 3, axis=2)), 0, 255).astype(np.uint8)


def on_disk(folder: Path, rows: Sequence[tuple[Image, str, Sequence[int], Any]]) -> Dataset:
    records: list[ImageRecord] = []
    for number, (image, group, categories, subset) in enumerate(rows, start=1):
        name = f"{number:03d}.png"
        save_png(folder / "images" / name, image)
        records.append(
            ImageRecord(
                id=number,
                file_name=name,
                size_hw=(image.shape[0], image.shape[1]),
                sha256=digest_file(folder / "images" / name),
                group=group,
                subset=subset,
                instances=tuple(instance(c) for c in categories),
            )
        )
    return Dataset(categories=(Category(id=1, name="crack"), Category(id=2, name="pit")), images=tuple(records))


rows_of_images = st.lists(
    st.tuples(
        st.sampled_from(["0", "", "None", "False", *(f"g{i}" for i in range(12))]),
        st.lists(st.integers(1, 3), max_size=2),
        st.none(),
    ),
    min_size=8,
    max_size=40,
).filter(lambda rows: len({group for group, categories, _ in rows if categories}) >= 5)


@settings(max_examples=80, deadline=None)
@given(
    rows=rows_of_images,
    seed=st.integers(0, 5),
    fraction=st.sampled_from([0.01, 0.3, 1.0]),
    folds=st.sampled_from([None, 2, 3]),
)
def test_subsets_are_disjoint_and_groups_are_never_cut(
    rows: list[Row], seed: int, fraction: float, folds: int | None
) -> None:
    try:
        dataset, split = split_blindly(rows, seed=seed, fraction=fraction, folds=folds, fold=1 if folds else 0)
    except ConfigError as error:
        # one group has as many images as all others, and is alone outside the fold
        if folds is None or "leaves 1 for train and val, 2 needed" not in str(error):
            raise
        return
    split.require_dataset(dataset, where=Path("split.json"))
    subsets = [{*split.train, *split.pool}, set(split.val), set(split.test)]
    assert sum(len(subset) for subset in subsets) == len(set[int]().union(*subsets))
    groups = [{dataset.image(i).group for i in subset} for subset in subsets]
    for place, one in enumerate(groups):
        assert not any(one & other for other in groups[place + 1 :])
    assert all(dataset.image(i).instances for i in split.train)
    assert not any(dataset.image(i).instances for i in split.pool)
    assert split.train
    assert split.val
    assert split.test
    assert Split.model_validate(split.model_dump()) == split


def test_a_fold_that_leaves_one_group_is_refused() -> None:
    rows: list[Row] = [("big", [1, 2], None)] * 4 + [(f"g{i}", [1 + i % 2], None) for i in range(4)]
    assert split_blindly(rows, folds=4, fold=1)[1].val
    with pytest.raises(ConfigError, match="tests 4 of 5 groups with defects, which leaves 1 for train and val"):
        for fold in (0, 1):
            split_blindly(rows, folds=2, fold=fold)


@pytest.mark.parametrize("group", ["0", "", "None", "nan"])
def test_a_group_is_a_group_whatever_its_name(group: str) -> None:
    rows = [(group, [1], None)] * 6 + [(f"g{i}", [1], None) for i in range(24)]
    dataset, split = split_blindly(rows)
    whole = {record.id for record in dataset.images if record.group == group}
    assert any(whole <= set(subset) for subset in (split.train, split.val, split.test))


def test_many_groups_are_ordered_in_little_time() -> None:
    rows = [(f"g{i}", [1 + i % 3], None) for i in range(12_000)]
    _, split = split_blindly(rows)
    assert len(split.train) + len(split.val) + len(split.test) == 12_000


BASE = {
    "dataset_digest": "d",
    "seed": 0,
    "fraction": 1.0,
    "train": (1, 2),
    "val": (3,),
    "test": (4,),
    "pool": (5,),
    "pool_source": "images",
}


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"train": (1, 4)}, r"train and test share image ids \[4\]"),
        ({"pool": (5, 3)}, r"val and pool share image ids \[3\]"),
        ({"val": (4, 1)}, r"train and val share image ids \[1\]"),
        ({"train": (1, 2, 1)}, r"train holds image ids \[1\] twice"),
        ({"left_out_of_pool": (5,)}, r"pool and left_out_of_pool share image ids \[5\]"),
        (
            {"train": tuple(range(10, 40)), "pool": tuple(range(10, 40))},
            r"share image ids \[10, 11, 12, 13, 14\] and 25 more",
        ),
    ],
)
def test_a_split_with_an_id_in_two_places_cannot_be(tmp_path: Path, changed: dict[str, Any], found: str) -> None:
    with pytest.raises(ValidationError, match=found):
        Split.model_validate(BASE | changed)
    (tmp_path / "split.json").write_text(json.dumps(BASE | changed))
    with pytest.raises(InputError, match=found) as caught:
        Split.load(tmp_path / "split.json")
    assert "\n" not in str(caught.value)
    assert "split.json: not a valid Split (" in str(caught.value)


@given(subsets=st.lists(st.lists(st.integers(0, 30), max_size=6), min_size=4, max_size=4))
def test_a_split_is_disjoint_or_refused(subsets: list[list[int]]) -> None:
    every = [i for subset in subsets for i in subset]
    fields = dict(zip(("train", "val", "test", "pool"), (tuple(subset) for subset in subsets), strict=True))
    if len(every) == len(set(every)):
        assert Split.model_validate(BASE | fields).test == fields["test"]
    else:
        with pytest.raises(ValidationError):
            Split.model_validate(BASE | fields)


def test_a_split_that_was_edited_is_noticed(tmp_path: Path) -> None:
    rows = [(f"g{i}", [1], None) for i in range(20)]
    dataset, split = split_blindly(rows)
    path = tmp_path / "split.json"
    split.save(path)
    assert Split.load(path) == split
    content = json.loads(path.read_text())
    # moved, so that every subset is disjoint still
    path.write_text(
        json.dumps(content | {"train": sorted(content["train"] + content["test"][:2]), "test": content["test"][2:]})
    )
    with pytest.raises(InputError, match="its content was changed after it was written") as caught:
        Split.load(path)
    assert "\n" not in str(caught.value)
    # without the digest the groups tell: one image of a subset moved
    rows = [(f"g{i // 2}", [1], None) for i in range(40)]
    dataset, split = split_blindly(rows)
    moved = split.model_dump() | {"train": (*split.train, split.test[0]), "test": split.test[1:]}
    with pytest.raises(InputError, match=r"group 'g\d+' is in train and in test"):
        Split.model_validate(moved).require_dataset(dataset, where=path)


def test_a_split_belongs_to_one_data_set() -> None:
    rows = [(f"g{i}", [1], None) for i in range(20)]
    dataset, split = split_blindly(rows)
    where = Path("split.json")
    with pytest.raises(InputError, match=r"image ids \[\d+\] are not in the data set"):
        split.require_dataset(dataset.model_copy(update={"images": dataset.images[:-1]}), where=where)
    edited = dataset.images[0].model_copy(update={"instances": (instance(2),)})
    with pytest.raises(InputError, match="the data set was changed after the split was made"):
        split.require_dataset(Dataset(categories=dataset.categories, images=(edited, *dataset.images[1:])), where=where)


def labelled(count: int, start: int = 0, *, subset: Any = None) -> list[tuple[Image, str, Sequence[int], Any]]:
    return [(surface(start + i), f"p{start + i}", [1 + i % 2], subset) for i in range(count)]


def test_copies_of_low_contrast_stay_in_one_subset(tmp_path: Path) -> None:
    faint = surface(500, std=0.8)
    assert faint.std() < 6
    rows = [
        *labelled(12),
        (faint, "one", [1], None),
        (faint[:, ::-1].copy(), "two", [1], None),
        (faint, "three", [2], None),
    ]
    dataset = on_disk(tmp_path, rows)
    for seed in range(4):
        split = make_split(tmp_path, dataset, SplitConfig(), seed=seed)
        held = [next(name for name in ("train", "val", "test") if i in getattr(split, name)) for i in (13, 14, 15)]
        assert len(set(held)) == 1
        assert split.num_merges == 2


def test_defect_free_copies_of_labelled_images_are_no_pool(tmp_path: Path) -> None:
    rows = labelled(10) + [(surface(900 + i), f"clean{i}", [], None) for i in range(6)]
    turned = np.rot90(surface(2)).copy()  # another size, and no label
    cut = surface(3)[2:-2, 3:-3].copy()
    dataset = on_disk(tmp_path, [*rows, (turned, "c1", [], None), (cut, "c2", [], None)])
    split = make_split(tmp_path, dataset, SplitConfig())
    assert split.pool
    assert not {17, 18} & set(split.pool)
    assert {17, 18} <= {*split.left_out_of_pool, *split.val, *split.test}
    if split.left_out_of_pool:
        assert any("copies of images with defects and were left out of the pool" in remark for remark in split.remarks)
    # a threshold of 1 keeps equal pixels alone: a cut copy is then another image
    strict = make_split(tmp_path, dataset, SplitConfig(duplicate_similarity=1.0))
    assert strict.num_merges == 1


def test_a_thousand_copies_make_few_lines() -> None:
    from defectory.dataset.descriptor import ImageDescriptor

    empty = {
        "surface": np.zeros((4, 4), np.int8),
        "points_xy": np.zeros((0, 2), np.float32),
        "features": np.zeros((0, 128), np.uint8),
    }
    dataset = dataset_of([(f"g{i}", [1], None) for i in range(1200)])
    same = {i: ImageDescriptor(pixel_digest="same" if i <= 1100 else str(i), **empty) for i in range(1, 1201)}  # type: ignore[arg-type]
    split = make_split(Path("nowhere"), dataset, SplitConfig(), descriptors=same)
    assert split.num_merges == 1099
    assert len(split.moved_duplicates) == MAX_TOLD + 1
    assert split.moved_duplicates[-1] == f"and {1099 - MAX_TOLD} more"
    assert any("join 1100 of 1200 images" in remark for remark in split.remarks)


def test_a_set_of_copies_alone_is_refused_in_one_line(tmp_path: Path) -> None:
    rows = [(surface(1 + i % 2), f"g{i}", [1], None) for i in range(8)]
    with pytest.raises(ConfigError, match="2 groups with defects after 6 merges of near-duplicates, at least 3 needed"):
        make_split(tmp_path, on_disk(tmp_path, rows), SplitConfig())


def given_subsets() -> list[Row]:
    rows: list[Row] = [(f"t{i}", [1 + i % 2], "train") for i in range(10)] + [(f"v{i}", [1], "val") for i in range(4)]
    return [
        *rows,
        *((f"e{i}", [2], "test") for i in range(5)),
        *((f"c{i}", [], "train") for i in range(3)),
        ("x", [], None),
    ]


def test_the_data_sets_own_split_is_kept() -> None:
    dataset, split = split_blindly(given_subsets(), from_data=True)
    for subset in ("train", "val", "test"):
        assert set(getattr(split, subset)) == {r.id for r in dataset.images if r.subset == subset and r.instances}
    assert set(split.pool) == {r.id for r in dataset.images if not r.instances}
    assert split.source == "data"
    split.require_dataset(dataset, where=Path("split.json"))
    _, few = split_blindly(given_subsets(), from_data=True, fraction=0.3)
    assert set(few.train) < set(split.train)
    assert (few.val, few.test) == (split.val, split.test)
    _, drawn = split_blindly(given_subsets())
    assert any(
        "comes with its own split (train 13, val 4, test 5 images); split.from_data = true keeps it" in r
        for r in drawn.remarks
    )
    assert not split.remarks


@pytest.mark.parametrize(
    ("rows", "config", "found"),
    [
        ([(f"g{i}", [1], None) for i in range(9)], {}, "the data set has no split of its own"),
        ([(f"g{i}", [1], "test" if i % 2 else "train") for i in range(9)], {}, "the data set has no val subset"),
        ([(f"g{i}", [1], "train") for i in range(9)], {}, "has no val and no test subset"),
        (given_subsets(), {"folds": 3}, "is set together with split.folds"),
        ([(g, [] if p == "val" else c, p) for g, c, p in given_subsets()], {}, "no image with a defect is left in val"),
    ],
)
def test_a_split_that_the_data_does_not_bring_is_one_line(rows: list[Row], config: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found) as caught:
        split_blindly(rows, from_data=True, **config)
    assert "\n" not in str(caught.value)


def test_copies_across_given_subsets_leave_train_and_never_test(tmp_path: Path) -> None:
    rows = [*labelled(8, subset="train"), *labelled(4, 100, subset="val"), *labelled(4, 200, subset="test")]
    crossing = [
        (surface(200)[:, ::-1].copy(), "a", [1], "train"),
        (surface(101)[1:-2, 2:].copy(), "b", [1], "train"),
        (surface(201), "c", [2], "val"),
        (surface(202)[::-1].copy(), "d", [], "train"),
    ]
    dataset = on_disk(tmp_path, [*rows, *crossing])
    split = make_split(tmp_path, dataset, SplitConfig(from_data=True))
    assert set(split.train) == set(range(1, 9))
    assert set(split.val) == {9, 10, 11, 12}
    assert set(split.test) == {13, 14, 15, 16}
    assert not split.pool
    told = " | ".join(split.remarks)
    assert "2 images of train are copies of images of test and are left out of train (017.png, 020.png)" in told
    assert "1 images of train are copies of images of val and are left out of train (018.png)" in told
    assert "1 images of val are copies of images of test and are left out of val (019.png)" in told
