"""Writes accepted drafts as a COCO data set with provenance."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.artifacts.doubt import DraftDoubt
from defectory.artifacts.plan import Decision, Decisions, Job, Plan
from defectory.files import canonical_json, digest_file, write_json, write_text
from defectory.folders.swap import atomic_folder
from defectory.formats.coco import save_coco
from defectory.geometry import resize_mask
from defectory.images.frames import FrameImage
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.rle import Rle, decode, encode, encode_crop, union
from defectory.synthesis.frames import Box, FrameSizes, change_boxes, share_frames
from defectory.synthesis.insert import paste_into


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
        result = self.pixels.copy()
        self.add_to(result, drawn)
        return result

    def add_to(self, pixels: NDArray[Any], drawn: NDArray[np.uint8]) -> None:
        """Add the changes of a tile, RGB uint8 [h,w,3], to pixels of the frame's kind, in place."""
        paste_into(
            pixels,
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

    def label(self, mask: NDArray[np.bool_]) -> Rle:
        """Return a mask of the tile's image part as a label of the frame."""
        height, width = self.pixels.shape[:2]
        y, x = self.corner_yx
        return encode_crop(resize_mask(mask, self.size_hw), (x, y), (height, width))


@dataclass(frozen=True, kw_only=True)
class FrameSource:
    """How drafts get into whole images.

    Attributes:
        image_id_of: returns the id of a job's pool image.
        load: loads the pool image with this id, as it is.
        place: returns the frame of a job in its loaded pool image.
        margin_px: of insertion, tile pixels.
        sizes: how much each delivered image holds; None stands for one draft.
    """

    image_id_of: Callable[[Job], int]
    load: Callable[[int], FrameImage]
    place: Callable[[Job, FrameImage], Frame]
    margin_px: int
    sizes: FrameSizes | None


@dataclass(frozen=True, kw_only=True)
class SyntheticSet:
    """What was written.

    Attributes:
        num_images: of the set.
        num_drafts: in these images.
        num_without_outline: instances that no outline can represent, which stay RLE among the polygons.
    """

    num_images: int
    num_drafts: int
    num_without_outline: int


def export_synthetic(
    plan: Plan,
    decisions: Decisions,
    *,
    draft_of: Callable[[Job], Path],
    out: Path,
    base_digest: str,
    also_control_digests: Sequence[str] = (),
    pool_image_of: Callable[[Job], dict[str, object]],
    image_ids_of: Callable[[Job], tuple[int, ...]],
    valid_hw_of: Callable[[Job], tuple[int, int]],
    scale_of: Callable[[Job], float],
    frames: FrameSource | None = None,
    doubts: Mapping[str, DraftDoubt] | None = None,
) -> SyntheticSet:
    """Write the synthetic set: `images/`, `annotations.json` (RLE), `annotations_polygons.json`, `provenance.jsonl`.

    With doubts it also writes `ignore.json`. Every accepted draft is in one image, which has the name of its first
    draft. The changes of drafts that share an image do not overlap.

    Args:
        plan: what was drawn.
        decisions: what was accepted.
        draft_of: returns the image file of a draft.
        out: folder, replaced as a whole.
        base_digest: of the base the concept came from.
        also_control_digests: of networks that acted beside the plan's control network.
        pool_image_of: returns a job's pool image record for the provenance.
        image_ids_of: returns the ids of the images that a job's background and masks come from.
        valid_hw_of: image part of the tile; padding is cut off on export.
        scale_of: returns the pixels of a job's tile per pixel of its pool image.
        frames: how defects and labels are transferred to whole images. None exports tiles.
        doubts: what training is to ignore, by job id; None writes no `ignore.json`.

    Returns:
        Numbers of what was written.
    """
    accepted = {d.job_id: d for d in decisions.decisions if d.status == "accepted"}
    jobs = [job for job in plan.jobs if job.id in accepted]
    with atomic_folder(out, kind="export") as folder:
        (folder / "images").mkdir()
        writer = _Writer(
            decisions=accepted,
            doubts=doubts or {},
            draft_of=draft_of,
            images=folder / "images",
            valid_hw_of=valid_hw_of,
            scale_of=scale_of,
        )
        pictures = [writer.tile(job) for job in jobs] if frames is None else list(writer.frames(jobs, frames))
        pictures.sort(key=lambda picture: picture.name)
        images = [(number, picture.name, picture.size_hw, {}) for number, picture in enumerate(pictures, start=1)]
        labels = [(number, label) for number, picture in enumerate(pictures, start=1) for label in picture.labels]
        instances = [(number, label.instance) for number, label in labels]
        extras = [{"draft": label.job_id} for _, label in labels]
        for file_name, polygons in (("annotations.json", False), ("annotations_polygons.json", True)):
            save_coco(folder / file_name, plan.categories, images, instances, polygons=polygons, extras=extras)
        if doubts is not None:
            write_json(folder / "ignore.json", _ignored(pictures))
        made_by = {
            "base_digest": base_digest,
            "concept_digest": plan.concept_digest,
            "control_digest": plan.control_digest,
            **({"also_control_digests": list(also_control_digests)} if also_control_digests else {}),
        }
        records = [
            canonical_json(
                {
                    "image": picture.name,
                    "sha256": digest_file(folder / "images" / picture.name),
                    "form": "tile" if frames is None else "frame",
                    "image_ids": sorted({i for job in picture.jobs for i in image_ids_of(job)}),
                    "pool": pool_image_of(picture.jobs[0]),
                    "scale": picture.scale,
                    "drafts": [_provenance(job, accepted[job.id], picture.windows.get(job.id)) for job in picture.jobs],
                    **made_by,
                }
            )
            for picture in pictures
        ]
        write_text(folder / "provenance.jsonl", "".join(record + "\n" for record in records))
        num_without_outline = _num_without_outline(folder / "annotations_polygons.json")
    return SyntheticSet(num_images=len(images), num_drafts=len(jobs), num_without_outline=num_without_outline)


def _num_without_outline(file: Path) -> int:
    annotations = json.loads(file.read_bytes())["annotations"]
    return sum(isinstance(annotation["segmentation"], dict) for annotation in annotations)


def _ignored(pictures: Sequence[_Picture]) -> dict[str, object]:
    """Return the content of `ignore.json`; images and annotations have the ids of `annotations.json`."""
    rows: list[dict[str, object]] = []
    first = 1
    for number, picture in enumerate(pictures, start=1):
        doubtful = [first + place for place, label in enumerate(picture.labels) if label.is_doubtful]
        first += len(picture.labels)
        ignore = picture.ignore
        if ignore is not None or doubtful:
            rows.append(
                {
                    "image_id": number,
                    "file_name": picture.name,
                    "ignore": None if ignore is None else {"size": list(ignore.size_hw), "counts": ignore.counts},
                    "doubtful_annotation_ids": doubtful,
                }
            )
    return {"images": rows}


@dataclass(frozen=True, kw_only=True)
class _Label:
    """One written instance, and whether it is doubtful."""

    job_id: str
    instance: Instance
    is_doubtful: bool


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """One written image: its file name, size and scale, its jobs, their labels, windows by job id, ignored pixels."""

    name: str
    size_hw: tuple[int, int]
    scale: float
    jobs: Sequence[Job]
    labels: Sequence[_Label]
    windows: Mapping[str, dict[str, object]]
    ignore: Rle | None


@dataclass(frozen=True, kw_only=True)
class _Writer:
    """Writes the images of a synthetic set."""

    decisions: Mapping[str, Decision]
    doubts: Mapping[str, DraftDoubt]
    draft_of: Callable[[Job], Path]
    images: Path
    valid_hw_of: Callable[[Job], tuple[int, int]]
    scale_of: Callable[[Job], float]

    def tile(self, job: Job) -> _Picture:
        """Write one accepted draft as a tile."""
        shown, name = self._drawn(job), f"{job.id}.png"
        save_png(self.images / name, shown)
        size_hw, ignored = (shown.shape[0], shown.shape[1]), self._ignored(job)
        return _Picture(
            name=name,
            size_hw=size_hw,
            scale=self.scale_of(job),
            jobs=(job,),
            labels=self._placed(job, encode),
            windows={},
            ignore=None if ignored is None else encode(ignored),
        )

    def frames(self, jobs: Sequence[Job], source: FrameSource) -> Iterator[_Picture]:
        """Write accepted drafts in their pool images, each of which is loaded once."""
        of_image: dict[int, list[Job]] = {}
        for job in jobs:
            of_image.setdefault(source.image_id_of(job), []).append(job)
        for image_id, own in sorted(of_image.items()):
            image = source.load(image_id)
            places = {job.id: source.place(job, image) for job in own}
            yield from (self._frame(group, places) for group in self._groups(image_id, own, places, source))

    def _groups(
        self, image_id: int, jobs: Sequence[Job], places: Mapping[str, Frame], source: FrameSource
    ) -> list[list[Job]]:
        if source.sizes is None:
            return [[job] for job in jobs]

        def boxes_of(job: Job) -> list[Box]:
            frame = places[job.id]
            return change_boxes(
                # a tightened label is smaller than what was drawn
                job.instances,
                margin_px=source.margin_px,
                corner_yx=frame.corner_yx,
                valid_hw=self.valid_hw_of(job),
                size_hw=frame.size_hw,
            )

        return share_frames(jobs, boxes_of, image_id=image_id, sizes=source.sizes)

    def _frame(self, jobs: Sequence[Job], places: Mapping[str, Frame]) -> _Picture:
        """Write one image with the changes of several drafts."""
        first = places[jobs[0].id]
        pixels, name = first.pixels.copy(), f"{jobs[0].id}{first.suffix}"
        labels: list[_Label] = []
        ignored: list[Rle] = []
        windows: dict[str, dict[str, object]] = {}
        for job in jobs:
            frame = places[job.id]
            frame.add_to(pixels, self._drawn(job))
            labels += self._placed(job, frame.label)
            doubt = self._ignored(job)
            if doubt is not None:
                ignored.append(frame.label(doubt))
            windows[job.id] = {"corner_yx": frame.corner_yx, "size_hw": frame.size_hw, "tile_hw": self.valid_hw_of(job)}
        first.save(self.images / name, pixels)
        size_hw = pixels.shape[0], pixels.shape[1]
        return _Picture(
            name=name,
            size_hw=size_hw,
            scale=1.0,
            jobs=jobs,
            labels=labels,
            windows=windows,
            ignore=union(ignored) if ignored else None,
        )

    def _drawn(self, job: Job) -> NDArray[np.uint8]:
        height, width = self.valid_hw_of(job)
        return np.ascontiguousarray(load_rgb(self.draft_of(job))[:height, :width])

    def _placed(self, job: Job, encoded: Callable[[NDArray[np.bool_]], Rle]) -> list[_Label]:
        """Return the labels of a job that its image shows, encoded for the image."""
        (height, width), tightened = self.valid_hw_of(job), self.decisions[job.id].tightened
        instances, doubt = tightened or job.instances, self.doubts.get(job.id)
        flags = (False,) * len(instances) if doubt is None else doubt.is_doubtful
        return [
            _Label(job_id=job.id, instance=Instance(category_id=of.category_id, rle=encoded(mask)), is_doubtful=flag)
            for of, flag in zip(instances, flags, strict=True)
            if (mask := decode(of.rle)[:height, :width]).any()
        ]

    def _ignored(self, job: Job) -> NDArray[np.bool_] | None:
        """Return the ignored pixels of a job's image part, bool [h,w]; None if there are none."""
        doubt = self.doubts.get(job.id)
        mask = None if doubt is None else decode(doubt.ignore)
        return mask if mask is not None and mask.any() else None


def _provenance(job: Job, decision: Decision, window: dict[str, object] | None) -> dict[str, object]:
    return {
        "job": job.id,
        "tile": job.tile_id,
        "augmentation_seed": job.augmentation_seed,
        "window": window,
        "masks": [source.model_dump() for source in job.mask_sources],
        "prompt": job.prompt,
        "seed": job.seed,
        "fidelity": decision.fidelity.iou,
        "checks": {check.name: round(check.value, 4) for check in decision.checks},
    }
