"""Stage finalize: the finished pipeline, which plain diffusers loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defectory.config.project import ProjectConfig
from defectory.events import Work
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore


class Finalize(Stage):
    """Writes base and control network as one diffusers pipeline."""

    VERSION = 1
    name, folder = "finalize", layout.PIPELINE

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read both phases."""
        return ("learn-concept", "learn-condition")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on nothing else."""
        return {}

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Write the pipeline."""
        from defectory.condition.control import finalize_pipeline

        yield from ()
        digest = finalize_pipeline(inputs.concept.folder, inputs.control.folder, out)
        return f"loads with StableDiffusionControlNetPipeline.from_pretrained, digest {digest[:12]}"
