"""Words for the tones of an image, used in captions and prompts because a driver carries no brightness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LIGHTNESS: tuple[tuple[float, str], ...] = (
    (24, "black"),
    (40, "sooty"),
    (56, "dark"),
    (72, "dusky"),
    (88, "dim"),
    (104, "muted"),
    (122, "medium"),
    (142, "light"),
    (166, "pale"),
    (196, "bright"),
    (256, "white"),
)
"""Upper limit of the mean grey level for each word."""
CONTRAST: tuple[tuple[float, str], ...] = (
    (7, "flat"),
    (12, "even"),
    (18, "mild"),
    (26, "clear"),
    (38, "strong"),
    (54, "harsh"),
    (256, "stark"),
)
"""Upper limit of the standard deviation of grey levels for each word."""


def tone_words(image: NDArray[np.uint8], *, without: NDArray[np.bool_] | None = None) -> str:
    """Return two words for lightness and contrast, for example `dim mild`.

    Args:
        image: RGB uint8 [H,W,3].
        without: bool [H,W], pixels to ignore, such as defects and padding; not used if no other pixel is left.
    """
    # channel by channel: numpy sums a last axis of three ten times slower
    grey = (image[..., 0].astype(np.float32) + image[..., 1] + image[..., 2]) / np.float32(3)
    counted = grey if without is None or without.all() else grey[~without]
    return f"{_word(LIGHTNESS, float(counted.mean()))} {_word(CONTRAST, float(counted.std()))}"


def _word(limits: tuple[tuple[float, str], ...], value: float) -> str:
    return next(word for limit, word in limits if value < limit)


def contrast_steps(tone: str, other: str) -> int:
    """Return the distance in steps between the contrast words of two tones (`tone_words`); 0 if one is empty."""
    names = [word for _, word in CONTRAST]
    if not tone or not other:
        return 0
    return abs(names.index(tone.split()[1]) - names.index(other.split()[1]))
