"""Reads the facts of a base in the layout of Stable Diffusion XL from its JSON files. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defectory.engine.backbones.configs import TextEncoderConfig, read_config
from defectory.engine.backbones.facts import BaseFacts
from defectory.engine.backbones.others import COPY_AGAIN, GIVE_ANOTHER, classes_of, index_of
from defectory.engine.backbones.unet_facts import (
    prediction_type_of,
    read_networks,
    refuse_other_networks,
    require_parts,
)
from defectory.errors import WeightsError

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
PARTS: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": TOKENIZERS,
    "tokenizer_2": TOKENIZERS,
    "scheduler": (),
}
"""The parts of a base and their allowed classes; any scheduler of diffusers is allowed."""
NUM_SIZES = 6
"""Numbers that the UNet takes as sizes: two sides of the image, two of the crop's corner, two of the target."""


def facts_of(folder: Path) -> BaseFacts:
    """Read a base folder's JSON files, and return its facts.

    Raises:
        WeightsError: the base is the refiner or of another family, lacks a part, or has an impossible configuration.
    """
    index = index_of(folder)
    if index.get("requires_aesthetics_score") or (
        "text_encoder_2" in classes_of(index) and index.get("text_encoder") == [None, None]
    ):
        raise WeightsError(folder, "is the refiner of Stable Diffusion XL, not its base", GIVE_ANOTHER)
    require_parts(folder, PARTS)
    unet, vae, schedule = read_networks(folder)
    refuse_other_networks(folder, unet, vae, schedule, besides=("text_time",))
    prediction_type = prediction_type_of(folder, unet, schedule)
    texts = [
        read_config(TextEncoderConfig, folder / part / "config.json") for part in ("text_encoder", "text_encoder_2")
    ]
    width = sum(text.hidden_size for text in texts)
    if width != unet.cross_attention_dim:
        raise WeightsError(
            folder,
            f"the text encoders are {texts[0].hidden_size} and {texts[1].hidden_size} wide and the UNet reads texts of "
            f"{unet.cross_attention_dim}",
            COPY_AGAIN,
        )
    takes = unet.projection_class_embeddings_input_dim
    gets = texts[1].projection_dim + NUM_SIZES * (unet.addition_time_embed_dim or 0)
    if takes != gets:
        raise WeightsError(folder, f"its UNet takes {takes} values of text and sizes, and gets {gets}", COPY_AGAIN)
    factor = 2 ** (len(vae.block_out_channels) - 1)
    return BaseFacts(
        family="Stable Diffusion XL",
        tile_px=unet.sample_size * factor,
        latent_factor=factor,
        size_multiple_px=factor * 2 ** (len(unet.block_out_channels) - 1),
        prediction_type=prediction_type,
        text_width=width,
    )
