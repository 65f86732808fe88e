"""Converts between images (uint8 HWC) and tensors (float NCHW), in this one place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def images_to_tensor(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], device: torch.device | str = "cpu"
) -> Tensor:
    """Convert RGB images uint8 [B,H,W,3] into float32 [B,3,H,W] in [-1,1] on a device."""
    return torch.from_numpy(np.stack(list(images))).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def tensor_to_images(pixels: Tensor) -> NDArray[np.uint8]:
    """Convert float [B,3,H,W] in [-1,1] (clipped) into RGB images uint8 [B,H,W,3]."""
    scaled = ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def drivers_to_tensor(drivers: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Convert drivers uint8 [B,H,W,3K] into float32 [B,3K,H,W] in [0,1]: step 7 of driver extraction."""
    return torch.from_numpy(np.stack(list(drivers))).permute(0, 3, 1, 2).float() / 255


def masks_to_tensor(masks: Sequence[NDArray[np.bool_]]) -> Tensor:
    """Convert masks bool [B,H,W] into float32 [B,1,H,W]."""
    return torch.from_numpy(np.stack(list(masks)))[:, None].float()
