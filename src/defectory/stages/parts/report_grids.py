"""Pictures of the report: real tiles, drafts, and what curation decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.plan import Decision, Job
from defectory.artifacts.tiles import Tile, spread
from defectory.curation.fidelity import drawn_map, iou
from defectory.curation.tighten import tighten
from defectory.drawing import draw_outlines
from defectory.drivers.palette import palette
from defectory.report.content import Cell, Grid
from defectory.runs.store import RunStore
from defectory.runs.stored import DraftFolder

NUM_CELLS = 8
TIGHT_COLOUR = (80, 160, 255)
OUTLINE_COLOURS = {"accepted": (40, 220, 60), "rejected": (255, 60, 60)}


def _colour(row: NDArray[np.uint8]) -> tuple[int, int, int]:
    return int(row[0]), int(row[1]), int(row[2])


def main_grid(inputs: RunStore) -> Grid:
    """Return real tiles, drivers, drafts and their counterfactual halves."""
    tileset, plan, drafts = inputs.tiles.tileset, inputs.plan, inputs.drafts
    colours = palette(len(tileset.categories))
    names = {c.id: c.name for c in tileset.categories}

    def outlined(image: NDArray[np.uint8], instances: Any) -> NDArray[np.uint8]:
        return draw_outlines(image, [(_colour(colours[number - 1]), mask) for number, mask in masks_of(instances)])

    def real(tile: Tile) -> Cell:
        image = inputs.tiles.image(tile)
        return Cell(
            image=outlined(image, tile.instances),
            caption=", ".join(dict.fromkeys(names[i.category_id] for i in tile.instances)),
        )

    accepted = {d.job_id for d in inputs.decisions.decisions if d.status == "accepted"}
    jobs = spread([job for job in plan.jobs if job.id in accepted] or plan.jobs, NUM_CELLS)

    def cells(image_of: Callable[[Job], NDArray[np.uint8]]) -> list[Cell]:
        return [Cell(image=image_of(job), caption=f"#{job.id}") for job in jobs]

    rows = [
        (
            "real, labels outlined",
            [real(tile) for tile in spread([t for t in tileset.of("train") if t.instances], NUM_CELLS)],
        ),
        ("driver", cells(drafts.driver)),
        ("synthetic", cells(drafts.image)),
        ("synthetic, labels outlined", cells(lambda job: outlined(drafts.image(job), job.instances))),
        ("same noise, no mask", cells(drafts.without)),
    ]
    legend = ", ".join(c.name for c in tileset.categories)
    return Grid(
        title="Real, driver, synthetic",
        rows=rows,
        note=f"Classes in the order of their colours: {legend}. Columns from the second row down belong together.",
    )


def decision_grid(inputs: RunStore, *, difference_threshold: float) -> Grid:
    """Return accepted and rejected drafts with their reasons, and tightened labels."""
    rows: list[tuple[str, list[Cell]]] = []
    jobs = {job.id: job for job in inputs.plan.jobs}
    for status, colour in OUTLINE_COLOURS.items():
        chosen: list[Decision] = spread([d for d in inputs.decisions.decisions if d.status == status], NUM_CELLS)
        cells: list[Cell] = []
        for decision in chosen:
            image = inputs.drafts.image(jobs[decision.job_id])
            shown = draw_outlines(image, [(colour, mask) for _, mask in masks_of(jobs[decision.job_id].instances)])
            told = decision.reason if decision.status == "rejected" else f"fidelity {decision.fidelity.iou:.2f}"
            cells.append(Cell(image=shown, caption=f"#{decision.job_id}: {told}"))
        rows.append((status, cells))
    accepted = [jobs[d.job_id] for d in inputs.decisions.decisions if d.status == "accepted"]
    rows.append(
        (
            "accepted, as drawn: what curation.tighten_labels makes of labels",
            [_tightened_cell(inputs.drafts, job, difference_threshold) for job in spread(accepted, NUM_CELLS)],
        )
    )
    return Grid(
        title="Accepted and rejected",
        rows=rows,
        note="Fidelity compares the label with where the pair with and without mask differs.",
    )


def _tightened_cell(drafts: DraftFolder, job: Job, difference_threshold: float) -> Cell:
    image, without = drafts.image(job), drafts.without(job)
    masks = [mask for _, mask in masks_of(job.instances)]
    drawn = drawn_map(image, without, np.any(masks, axis=0), difference_threshold=difference_threshold)
    tight = tighten(drawn, masks)
    agreement = np.mean([iou(after, before) for after, before in zip(tight, masks, strict=True)])
    return Cell(
        image=draw_outlines(image, [(TIGHT_COLOUR, mask) for mask in tight]),
        caption=f"#{job.id}: IoU with its label {agreement:.2f}",
    )
