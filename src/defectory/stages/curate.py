"""Stage curate: compares drafts with their labels and with real tiles, and accepts or rejects them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from defectory.artifacts.plan import Job, Plan
from defectory.artifacts.tiles import Tile, spread
from defectory.config.project import ProjectConfig
from defectory.curation.checks import MAX_POOL, MAX_TRAIN, Agreement, Checker, Encoder, RealTile
from defectory.curation.config import DOUBT_SETTINGS
from defectory.curation.decide import Scored, decide, write_contact_sheet
from defectory.events import Progress, Work
from defectory.images.load import load_rgb
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.runs.stored import ConceptFolder, DraftFolder
from defectory.stages.folds import NUM_FOLDS, FoldSegmenters, tile_scale_of
from defectory.stages.parts.doubt import doubts_of
from defectory.stages.parts.drawing_mode import synthesis_of
from defectory.stages.parts.images_used import record_images
from defectory.stages.parts.sampling import load_backbone

MAX_PRIOR_IMAGES = 64
REPORT_EVERY = 20
"""Drafts between two progress events."""


class Curate(Stage):
    """Accepts or rejects each draft, with a reason."""

    VERSION = 7
    name, folder = "curate", layout.CURATION

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read plan, drafts and real tiles, and folds for the check `agreement` and the witness `segmenter`."""
        judged = "agreement" in config.curation.checks or "segmenter" in config.curation.ignore
        return ("import", "split", "tiles", "learn-concept", "plan", "synthesize", *(("folds",) if judged else ()))

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the curation section, the mode of synthesis and the seed."""
        unused = None if config.curation.ignore else set(DOUBT_SETTINGS)
        return {
            "curation": config.curation.model_dump(mode="json", exclude=unused),
            "synthesis.mode": config.synthesis.mode,
            "seed": config.seed,
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Score, decide, and write a contact sheet."""
        record_images(out, reference=reference_ids(inputs, config))
        return (yield from curate_drafts(inputs, config, inputs.plan, inputs.drafts, out))


def curate_drafts(
    inputs: RunStore,
    config: ProjectConfig,
    plan: Plan,
    drafts: DraftFolder,
    out: Path,
    *,
    earlier: Sequence[tuple[Job, Path]] = (),
) -> Work[str]:
    """Decide on the drafts of a round, write a contact sheet, and return one line for people.

    Args:
        inputs: of the stage.
        config: of the project.
        plan: of the round.
        drafts: of the round.
        out: folder of the files.
        earlier: drafts of all rounds before and their image files, which the check `duplicate` knows.
    """
    valid_hw = {tile.id: tile.valid_hw for tile in inputs.tiles.tileset.of("pool")}

    def valid_hw_of(job: Job) -> tuple[int, int]:
        return valid_hw[job.tile_id]

    checker = checker_of(inputs, config) if config.curation.checks else None
    if checker is not None and "duplicate" in config.curation.checks:
        for job, path in earlier:
            checker.remember(load_rgb(path), valid_hw_of(job))
    for event in decide(plan, pair_of=drafts.pair, config=config.curation, checker=checker, valid_hw_of=valid_hw_of):
        if isinstance(event, Scored):
            if event.done % REPORT_EVERY == 0 or event.done == event.total:
                yield Progress(done=event.done, total=event.total)
            continue
        decisions, summary = event
        decisions.save(out / layout.DECISIONS_FILE)
        summary.save(out / layout.FIDELITY_FILE)
        write_contact_sheet(plan, decisions, pair_of=drafts.pair, out=out / layout.CONTACT_SHEET)
        told = f"fidelity {summary.mean:.3f} (labels shuffled {summary.shuffled:.3f})"
        cause = f"; likely cause: {summary.likely_cause}" if summary.likely_cause else ""
        doubt = ""
        if config.curation.ignore:
            doubts = yield from doubts_of(inputs, config, decisions, plan=plan, drafts=drafts)
            doubts.save(out / layout.DOUBT_FILE)
            doubt = f"; {doubts.summary()}"
        return f"{told}, {summary.accepted_share:.0%} accepted{doubt}{cause}"
    return "no draft"


def reference_ids(inputs: RunStore, config: ProjectConfig) -> list[int]:
    """Return the ids of the images that the checks are fitted to."""
    return [tile.image_id for tile in _reference_tiles(inputs)] if config.curation.checks else []


def checker_of(inputs: RunStore, config: ProjectConfig) -> Checker:
    """Fit the checks to real tiles of train and pool.

    Raises:
        FirewallError: a tile comes from an image that is not in train or pool.
    """
    tiles, dataset, chosen = inputs.tiles, inputs.data.dataset, _reference_tiles(inputs)
    inputs.split.require_training_ids((tile.image_id for tile in chosen), stage="curate")
    real = [
        RealTile(
            name=tile.id,
            image=tiles.image(tile),
            valid_hw=tile.valid_hw,
            image_id=tile.image_id,
            group=dataset.image(tile.image_id).group,
            is_defective=bool(tile.instances),
        )
        for tile in chosen
    ]
    curation = config.curation
    if synthesis_of(inputs, config).mode == "insert":
        # the part of a tile that insertion keeps makes drafts on it alike
        curation = curation.model_copy(update={"checks": tuple(n for n in curation.checks if n != "duplicate")})
    agreement = None
    if "agreement" in curation.checks:
        from defectory.engine.devices import device_of

        difficulty, device = inputs.difficulty, device_of(config.device, threads=config.threads)
        agreement = Agreement(
            overlap=FoldSegmenters(
                [inputs.fold(number) for number in range(NUM_FOLDS)], device, tile_scale=tile_scale_of(tiles.tileset)
            ).overlap,
            expected=difficulty.expected_overlap,
            limit=1.0 - difficulty.overlap_limit(curation.agreement_quantile),
        )
    prior = prior_images(inputs.concept, base=config.base)
    return Checker(real, prior, encoder=curation_encoder(), config=curation, seed=config.seed, agreement=agreement)


def _reference_tiles(inputs: RunStore) -> list[Tile]:
    """Return the real tiles that the checks are fitted to."""
    tileset = inputs.tiles.tileset
    return [*spread(tileset.of("train"), MAX_TRAIN), *spread(tileset.of("pool"), MAX_POOL)]


def curation_encoder() -> Encoder:
    """Load the embedded encoder for curation.

    Patch features come from the stages of stride 4 and 8, averaged over 3x3 positions.
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
            pooled = functional.avg_pool2d(both, 3, 1, 1, count_include_pad=False)
            parts.append(pooled.permute(0, 2, 3, 1).float().numpy())
        return np.concatenate(parts)

    return Encoder(embed=lambda images: embed_images(encoder, images), patches=patches)


def prior_images(concept: ConceptFolder, *, base: str) -> list[Any]:
    """Load the images that phase 1 drew for prior preservation, RGB uint8; empty if it drew none."""
    import torch
    from safetensors.torch import load_file

    from defectory.concept.prior import CLASS_IMAGES
    from defectory.engine.tensors import tensor_to_images

    file = concept.folder / CLASS_IMAGES
    if not file.is_file():
        return []
    # phase 1 does not change the base's autoencoder
    backbone = load_backbone(concept.folder, base=base)
    latents = load_file(file)["latents"][:MAX_PRIOR_IMAGES].float()
    with torch.no_grad():
        parts = [tensor_to_images(backbone.decode_latents(rows)) for rows in latents.split(8)]
    return [image for part in parts for image in part]
