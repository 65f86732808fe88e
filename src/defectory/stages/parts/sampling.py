"""Loads the networks of a run for drawing drafts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from defectory.condition.further import require_combinable
from defectory.engine.config import MixedPrecision
from defectory.runs.stored import ConceptFolder, ControlFolder, DistilledFolder

if TYPE_CHECKING:
    import torch

    from defectory.engine.backbones.backbone import Backbone
    from defectory.engine.sampling.models import SamplingModels
    from defectory.stages.parts.also_controls import AlsoNetwork


def load_backbone(concept: Path, device: torch.device | str = "cpu", *, base: str) -> Backbone:
    """Load the backbone that knows a concept.

    Args:
        concept: folder of phase 1's result.
        device: to load it to.
        base: that the concept was learned on; read where the concept is an adapter.
    """
    from defectory.concept.load import load_concept
    from defectory.engine.backbones.known import resolve_base

    return load_concept(concept, device, find_base=lambda: resolve_base(base))


def load_student(
    student: DistilledFolder, concept: Path, device: torch.device | str = "cpu", *, base: str, is_trained: bool = True
) -> Backbone:
    """Load the backbone that knows a concept with the LoRA of a student merged into it, and the student's scheduler.

    Args:
        student: the outcome of distillation.
        concept: folder of phase 1's result.
        device: to load it to.
        base: that the concept was learned on; read where the concept is an adapter.
        is_trained: False leaves the LoRA out, which is the student before its training.

    Raises:
        WeightsError: a file is damaged, or does not fit the base.
    """
    from defectory.engine.backbones.lora import DIFFUSERS_NAME, merge_lora
    from defectory.engine.sampling.schedulers import make_student_scheduler

    backbone, learned = load_backbone(concept, device, base=base), student.distilled
    if is_trained:
        merge_lora({"unet": backbone.denoiser}, student.lora / DIFFUSERS_NAME)
    scheduler = make_student_scheduler(
        backbone, learned.method, teacher_inference_steps=learned.teacher_inference_steps
    )
    return backbone.with_scheduler(scheduler)


def sampling_models(
    concept: ConceptFolder,
    control: ControlFolder,
    device: str,
    *,
    base: str,
    mixed_precision: MixedPrecision,
    also: Sequence[AlsoNetwork] = (),
    student: DistilledFolder | None = None,
    is_trained: bool = True,
) -> SamplingModels:
    """Load the adapted base and the condition networks for sampling.

    Args:
        concept: phase 1's result.
        control: phase 2's result.
        device: to load them to.
        base: that the concept was learned on; read where the concept is an adapter.
        mixed_precision: of all sampling with them.
        also: networks that act beside the run's own.
        student: to draw with in few steps; None draws with the base itself.
        is_trained: False draws with the student as it was before its training.

    Raises:
        ConfigError: a network cannot act together with others.
        WeightsError: weights cannot be used, or were made for another base.
    """
    from defectory.condition.load import load_network
    from defectory.engine.precision import uses_bf16
    from defectory.engine.sampling.models import for_sampling
    from defectory.stages.parts.also_controls import load_also

    if student is None:
        backbone = load_backbone(concept.folder, device, base=base)
    else:
        backbone = load_student(student, concept.folder, device, base=base, is_trained=is_trained)
    if also:
        require_combinable(control.control.network, where="condition.network")
    network = load_network(control.folder, backbone)
    models = for_sampling(backbone, network, further=load_also(also, backbone))
    return models.in_bf16() if uses_bf16(mixed_precision, device) else models
