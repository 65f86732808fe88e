from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectory.artifacts.plan import MaskBank
from defectory.errors import AnnotationError
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.masks.sources import ExpertMask
from defectory.runs.stage import Run
from defectory.stages.parts import mask_supply
from defectory.tools.masks import preview_masks, review_masks

TinyRun = tuple[Path, dict[str, Any], list[Any]]


def bank_from_train(project: Run) -> MaskBank:
    return mask_supply.bank_from_train(project.store(), project.config)


def expert_masks(project: Run, bank: MaskBank) -> tuple[tuple[ExpertMask, ...], MaskBank]:
    return mask_supply.expert_masks(project.store(), project.config, bank)


def with_expert(tiny_run: TinyRun, open_tiny: Callable[..., Run], expert: Path) -> Run:
    folder, settings, _ = tiny_run
    return open_tiny(
        folder, settings | {"masks": {"min_area_px": 2, "expert": str(expert), "sources": {"bank": 0, "expert": 1}}}
    )


def coco_of(project: Run, source: Path, out: Path, image_ids: set[int]) -> Path:
    """A COCO file of some images of the source, beside copies of them."""
    names = {Path(record.file_name).name for record in project.store().data.dataset.images if record.id in image_ids}
    whole = json.loads((source / "annotations.json").read_text())
    kept = [image for image in whole["images"] if Path(image["file_name"]).name in names]
    ids = {image["id"] for image in kept}
    for image in kept:
        (out / image["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(source.rglob(Path(image["file_name"]).name)), out / image["file_name"])
    path = out / "expert.json"
    path.write_text(
        json.dumps(whole | {"images": kept, "annotations": [a for a in whole["annotations"] if a["image_id"] in ids]})
    )
    return path


def test_masks_of_train_images_are_taken_and_those_of_validation_and_test_refused(
    tiny_run: TinyRun, open_tiny: Callable[..., Run], tmp_path: Path
) -> None:
    source = tiny_run[0] / "source"
    project = with_expert(tiny_run, open_tiny, tmp_path)
    split = project.store().split
    path = coco_of(project, source, tmp_path / "train", set(split.train))
    supplied, _ = expert_masks(with_expert(tiny_run, open_tiny, path), bank_from_train(project))
    assert len(supplied) > 4
    for subset in (split.val, split.test):
        folder = tmp_path / f"subset-{subset[0]}"
        path = coco_of(project, source, folder, {subset[0], *split.train})
        renamed = json.loads(path.read_text())
        for image in renamed["images"]:  # under another name it is still the same image
            (folder / image["file_name"]).rename(folder / f"other-{image['id']}.png")
            image["file_name"] = f"other-{image['id']}.png"
        path.write_text(json.dumps(renamed))
        with pytest.raises(AnnotationError, match="masks come from train alone"):
            expert_masks(with_expert(tiny_run, open_tiny, path), bank_from_train(project))


@pytest.mark.parametrize("altered", ["re-saved", "mirrored", "cropped"])
def test_masks_of_copies_of_test_images_are_refused(
    tiny_run: TinyRun, open_tiny: Callable[..., Run], tmp_path: Path, altered: str
) -> None:
    project = with_expert(tiny_run, open_tiny, tmp_path)
    path = coco_of(project, tiny_run[0] / "source", tmp_path, {project.store().split.test[0]})
    content = json.loads(path.read_text())
    (image,) = content["images"]
    pixels = load_rgb(tmp_path / image["file_name"])
    pixels = {"re-saved": pixels, "mirrored": pixels[:, ::-1], "cropped": pixels[2:-2, 2:-2]}[altered]
    Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "new.bmp")
    image |= {"file_name": "new.bmp", "height": pixels.shape[0], "width": pixels.shape[1]}
    mask = [30, 30, 40, 30, 40, 40, 30, 40]
    content["annotations"] = [
        content["annotations"][0] | {"segmentation": [mask], "bbox": [30, 30, 10, 10], "area": 100}
    ]
    path.write_text(json.dumps(content))
    with pytest.raises(
        AnnotationError,
        match=r"new.bmp is an image of validation or test, or a copy of one \(.*leave it out: masks come from train",
    ):
        expert_masks(with_expert(tiny_run, open_tiny, path), bank_from_train(project))


@pytest.mark.parametrize("suffix", [".png", ".PNG"])
def test_a_png_named_as_a_test_image_is_refused(
    tiny_run: TinyRun, open_tiny: Callable[..., Run], tmp_path: Path, suffix: str
) -> None:
    project = with_expert(tiny_run, open_tiny, tmp_path)
    stem = Path(project.store().data.dataset.image(project.store().split.test[0]).file_name).stem
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 5:20] = 255
    save_png(tmp_path / project.store().data.dataset.categories[0].name / f"{stem}{suffix}", mask)
    with pytest.raises(AnnotationError, match="masks come from train alone"):
        expert_masks(project, bank_from_train(project))


def test_a_review_of_a_run_is_read_back_and_a_preview_shows_where_masks_come_from(
    tiny_run: TinyRun, open_tiny: Callable[..., Run], tmp_path: Path
) -> None:
    project = with_expert(tiny_run, open_tiny, tmp_path / "masks")
    bank = bank_from_train(project)
    assert review_masks(project, tmp_path / "masks") == len(bank.entries)
    assert (tmp_path / "masks" / "sheet.png").is_file()
    name = project.store().data.dataset.categories[bank.entries[0].category_id - 1].name
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 5:20] = 255
    save_png(tmp_path / "masks" / name / "drawn-by-hand.png", mask)
    supplied, same = expert_masks(project, bank)
    assert same == bank
    assert [m.id for m in supplied] == ["drawn-by-hand"]
    sheet, counts = preview_masks(project, per_class=3, seed=0)
    assert counts == {name: {"expert": 3}}
    assert sheet.ndim == 3
