"""Writes the settings of a checkpoint's parts, which a single file does not hold, from the shapes of its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from defectory.engine.backbones.single_file import CLIP, CONV_IN, OPEN_CLIP, UNET, VAE, Checkpoint
from defectory.errors import WeightsError
from defectory.files import write_json

SD2_LAYERS = 23
"""Layers of OpenCLIP ViT-H that Stable Diffusion 2.x reads: it skips the last."""
HEAD_WIDTH = 64
"""Width of an attention head of CLIP, OpenCLIP and the UNet of 2.x."""
SD1_HEADS = 8
"""Heads of every attention of the UNet of 1.x."""


def write_settings(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `model_index.json` and the settings of UNet, autoencoder, text encoder and scheduler.

    Raises:
        WeightsError: the tensors are not those of Stable Diffusion.
    """
    try:
        settings = {
            "unet/config.json": _unet(checkpoint),
            "vae/config.json": _vae(checkpoint),
            "text_encoder/config.json": _text(checkpoint),
            "scheduler/scheduler_config.json": _scheduler(checkpoint),
        }
    except (KeyError, IndexError, StopIteration) as error:
        raise WeightsError(
            checkpoint.path, f"lacks a tensor of Stable Diffusion ({error})", "give the whole checkpoint"
        ) from None
    scheduler = str(settings["scheduler/scheduler_config.json"]["_class_name"])
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for name, content in {"model_index.json": index, **settings}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(folder / name, content)


def _unet(checkpoint: Checkpoint) -> dict[str, Any]:
    shapes = checkpoint.header.shapes
    widths, layers, attends = [], [], []
    number = 1
    while any(name.startswith(f"{UNET}input_blocks.{number}.") for name in shapes):
        block = f"{UNET}input_blocks.{number}"
        if number == 1 or f"{block}.0.op.weight" in shapes:
            widths.append(0)
            layers.append(0)
            attends.append(False)
        if f"{block}.0.op.weight" not in shapes:
            widths[-1] = shapes[f"{block}.0.out_layers.3.weight"][0]
            layers[-1] += 1
            attends[-1] = attends[-1] or f"{block}.1.norm.weight" in shapes
        number += 1
    reads_text = next(name for name in shapes if name.startswith(UNET) and name.endswith("attn2.to_k.weight"))
    projection = next(name for name in shapes if name.startswith(UNET) and name.endswith("proj_in.weight"))
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": checkpoint.latent_px,
        "in_channels": shapes[CONV_IN][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": layers[0],
        "down_block_types": ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
        "cross_attention_dim": shapes[reads_text][1],
        "attention_head_dim": [width // HEAD_WIDTH for width in widths] if checkpoint.is_sd2 else SD1_HEADS,
        "use_linear_projection": len(shapes[projection]) == 2,
    }


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
        "scaling_factor": 0.18215,
    }


def _text(checkpoint: Checkpoint) -> dict[str, Any]:
    shapes, is_sd2 = checkpoint.header.shapes, checkpoint.is_sd2
    if is_sd2:
        tokens, positions = shapes[f"{OPEN_CLIP}token_embedding.weight"], shapes[f"{OPEN_CLIP}positional_embedding"]
        layer, widened = f"{OPEN_CLIP}transformer.resblocks.", "mlp.c_fc.weight"
    else:
        embeddings = f"{CLIP}embeddings."
        tokens = shapes[f"{embeddings}token_embedding.weight"]
        positions = shapes[f"{embeddings}position_embedding.weight"]
        layer, widened = f"{CLIP}encoder.layers.", "mlp.fc1.weight"
    num_layers = 0
    while f"{layer}{num_layers}.{widened}" in shapes:
        num_layers += 1
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": tokens[0],
        "hidden_size": tokens[1],
        "projection_dim": tokens[1],
        "intermediate_size": shapes[f"{layer}0.{widened}"][0],
        "num_hidden_layers": min(num_layers, SD2_LAYERS) if is_sd2 else num_layers,
        "num_attention_heads": max(1, tokens[1] // HEAD_WIDTH),
        "max_position_embeddings": positions[0],
        "hidden_act": "gelu" if is_sd2 else "quick_gelu",
        "bos_token_id": tokens[0] - 2,
        "eos_token_id": tokens[0] - 1,
        "pad_token_id": 0 if is_sd2 else tokens[0] - 1,
    }


def _scheduler(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler" if checkpoint.is_sd2 else "PNDMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": checkpoint.prediction_type,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        **({"clip_sample": False} if checkpoint.is_sd2 else {"skip_prk_steps": True}),
    }
