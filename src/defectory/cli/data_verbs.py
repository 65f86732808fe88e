"""Verbs about data: import, check, drivers, predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from defectory.pipeline.stage import Project

from defectory.cli.options import ConfigOption, DeviceOption, JsonOption, OverrideOption, open_project

drivers_app = typer.Typer(no_args_is_help=True, help="Drivers: what tells the control network where part and defect are.")
masks_app = typer.Typer(no_args_is_help=True, help="Masks that synthesis may paint.")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("import")(import_data)
    app.command("check")(check)
    app.command("predict")(predict)
    drivers_app.command("extract")(extract)
    drivers_app.command("tune")(tune)
    drivers_app.command("compare")(compare)
    app.add_typer(drivers_app, name="drivers")
    masks_app.command("review")(review_masks)
    masks_app.command("preview")(preview_masks)
    app.add_typer(masks_app, name="masks")


@drivers_app.callback()
def _drivers() -> None:
    """Drivers: dim coarse geometry with a bright class-coloured defect mask."""


def import_data(
    source: Annotated[Path, typer.Argument(help="COCO JSON file, mask folder (or its index CSV), YOLO data.yaml.")],
    out: Annotated[Path, typer.Option("--out", help="Data set folder to write.")],
    kind: Annotated[str, typer.Option("--format", help="auto, coco, masks, yolo or defectory.")] = "auto",
    image_root: Annotated[Path | None, typer.Option("--image-root", help="Where the images lie, if not beside the annotations.")] = None,
    defect_free: Annotated[Path | None, typer.Option("--defect-free", help="Folder of further defect-free images.")] = None,
    index: Annotated[Path | None, typer.Option("--index", help="Mask folders: CSV with image, mask, class and group columns.")] = None,
    classes: Annotated[list[str] | None, typer.Option("--class", help="Keep only this class (repeatable).")] = None,
    min_area_px: Annotated[int, typer.Option("--min-area-px", help="Drop instances smaller than this.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on past bad images and annotations, and list them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring annotated images into one data set folder; images stay byte for byte what they were."""
    import json

    from pydantic import ValidationError

    from defectory.dataset.config import DataConfig
    from defectory.dataset.importer import import_dataset
    from defectory.errors import ConfigError

    def text(path: Path | None) -> str | None:
        return None if path is None else str(path.resolve())

    try:
        config = DataConfig.model_validate(
            {
                "path": str(source.resolve()), "format": kind, "image_root": text(image_root), "defect_free": text(defect_free), "index": text(index),
                "classes": classes or None, "min_area_px": min_area_px, "skip_bad": skip_bad,
            }
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"option --{first['loc'][0]}".replace("_", "-"), first["msg"].lower(), "see `defectory import --help`") from None
    result = import_dataset(config, out)
    defect_free_count = sum(1 for record in result.dataset.images if not record.instances)
    summary = {
        "images": len(result.dataset.images), "defect_free": defect_free_count, "instances": sum(len(r.instances) for r in result.dataset.images),
        "classes": [c.name for c in result.dataset.categories], "skipped": [{"id": r.id, "reason": r.reason} for r in result.rejected],
    }  # fmt: skip
    if as_json:
        print(json.dumps(summary))
        return
    print(
        f"{out}: {summary['images']} images ({defect_free_count} defect-free), {summary['instances']} instances of {', '.join(c.name for c in result.dataset.categories)}"
    )
    for rejected in result.rejected:
        print(f"skipped {rejected.id}: {rejected.reason}")


def check(
    folder: Annotated[Path, typer.Argument(help="Data set folder made by `defectory import`, or a run folder.")],
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Contact sheet to write; contact_sheet.png in the folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a data set holds, list every problem, and write a contact sheet."""
    import json

    from defectory.artifacts.dataset import MANIFEST, Dataset
    from defectory.cli.show import show_table
    from defectory.dataset.check import check_dataset, write_contact_sheet

    folder = folder / "data" if (folder / "data" / MANIFEST).is_file() else folder
    dataset = Dataset.load(folder / MANIFEST)
    report = check_dataset(folder, dataset)
    path = sheet or folder / "contact_sheet.png"
    write_contact_sheet(folder, dataset, path)
    if as_json:
        print(json.dumps(report.model_dump(mode="json")))
        return
    rows: list[tuple[str, object]] = [
        ("images", f"{report.num_images} ({report.num_defect_free} defect-free)"),
        ("instances", report.num_instances),
        ("groups", report.num_groups),
        *(
            (f"class {name}", f"{count} instances in {report.images_per_class.get(name, 0)} images")
            for name, count in report.instances_per_class.items()
        ),
        *((f"size {size} (height x width)", f"{count} images") for size, count in list(report.sizes_hw.items())[:8]),
        *((f"instance area, quantile {q}", f"{area:.0f} px") for q, area in report.area_quantiles_px.items()),
    ]
    show_table(str(folder), ("what", "found"), rows)
    for problem in report.problems:
        print(f"remark: {problem}")
    print(f"{len(report.problems)} remarks; contact sheet: {path}")


def extract(
    images: Annotated[list[Path] | None, typer.Argument(help="Images; without any, the tiles of the project are used.")] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="Class-index mask to paint on each image.")] = None,
    config: ConfigOption = Path("project.toml"),
    override: OverrideOption = None,
    part: Annotated[str, typer.Option("--part", help="Tiles of the project: train or pool.")] = "train",
    limit: Annotated[int, typer.Option("--limit", help="At most this many tiles.")] = 64,
    out: Annotated[Path, typer.Option("--out", help="Folder for the drivers.")] = Path("drivers"),
) -> None:
    """Extract drivers from images, or from the tiles of a project, as PNG files."""
    from defectory.drivers.config import DriverConfig
    from defectory.errors import ConfigError, ImageError
    from defectory.imageio import load_class_mask, load_rgb, save_png

    if part not in ("train", "pool"):
        raise ConfigError("option --part", f"is {part!r}", "choose train or pool")
    if images:
        import numpy as np

        from defectory.drivers.extract import extract_driver

        drivers = open_project(config, overrides=override, save=False).config.drivers if config.is_file() else DriverConfig()
        labels = None if mask is None else load_class_mask(mask)
        for path in images:
            image = load_rgb(path)
            instances: list[tuple[int, np.ndarray]] = []
            if labels is not None:
                if labels.shape != image.shape[:2]:
                    raise ImageError(
                        mask,
                        f"mask is {labels.shape[0]}x{labels.shape[1]}, {path} is {image.shape[0]}x{image.shape[1]}",
                        "give a mask of the image's size",
                    )
                instances = [(int(value), labels == value) for value in np.unique(labels) if value]
            count = max([1, *(category for category, _ in instances)])
            save_png(out / f"{path.stem}.png", extract_driver(image, instances, num_classes=count, config=drivers))
        print(f"{len(images)} drivers in {out}")
        return
    project = open_project(config, overrides=override, save=False)
    from defectory.pipeline.drawings import drawings_of
    from defectory.pipeline.values import driver_maker, masks_of, tileset_of

    tileset, drawings = tileset_of(project), drawings_of(project)
    make = driver_maker(project, len(tileset.categories))
    tiles = tileset.of(part)[:limit]
    for tile in tiles:
        image = load_rgb(project.path("tiles", tile.file_name)) if drawings is None else drawings.of(tile)
        save_png(out / f"{tile.id}.png", make(image, masks_of(tile.instances), tile.valid_hw))
    print(f"{len(tiles)} drivers in {out}")


def tune(
    config: ConfigOption = Path("project.toml"),
    override: OverrideOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the constants that keep most of the surface's structure and do not tell which images had a defect, from train and pool tiles."""
    from collections.abc import Iterator
    from dataclasses import asdict

    from defectory.cli.show import show_events, show_table
    from defectory.drivers.tune import Candidate
    from defectory.pipeline.driver_check import tune_drivers
    from defectory.pipeline.stage import Event
    from defectory.run import write_json

    project = open_project(config, overrides=override)
    found: list[Candidate] = []

    def events() -> Iterator[Event]:
        for event in tune_drivers(project):
            if isinstance(event, list):
                found.extend(event)
            else:
                yield event

    _run_needed(project, "tiles")
    show_events(events(), as_json=as_json)
    path = project.path("tune", "drivers.json")
    write_json(path, [{**asdict(c), "config": c.config.model_dump(mode="json")} for c in found])
    best, present = found[0], next(c for c in found if c.config == project.config.drivers)
    changed = {key: value for key, value in best.config.model_dump(mode="json").items() if value != getattr(project.config.drivers, key)}
    if not as_json:
        keys = [key for key in DRIVER_CONSTANTS if len({getattr(c.config, key) for c in found}) > 1]
        shown = [("present", present), *((f"{rank}", c) for rank, c in enumerate(found[:NUM_CANDIDATES_SHOWN], start=1))]
        show_table(
            f"Drivers of kind {best.config.kind}: {len(found)} choices",
            ("", *(key.removeprefix("threshold_") for key in keys), "explains", "leakage"),
            [
                (name, *(f"{getattr(c.config, key):g}" for key in keys), f"{c.reconstruction:.3f}",
                 "" if c.leakage is None else f"{c.leakage.auc:.2f} ({c.leakage.interval[0]:.2f} to {c.leakage.interval[1]:.2f})")
                for name, c in shown
            ],
        )  # fmt: skip
        print("explains: share of grey-level variance that the geometry tells; leakage: AUC of had-a-defect against had-none, .5 is none")
        if best.leaks:
            print("every choice leaks: check that labels cover the whole defect, and that drivers.defect_blind is on")
        print(f"[drivers] of {config}: " + (", ".join(f"{key} = {value}" for key, value in changed.items()) or "stays as it is"))
        print(f"all choices: {path}")


def compare(
    config: ConfigOption = Path("project.toml"),
    override: OverrideOption = None,
    num_tiles: Annotated[int, typer.Option("--tiles", min=1, help="Train tiles to show.")] = 6,
    out: Annotated[Path, typer.Option("--out", help="Sheet to write.")] = Path("drivers.png"),
) -> None:
    """Show train tiles beside their drivers of every kind, geometry brightened so that it can be seen."""
    from defectory.imageio import save_png
    from defectory.pipeline.driver_check import compare_drivers

    project = open_project(config, overrides=override)
    _run_needed(project, "tiles")
    save_png(out, compare_drivers(project, num_tiles=num_tiles))
    print(out)


@masks_app.callback()
def _masks() -> None:
    """Masks that synthesis may paint: those of train, an expert's, and new ones."""


def review_masks(
    config: ConfigOption = Path("project.toml"),
    override: OverrideOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("masks"),
) -> None:
    """Write the training masks as PNG files for an expert to correct or add to; `masks.expert` of the project file reads them back."""
    from defectory.errors import OutputError
    from defectory.pipeline.mask_check import review_masks as write

    project = open_project(config, overrides=override)
    if out.exists() and any(out.iterdir()):
        raise OutputError(out, "is there already and may hold corrections", "give another folder (--out)")
    _run_needed(project, "tiles")
    print(f"{write(project, out)} masks in {out}, one folder per class; look at {out / 'sheet.png'}, correct files, add new ones, and set")
    print(f'masks.expert = "{out}"')


def preview_masks(
    config: ConfigOption = Path("project.toml"),
    override: OverrideOption = None,
    per_class: Annotated[int, typer.Option("--per-class", min=1, help="Masks of each class.")] = 20,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Sheet to write.")] = Path("masks.png"),
) -> None:
    """Draw masks from the project's sources and look at them before anything is synthesized."""
    from defectory.cli.show import show_table
    from defectory.imageio import save_png
    from defectory.pipeline.mask_preview import preview_masks as preview
    from defectory.pipeline.mask_preview import summary_of

    project = open_project(config, overrides=override)
    _run_needed(project, "learn-masks" if project.config.masks.sources.diffusion > 0 else "tiles")
    sheet, counts = preview(project, per_class=per_class, seed=seed)
    save_png(out, sheet)
    show_table("Masks", ("class", "drawn from"), summary_of(counts))
    print(out)


def _run_needed(project: Project, stage: str) -> None:
    from defectory.cli.show import show_events
    from defectory.pipeline.run import needed_for, run_project, stages_of

    show_events(run_project(project, only=needed_for(stages_of(project), [stage])))


DRIVER_CONSTANTS = ("grid_px", "threshold_block_px", "threshold_constant", "edge_high", "soft_sigma_px", "superpixel_px")
NUM_CANDIDATES_SHOWN = 8


def predict(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    segmenter: Annotated[
        Path, typer.Option("--segmenter", "-m", help="Folder of a trained segmenter, for example runs/demo/segment/real-seed0.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for predictions.json and overlays.")] = Path("predictions"),
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score",
            min=0,
            max=1,
            help="Detections under this score are not drawn; default: the segmenter's own, chosen on validation.",
        ),
    ] = None,
    device: DeviceOption = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on past images that cannot be read, and list them.")] = False,
) -> None:
    """Find defects in images: COCO results and overlays."""
    from defectory.cli.prediction import predict_files

    done, skipped = predict_files(images, segmenter=segmenter, out=out, min_score=min_score, device=device or "cpu", skip_bad=skip_bad)
    for line in skipped:
        print(f"skipped {line}")
    print(f"{done} images; {out / 'predictions.json'} and overlays in {out / 'overlays'}")
