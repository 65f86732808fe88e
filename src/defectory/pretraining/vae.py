"""Stage 1: trains the autoencoder, factor 4, mainly for reconstruction."""

# diffusers and transformers wrap their methods in decorators that lose the signatures
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from defectory.engine.precision import autocast
from defectory.engine.tensors import images_to_tensor
from defectory.events import Work
from defectory.pretraining.config import PretrainConfig
from defectory.pretraining.corpus import Corpus
from defectory.pretraining.loop import fit
from defectory.pretraining.patch_code import start_as_patch_code

KL_WEIGHT = 2e-7
COLOUR_WEIGHT = 1.0
DEFECT_MARGIN_PX = 2
TRIES_FOR_A_DEFECT = 20
NUM_PATCH_IMAGES = 400
"""Corpus images whose patches define the initial code."""
EVENNESS = 0.5
"""Latent channels of standard deviation s are rescaled to s^(1 - EVENNESS): 0 changes nothing, 1 makes them equal.
"""


def build_vae(config: PretrainConfig) -> AutoencoderKL:
    """Build an untrained autoencoder of the configured size."""
    stages = len(config.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=config.vae_channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=config.vae_norm_groups,
        sample_size=config.tile_px,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def reconstruction_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Compute L1 plus squared error plus L1 of image gradients, weighted by pixel, plus a colour term.

    Gradients make thin edges count more than flat areas. The colour term compares each channel's difference from the
    mean of the channels; without it, so small an autoencoder reconstructs grey.

    Args:
        predicted: float [B,3,H,W] in [-1,1].
        target: float [B,3,H,W] in [-1,1].
        weight: float [B,1,H,W], of mean 1.
    """
    error = predicted - target
    across, down = error.diff(dim=-1).abs() * weight[..., 1:], error.diff(dim=-2).abs() * weight[..., 1:, :]
    colour = (error - error.mean(dim=1, keepdim=True)).abs().mean()
    plain = (weight * error.abs()).mean() + 2.0 * (weight * error.square()).mean()
    return plain + 0.25 * (across.mean() + down.mean()) + COLOUR_WEIGHT * colour


def pixel_weight(class_maps: NDArray[np.uint8], weight: float) -> Tensor:
    """Compute pixel weights of mean 1, float32 [B,1,H,W]: `weight` times as much within `DEFECT_MARGIN_PX` of defects.

    Args:
        class_maps: uint8 [B,H,W], 0 where there is no defect.
        weight: 1 or more.
    """
    masks = torch.from_numpy(class_maps > 0).float()[:, None]
    near = nn.functional.max_pool2d(masks, 2 * DEFECT_MARGIN_PX + 1, stride=1, padding=DEFECT_MARGIN_PX)
    result = 1 + (weight - 1) * near
    return result / result.mean()


def draw_crops(corpus: Corpus, config: PretrainConfig, generator: torch.Generator) -> list[tuple[int, slice, slice]]:
    """Draw the crops of one step (image, rows, columns); if defects weigh more, half of them contain a defect."""
    size, crop, full = config.vae.batch_size, min(config.vae_crop_px, config.tile_px), config.tile_px
    num_train = len(corpus) - config.num_held_out
    indices = torch.randint(num_train, (size,), generator=generator).tolist()
    corners = torch.randint(full - crop + 1, (size, 2), generator=generator).tolist()
    if config.vae_defect_weight > 1:
        for number in range(0, size, 2):
            for _ in range(TRIES_FOR_A_DEFECT):
                places = np.argwhere(corpus.class_maps[indices[number]])
                if len(places):
                    middle = places[int(torch.randint(len(places), (1,), generator=generator))] - crop // 2
                    corners[number] = middle.clip(0, full - crop).tolist()
                    break
                indices[number] = int(torch.randint(num_train, (1,), generator=generator))
    return [(i, slice(y, y + crop), slice(x, x + crop)) for i, (y, x) in zip(indices, corners, strict=True)]


def train_vae(config: PretrainConfig, corpus: Corpus, *, checkpoint: Path) -> Work[AutoencoderKL]:
    """Train the autoencoder on random crops of the corpus, and return it.

    The latents have mean 0 per channel and standard deviation 1 over all channels of the corpus, `scaling_factor`
    included.
    """
    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    vae = build_vae(config)
    num_train = len(corpus) - config.num_held_out
    if config.starts_as_patch_code:
        start_as_patch_code(vae, corpus.images[: min(num_train, NUM_PATCH_IMAGES)])
    vae = vae.to(device)
    crop = min(config.vae_crop_px, config.tile_px)

    def loss_of(_step: int, generator: torch.Generator) -> Tensor:
        crops = draw_crops(corpus, config, generator)
        batch = [corpus.images[at] for at in crops]
        pixels = images_to_tensor(batch).to(device)
        weight = pixel_weight(np.stack([corpus.class_maps[at] for at in crops]), config.vae_defect_weight).to(device)
        noise = torch.randn(len(batch), config.latent_channels, crop // 4, crop // 4, generator=generator).to(device)
        with autocast(config.mixed_precision, device):
            posterior = vae.encode(pixels).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            decoded = vae.decode(mean + noise * torch.exp(0.5 * logvar)).sample
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        return reconstruction_loss(decoded.float(), pixels, weight) + KL_WEIGHT * kl

    yield from fit(vae, loss_of, config.vae, stage="vae", seed=config.seed, checkpoint=checkpoint)
    latents = encode(vae, corpus, range(0, num_train, max(1, num_train // 256)), config)
    centre_latents(vae, latents)
    vae.register_to_config(
        scaling_factor=round(
            1.0 / float(encode(vae, corpus, range(0, num_train, max(1, num_train // 256)), config).std()), 4
        )
    )
    return vae


@torch.no_grad()
def centre_latents(vae: AutoencoderKL, latents: Tensor) -> None:
    """Centre and rescale latents through the 1x1 convolutions around them: mean 0, and more equal spread.

    The round trip stays the same. Stable Diffusion has one `scaling_factor` for all channels, so channels of small
    spread would hardly count in the diffusion loss.

    Args:
        vae: the autoencoder.
        latents: float [N,C,h,w], its posterior means over a corpus.
    """
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)).clamp_min(1e-4)
    factor = deviation.pow(-EVENNESS).to(vae.device)
    mean, count = mean.to(vae.device), len(factor)
    quant: Any = vae.quant_conv
    post: Any = vae.post_quant_conv
    quant.bias[:count] = (quant.bias[:count] - mean) * factor
    quant.weight[:count] *= factor.view(-1, 1, 1, 1)
    quant.bias[count:] += 2 * factor.log()  # log-variances shift with the scale
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= factor.view(1, -1, 1, 1)


@torch.no_grad()
def encode(vae: AutoencoderKL, corpus: Corpus, indices: range, config: PretrainConfig) -> Tensor:
    """Encode corpus images as unscaled posterior means, float32 [N,C,h,w]."""
    device = torch.device(config.device)
    parts: list[Tensor] = []
    for start in range(0, len(indices), 64):
        chosen = indices[start : start + 64]
        pixels = images_to_tensor([corpus.images[i] for i in chosen], device)
        with autocast(config.mixed_precision, device):
            mean = vae.encode(pixels).latent_dist.mean
        parts.append(mean.float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def reconstruction_psnr_db(vae: AutoencoderKL, images: list[Tensor]) -> list[float]:
    """Compute the PSNR of the autoencoder's round trip per image, dB.

    Args:
        vae: the autoencoder.
        images: float [3,H,W] in [-1,1], sides divisible by 4.
    """
    result: list[float] = []
    for image in images:
        decoded = vae.decode(vae.encode(image[None]).latent_dist.mean).sample.clamp(-1, 1)
        error = ((decoded - image[None]) / 2).square().mean()
        result.append(float(-10 * torch.log10(error)))
    return result
