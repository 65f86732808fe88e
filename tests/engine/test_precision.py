from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from defectory.engine.precision import hold_frozen_in_bf16


def small_unet() -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
        # it adds a positional embedding, which autocast does not round
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
    )


def test_frozen_networks_in_bf16_take_half_and_predict_the_same_bits() -> None:
    unet = small_unet().requires_grad_(False)
    held = deepcopy(unet)
    # some of it trains
    for of in (unet, held):
        of.conv_out.requires_grad_(True)
    hold_frozen_in_bf16(held)
    latents, context = torch.randn(2, 4, 8, 12), torch.randn(2, 5, 16)
    results = []
    for of in (unet, held):
        with torch.autocast("cpu", torch.bfloat16):
            predicted = of(latents, torch.tensor([3, 800]), context).sample
        predicted.float().square().mean().backward()
        results.append((predicted, of.conv_out.weight.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    whole, half = (sum(weight.nbytes for weight in of.parameters()) for of in (unet, held))
    assert half < 0.55 * whole
    assert held.conv_out.weight.dtype == held.conv_norm_out.weight.dtype == torch.float32
