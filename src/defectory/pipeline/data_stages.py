"""Stages of data in: import, split, tiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from defectory.dataset.check import check_dataset, write_contact_sheet
from defectory.dataset.importer import import_dataset
from defectory.dataset.split import make_split
from defectory.dataset.tiles import choose_tiling, cut_tiles
from defectory.pipeline.stage import Progress, Project
from defectory.pipeline.values import dataset_of, source_listing, split_of, tileset_of
from defectory.run import write_json


def import_settings(project: Project) -> object:
    """Settings of the data section and the state of the source's files."""
    data = project.config.data
    paths = [data.path, *(p for p in (data.image_root, data.defect_free, data.index) if p)]
    return {"data": data.model_dump(mode="json"), "files": [source_listing(project.source_folder / p) for p in paths]}


def run_import(project: Project) -> Iterator[Progress | str]:
    """Import the user's data set into the run."""
    result = import_dataset(project.config.data, project.path("data"), base_folder=project.source_folder)
    report = check_dataset(project.path("data"), result.dataset)
    write_json(project.path("data", "check.json"), report.model_dump(mode="json"))
    write_json(project.path("data", "rejected.json"), [{"id": r.id, "reason": r.reason} for r in result.rejected])
    write_contact_sheet(project.path("data"), result.dataset, project.path("data", "contact_sheet.png"))
    skipped = f", {len(result.rejected)} skipped" if result.rejected else ""
    problems = f", {len(report.problems)} remarks (data/check.json)" if report.problems else ""
    yield f"{report.num_images} images, {report.num_defect_free} defect-free, {report.num_instances} instances, {report.num_groups} groups{skipped}{problems}"


def run_split(project: Project) -> Iterator[Progress | str]:
    """Freeze the split."""
    split = make_split(project.path("data"), dataset_of(project), project.config.split)
    split.save(project.path("split", "split.json"))
    yield (
        f"train {len(split.train)}, val {len(split.val)}, test {len(split.test)}, pool {len(split.pool)} images"
        + (f"; {len(split.moved_duplicates)} near-duplicate pairs kept together" if split.moved_duplicates else "")
        + ("; pool from crops of train" if split.pool_source == "train_crops" else "")
    )


def base_tile_px(project: Project) -> int:
    """Give the side of the base's native tiles, pixels, without loading it."""
    import json

    from defectory.engine.base.known import resolve_base

    folder = resolve_base(project.config.base)
    sample = int(json.loads((folder / "unet" / "config.json").read_text())["sample_size"])
    stages = len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"])
    return sample * 2 ** (stages - 1)


def run_tiles(project: Project) -> Iterator[Progress | str]:
    """Choose the tiling and cut train, pool and val."""
    dataset, split = dataset_of(project), split_of(project)
    tiling = choose_tiling(dataset, split, project.config.tiling, base_tile_px(project))
    tileset = cut_tiles(
        project.path("data"), dataset, split, tiling, parts=("train", "pool", "val"), out=project.path("tiles"), config=project.config.tiling, seed=project.config.seed
    )  # fmt: skip
    counts = Counter((tile.part, tile.is_defect_free) for tile in tileset.tiles)
    yield f"{tiling.mode} mode, {tiling.reason}; train {counts['train', False]} with defects, pool {len(tileset.of('pool'))}"


def run_test_tiles(project: Project) -> Iterator[Progress | str]:
    """Cut test tiles, which evaluation alone reads."""
    tileset = cut_tiles(
        project.path("data"), dataset_of(project), split_of(project), tileset_of(project).tiling, parts=("test",), out=project.path("test_tiles"),
        config=project.config.tiling, seed=project.config.seed,
    )  # fmt: skip
    yield f"{len(tileset.tiles)} test tiles"
