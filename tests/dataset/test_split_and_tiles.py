from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import Tiling
from defectory.dataset.config import SplitConfig, TilingConfig
from defectory.dataset.split import make_split
from defectory.dataset.tiles import choose_tiling, cut_tiles
from defectory.errors import FirewallError
from defectory.imageio import load_rgb, save_png
from defectory.rle import decode, encode
from defectory.run import digest_file

SIZE_HW = (64, 96)


def make_dataset(
    folder: Path, *, groups: int = 20, per_group: int = 2, clean_groups: int = 8, classes: int = 2, twin: bool = False, thin_groups: int = 0
) -> Dataset:
    records: list[ImageRecord] = []

    def add(group: str, instances: tuple[Instance, ...], image: np.ndarray) -> None:
        name = f"{len(records):03d}.png"
        save_png(folder / "images" / name, image)
        digest = digest_file(folder / "images" / name)
        records.append(ImageRecord(id=len(records) + 1, file_name=name, size_hw=SIZE_HW, sha256=digest, group=group, instances=instances))

    for group in range(groups):
        for shot in range(per_group):
            image = np.random.default_rng([group, shot]).integers(0, 255, (*SIZE_HW, 3)).astype(np.uint8)
            mask = np.zeros(SIZE_HW, bool)
            mask[10 : 16 if group < thin_groups else 20, 20 + shot : 40] = True
            add(f"g{group:02d}", (Instance(category_id=1 + group % classes, rle=encode(mask)),), image)
    for group in range(clean_groups):
        add(f"clean{group}", (), np.random.default_rng([99, group]).integers(0, 255, (*SIZE_HW, 3)).astype(np.uint8))
    if twin:
        add("copy", (), load_rgb(folder / "images" / "000.png"))
    return Dataset(categories=tuple(Category(id=i + 1, name=f"class{i}") for i in range(classes)), images=tuple(records))


def groups_of(dataset: Dataset, ids: tuple[int, ...]) -> set[str]:
    return {dataset.image(i).group for i in ids}


def test_groups_never_straddle_parts_and_the_seed_decides(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    split = make_split(tmp_path, dataset, SplitConfig(seed=3))
    parts = [groups_of(dataset, ids) for ids in (split.train, split.val, split.test, split.pool)]
    for index, first in enumerate(parts[:3]):
        for second in parts[index + 1 :]:
            assert not first & second or (index == 0 and second is parts[3])
    assert make_split(tmp_path, dataset, SplitConfig(seed=3)).digest() == split.digest()
    assert make_split(tmp_path, dataset, SplitConfig(seed=4)).digest() != split.digest()


def test_fractions_are_nested_share_their_test_and_keep_every_class(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, groups=40, per_group=1, classes=3)
    splits = [make_split(tmp_path, dataset, SplitConfig(fraction=f)) for f in (0.01, 0.05, 0.1, 0.5, 1.0)]
    for small, large in itertools.pairwise(splits):
        assert set(small.train + small.val) <= set(large.train + large.val)
        assert {i for i in small.test if dataset.image(i).instances} == {i for i in large.test if dataset.image(i).instances}
    for split in splits:
        assert {i.category_id for n in split.train for i in dataset.image(n).instances} == {1, 2, 3}
        assert any(dataset.image(n).instances for n in split.val)
    assert len(splits[0].train) < len(splits[3].train) < len(splits[4].train)


def test_folds_test_every_labelled_group_once(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, groups=9, per_group=1)
    tested = [i for fold in range(3) for i in make_split(tmp_path, dataset, SplitConfig(folds=3, fold=fold)).test]
    assert sorted(tested) == [record.id for record in dataset.images]


def test_near_duplicates_are_kept_together_and_reported(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, twin=True)
    split = make_split(tmp_path, dataset, SplitConfig())
    assert any("000.png" in line for line in split.moved_duplicates)
    twin, first = dataset.images[-1].id, dataset.images[0].id
    held_out = set(split.val) | set(split.test)
    assert (first in held_out) == (twin not in split.pool)


def test_the_firewall_refuses_val_and_test(tmp_path: Path) -> None:
    split = make_split(tmp_path, make_dataset(tmp_path), SplitConfig())
    split.require_training_ids([*split.train, *split.pool], stage="anything")
    for bad in (split.val[0], split.test[0]):
        with pytest.raises(FirewallError, match="prior"):
            split.require_training_ids([split.train[0], bad], stage="prior")


def test_without_defect_free_images_the_pool_is_crops_of_train(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, clean_groups=0)
    split = make_split(tmp_path, dataset, SplitConfig())
    assert split.pool_source == "train_crops"
    # a frame of 96 would hold these images whole, and leave the pool empty
    assert choose_tiling(dataset, split, TilingConfig(), 96).mode == "tile"
    assert "since no image is defect-free" in choose_tiling(dataset, split, TilingConfig(), 96).reason
    tiling = choose_tiling(dataset, split, TilingConfig(tile_px=32), 32)
    tiles = cut_tiles(tmp_path, dataset, split, tiling, parts=("train", "pool"), out=tmp_path / "tiles", config=TilingConfig(), seed=0)
    pool = tiles.of("pool")
    assert pool
    for tile in pool:
        assert tile.image_id in split.train
        assert not tile.instances
        truth = np.any([decode(i.rle) for i in dataset.image(tile.image_id).instances], axis=0)
        x, y = (round(v) for v in tile.offset_xy)
        assert not truth[max(0, y) : y + 32, max(0, x) : x + 32].any()


def test_tiles_are_exact_cuts_of_image_and_mask(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    split = make_split(tmp_path, dataset, SplitConfig())
    tiling = choose_tiling(dataset, split, TilingConfig(mode="tile", tile_px=32, scale=1.0), 32)
    tiles = cut_tiles(tmp_path, dataset, split, tiling, parts=("train",), out=tmp_path / "tiles", config=TilingConfig(), seed=0)
    assert {t.image_id for t in tiles.tiles if t.instances} == set(split.train)
    for tile in tiles.tiles[:6]:
        record = dataset.image(tile.image_id)
        x, y = (round(v) for v in tile.offset_xy)
        image = load_rgb(tmp_path / "images" / record.file_name)
        np.testing.assert_array_equal(load_rgb(tmp_path / "tiles" / tile.file_name), image[y : y + 32, x : x + 32])
        for instance in tile.instances:
            whole = decode(record.instances[0].rle)
            np.testing.assert_array_equal(decode(instance.rle), whole[y : y + 32, x : x + 32])


def test_a_tile_says_how_much_it_shows_of_which_instance_and_keeps_crowds(tmp_path: Path) -> None:
    left, right = np.zeros(SIZE_HW, bool), np.zeros(SIZE_HW, bool)
    left[20:30, 4:14], right[20:40, 20:60] = True, True
    image = np.random.default_rng(0).integers(0, 255, (*SIZE_HW, 3)).astype(np.uint8)
    save_png(tmp_path / "images" / "one.png", image)
    instances = (Instance(category_id=1, rle=encode(left)), Instance(category_id=1, rle=encode(right), is_crowd=True))
    record = ImageRecord(id=1, file_name="one.png", size_hw=SIZE_HW, sha256="x", group="a", instances=instances)
    dataset = Dataset(categories=(Category(id=1, name="class0"),), images=(record,))
    split = Split(dataset_digest="d", seed=0, fraction=1.0, train=(1,), val=(), test=(), pool=(), pool_source="images")
    for mode, scale in (("tile", 1.0), ("tile", 0.5), ("frame", 0.33)):
        tiling = Tiling(mode=mode, tile_px=32, scale=scale, reason="test")
        tiles = cut_tiles(tmp_path, dataset, split, tiling, parts=("train",), out=tmp_path / mode, config=TilingConfig(), seed=0).tiles
        seen = [(instance, tile) for tile in tiles for instance in tile.instances]
        assert {i.number for i, _ in seen} == {0, 1}
        for instance, tile in seen:
            assert instance.is_crowd == (instance.number == 1)
            x, y = (round(v) for v in tile.offset_xy)
            whole = (left, right)[instance.number]
            share = whole[y : y + round(32 / scale), x : x + round(32 / scale)].sum() / whole.sum() if mode == "tile" else 1.0
            assert instance.visible_share == pytest.approx(share, abs=0.03)
        if (mode, scale) == ("tile", 1.0):
            assert any(i.visible_share < 1 for i, _ in seen)


@pytest.mark.parametrize(("tile_px", "count"), [(32, 2 * 3), (48, 2 * 2), (80, 1 * 2), (96, 1)])
def test_pool_tiles_cover_an_image_to_its_borders(tmp_path: Path, tile_px: int, count: int) -> None:
    dataset = make_dataset(tmp_path)
    split = make_split(tmp_path, dataset, SplitConfig())
    tiling = Tiling(mode="tile", tile_px=tile_px, scale=1.0, reason="test")
    tiles = cut_tiles(tmp_path, dataset, split, tiling, parts=("pool",), out=tmp_path / "tiles", config=TilingConfig(), seed=0).tiles
    seen = {image_id: np.zeros(SIZE_HW, int) for image_id in split.pool}
    for tile in tiles:
        x, y = (round(v) for v in tile.offset_xy)
        assert tile.valid_hw == (min(64, tile_px), min(96, tile_px))
        seen[tile.image_id][y : y + tile_px, x : x + tile_px] += 1
    assert len(tiles) == count * len(split.pool)
    assert all(covered.min() == 1 for covered in seen.values())


@pytest.mark.parametrize(
    ("thin_groups", "tile_px", "mode"), [(20, 64, "tile"), (2, 64, "frame"), (20, 96, "frame"), (20, 48, "tile"), (0, 16, "tile")]
)
def test_frames_are_for_images_that_fit_without_making_their_defects_thin(
    tmp_path: Path, thin_groups: int, tile_px: int, mode: str
) -> None:
    dataset = make_dataset(tmp_path, thin_groups=thin_groups)
    tiling = choose_tiling(dataset, make_split(tmp_path, dataset, SplitConfig()), TilingConfig(), tile_px)
    assert tiling.mode == mode
    assert tiling.scale == 1.0 if mode == "tile" else tiling.scale == round(tile_px / 96, 4)
    # six pixels at native size are four in a frame of 64
    assert ("100% of the defects would be under 6 px wide in a frame" in tiling.reason) == ((thin_groups, tile_px) == (20, 64))


def test_frames_keep_the_aspect_and_pad(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    split = make_split(tmp_path, dataset, SplitConfig())
    tiling = choose_tiling(dataset, split, TilingConfig(), 64)
    assert tiling.mode == "frame"
    tiles = cut_tiles(tmp_path, dataset, split, tiling, parts=("train",), out=tmp_path / "tiles", config=TilingConfig(), seed=0)
    for tile in tiles.tiles:
        assert tile.valid_hw == (43, 64)
        assert (load_rgb(tmp_path / "tiles" / tile.file_name)[43:] == 0).all()
    large = choose_tiling(dataset, split, TilingConfig(), 16)
    assert large.mode == "tile" or large.scale < 0.6
