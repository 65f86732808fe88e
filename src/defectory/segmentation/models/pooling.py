"""Pools boxes from a feature pyramid, several times as fast on a CPU as torchvision's kernel and its gradient.

Every cell of a box is a weighted sum of at most 16 pixels of a map: 2 x 2 samples with four neighbours each. On rows of
channels such sums are what `embedding_bag` computes, and the gradient is one more with rows and cells exchanged.
torchvision's kernels walk through memory channel by channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from torchvision.ops import MultiScaleRoIAlign

SMALLEST_PX = 1.0
"""A box is at least as long as one pixel of its map, as in torchvision."""
EPS = 1e-6
"""Of the pyramid's level of a box, as in torchvision."""


class QuickRoiAlign(MultiScaleRoIAlign):
    """`MultiScaleRoIAlign`, equal up to rounding, and itself on other devices and while a network is exported."""

    @classmethod
    def like(cls, pool: Any) -> QuickRoiAlign:
        """Return one with the settings of another."""
        return cls(
            list(pool.featmap_names),
            pool.output_size,
            pool.sampling_ratio,
            canonical_scale=pool.canonical_scale,
            canonical_level=pool.canonical_level,
        )

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool boxes.

        Args:
            x: maps [B,C,h,w] by name.
            boxes: xyxy in pixels of the input, float32 [N_i,4] for each image.
            image_shapes: height and width of each image.

        Returns:
            Cells [sum of N_i,C,*output_size] of the maps' type.
        """
        maps = [x[name] for name in self.featmap_names]
        if maps[0].device.type != "cpu" or self.sampling_ratio < 1 or torch.jit.is_tracing():
            return super().forward(x, boxes, image_shapes)
        rows, weights = self._sums(maps, boxes, image_shapes)
        channels = maps[0].shape[1]
        stored = torch.cat([one.permute(0, 2, 3, 1).reshape(-1, channels).float() for one in maps])
        cells: Tensor = _WeightedSums.apply(stored, rows, weights)  # pyright: ignore[reportAssignmentType]
        return cells.view(sum(map(len, boxes)), *self.output_size, channels).permute(0, 3, 1, 2).to(maps[0].dtype)

    @torch.no_grad()
    def _sums(
        self, maps: list[Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Return which rows of all maps' pixels each cell sums, int64 [cells,K], and their weights float32."""
        # a training that diverges is told by its loss
        all_boxes = torch.cat(boxes).float().nan_to_num()
        images = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor([len(one) for one in boxes]))
        sides = torch.tensor([list(one.shape[-2:]) for one in maps])
        # the first side decides, as in torchvision, and a map's scale is a power of two
        exponents = torch.log2(sides[:, 0] / max(shape[0] for shape in image_shapes)).round()
        levels = self._levels(all_boxes, exponents)
        pixels = sides.prod(dim=1)
        first_rows = torch.cumsum(len(boxes) * pixels, 0) - len(boxes) * pixels
        height, width = sides[levels].T
        scaled = all_boxes * torch.exp2(exponents)[levels][:, None]
        rows_of, columns_of = self.output_size
        y, weight_y = _samples(scaled[:, 1], scaled[:, 3], height, rows_of, self.sampling_ratio)
        x, weight_x = _samples(scaled[:, 0], scaled[:, 2], width, columns_of, self.sampling_ratio)
        base = (first_rows[levels] + images * pixels[levels])[:, None, None, None, None]
        of_cell = 2 * self.sampling_ratio
        taken = base + y[:, :, None, :, None] * width[:, None, None, None, None] + x[:, None, :, None, :]
        weights = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :] / self.sampling_ratio**2
        return taken.reshape(-1, of_cell**2), weights.reshape(-1, of_cell**2)

    def _levels(self, boxes: Tensor, exponents: Tensor) -> Tensor:
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        wanted = torch.floor(self.canonical_level + torch.log2(torch.sqrt(area) / self.canonical_scale) + EPS)
        first, last = -int(exponents[0]), -int(exponents[-1])
        return wanted.clamp(first, last).long() - first


def _samples(low: Tensor, high: Tensor, length: Tensor, num_cells: int, per_cell: int) -> tuple[Tensor, Tensor]:
    """Return the two pixels around each sample along one side, int64 [N,num_cells,2 * per_cell], and their weights.

    Args:
        low: where boxes begin, in pixels of the map, float32 [N].
        high: where they end.
        length: pixels of the map, int64 [N].
        num_cells: of a box.
        per_cell: samples of a cell.
    """
    count = num_cells * per_cell
    steps = (torch.arange(count) + 0.5) / count
    at = low[:, None] + (high - low).clamp(min=SMALLEST_PX)[:, None] * steps
    last = (length - 1)[:, None]
    # a sample a pixel beyond the border is worth nothing, a nearer one as much as the border
    is_seen = (at >= -1) & (at <= length[:, None])
    at = torch.minimum(at.clamp(min=0), last.to(at.dtype))
    below = at.long()
    share = at - below
    pixels = torch.stack([below, torch.minimum(below + 1, last)], dim=-1)
    weights = torch.stack([1 - share, share], dim=-1) * is_seen[..., None]
    shape = len(low), num_cells, 2 * per_cell
    return pixels.view(shape), weights.view(shape)


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stored: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.num_stored = len(stored)
        return embedding_bag(rows, stored, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        rows, weights = ctx.saved_tensors
        order = torch.argsort(rows.flatten(), stable=True)
        counts = torch.bincount(rows.flatten(), minlength=ctx.num_stored)
        grad = embedding_bag(
            torch.div(order, rows.shape[1], rounding_mode="floor"),
            grads[0].contiguous(),
            offsets=torch.cumsum(counts, 0) - counts,
            per_sample_weights=weights.flatten()[order],
            mode="sum",
        )
        return grad, None, None
