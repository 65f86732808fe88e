"""No verb writes onto what it did not make: each verb with an output, onto each kind of wrong place."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.images.save import save_png

Cli = Callable[..., Any]


def tree_of(folder: Path) -> dict[str, str]:
    """Everything under a folder: kind, content, and where links lead."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"link to {path.readlink()}"
        elif path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path.relative_to(folder))] = "folder"
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a data set, a project file and things of their own; the current folder."""
    home = tmp_path / "home"
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(6):
        image = np.full((40, 56, 3), 90 + 10 * index, np.uint8)
        image[10:20, 12 : 20 + index] = 20
        save_png(home / "photos" / f"p{index}.png", image)
        images.append({"id": index, "file_name": f"p{index}.png", "height": 40, "width": 56})
        box = [12, 10, 20 + index, 10, 20 + index, 20, 12, 20]
        annotations.append({"id": index, "image_id": index, "category_id": 1, "segmentation": [box], "iscrowd": 0})
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "crack"}]}
    (home / "photos" / "labels.json").write_text(json.dumps(coco))
    (home / "notes").mkdir()
    (home / "notes" / "thesis.txt").write_text("years of work")
    (home / "report.pdf").write_text("signed")
    save_png(home / "holiday.png", np.full((20, 30, 3), 9, np.uint8))
    (home / "linked").symlink_to("notes")
    (home / "project.toml").write_text('out = "runs/a"\ndevice = "cpu"\n[data]\npath = "photos/labels.json"\n')
    monkeypatch.chdir(home)
    return home


FOLDERS = ("notes", "report.pdf", "linked", ".", "photos", "..", "report.pdf/below", "/")
PICTURES = ("notes", "report.pdf", "holiday.png", "linked", ".", "photos/p0.png", "report.pdf/below.png")
FOLDER_VERBS: dict[str, tuple[str, ...]] = {
    "import": ("import", "photos/labels.json", "--out"),
    "drivers extract": ("drivers", "extract", "--image", "photos/p0.png", "--out"),
    "masks review": ("masks", "review", "--out"),
    "insert": ("insert", "--image", "photos/p0.png", "--out"),
    "predict": ("predict", "photos", "-m", "notes", "--out"),
    "base score": ("base", "score", "--out"),
    "base world": ("base", "world", "--out"),
    "base pretrain": ("base", "pretrain", "--out"),
    "base teach": ("base", "teach", "dent", "--out"),
    "demo": ("demo", "--out"),
}
PICTURE_VERBS: dict[str, tuple[str, ...]] = {
    "drivers compare": ("drivers", "compare", "--out"),
    "masks preview": ("masks", "preview", "--out"),
    "check": ("check", "photos", "--sheet"),
}


@pytest.mark.parametrize("place", FOLDERS)
@pytest.mark.parametrize("verb", FOLDER_VERBS)
def test_a_folder_verb_refuses_what_it_did_not_make(defectory: Cli, home: Path, verb: str, place: str) -> None:
    before = tree_of(home.parent)
    done = defectory(*FOLDER_VERBS[verb], place)
    assert (done.code, tree_of(home.parent) == before) == (2, True), done.err
    assert done.error_line.count("; ") >= 1
    # the line names the place, or the file that the place lies below
    assert place.split("/")[0] in done.error_line or str(home) in done.error_line or "root" in done.error_line


@pytest.mark.parametrize("place", PICTURES)
@pytest.mark.parametrize("verb", PICTURE_VERBS)
def test_a_picture_verb_refuses_what_it_did_not_make(defectory: Cli, home: Path, verb: str, place: str) -> None:
    before = tree_of(home.parent)
    done = defectory(*PICTURE_VERBS[verb], place)
    assert (done.code, tree_of(home.parent) == before) == (2, True), done.err
    assert len(done.error_line) < 600


@pytest.mark.parametrize("out", [".", "..", "photos", "notes", "report.pdf", "/", "linked", "report.pdf/x"])
@pytest.mark.parametrize(
    "verb", [("run",), ("learn-concept",), ("masks", "review", "--out", "new"), ("drivers", "tune")]
)
def test_a_run_folder_that_is_the_users_is_refused(defectory: Cli, home: Path, verb: tuple[str, ...], out: str) -> None:
    before = tree_of(home.parent)
    done = defectory(*verb, "-o", f"out={out}")
    if out == "linked":
        assert "notes" in done.error_line or "linked" in done.error_line
    assert (done.code, tree_of(home.parent) == before) == (2, True), done.err
    assert ";" in done.error_line


@pytest.mark.parametrize(
    "place", ["notes", "report.pdf", "holiday.png", "linked", ".", "photos/labels.json", "report.pdf/x.toml"]
)
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_init_replaces_nothing_but_a_project_file(
    defectory: Cli, home: Path, place: str, force: tuple[str, ...]
) -> None:
    before = tree_of(home)
    done = defectory("init", place, *force)
    assert (done.code, tree_of(home) == before) == (2, True), done.err
    assert len(done.error_line) < 400


def test_init_replaces_a_project_file_when_told(defectory: Cli, home: Path) -> None:
    assert defectory("init", "project.toml", "--data", "photos/labels.json", "--force").code == 0
    assert 'path = "photos/labels.json"' in (home / "project.toml").read_text()


def test_what_a_verb_made_it_may_replace(defectory: Cli, home: Path) -> None:
    for _ in range(2):
        assert defectory("import", "photos/labels.json", "--out", "data").code == 0
        assert defectory("check", "data").code == 0
        assert defectory("check", "data", "--sheet", "sheet.png").code == 0
        assert (
            defectory("drivers", "extract", "-i", "photos/p0.png", "-i", "photos/p1.png", "--out", "drivers").code == 0
        )
    assert sorted(path.name for path in (home / "drivers").glob("*.png")) == ["p0.png", "p1.png"]


def test_what_others_put_into_a_folder_of_ours_stays(defectory: Cli, home: Path) -> None:
    assert defectory("import", "photos/labels.json", "--out", "data").code == 0
    (home / "data" / "mine.txt").write_text("a note")
    assert defectory("import", "photos/labels.json", "--out", "data").code == 0
    assert (home / "data" / "mine.txt").read_text() == "a note"


def test_a_folder_of_another_kind_of_ours_is_refused(defectory: Cli, home: Path) -> None:
    assert defectory("import", "photos/labels.json", "--out", "data").code == 0
    before = tree_of(home)
    for verb in ("drivers extract", "base world", "insert"):
        done = defectory(*FOLDER_VERBS[verb], "data")
        assert (done.code, tree_of(home) == before) == (2, True), done.err
        assert "dataset" in done.error_line


def test_an_import_that_reads_from_its_own_output_is_refused(defectory: Cli, home: Path) -> None:
    assert defectory("import", "photos/labels.json", "--out", "data").code == 0
    before = tree_of(home)
    done = defectory("import", "data", "--out", "data")
    assert (done.code, tree_of(home) == before) == (2, True), done.err


def test_an_image_in_the_place_of_a_project_says_where_images_go(defectory: Cli, home: Path) -> None:
    done = defectory("insert", "photos/p0.png", "--image", "photos/p1.png", "--out", "inserted")
    assert done.code == 2
    assert "p0.png: is an image, but a project file is expected here; give images with --image" in done.error_line


def test_a_base_is_never_written_into(defectory: Cli, home: Path, make_base: Callable[..., Path]) -> None:
    base = make_base(home / "base")
    before = tree_of(home)
    for verb in (("base", "score", str(base), "--out"), ("base", "teach", "dent", "--base", str(base), "--out")):
        for place in (base, base / "scores"):
            done = defectory(*verb, place)
            assert (done.code, tree_of(home) == before) == (2, True), done.err


def test_images_of_one_name_give_a_driver_each(defectory: Cli, home: Path) -> None:
    shutil.copytree(home / "photos", home / "more")
    assert defectory("drivers", "extract", "-i", "photos/p0.png", "-i", "more/p0.png", "--out", "drivers").code == 0
    assert sorted(path.name for path in (home / "drivers").glob("*.png")) == ["p0-2.png", "p0.png"]
