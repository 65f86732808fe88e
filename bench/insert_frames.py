"""Does insertion leave frames as they are? Random frames of odd sizes and all depths, and one large frame for its
memory.

Run: `python bench/insert_frames.py PROJECT.toml --work FOLDER [--frames 100] [--large]`, for a project whose phases and
    calibration are done.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory import Project, finish, insert
from defectory.formats.coco import load_coco
from defectory.geometry import distance_to
from defectory.images.frames import load_native
from defectory.images.save import save_png
from defectory.rle import decode

KINDS = ("grey", "rgb", "rgba", "grey16")


def random_frame(
    project: Project, kind: str, size_hw: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Give a pool tile in another size and depth, with noise in the levels that eight bits cannot hold."""
    pool = project.tiles.of("pool")
    tile = project.store.tiles.image(pool[int(rng.integers(len(pool)))])
    rgb = cv2.resize(tile, size_hw[::-1], interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    grey = rgb.mean(axis=2).round().astype(np.uint8)
    if kind == "grey":
        return grey
    if kind == "grey16":
        return (grey.astype(np.uint16) * 257 + rng.integers(-100, 100, size_hw)).clip(0, 65535).astype(np.uint16)
    return rgb if kind == "rgb" else np.dstack([rgb, rng.integers(0, 256, size_hw).astype(np.uint8)])


def changed_beyond(project: Project, pixels: NDArray[np.generic], out: Path) -> tuple[int, int]:
    """Give how many pixels changed beyond the margin, and how many within it."""
    (image,) = load_coco(out / "annotations.json", image_root=out / "images").images
    after = load_native(image.path)
    assert (after.shape, after.dtype) == (pixels.shape, pixels.dtype), "size or depth changed"
    changed = (after != pixels).reshape(*pixels.shape[:2], -1).any(axis=2)
    tiling = project.tiles.tiling
    scale = min(tiling.scale, tiling.tile_px / max(pixels.shape[:2])) if tiling.mode == "frame" else tiling.scale
    # a label of half a pixel's uncertainty on either side, where tile and frame have not one scale
    beyond = distance_to(decode(image.instances[0].rle)) > project.config.synthesis.insert_margin_px / scale + (
        0 if scale == 1 else 1 / scale + 1
    )
    return int((changed & beyond).sum()), int((changed & ~beyond).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--large", action="store_true", help="One frame of 3000x4000 instead.")
    args = parser.parse_args()
    # two steps of the sampler: what is asked is what does not change
    overrides = [] if args.large else ["synthesis.num_inference_steps=2"]
    project = Project.open(args.project, overrides=overrides)
    counts: Counter[str] = Counter()
    touched, within, began = 0, 0, time.monotonic()
    for number in range(1 if args.large else args.frames):
        rng = np.random.default_rng([5, number])
        kind = "rgb" if args.large else KINDS[number % len(KINDS)]
        size_hw = (3000, 4000) if args.large else (int(rng.integers(97, 613)), int(rng.integers(97, 613)))
        pixels = random_frame(project, kind, size_hw, rng)
        path, out = args.work / f"frame-{number:03d}.png", args.work / f"out-{number:03d}"
        save_png(path, pixels)
        finish(insert(project, path, out=out, seed=number))
        beyond, inside = changed_beyond(project, pixels, out)
        touched, within = touched + (beyond > 0), within + (inside > 0)
        counts[kind] += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{sum(counts.values())} frames ({', '.join(f'{n} {kind}' for kind, n in counts.items())}): {touched} "
        "changed beyond the margin, "
        f"{within} within it; {time.monotonic() - began:.0f} s, at most {peak:.2f} GB"
    )


if __name__ == "__main__":
    main()
