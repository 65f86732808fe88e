"""The sentences under "What to use"."""

from __future__ import annotations

from typing import Any

import pytest

from defectory.artifacts.segmenter_card import SegmenterCard
from defectory.config.command import CommandLine
from defectory.stages.parts.report_first import what_to_use

COMMAND = CommandLine(file="my part.toml")


def card(**changes: Any) -> SegmenterCard:
    values: dict[str, Any] = {
        "project": "part",
        "arm": "copy_paste",
        "seed": 2,
        "why": "It is the best arm without synthetic data.",
        "outcome": "do not use it",
        "verdict": "Do not use it.",
        "metric": "segm_map",
        "validation_score": 0.3,
        "score_threshold": 0.35,
        "is_threshold_chosen": True,
        "scores": {"segm_map": 0.3},
        "num_defects": 40,
        "num_found": 36,
        "num_good_images": 50,
        "num_false_alarms": 3,
        "classes": ("pit",),
        "family": "light",
        "scale": 1.0,
        "input_px": 256,
        "value_range": None,
        "num_train": 12,
        "train_share": 1.0,
        "trained_on": (),
        "digests": {},
        "initial_weights": "",
        "synthetic_licence": None,
        "version": "0",
    }
    return SegmenterCard.model_validate(values | changes)


def scores(*, outcome: str = "use it", segm: float = 0.05, iou: float = 0.01, **verdict: Any) -> dict[str, Any]:
    """Scores in which the candidate differs from the reference by so much."""
    arms = {
        "copy_paste": {"segm_map": 0.3, "iou_matched": 0.7},
        "mixed": {"segm_map": 0.3 + segm, "iou_matched": 0.7 + iou},
    }
    judged = {
        "outcome": outcome,
        "metric": "segm_map",
        "reference": "copy_paste",
        "candidate": "mixed",
        "gain": segm,
        "num_seeds": 3,
    }
    return {"arms": arms, "verdict": judged | verdict, "primary_metric": {"metric": "segm_map"}}


def test_the_first_sentence_says_what_the_segmenter_finds_and_where_it_is() -> None:
    first, command, about, *_ = what_to_use(card(), scores(), COMMAND)
    assert first == (
        "Use the segmenter `best_segmenter` in the run folder. On test images it found 36 of 40 defects, with false "
        "alarms on 3 of 50 good images."
    )
    assert command == "On new images: `defectory predict IMAGES --segmenter 'my part.toml'`"
    assert about.startswith("It is arm copy paste, seed 2. It is the best arm without synthetic data.")
    assert about.endswith("0.35, chosen on validation.")


def test_without_good_images_no_false_alarms_are_told() -> None:
    first, *_ = what_to_use(card(num_good_images=0, num_false_alarms=0), scores(), COMMAND)
    assert first.endswith("found 36 of 40 defects, no good image to test false alarms on.")


def test_a_segmenter_that_finds_nothing_is_not_recommended() -> None:
    first, *_ = what_to_use(card(scores={"segm_map": 0.001}), scores(), COMMAND)
    assert first.startswith("Do not use a segmenter of this run")
    assert "finds nothing" in first
    thin, *_ = what_to_use(card(scores={"segm_map": 0.001, "pixel_ap": 0.12}), scores(), COMMAND)
    assert thin.startswith("Use the segmenter")
    none, *_ = what_to_use(None, scores(), COMMAND)
    assert none == "There is no segmenter to use: none was trained."


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("use it", "above zero"),
        ("do not use it", "below zero"),
        ("no worse and no better", "too small to matter"),
        ("not enough evidence", "may be chance"),
    ],
)
def test_the_gain_has_its_interval_and_says_how_sure_it_is(outcome: str, words: str) -> None:
    told = what_to_use(card(), scores(outcome=outcome, interval=(0.01, 0.09)), COMMAND)[-1]
    assert "segm mAP by +0.050 over the best arm without (copy paste), 95% interval +0.010 to +0.090." in told
    assert words in told


def test_a_gain_without_interval_is_told_as_such_and_no_gain_not_at_all() -> None:
    told = what_to_use(card(), scores(outcome="not enough evidence", num_seeds=1, interval=None), COMMAND)[-1]
    assert told.endswith("How much of it is chance, 1 seed cannot tell.")
    lone = {"outcome": "not enough evidence", "metric": "segm_map", "reference": None, "candidate": None, "gain": None}
    assert len(what_to_use(card(), scores() | {"arms": {}, "verdict": lone}, COMMAND)) == 3


def test_iou_that_rises_while_map_falls_is_explained_and_nothing_else_is() -> None:
    def explained(*, segm: float, iou: float) -> bool:
        found = what_to_use(card(), scores(segm=segm, iou=iou, interval=None), COMMAND)
        return any("IoU rises" in sentence for sentence in found)

    assert explained(segm=-0.04, iou=0.03)
    assert not explained(segm=0.04, iou=0.03)
    assert not explained(segm=-0.04, iou=-0.03)
    assert not explained(segm=-0.001, iou=0.03)


def test_where_pixels_decide_the_gain_is_in_pixel_ap_and_says_why() -> None:
    why = "Defects are so thin that pixel AP decides."
    given = scores(metric="pixel_ap", interval=(0.01, 0.09)) | {"primary_metric": {"metric": "pixel_ap", "why": why}}
    *_, told, explained = what_to_use(card(metric="pixel_ap"), given, COMMAND)
    assert "changed pixel AP by +0.050" in told
    assert explained == why
