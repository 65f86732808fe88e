from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.plan import Decision, Decisions, Fidelity, Job, MaskOrigin, Plan
from defectory.files import digest_file
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.rle import encode
from defectory.synthesis.drafts import draft_paths
from defectory.synthesis.export import export_synthetic

SIZE_HW, VALID_HW = (32, 48), (30, 40)


def mask(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    result = np.zeros(SIZE_HW, bool)
    result[y0:y1, x0:x1] = True
    return result


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, Plan]:
    ring = mask(4, 4, 20, 20) & ~mask(8, 8, 14, 14)
    labels = (
        ((1, ring), (2, mask(24, 5, 34, 12))),
        ((1, mask(35, 10, 46, 20)),),
        ((2, mask(2, 2, 9, 9)), (1, mask(42, 2, 47, 9))),
    )
    jobs = tuple(
        Job(
            id=f"{n:06d}",
            tile_id=f"p{n}",
            augmentation_seed=n or None,
            prompt=f"prompt {n}",
            prompt_without="",
            seed=40 + n,
            instances=tuple(Instance(category_id=c, rle=encode(m)) for c, m in label),
            mask_sources=tuple(MaskOrigin(bank_id=f"b{n}", perturbation_seed=k) for k in range(len(label))),
        )
        for n, label in enumerate(labels)
    )
    categories = Category(id=1, name="crack"), Category(id=2, name="blowhole")
    plan = Plan(concept_digest="cc", control_digest="kk", driver_config_digest="d", categories=categories, jobs=jobs)
    for n, job in enumerate(jobs):
        image = np.random.default_rng(n).integers(0, 255, (*SIZE_HW, 3)).astype(np.uint8)
        save_png(draft_paths(tmp_path / "drafts", job.id)[0], image)
    fidelity = Fidelity(iou=0.75, per_instance_iou=(0.75,), outside_fraction=0.1, f1_2px=(None,))
    statuses: tuple[Any, ...] = ("accepted", "rejected", "accepted")
    decisions = Decisions(
        plan_digest=plan.digest(),
        threshold=0.35,
        decisions=tuple(
            Decision(job_id=j.id, status=s, reason="", fidelity=fidelity) for j, s in zip(jobs, statuses, strict=True)
        ),
    )
    written = export_synthetic(
        plan,
        decisions,
        drafts=tmp_path / "drafts",
        out=tmp_path / "synthetic",
        base_digest="bb",
        pool_image_of=lambda job: {"image_id": 7, "file_name": f"{job.tile_id}.jpg"},
        image_ids_of=lambda job: (7, 9) if job.id else (),
        valid_hw_of=lambda _: VALID_HW,
        scale_of=lambda _: 1.0,
    )
    assert (written.num_images, written.num_without_outline) == (2, 0)
    return tmp_path / "synthetic", plan


@pytest.mark.parametrize("name", ["annotations.json", "annotations_polygons.json"])
def test_pycocotools_loads_the_set_and_masks_match_their_images(exported: tuple[Path, Plan], name: str) -> None:
    from pycocotools.coco import COCO

    folder, _ = exported
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coco = COCO(str(folder / name))
    files = [image["file_name"] for image in coco.imgs.values()]
    assert sorted(files) == sorted(path.name for path in (folder / "images").iterdir()) == ["000000.png", "000002.png"]
    assert {c["name"] for c in coco.cats.values()} == {"crack", "blowhole"}
    by_file = {i["file_name"]: coco.loadAnns(coco.getAnnIds(imgIds=[i["id"]])) for i in coco.imgs.values()}
    assert [len(by_file[f]) for f in sorted(files)] == [2, 1], "an instance wholly in the padding is left out"
    for found in by_file.values():
        for annotation in found:
            assert coco.annToMask(annotation).shape == VALID_HW


def test_run_lengths_keep_holes_and_padding_is_cut_off(exported: tuple[Path, Plan], tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    folder, _ = exported
    coco = COCO(str(folder / "annotations.json"))
    image_id = next(i for i, about in coco.imgs.items() if about["file_name"] == "000000.png")
    ring = next(a for a in coco.loadAnns(coco.getAnnIds(imgIds=[image_id])) if a["category_id"] == 1)
    expected = (mask(4, 4, 20, 20) & ~mask(8, 8, 14, 14))[: VALID_HW[0], : VALID_HW[1]]
    assert np.array_equal(coco.annToMask(ring).astype(bool), expected)
    assert ring["area"] == expected.sum()
    assert ring["bbox"] == [4, 4, 16, 16]
    draft = load_rgb(tmp_path / "drafts" / "images" / "000000.png")
    assert np.array_equal(load_rgb(folder / "images" / "000000.png"), draft[: VALID_HW[0], : VALID_HW[1]])


def test_polygons_are_filled_to_the_masks_of_the_run_lengths(exported: tuple[Path, Plan]) -> None:
    from pycocotools.coco import COCO

    folder, _ = exported
    coco, polygons = COCO(str(folder / "annotations.json")), COCO(str(folder / "annotations_polygons.json"))
    assert all(isinstance(annotation["segmentation"], list) for annotation in polygons.anns.values())
    for annotation_id, annotation in coco.anns.items():
        assert np.array_equal(coco.annToMask(annotation), polygons.annToMask(polygons.anns[annotation_id])), (
            "holes are kept"
        )


def test_every_image_has_its_provenance(exported: tuple[Path, Plan]) -> None:
    folder, plan = exported
    records = [json.loads(line) for line in (folder / "provenance.jsonl").read_text().splitlines()]
    assert [r["image"] for r in records] == ["000000.png", "000002.png"]
    for record, job in zip(records, (plan.jobs[0], plan.jobs[2]), strict=True):
        assert record["sha256"] == digest_file(folder / "images" / record["image"])
        assert record["pool"] == {"image_id": 7, "file_name": f"{job.tile_id}.jpg"}
        assert (record["tile"], record["augmentation_seed"]) == (job.tile_id, job.augmentation_seed)
        assert (record["prompt"], record["seed"]) == (job.prompt, job.seed)
        assert record["masks"] == [source.model_dump() for source in job.mask_sources]
        assert (record["base_digest"], record["concept_digest"], record["control_digest"]) == ("bb", "cc", "kk")
        assert record["fidelity"] == 0.75
