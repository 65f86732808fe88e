"""Stage learn-masks: trains a small diffusion model of the training masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defectory.config.project import ProjectConfig
from defectory.events import Work
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.stages.parts.images_used import record_images
from defectory.stages.parts.mask_supply import bank_from_train, expert_masks, mask_model_of
from defectory.stages.parts.progress import with_note

LEARNED_FROM = frozenset(
    {
        "diffusion",
        "expert",
        "min_area_px",
        "rotate_degrees",
        "scale_range",
        "shear",
        "flip",
        "elastic_px",
        "thickness_share",
    }
)
"""Settings of section `masks` that decide what the model learns."""


class LearnMasks(Stage):
    """Trains a model that draws new masks, if `masks` gives it a share."""

    VERSION = 3
    name, folder = "learn-masks", layout.MASK_MODEL
    is_resumable = True

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read images, split and tiles."""
        return ("import", "split", "tiles")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the settings of `LEARNED_FROM`, an expert's files, the mode of synthesis and the seed."""
        return {
            "masks": config.masks.model_dump(mode="json", include=set(LEARNED_FROM)),
            "files of masks.expert": sources.listing(config.masks.expert),
            # insertion learns from whole masks alone
            "synthesis": config.synthesis.model_dump(mode="json", include={"mode", "insert_margin_px"}),
            "seed": config.seed,
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Train on the bank, an expert's corrections included."""
        from defectory.engine.devices import device_of

        # called only to set the number of threads: so small a model stays on the CPU
        device_of(config.device, threads=config.threads)
        _, bank = expert_masks(inputs, config, bank_from_train(inputs, config))
        digest, note = yield from with_note(mask_model_of(bank, config).learn(out))
        record_images(out, training=(entry.image_id for entry in bank.entries))
        return f"digest {digest[:12]}, {note}"
