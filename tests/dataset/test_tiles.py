from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import Tile, Tiling
from defectory.dataset import tiles as tiles_module
from defectory.dataset.config import TilingConfig
from defectory.dataset.tile_plan import plan_cuts
from defectory.dataset.tiles import choose_tiling, cut_tiles
from defectory.errors import ConfigError, FirewallError, ImageError, StageError
from defectory.events import finish
from defectory.files import digest_file
from defectory.geometry import is_thinner, resize_crop, resize_mask, width_px
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.images.valuerange import ValueRange
from defectory.rle import decode, decode_crop, encode

SIZE_HW = (64, 96)


def make_dataset(folder: Path, *, labelled: int = 12, free: int = 6, thin: int = 0) -> Dataset:
    records: list[ImageRecord] = []
    for number in range(labelled + free):
        name, instances = f"{number:03d}.png", ()
        save_png(
            folder / "images" / name, np.random.default_rng(number).integers(0, 255, (*SIZE_HW, 3)).astype(np.uint8)
        )
        if number < labelled:
            mask = np.zeros(SIZE_HW, bool)
            mask[10 : 16 if number < thin else 20, 20 + number % 2 : 40] = True
            instances = (Instance(category_id=1 + number % 2, rle=encode(mask)),)
        digest = digest_file(folder / "images" / name)
        records.append(
            ImageRecord(id=number + 1, file_name=name, size_hw=SIZE_HW, sha256=digest, group=name, instances=instances)
        )
    return Dataset(categories=(Category(id=1, name="dent"), Category(id=2, name="crack")), images=tuple(records))


def split_of(dataset: Dataset, *, held_out: int = 2) -> Split:
    labelled = [record.id for record in dataset.images if record.instances]
    free = [record.id for record in dataset.images if not record.instances]
    return Split(
        dataset_digest=dataset.digest(),
        seed=0,
        fraction=1.0,
        train=tuple(labelled[2 * held_out :]),
        val=(*labelled[:held_out], *free[:1]),
        test=tuple(labelled[held_out : 2 * held_out]),
        pool=tuple(free[1:]),
        pool_source="images" if free else "train_crops",
    )


def cut(
    folder: Path, dataset: Dataset, split: Split, tiling: Tiling, subsets: tuple[str, ...], **limits: int
) -> tuple[Tile, ...]:
    cutting = cut_tiles(
        folder, dataset, split, tiling, subsets=subsets, out=folder / "tiles", config=TilingConfig(**limits), seed=0
    )
    return finish(cutting).tiles


def native(tile_px: int) -> Tiling:
    return Tiling(mode="tile", tile_px=tile_px, scale=1.0, reason="test")


def test_without_defect_free_images_the_pool_is_crops_of_train(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, free=0)
    split = split_of(dataset)
    # a frame of 96 would hold these images whole, and leave the pool empty
    assert choose_tiling(dataset, split, TilingConfig(), 96).mode == "tile"
    assert "since no image is defect-free" in choose_tiling(dataset, split, TilingConfig(), 96).reason
    pool = [t for t in cut(tmp_path, dataset, split, native(32), ("train", "pool")) if t.subset == "pool"]
    assert pool
    for tile in pool:
        assert tile.image_id in split.train
        assert not tile.instances
        truth = np.any([decode(i.rle) for i in dataset.image(tile.image_id).instances], axis=0)
        x, y = (round(v) for v in tile.offset_xy)
        assert not truth[max(0, y) : y + 32, max(0, x) : x + 32].any()


def test_tiles_are_exact_cuts_of_image_and_mask(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    split = split_of(dataset)
    tiles = cut(tmp_path, dataset, split, native(32), ("train",))
    assert {t.image_id for t in tiles if t.instances} == set(split.train)
    for tile in tiles:
        record = dataset.image(tile.image_id)
        x, y = (round(v) for v in tile.offset_xy)
        image = load_rgb(tmp_path / "images" / record.file_name)
        np.testing.assert_array_equal(load_rgb(tmp_path / "tiles" / tile.file_name), image[y : y + 32, x : x + 32])
        for instance in tile.instances:
            whole = decode(record.instances[0].rle)
            np.testing.assert_array_equal(decode(instance.rle), whole[y : y + 32, x : x + 32])


@pytest.mark.parametrize("scale", [0.5, 0.73, 1.5])
def test_masks_of_scaled_tiles_are_cuts_of_the_scaled_mask(tmp_path: Path, scale: float) -> None:
    dataset = make_dataset(tmp_path, labelled=6, free=0)
    split = split_of(dataset, held_out=1)
    tiling = Tiling(mode="tile", tile_px=32, scale=scale, reason="test")
    size_hw = (round(64 * scale), round(96 * scale))
    seen = 0
    for tile in cut(tmp_path, dataset, split, tiling, ("train", "val")):
        whole = resize_mask(decode(dataset.image(tile.image_id).instances[0].rle), size_hw)
        x, y = (round(v * scale) for v in tile.offset_xy)
        for instance in tile.instances:
            height, width = tile.valid_hw
            np.testing.assert_array_equal(decode(instance.rle)[:height, :width], whole[y : y + 32, x : x + 32])
            assert instance.visible_share == whole[y : y + 32, x : x + 32].sum() / whole.sum()
            seen += 1
    assert seen >= 5


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
        tiles = cut(tmp_path, dataset, split, tiling, ("train",))
        seen = [(instance, tile) for tile in tiles for instance in tile.instances]
        assert {i.number for i, _ in seen} == {0, 1}
        for instance, tile in seen:
            assert instance.is_crowd == (instance.number == 1)
            x, y = (round(v) for v in tile.offset_xy)
            whole = (left, right)[instance.number]
            share = (
                whole[y : y + round(32 / scale), x : x + round(32 / scale)].sum() / whole.sum()
                if mode == "tile"
                else 1.0
            )
            assert instance.visible_share == pytest.approx(share, abs=0.03)
        if (mode, scale) == ("tile", 1.0):
            assert any(i.visible_share < 1 for i, _ in seen)


@pytest.mark.parametrize(("tile_px", "count"), [(32, 2 * 3), (48, 2 * 2), (80, 1 * 2), (96, 1)])
def test_pool_tiles_cover_an_image_to_its_borders(tmp_path: Path, tile_px: int, count: int) -> None:
    dataset = make_dataset(tmp_path)
    split = split_of(dataset)
    tiles = cut(tmp_path, dataset, split, native(tile_px), ("pool",))
    seen = {image_id: np.zeros(SIZE_HW, int) for image_id in split.pool}
    for tile in tiles:
        x, y = (round(v) for v in tile.offset_xy)
        assert tile.valid_hw == (min(64, tile_px), min(96, tile_px))
        seen[tile.image_id][y : y + tile_px, x : x + tile_px] += 1
    assert len(tiles) == count * len(split.pool)
    assert all(covered.min() == 1 for covered in seen.values())


@pytest.mark.parametrize("free", [6, 0])
def test_pool_tiles_over_the_limit_are_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    dataset = make_dataset(tmp_path, free=free)
    split = split_of(dataset)
    every = {t.id: t for t in cut(tmp_path, dataset, split, native(32), ("train", "pool"))}
    whole_pool = [t.id for t in every.values() if t.subset == "pool"]
    written: list[str] = []

    def save(path: Path, image: np.ndarray, *, durable: bool) -> None:
        written.append(path.stem)
        save_png(path, image, durable=durable)

    monkeypatch.setattr(tiles_module, "save_png", save)
    limited = cut(tmp_path, dataset, split, native(32), ("train", "pool"), max_pool_tiles=7)
    assert written == [t.id for t in limited] or sorted(written) == sorted(t.id for t in limited)
    assert sorted(p.stem for p in (tmp_path / "tiles" / "images").iterdir()) == sorted(written)
    pool = [t for t in limited if t.subset == "pool"]
    assert [t.id for t in pool] == [whole_pool[i] for i in np.linspace(0, len(whole_pool) - 1, 7).round().astype(int)]
    assert all(every[t.id] == t for t in limited), "numbers do not depend on the limit"


def test_every_image_is_read_once_and_progress_counts_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(tmp_path, free=0)
    split = split_of(dataset)
    read: list[str] = []

    def load(path: Path, value_range: ValueRange | None) -> np.ndarray:
        read.append(path.name)
        return load_rgb(path, value_range)

    monkeypatch.setattr(tiles_module, "load_rgb", load)
    cutting = cut_tiles(
        tmp_path,
        dataset,
        split,
        native(32),
        subsets=("train", "pool", "val"),
        out=tmp_path / "tiles",
        config=TilingConfig(),
        seed=0,
    )
    events = list(cutting)
    assert [event.done for event in events] == list(range(1, len(events) + 1))
    assert {event.total for event in events} == {len(events)}
    assert sorted(read) == sorted(set(read))
    assert len(read) == len(split.train) + len(split.val)


def test_an_abandoned_cut_leaves_nothing(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    cutting = cut_tiles(
        tmp_path,
        dataset,
        split_of(dataset),
        native(32),
        subsets=("train",),
        out=tmp_path / "out" / "tiles",
        config=TilingConfig(),
        seed=0,
    )
    next(cutting)
    cutting.close()
    assert not (tmp_path / "out").exists()


def test_memory_is_that_of_one_image_and_one_mask(tmp_path: Path) -> None:
    """Fifty full-size masks of 5 megapixels would take 250 MB, in float 1 GB."""
    size_hw = (1960, 2560)
    save_png(tmp_path / "images" / "large.png", np.zeros((*size_hw, 3), np.uint8))
    mask = np.zeros(size_hw, bool)
    instances: list[Instance] = []
    for number in range(50):
        mask[:] = False
        mask[30 * number : 30 * number + 40, 10 * number : 10 * number + 900] = True
        instances.append(Instance(category_id=1, rle=encode(mask)))
    record = ImageRecord(
        id=1, file_name="large.png", size_hw=size_hw, sha256="x", group="a", instances=tuple(instances)
    )
    dataset = Dataset(categories=(Category(id=1, name="dent"),), images=(record,))
    split = Split(
        dataset_digest="d", seed=0, fraction=1.0, train=(1,), val=(), test=(), pool=(), pool_source="train_crops"
    )
    tracemalloc.start()
    try:
        # 1,600 px hold the image at scale .625, so that the width of every mask is measured
        assert choose_tiling(dataset, split, TilingConfig(), 1600).mode == "tile"
        cuts = plan_cuts(dataset, split, native(256), subsets=("train", "pool"), config=TilingConfig(), seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [len(one.corners) > 0 for one in cuts] == [True, True]
    assert peak < 25e6


@pytest.mark.parametrize(
    ("thin", "tile_px", "mode"),
    [(12, 64, "tile"), (5, 64, "frame"), (12, 96, "frame"), (12, 48, "tile"), (0, 16, "tile")],
)
def test_frames_are_for_images_that_fit_without_making_their_defects_thin(
    tmp_path: Path, thin: int, tile_px: int, mode: str
) -> None:
    dataset = make_dataset(tmp_path, thin=thin)
    tiling = choose_tiling(dataset, split_of(dataset), TilingConfig(), tile_px)
    assert tiling.mode == mode
    assert tiling.scale == 1.0 if mode == "tile" else tiling.scale == round(tile_px / 96, 4)
    # six pixels at native size are four in a frame of 64
    assert ("100% of the defects would be under 6 px wide in a frame" in tiling.reason) == ((thin, tile_px) == (12, 64))


def test_frames_keep_the_aspect_and_pad(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    split = split_of(dataset)
    tiling = choose_tiling(dataset, split, TilingConfig(), 64)
    assert tiling.mode == "frame"
    for tile in cut(tmp_path, dataset, split, tiling, ("train", "pool")):
        assert tile.valid_hw == (43, 64)
        assert (load_rgb(tmp_path / "tiles" / tile.file_name)[43:] == 0).all()
        masks = [resize_mask(decode(i.rle), (43, 64)) for i in dataset.image(tile.image_id).instances]
        for instance, mask in zip(tile.instances, masks, strict=True):
            np.testing.assert_array_equal(decode(instance.rle)[:43], mask)
    large = choose_tiling(dataset, split, TilingConfig(), 16)
    assert large.mode == "tile" or large.scale < 0.6


def test_deep_images_are_cut_with_the_range_of_the_set(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path).model_copy(update={"value_range": ValueRange(low=0, high=4095)})
    for record in dataset.images:
        save_png(tmp_path / "images" / record.file_name, np.full(SIZE_HW, 2048, np.uint16))
    tiles = cut(tmp_path, dataset, split_of(dataset), native(32), ("pool",))
    assert {int(load_rgb(tmp_path / "tiles" / tile.file_name).max()) for tile in tiles} == {128}


def test_an_image_of_another_size_than_at_import_ends_the_cut(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    save_png(tmp_path / "images" / dataset.images[-1].file_name, np.zeros((60, 90, 3), np.uint8))
    with pytest.raises(ImageError, match=r"is 60x90 pixels, but was 64x96 when it was imported; import the data again"):
        cut(tmp_path, dataset, split_of(dataset), native(32), ("pool",))
    assert not (tmp_path / "tiles").exists()


def test_held_out_images_are_never_cut_for_training(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    split = split_of(dataset)
    with pytest.raises(FirewallError, match="tiles"):
        cut(tmp_path, dataset, LyingSplit(**split.model_dump()), native(32), ("train",))
    assert not (tmp_path / "tiles").exists()


class LyingSplit(Split):
    """A split whose firewall knows that the first image of train is none."""

    def require_training_ids(self, image_ids: object, *, stage: str) -> None:
        Split.model_construct(**{**self.__dict__, "train": self.train[1:]}).require_training_ids(image_ids, stage=stage)  # type: ignore[arg-type]


def test_a_split_without_train_and_a_scale_past_all_memory_are_told(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    with pytest.raises(StageError, match="train subset holds no image"):
        choose_tiling(dataset, split_of(dataset).model_copy(update={"train": ()}), TilingConfig(), 32)
    large = dataset.model_copy(
        update={"images": tuple(r.model_copy(update={"size_hw": (1960, 2560)}) for r in dataset.images)}
    )
    with pytest.raises(
        ConfigError,
        match=r"tiling.scale: is 8, which makes 000.png larger than 178 million pixels; give a smaller scale",
    ):
        choose_tiling(large, split_of(dataset), TilingConfig(mode="tile", scale=8), 32)


@pytest.mark.parametrize("block_px", [16, 1024])
def test_crops_are_resized_and_measured_as_whole_masks_are(monkeypatch: pytest.MonkeyPatch, block_px: int) -> None:
    monkeypatch.setattr("defectory.geometry._BLOCK_PX", block_px)
    rng = np.random.default_rng(5)
    for _ in range(150):
        height, width = (int(v) for v in rng.integers((20, 30), (150, 200)))
        mask = np.zeros((height, width), bool)
        y, x = int(rng.integers(height)), int(rng.integers(width))
        mask[y : y + int(rng.integers(1, 40)), x : x + int(rng.integers(1, 60))] = True
        mask &= rng.random(mask.shape) < rng.choice([0.9, 1.0])
        scale = float(rng.choice([0.25, 0.5, 0.6, 1.5, rng.uniform(0.1, 2.5)]))
        size_hw = (max(1, round(height * scale)), max(1, round(width * scale)))
        crop, (x, y) = decode_crop(encode(mask))
        resized, (y, x) = resize_crop(crop, (y, x), (height, width), size_hw)
        whole = np.zeros(size_hw, bool)
        whole[y : y + resized.shape[0], x : x + resized.shape[1]] = resized
        np.testing.assert_array_equal(whole, resize_mask(mask, size_hw))
        limit = float(rng.uniform(1, 12))
        assert is_thinner(crop, limit) == (width_px(mask) < limit)
