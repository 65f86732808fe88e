"""Reads the facts of a base in Stable Diffusion layout from its JSON files. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defectory.engine.backbones.configs import (
    AutoencoderConfig,
    SchedulerConfig,
    TextEncoderConfig,
    UNetConfig,
    read_config,
)
from defectory.engine.backbones.facts import BaseFacts
from defectory.engine.backbones.others import COPY_AGAIN, GIVE_ANOTHER, classes_of, index_of
from defectory.errors import WeightsError

PARTS: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),
}
"""The parts of a base and their allowed classes; any scheduler of diffusers is allowed."""
_FAMILY_BY_CHANNELS = {
    9: "Stable Diffusion for inpainting",
    8: "InstructPix2Pix, an image editor",
    7: "the Stable Diffusion upscaler",
    5: "Stable Diffusion with depth",
}
"""Maps the input channels of a UNet for four-channel latents to its family."""


def facts_of(folder: Path) -> BaseFacts:
    """Read a base folder's JSON files, and return its facts.

    Args:
        folder: base in Stable Diffusion layout.

    Raises:
        WeightsError: the base belongs to another family, which the message names, lacks a part, or has an impossible
            configuration.
    """
    _refuse_other_parts(folder)
    for part in PARTS:
        if not (folder / part).is_dir():
            raise WeightsError(folder, f"the part {part}/ is missing", COPY_AGAIN)
    unet = read_config(UNetConfig, folder / "unet" / "config.json")
    vae = read_config(AutoencoderConfig, folder / "vae" / "config.json")
    text = read_config(TextEncoderConfig, folder / "text_encoder" / "config.json")
    schedule = read_config(SchedulerConfig, folder / "scheduler" / "scheduler_config.json")
    _refuse_other_networks(folder, unet, vae, schedule)
    if text.hidden_size != unet.cross_attention_dim:
        raise WeightsError(
            folder,
            f"the text encoder is {text.hidden_size} wide and the UNet reads texts of {unet.cross_attention_dim}",
            COPY_AGAIN,
        )
    factor = 2 ** (len(vae.block_out_channels) - 1)
    return BaseFacts(
        family="embedded" if unet.addition_embed_type == "text" else "Stable Diffusion",
        tile_px=unet.sample_size * factor,
        latent_factor=factor,
        size_multiple_px=factor * 2 ** (len(unet.block_out_channels) - 1),
        prediction_type=schedule.prediction_type,
        text_width=text.hidden_size,
    )


def _refuse_other_parts(folder: Path) -> None:
    """Refuse an index that lacks a part of this family or names another class for it."""
    where, index = folder / "model_index.json", index_of(folder)
    pipeline, classes = index["_class_name"], classes_of(index)
    for part, allowed in PARTS.items():
        if part in index and part not in classes:
            raise WeightsError(where, f"does not name a library and a class for {part}", COPY_AGAIN)
        if part not in classes:
            todo = COPY_AGAIN if pipeline.startswith("StableDiffusion") else GIVE_ANOTHER
            raise WeightsError(where, f"names no {part} ({pipeline})", todo)
        if allowed and classes[part] not in allowed:
            found = f"its {part} is a {classes[part]}, {allowed[0]} was expected ({pipeline})"
            raise WeightsError(folder, found, GIVE_ANOTHER)


def _refuse_other_networks(folder: Path, unet: UNetConfig, vae: AutoencoderConfig, schedule: SchedulerConfig) -> None:
    """Refuse other families that only the networks' configurations reveal."""
    if unet.addition_embed_type == "text_time":
        raise WeightsError(folder, "is Stable Diffusion XL (its UNet takes sizes as text_time)", GIVE_ANOTHER)
    if unet.in_channels != vae.latent_channels:
        family = _FAMILY_BY_CHANNELS.get(unet.in_channels) if vae.latent_channels == 4 else None
        found = f"its UNet takes {unet.in_channels} channels, latents have {vae.latent_channels}"
        raise WeightsError(folder, f"is {family} ({found})" if family else found, GIVE_ANOTHER)
    if unet.out_channels != unet.in_channels:
        raise WeightsError(
            folder, f"its UNet takes {unet.in_channels} channels and gives {unet.out_channels}", GIVE_ANOTHER
        )
    if unet.time_cond_proj_dim is not None:
        raise WeightsError(
            folder, "is a latent consistency model, distilled for few steps (time_cond_proj_dim)", GIVE_ANOTHER
        )
    if unet.class_embed_type is not None or unet.num_class_embeds is not None or unet.encoder_hid_dim is not None:
        raise WeightsError(
            folder, "its UNet takes more than latents, time and text (class or image embeddings)", GIVE_ANOTHER
        )
    if unet.addition_embed_type not in (None, "text"):
        raise WeightsError(folder, f"its UNet takes {unet.addition_embed_type} besides text", GIVE_ANOTHER)
    if "FlowMatch" in schedule.class_name or schedule.prediction_type == "flow_prediction":
        raise WeightsError(folder, f"is a flow-matching base ({schedule.class_name})", GIVE_ANOTHER)
    if schedule.prediction_type not in ("epsilon", "v_prediction"):
        raise WeightsError(
            folder, f"its UNet predicts {schedule.prediction_type}, epsilon or v_prediction was expected", GIVE_ANOTHER
        )
