"""Stage export: writes the accepted drafts as a COCO data set with provenance."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from defectory.artifacts.plan import Decisions, Job, Plan
from defectory.config.project import ProjectConfig
from defectory.errors import StageError
from defectory.events import Work
from defectory.images.frames import FrameImage, load_frame
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.stages.parts.also_controls import digests_drawn_with
from defectory.stages.parts.drawing_mode import delivers_frames, synthesis_of, uses_squares
from defectory.stages.parts.frame_sizes import frame_sizes
from defectory.stages.parts.further_rounds import further_rounds
from defectory.stages.parts.pool import PoolTiles, pool_tiles
from defectory.synthesis.export import Frame, FrameSource, SyntheticSet, export_synthetic


class Export(Stage):
    """Writes the synthetic set that segmenters train on and users receive."""

    VERSION = 4
    name, folder = "export", layout.SYNTHETIC

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read images, pool tiles, plan, drafts and decisions."""
        return ("import", "split", "tiles", "learn-concept", "plan", "synthesize", "curate", *further_rounds(config))

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on what is delivered: tiles, or whole images with several drafts each."""
        delivered = {"mode", "insert_margin_px", "drafts_per_frame"}
        return {
            "synthesis": config.synthesis.model_dump(mode="json", include=delivered),
            "masks.min_area_px": config.masks.min_area_px,
            "augmentation": config.augmentation.model_dump(mode="json"),
            "seed": config.seed,
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Write images, labels as RLE and as polygons, the provenance of each image, and what training ignores."""
        yield from ()
        written, doubts = write_set(inputs, config, out), inputs.doubts
        kept = written.num_without_outline
        told = f"; {kept} instances have no outline and stay RLE" if kept else ""
        doubtful = f"; {layout.IGNORE_FILE}: {doubts.summary()}" if doubts is not None else ""
        drafts = f" with {written.num_drafts} drafts" if written.num_drafts > written.num_images else ""
        return f"{written.num_images} images{drafts} in {self.folder}/{layout.ANNOTATIONS}{told}{doubtful}"


def write_set(
    inputs: RunStore, config: ProjectConfig, out: Path, *, only: Collection[str] | None = None
) -> SyntheticSet:
    """Write the synthetic set of the accepted drafts that the stage may read.

    Args:
        inputs: of the stage.
        config: of the project.
        out: folder of the set, replaced as a whole.
        only: ids of the drafts to write, as far as they are accepted; None writes all.
    """
    data, pool = inputs.data, pool_tiles(inputs, config)

    def pool_image_of(job: Job) -> dict[str, object]:
        record = data.dataset.image(pool.tile(job).image_id)
        return {"image_id": record.id, "file_name": record.file_name, "sha256": record.sha256}

    image_ids, decisions, doubts, drafts = image_ids_of_jobs(inputs), inputs.decisions, inputs.doubts, inputs.drafts
    if only is not None:
        written = tuple(decision for decision in decisions.decisions if decision.job_id in only)
        decisions = decisions.model_copy(update={"decisions": written})
    return export_synthetic(
        inputs.plan,
        decisions,
        draft_of=lambda job: drafts.pair(job)[0],
        out=out,
        base_digest=inputs.concept.concept.base_digest,
        also_control_digests=digests_drawn_with(inputs.path(layout.DRAFTS)),
        pool_image_of=pool_image_of,
        image_ids_of=lambda job: image_ids[job.id],
        valid_hw_of=lambda job: pool.tile(job).valid_hw,
        scale_of=lambda job: pool.tile(job).scale,
        frames=frame_source(inputs, config, pool),
        doubts=None if doubts is None else doubts.by_job(),
    )


def frame_source(inputs: RunStore, config: ProjectConfig, pool: PoolTiles) -> FrameSource | None:
    """Return how drafts get into whole images; None if the delivered images are tiles.

    Raises:
        FirewallError: a pool image is not in train or pool.
        StageError: a pool image shows defects.
    """
    data, synthesis, tiling = inputs.data, synthesis_of(inputs, config), inputs.tiles.tileset.tiling
    if not delivers_frames(synthesis, inputs.split):
        return None
    image_ids = sorted({pool.tile(job).image_id for job in inputs.plan.jobs})
    inputs.split.require_training_ids(image_ids, stage="export")
    for image_id in image_ids:
        record = data.dataset.image(image_id)
        if record.instances:
            raise StageError(f"export: pool image {record.file_name} shows defects; run the stage `split` again")

    def load(image_id: int) -> FrameImage:
        # kinds that cannot be written back unchanged, such as palettes, are written as RGB
        return load_frame(data.path(data.dataset.image(image_id)), data.dataset.value_range, convert=True)

    return FrameSource(
        image_id_of=lambda job: pool.tile(job).image_id,
        load=load,
        place=lambda job, image: frame_of(pool, job, image),
        margin_px=synthesis.insert_margin_px,
        # a draft of a whole image holds all defects of an image already
        sizes=frame_sizes(inputs, config) if uses_squares(synthesis, tiling) else None,
    )


def image_ids_of_jobs(inputs: RunStore, jobs: Sequence[Job] | None = None) -> dict[str, tuple[int, ...]]:
    """Return, by job id, the ids of the images that provide the background and the masks.

    Args:
        inputs: of the stage.
        jobs: whose images are returned; None takes those of the plan.

    Raises:
        StageError: a job names a tile or a mask that is not from train or pool.
    """
    tileset = inputs.tiles.tileset
    background = {tile.id: tile.image_id for subset in ("train", "pool") for tile in tileset.of(subset)}
    bank = {entry.id: entry.image_id for entry in inputs.bank.entries}
    found: dict[str, tuple[int, ...]] = {}
    for job in inputs.plan.jobs if jobs is None else jobs:
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


def frame_of(pool: PoolTiles, job: Job, image: FrameImage) -> Frame:
    """Return the frame of a job in its pool image."""
    tile = pool.tile(job)
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
