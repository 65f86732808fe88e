"""Drivers of the user's own images, as `drivers extract` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.drivers.palette import palette
from defectory.errors import ImageError
from defectory.events import StageEnded
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.runs.stage import Run
from defectory.tools.drivers import extract_from_images

Opened = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
NUM_CLASSES = 5


@pytest.fixture(scope="module")
def project(tiny_run: TinyRun, open_tiny: Opened) -> Run:
    return open_tiny(tiny_run[0], tiny_run[1])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    save_png(tmp_path / "photo.png", rng.integers(60, 200, (121, 167, 3)).astype(np.uint8))
    return tmp_path / "photo.png"


def painted(tmp_path: Path, value: int) -> Path:
    mask = np.zeros((121, 167), np.uint8)
    mask[90:100, 130:150] = value
    save_png(tmp_path / "mask.png", mask)
    return tmp_path / "mask.png"


def bright_colours(driver: np.ndarray[Any, Any]) -> set[tuple[int, ...]]:
    return {tuple(int(level) for level in row) for row in driver[driver.max(axis=2) > 200]}


def test_a_painted_mask_gives_a_driver_of_tile_size_around_it_and_its_prompt(
    project: Run, photo: Path, tmp_path: Path
) -> None:
    ((name, prompt),) = extract_from_images(
        [photo], mask=painted(tmp_path, 255), run=project, whole=False, out=tmp_path / "out"
    )
    driver, side = load_rgb(tmp_path / "out" / name), project.store().tiles.tileset.tiling.tile_px
    assert driver.shape == (side, side, 3)
    assert (driver.max(axis=2) > 200).sum() == 10 * 20, "the mask lies whole inside the square"
    assert project.store().concept.concept.instance_token in prompt
    assert "hairline" in prompt


def test_colours_are_those_the_project_was_trained_on(project: Run, photo: Path, tmp_path: Path) -> None:
    mask = np.zeros((121, 167), np.uint8)
    mask[90:95, 130:150], mask[96:100, 130:150] = 2, 3
    save_png(tmp_path / "mask.png", mask)
    ((name, prompt),) = extract_from_images(
        [photo], mask=tmp_path / "mask.png", run=project, whole=True, out=tmp_path / "out"
    )
    assert bright_colours(load_rgb(tmp_path / "out" / name)) == {
        tuple(palette(NUM_CLASSES)[i].tolist()) for i in (1, 2)
    }
    assert "branched" in prompt
    assert "edge" in prompt


def test_a_class_that_the_project_lacks_is_refused(project: Run, photo: Path, tmp_path: Path) -> None:
    mask = np.zeros((121, 167), np.uint8)
    mask[90:95, 130:150], mask[96:100, 130:150] = 2, 6
    save_png(tmp_path / "mask.png", mask)
    with pytest.raises(ImageError, match=r"holds class 6, the project has 5 \(hairline, .*\); correct the mask"):
        extract_from_images([photo], mask=tmp_path / "mask.png", run=project, whole=True, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
