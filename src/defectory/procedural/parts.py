"""Part geometry on a material: holes, slots, grooves, seams, welds, edges, ribs, grids, threads, blades."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.procedural.noise import Field, coordinates, value_noise

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part geometry, as arrays [H,W].

    `height` (pixels) and `shade` (relative brightness) are float32. `solid` is bool and False at holes and background;
    `void_level` is the brightness there.
    """

    height: Field
    shade: Field
    solid: NDArray[np.bool_]
    void_level: float


def _blank(size: Size) -> tuple[Field, Field, Field]:
    return np.zeros(size, np.float32), np.zeros(size, np.float32), np.ones(size, np.float32)


def _plain(rng: np.random.Generator, size: Size) -> Part:
    height, shade, solid = _blank(size)
    return Part(height=height, shade=shade, solid=solid > 0, void_level=float(rng.uniform(0, 0.1)))


def _hole(rng: np.random.Generator, size: Size) -> Part:
    height, shade, solid = _blank(size)
    void = 0.02 if rng.random() < 0.8 else 0.95
    rim = float(rng.uniform(-0.3, 0.5))
    single = rng.random() < 0.5
    for _ in range(1 if single else int(rng.integers(2, 4))):
        radius = float(rng.uniform(12, 30) if single else rng.uniform(6, 14))
        centre = (int(rng.uniform(0.1, 0.9) * size[1]), int(rng.uniform(0.1, 0.9) * size[0]))
        axes = (int(radius), int(radius * rng.uniform(0.7, 1.0)))
        turn = float(rng.uniform(0, 180))
        cv2.ellipse(shade, centre, (axes[0] + 3, axes[1] + 3), turn, 0, 360, rim, -1, cv2.LINE_AA)
        cv2.ellipse(height, centre, (axes[0] + 3, axes[1] + 3), turn, 0, 360, -2.0, -1, cv2.LINE_AA)
        cv2.ellipse(solid, centre, axes, turn, 0, 360, 0.0, -1)
    return Part(height=height, shade=shade, solid=solid > 0.5, void_level=void)


def _slot(rng: np.random.Generator, size: Size) -> Part:
    height, shade, solid = _blank(size)
    horizontal = rng.random() < 0.5
    thickness = int(rng.integers(8, 24))
    at = rng.uniform(0.15, 0.85)
    ends = sorted(rng.uniform(-0.2, 1.2, 2)) if rng.random() < 0.6 else [-0.2, 1.2]
    points = [
        (int(e * size[1]), int(at * size[0])) if horizontal else (int(at * size[1]), int(e * size[0])) for e in ends
    ]
    cv2.line(shade, points[0], points[1], float(rng.uniform(-0.3, 0.4)), thickness + 5, cv2.LINE_AA)
    cv2.line(height, points[0], points[1], -2.5, thickness + 4, cv2.LINE_AA)
    cv2.line(solid, points[0], points[1], 0.0, thickness)
    return Part(height=height, shade=shade, solid=solid > 0.5, void_level=float(rng.choice([0.02, 0.05, 0.9])))


def _groove(rng: np.random.Generator, size: Size) -> Part:
    height, shade, solid = _blank(size)
    xs, ys = coordinates(size)
    theta, pitch = np.deg2rad(rng.uniform(0, 180)), rng.uniform(12, 40)
    phase = (xs * np.cos(theta) + ys * np.sin(theta)) / pitch + rng.uniform()
    line = np.clip(1 - np.abs((phase % 1) - 0.5) * pitch / rng.uniform(1.5, 4), 0, 1).astype(np.float32)
    return Part(height=height - line * 2, shade=shade - line * rng.uniform(0.1, 0.5), solid=solid > 0, void_level=0.0)


def _seam(rng: np.random.Generator, size: Size) -> Part:
    height, shade, solid = _blank(size)
    xs, ys = coordinates(size)
    theta = np.deg2rad(rng.uniform(0, 180))
    across = (xs - size[1] * rng.uniform(0.25, 0.75)) * np.cos(theta) + (
        ys - size[0] * rng.uniform(0.25, 0.75)
    ) * np.sin(theta)
    step = np.float32(rng.uniform(-0.35, 0.35)) * (across > 0)
    line = np.exp(-((across / rng.uniform(1, 2.5)) ** 2)).astype(np.float32)
    return Part(
        height=height - line,
        shade=shade + step.astype(np.float32) - line * rng.uniform(0.2, 0.6),
        solid=solid > 0,
        void_level=0.0,
    )


def _weld(rng: np.random.Generator, size: Size) -> Part:
    height, shade, solid = _blank(size)
    xs, ys = coordinates(size)
    horizontal = rng.random() < 0.5
    along, across = (xs, ys) if horizontal else (ys, xs)
    middle = (size[0] if horizontal else size[1]) * rng.uniform(0.25, 0.75)
    half = rng.uniform(9, 22)
    wobble = (value_noise(rng, size, 30) - 0.5) * 4
    inside = np.clip(1 - ((across - middle + wobble) / half) ** 2, 0, 1)
    ripple = np.sin((along + 0.15 * (across - middle) ** 2 / half) * 2 * np.pi / rng.uniform(5, 9))
    bead = np.sqrt(inside).astype(np.float32)
    return Part(
        height=height + bead * half * 0.35 + (ripple * bead * 0.5).astype(np.float32),
        shade=shade + (bead * (0.08 * ripple + rng.uniform(-0.2, 0.2))).astype(np.float32),
        solid=solid > 0,
        void_level=0.0,
    )


def _edge(rng: np.random.Generator, size: Size) -> Part:
    height, shade, _ = _blank(size)
    xs, ys = coordinates(size)
    theta = np.deg2rad(float(rng.choice([0.0, 90.0, 180.0, 270.0])) + rng.normal(0, 6))
    normal = (xs - size[1] / 2) * np.cos(theta) + (ys - size[0] / 2) * np.sin(theta)
    tangent = -(xs - size[1] / 2) * np.sin(theta) + (ys - size[0] / 2) * np.cos(theta)
    bend = rng.uniform(-1, 1) * tangent**2 / 260 if rng.random() < 0.4 else 0.0
    limit = rng.uniform(-0.25, 0.42) * size[0]
    distance = (limit - normal + bend).astype(np.float32)
    bevel = np.exp(-((distance / rng.uniform(2, 6)) ** 2)).astype(np.float32)
    return Part(
        height=height - bevel * 2,
        shade=shade + bevel * rng.uniform(-0.4, 0.5),
        solid=distance > 0,
        void_level=float(rng.choice([0.02, 0.06, 0.15, 0.6, 0.97])),
    )


def _ribs(rng: np.random.Generator, size: Size) -> Part:
    height, shade, solid = _blank(size)
    xs, ys = coordinates(size)
    axis = xs if rng.random() < 0.5 else ys
    pitch = rng.uniform(18, 45)
    rib = np.clip(np.cos(2 * np.pi * axis / pitch + rng.uniform(0, 6)) * 3, -1, 1).astype(np.float32)
    return Part(height=height + rib * 1.5, shade=shade + rib * rng.uniform(0.05, 0.25), solid=solid > 0, void_level=0.0)


def _grid(rng: np.random.Generator, size: Size) -> Part:
    height, shade, solid = _blank(size)
    pitch, radius = rng.uniform(16, 36), rng.uniform(2.5, 6)
    offset = rng.uniform(0, pitch, 2)
    for y in np.arange(offset[1], size[0] + pitch, pitch):
        for x in np.arange(offset[0], size[1] + pitch, pitch):
            cv2.circle(solid, (int(x), int(y)), int(radius), 0.0, -1)
            cv2.circle(shade, (int(x), int(y)), int(radius) + 1, 0.25, 1, cv2.LINE_AA)
    return Part(height=height, shade=shade, solid=solid > 0.5, void_level=float(rng.choice([0.02, 0.08, 0.85])))


def _corner(rng: np.random.Generator, size: Size) -> Part:
    first, second = _edge(rng, size), _edge(rng, size)
    return Part(
        height=first.height + second.height,
        shade=np.where(np.abs(first.shade) > np.abs(second.shade), first.shade, second.shade),
        solid=first.solid & second.solid,
        void_level=first.void_level,
    )


def _thread(rng: np.random.Generator, size: Size) -> Part:
    height, shade, _ = _blank(size)
    xs, ys = coordinates(size)
    theta = np.deg2rad(float(rng.choice([0.0, 90.0])) + rng.normal(0, 8))
    along = (xs - size[1] / 2) * np.cos(theta) + (ys - size[0] / 2) * np.sin(theta)
    across = -(xs - size[1] / 2) * np.sin(theta) + (ys - size[0] / 2) * np.cos(theta) - rng.normal(0, 0.12) * size[0]
    radius = rng.uniform(0.3, 0.75) * min(size)
    pitch, lean = rng.uniform(7, 17), rng.uniform(-0.25, 0.25)
    flank = 1 - 2 * np.abs(((along + lean * across) / pitch + rng.uniform()) % 1 - 0.5) * 2
    round_off = np.sqrt(np.clip(1 - (across / radius) ** 2, 0, 1))
    return Part(
        height=height + (flank * pitch * 0.18 * round_off).astype(np.float32),
        shade=shade + (0.5 * (round_off - 0.8) + flank * rng.uniform(0.1, 0.3)).astype(np.float32),
        solid=np.abs(across) + rng.uniform(0, 0.12) * pitch * flank < radius,
        void_level=float(rng.choice([0.02, 0.08, 0.5, 0.95])),
    )


def _blade(rng: np.random.Generator, size: Size) -> Part:
    height, shade, _ = _blank(size)
    xs, ys = coordinates(size)
    theta = np.deg2rad(rng.uniform(0, 180))
    along = ((xs - size[1] / 2) * np.cos(theta) + (ys - size[0] / 2) * np.sin(theta)) / max(size)
    across = -(xs - size[1] / 2) * np.sin(theta) + (ys - size[0] / 2) * np.cos(theta)
    bow, taper = rng.uniform(-50, 50), rng.uniform(-0.5, 0.5)
    offset = across - bow * (along**2 - 0.1) - rng.normal(0, 0.08) * size[0]
    half = rng.uniform(0.2, 0.48) * min(size) * np.clip(1 + taper * along * 1.5, 0.3, 2)
    chord = offset / half
    thickness = np.sqrt(np.clip(1 - chord**2, 0, 1)) * np.clip(1.1 - 0.5 * chord, 0, 2)
    return Part(
        height=height + (thickness * rng.uniform(2, 8)).astype(np.float32),
        shade=shade + (rng.uniform(0.1, 0.5) * (thickness - 0.8) + rng.uniform(-0.3, 0.3) * chord).astype(np.float32),
        solid=np.abs(chord) < 1,
        void_level=float(rng.choice([0.02, 0.05, 0.2, 0.9])),
    )


PARTS: dict[str, Callable[[np.random.Generator, Size], Part]] = {
    "plain surface": _plain,
    "hole": _hole,
    "slot": _slot,
    "grooves": _groove,
    "seam": _seam,
    "weld": _weld,
    "part edge": _edge,
    "ribs": _ribs,
    "hole grid": _grid,
    "corner": _corner,
    "thread": _thread,
    "blade": _blade,
}
PART_SHARES: dict[str, float] = {
    "plain surface": 4.5,
    "hole": 1.0,
    "slot": 0.6,
    "grooves": 0.6,
    "seam": 0.6,
    "weld": 0.6,
    "part edge": 1.6,
    "ribs": 0.5,
    "hole grid": 0.5,
    "corner": 0.5,
    "thread": 0.5,
    "blade": 0.6,
}
