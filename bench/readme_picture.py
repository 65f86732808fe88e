"""Draw the picture at the top of the README from a finished run.

    python bench/readme_picture.py runs/demo/project.toml docs/images/result.jpg

Columns: a driver with its mask, the draft drawn from it, and its label as an outline; then a defect of the same
class in the data set, for comparison. One row per class, the accepted draft of median fidelity.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import defectory
from defectory.artifacts.annotation import masks_of
from defectory.drawing import contact_sheet, draw_outlines
from defectory.images.save import save_jpeg

LABEL_COLOUR = (40, 220, 60)
CELL_PX, ROWS = 224, 3
FEW_PX, MANY_PX = 40, 1200


def picture(project: defectory.Project) -> np.ndarray:
    """Return the sheet, RGB uint8."""
    jobs = {job.id: job for job in project.plan.jobs}
    accepted = [d for d in project.decisions.decisions if d.status == "accepted"]
    cells: list[np.ndarray] = []
    told: list[str] = []
    for category in project.plan.categories:
        mine = sorted(
            (d for d in accepted if [i.category_id for i in jobs[d.job_id].instances] == [category.id]),
            key=lambda d: d.fidelity.iou,
        )
        real = [
            tile
            for tile in project.tiles.of("train")
            if [i.category_id for i in tile.instances] == [category.id]
            and FEW_PX < sum(int(mask.sum()) for _, mask in masks_of(tile.instances)) < MANY_PX
        ]
        if not mine or not real or len(cells) == 4 * ROWS:
            continue
        job, tile = jobs[mine[len(mine) // 2].job_id], real[len(real) // 2]
        draft, photo = project.drafts.image(job), project.store.tiles.image(tile)
        labels, outlines = masks_of(job.instances), masks_of(tile.instances)
        cells += [
            project.drafts.driver(job),
            draft,
            draw_outlines(draft, [(LABEL_COLOUR, mask) for _, mask in labels], zoom=2),
            draw_outlines(photo, [(LABEL_COLOUR, mask) for _, mask in outlines], zoom=2),
        ]
        told += [f"driver: {category.name}", "drawn", "its label", "one of the data set"]
    return contact_sheet(cells, columns=4, labels=told, cell_px=CELL_PX)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    save_jpeg(given.out, picture(defectory.Project.open(given.project)))


if __name__ == "__main__":
    main()
