"""Builds the report's table of rounds of drafts."""

from __future__ import annotations

from collections.abc import Collection

from defectory.artifacts.primary_metric import METRIC_NAMES
from defectory.artifacts.targets import Targets
from defectory.report.content import Table
from defectory.runs.store import RunStore

NONE = "none"


def rounds_tables(inputs: RunStore) -> list[Table]:
    """Build the table of what each round found and drew; no table without further rounds."""
    rounds = inputs.rounds
    if not rounds:
        return []
    jobs, accepted = inputs.plan.jobs, {d.job_id for d in inputs.decisions.decisions if d.status == "accepted"}
    first = len(jobs) - sum(of.num_drafts for of in rounds)
    ids = [job.id for job in jobs]
    rows = [["1", NONE, NONE, str(first), str(_num_in(ids[:first], accepted)), ""]]
    for of in rounds:
        own = ids[first : first + of.num_drafts]
        first += of.num_drafts
        cells = f"{of.num_missed_cells} of {len(of.cells)}" if of.cells else NONE
        rows.append([str(of.round), _scores(of), cells, str(len(own)), str(_num_in(own, accepted)), of.why])
    columns = [
        "round",
        f"validation {METRIC_NAMES[rounds[0].metric]}",
        "cells with missed defects",
        "drafts",
        "accepted",
        "ended because",
    ]
    return [
        Table(
            title="Rounds of drafts",
            columns=columns,
            rows=rows,
            note="A further round first trains on real images and the drafts so far, and scores validation. If that "
            "score is not above the best before, the rounds end, and what was drawn is kept. Otherwise segmenters "
            "judge train images that they have not seen. A cell is the smaller or larger half of a class, at one place "
            "on the part. Cells with missed defects get equal parts of the drafts.",
        )
    ]


def _scores(of: Targets) -> str:
    names = {"real": "without drafts", "mixed": "with drafts"}
    return ", ".join(f"{score.score:.3f} {names.get(score.arm, score.arm)}" for score in of.validation) or NONE


def _num_in(ids: Collection[str], accepted: Collection[str]) -> int:
    return sum(job_id in accepted for job_id in ids)
