"""Stages of data in: import, split, tiles."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from defectory.artifacts.tiles import Part, TileSet, Tiling
from defectory.dataset.check import check_dataset, write_contact_sheet
from defectory.dataset.descriptor import DESCRIPTORS, ImageDescriptor, describe_images, save_descriptors
from defectory.dataset.importer import import_dataset
from defectory.dataset.split import make_split
from defectory.dataset.tiles import choose_tiling, cut_tiles
from defectory.files import write_json
from defectory.imageio import IMAGE_SUFFIXES
from defectory.pipeline.stage import Notice, Progress, Project
from defectory.pipeline.values import dataset_of, source_listing, split_of, tileset_of


def import_settings(project: Project) -> dict[str, Any]:
    """Return the settings of the data section and the state of each source's files."""
    data = project.config.data
    listings = {
        f"files of data.{name}": source_listing(
            project.source_folder / Path(path).expanduser(), follow_links=data.follow_links
        )
        for name in ("path", "image_root", "defect_free", "index", "class_colours")
        if (path := getattr(data, name)) is not None
    }
    return {"data": data.model_dump(mode="json"), **listings}


def run_import(project: Project) -> Iterator[Progress | Notice | str]:
    """Import the user's data set into the run; a disk that may be too small is told before anything is copied."""
    listings = [value for value in import_settings(project).values() if isinstance(value, list)]
    needed = sum(
        size for listing in listings for name, size, _ in listing if Path(name).suffix.lower() in IMAGE_SUFFIXES
    )
    free = shutil.disk_usage(project.folder).free
    if free < needed:
        # the data set may name a part of these images alone
        yield Notice(
            stage="import",
            text=f"the disk has {free / 1e6:,.0f} MB free, the images beside the annotations are {needed / 1e6:,.0f} "
            "MB",
        )
    result = import_dataset(project.config.data, project.path("data"), base_folder=project.source_folder)
    report = check_dataset(project.path("data"), result.dataset)
    write_json(project.path("data", "check.json"), report.model_dump(mode="json"))
    write_json(project.path("data", "rejected.json"), [{"id": r.id, "reason": r.reason} for r in result.rejected])
    write_contact_sheet(project.path("data"), result.dataset, project.path("data", "contact_sheet.png"))
    skipped = f", {len(result.rejected)} skipped" if result.rejected else ""
    num_remarks = len(report.remarks) + len(report.problems)
    problems = f", {num_remarks} remarks (data/check.json)" if num_remarks else ""
    yield (
        f"{report.num_images} images, {report.num_defect_free} defect-free, {report.num_instances} instances, "
        f"{report.num_groups} groups{skipped}{problems}"
    )


def run_split(project: Project) -> Iterator[Progress | str]:
    """Freeze the split."""
    dataset, descriptors = dataset_of(project), dict[int, ImageDescriptor]()
    for image_id, descriptor in describe_images(project.path("data"), dataset):
        descriptors[image_id] = descriptor
        yield Progress(
            stage="split", done=len(descriptors), total=len(dataset.images), note="looking for near-duplicates"
        )
    save_descriptors(project.path("split", DESCRIPTORS), descriptors, dataset_digest=dataset.digest())
    split = make_split(project.path("data"), dataset, project.config.split, descriptors=descriptors)
    split.save(project.path("split", "split.json"))
    yield (
        f"train {len(split.train)}, val {len(split.val)}, test {len(split.test)}, pool {len(split.pool)} images"
        + (f"; {split.num_merges} pairs of groups with near-duplicates kept together" if split.num_merges else "")
        + ("; pool from crops of train" if split.pool_source == "train_crops" else "")
        + "".join(f"; {remark}" for remark in split.remarks)
    )


def base_tile_px(project: Project) -> int:
    """Give the side of the base's native tiles, pixels, without loading it."""
    import json

    from defectory.engine.backbones.known import resolve_base

    folder = resolve_base(project.config.base)
    sample = int(json.loads((folder / "unet" / "config.json").read_text())["sample_size"])
    stages = len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"])
    return sample * 2 ** (stages - 1)


def run_tiles(project: Project) -> Iterator[Progress | str]:
    """Choose the tiling and cut train, pool and val."""
    dataset, split = dataset_of(project), split_of(project)
    tiling = choose_tiling(dataset, split, project.config.tiling, base_tile_px(project))
    tileset = yield from _cut(project, "tiles", tiling, parts=("train", "pool", "val"))
    counts = Counter((tile.part, tile.is_defect_free) for tile in tileset.tiles)
    yield (
        f"{tiling.mode} mode, {tiling.reason}; train {counts['train', False]} with defects, pool "
        f"{len(tileset.of('pool'))}"
    )


def run_test_tiles(project: Project) -> Iterator[Progress | str]:
    """Cut test tiles, which evaluation alone reads."""
    tileset = yield from _cut(project, "test-tiles", tileset_of(project).tiling, parts=("test",), folder="test_tiles")
    yield f"{len(tileset.tiles)} test tiles"


def _cut(
    project: Project, stage: str, tiling: Tiling, *, parts: Sequence[Part], folder: str = "tiles"
) -> Generator[Progress, None, TileSet]:
    cutting = cut_tiles(
        project.path("data"),
        dataset_of(project),
        split_of(project),
        tiling,
        parts=parts,
        out=project.path(folder),
        config=project.config.tiling,
        seed=project.config.seed,
    )
    while True:
        try:
            event = next(cutting)
        except StopIteration as end:
            return end.value
        yield Progress(stage=stage, done=event.done, total=event.total, note="images cut")
