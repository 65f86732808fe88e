"""Converts a single-file checkpoint into a folder in diffusers' layout, with diffusers' own converter."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from defectory.engine.backbones.files import write_digests
from defectory.engine.backbones.parts import load_tokenizer, quiet
from defectory.engine.backbones.places import SOURCE_NAME, cached_folder, cached_names, pulled_names
from defectory.engine.backbones.save import save_model
from defectory.engine.backbones.single_file import Checkpoint
from defectory.engine.backbones.single_file_settings import write_settings
from defectory.engine.backbones.verify import verify
from defectory.errors import WeightsError
from defectory.files import digest_file, write_json
from defectory.folders.swap import atomic_folder


def convert(checkpoint: Checkpoint, folder: Path, *, bases: Path) -> None:
    """Write a checkpoint as a base folder with digests, in the precision of its file.

    Args:
        checkpoint: the file.
        folder: new folder.
        bases: folder of bases, in which a tokenizer is looked for.

    Raises:
        WeightsError: no tokenizer fits, or tensors are missing.
        OutputError: `folder` cannot be written.
    """
    tokenizer = _tokenizer(checkpoint, bases)
    with tempfile.TemporaryDirectory() as settings:
        write_settings(checkpoint, Path(settings))
        models = _models(checkpoint, Path(settings), tokenizer)
    with atomic_folder(folder, kind="base") as temporary:
        write_settings(checkpoint, temporary)
        for part, model in models.items():
            save_model(model, temporary / part)
        write_json(
            temporary / SOURCE_NAME,
            {"file": checkpoint.path.name, "sha256": digest_file(checkpoint.path), "licence": None},
        )
        write_digests(temporary)
        verify(temporary)


def _models(checkpoint: Checkpoint, settings: Path, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    dtypes = set(checkpoint.header.dtypes.values())
    try:
        with quiet():
            pipeline = StableDiffusionPipeline.from_single_file(
                str(checkpoint.path),
                config=str(settings),
                local_files_only=True,
                torch_dtype=torch.float32 if "F32" in dtypes else torch.float16,
                tokenizer=tokenizer,
                safety_checker=None,
                feature_extractor=None,
            )
    except MemoryError:
        raise
    except Exception as error:  # a tensor of another shape can fail anywhere in the converter
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        found = "lacks weights of one of its networks" if "meta tensor" in reason else f"cannot be converted ({reason})"
        raise WeightsError(checkpoint.path, found, "give the whole checkpoint") from error
    models = {part: getattr(pipeline, part) for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")}
    for part in ("unet", "vae", "text_encoder"):
        missing = [name for name, value in models[part].named_parameters() if value.is_meta]
        if missing:
            raise WeightsError(
                checkpoint.path,
                f"lacks {len(missing)} weights of its {part} (first: {missing[0]})",
                "give the whole checkpoint",
            )
    return models


def _tokenizer(checkpoint: Checkpoint, bases: Path) -> CLIPTokenizer:
    """Return the tokenizer beside the file, else of any base on this machine, with as many words as the file embeds."""
    text = "cond_stage_model.model.token_embedding.weight"
    name = text if checkpoint.is_sd2 else "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    words = checkpoint.header.shapes[name][0]
    beside = checkpoint.path.parent / "tokenizer"
    for folder in _candidates(beside, bases):
        try:
            tokenizer = load_tokenizer(folder)
        except WeightsError:
            if folder == beside:
                raise
            continue
        if len(tokenizer) == words:
            # texts of 2.x are padded with `!`, token 0
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0) if checkpoint.is_sd2 else tokenizer.eos_token
            return tokenizer
        if folder == beside:
            raise WeightsError(folder, f"knows {len(tokenizer)} tokens, {checkpoint.path.name} {words}", "copy another")
    raise WeightsError(
        checkpoint.path,
        f"holds no vocabulary, as no checkpoint does, and no base on this machine has one of {words} tokens",
        f"carry the folder tokenizer/ of any base of Stable Diffusion here, as {beside}",
    )


def _candidates(beside: Path, bases: Path) -> Iterator[Path]:
    if beside.is_dir():
        yield beside
    for name in pulled_names(bases):
        yield bases / name / "tokenizer"
    for name in cached_names():
        if (folder := cached_folder(name)) is not None:
            yield folder / "tokenizer"
