from __future__ import annotations

from pathlib import Path

import pytest

from defectory import Project, check_data, import_data, load_dataset
from defectory.api.data import summary_of
from defectory.errors import AnnotationError, ConfigError, OutputError


@pytest.fixture
def labels(project: Project) -> Path:
    return project.file.parent / "source" / "annotations.json"


def test_a_data_set_is_imported_and_summed_up(project: Project, labels: Path, tmp_path: Path) -> None:
    result = import_data(labels, out=tmp_path / "data", classes=["gouge", "burn"])
    assert result.rejected == ()
    found = summary_of(result.dataset)
    assert found.class_names == ("gouge", "burn")
    assert found.num_defect_free == 12
    assert found.num_images < len(project.dataset.images)
    assert found.num_instances == sum(len(record.instances) for record in result.dataset.images)
    assert found.images_per_subset == {}


def test_a_data_set_is_loaded_and_imported(project: Project, labels: Path, tmp_path: Path) -> None:
    loaded = load_dataset(project.run_folder / "data")
    assert loaded.dataset == project.dataset
    with pytest.raises(ConfigError, match="give `out`"):
        load_dataset(labels.parent)
    imported = load_dataset(labels, out=tmp_path / "data")
    assert len(imported.dataset.images) == len(loaded.dataset.images)
    assert imported.image(imported.dataset.images[0]).ndim == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"unlabelled": "maybe"}, "data.unlabelled: input should be"),
        ({"min_area_px": -1}, "data.min_area_px: "),
        ({"colour": "red"}, "data.colour: "),
        ({"format": "png"}, "data.format 'png': is not known"),
        ({"index": Path("nowhere.csv")}, "data.index: nowhere.csv: no such file or folder; check the path"),
        ({"classes": ["rust"]}, "data.classes: 'rust' is not a class"),
    ],
)
def test_a_wrong_option_of_an_import_names_its_setting(
    labels: Path, tmp_path: Path, options: dict[str, object], said: str
) -> None:
    for make in (import_data, load_dataset):
        with pytest.raises(ConfigError) as caught:
            make(labels, out=tmp_path / "data", **options)
        assert said in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_an_import_refuses_a_users_folder_before_it_reads_the_source(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("years of work")
    (tmp_path / "labels.json").write_text("not JSON")
    with pytest.raises(OutputError, match="mine"):
        import_data(tmp_path / "labels.json", out=tmp_path / "mine")
    with pytest.raises(AnnotationError, match=r"labels\.json"):
        import_data(tmp_path / "labels.json", out=tmp_path / "data")


def test_a_run_folder_is_checked_as_its_data_set(project: Project, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    of_run, of_data = check_data(project.run_folder, sheet=sheet), check_data(project.run_folder / "data", sheet=sheet)
    assert of_run == of_data
    assert (of_run.folder, of_run.is_imported) == (project.run_folder / "data", True)
    assert of_run.contact_sheet == sheet
    assert sheet.is_file()
    assert of_run.report.num_images == len(project.dataset.images)
    assert of_run.report.problems == ()


def test_a_source_is_counted_as_its_import_would_be_and_nothing_is_written(
    project: Project, labels: Path, tmp_path: Path
) -> None:
    before = sorted(labels.parent.rglob("*"))
    found = check_data(labels.parent)
    assert sorted(labels.parent.rglob("*")) == before
    assert (found.is_imported, found.contact_sheet, found.layout) == (False, None, "COCO instances")
    imported = check_data(project.run_folder, sheet=tmp_path / "sheet.png").report
    for name in ("num_images", "num_defect_free", "num_instances", "instances_per_class", "images_per_class"):
        assert getattr(found.report, name) == getattr(imported, name)
    with pytest.raises(ConfigError, match="was not imported yet"):
        check_data(labels.parent, sheet=tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_bad_entries_of_a_source_are_its_problems(labels: Path, tmp_path: Path) -> None:
    text = labels.read_text().replace('"shot_0001.png"', '"gone.png"')
    (labels.parent / "wrong.json").write_text(text)
    try:
        found = check_data(labels.parent / "wrong.json").report
    finally:
        (labels.parent / "wrong.json").unlink()
    assert len(found.problems) >= 1
    assert "gone.png" in found.problems[0]


def test_a_users_picture_is_no_contact_sheet(project: Project, tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match="was not made by Defectory"):
        check_data(project.run_folder, sheet=tmp_path / "holiday.png")
    assert (tmp_path / "holiday.png").read_bytes() == b"mine"
