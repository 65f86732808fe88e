"""Near-duplicate search: find candidate pairs by local features, then align one image to the other and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.dataset.descriptor import INT8_PER_UNIT, ImageDescriptor

MIN_INLIERS = 8
"""Minimum number of keypoints that agree on one rotation, scale and shift; chance gives 6 at most."""
MIN_OVERLAP = 0.5
"""Minimum share of the first image that the aligned second one must cover."""
SCALES = (0.6, 1.7)
"""Allowed scales between two copies of equal size: a crop of 10% per side is enlarged by 1.25."""
NUM_CANDIDATES = 10
"""Maximum number of images to align with one image."""
VOTING_FEATURES = 80
"""Number of an image's features, the strongest ones, that take part in the search."""
VOTES_PER_FEATURE = 3
MIN_VOTES = 3
CELL_FEATURES = 1024
"""Mean number of features in a cell of the search; a feature is searched in the `PROBES` nearest cells."""
PROBES = 3
BLOCKS = 6
"""Surfaces are compared in `BLOCKS` x `BLOCKS` blocks, so that a fixture visible in both counts only for its area."""
FLAT_UNITS = 0.25
"""A block with weaker detail in both images is ignored."""
RANDOM_PAIRS = 150
ALIKE_QUANTILE = 0.9
MIRRORED_FEATURE = np.array(
    [((3 - row) * 4 + column) * 8 + (8 - o) % 8 for row in range(4) for column in range(4) for o in range(8)]
)
"""Order of a SIFT feature's 128 values in a mirrored image."""

Affine = NDArray[np.float64]
Surface = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
    """Two image ids and their similarity: 1 for equal pixels, else the correlation of their detail."""

    first: int
    second: int
    similarity: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """The alignment of one image with another.

    `similarity` is the median over blocks of the correlation of their detail, 0..1. `affine` float64 [2,3] maps pixels
    of the second surface to pixels of the first; if `mirrored`, the second surface is first mirrored left to right.
    """

    similarity: float
    affine: Affine
    mirrored: bool


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Pairs of near-duplicates, and the similarity threshold used for this set."""

    pairs: tuple[DuplicatePair, ...]
    threshold: float
    typical_similarity: float
    """Similarity of images that are not copies: a high quantile over random pairs."""


def find_duplicates(descriptors: Mapping[int, ImageDescriptor], *, threshold: float, seed: int = 0) -> Duplicates:
    """Find the near-duplicates in a set of images.

    If all images of a set are similar, such as photographs of one printed board in one fixture, a copy must be more
    similar than that. The threshold then rises so that its distance from 1 is a quarter of that of typical pairs.

    Args:
        descriptors: descriptor of each image id.
        threshold: similarity from which two images count as copies, 0..1.
        seed: seed for the random pairs that measure the typical similarity.
    """
    ids = sorted(descriptors)
    values = [descriptors[image_id] for image_id in ids]
    groups: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        groups.setdefault(value.pixel_digest, []).append(place)
    found = {(places[0], other): 1.0 for places in groups.values() for other in places[1:]}
    # of several equal images, only one takes part in the search
    kept = sorted(places[0] for places in groups.values()) if threshold < 1 else []
    typical = _typical_similarity([values[place] for place in kept], seed)
    raised = max(threshold, 1 - (1 - typical) / 4) if typical > 0.5 else threshold
    candidates = [(kept[a], kept[b]) for a, b in _candidates([values[place] for place in kept])]
    similarities = [similarity(values[a], values[b]) for a, b in candidates]
    found.update({pair: value for pair, value in zip(candidates, similarities, strict=True) if value >= raised})
    pairs = tuple(
        DuplicatePair(first=ids[a], second=ids[b], similarity=round(alike, 4))
        for (a, b), alike in sorted(found.items())
    )
    return Duplicates(pairs=pairs, threshold=raised, typical_similarity=typical)


def copies_of(
    image: ImageDescriptor, descriptors: Mapping[int, ImageDescriptor], *, threshold: float
) -> list[tuple[int, float]]:
    """Return the near-duplicates of an image as (id, similarity), the most similar first."""
    equal = [
        (image_id, 1.0) for image_id, value in sorted(descriptors.items()) if value.pixel_digest == image.pixel_digest
    ]
    if equal:
        return equal
    alike = ((image_id, similarity(value, image)) for image_id, value in sorted(descriptors.items()))
    return sorted((pair for pair in alike if pair[1] >= threshold), key=lambda pair: -pair[1])


def similarity(first: ImageDescriptor, second: ImageDescriptor) -> float:
    """Return the similarity of two images after alignment; 1.0 for equal pixels.

    Alignment allows mirroring, rotation, scale and shift.

    Returns:
        As `Alignment.similarity`; 0.0 if no alignment is found.
    """
    if first.pixel_digest == second.pixel_digest:
        return 1.0
    found = align(first, second)
    return 0.0 if found is None else found.similarity


def align(first: ImageDescriptor, second: ImageDescriptor) -> Alignment | None:
    """Align the second image with the first; return None if too few keypoints agree."""
    best: tuple[int, Affine, bool] | None = None
    for mirrored in (False, True):
        laid = _lay(first, second, mirrored)
        if laid is not None and (best is None or laid[0] > best[0]):
            best = (*laid, mirrored)
    if best is None or best[0] < MIN_INLIERS:
        return None
    _, placed, mirrored = best
    below, above = (value.surface.astype(np.float32) / INT8_PER_UNIT for value in (first, second))
    above = np.ascontiguousarray(above[:, ::-1]) if mirrored else above
    alike, affine = max(
        ((_correlation(below, above, affine), affine) for affine in (placed, _refined(below, above, placed))),
        key=lambda of: of[0],
    )
    return Alignment(similarity=alike, affine=affine, mirrored=mirrored)


def _lay(first: ImageDescriptor, second: ImageDescriptor, mirrored: bool) -> tuple[int, Affine] | None:
    """Return the number of agreeing keypoints and the affine map from the second image to the first."""
    points, features = second.points_xy, second.features
    if mirrored:
        points = np.stack([second.surface.shape[1] - 1 - points[:, 0], points[:, 1]], axis=1)
        features = features[:, MIRRORED_FEATURE]
    pairs = _matches(_rooted(first.features), _rooted(features))
    if len(pairs) < MIN_INLIERS:
        return None
    target, source = first.points_xy[pairs[:, 0]], points[pairs[:, 1]]
    # the estimator draws samples from its own generator, with the same seed in every call
    estimate: tuple[Any, Any] = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=1.5, maxIters=500
    )
    placed, inliers = estimate  # None, None if points coincide
    if (
        placed is None
        or not np.isfinite(placed).all()
        or not SCALES[0] < np.hypot(placed[0, 0], placed[1, 0]) < SCALES[1]
    ):
        return None
    return int(inliers.sum()), placed.astype(np.float64)


def _rooted(features: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return features of length 1 whose scalar product is the Hellinger kernel of the inputs."""
    values = features.astype(np.float32)
    return np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1e-6))


def _matches(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return row pairs of mutual nearest features, clearly nearer than the second nearest, int64 [M,2]."""
    if len(first) < 2 or len(second) < 2:
        return np.zeros((0, 2), np.int64)
    products = first @ second.T
    rows = np.arange(len(first))
    nearest = products.argmax(axis=1)
    best = products[rows, nearest]
    mutual = products.argmax(axis=0)[nearest] == rows
    products[rows, nearest] = -1
    distance, next_distance = np.sqrt(np.maximum(0, 2 - 2 * best)), np.sqrt(np.maximum(0, 2 - 2 * products.max(axis=1)))
    good = mutual & (distance < 0.9 * next_distance)
    return np.stack([rows[good], nearest[good]], axis=1)


def _refined(below: Surface, above: Surface, placed: Affine) -> Affine:
    start = cv2.invertAffineTransform(placed).astype(np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    mask: Any = None
    try:
        _, found = cv2.findTransformECC(below, above, start, cv2.MOTION_AFFINE, criteria, mask, 3)
        return cv2.invertAffineTransform(found).astype(np.float64)
    except cv2.error:  # the images differ, and the first estimate stays
        return placed


def _correlation(below: Surface, above: Surface, placed: Affine) -> float:
    """Return the median blockwise correlation of two aligned surfaces; 0.0 if they overlap too little."""
    height, width = below.shape
    laid = cv2.warpAffine(above, placed, (width, height))
    shown = cv2.warpAffine(np.ones_like(above), placed, (width, height)) > 0.99
    if shown.mean() < MIN_OVERLAP:
        return 0.0
    a, b = below.astype(np.float64), laid.astype(np.float64)
    of_pixels = np.stack([np.ones_like(a), a, b, a * a, b * b, a * b])
    count, sum_a, sum_b, sum_aa, sum_bb, sum_ab = _sums_of_blocks(np.where(shown, of_pixels, 0.0))
    of_area = _sums_of_blocks(np.ones((1, height, width)))[0]
    inside = (count > 0) & (count >= 0.5 * of_area)
    count = np.maximum(count, 1)
    spread_a, spread_b = np.maximum(0, sum_aa - sum_a**2 / count), np.maximum(0, sum_bb - sum_b**2 / count)
    inside &= np.sqrt(np.maximum(spread_a, spread_b) / count) >= FLAT_UNITS
    found = ((sum_ab - sum_a * sum_b / count) / np.sqrt(spread_a * spread_b + 1e-9))[inside]
    # a handful of blocks with detail is not enough evidence for a whole image
    return max(0.0, float(np.median(found))) if len(found) >= BLOCKS else 0.0


def _sums_of_blocks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums over blocks, float64 [N,BLOCKS * BLOCKS], of values [N,H,W]; 0 for blocks without a pixel."""
    for axis in (1, 2):
        edges = np.arange(BLOCKS + 1) * values.shape[axis] // BLOCKS
        sums = np.add.reduceat(values, edges[:-1], axis=axis)
        # of an empty block, numpy returns the first value behind it
        is_empty = (edges[1:] == edges[:-1]).reshape([-1 if other == axis else 1 for other in range(3)])
        values = np.where(is_empty, 0.0, sums)
    return values.reshape(len(values), -1)


def _typical_similarity(values: Sequence[ImageDescriptor], seed: int) -> float:
    """Return a high quantile of the similarities of randomly drawn pairs."""
    count = len(values)
    if count < 8:  # too few images for a quantile: any pair may be a copy
        return 0.0
    rng = np.random.default_rng([93, seed])
    if count * (count - 1) // 2 <= RANDOM_PAIRS:
        pairs = list(combinations(range(count), 2))
    else:
        pairs = [tuple(sorted(rng.choice(count, 2, replace=False).tolist())) for _ in range(RANDOM_PAIRS)]
    return float(np.quantile([similarity(values[a], values[b]) for a, b in pairs], ALIKE_QUANTILE))


def _candidates(values: Sequence[ImageDescriptor]) -> list[tuple[int, int]]:
    """Return pairs of indices worth aligning: each image with those that own the nearest features."""
    count = len(values)
    if count * (count - 1) // 2 <= NUM_CANDIDATES * count:
        return list(combinations(range(count), 2))
    strongest = [value.features[:VOTING_FEATURES] for value in values]
    owners = np.repeat(np.arange(count), [len(features) for features in strongest])
    stored = np.concatenate(strongest)
    if not len(stored):  # a set of uniform images
        return []
    asking = np.concatenate([owners, owners])
    nearest = np.concatenate([_nearest(stored, stored, owners), _nearest(stored[:, MIRRORED_FEATURE], stored, owners)])
    rows, columns = np.repeat(asking, VOTES_PER_FEATURE), np.where(nearest >= 0, owners[nearest], -1).ravel()
    rows, columns = rows[columns >= 0], columns[columns >= 0]
    keys, votes = np.unique(np.minimum(rows, columns) * count + np.maximum(rows, columns), return_counts=True)
    keys, votes = keys[votes >= MIN_VOTES], votes[votes >= MIN_VOTES]
    taken = np.zeros(count, np.int64)
    kept: list[tuple[int, int]] = []
    for key in keys[np.argsort(-votes, kind="stable")].tolist():
        first, second = divmod(key, count)
        if min(taken[first], taken[second]) < NUM_CANDIDATES:
            taken[[first, second]] += 1
            kept.append((first, second))
    return sorted(kept)


def _nearest(asked: NDArray[np.uint8], stored: NDArray[np.uint8], owners: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of the nearest stored features of other images, int64 [A,VOTES_PER_FEATURE], padded with -1.

    Stored features are grouped in cells around some of them, and a feature is searched in the cells nearest to it, so
    that time grows little faster than the number of images. `owners` holds the image of each feature, for both `asked`
    and `stored`.
    """
    # 40,000 features take 1.7 s; scipy's k-d tree, of no help among 128 dimensions, took 6 s for a hundredth of them
    num_cells, step = max(1, len(stored) // CELL_FEATURES), 16384
    centres = _rooted(stored[np.sort(np.random.default_rng(94).choice(len(stored), num_cells, replace=False))])
    probes = min(PROBES, num_cells)
    cell_of = np.concatenate(
        [_top(_rooted(stored[i : i + step]) @ centres.T, 1)[:, 0] for i in range(0, len(stored), step)]
    )
    probed = np.concatenate(
        [_top(_rooted(asked[i : i + step]) @ centres.T, probes) for i in range(0, len(asked), step)]
    )
    products = np.full((len(asked), probes, VOTES_PER_FEATURE), -1.0, np.float32)
    found = np.full((len(asked), probes, VOTES_PER_FEATURE), -1, np.int64)
    order = np.argsort(probed, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(probed.ravel(), minlength=num_cells))
    for cell in range(num_cells):
        members = np.flatnonzero(cell_of == cell)
        if not len(members):
            continue
        near_to = _rooted(stored[members]).T
        places = order[ends[cell - 1] if cell else 0 : ends[cell]]
        for start in range(0, len(places), 4096):
            rows, slot = np.divmod(places[start : start + 4096], probes)
            near = _rooted(asked[rows]) @ near_to
            near[owners[rows][:, None] == owners[members][None]] = -1
            best = _top(near.copy(), VOTES_PER_FEATURE)
            values = np.take_along_axis(near, best, axis=1)
            products[rows, slot, : best.shape[1]] = values
            found[rows, slot, : best.shape[1]] = np.where(values > 0, members[best], -1)
    flat = found.reshape(len(asked), -1)
    return np.take_along_axis(flat, _top(products.reshape(len(asked), -1), VOTES_PER_FEATURE), axis=1)


def _top(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the columns of the `count` largest values of each row, int64 [N,count], in descending order.

    `values` is overwritten.
    """
    rows = np.arange(len(values))
    columns = np.empty((len(values), min(count, values.shape[1])), np.int64)
    for place in range(columns.shape[1]):
        columns[:, place] = values.argmax(axis=1)
        values[rows, columns[:, place]] = -np.inf
    return columns
