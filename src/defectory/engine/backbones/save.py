"""Writes bases and finished pipelines in Stable Diffusion layout, with the same bytes on every machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError

from defectory.engine.backbones.files import DIGESTS_NAME
from defectory.engine.backbones.parts import quiet
from defectory.files import BOOKKEEPING, digest_file, write_json
from defectory.folders.swap import atomic_folder

_LIBRARIES = {
    "scheduler": "diffusers",
    "text_encoder": "transformers",
    "tokenizer": "transformers",
    "unet": "diffusers",
    "vae": "diffusers",
    "controlnet": "diffusers",
}


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


def write_digests(folder: Path) -> None:
    """Write `digests.json` with the SHA-256 of every file of a base folder; replace an existing one."""
    (folder / DIGESTS_NAME).unlink(missing_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in BOOKKEEPING)
    write_json(folder / DIGESTS_NAME, {path.relative_to(folder).as_posix(): digest_file(path) for path in files})


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


def fill_base_like(folder: Path, out: Path, *, replaced: Mapping[str, Any]) -> None:
    """Fill an empty folder like `save_base_like`."""
    classes = _classes_of(folder)
    for part in classes:
        if part in replaced:
            save_model(replaced[part], out / part)
        else:
            shutil.copytree(folder / part, out / part)
    if (folder / "controlnet").is_dir():
        shutil.copytree(folder / "controlnet", out / "controlnet", dirs_exist_ok=True)
    _write_index(out, "StableDiffusionPipeline", classes)


def save_pipeline(models: Mapping[str, Any], out: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a finished pipeline folder that plain diffusers opens as `StableDiffusionControlNetPipeline`.

    Args:
        models: the parts by name: unet, vae, text_encoder, tokenizer, scheduler, controlnet.
        out: new folder, replaced as a whole.
        dtype: one precision for all parts, since plain loaders cast all parts except the text encoder.

    Raises:
        StageError: `out` cannot be written.
    """
    with atomic_folder(out, kind="base") as temporary:
        for part, model in models.items():
            save_model(model.to("cpu", dtype) if isinstance(model, torch.nn.Module) else model, temporary / part)
        classes = {part: (_LIBRARIES[part], type(model).__name__) for part, model in models.items()}
        _write_index(temporary, "StableDiffusionControlNetPipeline", classes)


def _classes_of(folder: Path) -> dict[str, tuple[str, str]]:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [part for part in _LIBRARIES if part != "controlnet"]
    return {part: (str(index[part][0]), str(index[part][1])) for part in parts if part in index}


def _write_index(folder: Path, kind: str, classes: Mapping[str, tuple[str, str]]) -> None:
    index: dict[str, object] = {part: list(names) for part, names in classes.items()}
    index |= {part: [None, None] for part in ("safety_checker", "feature_extractor", "image_encoder")}
    index |= {"_class_name": kind, "_diffusers_version": diffusers.__version__, "requires_safety_checker": False}
    write_json(folder / "model_index.json", index)
