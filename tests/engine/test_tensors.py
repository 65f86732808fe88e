from __future__ import annotations

import numpy as np
import torch

from defectory.engine.tensors import drivers_to_tensor, images_to_tensor, masks_to_tensor, tensor_to_images


def test_every_grey_level_survives_the_round_trip() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 8, 32, 1).repeat(3, axis=3)
    tensor = images_to_tensor(images)
    assert tensor.shape == (1, 3, 8, 32)
    assert (float(tensor.min()), float(tensor.max())) == (-1.0, 1.0)
    assert np.array_equal(tensor_to_images(tensor), images)


def test_values_out_of_range_are_clipped() -> None:
    assert tensor_to_images(torch.full((1, 3, 2, 5), 1.7)).max() == 255
    assert tensor_to_images(torch.full((1, 3, 2, 5), -1.7)).min() == 0


def test_drivers_are_scaled_to_zero_and_one() -> None:
    driver = np.zeros((4, 6, 3), np.uint8)
    driver[1, 2] = (255, 51, 0)
    tensor = drivers_to_tensor([driver])
    assert torch.allclose(tensor[0, :, 1, 2], torch.tensor([1.0, 0.2, 0.0]))


def test_masks_become_zero_and_one() -> None:
    mask = np.zeros((4, 6), bool)
    mask[3, 5] = True
    tensor = masks_to_tensor([mask, ~mask])
    assert tensor.shape == (2, 1, 4, 6)
    assert tensor.sum(dim=(1, 2, 3)).tolist() == [1.0, 23.0]
