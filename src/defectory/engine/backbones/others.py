"""Recognises unsupported families by their `model_index.json`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defectory.engine.backbones.files import read_json
from defectory.errors import WeightsError

GIVE_ANOTHER = "it is not supported yet; give a base of Stable Diffusion 1.x, 2.x, XL or 3, or `embedded`"
COPY_AGAIN = "copy the base again or give another one"
_FAMILY_BY_PIPELINE: tuple[tuple[str, str], ...] = (
    ("StableDiffusionXLInpaint", "Stable Diffusion XL for inpainting"),
    ("StableDiffusionXLInstructPix2Pix", "InstructPix2Pix on Stable Diffusion XL, an image editor"),
    ("StableDiffusion3", "Stable Diffusion 3 for another task than drawing from texts"),
    ("StableVideoDiffusion", "Stable Video Diffusion, a video model"),
    ("StableDiffusionInpaint", "Stable Diffusion for inpainting"),
    ("StableDiffusionInstructPix2Pix", "InstructPix2Pix, an image editor"),
    ("StableDiffusionDepth2Img", "Stable Diffusion with depth"),
    ("StableDiffusionUpscale", "the Stable Diffusion upscaler"),
    ("StableDiffusionLatentUpscale", "the Stable Diffusion latent upscaler"),
    ("StableDiffusionGLIGEN", "GLIGEN"),
    ("StableUnCLIP", "Stable unCLIP"),
    ("StableCascade", "Stable Cascade"),
    ("StableAudio", "Stable Audio, an audio model"),
    ("Flux", "FLUX, a flow-matching transformer"),
    ("ZImage", "Z-Image, a flow-matching transformer"),
    ("QwenImage", "Qwen-Image, a flow-matching transformer"),
    ("PixArt", "PixArt, a transformer"),
    ("Sana", "Sana, a flow-matching transformer"),
    ("Lumina", "Lumina, a flow-matching transformer"),
    ("AuraFlow", "AuraFlow, a flow-matching transformer"),
    ("Chroma", "Chroma, a flow-matching transformer"),
    ("HiDream", "HiDream, a flow-matching transformer"),
    ("CogView", "CogView, a transformer"),
    ("Hunyuan", "Hunyuan, a transformer"),
    ("LatentConsistency", "a latent consistency model, distilled for few steps"),
    ("AltDiffusion", "AltDiffusion, whose text encoder is XLM-RoBERTa"),
    ("Kandinsky", "Kandinsky"),
    ("IF", "DeepFloyd IF, which draws pixels"),
    ("Wuerstchen", "Wuerstchen"),
    ("AnimateDiff", "AnimateDiff, a video model"),
    ("TextToVideo", "a text-to-video model"),
    ("Wan", "Wan, a video model"),
    ("LTX", "LTX, a video model"),
    ("CogVideo", "CogVideo, a video model"),
    ("Mochi", "Mochi, a video model"),
    ("Allegro", "Allegro, a video model"),
    ("Cosmos", "Cosmos, a video model"),
    ("AudioLDM", "AudioLDM, an audio model"),
    ("MusicLDM", "MusicLDM, an audio model"),
    ("LDMTextToImage", "the first latent diffusion model, whose autoencoder is a VQ model"),
)
"""Maps the prefix of a pipeline's class name to its family; longer prefixes come first."""


def index_of(folder: Path) -> dict[str, Any]:
    """Read the `model_index.json` of a base folder.

    Raises:
        WeightsError: the file is missing, or names no pipeline.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise _not_a_layout(folder)
    index = read_json(path)
    if not isinstance(index.get("_class_name"), str):
        raise WeightsError(path, "names no pipeline (_class_name)", COPY_AGAIN)
    return index


def classes_of(index: Mapping[str, Any]) -> dict[str, str]:
    """Return the class of each part in an index; entries without a class are left out."""
    named = {part: value for part, value in index.items() if not part.startswith("_") and isinstance(value, list)}
    return {part: value[1] for part, value in named.items() if len(value) == 2 and isinstance(value[1], str)}


def other_family(folder: Path, index: Mapping[str, Any]) -> str | None:
    """Return the unsupported family of a base, by its pipeline or its parts; None if there is no match."""
    pipeline, classes = index["_class_name"], classes_of(index)
    for beginning, family in _FAMILY_BY_PIPELINE:
        if pipeline.startswith(beginning):
            return f"is {family} ({pipeline})"
    if "transformer" in classes or (folder / "transformer").is_dir():
        return f"is a transformer base ({pipeline}, {classes.get('transformer', 'transformer/')})"
    if "text_encoder_3" in classes or (folder / "text_encoder_3").is_dir():
        return f"has a third text encoder ({pipeline})"
    return None


def refusal(folder: Path, index: Mapping[str, Any]) -> WeightsError:
    """Return the error for a base that no family recognises."""
    return WeightsError(folder, other_family(folder, index) or "is of no family that is known", GIVE_ANOTHER)


def _not_a_layout(folder: Path) -> WeightsError:
    """Return the error for a folder without `model_index.json`, depending on its content."""
    if not folder.is_dir():
        return WeightsError(folder, "no such folder", "check the path")
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        return WeightsError(
            folder, f"cannot be read ({error.strerror or error})", "change its permissions or give another base"
        )
    single = next((name for name in names if name.endswith((".safetensors", ".ckpt", ".pt", ".bin", ".gguf"))), None)
    if "adapter_config.json" in names or "pytorch_lora_weights.safetensors" in names:
        return WeightsError(folder, "a LoRA adapter, not a base", "give the base it belongs to")
    if "config.json" in names and single is not None:
        return WeightsError(
            folder, f"one model ({single}), not a base: no model_index.json here", "give the folder that holds this one"
        )
    if single is not None:
        return WeightsError(
            folder,
            f"a single-file checkpoint ({single}), no model_index.json here",
            "give the path of the file itself if it is of Stable Diffusion 1.x, 2.x or XL",
        )
    return WeightsError(folder, "no model_index.json here", "give a folder in Stable Diffusion layout")
