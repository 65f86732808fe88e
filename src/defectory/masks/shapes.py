"""Shape figures of a mask: a long defect is described by its skeleton, a compact one by its outline."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from defectory.masks.perturb import SUPERSAMPLE, finer, mean_width_px
from defectory.rle import box_xyxy

Mask = NDArray[np.bool_]
Path = NDArray[np.float64]
LONG = 4.0
"""A mask whose skeleton is at least this many times as long as the mask is wide is a line, any other a blob."""
NUM_HARMONICS = 12
"""Number of harmonics, from the second on, that describe the roughness of a blob's outline."""
NUM_ANGLES = 96
MIN_BRANCH_PX = 4.0
MIN_WAVE_PX = 5.0
"""Shortest wavelength of an outline that the pixel grid can represent."""
SMOOTH_PX = 2.0


@dataclass(frozen=True, kw_only=True)
class LineShape:
    """A crack or scratch; all lengths are in pixels.

    Attributes:
        length_px: length of the skeleton's longest path.
        width_px: mean width.
        width_variation: standard deviation of the width along the path, as a share of its mean.
        wander: standard deviation of the direction along the path, radians.
        persistence_px: correlation length of the direction.
        branches: length of each branch as a share of the path's.
        angle: angle between the path's chord and the x axis, radians in 0..pi.
        area_px: area of the mask.
    """

    length_px: float
    width_px: float
    width_variation: float
    wander: float
    persistence_px: float
    branches: tuple[float, ...]
    angle: float
    area_px: int


@dataclass(frozen=True, kw_only=True)
class BlobShape:
    """A compact defect.

    Attributes:
        diameter_px: diameter of a circle with the same area.
        elongation: ratio of the axes of the ellipse of second moments, at least 1.
        harmonics: amplitudes of the outline's waves, as shares of the radius, from the second harmonic on.
        angle: angle between the longer axis and the x axis, radians in 0..pi.
        area_px: area of the mask.
    """

    diameter_px: float
    elongation: float
    harmonics: tuple[float, ...]
    angle: float
    area_px: int

    @property
    def roughness(self) -> float:
        """Return the root mean square of the outline's waves, as a share of the radius."""
        return float(np.sqrt(np.sum(np.square(self.harmonics)) / 2))


Shape = LineShape | BlobShape


def measure(mask: Mask) -> Shape:
    """Measure the shape figures of a mask bool [H,W], not empty."""
    x0, y0, x1, y1 = box_xyxy(mask)
    crop = np.pad(mask[y0:y1, x0:x1], 2)
    width = max(1.0, mean_width_px(finer(crop)) / SUPERSAMPLE)
    path, branches = skeleton_path(crop)
    length = float(np.hypot(*np.diff(path, axis=0).T).sum()) if len(path) > 1 else 0.0
    if length < LONG * width:
        return _blob(crop)
    return _line(crop, path, length, width, branches)


def _line(mask: Mask, path: Path, length: float, width: float, branches: list[float]) -> LineShape:
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    along = distance[path[:, 0].astype(int), path[:, 1].astype(int)]
    smooth = smoothed(path)
    steps = np.diff(smooth, axis=0)
    heading = np.unwrap(np.arctan2(steps[:, 0], steps[:, 1]))
    chord = smooth[-1] - smooth[0]
    about = heading - heading.mean()
    wander = float(about.std())
    return LineShape(
        length_px=length,
        width_px=width,
        width_variation=float(along.std() / max(along.mean(), 1e-6)),
        wander=wander,
        persistence_px=_persistence(about),
        branches=tuple(round(b / length, 4) for b in branches if b >= max(MIN_BRANCH_PX, 1.5 * width)),
        angle=float(np.arctan2(chord[0], chord[1]) % np.pi),
        area_px=int(mask.sum()),
    )


def _persistence(about: NDArray[np.float64]) -> float:
    """Return the lag at which the autocorrelation of a direction falls below 1/e, in steps of one pixel."""
    total = float((about**2).mean())
    if total < 1e-9:
        return float(len(about))
    for lag in range(1, len(about)):
        if float((about[:-lag] * about[lag:]).mean()) < total / np.e:
            return float(lag)
    return float(len(about))


def _blob(mask: Mask) -> BlobShape:
    ys, xs = np.nonzero(mask)
    centre = np.array([ys.mean(), xs.mean()])
    # a pixel is a square with a second moment of 1/12
    moments = np.cov(np.stack([xs, ys]), bias=True) + np.eye(2) / 12
    values, vectors = np.linalg.eigh(moments)
    elongation = float(np.sqrt(values[1] / values[0]))
    angle = float(np.arctan2(vectors[1, 1], vectors[0, 1]) % np.pi)
    radius = np.sqrt(len(ys) / np.pi)
    # the outline of the shape with its ellipse removed
    turned = np.stack([xs - centre[1], ys - centre[0]]).T @ vectors / np.sqrt(values * 4) * radius
    bins = (np.arctan2(turned[:, 0], turned[:, 1]) / (2 * np.pi) * NUM_ANGLES).astype(int) % NUM_ANGLES
    reach = np.full(NUM_ANGLES, np.nan)
    np.fmax.at(reach, bins, np.hypot(*turned.T) + 0.5)
    known = ~np.isnan(reach)
    reach = np.interp(np.arange(NUM_ANGLES), np.flatnonzero(known), reach[known], period=NUM_ANGLES)
    spectrum = np.abs(np.fft.rfft(reach)) * 2 / NUM_ANGLES / max(reach.mean(), 1e-6)
    # shorter waves are stair steps of the grid
    spectrum[int(2 * np.pi * radius / MIN_WAVE_PX) + 1 :] = 0
    return BlobShape(
        diameter_px=float(2 * radius),
        elongation=elongation,
        harmonics=tuple(round(float(a), 4) for a in spectrum[2 : 2 + NUM_HARMONICS]),
        angle=angle,
        area_px=len(ys),
    )


def skeleton_path(mask: Mask) -> tuple[Path, list[float]]:
    """Return the longest path of a mask's skeleton, float64 [N,2] of (y, x), and the branch lengths in pixels."""
    from skimage.morphology import skeletonize

    skeleton = np.asarray(skeletonize(mask), bool)
    points = np.argwhere(skeleton)
    if len(points) < 2:
        return points.astype(np.float64), []
    graph = _neighbours(points)
    # in a tree, the farthest point from any point is an end of the longest path
    first = _farthest(graph, 0)[0]
    last, before = _farthest(graph, first)
    path = [last]
    while path[-1] != first:
        path.append(int(before[path[-1]]))
    on_path = np.zeros(len(points), bool)
    on_path[path] = True
    rest = np.zeros_like(skeleton)
    rest[tuple(points[~on_path].T)] = True
    count, labels = cv2.connectedComponents(rest.astype(np.uint8), connectivity=8)
    lengths = [float((labels == label).sum()) for label in range(1, count)]
    return points[path].astype(np.float64), lengths


def _neighbours(points: NDArray[np.int64]) -> coo_array:
    index = {(int(y), int(x)): number for number, (y, x) in enumerate(points)}
    rows: list[int] = []
    columns: list[int] = []
    lengths: list[float] = []
    for (y, x), number in index.items():
        for dy, dx, length in ((0, 1, 1.0), (1, 0, 1.0), (1, 1, np.sqrt(2)), (1, -1, np.sqrt(2))):
            other = index.get((y + dy, x + dx))
            if other is not None:
                rows += [number, other]
                columns += [other, number]
                lengths += [length, length]
    return coo_array((lengths, (rows, columns)), shape=(len(points), len(points)))


def _farthest(graph: coo_array, start: int) -> tuple[int, NDArray[np.int32]]:
    distances, before = dijkstra(graph.tocsr(), indices=start, return_predecessors=True)
    distances = np.where(np.isfinite(distances), distances, -1.0)
    return int(distances.argmax()), before


def smoothed(path: Path) -> Path:
    """Resample a path of pixels at steps of one pixel's length and smooth away the stair steps of the grid."""
    lengths = np.concatenate([[0.0], np.hypot(*np.diff(path, axis=0).T).cumsum()])
    at = np.linspace(0, lengths[-1], max(3, round(lengths[-1]) + 1))
    even = np.stack([np.interp(at, lengths, path[:, axis]) for axis in (0, 1)], axis=1)
    reach = min(len(even) // 2, int(3 * SMOOTH_PX))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTH_PX) ** 2)
    # extended in a straight line, so that the ends stay in place
    head = even[0] + (even[0] - even[min(len(even) - 1, 4)]) / min(len(even) - 1, 4) * np.arange(reach, 0, -1)[:, None]
    tail = (
        even[-1]
        + (even[-1] - even[-1 - min(len(even) - 1, 4)]) / min(len(even) - 1, 4) * np.arange(1, reach + 1)[:, None]
    )
    padded = np.concatenate([head, even, tail])
    return np.stack([np.convolve(padded[:, axis], kernel / kernel.sum(), mode="valid") for axis in (0, 1)], axis=1)
