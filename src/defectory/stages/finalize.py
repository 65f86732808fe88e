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
from defectory.stages.parts.also_controls import also_key, also_networks, load_also, told_beside
from defectory.stages.parts.model_cards import write_pipeline_card
from defectory.stages.parts.sampling import load_backbone, load_student
from defectory.stages.parts.student import kept_student, student_stage


class Finalize(Stage):
    """Writes base and control network, with the student if it is kept, as one diffusers pipeline, with its card."""

    VERSION = 2
    name, folder = "finalize", layout.PIPELINE

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read both phases, what their prompts say, and the student if there is one."""
        return ("tiles", "learn-concept", "learn-condition", *student_stage(config))

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the words that the card shows, and on the networks that act beside the run's own."""
        return {"prompts.defect_noun": config.prompts.defect_noun, **also_key(config, sources)}

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Write the pipeline; a network that plain diffusers cannot draw with leaves the folder empty."""
        from defectory.condition.finalize import finalize_pipeline

        yield from ()
        student, concept = kept_student(inputs, config), inputs.concept.folder
        if student is None:
            backbone = load_backbone(concept, base=config.base)
        else:
            backbone = load_student(student, concept, base=config.base)
        also = also_networks(inputs.sources, config)
        further = [of.network for of in load_also(also, backbone)]
        try:
            pipeline, digest = finalize_pipeline(backbone, inputs.control.folder, out, further=further)
        except PipelineError as error:
            return f"no pipeline: the {error.where} is {error.found}"
        network = inputs.control.control.network
        write_pipeline_card(
            inputs,
            config,
            network=network,
            opens_as=pipeline,
            digest=digest,
            num_inference_steps=None if student is None else student.distilled.num_inference_steps,
            out=out,
        )
        # a network that no pipeline takes brings a file of its own
        beside = "".join(f", {path.parent.name}/ steers it" for path in out.glob("*/*.py"))
        beside += told_beside(out, also)
        steps = "" if student is None else f", draws in {student.distilled.num_inference_steps} steps"
        return f"loads with {pipeline}.from_pretrained{beside}{steps}, digest {digest[:12]}"
