"""Checks the JSON files that bases with a UNet and a CLIP text encoder share. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defectory.engine.backbones.configs import AutoencoderConfig, SchedulerConfig, UNetConfig, read_config
from defectory.engine.backbones.others import COPY_AGAIN, GIVE_ANOTHER, classes_of, index_of
from defectory.errors import WeightsError

PREDICTIONS = ("epsilon", "v_prediction")
SCHEDULER_FILE = "scheduler/scheduler_config.json"
_FAMILY_BY_CHANNELS = {
    9: "Stable Diffusion for inpainting",
    8: "InstructPix2Pix, an image editor",
    7: "the Stable Diffusion upscaler",
    5: "Stable Diffusion with depth",
}
"""Maps the input channels of a UNet for four-channel latents to its family."""
SD2_TEXT_WIDTH = 1024
"""Width of the text encoder of Stable Diffusion 2.x (OpenCLIP ViT-H)."""
SD2_LATENT_PX = 96
"""Side of the latents of Stable Diffusion 2.0 and 2.1 for 768 px, both of which predict v."""


def require_parts(folder: Path, parts: Mapping[str, tuple[str, ...]]) -> None:
    """Require an index and folders of all parts of a family.

    Args:
        folder: of the base.
        parts: allowed classes of each part; an empty tuple allows any.

    Raises:
        WeightsError: a part is missing or of another class.
    """
    where, index = folder / "model_index.json", index_of(folder)
    pipeline, classes = index["_class_name"], classes_of(index)
    for part, allowed in parts.items():
        if part in index and part not in classes:
            raise WeightsError(where, f"does not name a library and a class for {part}", COPY_AGAIN)
        if part not in classes:
            todo = COPY_AGAIN if pipeline.startswith("StableDiffusion") else GIVE_ANOTHER
            raise WeightsError(where, f"names no {part} ({pipeline})", todo)
        if allowed and classes[part] not in allowed:
            found = f"its {part} is a {classes[part]}, {allowed[0]} was expected ({pipeline})"
            raise WeightsError(folder, found, GIVE_ANOTHER)
    for part in parts:
        if not (folder / part).is_dir():
            raise WeightsError(folder, f"the part {part}/ is missing", COPY_AGAIN)


def read_networks(folder: Path) -> tuple[UNetConfig, AutoencoderConfig, SchedulerConfig]:
    """Read the settings of UNet, autoencoder and scheduler.

    Raises:
        WeightsError: a file cannot be read, or a setting is impossible.
    """
    return (
        read_config(UNetConfig, folder / "unet" / "config.json"),
        read_config(AutoencoderConfig, folder / "vae" / "config.json"),
        read_config(SchedulerConfig, folder / SCHEDULER_FILE),
    )


def refuse_other_networks(
    folder: Path,
    unet: UNetConfig,
    vae: AutoencoderConfig,
    schedule: SchedulerConfig,
    *,
    besides: tuple[str | None, ...],
) -> None:
    """Refuse other families that only the networks' configurations reveal.

    Args:
        folder: of the base.
        unet: settings of its UNet.
        vae: settings of its autoencoder.
        schedule: settings of its scheduler.
        besides: what the family's UNet may take besides text (`addition_embed_type`).

    Raises:
        WeightsError: the networks are of another family.
    """
    if unet.addition_embed_type == "text_time" and "text_time" not in besides:
        raise WeightsError(
            folder,
            "its UNet is of Stable Diffusion XL (it takes sizes as text_time), but its pipeline is of 1.x or 2.x",
            "correct model_index.json, or give another base",
        )
    if unet.in_channels != vae.latent_channels:
        family = _FAMILY_BY_CHANNELS.get(unet.in_channels) if vae.latent_channels == 4 else None
        found = f"its UNet takes {unet.in_channels} channels, latents have {vae.latent_channels}"
        raise WeightsError(folder, f"is {family} ({found})" if family else found, GIVE_ANOTHER)
    if unet.out_channels != unet.in_channels:
        raise WeightsError(
            folder, f"its UNet takes {unet.in_channels} channels and gives {unet.out_channels}", GIVE_ANOTHER
        )
    if vae.latents_mean is not None or vae.shift_factor:
        name = "shift_factor" if vae.latents_mean is None else "latents_mean"
        raise WeightsError(folder, f"its autoencoder shifts latents ({name}), as Playground v2.5 does", GIVE_ANOTHER)
    if unet.time_cond_proj_dim is not None:
        raise WeightsError(
            folder, "is a latent consistency model, distilled for few steps (time_cond_proj_dim)", GIVE_ANOTHER
        )
    if unet.class_embed_type is not None or unet.num_class_embeds is not None or unet.encoder_hid_dim is not None:
        raise WeightsError(
            folder, "its UNet takes more than latents, time and text (class or image embeddings)", GIVE_ANOTHER
        )
    if unet.addition_embed_type not in besides:
        raise WeightsError(folder, f"its UNet takes {unet.addition_embed_type or 'nothing'} besides text", GIVE_ANOTHER)
    if "FlowMatch" in schedule.class_name or schedule.prediction_type == "flow_prediction":
        raise WeightsError(folder, f"is a flow-matching base ({schedule.class_name})", GIVE_ANOTHER)


def prediction_type_of(folder: Path, unet: UNetConfig, schedule: SchedulerConfig) -> str:
    """Return what a base's UNet predicts: `epsilon` or `v_prediction`.

    Only the scheduler's file says it. Where that file says nothing, diffusers assumes epsilon, which is right for 1.x
    and XL, whose first files have no such entry. Bases of 2.x predict one or the other; those for 768 px predict v.

    Raises:
        WeightsError: it is missing in a base of 2.x, contradicts the layout, or is neither of the two.
    """
    found, where = schedule.prediction_type, folder / SCHEDULER_FILE
    is_sd2 = unet.cross_attention_dim == SD2_TEXT_WIDTH
    if is_sd2 and unet.sample_size == SD2_LATENT_PX and found in (None, "epsilon"):
        raise WeightsError(
            where,
            f"{'names no prediction_type' if found is None else 'says prediction_type epsilon'}, but Stable Diffusion "
            "2.x for 768 px predicts v",
            'set "prediction_type": "v_prediction" there, or copy the base again',
        )
    if is_sd2 and found is None:
        raise WeightsError(
            where,
            "names no prediction_type, and bases of Stable Diffusion 2.x differ in it",
            'set "prediction_type" there to "epsilon" (512 px) or "v_prediction" (768 px)',
        )
    if found is not None and found not in PREDICTIONS:
        raise WeightsError(folder, f"its UNet predicts {found}, epsilon or v_prediction was expected", GIVE_ANOTHER)
    return found or "epsilon"
