from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.plan import Decisions, Job, Plan
from defectory.curation.config import CurationConfig
from defectory.curation.decide import FidelitySummary, Scored, decide, join_summaries, write_contact_sheet
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.rle import decode, encode

SIZE_HW = (64, 96)
CATEGORIES = (Category(id=1, name="crack"), Category(id=2, name="blowhole"))
CONFIG = CurationConfig()
Mask = NDArray[np.bool_]


def rectangle(x0: int, y0: int, x1: int, y1: int) -> Mask:
    mask = np.zeros(SIZE_HW, bool)
    mask[y0:y1, x0:x1] = True
    return mask


class Drafts:
    """Drafts on disk, each with its label and what was really drawn."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, list[Job]()

    def add(self, labels: list[tuple[int, Mask]], drawn: list[Mask], *, blank: bool = False) -> None:
        number = len(self.jobs)
        job = Job(
            id=f"{number:06d}",
            tile_id="p",
            augmentation_seed=None,
            mask_sources=(),
            prompt="",
            prompt_without="",
            seed=number,
            instances=tuple(Instance(category_id=c, rle=encode(m)) for c, m in labels),
        )
        without = np.random.default_rng(number).integers(100, 140, (*SIZE_HW, 3)).astype(np.uint8)
        image = np.full_like(without, 128) if blank else without.copy()
        for mask in drawn:
            image[mask] = 20
        save_png(self.pair(job)[0], image)
        save_png(self.pair(job)[1], without)
        self.jobs.append(job)

    def pair(self, job: Job) -> tuple[Path, Path]:
        return self.folder / f"{job.id}.png", self.folder / f"{job.id}-without.png"

    def decided(self, config: CurationConfig = CONFIG) -> tuple[Plan, Decisions, FidelitySummary]:
        plan = Plan(
            concept_digest="", control_digest="", driver_config_digest="", categories=CATEGORIES, jobs=tuple(self.jobs)
        )
        *scored, outcome = decide(plan, pair_of=self.pair, config=config)
        assert scored == [Scored(done=i + 1, total=len(self.jobs)) for i in range(len(self.jobs))]
        assert isinstance(outcome, tuple)
        return plan, *outcome


@pytest.fixture
def drafts(tmp_path: Path) -> Drafts:
    return Drafts(tmp_path / "drafts")


def test_drafts_are_accepted_or_rejected_with_a_reason(drafts: Drafts) -> None:
    label, other, elsewhere = rectangle(10, 10, 40, 40), rectangle(55, 30, 65, 40), rectangle(70, 45, 95, 63)
    drafts.add([(1, label)], [label])
    drafts.add([(1, label)], [])
    drafts.add([(1, label)], [elsewhere])
    drafts.add([(1, label), (2, other)], [label])
    drafts.add([(1, label)], [rectangle(10, 10, 16, 40)])
    plan, decisions, _ = drafts.decided()
    assert [d.job_id for d in decisions.decisions] == [j.id for j in plan.jobs]
    assert [d.status for d in decisions.decisions] == ["accepted", *["rejected"] * 4]
    reasons = [d.reason for d in decisions.decisions]
    assert reasons[0] == "fidelity at or above the threshold"
    assert reasons[1] == "fidelity 0.00 is below 0.35: the defect is not visible in all of its label"
    assert "100% of what was drawn lies outside the label" in reasons[2]
    assert reasons[3] == "one of 2 defects was not drawn (its fidelity 0.00)"
    assert reasons[4] == "fidelity 0.20 is below 0.35: the defect is not visible in all of its label"
    assert decisions.plan_digest == plan.digest()
    assert decisions.threshold == CONFIG.min_fidelity


def test_a_blank_image_is_rejected(drafts: Drafts) -> None:
    drafts.add([(1, rectangle(10, 10, 40, 40))], [], blank=True)
    _, decisions, _ = drafts.decided()
    assert decisions.decisions[0].reason == "blank image (standard deviation 0.0 grey levels)"


def test_open_limits_accept_all_and_score_all_the_same(drafts: Drafts) -> None:
    drafts.add([(1, rectangle(10, 10, 40, 40))], [])
    _, decisions, summary = drafts.decided(CurationConfig(checks=(), min_fidelity=0.0, max_stray_share=1e6))
    assert [(d.status, d.reason, d.fidelity.iou) for d in decisions.decisions] == [
        ("accepted", "fidelity at or above the threshold", 0.0)
    ]
    assert (summary.mean, summary.accepted_share) == (0.0, 1.0)


def spread(drafts: Drafts, count: int) -> None:
    """Drafts whose defects, each at a place of its own, are all drawn."""
    for index in range(count):
        x, y = 4 + 14 * (index % 6), 4 + 15 * (index // 6 % 4)
        mask = rectangle(x, y, x + 10, y + 11)
        drafts.add([(1 + index % 2, mask)], [mask])


def test_shuffled_labels_score_low_where_true_ones_score_high(drafts: Drafts) -> None:
    spread(drafts, 12)
    _, decisions, summary = drafts.decided()
    assert summary.mean > 0.95
    assert summary.shuffled < 0.05
    assert all(d.status == "accepted" for d in decisions.decisions)


def test_labels_are_shuffled_among_different_labels_even_where_drafts_share_a_driver(drafts: Drafts) -> None:
    first, second = rectangle(5, 5, 25, 25), rectangle(60, 30, 85, 55)
    for index in range(8):
        mask = (first, second)[index % 2]  # jobs 0, 2, 4, ... share a driver, and 4 is half way from 0
        drafts.add([(1, mask)], [mask])
    _, _, summary = drafts.decided()
    assert summary.mean > 0.95
    assert summary.shuffled < 0.05


def test_a_single_label_cannot_be_shuffled(drafts: Drafts) -> None:
    mask = rectangle(5, 5, 25, 25)
    for _ in range(3):
        drafts.add([(1, mask)], [mask])
    assert drafts.decided()[2].shuffled == 0.0


def test_a_collapsed_control_network_scores_as_its_shuffled_labels(drafts: Drafts) -> None:
    same = rectangle(40, 20, 60, 40)
    for index in range(6):
        x = 4 + 14 * index
        drafts.add([(1, rectangle(x, 5, x + 10, 25))], [same])
    _, _, summary = drafts.decided()
    assert summary.mean < 0.2
    assert abs(summary.mean - summary.shuffled) < 0.15


def test_the_summary_is_by_class_and_counts_thin_instances(drafts: Drafts) -> None:
    square, thin = rectangle(10, 10, 30, 30), rectangle(50, 40, 90, 43)
    drafts.add([(1, square), (2, thin)], [square, thin])
    drafts.add([(1, square)], [])
    _, _, summary = drafts.decided()
    assert summary.per_class == pytest.approx({"blowhole": 1.0, "crack": 0.5}, abs=0.05)
    assert summary.accepted_share_per_class == {"blowhole": 1.0, "crack": 0.5}
    assert (summary.num_drafts, summary.num_thin, summary.accepted_share) == (2, 1, 0.5)
    assert summary.thin_f1_2px == pytest.approx(1.0)


def test_the_contact_sheet_shows_both_in_their_colours(drafts: Drafts, tmp_path: Path) -> None:
    mask = rectangle(10, 10, 40, 40)
    drafts.add([(1, mask)], [mask])
    drafts.add([(1, mask)], [])
    plan, decisions, _ = drafts.decided()
    write_contact_sheet(plan, decisions, pair_of=drafts.pair, out=tmp_path / "sheet.png", per_row=4)
    sheet = load_rgb(tmp_path / "sheet.png").astype(int)

    def rows_with(red: Any, green: Any) -> Any:
        return np.nonzero((red(sheet[..., 0]) & green(sheet[..., 1]) & (sheet[..., 2] < 90)).any(axis=1))[0]

    accepted, rejected = rows_with(lambda r: r < 90, lambda g: g > 180), rows_with(lambda r: r > 220, lambda g: g < 80)
    assert len(accepted) > 0
    assert len(rejected) > 0
    assert accepted.max() < rejected.min(), "accepted drafts stand above rejected ones"


def test_a_defect_drawn_far_from_every_label_is_rejected(drafts: Drafts) -> None:
    label, stray = rectangle(10, 10, 40, 40), rectangle(60, 40, 80, 60)
    drafts.add([(1, label)], [label, stray])
    drafts.add([(1, label)], [label, rectangle(60, 40, 64, 44)])
    _, decisions, _ = drafts.decided()
    first, second = decisions.decisions
    assert first.cause == "drawn outside"
    assert "drawn away from the label of 900 px: an unlabelled defect" in first.reason
    assert (second.status, second.fidelity.stray_px > 0) == ("accepted", True)


def test_labels_follow_what_was_drawn_where_that_is_asked_for(drafts: Drafts) -> None:
    label, drawn = rectangle(10, 10, 40, 40), rectangle(11, 10, 38, 40)
    drafts.add([(1, label)], [drawn])
    _, plain, summary = drafts.decided()
    _, tight, _ = drafts.decided(CurationConfig(tighten_labels=True))
    assert plain.decisions[0].tightened is None
    found = tight.decisions[0].tightened
    assert found is not None
    assert (decode(found[0].rle) == drawn).mean() > 0.99
    assert summary.tightened_iou == pytest.approx((27 * 30) / (30 * 30), abs=0.02)


def test_of_each_class_the_truest_labels_are_kept(drafts: Drafts) -> None:
    for index in range(8):
        label = rectangle(10, 10, 40, 40)
        drafts.add([(1 + index % 2, label)], [rectangle(10, 10, 40, 40 - index)])
    plan, decisions, _ = drafts.decided(CurationConfig(keep_share=0.5))
    kept = [d.job_id for d in decisions.decisions if d.status == "accepted"]
    assert kept == [job.id for job in plan.jobs[:4]], "two of either class, the best drawn"
    assert {d.reason for d in decisions.decisions if d.status == "rejected"} == {
        "passes, but 2 others of its class have more accurate labels"
    }
    _, few, _ = drafts.decided(CurationConfig(keep_share=0.01))
    assert [d.job_id for d in few.decisions if d.status == "accepted"] == [job.id for job in plan.jobs[:2]], (
        "one of a class at least"
    )


def test_a_small_choice_of_what_passes_names_no_cause(drafts: Drafts) -> None:
    label = rectangle(10, 10, 40, 40)
    for number in range(12):
        drafts.add([(1, label)], [] if number == 0 else [label])
    _, _, summary = drafts.decided(CurationConfig(keep_share=0.1))
    assert summary.accepted_share == pytest.approx(1 / 12)
    assert summary.rejected_by == {"not chosen": 10, "not drawn": 1}
    assert summary.likely_cause is None


def test_a_run_that_is_mostly_rejected_names_the_likely_cause(drafts: Drafts) -> None:
    label = rectangle(10, 10, 40, 40)
    for _ in range(6):
        drafts.add([(1, label)], [])
    drafts.add([(1, label)], [label])
    _, _, summary = drafts.decided()
    assert summary.accepted_share == pytest.approx(1 / 7)
    assert summary.rejected_by == {"not drawn": 6}
    assert summary.likely_cause is not None
    assert "raise synthesis.mask_guidance" in summary.likely_cause


def test_the_summary_of_rounds_is_that_of_all_drafts(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path)
    crack, pit = rectangle(10, 10, 40, 20), rectangle(60, 30, 74, 44)
    for number in range(7):
        shown = [crack] if number % 3 else []
        drafts.add([(1, crack), (2, pit)] if number == 4 else [(1, crack)], [*shown, *([pit] if number == 4 else [])])
    plan, decisions, whole = drafts.decided()
    jobs, parts = drafts.jobs, list[FidelitySummary]()
    for own in (jobs[:3], jobs[3:]):
        drafts.jobs = own
        parts.append(drafts.decided()[2])
    joined = join_summaries(plan, decisions, parts)
    of_rounds = {"shuffled", "tightened_iou", "density", "coverage"}
    assert joined.model_dump(exclude=of_rounds) == whole.model_dump(exclude=of_rounds)
    low, high = sorted(of.shuffled for of in parts)
    assert low <= joined.shuffled <= high
