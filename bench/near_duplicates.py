"""How many altered copies of an image the split recognises, and how many pairs of different photographs it takes for
copies.

Each data set folder has `images/`, and may have `index.csv` with columns `image` and `group`: images of one group show
one part. For recall, copies of a sample are laid on their originals, one transform at a time; then one copy of each is
sought in the whole set. For false alarms, all pairs of a set are searched as the split does; pairs within a group are
counted apart. Run: `python bench/near_duplicates.py FOLDER [FOLDER ...] [--sample 100] [--threshold .8]`.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from defectory.dataset.descriptor import ImageDescriptor, describe
from defectory.dataset.duplicates import find_duplicates, similarity
from defectory.images.header import IMAGE_SUFFIXES
from defectory.images.load import load_rgb

Image = NDArray[np.uint8]
Alter = Callable[[Image, np.random.Generator], Image]


def levels(values: NDArray[np.floating]) -> Image:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def jpeg(image: Image, quality: int) -> Image:
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(PillowImage.open(buffer).convert("RGB"))


def turned(image: Image, degrees: float, *, border: int = cv2.BORDER_CONSTANT) -> Image:
    height, width = image.shape[:2]
    affine = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return cv2.warpAffine(image, affine, (width, height), borderMode=border).astype(np.uint8)


def cropped(image: Image, share: float) -> Image:
    top, left = round(image.shape[0] * share), round(image.shape[1] * share)
    return image[top : image.shape[0] - top, left : image.shape[1] - left].copy()


def shifted(image: Image, pixels: int) -> Image:
    affine = np.array([[1, 0, pixels], [0, 1, -pixels]], np.float32)
    return cv2.warpAffine(image, affine, (image.shape[1], image.shape[0])).astype(np.uint8)


def resized(image: Image, factor: float) -> Image:
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC).astype(np.uint8)


def contrast(image: Image, factor: float) -> Image:
    values = image.astype(np.float64)
    return levels((values - values.mean()) * factor + values.mean())


TRANSFORMS: dict[str, Alter] = {
    "mirrored left to right": lambda image, _: image[:, ::-1].copy(),
    "mirrored top to bottom": lambda image, _: image[::-1].copy(),
    "turned by 90 degrees": lambda image, _: np.rot90(image).copy(),
    "turned by 180 degrees": lambda image, _: np.rot90(image, 2).copy(),
    "rotated by 2 degrees, black corners": lambda image, _: turned(image, 2),
    "rotated by -2 degrees, reflected corners": lambda image, _: turned(image, -2, border=cv2.BORDER_REFLECT),
    "rotated by 5 degrees, black corners": lambda image, _: turned(image, 5),
    "cropped by 2% per side": lambda image, _: cropped(image, 0.02),
    "cropped by 5% per side": lambda image, _: cropped(image, 0.05),
    "cropped by 10% per side": lambda image, _: cropped(image, 0.10),
    "shifted by 4 px, black border": lambda image, _: shifted(image, 4),
    "JPEG, quality 95": lambda image, _: jpeg(image, 95),
    "JPEG, quality 75": lambda image, _: jpeg(image, 75),
    "JPEG, quality 60": lambda image, _: jpeg(image, 60),
    "10% brighter": lambda image, _: levels(image * 1.1),
    "10% darker": lambda image, _: levels(image * 0.9),
    "10% less contrast": lambda image, _: contrast(image, 0.9),
    "10% more contrast": lambda image, _: contrast(image, 1.1),
    "resized by 0.5": lambda image, _: resized(image, 0.5),
    "resized by 2": lambda image, _: resized(image, 2),
    "noise, standard deviation 3": lambda image, rng: levels(image + rng.normal(0, 3, image.shape)),
    "noise, standard deviation 6": lambda image, rng: levels(image + rng.normal(0, 6, image.shape)),
    "a tenth of the contrast, mirrored": lambda image, _: contrast(image, 0.1)[:, ::-1].copy(),
    "mirrored, cropped by 5%, JPEG 75": lambda image, _: jpeg(cropped(image, 0.05)[:, ::-1].copy(), 75),
    "rotated by 2 degrees, 10% brighter, JPEG 75": lambda image, _: jpeg(levels(turned(image, 2) * 1.1), 75),
}


def groups_of(folder: Path) -> dict[str, str]:
    index = folder / "index.csv"
    if not index.is_file():
        return {}
    with open(index, newline="", encoding="utf-8") as stream:
        return {Path(row["image"]).name: row["group"] for row in csv.DictReader(stream)}


def spread(files: list[Path], count: int) -> Iterator[tuple[int, Path]]:
    for place in np.unique(np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)).tolist():
        yield place, files[place]


def measure(folder: Path, *, sample: int, threshold: float) -> None:
    files = sorted(path for path in (folder / "images").iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    groups = groups_of(folder)
    group_of = [groups.get(path.name, path.name) for path in files]
    began = time.perf_counter()
    descriptors: dict[int, ImageDescriptor] = {place: describe(load_rgb(path)) for place, path in enumerate(files)}
    described = time.perf_counter() - began
    began = time.perf_counter()
    found = find_duplicates(descriptors, threshold=threshold)
    searched = time.perf_counter() - began
    print(f"\n## {folder.name}: {len(files)} images, {len(set(group_of))} groups\n")
    print(
        f"{described:.0f} s for descriptors, {searched:.0f} s for the search; similarity of typical pairs "
        f"{found.typical_similarity:.2f},"
    )
    print(f"counted from {found.threshold:.2f}\n")
    sizes = {group: group_of.count(group) for group in set(group_of)}
    within = sum(size * (size - 1) // 2 for size in sizes.values())
    across = len(files) * (len(files) - 1) // 2 - within
    inside = [pair for pair in found.pairs if group_of[pair.first] == group_of[pair.second]]
    outside = [pair for pair in found.pairs if group_of[pair.first] != group_of[pair.second]]
    print("| pairs | number | found alike | per thousand |\n|---|---|---|---|")
    if within:
        print(f"| within a group | {within} | {len(inside)} | {1000 * len(inside) / within:.2f} |")
    print(f"| of different groups | {across} | {len(outside)} | {1000 * len(outside) / across:.4f} |")
    for pair in sorted(outside, key=lambda pair: -pair.similarity)[:12]:
        print(f"<!-- {files[pair.first].name} {files[pair.second].name} {pair.similarity:.3f} -->")
    chosen = dict(spread(files, sample))
    print("\n| copy | recognised |\n|---|---|")
    copies: dict[int, ImageDescriptor] = {}
    for number, (name, alter) in enumerate(TRANSFORMS.items()):
        seen: list[bool] = []
        for place, path in chosen.items():
            copy = describe(alter(load_rgb(path), np.random.default_rng([95, place])))
            seen.append(similarity(descriptors[place], copy) >= found.threshold)
            if len(seen) % len(TRANSFORMS) == number:
                copies[place] = copy
        print(f"| {name} | {np.mean(seen):.1%} |", flush=True)
    whole = find_duplicates(
        descriptors | {len(files) + place: copy for place, copy in copies.items()}, threshold=threshold
    )
    pairs = {(pair.first, pair.second) for pair in whole.pairs}
    linked = sum((place, len(files) + place) in pairs for place in copies)
    known = sum(similarity(descriptors[place], copy) >= whole.threshold for place, copy in copies.items())
    print(
        f"\nOne copy of each of {len(copies)} images, transforms in turn, added to the set: {known} recognised when "
        "laid on their"
    )
    print(f"original, {linked} found by the search of the split.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--sample", type=int, default=100, help="images of each set whose copies are looked for")
    parser.add_argument("--threshold", type=float, default=0.8)
    arguments = parser.parse_args()
    for folder in arguments.folders:
        measure(folder, sample=arguments.sample, threshold=arguments.threshold)


if __name__ == "__main__":
    main()
