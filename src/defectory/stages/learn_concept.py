"""Stage learn-concept: phase 1, teaches the base what the user's parts look like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defectory.concept.config import CHECK_SETTINGS
from defectory.config.project import ProjectConfig
from defectory.events import Work
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.stages.parts.base_digest import base_digest
from defectory.stages.parts.model_cards import write_concept_card
from defectory.stages.parts.phase_tiles import phase_tiles, record_phase_images
from defectory.stages.parts.progress import with_note

VARIANTS_VERSION = 3
"""Increment this when the same settings make different augmented training tiles."""


class LearnConcept(Stage):
    """Adapts the base to the user's parts."""

    VERSION = 100 + VARIANTS_VERSION
    name, folder = "learn-concept", layout.CONCEPT
    is_resumable = reads_base = True

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read tiles and split."""
        return ("import", "split", "tiles")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the sections concept, prompts and augmentation, the base and the seed."""
        return {
            "concept": config.concept.model_dump(mode="json", exclude=set(CHECK_SETTINGS)),
            "prompts": config.prompts.model_dump(mode="json"),
            "augmentation": config.augmentation.model_dump(mode="json"),
            "base": base_digest(config.base),
            "seed": config.seed,
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Train, and write the adapted base."""
        from defectory.concept.learn import learn_concept
        from defectory.engine.backbones.known import resolve_base
        from defectory.engine.devices import device_of

        tiles, held_out = phase_tiles(inputs, None)
        concept, note = yield from with_note(
            learn_concept(
                tiles,
                base=resolve_base(config.base),
                config=config.concept,
                prompts=config.prompts,
                flip=config.augmentation.flip,
                seed=config.seed,
                out=out,
                device=device_of(config.device, threads=config.threads),
                held_out=held_out,
                cache=inputs.cache,
            )
        )
        # class images are drawn from the prompt alone
        record_phase_images(inputs, out, prior=())
        write_concept_card(inputs, config, concept, out=out)
        return f"digest {concept.weights_digest[:12]}, {note}"
