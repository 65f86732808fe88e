from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.doubt import DraftDoubt
from defectory.artifacts.plan import Check, Decision, Decisions, Fidelity, Job, MaskOrigin, Plan
from defectory.files import digest_file
from defectory.formats.coco import load_coco
from defectory.geometry import distance_to
from defectory.images.frames import FrameImage, load_frame, load_native
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.images.valuerange import ValueRange
from defectory.rle import decode, encode
from defectory.stages.parts.synthetic_set import load_synthetic
from defectory.synthesis.drafts import draft_paths
from defectory.synthesis.export import Frame, FrameSource, export_synthetic
from defectory.synthesis.frames import FrameSizes

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
        draft_of=lambda job: draft_paths(tmp_path / "drafts", job.id)[0],
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
        (draft,) = record["drafts"]
        assert (record["form"], record["image_ids"], draft["job"]) == ("tile", [7, 9], job.id)
        assert (draft["tile"], draft["augmentation_seed"]) == (job.tile_id, job.augmentation_seed)
        assert (draft["prompt"], draft["seed"]) == (job.prompt, job.seed)
        assert draft["masks"] == [source.model_dump() for source in job.mask_sources]
        assert (draft["fidelity"], draft["window"]) == (0.75, None)
        assert (record["base_digest"], record["concept_digest"], record["control_digest"]) == ("bb", "cc", "kk")


BOXES = ((4, 4, 12, 10), (26, 6, 34, 12), (6, 18, 15, 26))
"""Of labels in tiles of 32x48 pixels; the third job lies where the first does, on a square 40 px farther."""
OFFSETS = ((3, 2), (3, 2), (43, 30), (3, 2))


def several(
    tmp_path: Path,
    *,
    depth: int,
    reverse: bool = False,
    accept: tuple[int, ...] = (0, 1, 2, 3),
    doubts: dict[str, DraftDoubt] | None = None,
) -> tuple[Path, Plan, np.ndarray]:
    """Export four drafts on one frame: two clear of each other, one on a square elsewhere, one on top of the first."""
    jobs = [
        Job(
            id=f"{n:06d}",
            tile_id="p",
            offset_xy=offset,
            augmentation_seed=None,
            prompt=f"prompt {n}",
            prompt_without="",
            seed=40 + n,
            instances=(Instance(category_id=1 + n % 2, rle=encode(mask(*box))),),
            mask_sources=(MaskOrigin(bank_id=f"b{n}", perturbation_seed=n),),
        )
        for n, (box, offset) in enumerate(zip((*BOXES, BOXES[0]), OFFSETS, strict=True))
    ]
    categories = Category(id=1, name="crack"), Category(id=2, name="blowhole")
    plan = Plan(
        concept_digest="cc", control_digest="kk", driver_config_digest="d", categories=categories, jobs=tuple(jobs)
    )
    rng = np.random.default_rng(0)
    levels = rng.integers(60, 180, (90, 120)).astype(np.uint8)
    pixels = levels if depth == 8 else levels.astype(np.uint16) * 257 + rng.integers(-120, 120, (90, 120)).astype("u2")
    save_png(tmp_path / "pool.png", pixels)

    def tile_of(job: Job) -> np.ndarray:
        x, y = (int(at) for at in job.offset_xy or (0, 0))
        return np.repeat(levels[y : y + 32, x : x + 48, None], 3, axis=2)

    for job in jobs:
        label = np.any([decode(i.rle) for i in job.instances], axis=0)
        drawn = tile_of(job).copy()
        drawn[distance_to(label) < 3] = 20
        save_png(draft_paths(tmp_path / "drafts", job.id)[0], drawn)
    fidelity = Fidelity(iou=0.75, per_instance_iou=(0.75,), outside_fraction=0.1, f1_2px=(None,))
    checks = (Check(name="blur", value=0.5, limit=1.0),)
    decisions = Decisions(
        plan_digest=plan.digest(),
        threshold=0.35,
        decisions=tuple(
            Decision(
                job_id=job.id,
                status="accepted" if n in accept else "rejected",
                reason="",
                fidelity=fidelity,
                checks=checks,
            )
            for n, job in enumerate(jobs)
        ),
    )
    loaded: list[int] = []

    def load(image_id: int) -> FrameImage:
        loaded.append(image_id)
        return load_frame(tmp_path / "pool.png", ValueRange(low=0, high=65535) if depth == 16 else None)

    source = FrameSource(
        image_id_of=lambda _: 7,
        load=load,
        place=lambda job, image: Frame(
            image=image,
            tile=tile_of(job),
            corner_yx=(int((job.offset_xy or (0, 0))[1]), int((job.offset_xy or (0, 0))[0])),
            size_hw=SIZE_HW,
        ),
        margin_px=4,
        sizes=FrameSizes([3], drafts_per_frame="auto", seed=0),
    )
    if reverse:
        plan = plan.model_copy(update={"jobs": plan.jobs[::-1]})
    export_synthetic(
        plan,
        decisions,
        draft_of=lambda job: draft_paths(tmp_path / "drafts", job.id)[0],
        out=tmp_path / "synthetic",
        base_digest="bb",
        pool_image_of=lambda _: {"image_id": 7, "file_name": "pool.png"},
        image_ids_of=lambda job: (7, 10 + job.seed),
        valid_hw_of=lambda _: SIZE_HW,
        scale_of=lambda _: 1.0,
        frames=source,
        doubts=doubts,
    )
    assert loaded == [7], "a large image is loaded once, however many drafts it gets"
    return tmp_path / "synthetic", plan, pixels


@pytest.mark.parametrize("depth", [8, 16])
def test_drafts_that_are_clear_of_each_other_share_a_frame_with_exact_labels(tmp_path: Path, depth: int) -> None:
    from pycocotools.coco import COCO

    folder, plan, pixels = several(tmp_path, depth=depth)
    coco = COCO(str(folder / "annotations.json"))
    by_name = {about["file_name"]: coco.loadAnns(coco.getAnnIds(imgIds=[i])) for i, about in coco.imgs.items()}
    assert {name: [a["draft"] for a in found] for name, found in by_name.items()} == {
        "000000.png": ["000000", "000001", "000002"],
        "000003.png": ["000003"],
    }, "the fourth draft changes what the first one does"
    for name, found in by_name.items():
        written = load_native(folder / "images" / name)
        assert (written.dtype, written.shape) == (pixels.dtype, pixels.shape)
        reached = np.zeros(pixels.shape, bool)
        for annotation in found:
            job = next(job for job in plan.jobs if job.id == annotation["draft"])
            x, y = (int(at) for at in job.offset_xy or (0, 0))
            expected = np.zeros(pixels.shape, bool)
            expected[y : y + 32, x : x + 48] = decode(job.instances[0].rle)
            assert np.array_equal(coco.annToMask(annotation).astype(bool), expected)
            assert (written[expected] != pixels[expected]).all()
            reached |= distance_to(expected) < 3
        assert np.array_equal(written[~reached], pixels[~reached])


def test_every_draft_of_a_frame_has_its_provenance_and_readers_take_the_set(tmp_path: Path) -> None:
    folder, plan, _ = several(tmp_path, depth=8)
    first, second = (json.loads(line) for line in (folder / "provenance.jsonl").read_text().splitlines())
    assert [draft["job"] for draft in first["drafts"]] == ["000000", "000001", "000002"]
    assert (first["form"], first["scale"], first["image_ids"]) == ("frame", 1.0, [7, 50, 51, 52])
    assert second["image_ids"] == [7, 53]
    for draft in (*first["drafts"], *second["drafts"]):
        job = next(job for job in plan.jobs if job.id == draft["job"])
        assert draft["masks"] == [source.model_dump() for source in job.mask_sources]
        assert (draft["prompt"], draft["seed"], draft["fidelity"]) == (job.prompt, job.seed, 0.75)
        assert draft["checks"] == {"blur": 0.5}
        x, y = job.offset_xy or (0, 0)
        assert draft["window"] == {"corner_yx": [y, x], "size_hw": list(SIZE_HW), "tile_hw": list(SIZE_HW)}
    loaded = load_synthetic(folder)
    assert [(of.is_frame, len(of.instances), of.fidelity, of.checks) for of in loaded] == [
        (True, 3, 0.75, {"blur": 0.5}),
        (True, 1, 0.75, {"blur": 0.5}),
    ]
    raw = load_coco(folder / "annotations.json", image_root=folder / "images")
    assert [len(image.instances) for image in raw.images] == [3, 1]


def test_frames_do_not_depend_on_the_order_of_jobs_and_another_export_is_equal(tmp_path: Path) -> None:
    folders = [several(tmp_path / name, depth=8, reverse=name == "b")[0] for name in ("a", "b", "c")]
    for path in sorted(folders[0].rglob("*")):
        if path.is_file() and path.name != ".defectory.json":
            for other in folders[1:]:
                assert path.read_bytes() == (other / path.relative_to(folders[0])).read_bytes()


def test_a_rejected_draft_leaves_its_place_to_a_later_one(tmp_path: Path) -> None:
    folder, _, _ = several(tmp_path, depth=8, accept=(1, 2, 3))
    (line,) = (folder / "provenance.jsonl").read_text().splitlines()
    assert [draft["job"] for draft in json.loads(line)["drafts"]] == ["000001", "000002", "000003"]


def test_what_is_doubtful_lies_beside_the_annotations_in_the_coordinates_of_the_frame(tmp_path: Path) -> None:
    doubted = mask(2, 3, 9, 8)
    doubts = {
        f"{n:06d}": DraftDoubt(
            job_id=f"{n:06d}", ignore=encode(doubted if n == 1 else np.zeros(SIZE_HW, bool)), is_doubtful=(n == 2,)
        )
        for n in range(4)
    }
    plain, plan, pixels = several(tmp_path / "plain", depth=8)
    folder, _, _ = several(tmp_path / "doubted", depth=8, doubts=doubts)
    assert not (plain / "ignore.json").exists()
    for name in ("annotations.json", "annotations_polygons.json", "provenance.jsonl"):
        assert (plain / name).read_bytes() == (folder / name).read_bytes(), "labels stay as they are"
    (row,) = json.loads((folder / "ignore.json").read_bytes())["images"]
    annotations = json.loads((folder / "annotations.json").read_bytes())["annotations"]
    assert [a["draft"] for a in annotations if a["id"] in row["doubtful_annotation_ids"]] == ["000002"]
    assert (row["image_id"], row["file_name"]) == (1, "000000.png")
    first, second = load_synthetic(folder)
    assert first.ignore is not None
    x, y = (int(at) for at in plan.jobs[1].offset_xy or (0, 0))
    expected = np.zeros(pixels.shape, bool)
    expected[y : y + SIZE_HW[0], x : x + SIZE_HW[1]] = doubted
    assert np.array_equal(decode(first.ignore), expected)
    assert (first.is_doubtful, second.ignore, second.is_doubtful) == ((False, False, True), None, (False,))
