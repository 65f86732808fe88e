from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from defectory.artifacts.dataset import image_path
from defectory.artifacts.plan import MaskOrigin
from defectory.errors import FirewallError, ImageError, InputError, StageError
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.runs import layout
from defectory.runs.stage import Run, Stage
from defectory.stages import segment as segment_module
from defectory.stages.all import run_all
from defectory.stages.evaluate import Evaluate
from defectory.stages.export import Export
from defectory.stages.folds import Folds
from defectory.stages.parts.held_out import require_not_held_out
from defectory.stages.parts.segmenter_images import real_images, sizing_of
from defectory.stages.segment import Segment

TinyRun = tuple[Path, dict[str, Any], list[Any]]
Opened = Callable[..., Run]
Pixels = NDArray[np.uint8]


def begin(stage: Stage, project: Run) -> object:
    """Run a stage up to its second event; the first one of a segmenter says that images are loaded."""
    out = project.folder / "begun"
    out.mkdir(exist_ok=True)
    return list(islice(stage.run(project.store(), project.config, out), 2))


def held_out_file(project: Run, subset: str, place: int = 0) -> Path:
    return image_path(
        (project.folder / "data"), project.store().data.dataset.image(getattr(project.store().split, subset)[place])
    )


def rotated(image: Pixels) -> Pixels:
    height, width = image.shape[:2]
    affine = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 2, 1)
    return cv2.warpAffine(image, affine, (width, height)).astype(np.uint8)


COPIES: dict[str, Callable[[Pixels], Pixels]] = {
    "re-saved": lambda image: image,
    "mirrored": lambda image: image[:, ::-1],
    "turned": lambda image: np.rot90(image),
    "cropped": lambda image: image[2:-2, 3:-3],
    "rotated": rotated,
    "brighter": lambda image: np.clip(image * 1.08, 0, 255).round().astype(np.uint8),
}


@pytest.mark.parametrize("subset", ["val", "test"])
@pytest.mark.parametrize("name", COPIES)
def test_copies_of_held_out_images_are_refused(
    tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path, subset: str, name: str
) -> None:
    project = open_tiny(*tiny_run[:2])
    file = held_out_file(project, subset)
    copy = tmp_path / "mine.bmp"
    Image.fromarray(np.ascontiguousarray(COPIES[name](load_rgb(file)))).save(copy)
    with pytest.raises(ImageError, match="is an image of validation or test, or a copy of one") as caught:
        require_not_held_out(project.store(), copy)
    assert project.store().data.dataset.image(getattr(project.store().split, subset)[0]).file_name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_byte_more_makes_no_other_image(tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path) -> None:
    project = open_tiny(*tiny_run[:2])
    file = held_out_file(project, "test")
    longer = tmp_path / f"longer{file.suffix}"
    longer.write_bytes(file.read_bytes() + b"\0")
    for path in (file, longer):
        with pytest.raises(ImageError, match="is an image of validation or test"):
            require_not_held_out(project.store(), path)


def test_images_of_train_and_pool_and_new_ones_pass(tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path) -> None:
    project = open_tiny(*tiny_run[:2])
    for subset in ("train", "pool"):
        for place in range(4):
            require_not_held_out(project.store(), held_out_file(project, subset, place))
    save_png(tmp_path / "new.png", np.random.default_rng(3).integers(0, 255, (70, 95, 3)).astype(np.uint8))
    require_not_held_out(project.store(), tmp_path / "new.png")
    with pytest.raises(ImageError, match="no such image file"):
        require_not_held_out(project.store(), tmp_path / "none.png")


def without_manifests(tiny_run: TinyRun, open_tiny: Opened, folder: Path) -> Run:
    """A copy of the run whose stages say nothing of their files, so that what is edited meets the firewall alone."""
    shutil.copytree(tiny_run[0] / "run", folder / "run")
    for manifest in (folder / "run").rglob("stage.json"):
        manifest.unlink()
    return open_tiny(folder, tiny_run[1])


def test_a_hand_edited_split_is_refused(tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path) -> None:
    project = without_manifests(tiny_run, open_tiny, tmp_path)
    path = project.folder / "split" / "split.json"
    content = json.loads(path.read_text())
    stolen = content["test"][:2]
    for edited, found in (
        (content | {"train": content["train"] + stolen}, "train and test share image ids"),
        (
            content | {"train": content["train"] + stolen, "test": content["test"][2:]},
            "its content was changed after it was written",
        ),
        (content | {"train": [*content["train"], 9999], "digest": None}, r"image ids \[9999\] are not in the data set"),
    ):
        path.write_text(json.dumps(edited))
        with pytest.raises(InputError, match=found) as caught:
            begin(Segment("real", 0), project)
        assert "\n" not in str(caught.value)
    path.write_text(json.dumps(content))
    dataset = project.folder / "data" / "dataset.json"
    edited = json.loads(dataset.read_text())
    next(image for image in edited["images"] if image["instances"])["instances"] = []
    dataset.write_text(json.dumps(edited))
    with pytest.raises(InputError, match="the data set was changed after the split was made"):
        _ = project.store().split


def test_a_tile_of_a_test_image_that_says_train_is_refused(
    tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = without_manifests(tiny_run, open_tiny, tmp_path)
    whole, test_id = project.store().tiles.tileset, project.store().split.test[0]
    for subset in ("train", "pool"):
        place = next(
            i for i, tile in enumerate(whole.tiles) if tile.subset == subset and (subset == "pool" or tile.instances)
        )
        tiles = [
            tile.model_copy(update={"image_id": test_id}) if i == place else tile for i, tile in enumerate(whole.tiles)
        ]
        whole.model_copy(update={"tiles": tuple(tiles)}).save(project.folder / "tiles" / "tileset.json")
        if subset == "train":
            with pytest.raises(FirewallError, match=rf"image ids \[{test_id}\] are not in train or pool"):
                begin(Folds(), project)
    whole.save(project.folder / "tiles" / "tileset.json")


def test_a_segmenter_trains_on_no_image_of_test_whatever_it_is_handed(
    tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = without_manifests(tiny_run, open_tiny, tmp_path)
    store, test_id = project.store(), project.store().split.test[0]
    real, free = real_images(store, sizing_of(store, input_px=64, scale=None), seed=0, stage="segment")
    seen = {image_id for image in (*real, *free) for image_id in image.image_ids}
    assert seen <= {*store.split.train, *store.split.pool}
    assert seen & set(store.split.train)
    forged = [replace(image, image_ids=(test_id,)) for image in real[:1]]
    monkeypatch.setattr(segment_module, "real_images", lambda *_, **__: ([*forged, *real], free))
    with pytest.raises(FirewallError, match=rf"segment-real-seed0, image {forged[0].id}: image ids \[{test_id}\]"):
        begin(Segment("real", 0), project)


@pytest.mark.parametrize("what", ["tile", "mask"])
def test_a_draft_of_what_is_not_in_train_is_refused(
    tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path, what: str
) -> None:
    project = without_manifests(tiny_run, open_tiny, tmp_path)
    plan = project.store().plan
    val_tile = project.store().tiles.tileset.of("val")[0].id
    update: dict[str, Any] = (
        {"tile_id": val_tile}
        if what == "tile"
        else {
            "mask_sources": (MaskOrigin(bank_id=f"{val_tile}-m00", perturbation_seed=1), *plan.jobs[0].mask_sources[1:])
        }
    )
    jobs = (plan.jobs[0].model_copy(update=update), *plan.jobs[1:])
    plan.model_copy(update={"jobs": jobs}).save(project.folder / "plan" / "plan.json")
    with pytest.raises(StageError, match=rf"draft {plan.jobs[0].id}: its {what} .* is neither of train nor of pool"):
        begin(Export(), project)


def test_a_segmenter_that_saw_test_or_does_not_say_is_not_judged(
    tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path
) -> None:
    project = without_manifests(tiny_run, open_tiny, tmp_path)
    split = project.store().split
    path = project.folder / layout.segmenter_folder("real", 0) / "log.json"
    log = json.loads(path.read_text())
    assert set(log["image_ids"]) <= {*split.train, *split.pool}
    assert set(log["image_ids"]) & set(split.train)
    drafts = json.loads((project.folder / layout.segmenter_folder("synthetic", 0) / "log.json").read_text())
    assert set(drafts["image_ids"]) <= {*split.train, *split.pool}
    path.write_text(json.dumps(log | {"image_ids": [*log["image_ids"], split.test[0]]}))
    with pytest.raises(FirewallError, match="are not in train or pool"):
        for _ in Evaluate().run(project.store(), project.config, tmp_path / "out"):
            pass
    del log["image_ids"]
    path.write_text(json.dumps(log))
    with pytest.raises(StageError, match="its log does not say which images it was trained on"):
        for _ in Evaluate().run(project.store(), project.config, tmp_path / "out"):
            pass


def test_a_pool_that_shows_a_labelled_image_is_left_out_and_told(
    tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run[0] / "source", tmp_path / "source")
    labelled = sorted(
        image_path(tiny_run[0] / "run" / "data", r)
        for r in open_tiny(*tiny_run[:2]).store().data.dataset.images
        if r.instances
    )
    clean = tmp_path / "clean"
    for number, file in enumerate(labelled[:6]):
        save_png(clean / f"good{number}.png", np.ascontiguousarray(load_rgb(file)[1:-1, ::-1]))
    project = open_tiny(tmp_path, tiny_run[1], f"data.defect_free={clean}")
    ended = [event for event in run_all(project, only=["import", "split"]) if hasattr(event, "summary")]
    names = {project.store().data.dataset.image(i).file_name for i in project.store().split.pool}
    assert names
    assert not any("good" in name for name in names)
    assert "defect-free images are copies of images with defects and were left out of the pool" in ended[-1].summary
