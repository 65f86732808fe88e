"""Every kind of bad data: one line, exit code 2, nothing written; `--skip-bad` goes on and lists it."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectory.images.save import save_png

Cli = Callable[..., Any]
HEIGHT, WIDTH = 40, 56
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 25.0, 10.0, 25.0]


def write_coco(root: Path) -> dict[str, Any]:
    """Three images, one scratch on each of the first two."""
    images: list[dict[str, Any]] = []
    for index in range(3):
        save_png(root / "images" / f"p{index}.png", np.full((HEIGHT, WIDTH, 3), 100 + 20 * index, np.uint8))
        images.append({"id": index + 1, "file_name": f"p{index}.png", "height": HEIGHT, "width": WIDTH})
    annotations = [
        {
            "id": n,
            "image_id": n,
            "category_id": 1,
            "segmentation": [SQUARE],
            "bbox": [10, 10, 20, 15],
            "area": 300,
            "iscrowd": 0,
        }
        for n in (1, 2)
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "scratch"}]}


def bomb(path: Path) -> None:
    """A PNG of a few bytes that claims to be 100,000 x 100,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def replace_image(act: Callable[[Path], None]) -> Callable[[Path, dict[str, Any]], None]:
    return lambda root, _coco: act(root / "images" / "p1.png")


def set_segmentation(value: object) -> Callable[[Path, dict[str, Any]], None]:
    def act(_root: Path, coco: dict[str, Any]) -> None:
        coco["annotations"][1]["segmentation"] = value

    return act


def truncate(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:400])


def link_out(root: Path, _coco: dict[str, Any]) -> None:
    outside = root.parent / "outside.png"
    save_png(outside, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    (root / "images" / "p1.png").unlink()
    (root / "images" / "p1.png").symlink_to(outside)


def rename(name: str) -> Callable[[Path, dict[str, Any]], None]:
    def act(_root: Path, coco: dict[str, Any]) -> None:
        coco["images"][1]["file_name"] = name

    return act


def change(where: str, index: int, key: str, value: object) -> Callable[[Path, dict[str, Any]], None]:
    def act(_root: Path, coco: dict[str, Any]) -> None:
        coco[where][index][key] = value

    return act


PER_ENTRY: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "missing image": replace_image(lambda path: path.unlink()),
    "zero-byte image": replace_image(lambda path: path.write_bytes(b"") and None),
    "truncated image": replace_image(truncate),
    "not an image": replace_image(lambda path: path.write_bytes(b"hello, this is text") and None),
    "decompression bomb": replace_image(bomb),
    "image of another size": replace_image(lambda path: save_png(path, np.zeros((HEIGHT + 2, WIDTH, 3), np.uint8))),
    "empty polygon": set_segmentation([[]]),
    "no polygon": set_segmentation([]),
    "polygon of two points": set_segmentation([[1.0, 1.0, 5.0, 5.0]]),
    "polygon out of bounds": set_segmentation([[10.0, 10.0, 300.0, 10.0, 300.0, 25.0, 10.0, 25.0]]),
    "polygon with NaN": set_segmentation([[10.0, 10.0, 30.0, 25.0, 30.0, float("nan")]]),
    "crowd of a word": change("annotations", 1, "iscrowd", "maybe"),
    "a list as class": change("annotations", 1, "category_id", [1]),
    "height of a word": change("images", 1, "height", "tall"),
    "RLE of wrong length": set_segmentation({"size": [HEIGHT, WIDTH], "counts": [5, 5]}),
    "RLE of another size": set_segmentation({"size": [HEIGHT, WIDTH + 1], "counts": [HEIGHT * (WIDTH + 1)]}),
    "RLE that is no RLE": set_segmentation({"size": [HEIGHT, WIDTH], "counts": "\x7f\x7f!!"}),
    "annotation without image": change("annotations", 1, "image_id", 99),
    "unknown class": change("annotations", 1, "category_id", 7),
    "file name with ..": rename("../p9.png"),
    "absolute file name": rename("/etc/hostname"),
    "link leaving the data set": link_out,
}

WHOLE_FILE: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "duplicate image id": change("images", 1, "id", 1),
    "duplicate category id": lambda _root, coco: coco["categories"].append({"id": 1, "name": "dent"}),
}


@pytest.mark.parametrize("kind", [*PER_ENTRY, *WHOLE_FILE])
def test_bad_input_is_one_line_and_nothing_is_written(kind: str, defectory: Cli, tmp_path: Path) -> None:
    root = tmp_path / "source"
    coco = write_coco(root)
    (PER_ENTRY | WHOLE_FILE)[kind](root, coco)
    (root / "annotations.json").write_text(json.dumps(coco))
    done = defectory("import", root / "annotations.json", "--out", tmp_path / "data")
    assert done.code == 2, done.err
    where, _, rest = done.error_line.removeprefix("error: ").partition(": ")
    assert where
    assert ";" in rest, f"no advice in {done.error_line}"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "outside.png") == ["source"]


@pytest.mark.parametrize("kind", PER_ENTRY)
def test_skip_bad_goes_on_and_lists_what_was_skipped(kind: str, defectory: Cli, tmp_path: Path) -> None:
    root = tmp_path / "source"
    coco = write_coco(root)
    PER_ENTRY[kind](root, coco)
    (root / "annotations.json").write_text(json.dumps(coco))
    done = defectory("import", root / "annotations.json", "--out", tmp_path / "data", "--skip-bad", "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert len(summary["skipped"]) == 1
    assert summary["instances"] == 1
    assert summary["images"] in (2, 3)
    dataset = json.loads((tmp_path / "data" / "annotations.json").read_text())
    assert {"p0.png"} <= {image["file_name"] for image in dataset["images"]}


def test_an_image_whose_only_annotation_was_bad_does_not_become_defect_free(defectory: Cli, tmp_path: Path) -> None:
    root = tmp_path / "source"
    coco = write_coco(root)
    PER_ENTRY["polygon of two points"](root, coco)
    (root / "annotations.json").write_text(json.dumps(coco))
    done = defectory("import", root / "annotations.json", "--out", tmp_path / "data", "--skip-bad", "--json")
    assert json.loads(done.out)["defect_free"] == 1


def test_an_image_without_annotation_is_defect_free(defectory: Cli, tmp_path: Path) -> None:
    root = tmp_path / "source"
    (root).mkdir()
    coco = write_coco(root)
    (root / "annotations.json").write_text(json.dumps(coco))
    done = defectory("import", root / "annotations.json", "--out", tmp_path / "data", "--json")
    expected = {"images": 3, "defect_free": 1, "instances": 2, "classes": ["scratch"], "skipped": []}
    assert json.loads(done.out).items() >= expected.items()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"images": 3}', '{"images": [], "annotations": [], "categories": []}']
)
def test_an_annotation_file_that_is_no_coco_is_refused(text: str, defectory: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    done = defectory("import", tmp_path / "a.json", "--out", tmp_path / "data")
    assert done.code == 2
    assert "a.json" in done.error_line
    assert not (tmp_path / "data").exists()


def test_a_mask_of_another_size_names_both_sizes(defectory: Cli, tmp_path: Path) -> None:
    root = tmp_path / "source"
    for index in range(2):
        save_png(root / "images" / f"p{index}.png", np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
        mask = np.zeros((HEIGHT - 4 * index, WIDTH), np.uint8)
        mask[5:20, 5:20] = 1
        save_png(root / "masks" / f"p{index}.png", mask)
    done = defectory("import", root, "--out", tmp_path / "data")
    assert done.code == 2
    assert "36x56" in done.error_line
    assert "40x56" in done.error_line
    done = defectory("import", root, "--out", tmp_path / "data", "--skip-bad")
    assert (done.code, "p1" in done.out) == (0, True)


def test_an_earlier_data_set_is_kept_when_the_next_import_fails(defectory: Cli, tmp_path: Path) -> None:
    root = tmp_path / "source"
    coco = write_coco(root)
    (root / "annotations.json").write_text(json.dumps(coco))
    assert defectory("import", root / "annotations.json", "--out", tmp_path / "data").code == 0
    before = (tmp_path / "data" / "dataset.json").read_bytes()
    (root / "images" / "p1.png").unlink()
    assert defectory("import", root / "annotations.json", "--out", tmp_path / "data").code == 2
    assert (tmp_path / "data" / "dataset.json").read_bytes() == before
