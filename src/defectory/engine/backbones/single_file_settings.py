"""Writes the settings of a checkpoint's parts, which a single file does not hold, from the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defectory.engine.backbones.single_file import (
    CLIP,
    CLIP_XL,
    CONV_IN,
    GIVE_WHOLE,
    OPEN_CLIP,
    OPEN_CLIP_XL,
    SIZES_IN,
    UNET,
    VAE,
    Checkpoint,
)
from defectory.errors import WeightsError
from defectory.files import write_json

SD2_LAYERS = 23
"""Layers of OpenCLIP ViT-H that Stable Diffusion 2.x reads: it skips the last."""
HEAD_WIDTH = 64
"""Width of an attention head of CLIP, OpenCLIP and the UNets of 2.x and XL."""
SD1_HEADS = 8
"""Heads of every attention of the UNet of 1.x."""
NUM_SIZES = 6
"""Numbers that the UNet of XL takes as sizes."""
SCALING_FACTOR, XL_SCALING_FACTOR = 0.18215, 0.13025


def write_settings(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `model_index.json` and the settings of UNet, autoencoder, text encoder and scheduler.

    Raises:
        WeightsError: the tensors are not those of Stable Diffusion.
    """
    is_xl = checkpoint.kind == "sdxl"
    try:
        settings = {
            "unet/config.json": _unet(checkpoint),
            "vae/config.json": _vae(checkpoint),
            **{f"{part}/config.json": content for part, content in _texts(checkpoint).items()},
            "scheduler/scheduler_config.json": _scheduler(checkpoint),
        }
    except (KeyError, IndexError, StopIteration) as error:
        raise WeightsError(checkpoint.path, f"lacks a tensor of Stable Diffusion ({error})", GIVE_WHOLE) from None
    scheduler = str(settings["scheduler/scheduler_config.json"]["_class_name"])
    index = {
        "_class_name": "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if is_xl:
        index |= {
            "force_zeros_for_empty_prompt": True,
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
    else:
        index |= {"requires_safety_checker": False, "safety_checker": [None, None]}
    for name, content in {"model_index.json": index, **settings}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(folder / name, content)


def _unet(checkpoint: Checkpoint) -> dict[str, Any]:
    shapes = checkpoint.header.shapes
    widths: list[int] = []
    layers: list[int] = []
    depths: list[int] = []  # transformer layers of each attention; 0 without
    number = 1
    while any(name.startswith(f"{UNET}input_blocks.{number}.") for name in shapes):
        block = f"{UNET}input_blocks.{number}"
        if number == 1 or f"{block}.0.op.weight" in shapes:
            widths.append(0)
            layers.append(0)
            depths.append(0)
        if f"{block}.0.op.weight" not in shapes:
            widths[-1] = shapes[f"{block}.0.out_layers.3.weight"][0]
            layers[-1] += 1
            depths[-1] = max(depths[-1], _depth(shapes, f"{block}.1"))
        number += 1
    reads_text = next(name for name in shapes if name.startswith(UNET) and name.endswith("attn2.to_k.weight"))
    projection = next(name for name in shapes if name.startswith(UNET) and name.endswith("proj_in.weight"))
    attends = [depth > 0 for depth in depths]
    settings = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": checkpoint.latent_px,
        "in_channels": shapes[CONV_IN][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": layers[0],
        "down_block_types": ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
        "cross_attention_dim": shapes[reads_text][1],
        "attention_head_dim": SD1_HEADS if checkpoint.kind == "sd1" else [width // HEAD_WIDTH for width in widths],
        "use_linear_projection": len(shapes[projection]) == 2,
    }
    if checkpoint.kind == "sdxl":
        takes, pooled = shapes[SIZES_IN][1], shapes[f"{OPEN_CLIP_XL}text_projection"][1]
        settings |= {
            "transformer_layers_per_block": [max(1, depth) for depth in depths],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (takes - pooled) // NUM_SIZES,
            "projection_class_embeddings_input_dim": takes,
        }
    return settings


def _depth(shapes: Mapping[str, tuple[int, ...]], attention: str) -> int:
    """Return the number of transformer layers of an attention; 0 if there is none of this name."""
    depth = 0
    while f"{attention}.transformer_blocks.{depth}.norm1.weight" in shapes:
        depth += 1
    return depth


def _vae(checkpoint: Checkpoint) -> dict[str, Any]:
    shapes = checkpoint.header.shapes
    widths: list[int] = []
    while (name := f"{VAE}encoder.down.{len(widths)}.block.0.conv2.weight") in shapes:
        widths.append(shapes[name][0])
    layers = 1
    while f"{VAE}encoder.down.0.block.{layers}.conv2.weight" in shapes:
        layers += 1
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": shapes[f"{VAE}decoder.conv_in.weight"][1],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "sample_size": checkpoint.latent_px * 2 ** (len(widths) - 1),
        "scaling_factor": XL_SCALING_FACTOR if checkpoint.kind == "sdxl" else SCALING_FACTOR,
    }


def _texts(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    shapes = checkpoint.header.shapes
    if checkpoint.kind == "sdxl":
        return {"text_encoder": _clip(shapes, CLIP_XL), "text_encoder_2": _open_clip(shapes, OPEN_CLIP_XL)}
    if checkpoint.kind == "sd1":
        return {"text_encoder": _clip(shapes, CLIP)}
    text = _open_clip(shapes, OPEN_CLIP)
    read = {
        "architectures": ["CLIPTextModel"],
        "projection_dim": text["hidden_size"],
        "num_hidden_layers": min(text["num_hidden_layers"], SD2_LAYERS),
    }
    return {"text_encoder": text | read}


def _clip(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, Any]:
    num_words, width = shapes[f"{prefix}embeddings.token_embedding.weight"]
    return {
        **_text(num_words, width, shapes, f"{prefix}encoder.layers.{{}}.mlp.fc1.weight"),
        "architectures": ["CLIPTextModel"],
        "projection_dim": width,
        "max_position_embeddings": shapes[f"{prefix}embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "pad_token_id": num_words - 1,
    }


def _open_clip(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, Any]:
    num_words, width = shapes[f"{prefix}token_embedding.weight"]
    return {
        **_text(num_words, width, shapes, f"{prefix}transformer.resblocks.{{}}.mlp.c_fc.weight"),
        "architectures": ["CLIPTextModelWithProjection"],
        "projection_dim": shapes.get(f"{prefix}text_projection", (0, width))[1],
        "max_position_embeddings": shapes[f"{prefix}positional_embedding"][0],
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }


def _text(num_words: int, width: int, shapes: Mapping[str, tuple[int, ...]], widened: str) -> dict[str, Any]:
    """Return what both kinds of text encoders have.

    Args:
        num_words: of the vocabulary.
        width: of a token.
        shapes: of all tensors.
        widened: name of the first layer of a block's perceptron, with `{}` for the block's number.
    """
    num_layers = 0
    while widened.format(num_layers) in shapes:
        num_layers += 1
    return {
        "model_type": "clip_text_model",
        "vocab_size": num_words,
        "hidden_size": width,
        "intermediate_size": shapes[widened.format(0)][0],
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "bos_token_id": num_words - 2,
        "eos_token_id": num_words - 1,
    }


def _scheduler(checkpoint: Checkpoint) -> dict[str, Any]:
    by_kind: dict[str, dict[str, Any]] = {
        "sd1": {"_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True},
        "sd2": {"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "clip_sample": False},
        "sdxl": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
    }
    settings = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": checkpoint.prediction_type,
        "steps_offset": 1,
        **by_kind[checkpoint.kind],
    }
    if checkpoint.has_zero_snr:  # its last timestep must be drawn
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return settings
