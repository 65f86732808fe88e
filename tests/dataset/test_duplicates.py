from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image as PillowImage

from defectory.dataset.descriptor import ImageDescriptor, describe, load_descriptors, pixel_digest, save_descriptors
from defectory.dataset.duplicates import copies_of, find_duplicates, similarity
from defectory.errors import InputError

Image = NDArray[np.uint8]
SIZE_HW = (180, 260)


def levels(values: NDArray[np.floating]) -> Image:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def surface(seed: int, *, spread: float = 30.0, size_hw: tuple[int, int] = SIZE_HW) -> Image:
    """A rough surface of several scales, grey, its own for each seed."""
    rng = np.random.default_rng([7, seed])
    grey = sum(cv2.GaussianBlur(rng.normal(0, 1, size_hw).astype(np.float32), (0, 0), s) * s for s in (1.5, 3.0, 8.0))
    grey = 120 + spread * (grey - grey.mean()) / grey.std()
    return levels(np.repeat(grey[..., None], 3, axis=2))


def jpeg(image: Image, quality: int) -> Image:
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(PillowImage.open(buffer).convert("RGB"))


def moved(image: Image, degrees: float = 0.0, shift: int = 0) -> Image:
    height, width = image.shape[:2]
    affine = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    affine[:, 2] += (shift, -shift)
    return cv2.warpAffine(image, affine, (width, height)).astype(np.uint8)


def cropped(image: Image, share: float) -> Image:
    top, left = round(image.shape[0] * share), round(image.shape[1] * share)
    return image[top : image.shape[0] - top, left : image.shape[1] - left].copy()


def resized(image: Image, factor: float) -> Image:
    return cv2.resize(
        image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    ).astype(np.uint8)


COPIES: dict[str, Callable[[Image], Image]] = {
    "mirrored": lambda image: image[:, ::-1].copy(),
    "upside down": lambda image: image[::-1].copy(),
    "turned": lambda image: np.rot90(image).copy(),
    "rotated by 2 degrees": lambda image: moved(image, 2),
    "rotated by -5 degrees": lambda image: moved(image, -5),
    "cropped by 2%": lambda image: cropped(image, 0.02),
    "cropped by 10%": lambda image: cropped(image, 0.1),
    "shifted by 4 px": lambda image: moved(image, shift=4),
    "JPEG 95": lambda image: jpeg(image, 95),
    "JPEG 60": lambda image: jpeg(image, 60),
    "brighter": lambda image: levels(image * 1.1),
    "less contrast": lambda image: levels((image - image.mean()) * 0.9 + image.mean()),
    "half": lambda image: resized(image, 0.5),
    "double": lambda image: resized(image, 2),
    "noise": lambda image: levels(image + np.random.default_rng(1).normal(0, 4, image.shape)),
    "mirrored, cropped, JPEG": lambda image: jpeg(cropped(image, 0.05)[:, ::-1].copy(), 75),
}


@pytest.fixture(scope="module")
def set_of_surfaces() -> dict[int, ImageDescriptor]:
    return {number: describe(surface(number)) for number in range(30)}


@pytest.mark.parametrize("name", COPIES)
def test_altered_copies_are_recognised_and_no_other_image_is(
    name: str, set_of_surfaces: dict[int, ImageDescriptor]
) -> None:
    found = copies_of(describe(COPIES[name](surface(4))), set_of_surfaces, threshold=0.8)
    assert [image_id for image_id, _ in found] == [4]
    assert 0.8 <= found[0][1] <= 1.0


def test_copies_are_found_in_a_set_and_different_surfaces_stay_apart(
    set_of_surfaces: dict[int, ImageDescriptor],
) -> None:
    copies = {100 + number: describe(alter(surface(number))) for number, alter in enumerate(COPIES.values())}
    found = find_duplicates(set_of_surfaces | copies, threshold=0.8)
    assert {(pair.first, pair.second) for pair in found.pairs} == {
        (number, 100 + number) for number in range(len(COPIES))
    }
    assert found.threshold == 0.8
    assert not find_duplicates(set_of_surfaces, threshold=0.8).pairs


def test_with_a_similarity_of_one_equal_pixels_alone_count(set_of_surfaces: dict[int, ImageDescriptor]) -> None:
    copies = {50: describe(surface(3)[:, ::-1].copy()), 51: describe(jpeg(surface(4), 95))}
    assert [
        (p.first, p.second, p.similarity) for p in find_duplicates(set_of_surfaces | copies, threshold=1.0).pairs
    ] == [(3, 50, 1.0)]


def view(image: Image, number: int) -> Image:
    turned = np.rot90(image, number % 4)
    return turned[:, ::-1] if number >= 4 else turned


@given(
    image=arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 9), st.just(3)), elements=st.integers(100, 102)),
    first=st.integers(0, 7),
    second=st.integers(0, 7),
)
def test_equal_pixels_are_equal_however_turned_and_at_any_contrast(image: Image, first: int, second: int) -> None:
    assert pixel_digest(view(image, first)) == pixel_digest(view(image, second))
    # a difference of one level in one pixel makes another image
    other = image.copy()
    other[0, 0, 0] += 50
    assert pixel_digest(other) != pixel_digest(image)


@settings(max_examples=15, deadline=None)
@given(spread=st.floats(0, 2), number=st.integers(0, 7))
def test_flat_copies_are_found_by_their_pixels(spread: float, number: int) -> None:
    image = surface(1, spread=spread, size_hw=(60, 90))
    assert image.std() < 6
    copy = describe(np.ascontiguousarray(view(image, number)))
    other = describe(levels(surface(2, spread=spread, size_hw=(60, 90)) + 3.0))
    found = find_duplicates({1: describe(image), 2: copy, 3: other}, threshold=0.8)
    assert [(pair.first, pair.second) for pair in found.pairs] == [(1, 2)]


def board(number: int) -> Image:
    """The same drawing in one fixture, photographed part by part: a camera's noise, a few specks, a slight shift."""
    rng = np.random.default_rng(5)
    image = np.full(SIZE_HW, 70, np.float32)
    for _ in range(40):
        x, y, w, h = (int(rng.integers(low, high)) for low, high in ((0, 240), (0, 160), (8, 50), (6, 30)))
        image[y : y + h, x : x + w] = rng.integers(20, 230)
    own = np.random.default_rng([6, number])
    image = moved(np.repeat(levels(image)[..., None], 3, axis=2), own.normal(0, 0.4), int(own.integers(-2, 3))).astype(
        np.float32
    )
    image += cv2.GaussianBlur(own.normal(0, 25, SIZE_HW).astype(np.float32), (0, 0), 2)[..., None] + own.normal(
        0, 3, (*SIZE_HW, 1)
    )
    for _ in range(4):
        centre = (int(own.integers(0, SIZE_HW[1])), int(own.integers(0, SIZE_HW[0])))
        cv2.circle(image, centre, int(own.integers(2, 7)), (float(own.integers(20, 230)),) * 3, -1)
    return levels(image)


def test_photographs_of_one_design_in_one_fixture_are_not_all_one_part() -> None:
    parts = {number: describe(board(number)) for number in range(24)}
    found = find_duplicates(
        parts | {90: describe(board(3)[::-1].copy()), 91: describe(jpeg(board(5), 95))}, threshold=0.8
    )
    assert found.typical_similarity > 0.8  # any two look like copies
    assert found.threshold > 0.95
    assert {(pair.first, pair.second) for pair in found.pairs} == {(3, 90), (5, 91)}


def test_images_without_detail_are_no_copies_of_each_other() -> None:
    flat = {number: describe(np.full((40, 70, 3), 90 + number, np.uint8)) for number in range(30) if number != 9}
    ramp = describe(levels(np.repeat(np.linspace(20, 200, 70)[None, :, None], 40, axis=0).repeat(3, axis=2)))
    assert not find_duplicates(flat | {9: ramp}, threshold=0.8).pairs
    assert similarity(flat[0], ramp) == 0.0
    tiny = {number: describe(np.full((1, 2, 3), number, np.uint8)) for number in range(3)}
    assert not find_duplicates(tiny, threshold=0.8).pairs


def test_a_search_gives_the_same_pairs_in_any_order(set_of_surfaces: dict[int, ImageDescriptor]) -> None:
    whole = set_of_surfaces | {40: describe(jpeg(surface(2), 75))}
    assert find_duplicates(dict(reversed(whole.items())), threshold=0.8) == find_duplicates(whole, threshold=0.8)


def test_descriptors_come_back_as_they_were(tmp_path: Path, set_of_surfaces: dict[int, ImageDescriptor]) -> None:
    path = tmp_path / "split" / "descriptors.safetensors"
    stored = set_of_surfaces | {77: describe(np.full((9, 40, 3), 5, np.uint8))}
    save_descriptors(path, stored, dataset_digest="d")
    for only, ids in ((None, set(stored)), (frozenset({3, 77}), {3, 77})):
        found = load_descriptors(path, dataset_digest="d", only=only)
        assert set(found) == ids
        for image_id in ids:
            one, other = found[image_id], stored[image_id]
            assert one.pixel_digest == other.pixel_digest
            for name in ("surface", "points_xy", "features"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_damaged_or_foreign_descriptors_are_one_line(
    tmp_path: Path, set_of_surfaces: dict[int, ImageDescriptor]
) -> None:
    path = tmp_path / "descriptors.safetensors"
    save_descriptors(path, set_of_surfaces, dataset_digest="d")
    with pytest.raises(InputError, match="of another data set"):
        load_descriptors(path, dataset_digest="e")
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a file of tensors", b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="run the stage `split` again") as caught:
            load_descriptors(path, dataset_digest="d")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no image descriptors here"):
        load_descriptors(tmp_path / "none", dataset_digest="d")
