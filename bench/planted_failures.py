"""Does a run say "use it" of synthetic data that were spoilt on purpose, and does its report name what is wrong?

Four failures are planted where drafts are drawn, with curation off: labels of other drafts, blurred drafts, drafts with
other tones, and copies of train tiles in place of drafts. Wanted: never "use it", and a signature that names each.

A finished project, whose concept and control network are used again:
`python bench/planted_failures.py PROJECT.toml --out FOLDER [--only blur] [--seeds 0 1 2]`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory import Project
from defectory.synthesis import full

Image = NDArray[np.uint8]
Pair = tuple[Image, Image]
KEPT = ("data", "split", "tiles", "concept", "control", "mask_model", "cache")
"""Folders of the finished run that are used again."""
BLUR_SIGMA, TONE_SHIFT = 2.0, 45
CURATION_OFF = {"curation.checks": [], "curation.min_fidelity": 0.0, "curation.max_stray_share": 1e6}
NAMED = {
    "labels": ("control collapse",),
    "blur": ("quality too poor",),
    "tones": ("quality too poor", "too weak or too strong"),
    "copies": ("memorisation",),
    "none": (),
}
"""Parts of the names of the signatures that may name a failure."""


@contextmanager
def planted(kind: str, project: Project) -> Generator[None]:
    """Spoil what is drawn."""
    finished: Callable[..., Pair] = full._finished_pair  # pyright: ignore[reportPrivateUsage]
    draw: Callable[..., Image] = full._draw_pairs  # pyright: ignore[reportPrivateUsage]
    tiles = project.store.tiles
    train = [tile for tile in tiles.tileset.of("train") if tile.instances]

    def blurred(*args: Any) -> Pair:
        image, without = finished(*args)
        return cv2.GaussianBlur(image, (0, 0), BLUR_SIGMA), cv2.GaussianBlur(without, (0, 0), BLUR_SIGMA)

    def toned(*args: Any) -> Pair:
        image, without = (np.clip(part.astype(np.int16) + TONE_SHIFT, 0, 255) for part in finished(*args))
        return image.astype(np.uint8), without.astype(np.uint8)

    def of_others(jobs: Sequence[Any], inputs: Sequence[Any], **settings: Any) -> Image:
        return draw(jobs, [*inputs[1:], *inputs[:1]], **settings)

    def copied(drawn: Image, drawn_without: Image, item: Any, job: Any, config: Any) -> Pair:
        tile = train[int(job.id) % len(train)]
        return tiles.image(tile), finished(drawn, drawn_without, item, job, config)[1]

    def with_labels_of_train(*args: Any, **settings: Any) -> Any:
        plan = make_plan(*args, **settings)
        jobs = [
            job.model_copy(
                update={
                    "instances": tuple(
                        type(job.instances[0])(category_id=i.category_id, rle=i.rle)
                        for i in train[int(job.id) % len(train)].instances
                    )
                }
            )
            for job in plan.jobs
        ]
        return plan.model_copy(update={"jobs": tuple(jobs)})

    from defectory.stages import plan as plan_stage

    make_plan = plan_stage.make_plan
    patches = {
        "labels": [patch.object(full, "_draw_pairs", of_others)],
        "blur": [patch.object(full, "_finished_pair", blurred)],
        "tones": [patch.object(full, "_finished_pair", toned)],
        "copies": [
            patch.object(full, "_finished_pair", copied),
            patch.object(plan_stage, "make_plan", with_labels_of_train),
        ],
        "none": [],
    }
    with ExitStack() as stack:
        for one in patches[kind]:
            stack.enter_context(one)
        yield


def run(file: Path, kind: str, out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Run a copy of the project with a failure planted, and return what it said."""
    first = Project.open(file)
    folder = out / kind
    if not folder.is_dir():
        # segmenters of real images alone are the same in all
        real = {path.name: path for path in sorted(out.glob("*/segment/real-seed*"))}
        folder.mkdir(parents=True)
        for name, path in real.items():
            shutil.copytree(path, folder / "segment" / name)
        for name in (*KEPT, ".defectory.json"):
            source = first.run_folder / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            elif source.is_file():
                shutil.copy2(source, folder / name)
    settings = {
        **CURATION_OFF,
        "out": str(folder.resolve()),
        "synthesis.mode": "full",
        "segmentation.arms": ["real", "mixed"],
        "segmentation.seeds": list(seeds),
        "executor": "in-process",
    }
    project = Project.open(file, overrides=settings)
    with planted(kind, first):
        for event in project.events():
            if type(event).__name__ == "StageEnded":
                print(kind, event, flush=True)
    verdict = project.scores["verdict"]
    summary = json.loads((project.folder_of("report") / "summary.json").read_bytes())
    found = [name for name, detected in summary["signatures"].items() if detected]
    return {
        "planted": kind,
        "outcome": verdict["outcome"],
        "gain": verdict["gain"],
        "interval": verdict["interval"],
        "found": found,
        "named": not NAMED[kind] or any(part in name.lower() for part in NAMED[kind] for name in found),
    }


def main() -> None:
    """Run each failure and print one JSON line for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=tuple(NAMED), default=tuple(NAMED))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    for kind in args.only:
        print(json.dumps(run(args.project, kind, args.out, args.seeds)), flush=True)


if __name__ == "__main__":
    main()
