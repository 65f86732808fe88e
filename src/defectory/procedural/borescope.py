"""The demo's data set: endoscope photos of a combustor wall, a family that base pretraining never sees.

The images show a dark round vignette, warm metal, rows of cooling holes and five crack classes, with exact masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.files import write_json
from defectory.folders.swap import atomic_folder
from defectory.images.save import save_png
from defectory.procedural.noise import Field, coordinates, grain, streaks, value_noise

CLASSES: tuple[str, ...] = ("hairline", "branched", "edge", "gouge", "burn")
SIZE_HW = (132, 160)
SHOTS_PER_SCENE = 4
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class BorescopeSample:
    """A shot: RGB uint8 [H,W,3], class name and bool [H,W] mask of each defect, and the scene it belongs to."""

    image: NDArray[np.uint8]
    instances: tuple[tuple[str, Mask], ...]
    group: str


@dataclass(frozen=True, kw_only=True)
class _Wall:
    surface: Field
    drawing: Field
    tint_rgb: NDArray[np.float32]
    lit: Mask
    falloff: Field
    holes: tuple[tuple[float, float, float, float], ...]
    hole_mask: Mask


def _wall(scene_seed: int, rng: np.random.Generator, size_hw: tuple[int, int]) -> _Wall:
    """Draw the wall of a scene as one shot sees it: the scene determines the layout, the shot the camera."""
    scene = np.random.default_rng([31, scene_seed])
    height, width = size_hw
    unit = height / 132
    pitch_x, pitch_y = scene.uniform(26, 40) * unit, scene.uniform(30, 52) * unit
    radius = scene.uniform(3.6, 6.0) * unit
    slant, squash = scene.uniform(-0.35, 0.35), scene.uniform(0.55, 0.95)
    level = scene.uniform(0.45, 0.68)
    tint = np.array([1.0, scene.uniform(0.84, 0.96), scene.uniform(0.68, 0.90)], np.float32)
    texture_seed, seam_at = int(scene.integers(2**31)), scene.uniform(0.3, 0.7)
    shift = rng.uniform(-9, 9, 2) * unit
    turn = np.deg2rad(rng.uniform(-7, 7))
    xs, ys = coordinates(size_hw)
    cx, cy = width / 2 + rng.uniform(-4, 4) * unit, height / 2 + rng.uniform(-3, 3) * unit
    v = -(xs - cx) * np.sin(turn) + (ys - cy) * np.cos(turn) + shift[1]
    texture = np.random.default_rng([32, texture_seed, int(rng.integers(2**31))])
    shade = 0.035 * streaks(texture, size_hw, 14 * unit, float(np.rad2deg(turn)), 0.8) + 0.025 * grain(
        texture, size_hw, 0.6
    )
    shade = shade + 0.25 * (value_noise(texture, size_hw, 40 * unit, 2) - 0.5)
    across = v - (seam_at - 0.5) * height * 0.9
    seam = np.exp(-((across / (1.6 * unit)) ** 2)) * (scene.random() < 0.6)
    step = 0.10 * level * (across > 0) * (scene.random() < 0.5)
    surface = level * (1 + shade - 0.45 * seam) + step
    holes: list[tuple[float, float, float, float]] = []
    canvas = np.zeros(size_hw, np.uint8)
    inverse = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    for row in range(-3, 4):
        for column in range(-4, 5):
            local = np.array([column * pitch_x + row * slant * pitch_x, row * pitch_y]) - shift
            x, y = inverse @ local + (cx, cy)
            axes = (radius, radius * squash)
            holes.append((float(x), float(y), float(axes[0]), float(axes[1])))
            _ellipse(canvas, x, y, axes[0], axes[1], float(np.rad2deg(turn)))
    hole_mask = canvas > 127
    rim = (cv2.dilate(canvas, np.ones((3, 3), np.uint8), iterations=max(1, round(1.5 * unit))) > 127) & ~hole_mask
    surface = np.where(rim, surface * 1.3, surface)
    surface = np.where(hole_mask, 0.05 + 0.02 * rng.random(), surface)
    drawing = np.where(hole_mask, 0.05, level * (1 - 0.45 * seam) + step)
    lens = np.hypot((xs - cx) / (width * 0.47), (ys - cy) / (height * 0.51))
    falloff = np.clip(
        1.12 - 0.55 * np.hypot((xs - cx) / width * 2, (ys - cy) / height * 2) ** 1.6, 0.15, 1.2
    ) * rng.uniform(0.88, 1.08)
    falloff = falloff * np.clip((1.0 - lens) * 14 + 0.5, 0.0, 1.0)
    return _Wall(
        surface=surface.astype(np.float32),
        drawing=(drawing * (lens < 1.0)).astype(np.float32),
        tint_rgb=tint,
        lit=lens < 0.90,
        falloff=falloff.astype(np.float32),
        holes=tuple(holes),
        hole_mask=hole_mask,
    )


def _ellipse(canvas: NDArray[np.uint8], x: float, y: float, a: float, b: float, degrees: float) -> None:
    cv2.ellipse(
        canvas, (round(x * 16), round(y * 16)), (round(a * 16), round(b * 16)), degrees, 0, 360, 255, -1, cv2.LINE_AA, 4
    )


def _polyline(size_hw: tuple[int, int], path: NDArray[np.float64], widths: NDArray[np.float64]) -> Field:
    k = 4
    canvas = np.zeros((size_hw[0] * k, size_hw[1] * k), np.uint8)
    for index in range(len(path) - 1):
        a, b = np.round(path[index] * k).astype(int), np.round(path[index + 1] * k).astype(int)
        cv2.line(canvas, (int(a[0]), int(a[1])), (int(b[0]), int(b[1])), 255, max(1, round(float(widths[index]) * k)))
    return cv2.resize(canvas, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _walk(
    rng: np.random.Generator, start: NDArray[np.float64], heading: float, length: float, wander: float
) -> NDArray[np.float64]:
    count = max(4, int(length / 3))
    headings = heading + np.cumsum(rng.normal(0, wander, count)) + rng.normal(0, wander, count)
    return np.concatenate([start[None], start + np.cumsum(np.stack([np.cos(headings), np.sin(headings)], 1) * 3, 0)])


def _coverage(word: str, rng: np.random.Generator, wall: _Wall, size_hw: tuple[int, int]) -> Field:
    """Draw one defect's soft coverage float32 [H,W]."""
    unit = size_hw[0] / 132
    ys, xs = np.nonzero(wall.lit & ~wall.hole_mask)
    pick = int(rng.integers(len(xs)))
    start = np.array([xs[pick], ys[pick]], float)
    heading = float(rng.uniform(0, 2 * np.pi))
    if word == "hairline":
        path = _walk(rng, start, heading, rng.uniform(34, 62) * unit, 0.16)
        return _polyline(size_hw, path, np.full(len(path), rng.uniform(3.2, 4.4) * unit))
    if word == "branched":
        path = _walk(rng, start, heading, rng.uniform(30, 50) * unit, 0.2)
        cover = _polyline(size_hw, path, np.full(len(path), rng.uniform(3.8, 5.0) * unit))
        for side in (-1, 1):
            fork = path[int(rng.integers(len(path) // 4, max(len(path) // 4 + 1, len(path) * 3 // 4)))]
            branch = _walk(rng, fork, heading + side * rng.uniform(0.6, 1.2), rng.uniform(16, 28) * unit, 0.15)
            cover = np.maximum(cover, _polyline(size_hw, branch, np.linspace(4.0, 2.4, len(branch)) * unit))
        return cover
    if word == "edge":
        inside = [
            hole
            for hole in wall.holes
            if 0 <= hole[0] < size_hw[1] and 0 <= hole[1] < size_hw[0] and wall.lit[int(hole[1]), int(hole[0])]
        ]
        x, y, a, b = inside[int(rng.integers(len(inside)))] if inside else (*start, 1.0, 1.0)
        rim = np.array([x + (a + 0.5) * np.cos(heading), y + (b + 0.5) * np.sin(heading)])
        path = _walk(rng, rim, heading, rng.uniform(20, 36) * unit, 0.15)
        return _polyline(size_hw, path, np.linspace(6.0, 3.0, len(path)) * unit)
    if word == "gouge":
        path = _walk(rng, start, heading, rng.uniform(20, 42) * unit, 0.02)
        return _polyline(size_hw, path, np.full(len(path), rng.uniform(6.0, 9.0) * unit))
    grid_x, grid_y = coordinates(size_hw)
    radius = rng.uniform(9, 18) * unit
    distance = np.hypot((grid_x - start[0]) / rng.uniform(0.8, 1.4), grid_y - start[1])
    border = radius * (1 + 0.9 * (value_noise(rng, size_hw, 10 * unit, 2) - 0.5))
    return np.clip((border - distance) / 1.4 + 0.5, 0, 1).astype(np.float32)


def _paint(word: str, rng: np.random.Generator, wall: _Wall, surface: Field, cover: Field) -> Field:
    """Blend one defect into the surface float32 [H,W,3], before lighting."""
    size_hw = cover.shape[:2]
    level = float(np.median(wall.surface[wall.lit & ~wall.hole_mask]))
    if word == "burn":
        rough = value_noise(rng, (size_hw[0], size_hw[1]), 6, 2)
        colour = (0.30 + 0.35 * rough)[..., None] * level * np.array([1.0, 0.72, 0.50], np.float32)
    else:
        dark = {"hairline": 0.22, "branched": 0.18, "edge": 0.15, "gouge": 0.35}[word] * level
        colour = (
            np.full((*size_hw, 3), dark, np.float32) + (0.04 * grain(rng, (size_hw[0], size_hw[1]), 0.8))[..., None]
        )
        if word == "gouge":
            inner = cv2.erode(cover, np.ones((5, 5), np.uint8))
            lower = np.roll(inner, 2, axis=0) < 0.3
            colour = np.where((lower & (inner < 0.5))[..., None], level * 1.5, colour)
    return surface + cover[..., None] * (np.clip(colour, 0, 1) - surface)


def _draw(seed: int, scene_seed: int, size_hw: tuple[int, int], wanted: bool, keep: bool) -> BorescopeSample:
    rng = np.random.default_rng([33, scene_seed, seed])
    wall = _wall(scene_seed, rng, size_hw)
    noise = rng.standard_normal((*size_hw, 3), dtype=np.float32) * np.float32(rng.uniform(1.0, 3.0))
    plain = wall.surface[..., None] * wall.tint_rgb
    surface, taken = plain, np.zeros(size_hw, bool)
    instances: list[tuple[str, Mask]] = []
    count = int(rng.choice([1, 2, 3], p=[0.55, 0.33, 0.12])) if wanted else 0
    for _ in range(count * 10):
        if len(instances) == count:
            break
        word = CLASSES[int(rng.integers(len(CLASSES)))]
        cover = _coverage(word, rng, wall, size_hw) * (wall.lit & ~wall.hole_mask)
        mask = cover > 0.45
        grown = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        least = 0.5 if word == "burn" else 0.75
        if (
            mask.sum() < 40
            or (grown & taken).any()
            or (mask & wall.lit).sum() < least * mask.sum()
            or cv2.connectedComponents(mask.astype(np.uint8))[0] != 2
        ):
            continue
        painted = _paint(word, rng, wall, surface, cover)
        change = np.abs(painted - plain).max(axis=2) * wall.falloff * 255
        if np.median(change[mask]) < 25:
            continue
        surface, taken = painted, taken | mask
        instances.append((word, mask))
    scene = np.clip((surface if keep else plain) * wall.falloff[..., None], 0, 1) * 255
    scene = cv2.GaussianBlur(scene, (0, 0), 0.45)
    image = np.clip(np.round(scene + noise * np.clip(wall.falloff, 0.2, 1)[..., None]), 0, 255).astype(np.uint8)
    return BorescopeSample(image=image, instances=tuple(instances) if keep else (), group=f"scene{scene_seed:03d}")


def render(seed: int, *, scene_seed: int, size_hw: tuple[int, int] = SIZE_HW, defects: bool) -> BorescopeSample:
    """Render one shot, a pure function of its arguments.

    Args:
        seed: seed of camera, exposure and defects of the shot.
        scene_seed: seed of part, tint and hole layout; shots of one scene form a group.
        size_hw: height and width, pixels.
        defects: whether the shot shows one to three defects.
    """
    return _draw(seed, scene_seed, size_hw, defects, defects)


def render_pair(
    seed: int, *, scene_seed: int, size_hw: tuple[int, int] = SIZE_HW
) -> tuple[BorescopeSample, BorescopeSample]:
    """Render one shot with its defects and again without them, with the same camera and noise."""
    return _draw(seed, scene_seed, size_hw, True, True), _draw(seed, scene_seed, size_hw, True, False)


def render_drawing(seed: int, *, scene_seed: int, size_hw: tuple[int, int] = SIZE_HW) -> NDArray[np.uint8]:
    """Render the part of a shot as a drawing, uint8 [H,W]: holes, seams and steps, no texture, light or defect."""
    wall = _wall(scene_seed, np.random.default_rng([33, scene_seed, seed]), size_hw)
    return np.clip(np.round(wall.drawing * 255), 0, 255).astype(np.uint8)


def write_dataset(
    out: Path, *, seed: int, num_labelled: int = 200, num_defect_free: int = 240, size_hw: tuple[int, int] = SIZE_HW
) -> Path:
    """Write the data set: PNG images, one COCO file with uncompressed RLE, and a drawing of every image.

    The same seed gives the same bytes.

    Args:
        out: folder, replaced as a whole.
        seed: seed of all scenes.
        num_labelled: number of images with defects.
        num_defect_free: number of images without defects.
        size_hw: height and width, pixels.

    Returns:
        The path of `annotations.json`; images carry their `group`.
    """
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    with atomic_folder(out, kind="dataset") as folder:
        (folder / "images").mkdir()
        (folder / "drawings").mkdir()
        total = num_labelled + num_defect_free
        order = np.random.default_rng([34, seed]).permutation(np.arange(total) < num_labelled)
        for index in range(total):
            scene_seed = seed * 1000 + index // SHOTS_PER_SCENE
            sample = render(index, scene_seed=scene_seed, size_hw=size_hw, defects=bool(order[index]))
            name = f"shot_{index:04d}.png"
            save_png(folder / "images" / name, sample.image)
            save_png(folder / "drawings" / name, render_drawing(index, scene_seed=scene_seed, size_hw=size_hw))
            images.append(
                {"id": index + 1, "file_name": name, "height": size_hw[0], "width": size_hw[1], "group": sample.group}
            )
            for word, mask in sample.instances:
                annotations.append(_coco(len(annotations) + 1, index + 1, CLASSES.index(word) + 1, mask))
        categories = [{"id": index + 1, "name": word} for index, word in enumerate(CLASSES)]
        write_json(
            folder / "annotations.json", {"images": images, "annotations": annotations, "categories": categories}
        )
    return out / "annotations.json"


def _coco(annotation_id: int, image_id: int, category_id: int, mask: Mask) -> dict[str, object]:
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    counts = [0, *runs] if flat[0] else runs
    ys, xs = np.nonzero(mask)
    box = [int(xs.min()), int(ys.min()), int(xs.max() - xs.min() + 1), int(ys.max() - ys.min() + 1)]
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": counts},
    }
