from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defectory.pretraining.config import PretrainConfig
from defectory.pretraining.patch_code import patch_code, start_as_patch_code
from defectory.pretraining.vae import build_vae, centre_latents, reconstruction_psnr_db


def pictures(count: int) -> NDArray[np.uint8]:
    """Coloured blobs with fine grain, uint8 [N,48,64,3]."""
    rng = np.random.default_rng(3)
    coarse = cv2.GaussianBlur(rng.normal(0, 400, (48, 64, 3 * count)).astype(np.float32), (0, 0), 5).reshape(
        48, 64, count, 3
    )
    fine = rng.normal(0, 5, (48, 64, count, 1))
    return np.clip(128 + coarse + fine, 0, 255).astype(np.uint8).transpose(2, 0, 1, 3)


def as_tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_the_code_is_that_of_principal_components() -> None:
    images = pictures(6)
    code, mean = patch_code(images, 8)
    patches = nn.functional.pixel_unshuffle(as_tensor(images), 4).permute(0, 2, 3, 1).reshape(-1, 48)
    torch.testing.assert_close(mean, patches.mean(dim=0))
    coded = (patches - mean) @ code.T
    covariance = torch.cov(coded.T)
    assert float((covariance - torch.diag(covariance.diagonal())).abs().max()) < 1e-3 * float(covariance.max())
    _u, _s, axes = torch.linalg.svd(patches - mean, full_matrices=False)
    by_svd = (patches - mean) @ axes[:8].T @ axes[:8]
    torch.testing.assert_close(coded @ torch.linalg.pinv(code).T, by_svd, atol=1e-3, rtol=1e-3)


def test_an_autoencoder_started_as_patch_code_encodes_it_up_to_a_scale_per_group() -> None:
    images = pictures(6)
    vae = build_vae(PretrainConfig()).eval()
    start_as_patch_code(vae, images)
    code, mean = patch_code(images, 8)
    pixels = as_tensor(images)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    patches = nn.functional.pixel_unshuffle(pixels, 4) - mean.view(1, -1, 1, 1)
    expected = torch.einsum("ck,nkhw->nchw", code, patches)
    for latent in range(8):
        for index in range(len(images)):
            ratio = (
                posterior.mean[index, latent].flatten()
                @ expected[index, latent].flatten()
                / expected[index, latent].square().sum()
            )
            torch.testing.assert_close(
                posterior.mean[index, latent], ratio * expected[index, latent], atol=2e-3, rtol=1e-2
            )
            assert 0.7 < float(ratio) < 1.4
    assert float(posterior.logvar.max()) == pytest.approx(-6, abs=1e-4)


def test_it_reconstructs_colour_before_any_training() -> None:
    images = pictures(6)
    vae = build_vae(PretrainConfig()).eval()
    pixels = as_tensor(images)
    with torch.no_grad():
        untrained = reconstruction_psnr_db(vae, list(pixels))
        start_as_patch_code(vae, images)
        started = reconstruction_psnr_db(vae, list(pixels))
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    assert min(started) > max(untrained) + 8
    colour, kept = (x - x.mean(dim=1, keepdim=True) for x in (pixels, decoded))
    assert float((colour * kept).sum() / colour.square().sum()) > 0.8


def test_centred_latents_have_mean_zero_and_the_same_round_trip() -> None:
    images = pictures(6)
    vae = build_vae(PretrainConfig()).eval()
    start_as_patch_code(vae, images)
    pixels = as_tensor(images)
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        decoded = vae.decode(before.mean).sample
        centre_latents(vae, before.mean)
        after = vae.encode(pixels).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, decoded, atol=1e-4, rtol=1e-3)
    assert float(after.mean.mean(dim=(0, 2, 3)).abs().max()) < 1e-3
    torch.testing.assert_close(
        after.mean.std(dim=(0, 2, 3)), before.mean.std(dim=(0, 2, 3)).sqrt(), atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(
        (after.std / after.mean.std(dim=(0, 2, 3)).view(1, -1, 1, 1)).mean(),
        (before.std / before.mean.std(dim=(0, 2, 3)).view(1, -1, 1, 1)).mean(),
    )


def test_an_autoencoder_without_the_room_starts_from_random_weights() -> None:
    assert PretrainConfig().starts_as_patch_code
    assert not PretrainConfig(vae_channels=(8, 8, 8)).starts_as_patch_code
