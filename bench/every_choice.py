"""Every kind of driver, source of masks, placement and mode, run from the demo's project file: fidelity, acceptance and
a picture.

Each choice goes on from a finished run of the demo in a folder of its own; what its settings do not touch is not made
again. Run: `python bench/every_choice.py RUN_FOLDER/project.toml --work FOLDER [--only edges regions] [--images 24]`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory import Project, StageEnded, review_masks
from defectory.drawing import contact_sheet, draw_outlines
from defectory.files import write_json
from defectory.formats.coco import load_coco
from defectory.images.load import load_rgb
from defectory.images.save import save_jpeg, save_png
from defectory.rle import decode
from projects import open_in

CHOICES: dict[str, tuple[str, ...]] = {
    "topology": ("drivers.kind=topology",),
    "edges": ("drivers.kind=edges",),
    "soft-edges": ("drivers.kind=soft-edges",),
    "superpixels": ("drivers.kind=superpixels",),
    "silhouette": ("drivers.kind=silhouette",),
    "grey": ("drivers.kind=grey",),
    "drawings": ("drivers.kind=grey", "drivers.drawings=borescope/drawings"),
    "expert": ("masks.expert=expert", "masks.sources.expert=1", "masks.sources.bank=0"),
    "statistical": ("masks.sources.statistical=1", "masks.sources.bank=0"),
    "diffusion": ("masks.sources.diffusion=1", "masks.sources.bank=0"),
    "anywhere": ("masks.placement=anywhere",),
    "regions": ("masks.regions=regions",),
    "keep-place": ("masks.keep_place=true",),
    "insert": ("synthesis.mode=insert",),
    "inpaint": ("synthesis.mode=inpaint", "drivers.kind=image"),
}
KEPT = ("data", "split", "tiles", "concept", "control", "calibration", "plan", "cache", "mask_model")
SHOWN, CELL_PX = 6, 150
LABEL_COLOUR = (60, 255, 90)


def run_choice(
    project_file: Path, name: str, work: Path, *, num_images: int, threads: int
) -> tuple[dict[str, object], list[NDArray[np.uint8]]]:
    """Run one choice and give its figures and pictures: drafts with their labels outlined."""
    own = [*CHOICES[name], f"synthesis.num_images={num_images}", *([f"threads={threads}"] if threads else [])]
    project = open_in(work / name, project_file, own)
    source, folder = Project.open(project_file, environment={}).run_folder, project.run_folder
    project.save_settings()  # this makes the folder a run folder
    for kept in KEPT:
        if (source / kept).is_dir() and not (folder / kept).exists():
            shutil.copytree(source / kept, folder / kept, copy_function=os.link)
    seconds: dict[str, float] = {}
    for event in project.events(until="export"):
        if isinstance(event, StageEnded):
            seconds[event.stage] = round(event.seconds, 1)
            print(f"{name}: {event.stage} {event.seconds:.0f} s: {event.summary}", flush=True)
    scores = project.store.fidelity.model_dump(mode="json")
    figures: dict[str, object] = {
        key: scores[key] for key in ("mean", "per_class", "shuffled", "accepted_share", "num_drafts")
    } | {"seconds": seconds}
    raw = load_coco(project.synthetic / "annotations.json", image_root=project.synthetic / "images")
    cells = [
        draw_outlines(load_rgb(image.path), [(LABEL_COLOUR, decode(i.rle)) for i in image.instances], zoom=2)
        for image in raw.images[:SHOWN]
    ]
    return figures, cells


def prepare(project_file: Path) -> None:
    """Write an expert's masks (those of the bank, under names of their own) and regions (the left half) beside the
    project file.
    """
    folder = project_file.parent
    if not (folder / "expert").is_dir():
        review_masks(Project.open(project_file, environment={}), out=folder / "expert")
        for number, path in enumerate(sorted((folder / "expert").glob("*/*.png"))):
            path.rename(path.with_name(f"mine-{number:03d}.png"))
    if not (folder / "regions").is_dir():
        for path in sorted((folder / "borescope" / "images").glob("*.png")):
            region = np.zeros(load_rgb(path).shape[:2], np.uint8)
            region[:, : region.shape[1] // 2] = 255
            save_png(folder / "regions" / path.name, region)


def main() -> None:
    """Run the choices, write `every_choice.json` and one picture with a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    prepare(args.project)
    figures: dict[str, object] = {}
    names: Sequence[str] = args.only
    cells: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    for name in names:
        figures[name], shown = run_choice(args.project, name, args.work, num_images=args.images, threads=args.threads)
        blank = np.full((32, 32, 3), 255, np.uint8)
        cells += [*shown, *[blank] * (SHOWN - len(shown))]
        labels += [name, *[""] * (SHOWN - 1)]
        write_json(args.work / "every_choice.json", figures)
        save_jpeg(args.work / "every_choice.jpg", contact_sheet(cells, columns=SHOWN, labels=labels, cell_px=CELL_PX))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
