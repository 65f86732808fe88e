"""Defects: a shape with soft coverage, and its effect on the surface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.procedural.noise import Field, coordinates, grain, value_noise

Size = tuple[int, int]
SUPERSAMPLE = 3


@dataclass(frozen=True, kw_only=True)
class Defect:
    """One defect of the procedural world.

    `coverage` is float32 [H,W] in [0,1]. `target` is the brightness it pulls to, relative to the surface (0 black, 1
    unchanged, above 1 brighter). `height` (pixels) is for edge lighting; there is also a colour cast.
    """

    word: str
    coverage: Field
    target: Field
    height: Field
    tint_rgb: tuple[float, float, float] = (1.0, 1.0, 1.0)
    colour_strength: float = 0.0

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Return the pixels that the defect changes visibly, bool [H,W]."""
        return self.coverage > 0.4

    @cached_property
    def glows(self) -> bool:
        """Return whether most of the defect pulls to a brightness above the surface's."""
        return 2 * int(np.count_nonzero(self.target > 1)) > self.target.size


def _curve(
    rng: np.random.Generator,
    size: Size,
    length_px: float,
    wander: float,
    start: tuple[float, float] | None,
    heading: float | None,
) -> NDArray[np.float32]:
    step = 3.0
    count = max(3, int(length_px / step))
    first = rng.uniform(0, 2 * np.pi) if heading is None else heading
    turns = rng.normal(0, wander, count)
    headings = (
        first + np.cumsum(turns) - np.linspace(0, 1, count) * turns.sum() * 0.5 + rng.normal(0, wander * 1.2, count)
    )
    path = np.cumsum(np.stack([np.cos(headings), np.sin(headings)], 1) * step, 0)
    if start is None:
        middle = np.array([rng.uniform(0.15, 0.85) * size[1], rng.uniform(0.15, 0.85) * size[0]])
        path = path - path.mean(0) + middle
    else:
        path = path + np.array(start)
    return path.astype(np.float32)


def _stroke(size: Size, paths: list[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> Field:
    """Draw polylines of varying width (px) with antialiasing by supersampling."""
    k = SUPERSAMPLE
    canvas = np.zeros((size[0] * k, size[1] * k), np.uint8)
    for path, widths in paths:
        points = np.round(path * k).astype(np.int32)
        for index in range(len(points) - 1):
            a, b = points[index], points[index + 1]
            cv2.line(
                canvas, (int(a[0]), int(a[1])), (int(b[0]), int(b[1])), 255, max(1, round(float(widths[index]) * k))
            )
    return cv2.resize(canvas, (size[1], size[0]), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _blob(
    rng: np.random.Generator,
    size: Size,
    radius_px: float,
    aspect: float,
    ragged: float,
    soft_px: float,
    centre_xy: tuple[float, float] | None = None,
) -> Field:
    xs, ys = coordinates(size)
    cx, cy = (rng.uniform(0.08, 0.92) * size[1], rng.uniform(0.08, 0.92) * size[0]) if centre_xy is None else centre_xy
    theta = rng.uniform(0, np.pi)
    cosine, sine = np.float32(np.cos(theta)), np.float32(np.sin(theta))
    right, down = xs - np.float32(cx), ys - np.float32(cy)
    along, across = (right * cosine + down * sine) / np.float32(aspect), down * cosine - right * sine
    distance = np.sqrt(along * along + across * across)
    border = radius_px * (1 + ragged * 2 * (value_noise(rng, size, max(3.0, radius_px * 0.6), 3) - 0.5))
    return np.clip((border - distance) / max(soft_px, 0.7) + 0.5, 0, 1)


def _dark(rng: np.random.Generator, size: Size, low: float, high: float, rough: float = 0.08) -> Field:
    return (rng.uniform(low, high) + rough * grain(rng, size, rng.uniform(0.5, 1.5))).astype(np.float32)


def _crack(rng: np.random.Generator, size: Size) -> Defect:
    length = float(rng.uniform(22, 110))
    width = float(rng.uniform(1.5, 5.0) if rng.random() < 0.75 else rng.uniform(1.1, 1.8))
    main = _curve(rng, size, length, rng.uniform(0.1, 0.35), None, None)
    profile = (
        width * (0.55 + 0.6 * np.sin(np.linspace(0.25, np.pi - 0.25, len(main)))) * rng.uniform(0.8, 1.2, len(main))
    )
    paths = [(main, profile.astype(np.float32))]
    if rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 5))):
            # a branch leaves the crack it grows from, main or branch, forwards at an acute angle
            trunk, thickness = paths[int(rng.integers(len(paths)))]
            at = int(rng.integers(1, len(trunk)))
            ahead = trunk[at] - trunk[at - 1]
            heading = float(np.arctan2(ahead[1], ahead[0]) + rng.choice([-1, 1]) * rng.uniform(0.35, 1.25))
            branch = _curve(
                rng, size, length * rng.uniform(0.15, 0.5), 0.3, (float(trunk[at, 0]), float(trunk[at, 1])), heading
            )
            paths.append((branch, np.linspace(float(thickness[at]) * 0.8, 0.9, len(branch)).astype(np.float32)))
    coverage = _stroke(size, paths)
    return Defect(word="crack", coverage=coverage, target=_dark(rng, size, 0.05, 0.45), height=-coverage * 1.5)


def _scratch(rng: np.random.Generator, size: Size) -> Defect:
    heading = float(rng.uniform(0, 6.3))
    paths: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.4 else 1):
        path = _curve(rng, size, float(rng.uniform(25, 130)), 0.015, None, heading + float(rng.normal(0, 0.05)))
        paths.append((path, np.full(len(path), rng.uniform(1.2, 4.0), np.float32)))
    coverage = _stroke(size, paths)
    bright = rng.random() < 0.65
    target = _dark(rng, size, 1.45, 2.2) if bright else _dark(rng, size, 0.2, 0.6)
    return Defect(word="scratch", coverage=coverage, target=target, height=-coverage)


def _pit(rng: np.random.Generator, size: Size) -> Defect:
    radius = float(rng.uniform(2.5, 9))
    coverage = _blob(rng, size, radius, float(rng.uniform(1, 1.5)), 0.12, 1.2)
    inner = cv2.erode(coverage, np.ones((3, 3), np.uint8))
    target = np.where(inner > 0.5, _dark(rng, size, 0.05, 0.45), _dark(rng, size, 0.5, 1.5))
    return Defect(word="pit", coverage=coverage, target=target.astype(np.float32), height=-coverage * 3)


def _pores(rng: np.random.Generator, size: Size) -> Defect:
    canvas = np.zeros((size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE), np.uint8)
    centre = rng.uniform(0.15, 0.85, 2) * (size[1], size[0])
    spread = rng.uniform(5, 16)
    for _ in range(int(rng.integers(4, 14))):
        x, y = (centre + rng.normal(0, spread, 2)) * SUPERSAMPLE
        cv2.circle(canvas, (int(x), int(y)), int(rng.uniform(1.2, 3.2) * SUPERSAMPLE), 255, -1)
    coverage = cv2.resize(canvas, (size[1], size[0]), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return Defect(word="pores", coverage=coverage, target=_dark(rng, size, 0.1, 0.5), height=-coverage * 1.5)


def _inclusion(rng: np.random.Generator, size: Size) -> Defect:
    coverage = _blob(rng, size, float(rng.uniform(2.5, 8)), float(rng.uniform(1.5, 6)), 0.25, 1.2)
    target = _dark(rng, size, 0.25, 0.6, 0.15) if rng.random() < 0.7 else _dark(rng, size, 1.4, 2.0, 0.15)
    return Defect(word="inclusion", coverage=coverage, target=target, height=coverage * 0.5)


def _stain(rng: np.random.Generator, size: Size) -> Defect:
    coverage = _blob(rng, size, float(rng.uniform(12, 34)), float(rng.uniform(1, 2)), 0.3, 4.0)
    target = _dark(rng, size, 0.45, 0.72, 0.03) if rng.random() < 0.7 else _dark(rng, size, 1.3, 1.6, 0.03)
    tint = (1.0, float(rng.uniform(0.75, 1.0)), float(rng.uniform(0.5, 1.0)))
    return Defect(
        word="stain",
        coverage=coverage,
        target=target,
        height=np.zeros(size, np.float32),
        tint_rgb=tint,
        colour_strength=0.6,
    )


def _corrosion(rng: np.random.Generator, size: Size) -> Defect:
    coverage = _blob(rng, size, float(rng.uniform(8, 26)), float(rng.uniform(1, 1.8)), 0.5, 1.5)
    holes = value_noise(rng, size, 7, 2) < 0.22
    coverage = np.where(holes, np.float32(0), coverage).astype(np.float32)
    target = (_dark(rng, size, 0.35, 0.65, 0.12) + 0.2 * (value_noise(rng, size, 6, 2) - 0.5)).astype(np.float32)
    return Defect(
        word="corrosion",
        coverage=coverage,
        target=target,
        height=coverage * grain(rng, size, 1.2),
        tint_rgb=(1.0, 0.62, 0.38),
        colour_strength=0.9,
    )


def _dent(rng: np.random.Generator, size: Size) -> Defect:
    radius = float(rng.uniform(6, 18))
    coverage = _blob(rng, size, radius, float(rng.uniform(1, 1.6)), 0.08, radius * 0.5)
    direction = rng.uniform(0, 2 * np.pi)
    gy, gx = np.gradient(cv2.GaussianBlur(coverage, (0, 0), 2))
    slope = (gx * np.cos(direction) + gy * np.sin(direction)).astype(np.float32)
    slope /= max(float(np.abs(slope).max()), 1e-6)
    target = 1 + slope * rng.uniform(0.5, 0.9) - 0.15
    return Defect(
        word="dent",
        coverage=(coverage > 0.3).astype(np.float32),
        target=target.astype(np.float32),
        height=np.zeros(size, np.float32),
    )


def _break(rng: np.random.Generator, size: Size) -> Defect:
    coverage = _blob(rng, size, float(rng.uniform(10, 34)), float(rng.uniform(1, 2.2)), 0.45, 1.2)
    facets = value_noise(rng, size, rng.uniform(8, 18), 3)
    level = rng.uniform(0.25, 0.65) if rng.random() < 0.7 else rng.uniform(1.3, 1.8)
    target = (level + 0.5 * (facets - 0.5) + 0.08 * grain(rng, size, 0.8)).astype(np.float32)
    return Defect(word="break", coverage=coverage, target=target, height=-coverage * 4 + facets * coverage * 4)


def _fray(rng: np.random.Generator, size: Size) -> Defect:
    heading = float(rng.uniform(0, 6.3))
    base = _curve(rng, size, float(rng.uniform(25, 60)), 0.1, None, heading)
    paths: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    for point in base[:: int(rng.integers(1, 3))]:
        hair = _curve(
            rng,
            size,
            float(rng.uniform(6, 20)),
            0.25,
            (float(point[0]), float(point[1])),
            heading + np.pi / 2 + float(rng.normal(0, 0.5)),
        )
        paths.append((hair, np.full(len(hair), rng.uniform(1, 2.2), np.float32)))
    coverage = _stroke(size, paths)
    target = _dark(rng, size, 0.2, 0.55) if rng.random() < 0.5 else _dark(rng, size, 1.4, 2.0)
    return Defect(word="fray", coverage=coverage, target=target, height=coverage * 0.5)


def draw_chip(rng: np.random.Generator, size: Size, solid: NDArray[np.bool_], void_level: float) -> Defect:
    """Draw a chip: material broken out of an edge of the part, or a flake off its surface if there is no edge.

    Args:
        rng: source of randomness for the shape.
        size: height and width, pixels.
        solid: the part, bool [H,W].
        void_level: brightness behind the part, visible through a notch.
    """
    border = solid & (cv2.erode(solid.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) == 0)
    ys, xs = np.nonzero(border)
    at = int(rng.integers(len(ys))) if len(ys) else -1
    centre = (float(xs[at]), float(ys[at])) if len(ys) else None
    coverage = _blob(rng, size, float(rng.uniform(4, 15)), float(rng.uniform(1, 2)), 0.35, 1.0, centre) * solid
    direction = rng.uniform(0, 2 * np.pi)
    facets = value_noise(rng, size, rng.uniform(5, 12), 2)
    gy, gx = np.gradient(cv2.GaussianBlur(coverage, (0, 0), 2))
    rim = (gx * np.cos(direction) + gy * np.sin(direction)).astype(np.float32)
    rim /= max(float(np.abs(rim).max()), 1e-6)
    if len(ys) and rng.random() < 0.5:
        return Defect(
            word="chip",
            coverage=coverage.astype(np.float32),
            target=_dark(rng, size, 0.0, 0.2) + np.float32(2 * (void_level > 0.4)),
            height=np.zeros(size, np.float32),
        )
    target = float(rng.choice([rng.uniform(0.3, 0.7), rng.uniform(1.25, 1.7)])) + 0.35 * (facets - 0.5) + 0.35 * rim
    return Defect(
        word="chip", coverage=coverage.astype(np.float32), target=target.astype(np.float32), height=-coverage * 2
    )


DEFECTS: dict[str, Callable[[np.random.Generator, Size], Defect]] = {
    "crack": _crack,
    "scratch": _scratch,
    "pit": _pit,
    "pores": _pores,
    "inclusion": _inclusion,
    "stain": _stain,
    "corrosion": _corrosion,
    "dent": _dent,
    "break": _break,
    "fray": _fray,
}
DEFECT_SHARES: dict[str, float] = {
    "crack": 2.5,
    "scratch": 1.2,
    "pit": 1.6,
    "pores": 0.7,
    "inclusion": 1.1,
    "stain": 0.7,
    "corrosion": 0.7,
    "dent": 0.5,
    "break": 1.6,
    "fray": 0.5,
    "chip": 0.9,
}
DEFECT_WORDS: tuple[str, ...] = (*DEFECTS, "chip")
