"""Light and camera: shading of a height map, exposure, blur, noise, compression and colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.procedural.noise import Field, coordinates

Size = tuple[int, int]
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, as in JPEG."""
LIGHTS = ("flat light", "point light", "line light", "ring light", "side light", "specular light", "dim corners")


@dataclass(frozen=True, kw_only=True)
class Light:
    """The light of a scene: its word, `falloff` float32 [H,W] (1 = full) and the direction of relief shading."""

    word: str
    falloff: Field
    direction_xy: tuple[float, float]
    relief: float


@dataclass(frozen=True, kw_only=True)
class Camera:
    """The camera of a shot.

    `noise` float32 [H,W,3], or [H,W,1] for a grey camera, is in grey levels; it is drawn with the shot, so that a twin
    can share it.
    """

    blur_px: float
    noise: NDArray[np.float32]
    jpeg_quality: int | None
    cast_rgb: tuple[float, float, float]
    grey: bool
    saturation: float
    """Factor on the difference of each colour from grey."""


def draw_light(rng: np.random.Generator, size: Size) -> Light:
    """Draw a light: mostly flat or gently falling off; never the round dark vignette of a borescope."""
    word = LIGHTS[int(rng.choice(len(LIGHTS), p=[0.36, 0.13, 0.13, 0.09, 0.17, 0.06, 0.06]))]
    xs, ys = coordinates(size)
    u, v = xs / size[1] - 0.5, ys / size[0] - 0.5
    theta = rng.uniform(0, 2 * np.pi)
    depth = rng.uniform(0.15, 0.6)
    if word == "flat light":
        falloff = np.ones(size, np.float32)
    elif word == "point light":
        distance = np.hypot(u - rng.uniform(-0.4, 0.4), v - rng.uniform(-0.4, 0.4))
        falloff = 1 - depth * np.clip(distance * 1.3, 0, 1)
    elif word == "line light":
        across = u * np.cos(theta) + v * np.sin(theta) - rng.uniform(-0.3, 0.3)
        falloff = 1 - depth * (1 - np.exp(-((across / rng.uniform(0.15, 0.5)) ** 2)))
    elif word == "ring light":
        falloff = 1 - depth * 0.5 * np.abs(np.hypot(u, v) * 2 - 0.6)
    elif word == "specular light":
        spot = np.hypot((u - rng.uniform(-0.4, 0.4)) * rng.uniform(0.5, 1.5), v - rng.uniform(-0.4, 0.4)) / rng.uniform(
            0.08, 0.25
        )
        falloff = 0.8 + rng.uniform(0.5, 2.2) * np.exp(-(spot**2))
    elif word == "dim corners":
        falloff = 1 - depth * np.clip(np.hypot(u, v) * 1.4, 0, 1) ** 2
    else:
        falloff = 1 + depth * (u * np.cos(theta) + v * np.sin(theta))
    return Light(
        word=word,
        falloff=falloff.astype(np.float32),
        direction_xy=(float(np.cos(theta)), float(np.sin(theta))),
        relief=float(rng.uniform(0.05, 0.25)),
    )


def shade_relief(height: Field, light: Light, *, part: tuple[slice, slice] | None = None) -> Field:
    """Return the relative brightness change of a height map under a light, float32 [H,W].

    If `part` is given, only its rows and columns are computed.
    """
    if part is not None:
        # slopes need one more pixel on each side
        rows, columns = (slice(max(0, side.start - 1), side.stop + 1) for side in part)
        inside = tuple(
            slice(side.start - wide.start, side.stop - wide.start)
            for side, wide in zip(part, (rows, columns), strict=True)
        )
        return shade_relief(height[rows, columns], light)[inside]
    dx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    dy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    return np.clip((dx * light.direction_xy[0] + dy * light.direction_xy[1]) * light.relief * 2, -0.6, 0.6)


def draw_camera(rng: np.random.Generator, size: Size) -> Camera:
    """Draw a camera: a third of all images are grey, blur and noise are mild, JPEG is rare."""
    sigma = float(rng.choice([0.5, rng.uniform(0.5, 3), rng.uniform(2, 6)], p=[0.4, 0.4, 0.2]))
    noise = rng.standard_normal((*size, 3), dtype=np.float32)
    grey = bool(rng.random() < 0.35)
    cast = tuple(float(v) for v in 1 + rng.normal(0, 0.06, 3))
    return Camera(
        blur_px=float(rng.choice([0.0, rng.uniform(0.3, 0.9)], p=[0.5, 0.5])),
        noise=(noise[..., :1] if grey else noise) * np.float32(sigma),
        jpeg_quality=int(rng.integers(50, 90)) if rng.random() < 0.1 else None,
        cast_rgb=(cast[0], cast[1], cast[2]),
        grey=grey,
        saturation=float(rng.uniform(0.8, 3.5)),
    )


def expose(scene: NDArray[np.floating[Any]], camera: Camera) -> NDArray[np.uint8]:
    """Convert scene brightness float32 [H,W,3] in [0,1] to an image uint8 [H,W,3]."""
    if camera.blur_px > 0:
        scene = np.asarray(cv2.GaussianBlur(scene, (0, 0), camera.blur_px), np.float32)
    to_image = np.array([LUMINANCE])
    if not camera.grey:
        to_image = ((1 - camera.saturation) * to_image + camera.saturation * np.eye(3)) * np.array(camera.cast_rgb)[
            :, None
        ]
    levels = np.asarray(cv2.transform(scene, (255 * to_image).astype(np.float32)), np.float32).reshape(
        camera.noise.shape
    )
    image = np.clip(np.round(levels + camera.noise), 0, 255).astype(np.uint8)
    if camera.grey:
        image = np.asarray(cv2.merge([image] * 3), np.uint8)
    if camera.jpeg_quality is not None:
        _, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, camera.jpeg_quality])
        image = np.ascontiguousarray(np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])
        if camera.grey:
            image = image[..., 1:2].repeat(3, axis=2)
    return image
