from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from defectory import Project, StageEnded, finish, insert
from defectory.errors import ConfigError, OutputError
from defectory.images.load import load_rgb
from defectory.images.save import save_png


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    save_png(tmp_path / "photos" / "frame.png", rng.integers(110, 150, (71, 101, 3)).astype(np.uint8))
    return tmp_path / "photos" / "frame.png"


def test_defects_are_drawn_into_an_image_once_its_events_are_read(
    project: Project, frame: Path, tmp_path: Path
) -> None:
    work = insert(project, frame, out=tmp_path / "out", count=2, seed=3)
    assert not (tmp_path / "out").exists()
    *_, last = work
    assert isinstance(last, StageEnded)
    labels = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert len(labels["images"]) == len(labels["annotations"]) == 2
    for image in labels["images"]:
        assert load_rgb(tmp_path / "out" / "images" / image["file_name"]).shape == (71, 101, 3)


def test_a_folder_of_inputs_is_refused_at_once(project: Project, frame: Path) -> None:
    for out in (frame.parent, project.file.parent):
        with pytest.raises(OutputError):
            insert(project, [frame], out=out)
    assert [path.name for path in frame.parent.iterdir()] == ["frame.png"]


def test_an_unknown_class_is_refused_when_the_work_begins(project: Project, frame: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="class 'rust': is not one of the project's"):
        finish(insert(project, frame, out=tmp_path / "out", class_name="rust"))
    assert not (tmp_path / "out").exists()
