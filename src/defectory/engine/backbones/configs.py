"""Defines and reads the settings of a base's parts that are checked before it is loaded. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from defectory.engine.backbones.files import read_json
from defectory.engine.backbones.others import COPY_AGAIN
from defectory.errors import WeightsError

Size = Annotated[int, Field(ge=1, le=1 << 20, strict=True)]
Few = Annotated[int, Field(ge=1, le=200, strict=True)]
Names = Annotated[list[str], Field(min_length=1, max_length=16)]
Widths = Annotated[list[Size], Field(min_length=1, max_length=16)]
Config = TypeVar("Config", bound="CheckedConfig")


class CheckedConfig(BaseModel):
    """Settings of one part of a base; keys that are not listed are not checked."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class UNetConfig(CheckedConfig):
    """Settings of a UNet that are checked before it is loaded."""

    sample_size: Size
    in_channels: Size
    out_channels: Size
    block_out_channels: Widths
    cross_attention_dim: Size
    layers_per_block: Few | Annotated[list[Few], Field(max_length=16)] = 2
    down_block_types: Names
    up_block_types: Names
    transformer_layers_per_block: Few | list[Any] = 1
    addition_embed_type: str | None = None
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    encoder_hid_dim: int | None = None
    time_cond_proj_dim: int | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None


class TransformerConfig(CheckedConfig):
    """Settings of a transformer of Stable Diffusion 3 that are checked before it is loaded."""

    sample_size: Size
    patch_size: Size
    in_channels: Size
    out_channels: Size | None = None
    num_layers: Few
    attention_head_dim: Size
    num_attention_heads: Size
    joint_attention_dim: Size
    caption_projection_dim: Size
    pooled_projection_dim: Size
    pos_embed_max_size: Size


class T5Config(CheckedConfig):
    """Settings of a T5 text encoder that are checked before it is loaded."""

    d_model: Size
    vocab_size: Size
    num_layers: Few


class AutoencoderConfig(CheckedConfig):
    """Settings of an autoencoder that are checked before it is loaded."""

    block_out_channels: Widths
    latent_channels: Size
    layers_per_block: Few = 1
    scaling_factor: float | int = 0.18215
    latents_mean: Any = None
    shift_factor: Any = None


class TextEncoderConfig(CheckedConfig):
    """Settings of a text encoder that are checked before it is loaded."""

    hidden_size: Size
    vocab_size: Size
    num_hidden_layers: Few
    num_attention_heads: Few
    intermediate_size: Size
    max_position_embeddings: Size = 77
    projection_dim: Size = 512


class SchedulerConfig(CheckedConfig):
    """Settings of a base's noise schedule that are checked before it is loaded."""

    class_name: str = Field(alias="_class_name")
    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000, strict=True)] = 1000
    prediction_type: str | None = None
    """None if the file names none, which diffusers reads as epsilon."""
    use_dynamic_shifting: bool | None = None
    invert_sigmas: bool | None = None
    stochastic_sampling: bool | None = None


def read_config(kind: type[Config], path: Path) -> Config:
    """Read and check the settings of one part.

    Raises:
        WeightsError: the file cannot be read, the part is quantized, or a setting is missing or impossible.
    """
    content = read_json(path)
    if content.get("quantization_config") is not None:
        raise WeightsError(path.parent, "is quantized (quantization_config)", "give the base in its full precision")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "its content"
        found = (
            "is missing"
            if first["type"] == "missing"
            else f"is {_short(content.get(key))}: {first['msg'][0].lower()}{first['msg'][1:]}"
        )
        raise WeightsError(path, f"{key} {found}", COPY_AGAIN) from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
