"""Accept or reject each draft, with scores and a reason, and write the decisions as a contact sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from defectory.artifacts.annotation import Instance
from defectory.artifacts.plan import Cause, Check, Decision, Decisions, Fidelity, Job, Plan
from defectory.artifacts.value import Value
from defectory.curation.checks import Checker, Draft, reason_of
from defectory.curation.config import CurationConfig
from defectory.curation.fidelity import compare, drawn_map, iou, score_map
from defectory.curation.tighten import tighten
from defectory.drawing import contact_sheet, draw_outlines
from defectory.engine.features.neighbourhoods import density_and_coverage
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.rle import area_px, decode, encode

MIN_STD = 2.0
"""A draft with a lower standard deviation of grey levels is blank."""
CHUNK = 32
"""Number of drafts processed together."""
LOW_ACCEPTANCE = 0.2
"""Below this share of accepted drafts, the summary names the likely cause."""
Image = NDArray[np.uint8]
PairOf = Callable[[Job], tuple[Path, Path]]

CAUSES: dict[Cause, str] = {
    "blank": "synthetic quality too poor: blank images; train both phases longer",
    "not drawn": "control collapse or defects too weak: train phase 2 longer, or raise synthesis.mask_guidance",
    "drawn outside": "control collapse: drawn beside the masks; train phase 2 longer, or raise "
    "condition.defect_free_share",
    "exposure": "synthetic quality too poor: tones differ from the real ones; train phase 1 longer",
    "blur": "synthetic quality too poor: blurred images; train longer, or raise synthesis.num_inference_steps",
    "clipping": "synthetic quality too poor: black or white patches; lower the guidance scales of synthesis",
    "anomaly": "defects without a mask: raise condition.defect_free_share",
    "realism": "synthetic quality too poor: unlike every real tile; train both phases longer",
    "novelty": "memorisation: shorten phase 1, raise concept.prior_loss_weight, or add training images",
    "agreement": "control collapse or defects too weak: segmenters do not detect them; train phase 2 longer",
    "duplicate": "too few drivers: raise synthesis.augmentations_per_image, or add defect-free images",
}
"""What to do about the most frequent cause of rejection."""


class FidelitySummary(Value):
    """Fidelity over all drafts before curation, and the results of curation."""

    mean: float
    per_class: dict[str, float]
    """Mean IoU per instance."""
    shuffled: float
    """Mean fidelity with labels shuffled among drafts: the level of chance."""
    thin_f1_2px: float | None
    num_thin: int
    num_drafts: int
    accepted_share: float
    accepted_share_per_class: dict[str, float]
    accepted_share_per_source: dict[str, float] = Field(default_factory=dict)
    """Share of accepted drafts by mask source."""
    num_pool_tiles: int = 0
    """Number of pool tiles that drafts were drawn on."""
    num_pool_tiles_without: int = 0
    """Number of pool tiles for which no draft was accepted."""
    rejected_by: dict[str, int] = Field(default_factory=dict)
    """Number of rejected drafts by cause."""
    failed_checks: dict[str, int] = Field(default_factory=dict)
    """Number of drafts that fail each check, whatever else they fail."""
    density: float | None = None
    coverage: float | None = None
    """Coverage of real tiles by the accepted drafts (Naeem et al. 2020)."""
    tightened_iou: float | None = None
    """Mean IoU of labels with their tightened versions."""
    likely_cause: str | None = None
    """Likely cause of most rejections, if few drafts were accepted."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Progress event: `done` of `total` drafts are scored."""

    done: int
    total: int


def decide(
    plan: Plan,
    *,
    pair_of: PairOf,
    config: CurationConfig,
    checker: Checker | None = None,
    valid_hw_of: Callable[[Job], tuple[int, int]] | None = None,
) -> Iterator[Scored | tuple[Decisions, FidelitySummary]]:
    """Score every draft and decide; the last value yielded is the decisions and their summary.

    Args:
        plan: jobs and their labels.
        pair_of: returns the files of a draft and of its half without a mask.
        config: thresholds.
        checker: compares drafts with real tiles; None decides by fidelity alone.
        valid_hw_of: returns the size of the image part of a job's tile; None uses the whole tile.
    """
    decisions: list[Decision] = []
    shuffled: list[float] = []
    agreements: list[float] = []
    for start in range(0, len(plan.jobs), CHUNK):
        jobs = plan.jobs[start : start + CHUNK]
        pairs = [(load_rgb(image), load_rgb(without)) for image, without in map(pair_of, jobs)]
        checks: list[tuple[Check, ...]] = [()] * len(jobs)
        if checker is not None:
            sizes = [
                (image.shape[0], image.shape[1]) if valid_hw_of is None else valid_hw_of(j)
                for j, (image, _) in zip(jobs, pairs, strict=True)
            ]
            labels = [tuple((i.category_id, decode(i.rle)) for i in job.instances) for job in jobs]
            checks = checker.check(
                [
                    Draft(image=i, without=w, valid_hw=hw, instances=of)
                    for (i, w), hw, of in zip(pairs, sizes, labels, strict=True)
                ]
            )
        for number, (job, (image, without)) in enumerate(zip(jobs, pairs, strict=True), start=start):
            masks = [decode(instance.rle) for instance in job.instances]
            halves = compare(image, without, np.any(masks, axis=0))
            drawn, strays = halves.drawn(config.difference_threshold), halves.strays(config.difference_threshold)
            tight = tighten(drawn, masks)
            agreements += [iou(mask, label) for mask, label in zip(tight, masks, strict=True)]
            decision = _decision(job, image, score_map(drawn, masks, strays=strays), checks[number - start], config)
            if config.tighten_labels:
                found = tuple(
                    Instance(category_id=i.category_id, rle=encode(mask))
                    for i, mask in zip(job.instances, tight, strict=True)
                )
                decision = decision.model_copy(update={"tightened": found})
            decisions.append(decision)
            stranger = _job_with_other_label(plan, number)
            if stranger is not None:
                other = np.any([decode(i.rle) for i in stranger.instances], axis=0)
                shuffled.append(
                    iou(drawn_map(image, without, other, difference_threshold=config.difference_threshold), other)
                )
            yield Scored(done=number + 1, total=len(plan.jobs))
    if config.keep_share is not None:
        decisions = _with_best_labels(plan, decisions, config.keep_share)
    outcome = Decisions(plan_digest=plan.digest(), threshold=config.min_fidelity, decisions=tuple(decisions))
    yield outcome, _summary(plan, outcome, shuffled, agreements, checker)


def _with_best_labels(plan: Plan, decisions: Sequence[Decision], share: float) -> list[Decision]:
    """Reject accepted drafts beyond a share of each class's drafts; keep those with the most accurate labels.

    A draft with several classes counts for the rarest of them.
    """
    counts = Counter(i.category_id for job in plan.jobs for i in job.instances)
    by_class: dict[int, list[int]] = {}
    for number, job in enumerate(plan.jobs):
        by_class.setdefault(min({i.category_id for i in job.instances}, key=lambda c: counts[c]), []).append(number)
    result = list(decisions)
    for numbers in by_class.values():
        accepted = sorted(
            (n for n in numbers if decisions[n].status == "accepted"), key=lambda n: -_label_quality(decisions[n])
        )
        count = max(1, round(share * len(numbers)))
        spare = {
            "status": "rejected",
            "cause": "not chosen",
            "reason": f"passes, but {count} others of its class have more accurate labels",
        }
        for number in accepted[count:]:
            result[number] = decisions[number].model_copy(update=spare)
    return result


def _label_quality(decision: Decision) -> float:
    agreement = next((1.0 - check.value for check in decision.checks if check.name == "agreement"), 1.0)
    return decision.fidelity.iou * agreement


def _job_with_other_label(plan: Plan, index: int) -> Job | None:
    """Return a job with a different label, far from the one at `index`; drafts of one driver share their label."""
    count = len(plan.jobs)
    for step in range(count):
        job = plan.jobs[(index + count // 2 + step) % count]
        if job.instances != plan.jobs[index].instances:
            return job
    return None


def _decision(
    job: Job, image: Image, fidelity: Fidelity, checks: tuple[Check, ...], config: CurationConfig
) -> Decision:
    cause, reason = _judge(job, image, fidelity, checks, config)
    return Decision(
        job_id=job.id,
        status="accepted" if cause is None else "rejected",
        reason=reason,
        cause=cause,
        fidelity=fidelity,
        checks=checks,
    )


def _judge(
    job: Job, image: Image, fidelity: Fidelity, checks: tuple[Check, ...], config: CurationConfig
) -> tuple[Cause | None, str]:
    """Return the first cause to reject a draft, or None, and the reason."""
    if image.std() < MIN_STD:
        return "blank", f"blank image (standard deviation {image.std():.1f} grey levels)"
    if fidelity.iou < config.min_fidelity:
        told = f"fidelity {fidelity.iou:.2f} is below {config.min_fidelity:.2f}"
        if fidelity.outside_fraction > 0.5:
            return "drawn outside", f"{told}: {fidelity.outside_fraction:.0%} of what was drawn lies outside the label"
        return "not drawn", f"{told}: the defect is not visible in all of its label"
    labelled = sum(area_px(instance.rle) for instance in job.instances)
    if fidelity.stray_px > config.max_stray_share * labelled:
        return (
            "drawn outside",
            f"{fidelity.stray_px} px drawn away from the label of {labelled} px: an unlabelled defect",
        )
    if min(fidelity.per_instance_iou) < config.min_fidelity / 3:
        return (
            "not drawn",
            f"one of {len(job.instances)} defects was not drawn (its fidelity {min(fidelity.per_instance_iou):.2f})",
        )
    for check in checks:
        if not check.passed:
            return check.name, reason_of(check)
    return None, "fidelity at or above the threshold" + (", every check passed" if checks else "")


def _summary(
    plan: Plan, outcome: Decisions, shuffled: list[float], agreements: list[float], checker: Checker | None
) -> FidelitySummary:
    names = {category.id: category.name for category in plan.categories}
    per_class: dict[str, list[float]] = {}
    accepted: dict[str, list[bool]] = {}
    by_source: dict[str, list[bool]] = {}
    by_tile: dict[str, list[bool]] = {}
    thin: list[float] = []
    for job, decision in zip(plan.jobs, outcome.decisions, strict=True):
        passed = decision.status == "accepted"
        for instance, value in zip(job.instances, decision.fidelity.per_instance_iou, strict=True):
            per_class.setdefault(names[instance.category_id], []).append(value)
            accepted.setdefault(names[instance.category_id], []).append(passed)
        for source in job.mask_sources:
            by_source.setdefault(source.kind, []).append(passed)
        by_tile.setdefault(job.tile_id, []).append(passed)
        thin += [value for value in decision.fidelity.f1_2px if value is not None]
    causes: Counter[Cause] = Counter(d.cause for d in outcome.decisions if d.cause is not None)
    share = float(np.mean([d.status == "accepted" for d in outcome.decisions]))
    density: float | None = None
    coverage: float | None = None
    chosen = [n for n, d in enumerate(outcome.decisions) if d.status == "accepted"]
    if checker is not None and checker.realism is not None and chosen:
        of = checker.realism
        density, coverage = density_and_coverage((checker.features[chosen] - of.mean) / of.scale, of.features)
    # drafts left out by choice are not failures
    faults: Counter[Cause] = Counter({cause: count for cause, count in causes.items() if cause != "not chosen"})
    passed = len(outcome.decisions) - sum(faults.values())
    return FidelitySummary(
        mean=float(np.mean([d.fidelity.iou for d in outcome.decisions])),
        per_class=_means(per_class),
        shuffled=float(np.mean(shuffled)) if shuffled else 0.0,
        thin_f1_2px=float(np.mean(thin)) if thin else None,
        num_thin=len(thin),
        num_drafts=len(outcome.decisions),
        accepted_share=share,
        accepted_share_per_class=_means(accepted),
        accepted_share_per_source=_means(by_source),
        num_pool_tiles=len(by_tile),
        num_pool_tiles_without=sum(not any(of) for of in by_tile.values()),
        rejected_by=dict(causes.most_common()),
        failed_checks=dict(Counter(c.name for d in outcome.decisions for c in d.checks if not c.passed).most_common()),
        density=density,
        coverage=coverage,
        tightened_iou=float(np.mean(agreements)) if agreements else None,
        likely_cause=CAUSES[faults.most_common(1)[0][0]]
        if faults and passed < LOW_ACCEPTANCE * len(outcome.decisions)
        else None,
    )


def join_summaries(plan: Plan, decisions: Decisions, summaries: Sequence[FidelitySummary]) -> FidelitySummary:
    """Return the summary of several rounds of drafts.

    What decisions do not tell is the mean of the rounds. Coverage is the highest of them, since all drafts together
    cover at least as much.

    Args:
        plan: of all rounds.
        decisions: on their drafts, in plan order.
        summaries: of the rounds.
    """

    def mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
        known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
        total = sum(weight for _, weight in known)
        return sum(value * weight for value, weight in known) / total if total else None

    counts = [of.num_drafts for of in summaries]
    accepted = [of.num_drafts * of.accepted_share for of in summaries]
    coverage = [of.coverage for of in summaries if of.coverage is not None]
    return _summary(plan, decisions, [], [], None).model_copy(
        update={
            "shuffled": mean([of.shuffled for of in summaries], counts) or 0.0,
            "tightened_iou": mean([of.tightened_iou for of in summaries], counts),
            "density": mean([of.density for of in summaries], accepted),
            "coverage": max(coverage, default=None),
        }
    )


def _means(values: dict[str, list[float]] | dict[str, list[bool]]) -> dict[str, float]:
    return {name: float(np.mean(of)) for name, of in sorted(values.items())}


def write_contact_sheet(
    plan: Plan, decisions: Decisions, *, pair_of: PairOf, out: Path, per_row: int = 10, rows: int = 2
) -> None:
    """Write a PNG of accepted drafts above rejected ones, with labels outlined (green accepted, red rejected)."""
    cells: list[Image] = []
    labels: list[str] = []
    for status, colour in (("accepted", (40, 220, 60)), ("rejected", (255, 40, 40))):
        chosen = [(j, d) for j, d in zip(plan.jobs, decisions.decisions, strict=True) if d.status == status][
            : per_row * rows
        ]
        for job, decision in chosen:
            image = load_rgb(pair_of(job)[0])
            cells.append(draw_outlines(image, [(colour, decode(i.rle)) for i in job.instances]))
            labels.append(f"{status} {decision.fidelity.iou:.2f} #{job.id}")
        missing = -len(chosen) % per_row
        cells += [np.full((8, 8, 3), 255, np.uint8)] * missing
        labels += [""] * missing
    save_png(out, contact_sheet(cells, columns=per_row, labels=labels, cell_px=128))
