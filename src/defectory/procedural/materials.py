"""Materials: a brightness texture and a height map for each material word of the captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from defectory.procedural.noise import Field, coordinates, grain, streaks, value_noise

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Texture:
    """The look of a material: `shade` and `height` (pixels), float32 [H,W], and a colour tint.

    `shade` is relative brightness with zero mean.
    """

    shade: Field
    height: Field
    tint_rgb: tuple[float, float, float] = (1.0, 1.0, 1.0)


def _angle(rng: np.random.Generator) -> float:
    return float(rng.choice([0.0, 90.0, rng.uniform(0, 180)]))


def _brushed(rng: np.random.Generator, size: Size) -> Texture:
    lines = streaks(rng, size, rng.uniform(12, 50), _angle(rng), rng.uniform(0.4, 1.0))
    return Texture(shade=lines * rng.uniform(0.03, 0.13), height=lines * 0.15)


def _cast(rng: np.random.Generator, size: Size) -> Texture:
    bumps = grain(rng, size, rng.uniform(0.8, 2.2)) * 0.7 + grain(rng, size, rng.uniform(3, 6)) * 0.5
    return Texture(shade=bumps * rng.uniform(0.03, 0.09), height=bumps * rng.uniform(0.3, 0.9))


def _rolled(rng: np.random.Generator, size: Size) -> Texture:
    angle = _angle(rng)
    bands = streaks(rng, size, rng.uniform(30, 90), angle, rng.uniform(1.5, 5)) * 0.6 + grain(
        rng, size, rng.uniform(0.3, 1.0)
    )
    patches = value_noise(rng, size, rng.uniform(20, 60), 2) - 0.5
    return Texture(shade=bands * rng.uniform(0.03, 0.10) + patches * rng.uniform(0.0, 0.3), height=bands * 0.15)


def _milled(rng: np.random.Generator, size: Size) -> Texture:
    xs, ys = coordinates(size)
    theta, pitch = np.deg2rad(_angle(rng)), rng.uniform(3, 11)
    if rng.random() < 0.4:
        cx, cy = rng.uniform(-1.5, 2.5, 2) * (size[1], size[0])
        distance = np.hypot(xs - cx, ys - cy)
    else:
        distance = xs * np.float32(np.cos(theta)) + ys * np.float32(np.sin(theta))
    wave = np.sin(2 * np.pi * distance / pitch + rng.uniform(0, 6.3) + 0.6 * grain(rng, size, 6)).astype(np.float32)
    return Texture(
        shade=wave * rng.uniform(0.03, 0.12) + grain(rng, size, 0.5) * 0.03, height=wave * rng.uniform(0.2, 0.6)
    )


def _anodised(rng: np.random.Generator, size: Size) -> Texture:
    fine = grain(rng, size, rng.uniform(0.3, 0.7))
    tints = [(0.55, 0.75, 1.0), (1.0, 0.6, 0.5), (0.6, 0.9, 0.7), (0.8, 0.65, 1.0), (1.0, 0.85, 0.55)]
    return Texture(
        shade=fine * rng.uniform(0.015, 0.05), height=fine * 0.1, tint_rgb=tints[int(rng.integers(len(tints)))]
    )


def _painted(rng: np.random.Generator, size: Size) -> Texture:
    peel = grain(rng, size, rng.uniform(1.5, 4))
    tint = tuple(float(v) for v in rng.uniform(0.35, 1.0, 3))
    return Texture(
        shade=peel * rng.uniform(0.005, 0.03), height=peel * rng.uniform(0.1, 0.5), tint_rgb=(tint[0], tint[1], tint[2])
    )


def _woven(rng: np.random.Generator, size: Size) -> Texture:
    xs, ys = coordinates(size)
    theta, pitch = np.deg2rad(rng.choice([0.0, 45.0, rng.uniform(0, 90)])), rng.uniform(4, 11)
    warp = grain(rng, size, 10) * 0.5
    u = (xs * np.cos(theta) + ys * np.sin(theta)) / pitch + warp * 0.2
    v = (-xs * np.sin(theta) + ys * np.cos(theta)) / pitch
    over = (np.floor(u) + np.floor(v)) % 2
    thread = np.where(over > 0, np.sin(np.pi * (u % 1)), np.sin(np.pi * (v % 1))).astype(np.float32)
    thread = cv2.GaussianBlur(thread, (0, 0), 0.6) - 0.6
    tint = (1.0, float(rng.uniform(0.75, 1.0)), float(rng.uniform(0.6, 1.0)))
    return Texture(
        shade=thread * rng.uniform(0.15, 0.4) + grain(rng, size, 0.6) * 0.03, height=thread * 0.8, tint_rgb=tint
    )


def _ceramic(rng: np.random.Generator, size: Size) -> Texture:
    fine = grain(rng, size, rng.uniform(0.4, 1.0)) + 0.5 * grain(rng, size, rng.uniform(1.2, 2.5))
    stripes = streaks(rng, size, rng.uniform(20, 70), float(rng.choice([0.0, 90.0])), rng.uniform(0.8, 2.5))
    slow = value_noise(rng, size, rng.uniform(40, 120)) - 0.5
    shade = fine * rng.uniform(0.02, 0.09) + stripes * rng.uniform(0.0, 0.08) + slow * rng.uniform(0.0, 0.4)
    return Texture(shade=shade.astype(np.float32), height=fine * 0.2)


def _concrete(rng: np.random.Generator, size: Size) -> Texture:
    cloud = value_noise(rng, size, rng.uniform(20, 60), 4) - 0.5
    fine = grain(rng, size, 0.5)
    pores = np.clip(grain(rng, size, rng.uniform(1, 2)) - 2.2, 0, 1)
    return Texture(
        shade=cloud * rng.uniform(0.15, 0.4) + fine * rng.uniform(0.02, 0.06) - pores * 0.4,
        height=cloud * 1.5,
        tint_rgb=(1.0, 0.98, 0.93),
    )


def _asphalt(rng: np.random.Generator, size: Size) -> Texture:
    stones = grain(rng, size, rng.uniform(0.6, 1.4)) + 0.6 * grain(rng, size, rng.uniform(1.5, 2.5))
    cloud = value_noise(rng, size, 50, 2) - 0.5
    return Texture(
        shade=stones * rng.uniform(0.08, 0.2) + cloud * 0.15,
        height=stones * 0.6,
        tint_rgb=(1.0, 0.99, float(rng.uniform(0.9, 1.0))),
    )


def _plastic(rng: np.random.Generator, size: Size) -> Texture:
    slow = value_noise(rng, size, rng.uniform(60, 140)) - 0.5
    tint = tuple(float(v) for v in rng.uniform(0.5, 1.0, 3))
    return Texture(
        shade=slow * rng.uniform(0.05, 0.25) + grain(rng, size, 0.4) * 0.01,
        height=slow * 2,
        tint_rgb=(tint[0], tint[1], tint[2]),
    )


def _board(rng: np.random.Generator, size: Size) -> Texture:
    height, width = size
    traces = np.zeros(size, np.float32)
    for _ in range(int(rng.integers(4, 12))):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        thickness = int(rng.integers(1, 4))
        for _ in range(int(rng.integers(1, 4))):
            dx, dy = [(1, 0), (0, 1), (1, 1), (-1, 1)][int(rng.integers(4))]
            run = int(rng.integers(15, 70))
            cv2.line(traces, (x, y), (x + dx * run, y + dy * run), 1.0, thickness, cv2.LINE_AA)
            x, y = x + dx * run, y + dy * run
        cv2.circle(traces, (x, y), int(rng.integers(2, 5)), 1.0, -1, cv2.LINE_AA)
    shade = (traces - 0.2) * rng.uniform(0.2, 0.7) + grain(rng, size, 0.5) * 0.02
    return Texture(
        shade=shade.astype(np.float32), height=traces * 0.5, tint_rgb=(0.45, float(rng.uniform(0.7, 1.0)), 0.5)
    )


def _leather(rng: np.random.Generator, size: Size) -> Texture:
    cells = np.abs(grain(rng, size, rng.uniform(1.8, 3.5)))
    creases = np.clip(0.5 - cells, 0, 1)
    return Texture(
        shade=-creases * rng.uniform(0.2, 0.5) + 0.05,
        height=-creases * 2,
        tint_rgb=(1.0, float(rng.uniform(0.6, 0.9)), 0.55),
    )


MATERIALS: dict[str, Callable[[np.random.Generator, Size], Texture]] = {
    "brushed metal": _brushed,
    "cast metal": _cast,
    "rolled steel": _rolled,
    "milled metal": _milled,
    "anodised metal": _anodised,
    "painted metal": _painted,
    "woven fabric": _woven,
    "ceramic": _ceramic,
    "concrete": _concrete,
    "asphalt": _asphalt,
    "plastic": _plastic,
    "circuit board": _board,
    "leather": _leather,
}
MATERIAL_SHARES: dict[str, float] = {
    "brushed metal": 1.2,
    "cast metal": 1.2,
    "rolled steel": 1.6,
    "milled metal": 1.0,
    "anodised metal": 0.7,
    "painted metal": 0.8,
    "woven fabric": 0.6,
    "ceramic": 2.2,
    "concrete": 0.9,
    "asphalt": 1.0,
    "plastic": 0.7,
    "circuit board": 0.5,
    "leather": 0.5,
}
