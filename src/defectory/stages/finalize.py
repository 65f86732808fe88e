"""Stage finalize: writes the finished pipeline for plain diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defectory.config.project import ProjectConfig
from defectory.errors import PipelineError
from defectory.events import Work
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.stages.parts.sampling import load_backbone, load_student
from defectory.stages.parts.student import kept_student, student_stage


class Finalize(Stage):
    """Writes base and control network, with the student if it is kept, as one diffusers pipeline."""

    VERSION = 1
    name, folder = "finalize", layout.PIPELINE

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read both phases, and the student if there is one."""
        return ("learn-concept", "learn-condition", *student_stage(config))

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on nothing else."""
        return {}

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Write the pipeline; a network that plain diffusers cannot draw with leaves the folder empty."""
        from defectory.condition.finalize import finalize_pipeline

        yield from ()
        student, concept = kept_student(inputs, config), inputs.concept.folder
        if student is None:
            backbone = load_backbone(concept, base=config.base)
        else:
            backbone = load_student(student, concept, base=config.base)
        try:
            pipeline, digest = finalize_pipeline(backbone, inputs.control.folder, out)
        except PipelineError as error:
            return f"no pipeline: the {error.where} is {error.found}"
        # a network that no pipeline takes brings a file of its own
        beside = "".join(f", {path.parent.name}/ steers it" for path in out.glob("*/*.py"))
        steps = "" if student is None else f", draws in {student.distilled.num_inference_steps} steps"
        return f"loads with {pipeline}.from_pretrained{beside}{steps}, digest {digest[:12]}"
