"""Writes the cards of the concept and of the finished pipeline: README, card and the base's licence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from defectory import __version__
from defectory.artifacts.certificate import ImagesUsed
from defectory.artifacts.model_card import ClassColour, ModelCard, Trained
from defectory.artifacts.weights import Concept
from defectory.config.project import ProjectConfig
from defectory.drivers.palette import colour_of
from defectory.files import write_text
from defectory.report.model_readme import model_readme
from defectory.runs import layout
from defectory.runs.store import RunStore
from defectory.stages.parts.prompts import prompt_of, tone_of

SPELLS_OUT_NOTHING = ("StableDiffusionAdapterPipeline",)
"""Pipelines of diffusers whose prompts must name every token of a new word."""


def write_concept_card(inputs: RunStore, config: ProjectConfig, concept: Concept, *, out: Path) -> None:
    """Write the card of a concept into its stage folder.

    Args:
        inputs: of the stage.
        config: of the run.
        concept: that was learned.
        out: stage folder.
    """
    from defectory.concept.methods import CONCEPT_METHODS

    trained, folder = _trained("concept", concept.method, out), CONCEPT_METHODS.get(concept.method).folder
    opens_as = _pipeline_of(config.base)
    _write(
        inputs, config, concept, "concept", out=out, stages=(out,), trained=(trained,), folder=folder, opens_as=opens_as
    )


def write_pipeline_card(
    inputs: RunStore,
    config: ProjectConfig,
    *,
    network: str,
    opens_as: str,
    digest: str,
    num_inference_steps: int | None,
    out: Path,
) -> None:
    """Write the card of a finished pipeline into its folder.

    Args:
        inputs: of the stage.
        config: of the run.
        network: kind of condition network.
        opens_as: class of diffusers that opens it.
        digest: of the pipeline.
        num_inference_steps: of a distilled pipeline; else None.
        out: its folder.
    """
    concept, control = inputs.concept, inputs.control
    trained = (
        _trained("concept", concept.concept.method, concept.folder),
        _trained("condition", network, control.folder),
    )
    stages = (concept.folder, control.folder)
    _write(
        inputs,
        config,
        concept.concept,
        "pipeline",
        out=out,
        stages=stages,
        trained=trained,
        folder=".",
        opens_as=opens_as,
        digest=digest,
        num_inference_steps=num_inference_steps,
    )


def _write(
    inputs: RunStore,
    config: ProjectConfig,
    concept: Concept,
    kind: Literal["concept", "pipeline"],
    *,
    out: Path,
    stages: tuple[Path, ...],
    trained: tuple[Trained, ...],
    folder: str,
    opens_as: str,
    digest: str = "",
    num_inference_steps: int | None = None,
) -> None:
    from defectory.engine.backbones.known import resolve_base
    from defectory.engine.backbones.licences import licence_of
    from defectory.engine.backbones.verify import verify_layout

    base = resolve_base(config.base)
    licence, facts = licence_of(config.base, base), verify_layout(base)
    categories = inputs.tiles.tileset.categories
    for path in licence.files:
        shutil.copyfile(path, out / path.name)
    used = {one for stage in stages for one in _images_of(stage)}
    card = ModelCard(
        kind=kind,
        base=licence.name,
        base_hub_id=licence.hub_id,
        base_digest=concept.base_digest,
        family=facts.family,
        licence=licence.words,
        licence_id=licence.identifier,
        licence_files=tuple(path.name for path in licence.files),
        folder=folder,
        opens_as=opens_as,
        opens_with=_without_t5(base),
        num_inference_steps=num_inference_steps,
        num_further_networks=len(list(out.glob("controlnet_*"))),
        instance_token=concept.instance_token,
        class_noun=concept.class_noun,
        tone_words=concept.tone_words,
        prompt=prompt_of_training(inputs, config, concept, opens_as, names_defects=_names_defects(kind, config)),
        tile_px=inputs.tiles.tileset.tiling.tile_px,
        trained=trained,
        num_images=len(used),
        classes=tuple(ClassColour(name=c.name, colour=_colour(c.id, len(categories))) for c in categories),
        weights_digest=digest or concept.weights_digest,
        version=__version__,
    )
    card.save(out / layout.CARD_FILE)
    write_text(out / layout.README, model_readme(card))


def _names_defects(kind: str, config: ProjectConfig) -> bool:
    return kind == "pipeline" or config.concept.defect_words


def prompt_of_training(
    inputs: RunStore, config: ProjectConfig, concept: Concept, opens_as: str, *, names_defects: bool
) -> str:
    """Return the prompt of the first training tile with a defect, as a pipeline of diffusers takes it."""
    from defectory.engine.backbones.new_tokens import all_names

    tiles, names = inputs.tiles, {c.id: c.name for c in inputs.tiles.tileset.categories}
    tile = next(tile for tile in tiles.tileset.of("train") if tile.instances)
    shown = [names[instance.category_id] for instance in tile.instances] if names_defects else []
    tone = tone_of(tile, tiles.image(tile), concept)
    prompt = prompt_of(concept, shown, tone, defect_noun=config.prompts.defect_noun)
    if opens_as in SPELLS_OUT_NOTHING and "textual_inversion" in concept.method:
        names = all_names(concept.instance_token, config.concept.num_vectors)
        return prompt.replace(concept.instance_token, names)
    return prompt


def _images_of(stage: Path) -> set[int]:
    used = ImagesUsed.load(stage / layout.IMAGES_USED).image_ids
    return {one for purpose, ids in used.items() if purpose != "held_out" for one in ids}


def _trained(phase: str, method: str, stage: Path) -> Trained:
    """Read a phase's log."""
    path = stage / layout.LOSSES
    lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    held_out = [float(line["held_out_loss"]) for line in lines if "held_out_loss" in line]
    losses = (held_out[0], min(held_out), held_out[-1]) if held_out else ()
    return Trained(
        phase=phase,
        method=method,
        num_steps=max((int(line["step"]) for line in lines), default=0),
        held_out_losses=losses,
    )


def _colour(category_id: int, num_classes: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour_of(category_id, num_classes))


def _without_t5(base: Path) -> str:
    """Return what diffusers has to be told of a base that may have a third text encoder and has none."""
    from defectory.engine.backbones.others import index_of

    is_sd3 = str(index_of(base)["_class_name"]).startswith("StableDiffusion3")
    return ", text_encoder_3=None, tokenizer_3=None" if is_sd3 and not (base / "text_encoder_3").is_dir() else ""


def _pipeline_of(base: str) -> str:
    from defectory.engine.backbones.known import resolve_base
    from defectory.engine.backbones.others import index_of

    return str(index_of(resolve_base(base))["_class_name"])
