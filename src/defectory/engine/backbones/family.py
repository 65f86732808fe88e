"""Which family of diffusion models a base folder is of, told from its JSON files alone. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from defectory.engine.backbones.files import read_json
from defectory.errors import WeightsError

GIVE_ANOTHER = "it is not supported yet; give a Stable Diffusion 1.x or 2.x base, or `embedded`"
COPY_AGAIN = "copy the base again or give another one"
PARTS: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),
}
"""The parts of a base and the classes that may stand for them; a scheduler may be any that diffusers has."""
_FAMILY_BY_PIPELINE: tuple[tuple[str, str], ...] = (
    ("StableDiffusionXL", "Stable Diffusion XL"),
    ("StableDiffusion3", "Stable Diffusion 3, a flow-matching transformer"),
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
"""Beginning of a pipeline's class name -> what it is; the longer names come before their own beginnings."""
_FAMILY_BY_CHANNELS = {
    9: "Stable Diffusion for inpainting",
    8: "InstructPix2Pix, an image editor",
    7: "the Stable Diffusion upscaler",
    5: "Stable Diffusion with depth",
}
"""Input channels of a UNet for latents of four channels -> what it is."""

Size = Annotated[int, Field(ge=1, le=1 << 20, strict=True)]
Few = Annotated[int, Field(ge=1, le=200, strict=True)]
Names = Annotated[list[str], Field(min_length=1, max_length=16)]
Widths = Annotated[list[Size], Field(min_length=1, max_length=16)]
Config = TypeVar("Config", bound="_Config")


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class UNetConfig(_Config):
    """What must be known of a UNet before it is loaded."""

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


class AutoencoderConfig(_Config):
    """What must be known of an autoencoder before it is loaded."""

    block_out_channels: Widths
    latent_channels: Size
    layers_per_block: Few = 1
    scaling_factor: float | int = 0.18215


class TextEncoderConfig(_Config):
    """What must be known of a text encoder before it is loaded."""

    hidden_size: Size
    vocab_size: Size
    num_hidden_layers: Few
    num_attention_heads: Few
    intermediate_size: Size
    max_position_embeddings: Size = 77


class SchedulerConfig(_Config):
    """What must be known of a base's noise schedule."""

    class_name: str = Field(alias="_class_name")
    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000, strict=True)] = 1000
    prediction_type: str = "epsilon"


class BaseFacts(BaseModel):
    """What a base is, for people: its family, the side of its native tiles in pixels, and what its UNet predicts."""

    model_config = ConfigDict(frozen=True)

    family: Literal["Stable Diffusion", "embedded"]
    tile_px: int
    latent_factor: int
    """Image pixels per latent pixel and side."""
    prediction_type: str
    text_width: int


def facts_of(folder: Path) -> BaseFacts:
    """Read a base folder's JSON files and say what it is.

    Args:
        folder: base in Stable Diffusion layout.

    Raises:
        WeightsError: no base of this kind: of another family, which is named, or with a part missing or a configuration
            that cannot be.
    """
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise _not_a_layout(folder)
    index = read_json(index_file)
    _refuse_other_pipelines(folder, index)
    for part in PARTS:
        if not (folder / part).is_dir():
            raise WeightsError(folder, f"the part {part}/ is missing", COPY_AGAIN)
    unet = _read(UNetConfig, folder / "unet" / "config.json")
    vae = _read(AutoencoderConfig, folder / "vae" / "config.json")
    text = _read(TextEncoderConfig, folder / "text_encoder" / "config.json")
    schedule = _read(SchedulerConfig, folder / "scheduler" / "scheduler_config.json")
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
        prediction_type=schedule.prediction_type,
        text_width=text.hidden_size,
    )


def _not_a_layout(folder: Path) -> WeightsError:
    """Return what is said of a folder without `model_index.json`, by what lies there."""
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
            "convert it with diffusers and give the folder",
        )
    return WeightsError(folder, "no model_index.json here", "give a folder in Stable Diffusion layout")


def _refuse_other_pipelines(folder: Path, index: Mapping[str, Any]) -> None:
    """Refuse what the index names: another pipeline, further parts, other classes."""
    where = folder / "model_index.json"
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str):
        raise WeightsError(where, "names no pipeline (_class_name)", COPY_AGAIN)
    for beginning, family in _FAMILY_BY_PIPELINE:
        if pipeline.startswith(beginning):
            raise WeightsError(folder, f"is {family} ({pipeline})", GIVE_ANOTHER)
    classes: dict[str, str] = {}
    for part, named in index.items():
        if part.startswith("_") or not isinstance(named, list) or len(named) != 2:
            if part in PARTS:
                raise WeightsError(where, f"does not name a library and a class for {part}", COPY_AGAIN)
            continue
        if isinstance(named[1], str):
            classes[part] = named[1]
    if "transformer" in classes or (folder / "transformer").is_dir():
        raise WeightsError(
            folder, f"is a transformer base ({pipeline}, {classes.get('transformer', 'transformer/')})", GIVE_ANOTHER
        )
    second = next(
        (part for part in ("text_encoder_2", "text_encoder_3") if part in classes or (folder / part).is_dir()), None
    )
    if second is not None:
        raise WeightsError(
            folder, f"has a second text encoder ({second}), as Stable Diffusion XL ({pipeline})", GIVE_ANOTHER
        )
    for part, allowed in PARTS.items():
        if part not in classes:
            raise WeightsError(
                where,
                f"names no {part} ({pipeline})",
                GIVE_ANOTHER if not pipeline.startswith("StableDiffusion") else COPY_AGAIN,
            )
        if allowed and classes[part] not in allowed:
            raise WeightsError(
                folder, f"its {part} is a {classes[part]}, {allowed[0]} was expected ({pipeline})", GIVE_ANOTHER
            )


def _refuse_other_networks(folder: Path, unet: UNetConfig, vae: AutoencoderConfig, schedule: SchedulerConfig) -> None:
    """Refuse what only the networks' own configurations tell."""
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


def _read(kind: type[Config], path: Path) -> Config:
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
