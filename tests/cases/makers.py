"""Small annotated sets whose true masks are known by image content, to be laid out as any tool lays them out."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as pycoco

SIZE_HW = (72, 104)
CLASSES = ("scratch", "dent")
Ring = list[float]
Mask = NDArray[np.bool_]


@dataclass
class Shot:
    """One image with its instances: (class name, ring); none for a defect-free one."""

    name: str
    pixels: NDArray[np.uint8]
    instances: list[tuple[str, Ring]] = field(default_factory=list)

    def mask(self, class_name: str) -> Mask:
        """The union of a class's instances."""
        result = np.zeros(self.pixels.shape[:2], bool)
        for name, ring in self.instances:
            if name == class_name:
                result |= raster([ring], self.pixels.shape[:2])
        return result


@dataclass
class Made:
    """A folder on disk, and the truth of its images by the SHA-256 of their files: class name -> mask."""

    root: Path
    truth: dict[str, dict[str, Mask]] = field(default_factory=dict)

    def write_image(self, path: str, data: bytes, masks: dict[str, Mask] | None = None) -> Path:
        """Write an image file and keep what is true of it."""
        self.truth[hashlib.sha256(data).hexdigest()] = {k: m for k, m in (masks or {}).items() if m.any()}
        return self.write(path, data)

    def write(self, path: str, data: bytes | str) -> Path:
        """Write any file."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if isinstance(data, bytes) else data.encode())
        return target

    def write_json(self, path: str, value: object, *, encoding: str = "utf-8") -> Path:
        """Write a JSON file in an encoding."""
        return self.write(path, json.dumps(value, ensure_ascii=False).encode(encoding))


def raster(rings: list[Ring], size_hw: tuple[int, int]) -> Mask:
    """Fill rings as pycocotools does."""
    return np.asarray(pycoco.decode(pycoco.merge(pycoco.frPyObjects(rings, *size_hw))), bool)


def shots(
    count: int = 11, labelled: int = 8, *, size_hw: tuple[int, int] = SIZE_HW, classes: tuple[str, ...] = CLASSES
) -> list[Shot]:
    """Images of a rough surface, the first `labelled` with one dark slanted defect each, classes in turn."""
    height, width = size_hw
    result: list[Shot] = []
    for number in range(count):
        rng = np.random.default_rng([5, number])
        coarse = cv2.resize(
            rng.normal(0, 22, (height // 8, width // 8)).astype(np.float32),
            (width, height),
            interpolation=cv2.INTER_CUBIC,
        )
        grey = 130 + coarse + rng.normal(0, 5, size_hw)
        shot = Shot(name=f"im{number:02d}", pixels=np.zeros((*size_hw, 3), np.uint8))
        if number < labelled:
            x, y = 12.0 + 37 * number % (width - 58), 22.0 + 17 * number % (height - 40)
            ring = [x, y, x + 36, y - 7, x + 41, y + 8, x + 3, y + 12]
            shot.instances.append((classes[number % len(classes)], ring))
            grey[raster([ring], size_hw)] -= 55
        shot.pixels[:] = np.clip(grey, 0, 255).astype(np.uint8)[..., None]
        result.append(shot)
    return result


def encoded(pixels: NDArray[Any], kind: str = "PNG", **options: object) -> bytes:
    """Encode an image in memory."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_images(made: Made, content: list[Shot], *, folder: str = "", suffix: str = ".png", kind: str = "PNG") -> None:
    """Write every shot's image into a folder."""
    for shot in content:
        masks = {name: shot.mask(name) for name, _ in shot.instances}
        made.write_image(f"{folder}{shot.name}{suffix}", encoded(shot.pixels, kind), masks)


def coco_of(
    content: list[Shot], *, file_name: Callable[[Shot], str] = lambda shot: f"{shot.name}.png"
) -> dict[str, Any]:
    """COCO instances of the shots, polygons."""
    names = list(dict.fromkeys(name for shot in content for name, _ in shot.instances)) or list(CLASSES)
    annotations: list[dict[str, Any]] = []
    for image_id, shot in enumerate(content, start=1):
        for name, ring in shot.instances:
            xs, ys = ring[0::2], ring[1::2]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": names.index(name) + 1,
                    "segmentation": [ring],
                    "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)],
                    "area": 500.0,
                    "iscrowd": 0,
                }
            )
    images = [
        {"id": number, "file_name": file_name(shot), "height": shot.pixels.shape[0], "width": shot.pixels.shape[1]}
        for number, shot in enumerate(content, start=1)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in enumerate(names, start=1)],
    }


def mask_png(mask: Mask, value: int = 255, kind: str = "PNG") -> bytes:
    """A mask image, 0 and `value`."""
    return encoded(mask.astype(np.uint8) * value, kind)


def index_map(shot: Shot, classes: tuple[str, ...] = CLASSES) -> NDArray[np.uint8]:
    """Class-index mask: 0 background, place of the class in the list from 1."""
    result = np.zeros(shot.pixels.shape[:2], np.uint8)
    for number, name in enumerate(classes, start=1):
        result[shot.mask(name)] = number
    return result


def yolo_lines(shot: Shot, classes: tuple[str, ...] = CLASSES) -> str:
    """YOLO segmentation label lines."""
    height, width = shot.pixels.shape[:2]
    lines: list[str] = []
    for name, ring in shot.instances:
        numbers = [value / (width if place % 2 == 0 else height) for place, value in enumerate(ring)]
        lines.append(" ".join([str(classes.index(name)), *(f"{number:.6f}" for number in numbers)]))
    return "\n".join(lines) + ("\n" if lines else "")


def rle_counts(mask: Mask) -> list[int]:
    """Uncompressed COCO counts, column-major, background first."""
    flat = mask.T.reshape(-1).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return [0, *runs] if flat[0] else runs


def rle_text(mask: Mask) -> str:
    """Compressed COCO counts."""
    return pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
