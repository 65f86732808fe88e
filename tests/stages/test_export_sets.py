"""Exports of a finished run: what they hold, and that nothing of validation and test is in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from defectory.artifacts.dataset import image_path
from defectory.cli.main import app
from defectory.config.template import project_template
from defectory.errors import ConfigError, FirewallError, OutputError, StageError
from defectory.events import StageEnded
from defectory.files import digest_file
from defectory.folders.marker import is_ours
from defectory.formats.raw import LoadOptions
from defectory.formats.registry import load
from defectory.formats.writers.registry import WRITERS, writer_named
from defectory.images.load import load_rgb
from defectory.rle import decode
from defectory.runs.stage import Run
from defectory.runs.store import RunStore
from defectory.tools import export as export_sets
from defectory.tools.export import default_form, export_project

Open = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]


@pytest.fixture
def project(tiny_run: TinyRun, open_tiny: Open) -> Run:
    folder, settings, _ = tiny_run
    return open_tiny(folder, settings)


def exported(project: Run, out: Path, name: str = "coco", real: Any = None) -> str:
    *_, last = export_project(project, writer_named(name), out, real=real)
    assert isinstance(last, StageEnded)
    return last.summary


def provenance(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "provenance.jsonl").read_text().splitlines()]


def masks_by_name(folder: Path) -> dict[str, list[np.ndarray[Any, Any]]]:
    raw = load(folder, LoadOptions())
    return {Path(image.file_name).name: [decode(i.rle) for i in image.instances] for image in raw.images}


def test_alone_it_holds_the_accepted_drafts_as_the_stage_wrote_them(project: Run, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    summary = exported(project, tmp_path / "out")
    assert "8 images (8 synthetic)" in summary
    assert is_ours(tmp_path / "out", kind="export")
    stage, ours = (
        COCO(str(project.folder / "synthetic" / "annotations.json")),
        COCO(str(tmp_path / "out" / "annotations.json")),
    )
    assert len(ours.imgs) == len(stage.imgs) == 8
    for image_id, about in stage.imgs.items():
        name = f"synthetic-{about['file_name']}"
        other = next(i for i, a in ours.imgs.items() if a["file_name"] == name)
        copied = (tmp_path / "out" / "images" / name).read_bytes()
        assert copied == (project.folder / "synthetic" / "images" / about["file_name"]).read_bytes()
        pairs = zip(stage.getAnnIds(imgIds=[image_id]), ours.getAnnIds(imgIds=[other]), strict=True)
        assert all(np.array_equal(stage.annToMask(stage.anns[a]), ours.annToMask(ours.anns[b])) for a, b in pairs)
        assert ours.imgs[other]["synthetic"] is True
        assert ours.imgs[other]["fidelity"] is not None


@pytest.mark.parametrize("name", WRITERS.names())
def test_every_format_holds_drafts_and_real_tiles(name: str, project: Run, tmp_path: Path) -> None:
    exported(project, tmp_path / "out", name, "tiles")
    tileset = project.store().tiles.tileset
    real = [tile for tile in tileset.of("train") if tile.instances] + list(tileset.of("pool"))
    records = provenance(tmp_path / "out")
    assert len(records) == 8 + len(real)
    assert sum(record["synthetic"] for record in records) == 8
    for record in records:
        assert digest_file(tmp_path / "out" / record["image"]) == record["sha256"]
    if name != "imagefolder":
        assert len(load(tmp_path / "out", LoadOptions()).images) == len(records)


def test_real_tiles_have_the_pixels_and_labels_that_segmenters_see_without_padding(
    project: Run, tmp_path: Path
) -> None:
    exported(project, tmp_path / "out", "coco-polygons", "tiles")
    found = masks_by_name(tmp_path / "out")
    tileset = project.store().tiles.tileset
    assert any(tile.valid_hw != (tileset.tiling.tile_px, tileset.tiling.tile_px) for tile in tileset.of("train"))
    for tile in [tile for tile in tileset.of("train") if tile.instances] + list(tileset.of("pool")):
        height, width = tile.valid_hw
        name = f"real-{tile.id}.png"
        shown = load_rgb(tmp_path / "out" / "images" / name)
        assert np.array_equal(shown, load_rgb(project.folder / "tiles" / tile.file_name)[:height, :width])
        expected = [decode(i.rle)[:height, :width] for i in tile.instances]
        assert len(found[name]) == len(expected)
        assert all(np.array_equal(a, b) for a, b in zip(found[name], expected, strict=True))


def test_whole_images_are_byte_copies_of_train_and_pool(project: Run, tmp_path: Path) -> None:
    exported(project, tmp_path / "out", "coco", "images")
    dataset, split = project.store().data.dataset, project.store().split
    found = masks_by_name(tmp_path / "out")
    real = [record for record in provenance(tmp_path / "out") if not record["synthetic"]]
    assert {record["source"]["image_id"] for record in real} == {*split.train, *split.pool}
    for entry in real:
        record = dataset.image(entry["source"]["image_id"])
        copied = tmp_path / "out" / entry["image"]
        assert copied.read_bytes() == image_path((project.folder / "data"), record).read_bytes()
        assert entry["sha256"] == record.sha256
        masks = found[Path(entry["image"]).name]
        assert [mask.tolist() for mask in masks] == [decode(i.rle).tolist() for i in record.instances]
        if record.id in split.pool:
            assert masks == []


@pytest.mark.parametrize("real", ["tiles", "images"])
def test_nothing_of_validation_and_test_is_exported(real: str, project: Run, tmp_path: Path) -> None:
    exported(project, tmp_path / "out", "coco", real)
    dataset, split = project.store().data.dataset, project.store().split
    held_out = [dataset.image(image_id) for image_id in (*split.val, *split.test)]
    digests = {digest_file(path) for path in (tmp_path / "out" / "images").iterdir()}
    assert not digests & {record.sha256 for record in held_out}
    sources = {about["source"] for about in json.loads((tmp_path / "out" / "annotations.json").read_text())["images"]}
    assert not sources & {record.file_name for record in held_out}
    assert held_out


@pytest.mark.parametrize("real", [None, "tiles", "images"])
def test_an_image_that_is_not_in_train_or_pool_stops_the_export(
    real: Any, project: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = project.store().split
    records = provenance(project.folder / "synthetic")
    # one that drafts are drawn on, or one that is exported itself
    image_id = records[0]["pool"]["image_id"] if real is None else split.train[0]
    subset = "pool" if image_id in split.pool else "train"
    moved = split.model_copy(
        update={subset: tuple(i for i in getattr(split, subset) if i != image_id), "test": (*split.test, image_id)}
    )
    monkeypatch.setattr(RunStore, "split", moved)
    if real == "images":
        # as if a list of its own had been kept
        record = project.store().data.dataset.image(image_id)
        good = export_sets._real_images(project.store())
        entry = next(good)
        bad = type(entry)(image=entry.image, record=entry.record, image_ids=(record.id,))
        monkeypatch.setattr(export_sets, "_real_images", lambda _: [bad])
    with pytest.raises(
        FirewallError, match=rf"export --format coco: image ids \[{image_id}\] are not in train or pool"
    ):
        exported(project, tmp_path / "out", "coco", real)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == []


def test_names_are_plain_unique_and_tell_where_images_come_from(project: Run, tmp_path: Path) -> None:
    exported(project, tmp_path / "out", "yolo", "images")
    names = [path.name for path in (tmp_path / "out" / "images" / "train").iterdir()]
    assert all(name.isascii() and " " not in name for name in names)
    assert len({Path(name).stem.casefold() for name in names}) == len(names)
    assert sum(name.startswith("synthetic-") for name in names) == 8
    assert any(name.startswith("real-") and "shot_" in name for name in names)


def test_a_folder_that_is_not_an_export_is_refused_before_any_work(project: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for out in (tmp_path / "mine", project.folder, (project.folder / "synthetic"), project.sources.folder / "source"):
        with pytest.raises(OutputError):
            exported(project, out)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_an_earlier_export_is_replaced_as_a_whole_and_files_of_others_stay(project: Run, tmp_path: Path) -> None:
    exported(project, tmp_path / "out", "coco")
    (tmp_path / "out" / "mine.txt").write_text("mine")
    exported(project, tmp_path / "out", "yolo", "tiles")
    assert not (tmp_path / "out" / "annotations.json").exists()
    assert (tmp_path / "out" / "data.yaml").is_file()
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_two_exports_of_one_run_are_the_same_bytes(project: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        exported(project, tmp_path / name, "label-studio", "tiles")
    for path in sorted((tmp_path / "one").rglob("*")):
        if path.is_file() and path.name != ".defectory.json":
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_drafts_that_are_whole_frames_go_with_whole_images(tiny_run: TinyRun, open_tiny: Open) -> None:
    folder, settings, _ = tiny_run
    for overrides, form in (((), "tiles"), (('synthesis.mode="insert"',), "images")):
        project = open_tiny(folder, settings, *overrides)
        assert default_form(project.store(), project.config) == form


def test_a_damaged_draft_is_not_exported(tiny_run: TinyRun, open_tiny: Open, tmp_path: Path) -> None:
    folder, settings, _ = tiny_run
    shutil.copytree(folder, tmp_path / "copy")
    project = open_tiny(tmp_path / "copy", settings)
    path = project.folder / "synthetic" / "images" / "000000.png"
    path.write_bytes(path.read_bytes()[:-20] + b"x" * 20)
    with pytest.raises(StageError, match="makes stage export anew"):
        exported(project, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_exif_turns_are_written_upright_with_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 34, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    assert export_sets._is_turned(tmp_path / "turned.png")
    assert not export_sets._is_turned(tmp_path / "plain.png")

    class NoRange:
        value_range = None

    export_sets._save_upright(NoRange(), tmp_path / "turned.png", tmp_path / "upright.png")  # type: ignore[arg-type]
    with Image.open(tmp_path / "upright.png") as upright:
        assert 0x0112 not in upright.getexif()
        assert np.array_equal(np.asarray(upright), np.rot90(pixels, -1))


@pytest.fixture
def project_file(tiny_run: TinyRun, tmp_path: Path) -> Path:
    folder, settings, _ = tiny_run
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "project.toml"
    file.write_text(project_template(settings, preset=None))
    return file


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, words)])


def test_the_verb_writes_a_folder_that_is_ready_to_train_on(project_file: Path, tmp_path: Path) -> None:
    result = invoke(project_file, "--format", "yolo", "--out", tmp_path / "out", "--with-real")
    assert result.exit_code == 0, result.output
    assert "(8 synthetic)" in result.output
    assert (tmp_path / "out" / "data.yaml").is_file()
    assert any(not record["synthetic"] for record in provenance(tmp_path / "out"))


def test_the_verb_without_format_is_the_stage(project_file: Path) -> None:
    result = invoke(project_file)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("export")]
    assert len(lines) == 1
    assert "up to date" in lines[0]


def test_json_lines_tell_the_stages_and_the_export(project_file: Path, tmp_path: Path) -> None:
    result = invoke(project_file, "--format", "coco", "--out", tmp_path / "out", "--json")
    events = [json.loads(line) for line in result.output.splitlines()]
    assert [event["stage"] for event in events if event["event"] == "StageEnded"][-2:] == ["export", "export coco"]


def test_a_dry_run_writes_nothing(project_file: Path, tmp_path: Path) -> None:
    result = invoke(project_file, "--format", "coco", "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "coco"], "option --format: is given without --out"),
        (["--out", "out"], "option --out: is given without --format"),
        (["--with-real"], "option --with-real: is given without --format"),
        (["--format", "coco", "--out", "out", "--real", "tiles"], "option --real: is given without --with-real"),
        (
            ["--format", "coco", "--out", "out", "--with-real", "--real", "both"],
            "option --real: is 'both'; give tiles or images",
        ),
        (["--format", "coca", "--out", "out"], "option --format 'coca': is not known; choose among coco,"),
    ],
)
def test_options_that_say_nothing_alone_are_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*words)
    assert isinstance(result.exception, ConfigError)
    assert said in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_folder_is_told_before_any_stage_is_run(project_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    shutil.rmtree(project_file.parent / "run")
    for out in (tmp_path / "mine", project_file.parent, project_file.parent / "source"):
        result = invoke(project_file, "--format", "coco", "--out", out)
        assert isinstance(result.exception, OutputError)
    assert not (project_file.parent / "run").exists()
