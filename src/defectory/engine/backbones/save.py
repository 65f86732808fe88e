"""Writes bases and finished pipelines in Stable Diffusion layout, with the same bytes on every machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ControlNetModel, SD3ControlNetModel, T2IAdapter
from safetensors import SafetensorError

from defectory.engine.backbones.parts import quiet
from defectory.errors import PipelineError
from defectory.files import write_json
from defectory.folders.swap import atomic_folder


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the bases of a family lie on disk.

    Attributes:
        parts: names of the parts of a base.
        pipeline: diffusers' class for a base.
        finished: diffusers' class for a base with a control network.
        finished_with_adapter: diffusers' class for a base with an adapter; empty if there is none.
        absent: names of optional parts that are never written.
        settings: further entries of `model_index.json`.
    """

    parts: tuple[str, ...]
    pipeline: str
    finished: str
    finished_with_adapter: str = ""
    absent: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict[str, object])


STABLE_DIFFUSION = Layout(
    parts=("scheduler", "text_encoder", "tokenizer", "unet", "vae"),
    pipeline="StableDiffusionPipeline",
    finished="StableDiffusionControlNetPipeline",
    finished_with_adapter="StableDiffusionAdapterPipeline",
    absent=("safety_checker", "feature_extractor", "image_encoder"),
    settings={"requires_safety_checker": False},
)

STABLE_DIFFUSION_XL = Layout(
    parts=("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"),
    pipeline="StableDiffusionXLPipeline",
    finished="StableDiffusionXLControlNetPipeline",
    finished_with_adapter="StableDiffusionXLAdapterPipeline",
    absent=("feature_extractor", "image_encoder"),
    settings={"force_zeros_for_empty_prompt": True},
)

STABLE_DIFFUSION_3 = Layout(
    parts=(
        "scheduler",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
        "transformer",
        "vae",
    ),
    pipeline="StableDiffusion3Pipeline",
    finished="StableDiffusion3ControlNetPipeline",
    absent=("feature_extractor", "image_encoder"),
)


def save_model(model: Any, folder: Path) -> None:
    """Write one model as safetensors; its configuration contains no path of this machine.

    Raises:
        OSError: the folder cannot be written or is full.
    """
    try:
        with quiet():
            model.save_pretrained(folder, safe_serialization=True)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    for path in folder.glob("*config.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("_name_or_path", None) is not None:
            write_json(path, content)
    # safetensors are written readable only for their owner, which breaks shared run folders
    for path in folder.iterdir():
        path.chmod(0o644)


def save_base_like(folder: Path, out: Path, *, replaced: Mapping[str, Any]) -> None:
    """Write a copy of a base folder with some parts replaced; a shipped control network is kept.

    Args:
        folder: base in diffusers' layout.
        out: new folder, replaced as a whole.
        replaced: new models by part name (`unet`, `text_encoder`), written in their own precision.

    Raises:
        StageError: `out` cannot be written.
    """
    with atomic_folder(out, kind="base") as temporary:
        fill_base_like(folder, temporary, replaced=replaced)


def fill_base_like(folder: Path, out: Path, *, replaced: Mapping[str, Any], layout: Layout = STABLE_DIFFUSION) -> None:
    """Fill an empty folder like `save_base_like`, for a family of another layout too."""
    classes = _classes_of(folder, layout)
    for part in classes:
        if part in replaced:
            save_model(replaced[part], out / part)
        else:
            shutil.copytree(folder / part, out / part)
    if (folder / "controlnet").is_dir():
        shutil.copytree(folder / "controlnet", out / "controlnet", dirs_exist_ok=True)
    _write_index(out, layout.pipeline, classes, layout)


def require_controlnet(network: torch.nn.Module) -> None:
    """Require a network that diffusers has a pipeline for.

    Raises:
        PipelineError: it is of another kind.
    """
    if not isinstance(network, ControlNetModel | SD3ControlNetModel):
        raise PipelineError(
            "condition network",
            f"a {type(network).__name__}, which plain diffusers cannot draw with",
            "use `synthesize`, or train condition.network controlnet",
        )


def network_part(network: torch.nn.Module, layout: Layout) -> str:
    """Return the name of a condition network's part in a finished pipeline: `controlnet` or `adapter`.

    Raises:
        PipelineError: diffusers has no pipeline for this network and family.
    """
    if isinstance(network, T2IAdapter) and layout.finished_with_adapter:
        return "adapter"
    require_controlnet(network)
    return "controlnet"


def save_pipeline(
    models: Mapping[str, Any], out: Path, *, layout: Layout = STABLE_DIFFUSION, dtype: torch.dtype = torch.float32
) -> str:
    """Write a finished pipeline folder for plain diffusers, and return the name of the class that opens it.

    Args:
        models: the parts of the layout by name, and `controlnet`, `adapter` or neither.
        out: new folder, replaced as a whole.
        layout: of the family.
        dtype: one precision for all parts, since plain loaders cast all parts except the text encoder.

    Raises:
        StageError: `out` cannot be written.
    """
    with atomic_folder(out, kind="base") as temporary:
        for part, model in models.items():
            # diffusers' own `to` warns of a cast in any model, even if no layer of it has to stay in float32
            save_model(
                torch.nn.Module.to(model, "cpu", dtype) if isinstance(model, torch.nn.Module) else model,
                temporary / part,
            )
        classes = {part: (_library_of(model), type(model).__name__) for part, model in models.items()}
        kind = layout.finished_with_adapter if "adapter" in models else layout.finished
        kind = kind if {"adapter", "controlnet"} & set(models) else layout.pipeline
        _write_index(temporary, kind, classes, layout)
    return kind


def _library_of(model: Any) -> str:
    return type(model).__module__.partition(".")[0]


def _classes_of(folder: Path, layout: Layout) -> dict[str, tuple[str, str]]:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return {part: (str(index[part][0]), str(index[part][1])) for part in layout.parts if part in index}


def _write_index(folder: Path, kind: str, classes: Mapping[str, tuple[str, str]], layout: Layout) -> None:
    index: dict[str, object] = {part: list(names) for part, names in classes.items()}
    index |= {part: [None, None] for part in layout.absent}
    index |= {"_class_name": kind, "_diffusers_version": diffusers.__version__, **layout.settings}
    write_json(folder / "model_index.json", index)
