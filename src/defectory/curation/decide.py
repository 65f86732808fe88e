"""Accept or reject each draft, with scores and a reason, and show both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.plan import Decision, Decisions, Fidelity, Job, Plan
from defectory.artifacts.value import Value
from defectory.curation.config import CurationConfig
from defectory.curation.fidelity import drawn_map, iou, score_map
from defectory.drawing import contact_sheet, draw_outlines
from defectory.imageio import load_rgb, save_png
from defectory.rle import decode

MIN_STD = 2.0
"""A draft flatter than this (grey levels) is blank."""
Image = NDArray[np.uint8]
PairOf = Callable[[Job], tuple[Path, Path]]


class FidelitySummary(Value):
    """Fidelity over all drafts, before curation."""

    mean: float
    per_class: dict[str, float]
    """Mean per-instance IoU."""
    shuffled: float
    """Mean with labels shuffled among drafts: what chance gives."""
    thin_f1_2px: float | None
    num_thin: int
    num_drafts: int
    accepted_share: float
    accepted_share_per_class: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One draft was scored: `done` of `total`."""

    done: int
    total: int


def decide(plan: Plan, *, pair_of: PairOf, config: CurationConfig) -> Iterator[Scored | tuple[Decisions, FidelitySummary]]:
    """Score every draft and decide; the last value yielded is the outcome and its summary.

    Args:
        plan: jobs and their labels.
        pair_of: files of a draft and of its half without mask.
        config: thresholds.
    """
    decisions: list[Decision] = []
    shuffled: list[float] = []
    for number, job in enumerate(plan.jobs, start=1):
        image, without = (load_rgb(path) for path in pair_of(job))
        masks = [decode(instance.rle) for instance in job.instances]
        drawn = drawn_map(image, without, np.any(masks, axis=0), difference_threshold=config.difference_threshold)
        decisions.append(_decision(job, image, score_map(drawn, masks), config))
        stranger = _stranger(plan, number - 1)
        if stranger is not None:
            other = np.any([decode(i.rle) for i in stranger.instances], axis=0)
            shuffled.append(iou(drawn_map(image, without, other, difference_threshold=config.difference_threshold), other))
        yield Scored(done=number, total=len(plan.jobs))
    outcome = Decisions(plan_digest=plan.digest(), threshold=config.min_fidelity, decisions=tuple(decisions))
    yield outcome, _summary(plan, outcome, shuffled)


def _stranger(plan: Plan, index: int) -> Job | None:
    """Give a job far from the one at `index` whose label is another: drafts of one driver share theirs."""
    count = len(plan.jobs)
    for step in range(count):
        job = plan.jobs[(index + count // 2 + step) % count]
        if job.instances != plan.jobs[index].instances:
            return job
    return None


def _decision(job: Job, image: Image, fidelity: Fidelity, config: CurationConfig) -> Decision:
    reason = "fidelity at or above the threshold"
    accepted = True
    if config.enabled:
        if image.std() < MIN_STD:
            accepted, reason = False, f"blank image (standard deviation {image.std():.1f} grey levels)"
        elif fidelity.iou < config.min_fidelity:
            accepted = False
            if fidelity.outside_fraction > 0.5:
                reason = f"fidelity {fidelity.iou:.2f} under {config.min_fidelity:.2f}: {fidelity.outside_fraction:.0%} of what was drawn lies outside the label"
            else:
                reason = f"fidelity {fidelity.iou:.2f} under {config.min_fidelity:.2f}: the defect is not visible in all of its label"
        elif min(fidelity.per_instance_iou) < config.min_fidelity / 3:
            accepted, reason = (
                False,
                f"one of {len(job.instances)} defects was not drawn (its fidelity {min(fidelity.per_instance_iou):.2f})",
            )
    else:
        reason = "curation is off"
    return Decision(job_id=job.id, status="accepted" if accepted else "rejected", reason=reason, fidelity=fidelity)


def _summary(plan: Plan, outcome: Decisions, shuffled: list[float]) -> FidelitySummary:
    names = {category.id: category.name for category in plan.categories}
    per_class: dict[str, list[float]] = {}
    accepted: dict[str, list[bool]] = {}
    thin: list[float] = []
    for job, decision in zip(plan.jobs, outcome.decisions, strict=True):
        for instance, value in zip(job.instances, decision.fidelity.per_instance_iou, strict=True):
            per_class.setdefault(names[instance.category_id], []).append(value)
            accepted.setdefault(names[instance.category_id], []).append(decision.status == "accepted")
        thin += [value for value in decision.fidelity.f1_2px if value is not None]
    return FidelitySummary(
        mean=float(np.mean([d.fidelity.iou for d in outcome.decisions])),
        per_class={name: float(np.mean(values)) for name, values in sorted(per_class.items())},
        shuffled=float(np.mean(shuffled)) if shuffled else 0.0,
        thin_f1_2px=float(np.mean(thin)) if thin else None,
        num_thin=len(thin),
        num_drafts=len(outcome.decisions),
        accepted_share=float(np.mean([d.status == "accepted" for d in outcome.decisions])),
        accepted_share_per_class={name: float(np.mean(values)) for name, values in sorted(accepted.items())},
    )


def write_contact_sheet(plan: Plan, decisions: Decisions, *, pair_of: PairOf, out: Path, per_row: int = 10, rows: int = 2) -> None:
    """Write a PNG of accepted drafts above rejected ones, labels outlined (green accepted, red rejected)."""
    cells: list[Image] = []
    labels: list[str] = []
    for status, colour in (("accepted", (40, 220, 60)), ("rejected", (255, 40, 40))):
        chosen = [(j, d) for j, d in zip(plan.jobs, decisions.decisions, strict=True) if d.status == status][: per_row * rows]
        for job, decision in chosen:
            image = load_rgb(pair_of(job)[0])
            cells.append(draw_outlines(image, [(colour, decode(i.rle)) for i in job.instances]))
            labels.append(f"{status} {decision.fidelity.iou:.2f} #{job.id}")
        missing = -len(chosen) % per_row
        cells += [np.full((8, 8, 3), 255, np.uint8)] * missing
        labels += [""] * missing
    save_png(out, contact_sheet(cells, columns=per_row, labels=labels, cell_px=128))
