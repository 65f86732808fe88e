"""Stage export: writes the accepted drafts as a COCO data set with provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from defectory.artifacts.plan import Decisions, Job, Plan
from defectory.config.project import ProjectConfig
from defectory.errors import StageError
from defectory.events import Work
from defectory.images.frames import load_frame
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import DataFolder, RunStore
from defectory.stages.parts.pool import PoolTiles, pool_tiles
from defectory.synthesis.export import Frame, export_synthetic


class Export(Stage):
    """Writes the synthetic set that segmenters train on and users receive."""

    VERSION = 3
    name, folder = "export", layout.SYNTHETIC

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read images, pool tiles, plan, drafts and decisions."""
        return ("import", "split", "tiles", "learn-concept", "plan", "synthesize", "curate")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the mode of synthesis: tiles, or whole frames."""
        return {"synthesis.mode": config.synthesis.mode, "augmentation": config.augmentation.model_dump(mode="json")}

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Write images, labels as RLE and as polygons, and the provenance of each image."""
        yield from ()
        data, pool = inputs.data, pool_tiles(inputs, config)

        def pool_image_of(job: Job) -> dict[str, object]:
            record = data.dataset.image(pool.tile(job).image_id)
            return {"image_id": record.id, "file_name": record.file_name, "sha256": record.sha256}

        image_ids = image_ids_of_jobs(inputs)
        written = export_synthetic(
            inputs.plan,
            inputs.decisions,
            drafts=inputs.drafts.folder,
            out=out,
            base_digest=inputs.concept.concept.base_digest,
            pool_image_of=pool_image_of,
            image_ids_of=lambda job: image_ids[job.id],
            valid_hw_of=lambda job: pool.tile(job).valid_hw,
            scale_of=lambda job: pool.tile(job).scale,
            frame_of=(lambda job: frame_of(data, pool, job)) if config.synthesis.mode == "insert" else None,
        )
        kept = written.num_without_outline
        told = f"; {kept} instances have no outline and stay RLE" if kept else ""
        return f"{written.num_images} images in {self.folder}/{layout.ANNOTATIONS}{told}"


def image_ids_of_jobs(inputs: RunStore) -> dict[str, tuple[int, ...]]:
    """Return, by job id, the ids of the images that provide the background and the masks.

    Raises:
        StageError: a job names a tile or a mask that is not from train or pool.
    """
    tileset = inputs.tiles.tileset
    background = {tile.id: tile.image_id for subset in ("train", "pool") for tile in tileset.of(subset)}
    bank = {entry.id: entry.image_id for entry in inputs.bank.entries}
    found: dict[str, tuple[int, ...]] = {}
    for job in inputs.plan.jobs:
        masks = [source.bank_id for source in job.mask_sources if source.kind == "bank"]
        named = [("tile", job.tile_id, background), *(("mask", name, bank) for name in masks)]
        for what, name, known in named:
            if name not in known:
                raise StageError(
                    f"draft {job.id}: its {what} {name!r} is neither of train nor of pool; run the stage `plan` again"
                )
        found[job.id] = tuple(sorted({known[str(name)] for _, name, known in named}))
    return found


def accepted_jobs(plan: Plan, decisions: Decisions) -> Sequence[Job]:
    """Return the jobs with accepted drafts, with tightened labels if there are any."""
    accepted = {d.job_id: d for d in decisions.decisions if d.status == "accepted"}
    return [
        job if (tight := accepted[job.id].tightened) is None else job.model_copy(update={"instances": tight})
        for job in plan.jobs
        if job.id in accepted
    ]


def frame_of(data: DataFolder, pool: PoolTiles, job: Job) -> Frame:
    """Return the frame that a job's pool tile was cut from."""
    tile = pool.tile(job)
    record = data.dataset.image(tile.image_id)
    # kinds that cannot be written back unchanged, such as palettes, are written as RGB
    image = load_frame(data.path(record), data.dataset.value_range, convert=True)
    left, top = (round(offset) for offset in tile.offset_xy)
    height, width = (
        min(round(side / tile.scale), whole - at)
        for side, whole, at in zip(tile.valid_hw, image.pixels.shape, (top, left), strict=False)
    )
    return Frame(
        image=image,
        tile=pool.image(tile, None)[: tile.valid_hw[0], : tile.valid_hw[1]],
        corner_yx=(top, left),
        size_hw=(height, width),
    )
