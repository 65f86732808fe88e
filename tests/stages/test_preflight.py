"""Dead ends are told before training: each kind in one line that names what to change."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import TileSet
from defectory.config.resolve import resolve
from defectory.errors import InputError
from defectory.events import Notice
from defectory.images.save import save_png
from defectory.procedural.borescope import write_dataset
from defectory.runs.sources import Sources
from defectory.runs.stage import Run
from defectory.runs.store import RunStore
from defectory.runs.stored import DataFolder, TileFolder
from defectory.stages import all as all_module
from defectory.stages.all import CHECKS, run_all, stages_of
from defectory.stages.parts.before_all import check_before_all
from defectory.stages.parts.preflight import check_before_training

SIZE_HW = (64, 88)


class Values(NamedTuple):
    """What the check reads, and the project's folder."""

    dataset: Dataset
    split: Split
    tileset: TileSet
    folder: Path


Edit = Callable[[Values], Values]


def check(project: Run) -> tuple[str, ...]:
    """What is checked before the first stage, as if every stage had to run, and before training."""
    stages = stages_of(project.config)
    remarks = check_before_all(project, stages, stages, {}, [stage.name for stage in stages])
    return (*remarks, *check_before_training(project.store(), project.config))


def settings_of(base: Path) -> dict[str, Any]:
    return {
        "name": "dead-end",
        "out": "run",
        "base": str(base),
        "device": "cpu",
        "threads": 1,
        "data": {"path": "source/annotations.json"},
        "tiling": {"mode": "frame"},
        "masks": {"min_area_px": 2},
        "synthesis": {"num_images": 8},
        "segmentation": {"num_steps": 4},
    }


def open_at(folder: Path, settings: dict[str, Any], *overrides: str) -> Run:
    return Run(
        config=resolve(project=settings, overrides=overrides).config,
        folder=folder / "run",
        sources=Sources(folder=folder),
    )


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> tuple[Path, dict[str, Any]]:
    """A project whose tiles are cut; copy it before changing anything."""
    folder = tmp_path_factory.mktemp("cut")
    write_dataset(folder / "source", seed=0, num_labelled=24, num_defect_free=8, size_hw=SIZE_HW)
    settings = settings_of(tiny_base_folder)
    for _ in run_all(open_at(folder, settings), only=["import", "split", "tiles"]):
        pass
    return folder, settings


@pytest.fixture
def project_of(cut: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Open a copy of the project with overrides; what the check reads of it is edited."""

    def make(*overrides: str, edit: Edit | None = None) -> Run:
        folder = Path(shutil.copytree(cut[0], tmp_path / "copy"))
        project = open_at(folder, cut[1], *overrides)
        if edit is not None:
            values = edit(
                Values(project.store().data.dataset, project.store().split, project.store().tiles.tileset, folder)
            )
            data = DataFolder(dataset=values.dataset, folder=folder / "run" / "data")
            tiles = TileFolder(tileset=values.tileset, folder=folder / "run" / "tiles")
            for name, value in (("data", data), ("split", values.split), ("tiles", tiles)):
                monkeypatch.setattr(RunStore, name, property(lambda _self, value=value: value))
        return project

    return make


def with_records(values: Values, change: Callable[[ImageRecord], dict[str, Any]]) -> Values:
    images = tuple(record.model_copy(update=change(record)) for record in values.dataset.images)
    return values._replace(dataset=Dataset(**{**dict(values.dataset), "images": images}))


def all_crowd(values: Values) -> Values:
    return with_records(
        values, lambda record: {"instances": tuple(i.model_copy(update={"is_crowd": True}) for i in record.instances)}
    )


def one_group(values: Values) -> Values:
    return with_records(values, lambda _record: {"group": "all"})


def without_tiles(subset: str, *, keep: bool) -> Edit:
    def edit(values: Values) -> Values:
        tiles = [
            tile if tile.subset != subset else tile.model_copy(update={"instances": ()})
            for tile in values.tileset.tiles
        ]
        kept = tuple(tile for tile in tiles if keep or tile.subset != subset)
        return values._replace(tileset=values.tileset.model_copy(update={"tiles": kept}))

    return edit


def without_defects_in(subset: str) -> Edit:
    def edit(values: Values) -> Values:
        kept = tuple(i for i in getattr(values.split, subset) if values.dataset.image(i).is_defect_free)
        return values._replace(split=values.split.model_copy(update={subset: kept}))

    return edit


def corner_regions(values: Values) -> Values:
    """Draw regions of two by two pixels in the corner of every image, where the tile's margin lies."""
    for record in values.dataset.images:
        region = np.zeros((*record.size_hw, 3), np.uint8)
        region[:2, :2] = 255
        save_png((values.folder / "regions" / record.file_name).with_suffix(".png"), region)
    return values


def test_a_project_that_can_go_on_is_let_through_in_seconds(project_of: Callable[..., Run]) -> None:
    began = time.monotonic()
    remarks = check(project_of())
    assert time.monotonic() - began < 20
    assert all("\n" not in remark for remark in remarks)


@pytest.mark.parametrize(
    ("overrides", "edit", "said", "todo"),
    [
        ((), all_crowd, "are crowds", "iscrowd"),
        ((), without_tiles("train", keep=True), "no train tile shows a defect", "tiling.scale"),
        ((), without_tiles("pool", keep=False), "is empty", "data.defect_free"),
        ((), without_defects_in("val"), "val (", "split.val_share"),
        ((), without_defects_in("test"), "test (", "split.test_share"),
        (("masks.min_area_px=100000",), None, "masks.min_area_px 100000", "lower it"),
        (("masks.regions=regions",), corner_regions, "no mask finds a place", "masks.regions"),
        (("masks.regions=nowhere",), None, "no such file or folder", "masks.regions"),
        (("masks.expert=nowhere",), None, "nowhere", ""),
        (
            ("synthesis.max_images_per_tile=1", "synthesis.num_images=500"),
            None,
            "pool tiles give",
            "max_images_per_tile",
        ),
        (
            ("masks.max_uses=1", "synthesis.num_images=5000", "synthesis.augmentations_per_image=1000"),
            None,
            "drivers, ",
            "raise it",
        ),
        (("synthesis.focus=segmenter",), one_group, "all of one group", "synthesis.focus"),
        (("tiling.tile_px=45",), None, "no multiple of 8", "set it to 48"),
        (("device=cuda:99",), None, "cannot be used", "doctor"),
        (("drivers.drawings=nowhere",), None, "no such file or folder", "drivers.drawings"),
        (("drivers.kind=nothing",), None, "nothing", ""),
        (
            ("segmentation.model=light", "segmentation.weights=coco.pth"),
            None,
            "weights of its own",
            "leave the setting",
        ),
        (("segmentation.model=unet", "segmentation.weights=."), None, "family unet takes the folder of a pretrai", ""),
        (("segmentation.model=efficientnet_lite0", "segmentation.weights=."), None, "pretraining", "resnet50"),
        (("segmentation.model=resnet50", "segmentation.weights=coco.pth"), None, "no such file", "correct the path"),
    ],
)
def test_a_dead_end_is_one_line_that_names_what_to_change(
    project_of: Callable[..., Run], overrides: tuple[str, ...], edit: Edit | None, said: str, todo: str
) -> None:
    with pytest.raises(InputError) as caught:
        check(project_of(*overrides, edit=edit))
    line = str(caught.value)
    assert said in line
    assert todo in line.rpartition(";")[2]
    assert "\n" not in line


def test_a_class_that_test_lacks_is_a_remark(project_of: Callable[..., Run]) -> None:
    def edit(values: Values) -> Values:
        held = set(values.split.test)
        lost = min(i.category_id for image_id in held for i in values.dataset.image(image_id).instances)

        def change(record: ImageRecord) -> dict[str, Any]:
            return {"instances": tuple(i for i in record.instances if record.id not in held or i.category_id != lost)}

        return with_records(values, change)

    assert any(remark.startswith("test holds no instance of ") for remark in check(project_of(edit=edit)))


@pytest.mark.parametrize(("precision", "has"), [("bf16", False), ("bf16", True), ("auto", False), ("no", False)])
def test_bf16_on_a_processor_without_instructions_for_it_is_a_remark(
    project_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, precision: str, has: bool
) -> None:
    monkeypatch.setattr("defectory.engine.precision.has_bf16", lambda device_type: has)
    settings = (f"{section}.mixed_precision={precision}" for section in ("synthesis", "segmentation"))
    told = [remark for remark in check(project_of(*settings)) if "bf16" in remark]
    if precision == "bf16" and not has:
        (remark,) = told
        assert remark.startswith("synthesis.mixed_precision, segmentation.mixed_precision = bf16: the processor")
    else:
        assert not told


def test_what_is_damaged_is_left_to_the_stage_that_reads_it(project_of: Callable[..., Run]) -> None:
    project = project_of()
    (project.folder / "tiles" / "tileset.json").write_text("{")
    assert check(project) == ()


def test_a_run_stops_before_anything_is_trained(tmp_path: Path, tiny_base_folder: Path) -> None:
    write_dataset(tmp_path / "source", seed=0, num_labelled=24, num_defect_free=8, size_hw=SIZE_HW)
    file = tmp_path / "source" / "annotations.json"
    coco = json.loads(file.read_text())
    for annotation in coco["annotations"]:
        annotation["iscrowd"] = 1
    file.write_text(json.dumps(coco))
    with pytest.raises(InputError, match="crowd"):
        for _ in run_all(open_at(tmp_path, settings_of(tiny_base_folder))):
            pass
    assert not (tmp_path / "run" / "concept").exists()


def test_remarks_are_told_before_the_first_stage_that_trains(
    project_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    remarks = replace(CHECKS, before_training=lambda *_: ("a remark",))
    monkeypatch.setattr(all_module, "CHECKS", remarks)
    events = run_all(project_of(), only=["import", "split", "tiles", "learn-concept"])
    seen = [next(event for event in events if isinstance(event, Notice) and event.stage == "check")]
    events.close()  # type: ignore[attr-defined]
    assert seen[0].text == "a remark"
