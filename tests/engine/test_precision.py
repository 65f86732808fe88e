from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from defectory.engine import precision
from defectory.engine.precision import autocast, has_bf16, hold_frozen_in_bf16, uses_bf16


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


@pytest.mark.parametrize("has", [True, False])
def test_auto_computes_in_bf16_only_where_the_processor_can(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device_type: has)
    layer, values = torch.nn.Linear(3, 2), torch.randn(1, 3)
    with autocast("auto", "cpu"):
        assert (layer(values).dtype == torch.bfloat16) == has
    assert uses_bf16("auto", torch.device("cpu")) == has
    # what the user asked for is done
    assert uses_bf16("bf16", "cpu")
    assert not uses_bf16("no", "cpu")
    with autocast("no", "cpu"):
        assert layer(values).dtype == torch.float32


@pytest.mark.parametrize(
    ("machine", "avx512_bf16", "amx", "arm", "expected"),
    [
        ("x86_64", False, False, True, False),
        ("x86_64", True, False, False, True),
        ("AMD64", False, True, False, True),
        ("aarch64", True, True, False, False),
        ("arm64", False, False, True, True),
        ("arm64", False, False, None, False),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(
    monkeypatch: pytest.MonkeyPatch, machine: str, avx512_bf16: bool, amx: bool, arm: bool | None, expected: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: arm is not None)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: arm)
    has_bf16.cache_clear()
    try:
        assert has_bf16("cpu") == expected
    finally:
        has_bf16.cache_clear()


@pytest.mark.parametrize(
    ("available", "native", "expected"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_a_gpu_is_asked_whether_it_emulates_bf16(
    monkeypatch: pytest.MonkeyPatch, available: bool, native: bool, expected: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: available)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native or including_emulation)
    has_bf16.cache_clear()
    try:
        assert has_bf16("cuda") == expected
    finally:
        has_bf16.cache_clear()
