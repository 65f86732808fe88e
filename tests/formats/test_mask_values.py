"""What the values of masks mean: classes, one class, ignore, instance numbers, noise, colours."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from defectory.errors import AnnotationError, ImageError
from defectory.formats.class_masks import load_mask, save_class_mask

from .folder_sets import SIZE_HW, box, by_name, colour_set, index_set, load, picture, union, values, write

TALL_HW = (96, 140)


def blob(x: int, y: int, size_hw: tuple[int, int] = TALL_HW) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    return (columns - x) ** 2 + 2 * (rows - y) ** 2 < 300


def large_set(root: Path, maps: dict[str, NDArray[np.generic]], suffix: str = ".png") -> Path:
    for number, (stem, mask) in enumerate(maps.items()):
        write(root / "images" / f"{stem}.png", np.full((*mask.shape[:2], 3), 90 + number, np.uint8))
        write(root / "masks" / f"{stem}{suffix}", mask)
    return root


@pytest.mark.parametrize("value", [1, 255, 128, 7])
def test_masks_of_one_value_are_one_class_called_defect(tmp_path: Path, value: int) -> None:
    raw = load(index_set(tmp_path, {"a": values((value, box(2, 3))), "b": values()}))
    assert raw.class_names == ("defect",)
    assert np.array_equal(union(by_name(raw)["a.png"], "defect"), box(2, 3))
    assert by_name(raw)["b.png"].is_defect_free


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I", "F"])
def test_every_mode_of_a_binary_mask_is_read(tmp_path: Path, mode: str) -> None:
    write(tmp_path / "images" / "a.png", picture(0))
    mask = Image.fromarray(values((255, box(2, 3))))
    if mode == "I;16":
        mask = Image.fromarray(values((1, box(2, 3))).astype(np.uint16) * 65535)
    elif mode in ("I", "F"):
        mask = Image.fromarray(values((1, box(2, 3))).astype(np.int32 if mode == "I" else np.float32))
    else:
        mask = mask.convert(mode)
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks" / f"a.{'tif' if mode in ('I', 'F') else 'png'}")
    raw = load(tmp_path)
    assert np.array_equal(union(raw.images[0], "defect"), box(2, 3))


def test_a_palette_gives_indices_and_an_optimisers_palette_of_greys_gives_greys(tmp_path: Path) -> None:
    indices = Image.fromarray(values((1, box(2, 3)), (2, box(20, 3))))
    indices.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    indices.save(tmp_path / "voc.png")
    assert set(np.unique(load_mask(tmp_path / "voc.png").values)) == {0, 1, 2}
    # black is index 1: taken by index, all but the defect would be the defect
    swapped = Image.fromarray((~box(2, 3)).astype(np.uint8))
    swapped.putpalette([255, 255, 255, 0, 0, 0])
    swapped.save(tmp_path / "optimised.png")
    assert np.array_equal(load_mask(tmp_path / "optimised.png").values == 255, box(2, 3))


def test_transparent_pixels_are_background(tmp_path: Path) -> None:
    layer = np.full((*SIZE_HW, 4), 255, np.uint8)
    layer[..., 3] = box(2, 3) * 255
    Image.fromarray(layer).save(tmp_path / "layer.png")
    assert np.array_equal(load_mask(tmp_path / "layer.png").values > 0, box(2, 3))


def test_indices_of_16_bit_keep_their_values(tmp_path: Path) -> None:
    raw = load(
        index_set(
            tmp_path,
            {
                "a": values((1, box(2, 3)), (3, box(20, 3))).astype(np.uint16),
                "b": values((2, box(5, 5))).astype(np.uint16),
            },
        )
    )
    assert raw.class_names == ("1", "2", "3")


def test_class_and_instance_in_one_16_bit_value(tmp_path: Path) -> None:
    # touching instances stay two
    first = values().astype(np.uint16)
    first[box(2, 3, 6, 6)], first[box(8, 3, 6, 6)], first[box(24, 3, 6, 6)] = 1000, 1001, 2000
    second = values().astype(np.uint16)
    second[box(2, 3, 6, 6)] = 2000
    raw = load(index_set(tmp_path, {"a": first, "b": second}))
    assert raw.class_names == ("1", "2")
    assert [len(image.instances) for image in raw.images] == [3, 1]
    assert any("class * 1000" in remark for remark in raw.remarks)


def test_255_beside_a_few_indices_is_ignored_and_said(tmp_path: Path) -> None:
    def ringed(value: int, x: int) -> NDArray[np.uint8]:
        return values((255, box(x - 2, 1, 12, 10)), (value, box(x, 3)))

    raw = load(index_set(tmp_path, {"a": ringed(1, 4), "b": ringed(2, 15), "c": ringed(1, 20), "d": values()}))
    assert raw.class_names == ("1", "2")
    assert np.array_equal(union(by_name(raw)["b.png"], "2"), box(15, 3))
    assert raw.remarks == ("masks: mask value 255 is read as ignore: its pixels count as no defect",)


def test_an_image_of_ignored_pixels_alone_is_defect_free_only_where_these_are_margins(tmp_path: Path) -> None:
    labelled = values((255, box(2, 1, 12, 10)), (1, box(4, 3)))
    margin, inside = values((255, box(0, 0, 36, 2))), values((255, box(8, 8)))
    images = by_name(load(index_set(tmp_path, {"a": labelled, "margin": margin, "inside": inside})))
    assert images["margin.png"].is_defect_free
    assert not images["inside.png"].is_defect_free
    assert images["inside.png"].instances == ()


def test_two_conventions_in_one_set_are_refused(tmp_path: Path) -> None:
    index_set(tmp_path, {"a": values((1, box(2, 3))), "b": values((255, box(2, 3)))})
    with pytest.raises(AnnotationError, match="two conventions"):
        load(tmp_path)
    assert all(len(image.instances) == 1 for image in load(tmp_path, mask_threshold=1).images)


@pytest.mark.parametrize("levels", [(85, 170, 255), (128, 255), (60, 120, 180, 240)])
def test_classes_drawn_as_grey_levels_are_classes(tmp_path: Path, levels: tuple[int, ...]) -> None:
    maps = {f"i{n}": values((level, box(3 + 2 * n, 4))) for n, level in enumerate(levels)}
    maps["all"] = values(*((level, box(1 + 9 * n, 12, 7, 5)) for n, level in enumerate(levels)))
    assert load(index_set(tmp_path, maps)).class_names == tuple(map(str, levels))


def test_sparse_indices_are_classes(tmp_path: Path) -> None:
    maps = {f"i{n}": values((value, box(3 + 5 * n, 4)), (5, box(3, 16))) for n, value in enumerate((1, 5, 17, 40))}
    assert load(index_set(tmp_path, maps)).class_names == ("1", "5", "17", "40")


def _jpeg(mask: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


NOISY = {
    "JPEG 60": lambda mask: _jpeg(mask, 60),
    "JPEG 95": lambda mask: _jpeg(mask, 95),
    "JPEG 100": lambda mask: _jpeg(mask, 100),
    "blur": lambda mask: np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(1))),
    "bilinear": lambda mask: np.asarray(
        Image.fromarray(mask[::2, ::2]).resize(mask.shape[::-1], Image.Resampling.BILINEAR)
    ),
    "antialiased": lambda mask: np.asarray(
        Image.fromarray(mask).resize((mask.shape[1] // 2, mask.shape[0] // 2), Image.Resampling.BOX)
    ),
}


@pytest.mark.parametrize("kind", NOISY)
@pytest.mark.parametrize("per_class", [False, True])
def test_noise_and_smoothing_are_one_line_with_the_number_of_values_and_a_threshold(
    tmp_path: Path, kind: str, per_class: bool
) -> None:
    truth = {f"i{n}": blob(30 + 12 * n, 40 + 3 * n) for n in range(4)}
    maps = {stem: NOISY[kind](mask.astype(np.uint8) * 255) for stem, mask in truth.items()}
    for stem, mask in maps.items():
        write(
            tmp_path / "images" / f"{stem}.png", np.random.default_rng(3).integers(0, 255, (*mask.shape, 3), np.uint8)
        )
        write(tmp_path / "masks" / ("dent" if per_class else "") / f"{stem}.png", mask)
    number = len({int(value) for mask in maps.values() for value in np.unique(mask)} - {0})
    with pytest.raises(AnnotationError, match=rf"masks hold {number} values besides 0 .*--mask-threshold 128"):
        load(tmp_path)
    raw = load(tmp_path, mask_threshold=128)
    assert raw.class_names == (("dent",) if per_class else ("defect",))
    assert [len(image.instances) for image in raw.images] == [1, 1, 1, 1]
    if maps["i0"].shape == TALL_HW:
        found = union(by_name(raw)["i0.png"], raw.class_names[0])
        assert (found & truth["i0"]).sum() / (found | truth["i0"]).sum() > 0.9


def test_one_noisy_mask_of_many_is_a_bad_image_of_the_set(tmp_path: Path) -> None:
    maps: dict[str, NDArray[np.generic]] = {f"i{n}": blob(30 + 12 * n, 40).astype(np.uint8) * 255 for n in range(6)}
    maps["bad"] = _jpeg(blob(50, 50).astype(np.uint8) * 255, 40)
    large_set(tmp_path, maps)
    with pytest.raises(AnnotationError, match="threshold"):
        load(tmp_path)
    raw = load(tmp_path, skip_bad=True)
    assert [entry.id for entry in raw.rejected] == ["bad.png"]
    assert len(raw.images) == 6
    assert raw.class_names == ("defect",)


def numbered(counts: list[int], *, unique: bool = False) -> dict[str, NDArray[np.uint8]]:
    """Masks whose values number the objects of each image."""
    maps: dict[str, NDArray[np.uint8]] = {}
    begin = 0
    for image, count in enumerate(counts):
        mask = np.zeros(TALL_HW, np.uint8)
        for number in range(count):
            y, x = 4 + 10 * (number // 8), 4 + 16 * (number % 8)
            mask[y : y + 8, x : x + 15] = begin + number + 1
        begin += count if unique else 0
        maps[f"i{image:02d}"] = mask
    return maps


@pytest.mark.parametrize(
    "maps",
    [
        numbered([3, 5, 1, 4, 7]),
        numbered([60, 41, 55]),
        numbered([4, 3, 5, 2], unique=True),
        numbered([40, 30], unique=True),
        numbered([1, 2, 4]),
        numbered([24]),
    ],
)
def test_instance_numbers_never_become_classes(tmp_path: Path, maps: dict[str, NDArray[np.uint8]]) -> None:
    large_set(tmp_path, dict(maps))
    with pytest.raises(AnnotationError, match=r"values .*they number instances, not classes; give --mask-threshold 1"):
        load(tmp_path)
    raw = load(tmp_path, mask_threshold=1)
    assert raw.class_names == ("defect",)
    # neighbours that touch stay apart
    assert [len(image.instances) for image in raw.images] == [
        int(mask.max()) - int(mask[mask > 0].min()) + 1 for mask in maps.values()
    ]


def test_classes_that_appear_together_are_still_classes(tmp_path: Path) -> None:
    part_and_defect = {
        f"i{n}": values((1, box(2, 2, 30, 18)), *([(2, box(5 + n, 5))] if n % 2 else [])) for n in range(8)
    }
    raw = load(index_set(tmp_path, part_and_defect))
    assert raw.class_names == ("1", "2")
    assert any("--mask-threshold 1" in remark for remark in raw.remarks)


def test_values_are_named_by_a_list_of_classes(tmp_path: Path) -> None:
    index_set(tmp_path, {"a": values((1, box(2, 3)), (2, box(20, 3)))})
    write(tmp_path / "classes.txt", "background\nscratch\ndent\n")
    assert load(tmp_path).class_names == ("scratch", "dent")
    write(tmp_path / "classes.txt", "scratch\n")
    with pytest.raises(AnnotationError, match="value 2 is not in the list of classes"):
        load(tmp_path)


def test_one_named_class_may_be_drawn_as_255(tmp_path: Path) -> None:
    index_set(tmp_path, {"a": values((255, box(2, 3))), "b": values()})
    write(tmp_path / "masks" / "classes.txt", "crack\n")
    raw = load(tmp_path)
    assert raw.class_names == ("crack",)
    assert len(by_name(raw)["a.png"].instances) == 1
    write(tmp_path / "masks" / "classes.txt", "crack\ndent\n")
    with pytest.raises(AnnotationError, match="value 255 is not in the list of classes"):
        load(tmp_path)


def test_a_threshold_that_no_mask_reaches_is_refused(tmp_path: Path) -> None:
    index_set(tmp_path, {"a": values((1, box(2, 3))), "b": values()})
    with pytest.raises(AnnotationError, match="no mask value reaches the threshold 128; the highest is 1"):
        load(tmp_path, mask_threshold=128)


def test_clean_masks_in_jpeg_files_are_read_with_a_remark(tmp_path: Path) -> None:
    index_set(tmp_path, {"a": values((255, box(8, 8, 16, 8))), "b": values()}, suffix=".jpg")
    assert set(np.unique(np.asarray(Image.open(tmp_path / "masks" / "a.jpg")))) == {0, 255}
    raw = load(tmp_path)
    assert raw.class_names == ("defect",)
    assert any("JPEG" in remark for remark in raw.remarks)


def test_colours_are_read_by_their_table(tmp_path: Path) -> None:
    raw = load(colour_set(tmp_path))
    assert raw.class_names == ("scratch", "dent")
    assert np.array_equal(union(by_name(raw)["p1.png"], "scratch"), box(5, 3))


TABLES = {
    "t.csv": "name,r,g,b\nscratch,220,20,60\ndent,0,90,200\n",
    "semicolons.csv": "\ufeffname;r;g;b\r\nscratch;220;20;60\r\ndent;0;90;200\r\n",
    "hex.csv": "class,colour\nscratch,#dc143c\ndent,#005ac8\n",
    "dict.json": json.dumps({"scratch": "#dc143c", "dent": [0, 90, 200]}),
    "list.json": json.dumps([{"name": "scratch", "color": "#DC143C"}, {"name": "dent", "color": "#005ac8"}]),
    "map.txt": "scratch:220,20,60::\ndent:0,90,200::\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_colours_may_be_given(tmp_path: Path, name: str) -> None:
    root = colour_set(tmp_path / "set")
    (root / "labelmap.txt").unlink()
    with pytest.raises(AnnotationError, match=r"masks hold 2 colours .*--class-colours"):
        load(root)
    raw = load(root, class_colours=write(tmp_path / name, TABLES[name]))
    assert raw.class_names == ("scratch", "dent")
    assert np.array_equal(union(by_name(raw)["p2.png"], "dent"), box(8, 3))


def test_palettes_of_another_order_are_read_by_colour(tmp_path: Path) -> None:
    root = colour_set(tmp_path)
    for number, path in enumerate(sorted((root / "masks").glob("*.png"))):
        rgb = np.asarray(Image.open(path))
        colours = [(0, 0, 0), (220, 20, 60), (0, 90, 200)]
        order = colours[number % 3 :] + colours[: number % 3]
        indices = sum(
            (np.all(rgb == colour, axis=2) * at for at, colour in enumerate(order)), np.zeros(SIZE_HW, np.uint8)
        ).astype(np.uint8)
        image = Image.fromarray(indices)
        image.putpalette([channel for colour in order for channel in colour])
        image.save(path)
    raw = load(root)
    assert np.array_equal(union(by_name(raw)["p1.png"], "scratch"), box(5, 3))
    (root / "labelmap.txt").unlink()
    with pytest.raises(AnnotationError, match="colours"):
        load(root)


def test_a_colour_that_is_not_in_the_table_is_named_with_its_pixels(tmp_path: Path) -> None:
    root = colour_set(tmp_path)
    mask = np.asarray(Image.open(root / "masks" / "p1.png")).copy()
    mask[3, 5:8] = (110, 10, 30)
    write(root / "masks" / "p1.png", mask)
    with pytest.raises(ImageError, match=r"3 pixels of the colour #6e0a1e.*not in the colour table.*antialiasing"):
        load(root)
    assert len(load(root, skip_bad=True).images) == 4


def test_one_colour_on_black_is_one_class(tmp_path: Path) -> None:
    red = np.zeros((*SIZE_HW, 3), np.uint8)
    red[box(4, 4)] = (255, 0, 0)
    raw = load(index_set(tmp_path, {"a": red, "b": np.zeros((*SIZE_HW, 3), np.uint8)}))
    assert raw.class_names == ("defect",)
    assert np.array_equal(union(by_name(raw)["a.png"], "defect"), box(4, 4))
    assert any("#ff0000" in remark for remark in raw.remarks)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("scratch:1,2\n", "name:r,g,b"),
        ("a:1,2,3::\nb:1,2,3::\n", "both 'a' and 'b'"),
        ("", "no class"),
        ("a:1,2,999::\n", "colour"),
        ("background:0,0,0::\na:0,0,0::\n", "background"),
    ],
)
def test_a_bad_table_of_colours_is_one_line(tmp_path: Path, content: str, words: str) -> None:
    colour_set(tmp_path)
    write(tmp_path / "labelmap.txt", content or "# nothing\n")
    with pytest.raises(AnnotationError, match=words):
        load(tmp_path)


def test_a_float_mask_of_fractions_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.png", picture(0))
    (tmp_path / "masks").mkdir()
    Image.fromarray(box(2, 3) * np.float32(0.7)).save(tmp_path / "masks" / "a.tif")
    with pytest.raises(ImageError, match="whole numbers"):
        load(tmp_path)


def test_class_masks_round_trip(tmp_path: Path) -> None:
    truth = values((1, box(2, 3)), (2, box(20, 3)))
    save_class_mask(tmp_path / "m.png", truth)
    assert np.array_equal(load_mask(tmp_path / "m.png").values, truth)


def test_a_large_mask_of_many_parts_is_fast(tmp_path: Path) -> None:
    mask = np.zeros((1900, 2600), np.uint8)
    for number in range(500):
        y, x = 60 + 70 * (number // 25), 20 + 100 * (number % 25)
        mask[y : y + 20, x : x + 40] = 1 + number % 3
    large_set(tmp_path, {"a": mask})
    load(tmp_path)  # what is imported once
    began = time.process_time()
    raw = load(tmp_path)
    assert len(raw.images[0].instances) == 500
    assert time.process_time() - began < 2


def test_a_large_mask_of_many_numbered_instances_is_fast_and_small(tmp_path: Path) -> None:
    mask = np.zeros((1900, 2600), np.uint16)
    for number in range(1000):
        y, x = 10 + 45 * (number // 25), 20 + 100 * (number % 25)
        mask[y : y + 20, x : x + 40] = number + 1
    large_set(tmp_path, {"a": mask, "b": mask[::-1].copy()})
    tracemalloc.start()
    began = time.process_time()
    raw = load(tmp_path, mask_threshold=1)
    assert [len(image.instances) for image in raw.images] == [1000, 1000]
    # going over the mask once per instance takes a minute
    assert time.process_time() - began < 15
    assert tracemalloc.get_traced_memory()[1] < 400e6
    tracemalloc.stop()


def test_a_mask_of_speckles_is_refused_before_it_takes_long(tmp_path: Path) -> None:
    speckles = np.zeros((900, 1300), np.uint8)
    speckles[::2, ::2] = 1
    speckles[1::2] = 0
    large_set(tmp_path, {"a": speckles})
    began = time.process_time()
    with pytest.raises(ImageError, match="292,500 separate parts"):
        load(tmp_path)
    assert time.process_time() - began < 2
