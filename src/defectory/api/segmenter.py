"""Loads a trained segmenter and predicts a user's images with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category
from defectory.images.load import load_image
from defectory.images.valuerange import ValueRange
from defectory.rle import box_xyxy, decode

if TYPE_CHECKING:
    from defectory.tools.predict import Predicted


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A detected defect.

    Attributes:
        class_name: of the defect.
        score: from 0 to 1.
        mask: bool [H,W] of the image.
        box_xyxy: pixels, right and lower border excluded.
    """

    class_name: str
    score: float
    mask: NDArray[np.bool_]
    box_xyxy: tuple[int, int, int, int]


class Segmenter:
    """A trained segmenter. Load one with `Segmenter.load`."""

    def __init__(
        self,
        model: Any,
        categories: tuple[Category, ...],
        *,
        scale: float,
        score_threshold: float,
        value_range: ValueRange | None,
    ) -> None:
        self._model, self._scale, self._value_range = model, scale, value_range
        self.categories, self.score_threshold = categories, score_threshold

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "cpu") -> Segmenter:
        """Load a segmenter that a run trained, for example from `runs/demo/segment/real-seed0`.

        Raises:
            InputError: the folder holds no segmenter.
        """
        from defectory.segmentation.training import load_segmenter, score_threshold_of, value_range_of

        folder = Path(folder)
        model, categories, sizing = load_segmenter(folder, device)
        return cls(
            model,
            tuple(categories),
            scale=sizing.scale,
            score_threshold=score_threshold_of(folder),
            value_range=value_range_of(folder),
        )

    def predict(self, image: NDArray[np.uint8] | Path | str, *, min_score: float | None = None) -> list[Detection]:
        """Find defects in an image of any size.

        Args:
            image: RGB uint8 [H,W,3], or a file, read in the value range of the training data.
            min_score: weaker detections are left out; None uses the threshold chosen on validation.

        Raises:
            ImageError: the file cannot be read.
        """
        from defectory.segmentation.predict import predict_images

        pixels = image if isinstance(image, np.ndarray) else load_image(Path(image), self._value_range).rgb
        least = self.score_threshold if min_score is None else min_score
        found: list[Detection] = []
        for predictions in predict_images(self._model, [(0, pixels)], scale=self._scale):
            for p in predictions:
                if p.score >= least:
                    mask = decode(p.rle)
                    name = self.categories[p.category_id - 1].name
                    found.append(Detection(class_name=name, score=p.score, mask=mask, box_xyxy=box_xyxy(mask)))
        return found


def predict(
    images: Path | str | Sequence[Path | str],
    *,
    segmenter: Path | str,
    out: Path | str,
    min_score: float | None = None,
    device: str = "cpu",
    skip_bad: bool = False,
) -> Predicted:
    """Find defects in image files, and write COCO results and overlays.

    Args:
        images: files, or folders of files.
        segmenter: folder of a trained segmenter, for example `runs/demo/segment/real-seed0`.
        out: folder that gets `predictions.json`, `images.json` and `overlays/`: new, empty, or an earlier prediction,
            which is replaced as a whole.
        min_score: weaker detections are not drawn; None uses the threshold chosen on validation.
        device: where to predict.
        skip_bad: leave out images that cannot be read, and list them.

    Returns:
        The number of images, why others were left out, and remarks on how images were read.

    Raises:
        InputError: no images, an image that cannot be read, or not a segmenter.
        OutputError: `out` holds files that no prediction made.
    """
    from defectory.tools.predict import predict_files

    files = [Path(image) for image in ([images] if isinstance(images, Path | str) else images)]
    return predict_files(
        files, segmenter=Path(segmenter), out=Path(out), min_score=min_score, device=device, skip_bad=skip_bad
    )
