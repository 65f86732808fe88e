from __future__ import annotations

import json
from pathlib import Path

import pytest

from defectory import Project, export, export_formats, finish
from defectory.api.export import require_format
from defectory.errors import ConfigError, OutputError
from defectory.formats.writers.registry import WRITERS


def num_images(folder: Path) -> dict[bool, int]:
    images = json.loads((folder / "annotations.json").read_text())["images"]
    return {kind: sum(image["synthetic"] is kind for image in images) for kind in (True, False)}


def test_drafts_are_exported_alone_or_with_real_images_in_either_form(project: Project, tmp_path: Path) -> None:
    tiles = len([t for t in project.tiles.of("train") if t.instances]) + len(project.tiles.of("pool"))
    images = len(project.split.train) + len(project.split.pool)
    for name, options, num_real in (
        ("alone", {}, 0),
        ("as-drafts", {"with_real": True}, tiles),
        ("tiles", {"with_real": True, "real": "tiles"}, tiles),
        ("images", {"with_real": True, "real": "images"}, images),
    ):
        finish(export(project, "coco", out=tmp_path / name, **options))  # type: ignore[arg-type]
        assert num_images(tmp_path / name) == {True: 8, False: num_real}, name


def test_format_and_folder_are_checked_before_the_work(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'coca': is not known; choose among coco"):
        export(project, "coca", out=tmp_path / "out")
    for out in (project.run_folder, project.file.parent):
        with pytest.raises(OutputError):
            export(project, "coco", out=out)
    work = export(project, "coco", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    finish(work)
    assert (tmp_path / "out" / "annotations.json").is_file()


def test_formats_of_other_packages_are_listed_too() -> None:
    assert "yolo" in export_formats()
    with WRITERS.registered("mine", WRITERS.get("coco")):
        assert "mine" in export_formats()
        require_format("mine")
    with pytest.raises(ConfigError, match="'mine': is not known"):
        require_format("mine")
