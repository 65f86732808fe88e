from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from defectory import Progress, Project, compare_drivers, extract_drivers, finish, measure_leakage, tune_drivers
from defectory.errors import ConfigError, InputError
from defectory.images.load import load_rgb
from defectory.images.save import save_png


def test_drivers_of_images_need_no_project(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    save_png(tmp_path / "photos" / "a.png", rng.integers(60, 200, (48, 70, 3)).astype(np.uint8))
    assert extract_drivers(images=[tmp_path / "photos"], whole=True, out=tmp_path / "out") == [("a.png", "")]
    assert load_rgb(tmp_path / "out" / "a.png").shape == (48, 70, 3)
    with pytest.raises(ConfigError, match="neither a project nor images"):
        extract_drivers(out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_drivers_of_a_project_are_of_its_tiles_or_of_images_with_its_prompts(project: Project, tmp_path: Path) -> None:
    made = extract_drivers(project, subset="pool", limit=3, out=tmp_path / "tiles")
    assert [name for name, _ in made] == [f"{tile.id}.png" for tile in project.tiles.of("pool")[:3]]
    assert {path.name for path in (tmp_path / "tiles").glob("*.png")} == {name for name, _ in made}
    photo = project.store.data.path(project.dataset.images[0])
    ((_, prompt),) = extract_drivers(project, images=[photo], out=tmp_path / "photo")
    assert project.config.prompts.instance_token in prompt


def test_tuned_drivers_are_the_best_first_beside_the_projects_own(many_tiles: Project) -> None:
    work = tune_drivers(many_tiles)
    first = next(work)
    assert isinstance(first, Progress)
    found = finish(work)
    assert len(found.choices) == first.total
    assert found.best == found.choices[0]
    assert found.present.config == many_tiles.config.drivers
    own, best = many_tiles.config.drivers, found.best.config
    assert found.changed == {k: v for k, v in best.model_dump().items() if v != getattr(own, k)}
    assert [row["config"] for row in json.loads(found.file.read_text())] == [
        choice.config.model_dump(mode="json") for choice in found.choices
    ]
    assert many_tiles.run_folder in found.file.parents


def test_leakage_is_measured_on_enough_tiles_alone(many_tiles: Project, project: Project) -> None:
    found = measure_leakage(many_tiles)
    assert found is not None
    assert found.interval[0] <= found.auc <= found.interval[1]
    assert found.num_defective <= len(many_tiles.tiles.of("train"))
    assert measure_leakage(project) is None
    with pytest.raises(InputError, match="are needed to measure leakage"):
        finish(tune_drivers(project))


def test_drivers_of_every_kind_stand_beside_their_tiles(project: Project) -> None:
    few, more = compare_drivers(project, num_tiles=1), compare_drivers(project, num_tiles=3)
    assert few.dtype == np.uint8
    assert few.shape[1:] == more.shape[1:]
    assert more.shape[0] > 2 * few.shape[0]
