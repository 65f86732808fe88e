"""Verbs about drivers and masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defectory.cli.options import ConfigOption, JsonOption, OverrideOption, open_project, path_from_project

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from defectory.drivers.config import DriverConfig
    from defectory.drivers.tune import Candidate
    from defectory.pipeline.stage import Event, Project

DRIVER_CONSTANTS = (
    "grid_px",
    "threshold_block_px",
    "threshold_constant",
    "edge_high",
    "soft_sigma_px",
    "superpixel_px",
)
NUM_CANDIDATES_SHOWN = 8

drivers_app = typer.Typer(
    no_args_is_help=True, help="Drivers: images that tell the control network where part and defect are."
)
masks_app = typer.Typer(no_args_is_help=True, help="Masks that synthesis may paint.")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
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


def extract(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Images; without any, the tiles of the project are used.")
    ] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="Class-index mask to paint on each image.")] = None,
    config: ConfigOption = Path("project.toml"),
    override: OverrideOption = None,
    part: Annotated[str, typer.Option("--part", help="Tiles of the project: train or pool.")] = "train",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many tiles.")] = 64,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the drivers: new, empty, or an earlier extraction.")
    ] = Path("drivers"),
) -> None:
    """Extract drivers from images, or from the tiles of a project, as PNG files."""
    from defectory.cli.show import say
    from defectory.errors import ConfigError
    from defectory.folders import atomic_folder, require_replaceable
    from defectory.imageio import save_png

    if part not in ("train", "pool"):
        raise ConfigError("option --part", f"is {part!r}", "choose train or pool")
    sources = [*(images or []), *([] if mask is None else [mask]), config]
    require_replaceable(out, kind="drivers", sources=sources)
    drivers = _of_images(images, mask, config, override) if images else _of_tiles(config, override, part, limit)
    count = 0
    with atomic_folder(out, kind="drivers", sources=sources) as folder:
        for count, (name, driver) in enumerate(drivers, start=1):  # noqa: B007  # the last one is the count
            save_png(folder / name, driver)
    say(f"{count} drivers in {out}")


def _of_images(
    images: list[Path], mask: Path | None, config: Path, override: list[str] | None
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield file name and driver of each image; images of one name in several folders are numbered."""
    import numpy as np

    from defectory.drivers.config import DriverConfig
    from defectory.drivers.extract import extract_driver
    from defectory.errors import ImageError
    from defectory.filenames import file_name_of
    from defectory.imageio import load_class_mask, load_rgb

    drivers = (
        open_project(config, overrides=override, save=False).config.drivers if config.is_file() else DriverConfig()
    )
    labels = None if mask is None else load_class_mask(mask)
    taken: set[str] = set()
    for number, path in enumerate(images, start=1):
        image = load_rgb(path)
        instances: list[tuple[int, NDArray[np.bool_]]] = []
        if labels is not None:
            if labels.shape != image.shape[:2]:
                raise ImageError(
                    mask,
                    f"mask is {labels.shape[0]}x{labels.shape[1]}, {path} is {image.shape[0]}x{image.shape[1]} "
                    "(height x width)",
                    "give a mask of the image's size",
                )
            instances = [(int(value), labels == value) for value in np.unique(labels) if value]
        name = file_name_of(path.stem)
        name = f"{name}-{number}" if name.casefold() in taken else name
        taken.add(name.casefold())
        num_classes = max([1, *(category for category, _ in instances)])
        yield f"{name}.png", extract_driver(image, instances, num_classes=num_classes, config=drivers)


def _of_tiles(
    config: Path, override: list[str] | None, part: str, limit: int
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield file name and driver of tiles of a project that has been run up to them."""
    from defectory.imageio import load_rgb
    from defectory.pipeline.drawings import drawings_of
    from defectory.pipeline.values import driver_maker, masks_of, tileset_of

    project = open_project(config, overrides=override, save=False)
    tileset, drawings = tileset_of(project), drawings_of(project)
    make = driver_maker(project, len(tileset.categories))
    for tile in tileset.of("train" if part == "train" else "pool")[:limit]:
        image = load_rgb(project.path("tiles", tile.file_name)) if drawings is None else drawings.of(tile)
        yield f"{tile.id}.png", make(image, masks_of(tile.instances), tile.valid_hw)


def tune(
    config: ConfigOption = Path("project.toml"), override: OverrideOption = None, as_json: JsonOption = False
) -> None:
    """Choose driver constants: keep most of the surface's structure without telling which images had a defect."""
    from dataclasses import asdict

    from defectory.cli.show import say_json, show_events
    from defectory.files import write_json
    from defectory.pipeline.driver_check import tune_drivers

    project = open_project(config, overrides=override)
    found: list[Candidate] = []

    def events() -> Iterator[Event]:
        for event in tune_drivers(project):
            if isinstance(event, list):
                found.extend(event)
            else:
                yield event

    _run_needed(project, "tiles", as_json=as_json)
    show_events(events(), as_json=as_json)
    path = project.path("tune", "drivers.json")
    write_json(path, [{**asdict(c), "config": c.config.model_dump(mode="json")} for c in found])
    best = found[0].config.model_dump(mode="json")
    changed = {key: value for key, value in best.items() if value != getattr(project.config.drivers, key)}
    if as_json:
        say_json({"event": "Tuned", "best": best, "changed": changed, "leaks": bool(found[0].leaks), "file": str(path)})
    else:
        _show_candidates(found, project.config.drivers, changed, config=config, path=path)


def _show_candidates(
    found: list[Candidate], present: DriverConfig, changed: dict[str, Any], *, config: Path, path: Path
) -> None:
    from defectory.cli.show import say, show_table

    keys = [key for key in DRIVER_CONSTANTS if len({getattr(c.config, key) for c in found}) > 1]
    shown = [("present", next(c for c in found if c.config == present))]
    shown += [(f"{rank}", c) for rank, c in enumerate(found[:NUM_CANDIDATES_SHOWN], start=1)]
    show_table(
        f"Drivers of kind {found[0].config.kind}: {len(found)} choices",
        ("", *(key.removeprefix("threshold_") for key in keys), "explains", "leakage"),
        [
            (
                name,
                *(f"{getattr(c.config, key):g}" for key in keys),
                f"{c.reconstruction:.3f}",
                ""
                if c.leakage is None
                else f"{c.leakage.auc:.2f} ({c.leakage.interval[0]:.2f} to {c.leakage.interval[1]:.2f})",
            )
            for name, c in shown
        ],
    )
    say(
        "explains: share of grey-level variance that the geometry explains; leakage: AUC of had-a-defect against "
        "had-none, .5 means none"
    )
    if found[0].leaks:
        say("every choice leaks: check that labels cover the whole defect, and that drivers.defect_blind is on")
    say(
        f"[drivers] of {config}: "
        + (", ".join(f"{key} = {value}" for key, value in changed.items()) or "stays as it is")
    )
    say(f"all choices: {path}")


def compare(
    config: ConfigOption = Path("project.toml"),
    override: OverrideOption = None,
    num_tiles: Annotated[int, typer.Option("--tiles", min=1, help="Train tiles to show.")] = 6,
    out: Annotated[Path, typer.Option("--out", help="Picture to write (PNG).")] = Path("drivers.png"),
) -> None:
    """Show train tiles beside their drivers of every kind, geometry brightened so that it can be seen."""
    from defectory.cli.show import say
    from defectory.folders import require_new_or_ours
    from defectory.imageio import save_png
    from defectory.pipeline.driver_check import compare_drivers

    require_new_or_ours(out)
    project = open_project(config, overrides=override)
    _run_needed(project, "tiles")
    save_png(out, compare_drivers(project, num_tiles=num_tiles), software=True)
    say(out)


@masks_app.callback()
def _masks() -> None:
    """Masks that synthesis may paint: those of train, an expert's, and new ones."""


def review_masks(
    config: ConfigOption = Path("project.toml"),
    override: OverrideOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write: new or empty.")] = Path("masks"),
) -> None:
    """Write the training masks as PNG files for an expert to correct or add to; `masks.expert` of the project file
    reads them back.
    """
    from defectory.cli.show import say
    from defectory.errors import OutputError
    from defectory.folders import is_empty, is_ours, require_replaceable
    from defectory.pipeline.mask_check import review_masks as write

    if is_ours(out, kind="masks-review") and not is_empty(out):
        raise OutputError(out, "is there already and may hold corrections", "give another folder (--out)")
    require_replaceable(out, kind="masks-review")
    project = open_project(config, overrides=override)
    _run_needed(project, "tiles")
    say(
        f"{write(project, out)} masks in {out}, one folder per class; look at {out / 'sheet.png'}, correct files, "
        "add new ones, and set"
    )
    say(f'masks.expert = "{path_from_project(out, config)}"')


def preview_masks(
    config: ConfigOption = Path("project.toml"),
    override: OverrideOption = None,
    per_class: Annotated[int, typer.Option("--per-class", min=1, help="Masks of each class.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the masks.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Picture to write (PNG).")] = Path("masks.png"),
) -> None:
    """Draw masks from the project's sources and look at them before anything is synthesized."""
    from defectory.cli.show import say, show_table
    from defectory.folders import require_new_or_ours
    from defectory.imageio import save_png
    from defectory.pipeline.mask_preview import preview_masks as preview
    from defectory.pipeline.mask_preview import summary_of

    require_new_or_ours(out)
    project = open_project(config, overrides=override)
    _run_needed(project, "learn-masks" if project.config.masks.sources.diffusion > 0 else "tiles")
    sheet, counts = preview(project, per_class=per_class, seed=seed)
    save_png(out, sheet, software=True)
    show_table("Masks", ("class", "drawn from"), summary_of(counts))
    say(out)


def _run_needed(project: Project, stage: str, *, as_json: bool = False) -> None:
    from defectory.cli.show import show_events
    from defectory.pipeline.run import needed_for, run_project, stages_of

    show_events(run_project(project, only=needed_for(stages_of(project), [stage])), as_json=as_json)
