"""Run-length encodings: equal to COCO's own, and safe whatever a file holds."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as pycoco

from defectory.rle import Rle, area_px, box_of, box_xyxy, decode, decode_crop, encode, encode_crop, runs_of_text, union

masks = hnp.arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 31)))


@given(masks)
def test_text_is_that_of_pycocotools_and_decodes_to_the_mask(mask: np.ndarray) -> None:
    rle = encode(mask)
    assert rle.counts == pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert np.array_equal(decode(rle), mask)


@given(masks)
def test_area_and_box_are_those_of_the_mask(mask: np.ndarray) -> None:
    rle = encode(mask)
    assert area_px(rle) == mask.sum()
    assert box_of(rle) == box_xyxy(mask)
    crop, (x, y) = decode_crop(rle)
    assert crop.shape == (box_of(rle)[3] - box_of(rle)[1], box_of(rle)[2] - box_of(rle)[0])
    assert np.array_equal(mask[y : y + crop.shape[0], x : x + crop.shape[1]], crop)


@given(masks, st.integers(0, 9), st.integers(0, 9))
def test_a_crop_is_encoded_in_the_frame_of_its_image(crop: np.ndarray, x: int, y: int) -> None:
    size_hw = (crop.shape[0] + y + 3, crop.shape[1] + x)
    whole = np.zeros(size_hw, bool)
    whole[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    assert encode_crop(crop, (x, y), size_hw) == encode(whole)


@given(st.lists(hnp.arrays(bool, (13, 17)), min_size=1, max_size=5))
def test_a_union_holds_what_any_of_the_masks_holds(several: list[np.ndarray]) -> None:
    assert union([encode(mask) for mask in several]) == encode(np.any(several, axis=0))


@settings(max_examples=300)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=130), max_size=60))
def test_any_text_is_decoded_or_refused(text: str) -> None:
    rle = Rle(size_hw=(9, 14), counts=text)
    with contextlib.suppress(ValueError):
        mask = decode(rle)
        assert mask.shape == (9, 14)
        assert np.array_equal(decode(encode(mask)), mask)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("o" * 12 + "0", "too large"),
        ("ooooooo0" * 3, "pixels"),
        ("o", "inside a number"),
        ("\x7f", "outside the code"),
        ("é", "outside the code"),
        ("K", "negative"),
        ("5", "add up to 5"),
    ],
)
def test_malformed_text_is_told_as_what_it_is(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        runs_of_text(text, 126)


@pytest.mark.parametrize("size_hw", [(0, 5), (-3, 4), (1 << 20, 1 << 20)])
def test_a_size_that_no_mask_has_is_refused(size_hw: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="pixels"):
        decode(Rle(size_hw=size_hw, counts="0"))
