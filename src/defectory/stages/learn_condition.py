"""Stage learn-condition: phase 2, trains a control network to follow drivers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from defectory.config.project import ProjectConfig
from defectory.drivers.extract import driver_maker
from defectory.events import Work
from defectory.files import digest_json
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.stages.learn_concept import VARIANTS_VERSION
from defectory.stages.parts.drawings import drawings_of
from defectory.stages.parts.phase_tiles import phase_tiles, record_phase_images
from defectory.stages.parts.progress import with_note
from defectory.stages.parts.sampling import load_backbone

DRIVERS_VERSION = 3
"""Increment this when the same settings make different drivers."""


def driver_digest(config: ProjectConfig, num_classes: int) -> str:
    """Compute the digest of the driver settings and of the number of classes, which decides the colours."""
    drivers = config.drivers.model_dump(mode="json")
    return digest_json({"rules": DRIVERS_VERSION, "drivers": drivers, "classes": num_classes})


class LearnCondition(Stage):
    """Trains a control network on the frozen, adapted base."""

    VERSION = 1000 + 100 * DRIVERS_VERSION + VARIANTS_VERSION
    name, folder = "learn-condition", layout.CONTROL
    is_resumable = trains_together = True

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read tiles, split and the concept."""
        return ("import", "split", "tiles", "learn-concept")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the sections condition, drivers and augmentation, defect noun, drawings and the seed."""
        return {
            "condition": config.condition.model_dump(mode="json"),
            "prompts.defect_noun": config.prompts.defect_noun,
            "augmentation": config.augmentation.model_dump(mode="json"),
            "drivers": config.drivers.model_dump(mode="json"),
            "files of drivers.drawings": sources.listing(config.drivers.drawings),
            "seed": config.seed,
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Train, and write the control network."""
        from defectory.condition.learn import learn_condition
        from defectory.engine.devices import device_of
        from defectory.engine.training.team import this_team

        team = this_team()
        tiles, held_out = phase_tiles(inputs, drawings_of(inputs, config.drivers))
        num_classes = len(inputs.tiles.tileset.categories)
        control, note = yield from with_note(
            learn_condition(
                tiles,
                concept=inputs.concept.folder,
                config=config.condition,
                make_driver=driver_maker(num_classes, config.drivers),
                defect_noun=config.prompts.defect_noun,
                flip=config.augmentation.flip,
                seed=config.seed,
                out=out,
                device=device_of(config.device, threads=config.threads),
                driver_digest=driver_digest(config, num_classes),
                held_out=held_out,
                cache=inputs.cache,
                team=team,
                load_backbone=partial(load_backbone, base=config.base),
            )
        )
        if team.is_main:
            record_phase_images(inputs, out)
        return f"digest {control.weights_digest[:12]}, {note}"
