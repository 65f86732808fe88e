from __future__ import annotations

import numpy as np
import pytest

from defectory.curation.doubt import (
    OUTSIDE,
    ClassMeans,
    Detection,
    Doubt,
    by_difference,
    by_losses,
    class_means,
    judges_of,
    losses_of,
    no_doubt,
    require_cross_fitted,
)
from defectory.errors import FirewallError
from defectory.rle import encode

SIZE_HW = (60, 90)
MEANS = ClassMeans(pixels={OUTSIDE: 0.1, 1: 0.3, 2: 0.3}, instances={1: 0.3, 2: 0.3})


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE_HW, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def pair(*drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    without = np.full((*SIZE_HW, 3), 130, np.uint8)
    image = without.copy()
    for mask in drawn:
        image[mask] = 40
    return image, without


def doubt(masks: list[np.ndarray], *drawn: np.ndarray) -> Doubt:
    return by_difference(*pair(*drawn), masks, difference_threshold=24.0, min_fidelity=0.5)


def test_a_label_that_was_drawn_is_not_doubtful() -> None:
    label = rectangle(10, 10, 40, 40)
    found = doubt([label], label)
    assert not found.ignore.any()
    assert found.is_doubtful == (False,)


def test_pixels_of_a_label_where_nothing_was_drawn_are_ignored_but_not_at_its_border() -> None:
    label, drawn = rectangle(10, 10, 40, 40), rectangle(10, 10, 32, 40)
    found = doubt([label], drawn)
    assert found.is_doubtful == (False,)
    assert found.ignore[20, 36]
    assert not (found.ignore & ~label).any()
    assert not (found.ignore & drawn).any()
    assert not found.ignore[:, 38:].any(), "2 px at the label's border are tolerated"


def test_an_instance_that_was_not_drawn_is_doubtful_and_its_neighbour_is_not() -> None:
    drawn, missing = rectangle(8, 10, 28, 30), rectangle(60, 30, 80, 50)
    found = doubt([drawn, missing], drawn)
    assert found.is_doubtful == (False, True)
    assert found.ignore[40, 70]


def test_what_was_drawn_away_from_every_label_is_ignored() -> None:
    label, stray = rectangle(8, 10, 28, 30), rectangle(60, 30, 80, 50)
    found = doubt([label], label, stray)
    assert found.ignore[40, 70]
    assert not (found.ignore & label).any()


def test_a_thin_label_beside_what_was_drawn_is_judged_with_tolerance() -> None:
    crack, beside, far = rectangle(10, 20, 80, 23), rectangle(10, 22, 80, 25), rectangle(10, 40, 80, 43)
    assert doubt([crack], beside).is_doubtful == (False,), "2 px away"
    assert doubt([crack], far).is_doubtful == (True,)


def test_only_segmenters_that_know_no_image_of_a_draft_judge_it() -> None:
    trained_on = [{1, 2, 3}, {3, 4, 5}]
    assert judges_of([4, 9], trained_on) == (0,)
    assert judges_of([9], trained_on) == (0, 1)
    assert judges_of([1, 4], trained_on) == ()
    require_cross_fitted([0], [4, 9], trained_on, what="draft 7")
    with pytest.raises(FirewallError, match=r"draft 7: the segmenter of fold 1 trained on image 4") as error:
        require_cross_fitted([0, 1], [4, 9], trained_on, what="draft 7")
    assert "\n" not in str(error.value)


def test_a_missed_instance_is_doubtful_and_one_that_is_found_is_not() -> None:
    found, missed = rectangle(8, 10, 28, 30), rectangle(60, 30, 80, 50)
    labels = [(1, found), (2, missed)]
    seen = [[Detection(category_id=1, score=0.9, rle=encode(found))]]
    losses = losses_of(seen, labels, SIZE_HW)
    assert losses.instances == (pytest.approx(-np.log(0.9), rel=1e-4), pytest.approx(-np.log(0.05), rel=1e-4))
    result = by_losses(losses, [1, 2], MEANS, multiple=2.0)
    assert result.is_doubtful == (False, True)
    assert result.ignore[40, 70]
    assert not result.ignore[20, 18]
    assert not result.ignore[30:32, 60:80].any(), "not at the border of a label"


def test_a_detection_without_a_label_is_ignored_and_a_detection_of_another_class_is_no_agreement() -> None:
    label, other = rectangle(8, 10, 28, 30), rectangle(60, 30, 80, 50)
    seen = [[Detection(category_id=2, score=0.9, rle=encode(mask)) for mask in (label, other)]]
    result = by_losses(losses_of(seen, [(1, label)], SIZE_HW), [1], MEANS, multiple=2.0)
    assert result.ignore[40, 70]
    assert not result.ignore[55, 5]
    assert result.is_doubtful == (True,)


def test_segmenters_that_find_nothing_doubt_nothing() -> None:
    label = rectangle(8, 10, 28, 30)
    losses = losses_of([[]], [(1, label)], SIZE_HW)
    means = class_means([(losses, [1]), (losses, [1])])
    assert means.instances[1] == pytest.approx(-np.log(0.05), rel=1e-4)
    result = by_losses(losses, [1], means, multiple=2.0)
    assert not result.ignore.any()
    assert result.is_doubtful == (False,)


def test_two_witnesses_add_up() -> None:
    label = rectangle(8, 10, 28, 30)
    none = no_doubt([(1, label)], SIZE_HW)
    assert not none.ignore.any()
    other = doubt([label], rectangle(60, 30, 80, 50))
    assert (none | other).is_doubtful == (True,)
    assert np.array_equal((none | other).ignore, other.ignore)
