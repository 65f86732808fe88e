"""Converts a single-file checkpoint into a folder in diffusers' layout, with diffusers' own converter."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from defectory.engine.backbones.files import write_digests
from defectory.engine.backbones.parts import load_tokenizer, quiet
from defectory.engine.backbones.places import SOURCE_NAME, cached_folder, cached_names, pulled_names
from defectory.engine.backbones.save import save_model
from defectory.engine.backbones.single_file import CONDITIONER, GIVE_WHOLE, TEXT, UNET, VAE, Checkpoint
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
    tokenizers = {part: _tokenizer(checkpoint, part, bases) for part in checkpoint.token_tables}
    with tempfile.TemporaryDirectory() as settings:
        write_settings(checkpoint, Path(settings))
        models = _models(checkpoint, Path(settings), tokenizers)
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


def _models(checkpoint: Checkpoint, settings: Path, tokenizers: Mapping[str, CLIPTokenizer]) -> dict[str, Any]:
    is_xl = checkpoint.kind == "sdxl"
    pipeline_kind: Any = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    left_out: dict[str, Any] = {"add_watermarker": False} if is_xl else {"safety_checker": None}
    try:
        with quiet():
            pipeline = pipeline_kind.from_single_file(
                str(checkpoint.path),
                config=str(settings),
                local_files_only=True,
                torch_dtype=_dtype(checkpoint),
                feature_extractor=None,
                **tokenizers,
                **left_out,
            )
    except MemoryError:
        raise
    except Exception as error:  # a tensor of another shape can fail anywhere in the converter
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        found = "lacks weights of one of its networks" if "meta tensor" in reason else f"cannot be converted ({reason})"
        raise WeightsError(checkpoint.path, found, GIVE_WHOLE) from error
    networks = ("unet", "vae", *(part.replace("tokenizer", "text_encoder") for part in tokenizers))
    models = {part: getattr(pipeline, part) for part in (*networks, *tokenizers, "scheduler")}
    for part in networks:
        missing = [name for name, value in models[part].named_parameters() if value.is_meta]
        if missing:
            raise WeightsError(
                checkpoint.path, f"lacks {len(missing)} weights of its {part} (first: {missing[0]})", GIVE_WHOLE
            )
    _require_all_read(checkpoint, models["unet"])
    return models


def _require_all_read(checkpoint: Checkpoint, unet: torch.nn.Module) -> None:
    """Require a UNet with as many values as the file holds; the converter leaves out what it does not know.

    Raises:
        WeightsError: the file holds more, such as deeper blocks on one side.
    """
    read = sum(value.numel() for value in unet.parameters())
    held = sum(prod(shape) for name, shape in checkpoint.header.shapes.items() if name.startswith(UNET))
    if held != read:
        raise WeightsError(
            checkpoint.path,
            f"its UNet holds {held:,} values, {read:,} were expected from its layers",
            "give a checkpoint whose UNet was neither pruned nor extended",
        )


def _dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the precision that holds all weights of a file as they are."""
    beginnings = (UNET, VAE, TEXT, CONDITIONER)
    found = {dtype for name, dtype in checkpoint.header.dtypes.items() if name.startswith(beginnings)} - {"I64", "I32"}
    if found == {"F16"}:
        return torch.float16
    return torch.bfloat16 if found == {"BF16"} else torch.float32


def _tokenizer(checkpoint: Checkpoint, part: str, bases: Path) -> CLIPTokenizer:
    """Return the tokenizer beside the file, else of any base on this machine, with as many words as the file embeds."""
    words = checkpoint.header.shapes[checkpoint.token_tables[part]][0]
    pads_with_zero = checkpoint.kind == "sd2" or part == "tokenizer_2"
    beside = checkpoint.path.parent / "tokenizer"
    for folder in _candidates(beside, bases):
        try:
            tokenizer = load_tokenizer(folder)
        except WeightsError:
            if folder == beside:
                raise
            continue
        if len(tokenizer) == words:
            # texts for OpenCLIP are padded with `!`, token 0
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0) if pads_with_zero else tokenizer.eos_token
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
