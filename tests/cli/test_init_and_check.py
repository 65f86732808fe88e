"""`init` writes paths that are right from the project file; `check` takes whatever is there."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.images.save import save_png

Cli = Callable[..., Any]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`set/` with `images/` and `labels.json` in the current folder; one annotation is bad, one image has no defect."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(5):
        save_png(tmp_path / "set" / "images" / f"p{index}.png", np.full((40, 56, 3), 90 + 9 * index, np.uint8))
        images.append({"id": index, "file_name": f"p{index}.png", "height": 40, "width": 56})
        if index < 4:
            box = [10, 10, 30, 10, 30, 25, 10, 25]
            annotations.append({"id": index, "image_id": index, "category_id": 1, "segmentation": [box], "iscrowd": 0})
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "crack"}]}
    (tmp_path / "set" / "labels.json").write_text(json.dumps(coco))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("file", "data", "written"),
    [
        ("project.toml", "set/labels.json", "set/labels.json"),
        ("elsewhere/project.toml", "set/labels.json", "../set/labels.json"),
        ("a/b/project.toml", "set", "../../set"),
        ("set/project.toml", "set/labels.json", "labels.json"),
        ("a/../project.toml", "./set/labels.json", "set/labels.json"),
    ],
)
def test_init_writes_the_path_as_the_project_file_sees_it(
    defectory: Cli, source: Path, file: str, data: str, written: str
) -> None:
    (source.parent / "a").mkdir()
    done = defectory("init", file, "--data", data, "--defect-free", "set/images")
    assert done.code == 0, done.err
    assert "no such" not in done.out
    content = tomllib.loads(Path(file).read_text())
    assert content["data"]["path"] == written
    for name in (content["data"]["path"], content["data"]["defect_free"]):
        assert (Path(file).parent / name).exists()


def test_init_says_that_the_data_is_not_there_yet(defectory: Cli, source: Path) -> None:
    done = defectory("init", "deep/project.toml", "--data", "later.json")
    assert done.code == 0
    assert "remark: --data later.json: no such file or folder yet" in done.out
    assert "../later.json" in done.out


def test_init_in_a_folder_of_an_odd_name_writes_a_file_that_is_read(defectory: Cli, source: Path) -> None:
    place = source.parent / 'a "b" [c] \\ é\x1b'
    place.mkdir()
    assert defectory("init", place / "project.toml", "--data", "set/labels.json").code == 0
    done = defectory("run", place / "project.toml", "--dry-run")
    assert (done.code, "to be run" in done.out) == (0, True), done.err


def test_check_reads_what_was_never_imported_and_writes_nothing(defectory: Cli, source: Path) -> None:
    before = sorted(path.name for path in source.parent.rglob("*"))
    done = defectory("check", source / "labels.json")
    assert done.code == 0, done.err
    assert "4 instances in 4 images" in done.out
    assert "5 (1 defect-free)" in done.out
    assert "defectory import" in done.out
    assert sorted(path.name for path in source.parent.rglob("*")) == before


def test_check_of_what_was_never_imported_lists_bad_entries(defectory: Cli, source: Path) -> None:
    (source / "images" / "p1.png").write_bytes(b"no image")
    done = defectory("check", source / "labels.json")
    assert done.code == 0, done.err
    assert "bad: " in done.out
    assert "p1.png" in done.out
    assert len(json.loads(defectory("check", source / "labels.json", "--json").out)["problems"]) >= 1


@pytest.mark.parametrize("place", ["set/images", "nowhere", "set/images/p0.png"])
def test_check_of_what_is_no_data_set_is_one_line(defectory: Cli, source: Path, place: str) -> None:
    done = defectory("check", place)
    assert done.code == 2
    assert place.rpartition("/")[2] in done.error_line


def test_check_of_a_read_only_data_set_prints_all_but_the_sheet(
    defectory: Cli, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from defectory.dataset import check
    from defectory.errors import OutputError

    assert defectory("import", source / "labels.json", "--out", "data").code == 0

    def refuse(path: Path, *_args: object, **_more: object) -> None:
        raise OutputError(path, "cannot be written (read-only file system)", "choose another output folder")

    monkeypatch.setattr(check, "save_png", refuse)
    done = defectory("check", "data")
    assert (done.code, "4 instances in 4 images" in done.out) == (0, True), done.err
    assert "contact sheet: not written (data/contact_sheet.png: cannot be written (read-only file system)" in done.out
    report = json.loads(defectory("check", "data", "--json").out)
    assert (report["num_instances"], report["contact_sheet"]) == (4, None)
    done = defectory("check", "data", "--sheet", "sheet.png")
    assert done.code == 2


def test_check_tells_layout_remarks_and_value_range(defectory: Cli, tmp_path: Path) -> None:
    images: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for index in range(4):
        save_png(tmp_path / "set" / f"p{index}.png", rng.integers(100, 4000, (40, 56)).astype(np.uint16))
        images.append({"id": index, "file_name": f"p{index}.png", "height": 40, "width": 56})
    box = [10, 10, 30, 10, 30, 25, 10, 25]
    annotations = [{"id": i, "image_id": i, "category_id": 1, "segmentation": [box], "iscrowd": 0} for i in range(3)]
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "crack"}]}
    (tmp_path / "set" / "labels.json").write_text(json.dumps(coco))
    done = defectory("import", tmp_path / "set" / "labels.json", "--out", tmp_path / "data")
    assert done.code == 0, done.err
    assert "recognised as COCO" in done.out
    assert "remark: " in done.out
    done = defectory("check", tmp_path / "data")
    assert "COCO" in done.out
    assert "value range" in done.out
    assert "become 0 to 255" in done.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--unlabelled", "maybe"), "--unlabelled"),
        (("--mask-threshold", "300"), "--mask-threshold"),
        (("--min-area-px", "-1"), "--min-area-px"),
        (("--format", "x[/y]"), "option --format 'x[/y]': is not known"),
        (("--class-colours", "nowhere.csv"), "nowhere.csv"),
        (("--image-root", "nowhere"), "nowhere"),
        (("--defect-free", "nowhere"), "nowhere"),
        (("--index", "nowhere.csv"), "nowhere.csv"),
        (("--class", "rust"), "rust"),
    ],
)
def test_a_wrong_option_of_import_names_itself(
    defectory: Cli, source: Path, options: tuple[str, ...], said: str
) -> None:
    done = defectory("import", source / "labels.json", "--out", "data", *options)
    assert done.code == 2, done.out
    assert said in done.error_line
    assert not Path("data").exists()


def test_a_source_called_like_the_section_is_named_as_it_is(defectory: Cli, tmp_path: Path) -> None:
    done = defectory("import", "data.json", "--out", tmp_path / "data")
    assert (done.code, done.error_line) == (2, "error: data.json: no such file or folder; check data.path")


def test_the_options_of_import_reach_the_loader(defectory: Cli, tmp_path: Path) -> None:
    for index in range(4):
        image = np.full((40, 56, 3), 90 + 9 * index, np.uint8)
        save_png(tmp_path / "set" / "images" / f"p{index}.png", image)
        if index < 3:
            mask = np.zeros((40, 56), np.uint8)
            mask[10:25, 10:30] = 200
            mask[25:27, 10:30] = 90
            save_png(tmp_path / "set" / "masks" / f"p{index}.png", mask)
    options = ("--mask-threshold", "128", "--unlabelled", "defect-free", "--format", "masks", "--json")
    done = defectory("import", tmp_path / "set", "--out", tmp_path / "data", *options)
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert (summary["images"], summary["defect_free"], summary["instances"]) == (4, 1, 3)
    done = defectory(
        "import", tmp_path / "set", "--out", tmp_path / "data", "--mask-threshold", "128", "--unlabelled", "refuse"
    )
    assert (done.code, "p3.png" in done.error_line) == (2, True)
