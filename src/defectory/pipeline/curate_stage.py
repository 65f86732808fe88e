"""Stages of curation and export: drafts are held against their labels and against real tiles of train and pool; what
passes leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from defectory.artifacts.dataset import Dataset, image_path
from defectory.artifacts.plan import Decisions, Job, Plan
from defectory.artifacts.weights import Concept
from defectory.curation.checks import MAX_POOL, MAX_TRAIN, Agreement, Checker, Encoder, RealTile
from defectory.curation.decide import FidelitySummary, Scored, decide, write_contact_sheet
from defectory.imageio import load_frame, load_rgb
from defectory.pipeline.folds_stage import FoldSegmenters, difficulty_of
from defectory.pipeline.generate_stages import backbone_of, plan_of
from defectory.pipeline.pool import PoolTiles
from defectory.pipeline.stage import Progress, Project
from defectory.pipeline.values import dataset_of, split_of, spread, tileset_of
from defectory.pipeline.verify import checked
from defectory.synthesis.export import Frame, export_synthetic

MAX_PRIOR_IMAGES = 64


def run_curation(project: Project) -> Iterator[Progress | str]:
    """Score, decide, show."""
    plan, drafts, config = plan_of(project), project.path("drafts"), project.config.curation
    valid_hw = {tile.id: tile.valid_hw for tile in tileset_of(project).of("pool")}

    def pair_of(job: Job) -> tuple[Any, Any]:
        return drafts / "images" / f"{job.id}.png", drafts / "without" / f"{job.id}.png"

    checker = checker_of(project) if config.enabled and config.checks else None
    for event in decide(
        plan, pair_of=pair_of, config=config, checker=checker, valid_hw_of=lambda job: valid_hw[job.tile_id]
    ):
        if isinstance(event, Scored):
            if event.done % 20 == 0 or event.done == event.total:
                yield Progress(stage="curate", done=event.done, total=event.total)
            continue
        decisions, summary = event
        decisions.save(project.path("curation", "decisions.json"))
        summary.save(project.path("curation", "fidelity.json"))
        write_contact_sheet(plan, decisions, pair_of=pair_of, out=project.path("curation", "contact_sheet.png"))
        told = (
            f"fidelity {summary.mean:.3f} (labels shuffled {summary.shuffled:.3f}), {summary.accepted_share:.0%} "
            "accepted"
        )
        yield told + (f"; likely cause: {summary.likely_cause}" if summary.likely_cause else "")


def checker_of(project: Project) -> Checker:
    """Learn what real tiles of train and pool are like.

    Raises:
        FirewallError: a tile of another part was offered.
    """
    tileset, dataset = tileset_of(project), dataset_of(project)
    tiles = [*spread(tileset.of("train"), MAX_TRAIN), *spread(tileset.of("pool"), MAX_POOL)]
    split_of(project).require_training_ids((tile.image_id for tile in tiles), stage="curate")
    real = [
        RealTile(
            name=tile.id,
            image=load_rgb(project.path("tiles", tile.file_name)),
            valid_hw=tile.valid_hw,
            image_id=tile.image_id,
            group=dataset.image(tile.image_id).group,
            is_defective=bool(tile.instances),
        )
        for tile in tiles
    ]
    config = project.config.curation
    if project.config.synthesis.mode == "insert":
        # what is kept of a tile makes drafts on it alike
        config = config.model_copy(update={"checks": tuple(name for name in config.checks if name != "duplicate")})
    agreement = None
    if "agreement" in config.checks:
        difficulty = difficulty_of(project)
        agreement = Agreement(
            overlap=FoldSegmenters(project).overlap,
            expected=difficulty.expected_overlap,
            limit=1.0 - difficulty.overlap_limit(config.agreement_quantile),
        )
    return Checker(
        real,
        prior_images(project),
        encoder=curation_encoder(),
        config=config,
        seed=project.config.seed,
        agreement=agreement,
    )


def curation_encoder() -> Encoder:
    """Give the embedded encoder as curation needs it: stages of stride 4 and 8 make the patches, each the mean of three
    by three.
    """
    import torch
    from torch.nn import functional

    from defectory.engine.features.encoder import EMBED_IMAGES, embed_images, load_encoder
    from defectory.engine.tensors import images_to_tensor

    encoder, _ = load_encoder()

    @torch.no_grad()
    def patches(images: Sequence[Any]) -> Any:
        parts: list[Any] = []
        for start in range(0, len(images), EMBED_IMAGES):
            _, fine, coarse, _ = encoder(images_to_tensor(list(images[start : start + EMBED_IMAGES])))
            both = torch.cat([functional.avg_pool2d(fine, 2), coarse], dim=1)
            parts.append(
                functional.avg_pool2d(both, 3, 1, 1, count_include_pad=False).permute(0, 2, 3, 1).float().numpy()
            )
        return np.concatenate(parts)

    return Encoder(embed=lambda images: embed_images(encoder, images), patches=patches)


def prior_images(project: Project) -> list[Any]:
    """Return the images that phase 1 drew for prior preservation, RGB uint8; none where it drew none."""
    import torch
    from safetensors.torch import load_file

    from defectory.concept.prior import CLASS_IMAGES
    from defectory.engine.tensors import tensor_to_images

    file = checked(project, "concept", CLASS_IMAGES)
    if not file.is_file():
        return []
    # phase 1 leaves the base's autoencoder as it was
    backbone = backbone_of(project, project.path("concept"))
    latents = load_file(file)["latents"][:MAX_PRIOR_IMAGES].float()
    with torch.no_grad():
        parts = [tensor_to_images(backbone.decode_latents(rows)) for rows in latents.split(8)]
    return [image for part in parts for image in part]


def fidelity_of(project: Project) -> FidelitySummary:
    """Read the fidelity summary."""
    return FidelitySummary.load(checked(project, "curation", "fidelity.json"))


def decisions_of(project: Project) -> Decisions:
    """Read the decisions."""
    return Decisions.load(checked(project, "curation", "decisions.json"))


def accepted_jobs(plan: Plan, decisions: Decisions) -> Sequence[Job]:
    """Give the jobs whose drafts were accepted, with tightened labels where there are such."""
    accepted = {d.job_id: d for d in decisions.decisions if d.status == "accepted"}
    return [
        job if (tight := accepted[job.id].tightened) is None else job.model_copy(update={"instances": tight})
        for job in plan.jobs
        if job.id in accepted
    ]


def run_export(project: Project) -> Iterator[Progress | str]:
    """Write the synthetic set."""
    dataset, pool = dataset_of(project), PoolTiles(project, tileset_of(project))

    def pool_image_of(job: Job) -> dict[str, object]:
        record = dataset.image(pool.tile(job).image_id)
        return {"image_id": record.id, "file_name": record.file_name, "sha256": record.sha256}

    written = export_synthetic(
        plan_of(project),
        decisions_of(project),
        drafts=project.path("drafts"),
        out=project.path("synthetic"),
        base_digest=Concept.load(project.path("concept", "concept.json")).base_digest,
        pool_image_of=pool_image_of,
        valid_hw_of=lambda job: pool.tile(job).valid_hw,
        frame_of=(lambda job: frame_of(project, dataset, pool, job))
        if project.config.synthesis.mode == "insert"
        else None,
    )
    kept = (
        f"; {written.num_without_outline} instances have no outline and stay RLE" if written.num_without_outline else ""
    )
    yield f"{written.num_images} images in synthetic/annotations.json{kept}"


def frame_of(project: Project, dataset: Dataset, pool: PoolTiles, job: Job) -> Frame:
    """Give the frame that a job's pool tile was cut from."""
    tile = pool.tile(job)
    # kinds that cannot be written again as they are, palettes for one, leave as RGB
    image = load_frame(
        image_path(project.path("data"), dataset.image(tile.image_id)), dataset.value_range, convert=True
    )
    corner_xy = tuple(round(offset) for offset in tile.offset_xy)
    size_hw = tuple(
        min(round(side / tile.scale), whole - at)
        for side, whole, at in zip(tile.valid_hw, image.pixels.shape, corner_xy[::-1], strict=False)
    )
    return Frame(
        image=image,
        tile=pool.image(tile, None)[: tile.valid_hw[0], : tile.valid_hw[1]],
        corner_yx=(corner_xy[1], corner_xy[0]),
        size_hw=(size_hw[0], size_hw[1]),
    )
