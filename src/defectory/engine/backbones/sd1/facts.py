"""Reads the facts of a base in Stable Diffusion layout from its JSON files. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defectory.engine.backbones.configs import TextEncoderConfig, read_config
from defectory.engine.backbones.facts import BaseFacts
from defectory.engine.backbones.others import COPY_AGAIN
from defectory.engine.backbones.unet_facts import (
    prediction_type_of,
    read_networks,
    refuse_other_networks,
    require_parts,
)
from defectory.errors import WeightsError

PARTS: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),
}
"""The parts of a base and their allowed classes; any scheduler of diffusers is allowed."""


def facts_of(folder: Path) -> BaseFacts:
    """Read a base folder's JSON files, and return its facts.

    Args:
        folder: base in Stable Diffusion layout.

    Raises:
        WeightsError: the base belongs to another family, which the message names, lacks a part, or has an impossible
            configuration.
    """
    require_parts(folder, PARTS)
    unet, vae, schedule = read_networks(folder)
    text = read_config(TextEncoderConfig, folder / "text_encoder" / "config.json")
    refuse_other_networks(folder, unet, vae, schedule, besides=(None, "text"))
    prediction_type = prediction_type_of(folder, unet, schedule)
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
        prediction_type=prediction_type,
        text_width=text.hidden_size,
    )
