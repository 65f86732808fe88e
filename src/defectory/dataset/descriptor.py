"""Image descriptors for duplicate search: a pixel digest and local features, computed in one pass and stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from defectory.artifacts.dataset import Dataset, ImageRecord, image_path
from defectory.errors import InputError
from defectory.files import write_bytes
from defectory.images.load import load_rgb

SIDE_PX = 256
"""Geometric mean of the sides of the resized copy that features are computed on, so that sizes are comparable."""
SURFACE_SCALE = 0.5
"""Scale of the stored surface relative to that copy."""
MIN_SIDE_PX = 16
NUM_FEATURES = 160
SMOOTH_PX, SURROUND_PX = 1.2, 12.0
"""Standard deviations of the two Gaussians that band-pass the surface detail, in pixels of the copy."""
NOISE_LEVELS = 0.5
"""Detail fainter than this, in grey levels, is not amplified to full contrast."""
INT8_PER_UNIT = 32.0
NUM_WORKERS = 2
"""Number of images to decode at once; this bounds the memory."""
VERSION = "1"
DESCRIPTORS = "descriptors.safetensors"
"""File name in the split's folder."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageDescriptor:
    """The descriptor of one image.

    `pixel_digest` is the same for mirrored and quarter-turned images. `surface` int8 [h,w] is the image's detail with
    local contrast normalised, at `SURFACE_SCALE` of the copy. `points_xy` float32 [K,2] (pixels of the surface) and
    `features` uint8 [K,128] are SIFT keypoints, the strongest first.
    """

    pixel_digest: str
    surface: NDArray[np.int8]
    points_xy: NDArray[np.float32]
    features: NDArray[np.uint8]


def describe(image: NDArray[np.uint8]) -> ImageDescriptor:
    """Compute the descriptor of an image, RGB uint8 [H,W,3]."""
    detail = _detail(_small_grey(image))
    levels = np.clip(np.round(128 + 40 * detail), 0, 255).astype(np.uint8)
    vision: Any = cv2  # its stubs lack SIFT
    sift = vision.SIFT_create(nfeatures=NUM_FEATURES, contrastThreshold=0.01, edgeThreshold=20)
    keypoints, features = sift.detectAndCompute(levels, None)
    # the order of equal responses is arbitrary; sort them so that a descriptor depends on the pixels only
    order = sorted(range(len(keypoints)), key=lambda i: (-keypoints[i].response, keypoints[i].pt, keypoints[i].angle))[
        :NUM_FEATURES
    ]
    height, width = (max(8, round(side * SURFACE_SCALE)) for side in detail.shape)
    surface = cv2.resize(detail, (width, height), interpolation=cv2.INTER_AREA)
    factor = np.array([width / detail.shape[1], height / detail.shape[0]], np.float32)
    points = np.array([keypoints[i].pt for i in order], np.float32).reshape(-1, 2)
    return ImageDescriptor(
        pixel_digest=pixel_digest(image),
        surface=np.clip(np.round(surface * INT8_PER_UNIT), -127, 127).astype(np.int8),
        points_xy=points * factor,
        features=np.zeros((0, 128), np.uint8) if not order else features[order].astype(np.uint8),
    )


def pixel_digest(image: NDArray[np.uint8]) -> str:
    """Return a digest of pixels uint8 [H,W,3] that is the same for mirrored and quarter-turned copies."""
    rows, columns = ((side + 1) // 2 for side in image.shape[:2])
    quarters = ((image[:rows, :columns], image[:rows, -columns:]), (image[-rows:, :columns], image[-rows:, -columns:]))
    sums = np.array([[quarter.sum(dtype=np.int64) for quarter in row] for row in quarters])
    # digest the view whose quarters come last in order; only symmetric and uniform images have several such views
    ranked = [
        ((view.shape[0], *of.ravel().tolist()), view)
        for view, of in zip(_eight_views(image), _eight_views(sums), strict=True)
    ]
    last = max(rank for rank, _ in ranked)
    return min(_digest(view) for rank, view in ranked if rank == last)


def _eight_views(image: NDArray[Any]) -> list[NDArray[Any]]:
    turned: list[NDArray[Any]] = [np.rot90(image, quarter) for quarter in range(4)]
    return [*turned, *(view[:, ::-1] for view in turned)]


def _digest(view: NDArray[np.uint8]) -> str:
    found = hashlib.sha256(repr(view.shape).encode())
    found.update(np.ascontiguousarray(view).data)
    return found.hexdigest()


def _small_grey(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32)
    factor = SIDE_PX / float(np.sqrt(grey.shape[0] * grey.shape[1]))
    height, width = (max(MIN_SIDE_PX, round(side * factor)) for side in grey.shape)
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC).astype(
        np.float32
    )


def _detail(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the band-passed detail with local contrast normalised; this removes exposure and shading."""
    smooth = cv2.GaussianBlur(grey, (0, 0), SMOOTH_PX)
    detail = smooth - cv2.GaussianBlur(smooth, (0, 0), SURROUND_PX)
    power = cv2.GaussianBlur(detail * detail, (0, 0), SURROUND_PX)
    return (detail / np.sqrt(power + NOISE_LEVELS**2)).astype(np.float32)


def describe_images(folder: Path, dataset: Dataset) -> Iterator[tuple[int, ImageDescriptor]]:
    """Compute the descriptors of a data set's images, as (image id, descriptor) in the set's order.

    Only a few images are in memory at once.

    Args:
        folder: data set folder.
        dataset: its value.

    Raises:
        ImageError: an image cannot be read.
    """

    def one(record: ImageRecord) -> ImageDescriptor:
        return describe(load_rgb(image_path(folder, record), dataset.value_range))

    with ThreadPoolExecutor(NUM_WORKERS) as workers:
        for start in range(0, len(dataset.images), 4 * NUM_WORKERS):
            records = dataset.images[start : start + 4 * NUM_WORKERS]
            yield from zip((record.id for record in records), workers.map(one, records), strict=True)


def save_descriptors(path: Path, descriptors: Mapping[int, ImageDescriptor], *, dataset_digest: str) -> None:
    """Write the descriptors of a data set, by image id, to a safetensors file atomically."""
    ids = sorted(descriptors)
    values = [descriptors[image_id] for image_id in ids]

    def joined(arrays: Sequence[NDArray[Any]], like: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate(arrays) if arrays else like

    arrays = {
        "ids": np.array(ids, np.int64),
        "surface_hw": np.array([value.surface.shape for value in values], np.int64).reshape(-1, 2),
        "num_features": np.array([len(value.features) for value in values], np.int64),
        "surfaces": joined([value.surface.reshape(-1) for value in values], np.zeros(0, np.int8)),
        "points_xy": joined([value.points_xy for value in values], np.zeros((0, 2), np.float32)),
        "features": joined([value.features for value in values], np.zeros((0, 128), np.uint8)),
    }
    about = {
        "version": VERSION,
        "dataset_digest": dataset_digest,
        "pixel_digests": [value.pixel_digest for value in values],
    }
    # one metadata entry only: safetensors writes several in arbitrary order, and equal inputs would give different
    # bytes
    write_bytes(path, save(arrays, metadata={"about": json.dumps(about)}))


def load_descriptors(
    path: Path, *, dataset_digest: str, only: frozenset[int] | None = None
) -> dict[int, ImageDescriptor]:
    """Load descriptors by image id.

    Args:
        path: file that `save_descriptors` wrote.
        dataset_digest: digest of the data set they must belong to.
        only: image ids to keep; None keeps all.

    Raises:
        InputError: the file is missing, damaged, or belongs to another data set.
    """
    todo = "run the stage `split` again"
    if not path.is_file():
        raise InputError(path, "no image descriptors here", todo)
    try:
        with safe_open(path, framework="numpy") as stored:
            about: dict[str, Any] = json.loads((stored.metadata() or {})["about"])
            arrays: dict[str, NDArray[Any]] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        digests: list[str] = about["pixel_digests"]
        found = _split_up(arrays, digests, only)
    except (SafetensorError, OSError, KeyError, ValueError, IndexError) as error:
        raise InputError(path, f"cannot be read ({str(error).splitlines()[0]})", todo) from None
    if about.get("version") != VERSION or about.get("dataset_digest") != dataset_digest:
        raise InputError(path, "image descriptors of another data set or version", todo)
    return found


def _split_up(
    arrays: Mapping[str, NDArray[Any]], digests: Sequence[str], only: frozenset[int] | None
) -> dict[int, ImageDescriptor]:
    sizes, counts = arrays["surface_hw"], arrays["num_features"]
    pixel_ends, feature_ends = sizes.prod(axis=1).cumsum(), counts.cumsum()
    found: dict[int, ImageDescriptor] = {}
    for place, image_id in enumerate(arrays["ids"].tolist()):
        if only is not None and image_id not in only:
            continue
        height, width = (int(side) for side in sizes[place])
        pixels = slice(int(pixel_ends[place]) - height * width, int(pixel_ends[place]))
        rows = slice(int(feature_ends[place] - counts[place]), int(feature_ends[place]))
        found[image_id] = ImageDescriptor(
            pixel_digest=digests[place],
            surface=arrays["surfaces"][pixels].reshape(height, width),
            points_xy=arrays["points_xy"][rows],
            features=arrays["features"][rows],
        )
    return found
