"""Reads the facts of a base in the layout of Stable Diffusion 3 from its JSON files. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defectory.engine.backbones.configs import (
    AutoencoderConfig,
    SchedulerConfig,
    T5Config,
    TextEncoderConfig,
    TransformerConfig,
    read_config,
)
from defectory.engine.backbones.facts import FLOW, BaseFacts
from defectory.engine.backbones.others import COPY_AGAIN, GIVE_ANOTHER, classes_of, index_of
from defectory.engine.backbones.unet_facts import SCHEDULER_FILE, require_parts
from defectory.errors import WeightsError

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
PARTS: Mapping[str, tuple[str, ...]] = {
    "transformer": ("SD3Transformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModelWithProjection",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": TOKENIZERS,
    "tokenizer_2": TOKENIZERS,
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
}
"""The parts of a base and their allowed classes."""
T5_PARTS: Mapping[str, tuple[str, ...]] = {
    "text_encoder_3": ("T5EncoderModel",),
    "tokenizer_3": ("T5TokenizerFast", "T5Tokenizer"),
}
"""The same of its third text encoder, which may be left out."""


def has_t5(folder: Path) -> bool:
    """Check whether the index of a base names a third text encoder."""
    return "text_encoder_3" in classes_of(index_of(folder))


def facts_of(folder: Path) -> BaseFacts:
    """Read a base folder's JSON files, and return its facts.

    Raises:
        WeightsError: the base is of another family, lacks a part, or has an impossible configuration.
    """
    with_t5 = has_t5(folder)
    require_parts(folder, {**PARTS, **T5_PARTS} if with_t5 else PARTS)
    transformer = read_config(TransformerConfig, folder / "transformer" / "config.json")
    vae = read_config(AutoencoderConfig, folder / "vae" / "config.json")
    schedule = read_config(SchedulerConfig, folder / SCHEDULER_FILE)
    texts = [
        read_config(TextEncoderConfig, folder / part / "config.json") for part in ("text_encoder", "text_encoder_2")
    ]
    if transformer.in_channels != vae.latent_channels:
        found = f"its transformer takes {transformer.in_channels} channels, latents have {vae.latent_channels}"
        raise WeightsError(folder, found, GIVE_ANOTHER)
    if transformer.out_channels not in (None, transformer.in_channels):
        found = f"its transformer takes {transformer.in_channels} channels and gives {transformer.out_channels}"
        raise WeightsError(folder, found, GIVE_ANOTHER)
    if vae.shift_factor is None or vae.latents_mean is not None:
        raise WeightsError(folder, "its autoencoder names no shift_factor, as that of this family does", COPY_AGAIN)
    for key in ("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"):
        if getattr(schedule, key):
            raise WeightsError(folder / SCHEDULER_FILE, f"{key} is not supported", GIVE_ANOTHER)
    if transformer.num_layers < 2:
        raise WeightsError(
            folder, "its transformer has one layer; a control network copies all but the last", COPY_AGAIN
        )
    _require_widths(folder, transformer, texts)
    if with_t5:
        t5 = read_config(T5Config, folder / "text_encoder_3" / "config.json")
        if t5.d_model != transformer.joint_attention_dim:
            found = f"its T5 is {t5.d_model} wide and the transformer reads texts of {transformer.joint_attention_dim}"
            raise WeightsError(folder, found, COPY_AGAIN)
    factor = 2 ** (len(vae.block_out_channels) - 1)
    return BaseFacts(
        family="Stable Diffusion 3",
        tile_px=transformer.sample_size * factor,
        latent_factor=factor,
        size_multiple_px=factor * transformer.patch_size,
        prediction_type=FLOW,
        text_width=transformer.joint_attention_dim,
        most_px=factor * transformer.patch_size * transformer.pos_embed_max_size,
        is_experimental=True,
        has_unet=False,
        takes_new_tokens=False,
    )


def _require_widths(folder: Path, transformer: TransformerConfig, texts: list[TextEncoderConfig]) -> None:
    """Require widths of texts that fit the transformer.

    Raises:
        WeightsError: they do not.
    """
    width, pooled = sum(text.hidden_size for text in texts), sum(text.projection_dim for text in texts)
    inner = transformer.num_attention_heads * transformer.attention_head_dim
    if width > transformer.joint_attention_dim:
        found = (
            f"its CLIP encoders are {width} wide and the transformer reads texts of {transformer.joint_attention_dim}"
        )
    elif pooled != transformer.pooled_projection_dim:
        found = f"its transformer takes a pooled text of {transformer.pooled_projection_dim}, and gets {pooled}"
    elif transformer.caption_projection_dim != inner:
        found = f"its transformer is {inner} wide and makes texts {transformer.caption_projection_dim} wide"
    else:
        return
    raise WeightsError(folder, found, COPY_AGAIN)
