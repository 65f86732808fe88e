"""New masks from a statistical model of the training masks.

The model varies the shape figures of a training mask and draws a new mask from them, so that no shape is a copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.masks.config import SeverityBy
from defectory.masks.perturb import SUPERSAMPLE, coarser, cropped, largest_pieces, of_width, size_of
from defectory.masks.shapes import NUM_HARMONICS, BlobShape, LineShape, Shape, measure

Mask = NDArray[np.bool_]
JITTER = 0.12
"""Standard deviation of the logarithm of each figure around that of a training mask."""
ANGLE_JITTER = 0.2
"""Standard deviation of the direction around that of a training mask, radians."""
BRANCH_ANGLES = (0.4, 1.2)
"""Range of angles between a branch and its path, radians."""
BRANCH_SHARES = (0.3, 0.4, 0.5)
"""Lengths of branches, as shares of the path's, on a line that has none in train."""
TAPER = 0.15
"""Share of a line at either end over which it narrows to a point."""
MAX_TRIES = 8
AREA_BOUNDS = (0.5, 2.0)
"""Allowed ratio of a drawn mask's area to that of the training mask its figures came from."""


@dataclass(frozen=True, kw_only=True)
class ShapeModel:
    """Shape figures of the training masks of each class, smallest first."""

    shapes: Mapping[int, tuple[Shape, ...]]
    num_branches: int | None = None
    """Number of branches of every line drawn; None uses the number of a training mask."""

    def draw(self, category_id: int, *, seed: int, severity: tuple[float, float] = (0.0, 1.0)) -> Mask:
        """Draw a new mask of a class; a pure function of its arguments.

        Args:
            category_id: a class with at least one training mask.
            seed: seed of everything drawn.
            severity: quantiles of the training masks' sizes that the size lies between.

        Returns:
            bool [h,w], cropped to its box, one piece, not empty.
        """
        shapes = self.shapes[category_id]
        rng = np.random.default_rng([86, seed])
        shape = shapes[at_quantile(len(shapes), severity, rng)]
        best = np.ones((1, 1), bool)
        nearest = np.inf
        for _ in range(MAX_TRIES):
            drawn = draw_shape(branched(jittered(shape, rng), self.num_branches, rng), rng)
            off = abs(np.log(max(1, int(drawn.sum())) / shape.area_px))
            if off < nearest:
                best, nearest = drawn, off
            if AREA_BOUNDS[0] <= drawn.sum() / shape.area_px <= AREA_BOUNDS[1]:
                break
        return best


def fit(masks: Sequence[tuple[int, Mask]], *, num_branches: int | None = None, by: SeverityBy = "area") -> ShapeModel:
    """Fit the model to training masks, given as pairs of category id and mask bool [H,W].

    If `num_branches` is set, every line drawn has that number of branches. Shapes are ordered by area, width or length
    for the severity of `draw`.
    """
    by_class: dict[int, list[Shape]] = {}
    for category_id, mask in sorted(masks, key=lambda item: size_of(item[1], by)):
        by_class.setdefault(category_id, []).append(measure(mask))
    return ShapeModel(shapes={key: tuple(of) for key, of in by_class.items()}, num_branches=num_branches)


def at_quantile(count: int, severity: tuple[float, float], rng: np.random.Generator) -> int:
    """Draw the index of one of `count` items, ordered by size, between two quantiles."""
    return min(count - 1, int(rng.uniform(*severity) * count))


def branched(shape: Shape, count: int | None, rng: np.random.Generator) -> Shape:
    """Return a line with the given number of branches; other shapes, and any shape for None, are unchanged.

    Branch lengths come from the line itself if it has branches.
    """
    if count is None or not isinstance(shape, LineShape):
        return shape
    return replace(shape, branches=tuple(float(rng.choice(shape.branches or BRANCH_SHARES)) for _ in range(count)))


def jittered(shape: Shape, rng: np.random.Generator) -> Shape:
    """Return a similar shape: every figure is a little larger or smaller."""

    def about(value: float) -> float:
        return float(value * np.exp(JITTER * rng.standard_normal()))

    angle = float((shape.angle + ANGLE_JITTER * rng.standard_normal()) % np.pi)
    if isinstance(shape, LineShape):
        return replace(
            shape,
            length_px=about(shape.length_px),
            width_px=about(shape.width_px),
            width_variation=about(shape.width_variation),
            wander=about(shape.wander),
            persistence_px=about(shape.persistence_px),
            branches=tuple(about(b) for b in shape.branches),
            angle=angle,
        )
    return replace(
        shape,
        diameter_px=about(shape.diameter_px),
        elongation=1 + about(shape.elongation - 1),
        harmonics=tuple(about(a) for a in shape.harmonics),
        angle=angle,
    )


def draw_shape(shape: Shape, rng: np.random.Generator) -> Mask:
    """Draw a mask with these figures, bool [h,w], cropped to its box."""
    return _draw_line(shape, rng) if isinstance(shape, LineShape) else _draw_blob(shape, rng)


def _draw_line(shape: LineShape, rng: np.random.Generator) -> Mask:
    paths = [_walk(shape, shape.length_px, shape.angle, np.zeros(2), rng)]
    for share in shape.branches:
        at = int(rng.integers(len(paths[0]) // 6, max(len(paths[0]) // 6 + 1, 5 * len(paths[0]) // 6)))
        ahead = paths[0][min(at + 3, len(paths[0]) - 1)] - paths[0][max(0, at - 3)]
        heading = float(np.arctan2(ahead[0], ahead[1])) + float(rng.choice([-1, 1]) * rng.uniform(*BRANCH_ANGLES))
        if rng.random() < 0.5:
            heading += np.pi
        paths.append(_walk(shape, share * shape.length_px, heading, paths[0][at], rng))
    widths = [_profile(len(path), shape, rng, branch=number > 0) for number, path in enumerate(paths)]
    margin = shape.width_px * 2 + 3
    low = np.min([path.min(axis=0) for path in paths], axis=0) - margin
    high = np.max([path.max(axis=0) for path in paths], axis=0) + margin
    fine = np.zeros(tuple(np.ceil((high - low) * SUPERSAMPLE).astype(int)), np.uint8)
    for path, width in zip(paths, widths, strict=True):
        places = np.round((path - low) * SUPERSAMPLE).astype(int)
        for before, after, thickness in zip(places[:-1], places[1:], width[1:], strict=True):
            cv2.line(
                fine,
                (int(before[1]), int(before[0])),
                (int(after[1]), int(after[0])),
                1,
                max(SUPERSAMPLE // 2, round(float(thickness) * SUPERSAMPLE)),
            )
    return _one_piece(coarser(of_width(fine > 0, shape.width_px * SUPERSAMPLE)))


def _walk(
    shape: LineShape, length: float, angle: float, start: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Walk in steps of one pixel; the direction is pulled back to the angle (an Ornstein-Uhlenbeck process)."""
    count = max(2, round(length))
    keep = np.exp(-1 / max(1.0, shape.persistence_px))
    noise = rng.standard_normal(count)
    turns = np.empty(count)
    turns[0] = noise[0]
    for step in range(1, count):
        turns[step] = keep * turns[step - 1] + np.sqrt(1 - keep**2) * noise[step]
    heading = angle + shape.wander * turns
    return np.concatenate([start[None], start + np.stack([np.sin(heading), np.cos(heading)], axis=1).cumsum(axis=0)])


def _profile(count: int, shape: LineShape, rng: np.random.Generator, *, branch: bool) -> NDArray[np.float64]:
    """Return the width at each point of a path, pixels."""
    coarse = rng.standard_normal(max(2, count // 6 + 2))
    wave = np.interp(np.linspace(0, len(coarse) - 1, count), np.arange(len(coarse)), coarse)
    at = np.linspace(0, 1, count)
    # a branch begins in the middle of its path's width
    ends = np.minimum(1 - at, 1.0 if branch else at) / TAPER
    return shape.width_px * np.exp(shape.width_variation * wave) * np.clip(ends, 0.35, 1) * (0.8 if branch else 1.0)


def _draw_blob(shape: BlobShape, rng: np.random.Generator) -> Mask:
    theta = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    radius = np.ones_like(theta)
    for wave, amplitude in enumerate(shape.harmonics[:NUM_HARMONICS], start=2):
        radius += amplitude * np.cos(wave * theta + rng.uniform(0, 2 * np.pi))
    radius = np.maximum(radius, 0.15) * shape.diameter_px / 2
    # waves add area; scale the outline back to the circle's area
    radius *= shape.diameter_px / 2 / np.sqrt((radius**2).mean())
    stretch = np.sqrt(max(1.0, shape.elongation))
    x, y = radius * np.cos(theta) * stretch, radius * np.sin(theta) / stretch
    turn = np.array([[np.cos(shape.angle), -np.sin(shape.angle)], [np.sin(shape.angle), np.cos(shape.angle)]])
    outline = turn @ np.stack([x, y])
    outline = (outline - outline.min(axis=1, keepdims=True) + 2) * SUPERSAMPLE
    size = np.ceil(outline.max(axis=1) + 2 * SUPERSAMPLE).astype(int)
    fine = np.zeros((int(size[1]), int(size[0])), np.uint8)
    cv2.fillPoly(fine, [np.round(outline.T).astype(np.int32)], 1)
    return _one_piece(coarser(fine > 0))


def _one_piece(mask: Mask) -> Mask:
    return cropped(largest_pieces(mask, 1)) if mask.any() else np.ones((1, 1), bool)
