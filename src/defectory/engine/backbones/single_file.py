"""Recognises single-file checkpoints in the original layout of Stable Diffusion by their header. Imports no torch.

The layout is that of the code that Stable Diffusion was published with (latent diffusion, LDM): one file with
`model.diffusion_model`, `first_stage_model` and `cond_stage_model`, or `conditioner` in Stable Diffusion XL. A file is
converted once, into a folder in diffusers' layout under the folder of bases.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from defectory.engine.backbones.files import PICKLES, require_file
from defectory.engine.backbones.headers import Header, read_header
from defectory.engine.backbones.places import CONVERTED
from defectory.errors import WeightsError
from defectory.files import digest_json

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
CLIP, OPEN_CLIP = f"{TEXT}transformer.text_model.", f"{TEXT}model."
CONDITIONER = "conditioner.embedders."
CLIP_XL, OPEN_CLIP_XL = f"{CONDITIONER}0.transformer.text_model.", f"{CONDITIONER}1.model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
SIZES_IN = f"{UNET}label_emb.0.0.weight"
"""First layer of what reads sizes and the pooled text in Stable Diffusion XL."""
GIVE_OTHER = "give a checkpoint of Stable Diffusion 1.x, 2.x or XL, or a folder in diffusers' layout"
GIVE_WHOLE = "give the whole checkpoint"
Kind = Literal["sd1", "sd2", "sdxl"]
"""1.x has CLIP's text encoder, 2.x OpenCLIP's, and XL one of each."""
_LATENT_PX: Mapping[Kind, int] = {"sd1": 64, "sd2": 64, "sdxl": 128}
_TRAINED_PX: Mapping[Kind, tuple[int, ...]] = {"sd1": (512, 768), "sd2": (512, 768), "sdxl": (512, 768, 1024)}
_BY_CHANNELS = {
    9: "a checkpoint for inpainting",
    8: "a checkpoint of InstructPix2Pix",
    7: "a checkpoint of the upscaler",
    5: "a checkpoint with depth",
}
_OTHERS = (
    (f"{CONDITIONER}0.model.", "a checkpoint of the refiner of Stable Diffusion XL, not of its base"),
    ("edm_mean", "a checkpoint of Playground v2.5, whose autoencoder shifts latents"),
    (f"{UNET}joint_blocks.", "a checkpoint of Stable Diffusion 3, a transformer"),
    (f"{UNET}double_blocks.", "a checkpoint of FLUX, a transformer"),
    ("double_blocks.", "a checkpoint of FLUX, a transformer"),
    ("lora_", "a LoRA adapter, not a base"),
    ("control_model.", "a control network, not a base"),
    ("down_blocks.", "one network in diffusers' layout, not a base"),
    ("encoder.", "one network, not a base"),
)
"""Maps the beginning of a tensor's name to what the file is."""
LOGGER = logging.getLogger("defectory")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A single file that can be converted.

    Attributes:
        path: of the file.
        header: its tensors.
        kind: its family.
        prediction_type: what its UNet predicts.
        latent_px: side of the latents that it was trained for.
        has_zero_snr: its last timestep holds noise alone (`ztsnr` in the file).
    """

    path: Path
    header: Header
    kind: Kind
    prediction_type: str
    latent_px: int
    has_zero_snr: bool = False

    @property
    def token_tables(self) -> Mapping[str, str]:
        """Return the name of each text encoder's token embeddings, by the name of its tokenizer."""
        return token_tables(self.kind)


def token_tables(kind: Kind) -> Mapping[str, str]:
    """Return the name of each text encoder's token embeddings in a file, by the name of its tokenizer."""
    if kind == "sdxl":
        return {
            "tokenizer": f"{CLIP_XL}embeddings.token_embedding.weight",
            "tokenizer_2": f"{OPEN_CLIP_XL}token_embedding.weight",
        }
    open_clip, clip = f"{OPEN_CLIP}token_embedding.weight", f"{CLIP}embeddings.token_embedding.weight"
    return {"tokenizer": open_clip if kind == "sd2" else clip}


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

    # not an event: a base is resolved in many places, some of which yield none
    LOGGER.warning(
        "%s is converted once, into %s (about %s MB); you can delete that folder, it is made again when needed",
        path,
        folder,
        f"{path.stat().st_size / 1e6:,.0f}",
    )
    convert(checkpoint, folder, bases=bases)
    return folder


def read_checkpoint(path: Path) -> Checkpoint:
    """Recognise a single file by its header, in milliseconds.

    Raises:
        WeightsError: it is a pickle, not whole, or no checkpoint of Stable Diffusion 1.x, 2.x or XL; or it is of 2.x
            and nothing says what it predicts.
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
    kind = _kind(names)
    for beginning, part in ((f"{VAE}decoder.", "autoencoder"), (f"{VAE}encoder.", "encoder of the autoencoder")):
        if not any(name.startswith(beginning) for name in names):
            raise WeightsError(path, f"has no {part} ({beginning}*)", GIVE_WHOLE)
    for tokenizer, table in token_tables(kind).items():
        if len(names.get(table, ())) != 2:
            part = tokenizer.replace("tokenizer", "text encoder").replace("_", " ")
            where = TEXT if kind != "sdxl" else f"{CONDITIONER}{int(tokenizer.endswith('2'))}."
            raise WeightsError(path, f"has no {part} ({where}*)", GIVE_WHOLE)
    if kind == "sdxl" and SIZES_IN not in names:
        raise WeightsError(path, f"its UNet reads no sizes ({UNET}label_emb.*)", GIVE_WHOLE)
    prediction_type = _prediction_type(path, header, kind)
    latent_px = 96 if kind == "sd2" and prediction_type == "v_prediction" else _LATENT_PX[kind]
    resolution = re.match(r"(\d+)", header.metadata.get("modelspec.resolution", ""))
    if resolution and int(resolution[1]) in _TRAINED_PX[kind]:
        latent_px = int(resolution[1]) // 8
    return Checkpoint(
        path=path,
        header=header,
        kind=kind,
        prediction_type=prediction_type,
        latent_px=latent_px,
        has_zero_snr=kind == "sdxl" and "ztsnr" in names,
    )


def _kind(names: Mapping[str, tuple[int, ...]]) -> Kind:
    if SIZES_IN in names or any(name.startswith(CONDITIONER) for name in names):
        return "sdxl"
    return "sd2" if token_tables("sd2")["tokenizer"] in names else "sd1"


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


def _prediction_type(path: Path, header: Header, kind: Kind) -> str:
    """Return what the UNet predicts: from the file's metadata or marks, else from the settings beside it.

    Raises:
        WeightsError: it is a checkpoint of 2.x, of which some predict noise and some v, and nothing says which.
    """
    stated = header.metadata.get("modelspec.prediction_type", "").lower()
    if not stated and kind == "sdxl" and "v_pred" in header.shapes:  # an empty tensor that tools for XL write
        stated = "v"
    beside = path.with_suffix(".yaml")
    if not stated and beside.is_file():
        stated = _parameterization(beside)
    if stated in ("v", "v_prediction", "v-prediction"):
        return "v_prediction"
    if stated in ("eps", "epsilon"):
        return "epsilon"
    if stated:
        raise WeightsError(path, f"its UNet predicts {stated[:40]!r}, eps or v was expected", GIVE_OTHER)
    if kind == "sd2":
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
