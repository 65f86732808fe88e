from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.artifacts.plan import Check
from defectory.curation.anomaly import learn_memory
from defectory.curation.checks import Checker, Draft, Encoder, RealTile, reason_of
from defectory.curation.config import CurationConfig
from defectory.curation.novelty import Originals, copy_of, learn_limit
from defectory.curation.realism import farthest_first, learn_real_tiles
from defectory.curation.tighten import tighten

SIZE_HW = (64, 96)
Image = NDArray[np.uint8]


def textured(seed: int, *, level: float = 120.0, scale: float = 2.0) -> Image:
    """A surface of its own: smooth noise with a dark blob somewhere."""
    rng = np.random.default_rng(seed)
    grey = cv2.GaussianBlur(rng.standard_normal(SIZE_HW).astype(np.float32), (0, 0), scale)
    grey = level + 25 * grey / grey.std()
    y, x = rng.integers(10, SIZE_HW[0] - 10), rng.integers(10, SIZE_HW[1] - 10)
    cv2.circle(grey, (int(x), int(y)), 6, 40.0, -1)
    return np.clip(grey, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def numbers_of(images: Sequence[Image]) -> Any:
    """Features for tests: mean, standard deviation and steps of each image."""
    grey = [i.astype(np.float64).mean(axis=2) for i in images]
    return np.array(
        [[g.mean(), g.std(), np.abs(np.diff(g, axis=0)).mean(), np.abs(np.diff(g, axis=1)).mean()] for g in grey]
    )


def patches_of(images: Sequence[Image]) -> Any:
    return np.stack(
        [cv2.resize(i, (SIZE_HW[1] // 4, SIZE_HW[0] // 4), interpolation=cv2.INTER_AREA) for i in images]
    ).astype(np.float32)


ENCODER = Encoder(embed=numbers_of, patches=patches_of)


def real_tiles(count: int = 16) -> list[RealTile]:
    return [
        RealTile(name=f"t{i}", image=textured(i), valid_hw=SIZE_HW, image_id=i, group=f"g{i}", is_defective=i % 2 == 0)
        for i in range(count)
    ]


def checked(*drafts: tuple[Image, Image], config: CurationConfig | None = None) -> list[dict[str, Check]]:
    checker = Checker(real_tiles(), [textured(900)], encoder=ENCODER, config=config or CurationConfig(), seed=0)
    found = checker.check([Draft(image=image, without=without, valid_hw=SIZE_HW) for image, without in drafts])
    return [{check.name: check for check in checks} for checks in found]


def test_a_new_tile_of_the_same_kind_passes_every_check() -> None:
    (found,) = checked((textured(500), textured(501)))
    assert [name for name, check in found.items() if not check.passed] == []
    assert set(found) == {"exposure", "blur", "clipping", "anomaly", "realism", "novelty"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda image: np.clip(image.astype(int) + 110, 0, 255).astype(np.uint8), "exposure"),
        (lambda image: cv2.GaussianBlur(image, (0, 0), 12.0), "blur"),
        (lambda image: np.where(np.indices(SIZE_HW)[1][..., None] < 30, 0, image).astype(np.uint8), "clipping"),
    ],
)
def test_a_tile_unlike_the_real_ones_fails_by_name(change: Any, name: str) -> None:
    (found,) = checked((change(textured(500)), textured(501)))
    assert not found[name].passed
    assert reason_of(found[name])


def test_copies_of_train_tiles_and_prior_images_are_named_and_new_tiles_are_not() -> None:
    rng = np.random.default_rng(3)
    copies = [copy_of(textured(seed), rng) for seed in (0, 6, 900)]
    found = checked(*((image, image) for image in [*copies, textured(501)]))
    assert [f["novelty"].passed for f in found] == [False, False, False, True]
    assert [f["novelty"].nearest for f in found[:3]] == ["train tile t0", "train tile t6", "prior image 0"]
    assert "a copy of train tile t0" in reason_of(found[0]["novelty"])


def test_a_quarter_turn_of_a_square_tile_is_a_copy() -> None:
    square = [np.ascontiguousarray(textured(seed)[:, :64]) for seed in range(4)]
    likeness = Originals(["a", "b", "c", "d"], square).likeness(np.ascontiguousarray(np.rot90(square[2])))
    assert likeness.name == "c"
    assert likeness.value > 0.95


def test_the_limit_of_copies_lies_between_strangers_and_copies() -> None:
    images = [textured(seed) for seed in range(10)]
    originals = Originals([str(i) for i in range(10)], images)
    limit = learn_limit(images, [str(i) for i in range(10)], originals, seed=0)
    strangers = [originals.likeness(textured(seed)).value for seed in range(100, 120)]
    copies = [originals.likeness(copy_of(images[i % 10], np.random.default_rng(i))).value for i in range(20)]
    assert max(strangers) < limit < np.quantile(copies, 0.1)


def test_the_same_picture_twice_is_told_from_the_first() -> None:
    image = textured(500)
    first, second, other = checked(
        (image, image), (np.clip(image.astype(int) + 4, 0, 255).astype(np.uint8), image), (textured(502), image)
    )
    assert "duplicate" not in first
    assert not second["duplicate"].passed
    assert second["duplicate"].nearest == "draft number 0"
    assert other["duplicate"].passed


def test_a_defect_in_the_half_without_a_mask_is_an_anomaly() -> None:
    def patches(defect: bool, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        one = rng.normal(0, 1, (12, 16, 5)).astype(np.float32)
        if defect:
            one[5:8, 6:9] += 6
        return one

    memory = learn_memory(np.stack([patches(False, s) for s in range(12)]), np.arange(12), seed=0)
    assert memory is not None
    scores = memory.scores(np.stack([patches(s % 2 == 1, 100 + s) for s in range(8)]))
    assert (scores[0::2] < memory.limit * 1.5).all()
    assert (scores[1::2] > memory.limit * 1.5).all()


def test_too_few_tiles_teach_no_limits() -> None:
    assert learn_memory(np.zeros((3, 8, 8, 2), np.float32), np.arange(3), seed=0) is None
    assert learn_real_tiles(np.zeros((7, 3)), np.arange(7)) is None


def test_tiles_of_one_image_do_not_make_real_tiles_look_close() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(10, 6))
    twins = np.repeat(base, 4, axis=0) + rng.normal(size=(40, 6)) * 1e-3
    own, blind = (learn_real_tiles(twins, ids) for ids in (np.repeat(np.arange(10), 4), np.arange(40)))
    assert own is not None
    assert blind is not None
    assert own.limit > 100 * blind.limit


def test_farthest_first_takes_one_of_each_cluster_before_a_second() -> None:
    centres = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    points = np.concatenate([centres + 0.1 * i for i in range(5)])
    assert {i % 4 for i in farthest_first(points, 4)} == {0, 1, 2, 3}


def test_labels_are_tightened_to_what_was_drawn_and_kept_where_little_was() -> None:
    label, drawn, other = np.zeros(SIZE_HW, bool), np.zeros(SIZE_HW, bool), np.zeros(SIZE_HW, bool)
    label[10:30, 10:30] = True
    drawn[11:31, 10:28] = True
    other[40:60, 60:90] = True
    drawn[45:48, 60:66] = True
    first, second = tighten(drawn, [label, other])
    assert (first == (drawn & (np.indices(SIZE_HW)[1] < 50))).all()
    assert (second == other).all()


def test_checks_that_are_not_asked_for_are_not_made() -> None:
    (found,) = checked((textured(500), textured(501)), config=CurationConfig(checks=("exposure", "novelty")))
    assert set(found) == {"exposure", "novelty"}
