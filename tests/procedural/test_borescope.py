from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from defectory.files import digest_folder
from defectory.images.load import load_rgb
from defectory.procedural.borescope import (
    CLASSES,
    SHOTS_PER_SCENE,
    SIZE_HW,
    BorescopeSample,
    render,
    render_pair,
    write_dataset,
)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[BorescopeSample, BorescopeSample]]:
    return [render_pair(seed, scene_seed=seed // 3) for seed in range(40)]


def test_a_shot_is_a_function_of_its_seeds() -> None:
    first, second = (render(4, scene_seed=2, defects=True) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.image.shape == (*SIZE_HW, 3)
    others = [
        render(5, scene_seed=2, defects=True),
        render(4, scene_seed=3, defects=True),
        render(4, scene_seed=2, defects=False),
    ]
    assert len({s.image.tobytes() for s in [first, *others]}) == 4
    assert (first.group, others[0].group, others[1].group) == ("scene002", "scene002", "scene003")


def test_a_shot_asked_for_defects_shows_one_to_three() -> None:
    counts = [len(render(seed, scene_seed=seed // 4, defects=True).instances) for seed in range(120)]
    assert min(counts) >= 1
    assert set(counts) == {1, 2, 3}
    assert all(render(seed, scene_seed=0, defects=False).instances == () for seed in range(5))


def test_a_pair_differs_in_and_beside_its_masks_alone(pairs: list[tuple[BorescopeSample, BorescopeSample]]) -> None:
    for shown, hidden in pairs:
        assert hidden.instances == ()
        union = np.any([mask for _, mask in shown.instances], axis=0)
        difference = np.abs(shown.image.astype(int) - hidden.image).max(axis=2)
        far = cv2.dilate(union.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
        # a burn's soft border may reach further, faintly
        assert (difference[far] > 0).mean() < 0.01
        assert difference[far].max() < 50
        for _, mask in shown.instances:
            assert np.median(difference[mask]) > 12


def test_masks_are_single_pieces_that_do_not_touch(pairs: list[tuple[BorescopeSample, BorescopeSample]]) -> None:
    for shown, _ in pairs:
        grown = np.zeros(SIZE_HW, int)
        for word, mask in shown.instances:
            assert word in CLASSES
            assert cv2.connectedComponents(mask.astype(np.uint8))[0] == 2
            assert mask.sum() >= 40
            grown += cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
        assert grown.max() <= 1


def test_all_classes_occur_about_alike(pairs: list[tuple[BorescopeSample, BorescopeSample]]) -> None:
    words = [word for shown, _ in pairs for word, _ in shown.instances]
    assert {word for word in CLASSES if words.count(word) >= 3} == set(CLASSES)


def test_the_vignette_is_round_and_dark(pairs: list[tuple[BorescopeSample, BorescopeSample]]) -> None:
    for _, hidden in pairs[:10]:
        corners = np.concatenate([hidden.image[:10, :10].ravel(), hidden.image[-10:, -10:].ravel()])
        assert corners.mean() < 12
        assert hidden.image[46:86, 60:100].mean() > 45


def test_the_data_set_is_coco_with_groups_and_the_same_bytes_for_a_seed(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    size = (66, 80)
    path = write_dataset(tmp_path / "a", seed=1, num_labelled=6, num_defect_free=5, size_hw=size)
    write_dataset(tmp_path / "b", seed=1, num_labelled=6, num_defect_free=5, size_hw=size)
    write_dataset(tmp_path / "c", seed=2, num_labelled=6, num_defect_free=5, size_hw=size)
    assert digest_folder(tmp_path / "a") == digest_folder(tmp_path / "b") != digest_folder(tmp_path / "c")
    content = json.loads(path.read_text())
    assert [c["name"] for c in content["categories"]] == list(CLASSES)
    groups = [image["group"] for image in content["images"]]
    assert max(groups.count(g) for g in groups) == SHOTS_PER_SCENE
    coco = COCO(str(path))
    annotated = {a["image_id"] for a in coco.anns.values()}
    assert len(coco.imgs) == 11
    assert len(annotated) == 6
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation).astype(bool)
        assert mask.shape == size
        assert mask.sum() == annotation["area"]
        ys, xs = np.nonzero(mask)
        assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    for about in coco.imgs.values():
        assert load_rgb(tmp_path / "a" / "images" / about["file_name"]).shape == (*size, 3)


def test_run_lengths_of_a_mask_from_the_first_pixel_on(tmp_path: Path) -> None:
    from pycocotools import mask as mask_api

    from defectory.procedural.borescope import _coco

    mask = np.zeros((5, 7), bool)
    mask[0:2, 0:3] = True
    coded = _coco(1, 1, 1, mask)["segmentation"]
    assert np.array_equal(mask_api.decode(mask_api.frPyObjects(coded, 5, 7)).astype(bool), mask)
