"""`predict` on the files that people have: each read as training read it, or told in one line; a folder of the user's
is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from defectory.artifacts.annotation import Category
from defectory.errors import ImageError, OutputError
from defectory.images.save import encode_png, save_png
from defectory.images.tiff import encode_tiff
from defectory.images.valuerange import ValueRange
from defectory.segmentation import predict
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.sizing import Sizing
from defectory.segmentation.training import train_segmenter, value_range_of
from defectory.tools.predict import Predicted, predict_files

RANGE = ValueRange(low=0, high=4095)
SIZE_HW = (48, 64)


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Segmenters of two steps: of 8-bit images, and of a set whose range is that of 12 bits."""
    from defectory.rle import encode
    from defectory.segmentation.data import SegmentationImage

    mask = np.zeros(SIZE_HW, bool)
    mask[20:34, 10:50] = True
    tile = SegmentationImage(
        id="t", image=np.where(mask[..., None], 30, 120).astype(np.uint8).repeat(3, 2), instances=((1, encode(mask)),)
    )
    made: dict[str, Path] = {}
    for name, value_range in (("8 bit", None), ("12 bit", RANGE)):
        made[name] = tmp_path_factory.mktemp("segmenter") / "segmenter"
        for _ in train_segmenter(
            arm="real",
            images={"real": [tile]},
            validate=lambda _: 0.0,
            categories=(Category(id=1, name="crack"),),
            sizing=Sizing(scale=1.0, input_px=64),
            config=SegmentationConfig(model="light", num_steps=2, batch_size=1),
            seed=0,
            out=made[name],
            value_range=value_range,
        ):
            pass
    return made


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.uint8]]:
    """Images as the segmenter sees them."""
    images: list[NDArray[np.uint8]] = []
    before = predict._predict_one

    def watched(model: Any, image_id: int, image: Any, *rest: Any) -> Any:
        images.append(image)
        return before(model, image_id, image, *rest)

    monkeypatch.setattr(predict, "_predict_one", watched)
    return images


def part(seed: int = 0, size_hw: tuple[int, int] = SIZE_HW) -> NDArray[np.uint8]:
    return np.clip(np.random.default_rng(seed).normal(100, 20, (*size_hw, 3)), 5, 220).round().astype(np.uint8)


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def run(segmenter: Path, out: Path, *images: Path, skip_bad: bool = False) -> Predicted:
    return predict_files(list(images), segmenter=segmenter, out=out, min_score=0.5, device="cpu", skip_bad=skip_bad)


def save_frame(folder: Path, kind: str) -> Path:
    """Write one part in a mode and depth."""
    folder.mkdir(parents=True, exist_ok=True)
    colour = part()
    grey = colour[..., 0]
    data: dict[str, Callable[[], bytes]] = {
        "g16.tif": lambda: encode_tiff(grey.astype(np.uint16) * 257),
        "big-endian.tif": lambda: encode_tiff(grey.astype(np.uint16) * 257, big_endian=True),
        "g12in16.png": lambda: encode_png(grey.astype(np.uint16) * 16),
        "rgb16.png": lambda: encode_png(colour.astype(np.uint16) * 257),
        "float01.tif": lambda: encode_tiff(grey.astype(np.float32) / 255),
        "float255.TIF": lambda: encode_tiff(grey.astype(np.float32)),
    }
    if kind in data:
        return written(folder / kind, data[kind]())
    image = {
        "grey.png": lambda: Image.fromarray(grey),
        "la.png": lambda: Image.fromarray(grey).convert("LA"),
        "UPPER.PNG": lambda: Image.fromarray(colour),
        "noext": lambda: Image.fromarray(colour),
        "palette.png": lambda: Image.fromarray(grey).convert("P"),
        "cmyk.tif": lambda: Image.fromarray(colour).convert("CMYK"),
        "rgba.png": lambda: Image.fromarray(colour).convert("RGBA"),
        "turned.png": lambda: Image.fromarray(colour),
    }[kind]()
    options: dict[str, Any] = {}
    if kind == "turned.png":
        exif = Image.Exif()
        exif[0x0112] = 3
        options["exif"] = exif
    image.save(folder / kind, "TIFF" if kind.endswith("tif") else "PNG", **options)
    return folder / kind


EVERY_FRAME = (
    "g16.tif",
    "big-endian.tif",
    "g12in16.png",
    "rgb16.png",
    "float01.tif",
    "float255.TIF",
    "grey.png",
    "la.png",
    "UPPER.PNG",
    "noext",
    "palette.png",
    "cmyk.tif",
    "rgba.png",
    "turned.png",
)


def test_frames_of_every_mode_and_depth_look_alike_to_the_segmenter(
    segmenters: dict[str, Path], tmp_path: Path, seen: list[Any]
) -> None:
    files = [save_frame(tmp_path / "frames", kind) for kind in EVERY_FRAME]
    done = run(segmenters["8 bit"], tmp_path / "out", *files)
    assert done.num_images == len(files) == len(seen)
    assert done.skipped == ()
    for kind, image in zip(EVERY_FRAME, seen, strict=True):
        expected = part() if image[..., 0].tolist() != image[..., 1].tolist() else part()[..., :1].repeat(3, axis=2)
        expected = expected[::-1, ::-1] if kind == "turned.png" else expected
        assert np.abs(image.astype(int) - expected).max() <= 1, kind
    told = " ".join(done.remarks)
    for words in (
        "EXIF half-turn applied",
        "CMYK to RGB",
        "16-bit values read as black 0, white 4095",
        "32-bit float values read as black 0, white 1 ",
    ):
        assert words in f"{told} ", words


def test_deep_frames_are_read_with_the_range_of_the_training_set(
    segmenters: dict[str, Path], tmp_path: Path, seen: list[Any]
) -> None:
    assert value_range_of(segmenters["12 bit"]) == RANGE
    assert value_range_of(segmenters["8 bit"]) is None
    dim = part()[..., 0].astype(np.uint16)
    files = [
        written(tmp_path / "dim.png", encode_png(dim * 2)),
        written(tmp_path / "eight.png", encode_png(part())),
        written(tmp_path / "sixteen.png", encode_png(dim * 257)),
    ]
    done = run(segmenters["12 bit"], tmp_path / "out", *files)
    assert np.abs(seen[0][..., 0] - dim.astype(float) * 2 * 255 / 4095).max() <= 0.5, (
        "a frame that is dark in the set's range stays dark"
    )
    np.testing.assert_array_equal(seen[1], part())
    np.testing.assert_array_equal(seen[2][..., 0], dim)
    assert len(done.remarks) == 1
    assert (
        "16-bit values do not match the data set's range (black 0, white 4095): read as black 0, white 65535"
        in done.remarks[0]
    )


def test_equal_names_in_two_folders_give_two_overlays_and_a_file_named_twice_one(
    segmenters: dict[str, Path], tmp_path: Path
) -> None:
    first, second = (
        written(tmp_path / folder / "im.png", encode_png(part(seed))) for seed, folder in enumerate(("a", "b"))
    )
    written(tmp_path / "a" / ".ipynb_checkpoints" / "im-checkpoint.png", encode_png(part(3)))
    written(tmp_path / "a" / "._im.png", b"litter")
    written(tmp_path / "a" / "Thumbs.db", b"litter")
    (tmp_path / "b" / "again.png").symlink_to(first)
    done = run(
        segmenters["8 bit"],
        tmp_path / "out",
        tmp_path / "a",
        tmp_path / "b",
        first,
        tmp_path / "b" / ".." / "a" / "im.png",
    )
    assert done.num_images == 2
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [str(first), str(second)]
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 2


def test_names_stay_relative_where_they_were_given_so_and_odd_ones_are_safe(
    segmenters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["x" * 200 + ".png", "line\nbreak.png", "a[red]b.png", "bytes\udcff.png", "con.png"]
    for name in names:
        written(Path("in") / name, encode_png(part()))
    done = run(segmenters["8 bit"], tmp_path / "out", Path("in"))
    assert done.num_images == len(names)
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert {image["file_name"] for image in images} >= {"in/a[red]b.png", "in/bytes\\udcff.png"}
    overlays = [path.name for path in (tmp_path / "out" / "overlays").iterdir()]
    assert len(set(overlays)) == len(names)
    assert all(name.isprintable() and len(name.encode()) < 160 for name in overlays)


def test_bad_frames_are_one_line_each_and_the_others_are_predicted(segmenters: dict[str, Path], tmp_path: Path) -> None:
    good = written(tmp_path / "good.png", encode_png(part()))
    bad = {
        "empty.png": b"",
        "text.png": b"no image",
        "cut.png": encode_png(part())[:300],
        "five.tif": encode_tiff(np.zeros((4, 6, 5), np.uint16)),
    }
    files = [written(tmp_path / name, data) for name, data in bad.items()]
    with pytest.raises(ImageError, match="the file is empty"):
        run(segmenters["8 bit"], tmp_path / "out", *files, good)
    assert not (tmp_path / "out").exists()
    done = run(
        segmenters["8 bit"],
        tmp_path / "out",
        *files,
        tmp_path / "missing.png",
        Path(f"{tmp_path}/a\0b.png"),
        good,
        skip_bad=True,
    )
    assert done.num_images == 1
    assert len(done.skipped) == 6
    for line, words in zip(
        done.skipped,
        ("is empty", "not an image", "truncated", "5 channels", "no such image file", "NUL byte"),
        strict=True,
    ):
        assert words in line
        assert "\n" not in line
    with pytest.raises(ImageError, match=r"none of 4 images: can be read; the first: .*the file is empty"):
        run(segmenters["8 bit"], tmp_path / "nothing", *files, skip_bad=True)
    assert not (tmp_path / "nothing").exists()


def test_a_folder_of_the_users_is_left_alone_and_one_of_ours_replaced(
    segmenters: dict[str, Path], tmp_path: Path
) -> None:
    frame = written(tmp_path / "frames" / "a.png", encode_png(part()))
    before = frame.read_bytes()
    with pytest.raises(OutputError):
        run(segmenters["8 bit"], tmp_path / "frames", frame)
    assert [path.name for path in (tmp_path / "frames").iterdir()] == ["a.png"]
    assert frame.read_bytes() == before
    save_png(tmp_path / "frames" / "b.png", part(1))
    assert run(segmenters["8 bit"], tmp_path / "out", frame).num_images == 1
    assert run(segmenters["8 bit"], tmp_path / "out", tmp_path / "frames").num_images == 2
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == 2


@pytest.mark.parametrize("size_hw", [(11, 17), (1, 1), (3, 400), (130, 1600)])
def test_tiny_and_long_frames_are_predicted(
    segmenters: dict[str, Path], tmp_path: Path, size_hw: tuple[int, int]
) -> None:
    done = run(segmenters["8 bit"], tmp_path / "out", written(tmp_path / "a.png", encode_png(part(0, size_hw))))
    assert done.num_images == 1
