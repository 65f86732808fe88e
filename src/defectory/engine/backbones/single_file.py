"""Recognises single-file checkpoints in the original layout of Stable Diffusion by their header. Imports no torch.

The layout is that of the code that Stable Diffusion was published with (latent diffusion, LDM): one file with
`model.diffusion_model`, `first_stage_model` and `cond_stage_model`. A file is converted once, into a folder in
diffusers' layout under the folder of bases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from defectory.engine.backbones.files import PICKLES, require_file
from defectory.engine.backbones.headers import Header, read_header
from defectory.engine.backbones.places import CONVERTED
from defectory.errors import WeightsError
from defectory.files import digest_json

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
CLIP, OPEN_CLIP = f"{TEXT}transformer.text_model.", f"{TEXT}model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
GIVE_OTHER = "give a checkpoint of Stable Diffusion 1.x or 2.x, or a folder in diffusers' layout"
_BY_CHANNELS = {
    9: "a checkpoint for inpainting",
    8: "a checkpoint of InstructPix2Pix",
    7: "a checkpoint of the upscaler",
    5: "a checkpoint with depth",
}
_OTHERS = (
    ("conditioner.embedders.", "a checkpoint of Stable Diffusion XL, which is not supported yet as a single file"),
    (f"{UNET}joint_blocks.", "a checkpoint of Stable Diffusion 3, a transformer"),
    (f"{UNET}double_blocks.", "a checkpoint of FLUX, a transformer"),
    ("double_blocks.", "a checkpoint of FLUX, a transformer"),
    ("lora_", "a LoRA adapter, not a base"),
    ("control_model.", "a control network, not a base"),
    ("down_blocks.", "one network in diffusers' layout, not a base"),
    ("encoder.", "one network, not a base"),
)
"""Maps the beginning of a tensor's name to what the file is."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A single file that can be converted.

    Attributes:
        path: of the file.
        header: its tensors.
        is_sd2: True for 2.x (OpenCLIP's text encoder), False for 1.x (CLIP's).
        prediction_type: what its UNet predicts.
        latent_px: side of the latents that it was trained for.
    """

    path: Path
    header: Header
    is_sd2: bool
    prediction_type: str
    latent_px: int


def converted_folder(path: Path, bases: Path) -> Path:
    """Return the folder of a checkpoint's converted form; a file that moved or changed has another one.

    Args:
        path: an existing file.
        bases: folder of bases.
    """
    about = path.stat()
    key = digest_json([str(path.resolve()), about.st_size, about.st_mtime_ns])
    return bases / CONVERTED / f"{path.stem[:60]}-{key[:12]}"


def resolve_checkpoint(path: Path, bases: Path) -> Path:
    """Return the folder of a checkpoint in diffusers' layout; convert it if that was not done before.

    Args:
        path: the file.
        bases: folder of bases.

    Raises:
        WeightsError: the file is a pickle, not whole, of another family, or has no tokenizer on this machine.
        OutputError: the folder of bases cannot be written or is full.
    """
    _refuse_pickle(path)
    folder = converted_folder(path, bases)
    if (folder / "model_index.json").is_file():
        return folder
    checkpoint = read_checkpoint(path)
    from defectory.engine.backbones.single_file_convert import convert

    convert(checkpoint, folder, bases=bases)
    return folder


def read_checkpoint(path: Path) -> Checkpoint:
    """Recognise a single file by its header, in milliseconds.

    Raises:
        WeightsError: it is a pickle, not whole, or no checkpoint of Stable Diffusion 1.x or 2.x; or it is of 2.x and
            nothing says what it predicts.
    """
    _refuse_pickle(path)
    require_file(path)
    _refuse_half(path)
    header = read_header(path)
    names = header.shapes
    for beginning, what in _OTHERS:
        if any(name.startswith(beginning) for name in names):
            raise WeightsError(path, f"is {what}", GIVE_OTHER)
    if CONV_IN not in names or len(names[CONV_IN]) != 4:
        raise WeightsError(path, "its tensors are of no layout that is known", GIVE_OTHER)
    if (channels := names[CONV_IN][1]) != 4:
        what = _BY_CHANNELS.get(channels, "another model")
        raise WeightsError(path, f"is {what} (its UNet takes {channels} channels, 4 were expected)", GIVE_OTHER)
    clip, open_clip = f"{CLIP}embeddings.token_embedding.weight", f"{OPEN_CLIP}token_embedding.weight"
    for beginning, part in ((f"{VAE}decoder.", "autoencoder"), (f"{VAE}encoder.", "encoder of the autoencoder")):
        if not any(name.startswith(beginning) for name in names):
            raise WeightsError(path, f"has no {part} ({beginning}*)", "give the whole checkpoint")
    if clip not in names and open_clip not in names:
        raise WeightsError(path, f"has no text encoder ({TEXT}*)", "give the whole checkpoint")
    is_sd2 = open_clip in names
    prediction_type = _prediction_type(path, header, is_sd2=is_sd2)
    latent_px = 96 if is_sd2 and prediction_type == "v_prediction" else 64
    resolution = re.match(r"(\d+)", header.metadata.get("modelspec.resolution", ""))
    if resolution and int(resolution[1]) in (512, 768):
        latent_px = int(resolution[1]) // 8
    return Checkpoint(path=path, header=header, is_sd2=is_sd2, prediction_type=prediction_type, latent_px=latent_px)


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise WeightsError(
            path, "a single file that is a pickle, which can run code when opened; refused", "convert it to safetensors"
        )
    if path.suffix.lower() != ".safetensors":
        raise WeightsError(
            path, "a single file of an unknown kind", "give a .safetensors file or a folder in Stable Diffusion layout"
        )


def _refuse_half(path: Path) -> None:
    """Refuse a file that is shorter than its header says, with both sizes."""
    import json

    size = path.stat().st_size
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > 100_000_000 or size < 8:
            return  # no header: reported when it is read
        text = stream.read(length)
    if not text.startswith(b"{"):
        return
    try:
        ends = [about["data_offsets"][1] for about in json.loads(text).values() if "data_offsets" in about]
        needed = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        needed = 8 + length
    if size < needed:
        raise WeightsError(path, f"is half downloaded: {size:,} of {needed:,} bytes are here", "copy it again")


def _prediction_type(path: Path, header: Header, *, is_sd2: bool) -> str:
    """Return what the UNet predicts: from the file's metadata, else from the settings beside it.

    Raises:
        WeightsError: it is a checkpoint of 2.x, of which some predict noise and some v, and nothing says which.
    """
    stated = header.metadata.get("modelspec.prediction_type", "").lower()
    beside = path.with_suffix(".yaml")
    if not stated and beside.is_file():
        stated = _parameterization(beside)
    if stated in ("v", "v_prediction", "v-prediction"):
        return "v_prediction"
    if stated in ("eps", "epsilon"):
        return "epsilon"
    if stated:
        raise WeightsError(path, f"its UNet predicts {stated[:40]!r}, eps or v was expected", GIVE_OTHER)
    if is_sd2:
        raise WeightsError(
            path,
            "is a checkpoint of Stable Diffusion 2.x, of which some predict noise (512 px) and some v (768 px), and "
            "nothing says which",
            f"put its settings beside it as {beside.name}, with `parameterization: v` or `parameterization: eps`",
        )
    return "epsilon"


def _parameterization(path: Path) -> str:
    """Return `parameterization` of the original settings (`model.params`), `eps` if they name none."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        raise WeightsError(path, "not readable as YAML", "copy it again, or write `parameterization: v`") from None
    for key in (None, "model", "params"):
        if key is not None:
            content = content.get(key)
        if not isinstance(content, Mapping):
            break
        if "parameterization" in content:
            return str(content["parameterization"]).lower()
    return "eps"
