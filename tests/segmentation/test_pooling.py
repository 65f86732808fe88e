"""The quick pooling of boxes beside torchvision's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from defectory.segmentation.models.pooling import QuickRoiAlign

SHAPE_HW = (77, 52)
NAMES = ("0", "1", "2")


def maps_of(seed: int, *, num_images: int = 2, channels: int = 3) -> dict[str, Tensor]:
    """Random maps at strides 4 to 16; every name has one, and one more that nothing is pooled from."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {name: [-(-side // 2 ** (index + 2)) for side in SHAPE_HW] for index, name in enumerate(NAMES)}
    maps = {
        name: torch.randn(num_images, channels, *size, generator=generator).requires_grad_()
        for name, size in sizes.items()
    }
    return {**maps, "pool": torch.zeros(num_images, channels, 2, 1)}


def pools(output_size: int | tuple[int, int] = 5, sampling_ratio: int = 2) -> tuple[MultiScaleRoIAlign, QuickRoiAlign]:
    """Return torchvision's, and the quick one with its settings."""
    theirs = MultiScaleRoIAlign(list(NAMES), output_size, sampling_ratio, canonical_scale=40, canonical_level=3)
    return theirs, QuickRoiAlign.like(theirs)


def compared(maps: dict[str, Tensor], boxes: list[Tensor], both: tuple[MultiScaleRoIAlign, QuickRoiAlign]) -> None:
    """Compare cells and the gradients of a random weighting of them."""
    cells: list[Tensor] = []
    gradients: list[tuple[Tensor, ...]] = []
    for pool in both:
        found = pool(maps, boxes, [SHAPE_HW] * len(boxes))
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(5))
        gradients.append(torch.autograd.grad((found * weights).sum(), [maps[name] for name in NAMES]))
        cells.append(found)
    assert cells[0].shape == cells[1].shape
    torch.testing.assert_close(cells[1], cells[0], rtol=1e-4, atol=2e-4)
    for theirs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    corners=st.lists(st.tuples(*[st.floats(-9, 90, width=32)] * 2, *[st.floats(0, 80, width=32)] * 2), max_size=6),
    split=st.integers(0, 6),
    seed=st.integers(0, 9),
)
def test_cells_and_gradients_are_torchvisions(
    corners: list[tuple[float, float, float, float]], split: int, seed: int
) -> None:
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in corners]).view(-1, 4)
    if len(boxes):
        compared(maps_of(seed), [boxes[:split], boxes[split:]], pools())
    else:
        assert pools()[1](maps_of(seed), [boxes, boxes], [SHAPE_HW] * 2).shape == (0, 3, 5, 5)


@pytest.mark.parametrize(("output_size", "sampling_ratio"), [((3, 7), 2), (4, 1), (2, 3)])
def test_cells_need_not_be_square(output_size: int | tuple[int, int], sampling_ratio: int) -> None:
    boxes = [torch.tensor([[3.0, 4.0, 30.5, 61.0], [0.0, 0.0, 52.0, 77.0]]), torch.tensor([[8.0, 9.0, 11.0, 12.0]])]
    compared(maps_of(1), boxes, pools(output_size, sampling_ratio))


def test_boxes_of_every_size_go_to_the_level_that_torchvision_takes() -> None:
    sides = torch.tensor([0.0, 1.0, 19.9, 20.0, 39.99, 40.0, 79.9, 80.0, 300.0])
    boxes = torch.stack([torch.zeros(9), torch.zeros(9), sides, sides], dim=1)
    constant = {
        name: torch.full_like(values, index).requires_grad_() for index, (name, values) in enumerate(maps_of(0).items())
    }
    compared(constant, [boxes, boxes[:0]], pools(1, 1))


def test_bf16_maps_give_bf16_cells_that_were_summed_in_fp32() -> None:
    maps, boxes = maps_of(2), [torch.tensor([[3.0, 4.0, 44.0, 61.0]])] * 2
    rounded = {name: values.detach().bfloat16() for name, values in maps.items()}
    found = pools()[1](rounded, boxes, [SHAPE_HW] * 2)
    expected = pools()[1]({name: values.float() for name, values in rounded.items()}, boxes, [SHAPE_HW] * 2)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


def test_boxes_that_are_no_numbers_end_in_no_crash() -> None:
    boxes = [torch.tensor([[float("nan")] * 4, [0.0, 0.0, float("inf"), 9.0]]), torch.zeros(0, 4)]
    assert pools()[1](maps_of(3), boxes, [SHAPE_HW] * 2).shape == (2, 3, 5, 5)


def test_the_same_boxes_give_the_same_bits_with_any_number_of_threads() -> None:
    maps, threads = maps_of(4, channels=16), torch.get_num_threads()
    boxes = [torch.rand(40, 4, generator=torch.Generator().manual_seed(1)) * 20 + torch.tensor([0, 0, 20, 30])] * 2
    found: list[tuple[Tensor, ...]] = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            cells = pools()[1](maps, boxes, [SHAPE_HW] * 2)
            found.append((cells, *torch.autograd.grad(cells.square().sum(), [maps[name] for name in NAMES])))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
