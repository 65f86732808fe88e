"""What work costs, as measured; no machine's speed is in it.

Networks are counted in multiply-adds of the probe (`engine.speed`), so that an estimate follows the machine. Other work
is given in seconds on one thread of a machine whose probe makes `REFERENCE_SPEED`. Measured on 2026-11-28 on the
borescope demo with one thread, in processor time, which other work on the machine changes little; with tiles of 128 and
256 px where work grows with the tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

REFERENCE_SPEED = 79e9
"""Multiply-adds per second of the probe on one thread of the machine that the seconds below were measured on."""
REFERENCE_SPEED_FP32 = 42e9
"""The same where the probe runs in fp32: segmenters, split and the like gain less from bf16 than networks do. From one
shortened demo on a processor without it (decision 069).
"""
FP32_TIMES: Mapping[str, float] = {
    "split": 0.7,
    "learn-concept": 0.92,
    "learn-condition": 0.79,
    "calibrate": 0.72,
    "synthesize": 0.71,
    "segment": 1.3,
    "certify": 0.83,
    "tiles": 2.5,
    "report": 3.2,
}
"""Time of a stage, or of one of a group, where networks compute in fp32, beside what the constants below come to there.
From two shortened demos on a processor without instructions for bf16 (decision 070).
"""
SERIAL_SHARE = 0.32
"""Share of small networks' time that further threads do not shorten: two train a segmenter 1.5 times as fast."""
REFERENCE_PX = 128
"""Side of the tiles that seconds per tile refer to; they grow with the tile's area."""

TRAIN, MUON, PRIOR, DRAW, ENCODE = 1.32, 1.2, 1.3, 1.45, 1.42
"""Time of one multiply-add in units of the probe's: training, a step of Muon, class images, drafts with their decoding,
and latents of augmented tiles.
"""
RECOMPUTED = 4 / 3
"""Gradient checkpointing runs forward twice."""
PASSES = 3
"""A training step costs three forward passes: one forward, and two products per layer backward."""

STARTED_S = 4.0
"""To start a process that trains a segmenter beside others."""
LOADED_S, LOADED_S_PER_PARAMETER = 0.3, 3e-8
"""To load the networks of a stage, and to save them."""
DRIVER_S = 0.0042
"""To extract the driver of one tile."""
IMPORTED_S, IMPORTED_S_PER_MP = 0.003, 0.007
SPLIT_S, SPLIT_S_PER_MP = 0.04, 0.02
"""Per image, and per million pixels of it."""
CERTIFIED_SHARE = 0.55
"""Time of the certificate in that of the split."""
TILE_S = 0.0035
"""To cut and save one tile."""
BANK_S, PLANNED_S, DIFFUSION_MASK_S = 0.012, 0.04, 0.3
"""Per mask of the bank; per draft; and per mask that the mask model draws."""
MASK_MODEL_S, MASK_STEP_S, MASK_STEP_BATCH = 0.25, 0.36, 16
"""Of the mask model: per training mask, and per step of so many masks."""
REAL_TILE_S, CURATED_S = 0.02, 0.08
"""Of curation: per real tile that the checks are fitted to, and per draft."""
EXPORTED_S = 0.027
COMPARED_S = 0.02
"""Of evaluation besides predictions: per image of the sets that are compared."""
REPORTED_S = 0.025
"""Of the report: per train tile and draft."""


@dataclass(frozen=True, kw_only=True)
class SegmenterCosts:
    """Cost of one segmenter family. Seconds are of one thread, areas in tiles of `REFERENCE_PX`.

    Attributes:
        num_parameters: of the network.
        step_s: of a training step, whatever the batch.
        tile_s: of a tile in a step, whatever its size.
        area_s: of a tile in a step, per area.
        predicted_s: of a predicted image, with its scores.
        predicted_area_s: of a predicted image, per area.
        threshold_s: to choose the score threshold, per val image.
        memory_bytes: of a training beside the process, without the batch.
        tile_bytes: of a tile in a batch, whatever its size.
        area_bytes: of a tile in a batch, per area.
        num_mirrored: images that are predicted for one with `segmentation.mirrored`, itself included.
    """

    num_parameters: int
    step_s: float
    tile_s: float
    area_s: float
    predicted_s: float
    predicted_area_s: float
    threshold_s: float
    memory_bytes: float
    tile_bytes: float
    area_bytes: float
    num_mirrored: int = 1


SEGMENTERS: Mapping[str, SegmenterCosts] = {
    "light": SegmenterCosts(
        num_parameters=1_480_000,
        step_s=0.055,
        tile_s=0.0155,
        area_s=0.0157,
        predicted_s=0.023,
        predicted_area_s=0.0052,
        threshold_s=0.07,
        memory_bytes=80e6,
        tile_bytes=5.4e6,
        area_bytes=5.8e6,
    ),
    # encoder frozen up to stride 4, as the family trains it; measured on 2026-11-30
    "efficientnet_lite0": SegmenterCosts(
        num_parameters=3_510_000,
        step_s=0.045,
        tile_s=0.018,
        area_s=0.0165,
        predicted_s=0.04,
        predicted_area_s=0.0085,
        threshold_s=0.07,
        memory_bytes=170e6,
        tile_bytes=6e6,
        area_bytes=12e6,
    ),
    # from the ratios to `efficientnet_lite0` in one process
    "unet": SegmenterCosts(
        num_parameters=3_790_000,
        step_s=0.03,
        tile_s=0.0033,
        area_s=0.0295,
        predicted_s=0.012,
        predicted_area_s=0.017,
        threshold_s=0.07,
        memory_bytes=165e6,
        tile_bytes=5e6,
        area_bytes=16e6,
        num_mirrored=4,
    ),
    # measured at one tile size; it is taken to grow with the area
    "resnet50": SegmenterCosts(
        num_parameters=43_900_000,
        step_s=0.0,
        tile_s=0.2,
        area_s=0.8,
        predicted_s=0.3,
        predicted_area_s=0.25,
        threshold_s=0.1,
        memory_bytes=930e6,
        tile_bytes=20e6,
        area_bytes=80e6,
    ),
}
"""By name in `segmentation.model`. Other families have no estimate."""

PROCESS_BYTES = 950e6
"""Of a process that has loaded torch and diffusers."""
PARENT_BYTES = 1400e6
"""Of the run's own process while it waits for segmenters in others: what the phases left."""
NETWORK_OVERHEAD_BYTES = 120e6
ACTIVATION_BYTES, SCORE_BYTES = 5.8, 2.6
"""Kept for the backward pass: per value that a layer returns, and per value of an attention map where attention is
plain.
"""
WEIGHT_BYTES = 4
MOMENTS = {"adamw": 2.0, "adamw8bit": 0.5, "muon": 1.0}
"""Tensors of a trained network's size that the optimiser keeps, in float32."""
ADAPTER_SHARE = 2.3e-4
"""Weights of LoRA on attention per weight of a network and per rank: 3.2 million of 860 at rank 16."""
STUDENT_SHARE = 1.2e-3
"""The same of a student's LoRA, which is on convolutions too: 67 million of 860 at rank 64."""
FROZEN_BYTES = 2
"""Per weight of a network that is frozen, in bf16; `WEIGHT_BYTES` in fp32."""
DRAWN_COPIES = 8
"""Bytes per value of the denoiser's largest block while drafts are drawn."""
DECODED_COPIES = 4
"""Maps of the decoder's largest block that are alive at once while drafts are decoded."""
SPLIT_BYTES, CURATION_BYTES, PREDICTION_BYTES, REPORT_BYTES = 210e6, 530e6, 180e6, 480e6
"""Of these stages beside the process."""

DESCRIPTOR_FILE_BYTES = 38_000
"""Per image of the split."""
TILE_FILE_BYTES, DRAFT_FILE_BYTES, DRIVER_CACHE_BYTES = 1.8, 3.2, 0.45
"""Per pixel of a tile: its file; image, counterfactual half and driver of a draft; a cached driver."""
LATENT_BYTES = 2
SEGMENTER_FILE_BYTES = 4
SMALL_FILE_BYTES = 2e6
"""Of stages that write tables, sheets and pages."""
