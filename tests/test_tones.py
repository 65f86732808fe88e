from __future__ import annotations

import numpy as np
import pytest

from defectory.tones import CONTRAST, LIGHTNESS, contrast_steps, tone_words

SIZE_HW = (40, 56)


@pytest.mark.parametrize(
    ("level", "word"), [(0, "black"), (23, "black"), (24, "sooty"), (100, "muted"), (254, "white"), (255, "white")]
)
def test_lightness_goes_by_the_mean(level: int, word: str) -> None:
    assert tone_words(np.full((*SIZE_HW, 3), level, np.uint8)) == f"{word} flat"


@pytest.mark.parametrize(
    ("deviation", "word"),
    [(3, "flat"), (10, "even"), (15, "mild"), (20, "clear"), (30, "strong"), (50, "harsh"), (90, "stark")],
)
def test_contrast_goes_by_the_standard_deviation(deviation: int, word: str) -> None:
    image = np.full((*SIZE_HW, 3), 128 - deviation, np.uint8)
    image[::2] = 128 + deviation
    assert tone_words(image) == f"light {word}"


def test_pixels_left_out_do_not_count() -> None:
    image = np.full((*SIZE_HW, 3), 120, np.uint8)
    defect = np.zeros(SIZE_HW, bool)
    defect[:20] = True
    image[defect] = 0
    assert tone_words(image, without=defect) == "medium flat"
    assert tone_words(image) != "medium flat"


def test_where_nothing_is_left_everything_counts() -> None:
    image = np.full((*SIZE_HW, 3), 120, np.uint8)
    assert tone_words(image, without=np.ones(SIZE_HW, bool)) == "medium flat"


def test_every_word_names_one_range() -> None:
    words = [word for _, word in (*LIGHTNESS, *CONTRAST)]
    assert len(set(words)) == len(words)
    for limits in (LIGHTNESS, CONTRAST):
        assert [limit for limit, _ in limits] == sorted(limit for limit, _ in limits)
        assert limits[-1][0] > 255


@pytest.mark.parametrize(
    ("tone", "other", "steps"),
    [("dim flat", "white flat", 0), ("dim flat", "dim even", 1), ("pale stark", "dim flat", 6), ("", "dim flat", 0)],
)
def test_contrasts_lie_apart_by_words(tone: str, other: str, steps: int) -> None:
    assert contrast_steps(tone, other) == contrast_steps(other, tone) == steps
