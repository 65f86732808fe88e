"""The demo's folder is made once, and is nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from defectory.api import demo
from defectory.api.demo import PROJECT_FILE, open_demo, write_demo
from defectory.errors import OutputError
from defectory.folders.marker import is_ours


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(out: Path, *, seed: int) -> None:
        out.mkdir()
        (out / "annotations.json").write_text(f'{{"seed": {seed}}}')

    monkeypatch.setattr(demo, "write_dataset", write)


def test_a_folder_of_the_users_is_refused_and_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data", "plan", "report"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("two years of work")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        OutputError, match=r"\.: was not made by Defectory and is not empty \(it holds data, plan, report\)"
    ):
        write_demo(Path(), "demo")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "plan", "report"]


def test_a_demo_is_made_once_and_follows_its_preset(tmp_path: Path) -> None:
    file = write_demo(tmp_path / "demo", "demo")
    assert is_ours(tmp_path / "demo", kind="demo")
    first = file.read_text()
    assert write_demo(tmp_path / "demo", "demo").read_text() == first
    assert write_demo(tmp_path / "demo", "demo-full").read_text() != first


def test_an_edited_project_file_is_not_overwritten(tmp_path: Path) -> None:
    file = write_demo(tmp_path / "demo", "demo")
    file.write_text(file.read_text() + "# my notes\n")
    assert write_demo(tmp_path / "demo", "demo").read_text().endswith("# my notes\n")
    with pytest.raises(OutputError, match=rf"{PROJECT_FILE}: was changed since Defectory wrote it"):
        write_demo(tmp_path / "demo", "demo-full")
    assert file.read_text().endswith("# my notes\n")


def test_a_demo_has_a_folder_of_its_own_in_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project = open_demo(overrides={"synthesis.num_images": 3}, seed=4)
    assert project.file == Path("runs/demo/project.toml")
    assert (project.config.synthesis.num_images, project.config.seed) == (3, 4)
    assert open_demo(preset="demo-full").file == Path("runs/demo-full/project.toml")
