"""The procedural world: material x part x light x defects x camera, with exact masks and a caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.procedural.camera import Camera, Light, draw_camera, draw_light, expose, shade_relief
from defectory.procedural.defects import DEFECT_SHARES, DEFECT_WORDS, DEFECTS, Defect, draw_chip
from defectory.procedural.materials import MATERIAL_SHARES, MATERIALS, Texture
from defectory.procedural.parts import PART_SHARES, PARTS, Part
from defectory.tones import tone_words

MIN_CONTRAST = 22.0
"""Minimum contrast of a defect with the surface under it: median over its mask, in grey levels."""
SURFACE_SUPPORT = 0.7
"""Minimum share of a defect's mask that lies on solid surface."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A rendered image uint8 [H,W,3], its class map, instances, caption and the tone words in the caption.

    `class_map` is uint8 [H,W]: 0 for no defect, else index into DEFECT_WORDS + 1.
    """

    image: NDArray[np.uint8]
    class_map: NDArray[np.uint8]
    instances: tuple[tuple[str, NDArray[np.bool_]], ...]
    caption: str
    tone: str
    material: str
    part: str
    defect_words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Scene:
    material: str
    part_word: str
    texture: Texture
    part: Part
    light: Light
    camera: Camera
    level: float
    colour_word: str


def _choose(rng: np.random.Generator, shares: dict[str, float]) -> str:
    words = list(shares)
    weights = np.array([shares[word] for word in words])
    return words[int(rng.choice(len(words), p=weights / weights.sum()))]


def _draw_scene(rng: np.random.Generator, size_hw: tuple[int, int]) -> _Scene:
    material = _choose(rng, MATERIAL_SHARES)
    part_word = _choose(rng, PART_SHARES)
    texture = MATERIALS[material](rng, size_hw)
    part = PARTS[part_word](rng, size_hw)
    camera = draw_camera(rng, size_hw)
    tint = np.array(texture.tint_rgb)
    names = {0: "red", 1: "green", 2: "blue"}
    colour = (
        "grey" if camera.grey or (tint.max() - tint.min()) * camera.saturation < 0.12 else names[int(tint.argmax())]
    )
    return _Scene(
        material=material,
        part_word=part_word,
        texture=texture,
        part=part,
        light=draw_light(rng, size_hw),
        camera=camera,
        level=float(rng.uniform(0.10, 0.92)),
        colour_word=colour,
    )


def _surface(scene: _Scene) -> NDArray[np.float32]:
    """Return the brightness float32 [H,W,3] of the scene without defects."""
    height = scene.texture.height + scene.part.height
    lit = 1 + scene.texture.shade + scene.part.shade + shade_relief(height, scene.light)
    surface = scene.level * scene.light.falloff * np.clip(lit, 0.05, 3)
    # channel by channel: numpy is slow along a last axis of three
    image = np.asarray(
        cv2.merge([np.clip(surface * np.float32(tint), 0.0, 1.0) for tint in scene.texture.tint_rgb]), np.float32
    )
    if not scene.part.solid.all():
        image[~scene.part.solid] = scene.part.void_level
    return image


def _part_of(coverage: NDArray[np.floating[Any]]) -> tuple[slice, slice]:
    """Return the rows and columns that a defect covers; most defects are small, and the rest is unchanged."""
    left, top, width, height = cv2.boundingRect((coverage > 0).astype(np.uint8))
    return slice(top, top + height), slice(left, left + width)


def _with_defect(
    image: NDArray[np.float32], defect: Defect, light: Light, part: tuple[slice, slice]
) -> NDArray[np.float32]:
    """Return the brightness float32 [h,w,3] of part of an image with a defect in it.

    The defect changes the surface before lighting.
    """
    coverage, shown = defect.coverage[part], image[part]
    relief = shade_relief(defect.height, light, part=part) * np.sign(coverage)
    target = np.clip(defect.target[part] + relief, 0.0, 3.0)[..., None]
    tint = 1 - defect.colour_strength * (1 - np.array(defect.tint_rgb, np.float32))
    base = np.maximum(shown, np.float32(0.12)) if defect.glows else shown
    changed = np.clip(base * target * tint, 0, 1)
    return np.minimum(shown + coverage[..., None] * (changed - shown), np.float32(1.0))


def _radiance(scene: _Scene, surface: NDArray[np.float32], defects: list[Defect]) -> NDArray[np.float32]:
    """Return the scene brightness float32 [H,W,3] with its defects."""
    image = surface.copy()
    for defect in defects:
        part = _part_of(defect.coverage)
        image[part] = _with_defect(image, defect, scene.light, part)
    return image


def _is_visible(scene: _Scene, surface: NDArray[np.float32], defect: Defect, mask: NDArray[np.bool_]) -> bool:
    part = _part_of(defect.coverage)
    inside = mask[part]
    changed = np.abs(_with_defect(surface, defect, scene.light, part)[inside] - surface[part][inside])
    return bool(np.median(changed.max(axis=1)) * 255 >= MIN_CONTRAST)


def _draw_defects(
    rng: np.random.Generator, scene: _Scene, surface: NDArray[np.float32], shares: dict[str, float]
) -> list[Defect]:
    wanted = int(rng.choice([1, 2, 3], p=[0.6, 0.28, 0.12]))
    chosen: list[Defect] = []
    size_hw = (surface.shape[0], surface.shape[1])
    taken = np.zeros(size_hw, bool)
    for _ in range(wanted * 6):
        if len(chosen) == wanted:
            break
        word = _choose(rng, shares)
        defect = (
            draw_chip(rng, size_hw, scene.part.solid, scene.part.void_level)
            if word == "chip"
            else DEFECTS[word](rng, size_hw)
        )
        mask = defect.mask
        if (
            mask.sum() < 12
            or (mask & scene.part.solid).sum() < SURFACE_SUPPORT * mask.sum()
            or (chosen and (cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) > 0)[taken].any())
        ):
            continue
        if not _is_visible(scene, surface, defect, mask):
            continue
        chosen.append(defect)
        taken |= mask
    return chosen


def _caption(rng: np.random.Generator, scene: _Scene, tone: str, defects: list[Defect]) -> str:
    words = list(dict.fromkeys(defect.word for defect in defects))
    with_part = "" if scene.part_word == "plain surface" else f" with {scene.part_word}"
    head = f"a {tone} {scene.colour_word} {scene.material} surface{with_part}"
    tail = "without defect" if not words else "with a " + " and a ".join(words)
    lead = ("a photo of ", "an image of ", "")[int(rng.integers(3))]
    light = f", {scene.light.word}" if rng.random() < 0.5 else ""
    return f"{lead}{head}{light}, {tail}"


def _sample(rng: np.random.Generator, scene: _Scene, surface: NDArray[np.float32], defects: list[Defect]) -> Sample:
    image = expose(_radiance(scene, surface, defects), scene.camera)
    class_map = np.zeros(image.shape[:2], np.uint8)
    for defect in defects:
        class_map[defect.mask] = DEFECT_WORDS.index(defect.word) + 1
    tone = tone_words(image, without=class_map > 0)
    return Sample(
        image=image,
        class_map=class_map,
        instances=tuple((defect.word, defect.mask) for defect in defects),
        caption=_caption(rng, scene, tone, defects),
        tone=tone,
        material=scene.material,
        part=scene.part_word,
        defect_words=tuple(defect.word for defect in defects),
    )


def render(
    seed: int, size_hw: tuple[int, int] = (128, 128), *, with_defect: bool | None = None, only: str | None = None
) -> Sample:
    """Render one image of the world; a pure function of its arguments.

    Args:
        seed: seed of everything in the image.
        size_hw: height and width, pixels.
        with_defect: None draws defects with probability 0.65.
        only: word of DEFECT_WORDS to use for every defect; None uses all words.
    """
    rng = np.random.default_rng([20261124, seed])
    scene = _draw_scene(rng, size_hw)
    surface = _surface(scene)
    wanted = bool(rng.random() < 0.65) if with_defect is None else with_defect
    shares = DEFECT_SHARES if only is None else {only: 1.0}
    defects = _draw_defects(rng, scene, surface, shares) if wanted else []
    return _sample(rng, scene, surface, defects)


def render_pair(seed: int, size_hw: tuple[int, int] = (128, 128)) -> tuple[Sample, Sample]:
    """Render one scene with and without its defects, with the same light, camera and noise.

    Args:
        seed: as for `render`.
        size_hw: height and width, pixels.
    """
    rng = np.random.default_rng([20261124, seed])
    scene = _draw_scene(rng, size_hw)
    surface = _surface(scene)
    defects = _draw_defects(rng, scene, surface, DEFECT_SHARES)
    return _sample(rng, scene, surface, defects), _sample(rng, scene, surface, [])
