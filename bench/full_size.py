"""Both phases, drafts, curation and the finished pipeline on bases of full size with random weights, on a CPU.

A family's base is written with the layers of its published form, and a small borescope set is run with it, each stage
in a process of its own: LoRA, a control network, one draft. Prints time and peak resident memory per stage as rows of a
Markdown table. Nothing useful is drawn: what is checked is that the sizes fit together, and what they take.

Run: `python bench/full_size.py --work FOLDER sd15 sd21 sdxl`. FOLDER needs 30 GB; XL needs an hour and 24 GB of memory.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomlkit

from defectory import Project
from defectory.procedural.borescope import write_dataset
from defectory.stages.parts.estimate.preset_needs import TEXT, UNET, VAE

STAGES = (
    *("import", "split", "tiles", "learn-concept", "learn-condition"),
    *("plan", "calibrate", "synthesize", "curate", "finalize"),
)
TRAINING = {"num_steps": 2, "batch_size": 1, "variants_per_image": 1, "warmup_steps": 0, "gradient_checkpointing": True}
NO_AVERAGE = [f"{phase}.training.ema_decay=null" for phase in ("concept", "condition")]
"""TOML has no null."""
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
WIDE_TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "hidden_act": "gelu"}
WIDEST_TEXT = {**WIDE_TEXT, "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20}


def save_sd15(folder: Path) -> None:
    """Write a base of Stable Diffusion 1.5's size: 860 M parameters in the UNet, 512 px."""
    from diffusers import UNet2DConditionModel

    _save_with_one_encoder(folder, UNet2DConditionModel(**UNET), TEXT, prediction_type="epsilon")


def save_sd21(folder: Path) -> None:
    """Write a base of Stable Diffusion 2.1's size: 866 M parameters, OpenCLIP's text encoder, v, 768 px."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    )
    text = {**TEXT, **WIDE_TEXT, "num_hidden_layers": 23}
    _save_with_one_encoder(folder, unet, text, prediction_type="v_prediction")


def save_sdxl(folder: Path) -> None:
    """Write a base of Stable Diffusion XL's size: 2,567 M parameters, two text encoders, 1024 px."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    second = CLIPTextConfig(**{**TEXT, **WIDEST_TEXT, "num_hidden_layers": 32, "projection_dim": 1280})
    tokenizer = _tokenizer()
    tokenizer_2 = copy.deepcopy(tokenizer)
    tokenizer_2.pad_token = "!"
    pipeline: Any = StableDiffusionXLPipeline(
        vae=AutoencoderKL(**VAE, sample_size=1024, scaling_factor=0.13025),
        unet=unet,
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),
        add_watermarker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)


def _save_with_one_encoder(folder: Path, unet: Any, text: dict[str, Any], *, prediction_type: str) -> None:
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    pipeline: Any = StableDiffusionPipeline(
        unet=unet,
        vae=AutoencoderKL(**VAE, sample_size=512),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        tokenizer=_tokenizer(),
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)


def _tokenizer() -> Any:
    from defectory.engine.backbones.known import embedded_folder
    from defectory.engine.backbones.parts import load_tokenizer

    return load_tokenizer(embedded_folder() / "tokenizer")


SAVERS: dict[str, Callable[[Path], None]] = {"sd15": save_sd15, "sd21": save_sd21, "sdxl": save_sdxl}


def settings_of(base: Path, capacity: float) -> dict[str, Any]:
    """Return the settings of a short run."""
    return {
        "name": "full-size",
        "out": "run",
        "base": str(base.resolve()),
        "device": "cpu",
        "executor": "in-process",
        "data": {"path": "source/annotations.json"},
        "split": {"val_share": 0.2, "test_share": 0.2},
        "tiling": {"mode": "frame"},
        "concept": {"method": "lora", "num_class_images": 1, "prior_inference_steps": 2, "training": TRAINING},
        "condition": {"init": "copy", "capacity": capacity, "training": TRAINING},
        "synthesis": {
            "num_images": 1,
            "batch_size": 1,
            "num_inference_steps": 2,
            "guidance_scale": 1.0,
            "driver_guidance": 1.0,
            "mask_guidance": 1.5,
        },
        # random weights draw nothing
        "curation": {"checks": [], "min_fidelity": 0.0, "max_stray_share": 1e6},
    }


def child(arguments: list[str]) -> tuple[int, float, float]:
    """Run Python in a process of its own; return its exit code, seconds, and peak resident memory in GB."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began, usage.ru_maxrss * 1024 / 1e9


def main() -> int:
    """Run each family, and print a row per stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="+", choices=tuple(SAVERS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--capacity", type=float, default=1.0, help="of the control network")
    parser.add_argument("--write", action="store_true", help="write the bases alone, as a child of this program does")
    args = parser.parse_args()
    if args.write:
        for family in args.families:
            SAVERS[family](args.work / family)
        return 0
    print("| family | stage | seconds | peak memory, GB |\n|---|---|---|---|", flush=True)
    for family in args.families:
        base, folder = args.work / family, args.work / f"{family}-project"
        if not (base / "model_index.json").is_file():
            child([__file__, "--write", "--work", str(args.work), family])
        if not (folder / "project.toml").is_file():
            write_dataset(folder / "source", seed=0, num_labelled=12, num_defect_free=3)
            (folder / "project.toml").write_text(tomlkit.dumps(settings_of(base, args.capacity)))
        for stage in STAGES:
            code, seconds, gigabytes = child([__file__, "--stage", stage, str(folder)])
            print(f"| {family} | {stage} | {seconds:.0f} | {gigabytes:.1f} |", flush=True)
            if code:
                return code
        shutil.rmtree(base)
    return 0


def run_stage(stage: str, folder: Path) -> None:
    """Run one stage of a project in this process."""
    for event in Project.open(folder / "project.toml", overrides=NO_AVERAGE).events(only=stage):
        print(event, file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1] == "--stage":
        run_stage(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(main())
