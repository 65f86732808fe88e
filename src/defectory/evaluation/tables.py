"""What a segmenter did on each test image, kept so that any resample of the images is scored without its masks.

A table holds right and wrong detections, pixels by score, and what an inspector sees. It is written beside the scores
of a run, and a study reads it instead of predicting again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from defectory.errors import StageError
from defectory.evaluation.match_tables import ClassMatches, MatchTable, copies_or_one_each, mean_over_classes, segm_map
from defectory.evaluation.pixels import PixelCounts
from defectory.evaluation.plant import Inspected

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CHUNK = 100
"""Resamples that are scored at once."""
MATCH_FIELDS = ("scores", "image", "right", "ignored", "num_true")
PIXEL_FIELDS = ("scores", "image", "right_px", "wrong_px", "num_true_px", "num_px")


@dataclass(frozen=True, kw_only=True)
class ClassPixels:
    """Pixels of one class by the score of the strongest detection that covers them, by descending score.

    Attributes:
        scores: float [N].
        image: position of each score's image, int [N].
        right_px: defect pixels of each score, int [N].
        wrong_px: other pixels of each score, int [N].
        num_true_px: defect pixels of each image, int [images].
        num_px: pixels of each image that count, int [images].
    """

    scores: Floats
    image: Ints
    right_px: Ints
    wrong_px: Ints
    num_true_px: Ints
    num_px: Ints

    @classmethod
    def of(cls, counts: Sequence[PixelCounts]) -> ClassPixels:
        """Join the counts of all images, in their order."""
        scores = np.concatenate([np.zeros(0), *(c.scores for c in counts)])
        image = np.repeat(np.arange(len(counts)), [len(c.scores) for c in counts])
        order = np.argsort(-scores, kind="stable")
        empty = np.zeros(0, np.int64)
        return cls(
            scores=scores[order],
            image=image[order],
            right_px=np.concatenate([empty, *(c.right_px for c in counts)])[order],
            wrong_px=np.concatenate([empty, *(c.wrong_px for c in counts)])[order],
            num_true_px=np.array([c.num_true_px for c in counts], np.int64),
            num_px=np.array([c.num_px for c in counts], np.int64),
        )


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """One segmenter on a fixed list of test images.

    Attributes:
        image_ids: ids of the images, in order.
        matches: right and wrong detections.
        pixels: by category id.
        num_defects: of each image, int [images].
        num_missed: defects of each image without a detection at the score threshold, int [images].
        is_good: whether each image has no label, bool [images].
        is_alarmed: whether each image has a detection at the score threshold, bool [images].
    """

    image_ids: Ints
    matches: MatchTable
    pixels: Mapping[int, ClassPixels]
    num_defects: Ints
    num_missed: Ints
    is_good: NDArray[np.bool_]
    is_alarmed: NDArray[np.bool_]

    def save(self, path: Path) -> None:
        """Write the table as a compressed `.npz` file."""
        arrays: dict[str, NDArray[Any]] = {
            name: getattr(self, name) for name in ("image_ids", "num_defects", "num_missed", "is_good", "is_alarmed")
        }
        for category_id, matches in self.matches.classes.items():
            arrays |= {f"match/{category_id}/{name}": getattr(matches, name) for name in MATCH_FIELDS}
        for category_id, pixels in self.pixels.items():
            arrays |= {f"pixels/{category_id}/{name}": getattr(pixels, name) for name in PIXEL_FIELDS}
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> ScoreTable:
        """Read a table that `save` wrote.

        Raises:
            StageError: it is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
            classes = {
                kind: sorted({int(name.split("/")[1]) for name in arrays if name.startswith(f"{kind}/")})
                for kind in ("match", "pixels")
            }
            return cls(
                image_ids=arrays["image_ids"],
                matches=MatchTable(
                    num_images=len(arrays["image_ids"]),
                    classes={
                        c: ClassMatches(**{name: arrays[f"match/{c}/{name}"] for name in MATCH_FIELDS})
                        for c in classes["match"]
                    },
                ),
                pixels={
                    c: ClassPixels(**{name: arrays[f"pixels/{c}/{name}"] for name in PIXEL_FIELDS})
                    for c in classes["pixels"]
                },
                **{name: arrays[name] for name in ("num_defects", "num_missed", "is_good", "is_alarmed")},
            )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise StageError(f"{path}: cannot be read ({error}); run the stage `evaluate` again") from None


def score_table(
    image_ids: Sequence[int],
    *,
    matches: MatchTable,
    pixels: Mapping[int, Sequence[PixelCounts]],
    inspected: Sequence[Inspected],
    score_threshold: float,
) -> ScoreTable:
    """Join what is known of each image, all in the order of `image_ids`."""
    return ScoreTable(
        image_ids=np.array(image_ids, np.int64),
        matches=matches,
        pixels={category_id: ClassPixels.of(of) for category_id, of in pixels.items()},
        num_defects=np.array([len(of.defects) for of in inspected], np.int64),
        num_missed=np.array([sum(d.score < score_threshold for d in of.defects) for of in inspected], np.int64),
        is_good=np.array([of.is_good for of in inspected], bool),
        is_alarmed=np.array([of.score >= score_threshold for of in inspected], bool),
    )


def table_segm_map(table: ScoreTable, copies: Ints | None = None) -> Floats:
    """Compute segm mAP on data sets with so many copies of each image, int [data sets, images]; None: as they are."""
    return segm_map(table.matches, copies)


def table_pixel_ap(table: ScoreTable, copies: Ints | None = None) -> Floats:
    """Compute the mean pixel AP over classes with a defect pixel, as `SegmenterScores.pixel_ap`; 0 without any."""
    classes = [(pixels, pixels.num_true_px) for pixels in table.pixels.values()]
    return mean_over_classes(classes, _copies(table, copies), _pixel_ap, chunk=CHUNK)


def table_missed_rate(table: ScoreTable, copies: Ints | None = None) -> Floats:
    """Compute the missed-defect rate at the score threshold; 0 without a defect."""
    wanted = _copies(table, copies)
    return (wanted @ table.num_missed) / np.maximum(wanted @ table.num_defects, 1)


def table_false_alarms(table: ScoreTable, copies: Ints | None = None) -> Floats:
    """Compute false alarms per 100 good images at the score threshold; 0 without a good image."""
    wanted = _copies(table, copies)
    alarms = wanted @ (table.is_good & table.is_alarmed).astype(np.int64)
    return 100 * alarms / np.maximum(wanted @ table.is_good.astype(np.int64), 1)


TABLE_SCORES = {
    "segm_map": table_segm_map,
    "pixel_ap": table_pixel_ap,
    "missed_defect_rate": table_missed_rate,
    "false_alarms_per_100_good_images": table_false_alarms,
}
"""Scores of a table by name; each has an interval over seeds and test images."""


def _copies(table: ScoreTable, copies: Ints | None) -> Ints:
    return copies_or_one_each(copies, len(table.image_ids))


def _pixel_ap(pixels: ClassPixels, copies: Ints, num_true: Ints) -> Floats:
    """Return scikit-learn's average precision over pixels, float [data sets]; see `score_pixels`."""
    num_px = np.maximum(copies @ pixels.num_px, 1)
    truth = np.maximum(num_true, 1)
    if not len(pixels.scores):
        # without any detection, score_pixels counts nothing as found
        return np.zeros(len(copies))
    weights = copies[:, pixels.image]
    right = np.cumsum(weights * pixels.right_px, axis=1)
    covered = right + np.cumsum(weights * pixels.wrong_px, axis=1)
    last_of_score = np.flatnonzero(np.append(pixels.scores[1:] != pixels.scores[:-1], True))
    right, covered = right[:, last_of_score], covered[:, last_of_score]
    recall = right / truth[:, None]
    found = np.sum(np.diff(recall, axis=1, prepend=0.0) * (right / np.maximum(covered, 1)), axis=1)
    any_found = weights.any(axis=1)
    return np.where(any_found, found + (1.0 - recall[:, -1]) * truth / num_px, 0.0)
