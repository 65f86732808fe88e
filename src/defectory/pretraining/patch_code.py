"""Initialises the autoencoder as a linear code of 4x4 patches, so that training only has to improve on it.

An AutoencoderKL with zero residual branches computes a linear map exactly, because silu(y) - silu(-y) = y. Each value
passes the last normalisation once with each sign, and constant channels keep the scale of that normalisation fixed.
"""

# diffusers wraps its methods in decorators that lose the signatures
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from defectory.pretraining.config import NUM_CONSTANTS, PATCH_VALUES

PATCH_PX = 4
CONSTANT = 4.0
"""Value of the constant channels; large beside the signed values, so that all images are normalised alike."""
START_LOGVAR = -6.0
"""Initial posterior log-variance: latents start almost without noise, and the KL term raises it where that is free."""
SHARPNESS = 0.5
"""Initial sharpness of the decoder's upsampling: 0 is smooth, 1 treats patches independently."""


def patch_code(images: NDArray[np.uint8], latent_channels: int) -> tuple[Tensor, Tensor]:
    """Return the leading principal axes of 4x4 patches.

    An axis of standard deviation s is scaled to the square root of s: fine detail weighs more among the latents than
    among pixels.

    Args:
        images: uint8 [N,H,W,3], sides divisible by 4.
        latent_channels: how many axes.

    Returns:
        The code [C,48] and the mean patch [48], values in [-1,1], ordered as `pixel_unshuffle` orders them.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    patches = nn.functional.pixel_unshuffle(pixels, PATCH_PX).permute(0, 2, 3, 1).reshape(-1, PATCH_VALUES)
    values, axes = torch.linalg.eigh(torch.cov(patches.T))
    deviation = values.flip(0)[:latent_channels].clamp_min(1e-8).sqrt()
    scale = (deviation / deviation.mean()).sqrt() / deviation
    return (axes.flip(1)[:, :latent_channels] * scale).T.contiguous(), patches.mean(dim=0)


@torch.no_grad()
def start_as_patch_code(vae: AutoencoderKL, images: NDArray[np.uint8]) -> None:
    """Initialise an autoencoder so that it encodes and (smoothly) decodes the patch code of some images.

    Args:
        vae: three stages, factor 4, sizes that `fits` accepts.
        images: uint8 [N,H,W,3], sides divisible by 4.
    """
    latents = int(vae.config["latent_channels"])
    code, mean = patch_code(images, latents)
    _start_encoder(vae.encoder, code, mean)
    _start_decoder(vae.decoder, torch.linalg.pinv(code), mean)
    around: list[Any] = [vae.quant_conv, vae.post_quant_conv]
    for conv in around:
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)


def _start_encoder(encoder: Any, code: Tensor, mean: Tensor) -> None:
    _silence_branches([*encoder.down_blocks, encoder.mid_block])
    _clear(encoder.conv_in, 3)
    for colour in range(3):
        encoder.conv_in.weight[colour, colour, 1, 1] = 1
    _gather(encoder.down_blocks[0].downsamplers[0].conv, 3)
    _pass_on(encoder.down_blocks[1].resnets[0].conv_shortcut, 12)
    _gather(encoder.down_blocks[1].downsamplers[0].conv, 12)
    shortcut: Any = encoder.down_blocks[2].resnets[0].conv_shortcut
    ordered = code[:, _gathered_order()]
    offset = code @ mean
    places = _signed_places(encoder.conv_norm_out, len(code))
    scale = _hold_scale(encoder.conv_norm_out, shortcut, len(code))
    _clear(encoder.conv_out, len(encoder.conv_out.weight))
    encoder.conv_out.bias[len(code) :] = START_LOGVAR
    for latent, place in enumerate(places):
        for sign in (0, 1):
            factor = 1 - 2 * sign
            shortcut.weight[place + sign, :, 0, 0] = factor * ordered[latent]
            shortcut.bias[place + sign] = -factor * offset[latent]
            encoder.conv_out.weight[latent, place + sign, 1, 1] = factor * scale


def _start_decoder(decoder: Any, inverse: Tensor, mean: Tensor) -> None:
    _silence_branches([decoder.mid_block, *decoder.up_blocks])
    _clear(decoder.conv_in, PATCH_VALUES)
    decoder.conv_in.weight[:PATCH_VALUES, :, 1, 1] = inverse
    decoder.conv_in.bias[:PATCH_VALUES] = mean
    first, second, third = decoder.up_blocks
    # values (colour, row, column of the patch) -> (colour, odd row, odd column), and then -> colour
    _spread(
        first.upsamplers[0].conv,
        12,
        lambda value, row, column: value // 4 * 16 + (2 * row + value % 4 // 2) * 4 + 2 * column + value % 2,
    )
    _pass_on(second.resnets[0].conv_shortcut, 12)
    _spread(second.upsamplers[0].conv, 3, lambda value, row, column: value * 4 + row * 2 + column)
    shortcut: Any = third.resnets[0].conv_shortcut
    places = _signed_places(decoder.conv_norm_out, 3)
    scale = _hold_scale(decoder.conv_norm_out, shortcut, 3)
    decoder.conv_out.weight.mul_(0.05)
    decoder.conv_out.bias.zero_()
    for colour, place in enumerate(places):
        for sign in (0, 1):
            factor = 1 - 2 * sign
            shortcut.weight[place + sign] = 0
            shortcut.weight[place + sign, colour, 0, 0] = factor
            shortcut.bias[place + sign] = 0
            decoder.conv_out.weight[:, place + sign] = 0
            decoder.conv_out.weight[colour, place + sign, 1, 1] = factor * scale


def _silence_branches(blocks: list[Any]) -> None:
    for block in blocks:
        for resnet in block.resnets:
            nn.init.zeros_(resnet.conv2.weight)
            nn.init.zeros_(resnet.conv2.bias)


def _clear(conv: nn.Conv2d, count: int) -> None:
    assert conv.bias is not None
    conv.weight[:count] = 0
    conv.bias[:count] = 0


def _pass_on(conv: nn.Conv2d, count: int) -> None:
    _clear(conv, count)
    for channel in range(count):
        conv.weight[channel, channel, 0, 0] = 1


def _gather(conv: nn.Conv2d, count: int) -> None:
    """Set a downsampling convolution to move each 2x2 block of channel c to channels 4c .. 4c+3, row by row."""
    _clear(conv, 4 * count)
    for channel in range(count):
        for row in range(2):
            for column in range(2):
                conv.weight[4 * channel + 2 * row + column, channel, row, column] = 1


def _gathered_order() -> Tensor:
    """Return, for each value after two gatherings, its place in the order of `pixel_unshuffle`."""
    index = torch.arange(PATCH_VALUES).view(3, PATCH_PX, PATCH_PX)
    # pixel row = 2 * (row of the second gathering) + (row of the first)
    split = index.view(3, 2, 2, 2, 2)  # colour, second row, first row, second column, first column
    return split.permute(0, 2, 4, 1, 3).reshape(-1)


def _spread(conv: nn.Conv2d, count: int, source: Any) -> None:
    """Set the convolution after a nearest upsampling to place `source(value, row, column)` in each 2x2 block.

    After a nearest upsampling a convolution can only tell the halves of a block apart by their neighbours: taps
    (-h, 1/2, h) lean to the even half, (h, 1/2, -h) to the odd one.
    """
    half = SHARPNESS / 2
    taps = torch.tensor([[-half, 0.5, half], [half, 0.5, -half]])
    _clear(conv, count)
    for value in range(count):
        for row in range(2):
            for column in range(2):
                conv.weight[value, source(value, row, column)] = torch.outer(taps[row], taps[column])


def _signed_places(norm: nn.GroupNorm, count: int) -> list[int]:
    """Return the channel of each value's positive copy, spread over the groups; its negative copy is the next."""
    size = norm.num_channels // norm.num_groups
    return [(k % norm.num_groups) * size + 2 * (k // norm.num_groups) for k in range(count)]


def _hold_scale(norm: nn.GroupNorm, before: nn.Conv2d, count: int) -> float:
    """Set the constant channels before a normalisation, and return the scale that undoes it."""
    assert before.bias is not None
    size, used = norm.num_channels // norm.num_groups, 2 * -(-count // norm.num_groups)
    before.weight.mul_(0.3)
    for group in range(norm.num_groups):
        for k in range(NUM_CONSTANTS):
            channel = group * size + used + k
            before.weight[channel] = 0
            before.bias[channel] = CONSTANT * (1 - 2 * (k % 2))
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
    return float(np.sqrt((NUM_CONSTANTS * CONSTANT**2 + used * 0.5) / size))
