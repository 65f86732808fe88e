"""Writes accepted drafts as a COCO data set with provenance."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.artifacts.plan import Decision, Decisions, Job, Plan
from defectory.files import canonical_json, digest_file, write_text
from defectory.folders.swap import atomic_folder
from defectory.formats.coco import save_coco
from defectory.geometry import resize_mask
from defectory.images.frames import FrameImage
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.rle import decode, encode
from defectory.synthesis.drafts import draft_paths
from defectory.synthesis.insert import paste


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """The image a tile was cut from, and the tile's place in it.

    Attributes:
        image: at its own resolution and depth.
        tile: the tile's image part, RGB uint8 [h,w,3].
        corner_yx: of the window that the tile shows, frame pixels.
        size_hw: of that window.
    """

    image: FrameImage
    tile: NDArray[np.uint8]
    corner_yx: tuple[int, int]
    size_hw: tuple[int, int]

    @property
    def pixels(self) -> NDArray[Any]:
        """Return the frame's own pixel values."""
        return self.image.pixels

    @property
    def suffix(self) -> str:
        """Return the file suffix of the frame's format."""
        return self.image.suffix

    def with_defect(self, drawn: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the frame with the changes of a tile, RGB uint8 [h,w,3]; other pixels keep their values."""
        return paste(
            self.pixels,
            before=self.tile,
            after=drawn,
            corner_yx=self.corner_yx,
            size_hw=self.size_hw,
            value_range=self.image.value_range,
        )

    def save(self, path: Path, pixels: NDArray[Any]) -> None:
        """Write a picture with the frame's depth, range and file format."""
        self.image.save(path, pixels)

    def placed(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Place a mask of the tile's image part in the frame, bool [H,W]."""
        result = np.zeros(self.pixels.shape[:2], bool)
        y, x = self.corner_yx
        result[y : y + self.size_hw[0], x : x + self.size_hw[1]] = resize_mask(mask, self.size_hw)
        return result


@dataclass(frozen=True, kw_only=True)
class SyntheticSet:
    """Number of written images, and of instances that no outline can represent, which stay RLE among the polygons."""

    num_images: int
    num_without_outline: int


def export_synthetic(
    plan: Plan,
    decisions: Decisions,
    *,
    drafts: Path,
    out: Path,
    base_digest: str,
    pool_image_of: Callable[[Job], dict[str, object]],
    image_ids_of: Callable[[Job], tuple[int, ...]],
    valid_hw_of: Callable[[Job], tuple[int, int]],
    scale_of: Callable[[Job], float],
    frame_of: Callable[[Job], Frame] | None = None,
) -> SyntheticSet:
    """Write the synthetic set: `images/`, `annotations.json` (RLE), `annotations_polygons.json`, `provenance.jsonl`.

    Args:
        plan: what was drawn.
        decisions: what was accepted.
        drafts: folder of the drafts.
        out: folder, replaced as a whole.
        base_digest: of the base the concept came from.
        pool_image_of: returns a job's pool image record for the provenance.
        image_ids_of: returns the ids of the images that a job's background and masks come from.
        valid_hw_of: image part of the tile; padding is cut off on export.
        scale_of: returns the pixels of a job's tile per pixel of its pool image.
        frame_of: returns the frame that a job's tile was cut from, which the defect and labels are transferred to. None
            exports tiles.

    Returns:
        Numbers of what was written.
    """
    accepted = {d.job_id: d for d in decisions.decisions if d.status == "accepted"}
    images: list[tuple[int, str, tuple[int, int], dict[str, object]]] = []
    instances: list[tuple[int, Instance]] = []
    records: list[str] = []
    with atomic_folder(out, kind="export") as folder:
        (folder / "images").mkdir()
        for job in plan.jobs:
            if job.id not in accepted:
                continue
            number, decision = len(images) + 1, accepted[job.id]
            picture = _export_picture(
                job,
                decision,
                draft=draft_paths(drafts, job.id)[0],
                images=folder / "images",
                valid_hw=valid_hw_of(job),
                frame=None if frame_of is None else frame_of(job),
            )
            images.append((number, picture.name, picture.size_hw, {}))
            instances += [(number, instance) for instance in picture.instances]
            origin = {
                "image": picture.name,
                "sha256": digest_file(folder / "images" / picture.name),
                "image_ids": list(image_ids_of(job)),
                "pool": pool_image_of(job),
                "scale": scale_of(job) if picture.window is None else 1.0,
                "window": picture.window,
            }
            records.append(canonical_json(origin | _provenance(job, decision, plan, base_digest=base_digest)))
        for file_name, polygons in (("annotations.json", False), ("annotations_polygons.json", True)):
            save_coco(folder / file_name, plan.categories, images, instances, polygons=polygons)
        write_text(folder / "provenance.jsonl", "".join(record + "\n" for record in records))
        outlined = json.loads((folder / "annotations_polygons.json").read_bytes())["annotations"]
    num_without_outline = sum(isinstance(annotation["segmentation"], dict) for annotation in outlined)
    return SyntheticSet(num_images=len(images), num_without_outline=num_without_outline)


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """One written image: its file name, size, instances, and its window in the frame it was pasted into."""

    name: str
    size_hw: tuple[int, int]
    instances: list[Instance]
    window: dict[str, object] | None


def _export_picture(
    job: Job, decision: Decision, *, draft: Path, images: Path, valid_hw: tuple[int, int], frame: Frame | None
) -> _Picture:
    """Write one accepted draft as a tile, or pasted into its frame."""
    height, width = valid_hw
    shown = np.ascontiguousarray(load_rgb(draft)[:height, :width])
    labels = [(i.category_id, decode(i.rle)[:height, :width]) for i in decision.tightened or job.instances]
    picture: NDArray[Any] = shown
    window: dict[str, object] | None = None
    if frame is None:
        name = f"{job.id}.png"
        save_png(images / name, picture)
    else:
        picture, name = frame.with_defect(shown), f"{job.id}{frame.suffix}"
        labels = [(category_id, frame.placed(mask)) for category_id, mask in labels]
        frame.save(images / name, picture)
        window = {"corner_yx": frame.corner_yx, "size_hw": frame.size_hw, "tile_hw": (height, width)}
    return _Picture(
        name=name,
        size_hw=(picture.shape[0], picture.shape[1]),
        instances=[Instance(category_id=category_id, rle=encode(mask)) for category_id, mask in labels if mask.any()],
        window=window,
    )


def _provenance(job: Job, decision: Decision, plan: Plan, *, base_digest: str) -> dict[str, object]:
    return {
        "tile": job.tile_id,
        "augmentation_seed": job.augmentation_seed,
        "masks": [source.model_dump() for source in job.mask_sources],
        "prompt": job.prompt,
        "seed": job.seed,
        "fidelity": decision.fidelity.iou,
        "checks": {check.name: round(check.value, 4) for check in decision.checks},
        "base_digest": base_digest,
        "concept_digest": plan.concept_digest,
        "control_digest": plan.control_digest,
    }
