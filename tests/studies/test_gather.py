from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.config.project import ProjectConfig
from defectory.evaluation.match_tables import ClassMatches, MatchTable
from defectory.evaluation.statistics import scores_of_seeds
from defectory.evaluation.tables import ClassPixels, ScoreTable
from defectory.folders.claims import claim_folder
from defectory.stages.evaluate import PLANT_KEYS, SCORE_KEYS
from defectory.studies import gather as gathering
from defectory.studies.cells import Cell, cells_of
from defectory.studies.gather import gather
from defectory.studies.results import CellFacts, CellResult
from defectory.studies.writing import write_outcome

NUM_IMAGES = 40
ARMS = ("real", "mixed")


def table_of(share_found: float, rng: np.random.Generator) -> ScoreTable:
    """Images with one instance each, of which a share is found, and half as many wrong detections."""
    found = rng.random(NUM_IMAGES) < share_found
    wrong = rng.random(NUM_IMAGES) < share_found / 2
    image = np.concatenate([np.flatnonzero(found), np.flatnonzero(wrong)])
    scores = rng.random(len(image))
    order = np.argsort(-scores)
    is_right = (np.arange(len(image)) < found.sum())[order]
    return ScoreTable(
        image_ids=np.arange(NUM_IMAGES),
        matches=MatchTable(
            num_images=NUM_IMAGES,
            classes={
                1: ClassMatches(
                    scores=scores[order],
                    image=image[order],
                    right=np.tile(is_right, (10, 1)),
                    ignored=np.zeros((10, len(image)), bool),
                    num_true=np.ones(NUM_IMAGES, np.int64),
                )
            },
        ),
        pixels={
            1: ClassPixels(
                scores=scores[order],
                image=image[order],
                right_px=np.where(is_right, 9, 0),
                wrong_px=np.where(is_right, 1, 8),
                num_true_px=np.full(NUM_IMAGES, 10),
                num_px=np.full(NUM_IMAGES, 100),
            )
        },
        num_defects=np.ones(NUM_IMAGES, np.int64),
        num_missed=(~found).astype(np.int64),
        is_good=np.zeros(NUM_IMAGES, bool),
        is_alarmed=found | wrong,
    )


def result_of(
    cell: Cell, shares: Mapping[str, float], *, skipped: tuple[str, ...] = (), metric: str = "segm_map"
) -> CellResult:
    rng = np.random.default_rng([cell.seed, cell.fold or 0, len(cell.variant.name), len(cell.amount.label)])
    tables = {arm: table_of(shares[arm], rng) for arm in cell.arms if arm not in skipped}
    of_arm: dict[str, Any] = {
        **dict.fromkeys(SCORE_KEYS, 0.5),
        "plant": dict.fromkeys(PLANT_KEYS, None),
        "exposures": {"real": {"shown": 100, "images": 10}},
        "per_seed": [cell.name],
    }
    return CellResult(
        facts=CellFacts(
            name=cell.name,
            arms=tuple(tables),
            skipped=dict.fromkeys(skipped, "curation accepted no draft"),
            num_labelled=12,
            groups=tuple(str(i) for i in range(NUM_IMAGES)),
            seconds=3600.0,
        ),
        scores={
            "arms": {arm: {**of_arm, "validation": [shares[arm]]} for arm in tables},
            "primary_metric": {"metric": metric, "why": "" if metric == "segm_map" else "Defects are thin."},
            "fidelity": {"mean": 0.8, "accepted_share": 0.9},
            "image_sets": None,
            "diversity": None,
            "others": {},
        },
        tables=tables,
        transfer={},
    )


def study(
    shares: Mapping[str, float],
    *,
    done: float = 1.0,
    skipped: tuple[str, ...] = (),
    metrics: Sequence[str] = ("segm_map",),
    **settings: Any,
) -> Any:
    """The outcome of a study whose arms find these shares of the instances, with a share of its cells finished."""
    config = ProjectConfig.model_validate({"data": {"path": "x"}, "study": {"arms": ARMS, **settings}})
    cells = cells_of(config)
    found = {
        cell: result_of(cell, shares, skipped=skipped, metric=metrics[i % len(metrics)])
        for i, cell in enumerate(cells[: round(done * len(cells))])
    }
    return gather(cells, found, project="p", recipe="ladder", summary="all of it", seeds=config.study.seeds)


def test_a_clear_gain_is_found_and_told() -> None:
    outcome = study({"real": 0.3, "mixed": 0.7}, seeds=[0, 1, 2, 3, 4])
    (point,) = outcome.points
    assert point.verdict is not None
    assert point.verdict.outcome == "use it"
    assert point.verdict.candidate == "mixed"
    gains = {gain.score: gain for gain in point.gains}
    assert gains["segm_map"].interval is not None
    assert gains["segm_map"].interval[0] > 0
    assert gains["missed_defect_rate"].mean == pytest.approx(-0.4, abs=0.12)
    assert outcome.hours == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("score", "ends_at"), [("segm_map", (0, 1)), ("false_alarms_per_100_good_images", (0, None)), ("kid", (None, None))]
)
def test_an_interval_ends_at_what_its_score_can_be(score: str, ends_at: tuple[float | None, float | None]) -> None:
    folds = [scores_of_seeds({"real": [0.05, 0.6, 0.95]})]
    found = gathering._study_score(folds, "real", score).interval  # pyright: ignore[reportPrivateUsage]
    assert found is not None
    # three seeds that differ so much have an interval from -.6 to 1.7
    assert found == tuple(
        pytest.approx(wide if end is None else end, abs=0.05) for wide, end in zip((-0.6, 1.67), ends_at, strict=True)
    )


def test_a_clear_loss_is_not_recommended() -> None:
    (point,) = study({"real": 0.7, "mixed": 0.3}, seeds=[0, 1, 2, 3, 4]).points
    assert point.verdict is not None
    assert point.verdict.outcome == "do not use it"


def test_seeds_count_once_all_their_cells_are_finished() -> None:
    outcome = study({"real": 0.3, "mixed": 0.5}, done=0.6, seeds=[0, 1, 2], folds=2)
    (point,) = outcome.points
    assert (point.num_finished, point.num_cells) == (4, 6)
    assert len(point.series[0].scores["segm_map"].per_seed) == 2
    assert point.series[0].scores["segm_map"].interval is None


def test_a_point_without_a_finished_seed_has_no_verdict() -> None:
    (point,) = study({"real": 0.3, "mixed": 0.5}, done=0.0).points
    assert point.verdict is None
    assert point.series == ()


def test_an_arm_that_some_cells_lack_is_left_out_and_told() -> None:
    outcome = study({"real": 0.3, "mixed": 0.5}, skipped=("mixed",))
    assert [series.name for series in outcome.points[0].series] == ["real"]
    assert outcome.remarks == ("all: mixed left out, 3 of 3 cells have none: curation accepted no draft",)


def test_seeds_whose_drafts_are_drawn_in_unlike_ways_are_told() -> None:
    config = ProjectConfig.model_validate({"data": {"path": "x"}, "study": {"arms": ARMS, "seeds": [3, 5]}})
    cells = cells_of(config)
    plain = {cell: result_of(cell, {"real": 0.3, "mixed": 0.5}) for cell in cells}

    def drawn(*ways: str) -> Any:
        found = {
            cell: replace(of, facts=of.facts.model_copy(update={"drawn_as": way}))
            for (cell, of), way in zip(plain.items(), ways, strict=True)
        }
        return gather(cells, found, project="p", recipe="ladder", summary="s", seeds=(3, 5)).remarks

    assert drawn("whole", "whole") == drawn("", "") == ()
    (remark,) = drawn("whole", "part")
    assert "whole (seed 3); part (seed 5)" in remark
    assert "tiling.mode" in remark


def test_variants_are_series_of_their_own_and_compared_with_the_first() -> None:
    outcome = study({"real": 0.3, "mixed": 0.5}, variants=["weak: synthesis.controlnet_conditioning_scale=0.5"])
    (point,) = outcome.points
    assert {series.name for series in point.series} == {"real", "mixed", "real, weak", "mixed, weak"}
    assert ("mixed, weak", "mixed") in {(gain.series, gain.reference) for gain in point.gains}


def test_each_rung_of_a_ladder_is_compared_with_the_rung_below() -> None:
    shares = {"real_plain": 0.2, "real": 0.3, "copy_paste": 0.5, "mixed": 0.4}
    (point,) = study(shares, arms=list(shares), seeds=[0, 1, 2]).points
    pairs = {(gain.series, gain.reference) for gain in point.gains}
    assert {("real", "real_plain"), ("copy_paste", "real"), ("mixed", "copy_paste")} <= pairs
    assert len(point.gains) == len(pairs) * len({gain.score for gain in point.gains}), "no pair twice"


def test_files_hold_every_figure_and_the_page_is_whole(tmp_path: Path) -> None:
    outcome = study({"real": 0.3, "mixed": 0.7}, recipe="scarcity", num_labelled=[8], seeds=[0, 1, 2])
    claim_folder(tmp_path, kind="study")
    write_outcome(outcome, tmp_path, name="scarcity")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "scarcity.csv").read_text())))
    means = {(row["point"], row["arm"], row["score"]): float(row["mean"]) for row in rows}
    for point in outcome.points:
        for series in point.series:
            for name, score in series.scores.items():
                assert means[point.label, series.arm, name] == pytest.approx(score.mean, rel=1e-5)
    page = (tmp_path / "scarcity.html").read_text()
    assert page.count("<svg") == page.count("</svg>") == 3 + 2
    assert not (tmp_path / "scarcity-false_alarms_per_100_good_images.svg").exists(), "no test image is good"
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (tmp_path / "scarcity-segm_map.svg").read_text().startswith("<svg xmlns=")


def test_where_pixels_decide_in_every_cell_the_verdict_and_the_charts_are_in_pixel_ap(tmp_path: Path) -> None:
    outcome = study({"real": 0.3, "mixed": 0.7}, seeds=[0, 1, 2], metrics=["pixel_ap"])
    (point,) = outcome.points
    assert point.verdict is not None
    assert (point.verdict.metric, "pixel AP" in point.verdict.sentence) == ("pixel_ap", True)
    gains = {gain.score: gain for gain in point.gains}
    assert point.verdict.gain == pytest.approx(gains["pixel_ap"].mean, abs=0.02)
    assert outcome.remarks == (f"{point.label}: Defects are thin.",)
    claim_folder(tmp_path, kind="study")
    write_outcome(outcome, tmp_path, name="ladder")
    page = (tmp_path / "ladder.html").read_text()
    assert "Pixel AP on test" in page
    assert "p (pixel AP)" in page


def test_cells_that_were_trained_by_different_scores_are_told() -> None:
    outcome = study({"real": 0.3, "mixed": 0.7}, seeds=[0, 1, 2], metrics=["pixel_ap", "segm_map"])
    assert outcome.points[0].verdict.metric == "segm_map"
    assert "different scores (pixel AP, segm mAP)" in outcome.remarks[0]
