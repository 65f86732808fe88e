"""Defines named sets of settings for the machines and purposes they are named after."""

from __future__ import annotations

from typing import Any

CONCEPT_ON_CPU: dict[str, Any] = {"learning_rate": 1.2e-3, "ema_decay": 0.97, "min_snr_floor": 1.0}
CONDITION_ON_CPU: dict[str, Any] = {"learning_rate": 2.4e-3, "min_snr_floor": 1.0, "defect_weight": 5.0}
"""For the embedded base (decisions 013 and 018)."""
ADAPTERS_ON_CPU: dict[str, Any] = {"lora_learning_rate": 3e-3}
"""For the embedded base (decision 060)."""
CONCEPT_OF_DEMO: dict[str, Any] = {**CONCEPT_ON_CPU, "optimizer": "muon", "learning_rate": 4.8e-3}
CONDITION_OF_DEMO: dict[str, Any] = {**CONDITION_ON_CPU, "optimizer": "muon", "learning_rate": 9.6e-3}
"""The same with Muon (decision 025), measured only on the borescope demo."""
SEGMENTER_OF_DEMO: dict[str, Any] = {"learning_rate": 2e-3}
"""For every family with shipped weights, on the borescope demo; too high for other data (decisions 014, 053, 054)."""
SPLIT_OF_DEMO: dict[str, Any] = {"num_labelled": 24}
"""A user's case: two dozen labelled images of the parts, and many more without a defect."""

DRIVERS_OF_DEMO: dict[str, Any] = {"kind": "grey"}
"""Measured only on the borescope demo (decision 031)."""

SMALL_STATE: dict[str, Any] = {"optimizer": "adamw8bit", "ema_decay": None}
"""A quarter of AdamW's moments, and no average of the weights."""
STEPS_OF_DREAMBOOTH: dict[str, Any] = {
    "num_steps": 800,
    "learning_rate": 2e-6,
    "gradient_checkpointing": True,
    "checkpoint_every": 400,
}
STEPS_OF_LORA: dict[str, Any] = {"num_steps": 1000, "gradient_checkpointing": True, "checkpoint_every": 500}
LORA_ON_GPU: dict[str, Any] = {"method": "lora", "train_text_encoder": False}


def gpu_preset(*, concept: dict[str, Any], condition: dict[str, Any], drafts_per_batch: int) -> dict[str, Any]:
    """Return the settings of Stable Diffusion 1.5 on a GPU.

    Args:
        concept: settings that differ from the others'.
        condition: of its training, likewise.
        drafts_per_batch: drawn at a time.
    """
    return {
        "base": "sd15",
        "tiling": {"tile_px": 512},
        "drivers": {"grid_px": 96, "threshold_block_px": 11},
        "concept": {
            "prior_loss_weight": 1.0,
            "num_class_images": 200,
            "check_images": 8,
            "train_text_encoder": False,
            **concept,
        },
        "condition": {
            "init": "copy",
            "training": {
                "num_steps": 8000,
                "learning_rate": 1e-5,
                "gradient_checkpointing": True,
                "checkpoint_every": 1000,
                "validate_every": 1000,
                **condition,
            },
        },
        "synthesis": {
            "num_images": 1000,
            "num_inference_steps": 30,
            "guidance_scale": 4.0,
            "driver_guidance": 1.0,
            "batch_size": drafts_per_batch,
        },
        "segmentation": {
            "num_steps": 4000,
            "batch_size": 8,
            "input_px": 768,
            "validate_every": 500,
            "seeds": [0, 1, 2],
        },
    }


PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "split": SPLIT_OF_DEMO,
        "drivers": DRIVERS_OF_DEMO,
        "concept": {
            "num_class_images": 32,
            **ADAPTERS_ON_CPU,
            "training": {"num_steps": 110, **CONCEPT_OF_DEMO, "variants_per_image": 4, "validate_every": 55},
        },
        "prompts": {"defect_noun": "crack"},
        "condition": {
            "training": {"num_steps": 200, **CONDITION_OF_DEMO, "variants_per_image": 4, "validate_every": 100}
        },
        "synthesis": {"num_images": 128, "num_inference_steps": 6, "calibration_drafts": 16},
        "segmentation": {"num_steps": 200, **SEGMENTER_OF_DEMO, "input_px": 160, "validate_every": 50},
    },
    "demo-short": {
        "split": SPLIT_OF_DEMO,
        "drivers": DRIVERS_OF_DEMO,
        "concept": {
            "num_class_images": 8,
            **ADAPTERS_ON_CPU,
            "training": {"num_steps": 20, **CONCEPT_OF_DEMO, "variants_per_image": 4},
        },
        "prompts": {"defect_noun": "crack"},
        "condition": {"training": {"num_steps": 28, **CONDITION_OF_DEMO, "variants_per_image": 4}},
        "synthesis": {"num_images": 40, "num_inference_steps": 6, "calibration_drafts": 16},
        "segmentation": {"num_steps": 90, **SEGMENTER_OF_DEMO, "input_px": 160, "validate_every": 45},
    },
    "demo-full": {
        "split": SPLIT_OF_DEMO,
        "drivers": DRIVERS_OF_DEMO,
        "concept": {**ADAPTERS_ON_CPU, "training": {"num_steps": 300, **CONCEPT_OF_DEMO}},
        "prompts": {"defect_noun": "crack"},
        "condition": {"training": {"num_steps": 800, **CONDITION_OF_DEMO}},
        "synthesis": {"num_images": 360, "num_inference_steps": 12},
        "segmentation": {"num_steps": 480, **SEGMENTER_OF_DEMO, "input_px": 160, "validate_every": 80},
        "study": {"recipe": "scarcity", "out": "study", "num_labelled": [12, 24, 48]},
    },
    "cpu": {
        "concept": {**ADAPTERS_ON_CPU, "training": {"num_steps": 300, **CONCEPT_ON_CPU}},
        "condition": {"training": {"num_steps": 700, **CONDITION_ON_CPU}},
        "synthesis": {"num_images": 240, "num_inference_steps": 12},
        "segmentation": {"num_steps": 400},
    },
    "gpu-8gb": gpu_preset(
        concept={**LORA_ON_GPU, "training": {**STEPS_OF_LORA, "batch_size": 1, "gradient_accumulation_steps": 4}},
        condition={"batch_size": 1, "gradient_accumulation_steps": 8, **SMALL_STATE},
        drafts_per_batch=1,
    ),
    "gpu-12gb": gpu_preset(
        concept={**LORA_ON_GPU, "training": {**STEPS_OF_LORA, "batch_size": 2, "gradient_accumulation_steps": 2}},
        condition={"batch_size": 4, "gradient_accumulation_steps": 2, **SMALL_STATE},
        drafts_per_batch=4,
    ),
    "gpu-16gb": gpu_preset(
        concept={"training": {**STEPS_OF_DREAMBOOTH, "batch_size": 4, **SMALL_STATE}},
        condition={"batch_size": 8, "optimizer": "adamw8bit", "ema_decay": 0.999},
        drafts_per_batch=8,
    ),
    "gpu-24gb": gpu_preset(
        concept={"training": {**STEPS_OF_DREAMBOOTH, "batch_size": 4, "optimizer": "adamw8bit", "ema_decay": 0.995}},
        condition={"batch_size": 8, "ema_decay": 0.999},
        drafts_per_batch=8,
    ),
    "gpu-80gb": gpu_preset(
        concept={
            "train_text_encoder": True,
            "training": {
                **STEPS_OF_DREAMBOOTH,
                "batch_size": 16,
                "num_steps": 400,
                "ema_decay": 0.99,
                "gradient_checkpointing": False,
            },
        },
        condition={"batch_size": 32, "num_steps": 3000, "ema_decay": 0.999, "gradient_checkpointing": False},
        drafts_per_batch=32,
    ),
}
"""`demo`, `demo-short` and `demo-full`: the borescope demo. `cpu`: embedded base on a workstation without a GPU.
`gpu-8gb` to `gpu-80gb`: Stable Diffusion 1.5 on one GPU with that memory, which is reckoned from the networks' sizes;
settings of training are those that the field uses. No run on a GPU has been timed.
"""
GPU_PRESETS = {name: int(name.removeprefix("gpu-").removesuffix("gb")) for name in PRESETS if name.startswith("gpu-")}
"""Memory of the GPU that a preset is for, GiB, from small to large."""


def next_smaller(preset: str | None) -> str | None:
    """Return the preset that needs less GPU memory than this one; None if there is none, or this is none for a GPU."""
    names = list(GPU_PRESETS)
    return names[names.index(preset) - 1] if preset in names[1:] else None
