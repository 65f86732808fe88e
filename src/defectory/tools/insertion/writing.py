"""Writes frames with their new defects, labels and a sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.artifacts.plan import Plan
from defectory.drawing import contact_sheet, draw_outlines
from defectory.filenames import file_name_of
from defectory.folders.swap import atomic_folder
from defectory.formats.coco import save_coco
from defectory.images.load import load_rgb
from defectory.images.save import save_jpeg
from defectory.rle import decode, encode
from defectory.synthesis.drafts import draft_paths
from defectory.synthesis.export import Frame
from defectory.tools.insertion.placement import Window
from defectory.tools.insertion.targets import Target

SHEET_IMAGES, SHEET_CELL_PX = 12, 256
LABEL_COLOUR = (40, 220, 60)
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def write_insertion(
    targets: Sequence[Target], out: Path, plan: Plan, windows: Mapping[str, Window], drafts: Path
) -> None:
    """Write drafts back into their frames, at the frame's size and depth, with labels and a sheet.

    Args:
        targets: the frames.
        out: folder, replaced as a whole if an earlier insertion made it.
        plan: of the drafts; the same number for each target, in order.
        windows: where each draft lies in its frame, by job id.
        drafts: folder of the drafts.

    Raises:
        OutputError: `out` holds files that no insertion made.
    """
    names = {category.id: category.name for category in plan.categories}
    count = len(plan.jobs) // len(targets)
    stems = _stems(targets)
    cells: list[Image] = []
    told: list[str] = []
    with atomic_folder(out, kind="insert") as folder:
        (folder / "images").mkdir()
        images: list[tuple[int, str, tuple[int, int], dict[str, object]]] = []
        labels: list[tuple[int, Instance]] = []
        for number, job in enumerate(plan.jobs, start=1):
            target, window = targets[(number - 1) // count], windows[job.id]
            if (number - 1) % count == 0 and number <= SHEET_IMAGES:
                cells.append(target.frame.rgb())
                told.append("as it was")
            height, width = window.valid_hw
            frame = Frame(
                image=target.frame,
                tile=window.tile[:height, :width],
                corner_yx=window.corner_yx,
                size_hw=window.size_hw,
            )
            after = np.ascontiguousarray(load_rgb(draft_paths(drafts, job.id)[0])[:height, :width])
            pixels, name = frame.with_defect(after), f"{stems[(number - 1) // count]}-{job.id}{frame.suffix}"
            frame.save(folder / "images" / name, pixels)
            images.append((number, name, (pixels.shape[0], pixels.shape[1]), {}))
            for instance in job.instances:
                mask = _label_in(target, frame, instance, window)
                labels.append((number, Instance(category_id=instance.category_id, rle=encode(mask))))
                if number <= SHEET_IMAGES:
                    shown = target.frame.rgb(pixels)
                    cells += [shown, draw_outlines(shown, [(LABEL_COLOUR, mask)])]
                    told += [f"{number}: {names[instance.category_id]}", "its label"]
        save_coco(folder / "annotations.json", plan.categories, images, labels)
        save_jpeg(folder / "sheet.jpg", contact_sheet(cells, columns=5, labels=told, cell_px=SHEET_CELL_PX))


def _stems(targets: Sequence[Target]) -> list[str]:
    """Return a unique file name stem for each frame."""
    taken: set[str] = set()
    stems: list[str] = []
    for number, target in enumerate(targets, start=1):
        stem = file_name_of(target.file.stem)
        stem = f"{stem}-{number}" if stem.casefold() in taken else stem
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _label_in(target: Target, frame: Frame, instance: Instance, window: Window) -> Mask:
    """Place a label in its frame, bool [H,W]; the label of a user's mask is that mask, to the pixel."""
    height, width = window.valid_hw
    if target.mask is not None:
        # the values of a mask with several are class numbers
        return target.mask > 0 if int(target.mask.max()) == 1 else target.mask == instance.category_id
    return frame.placed(decode(instance.rle)[:height, :width])
