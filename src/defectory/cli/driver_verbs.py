"""Defines the verbs for drivers and masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defectory.cli.options import (
    PROJECT_FILE,
    JsonOption,
    OverrideOption,
    PresetOption,
    ProjectArgument,
    open_project,
    run_until,
)

if TYPE_CHECKING:
    from defectory.api.drivers import TunedDrivers

DRIVER_CONSTANTS = (
    "grid_px",
    "threshold_block_px",
    "threshold_constant",
    "edge_high",
    "soft_sigma_px",
    "superpixel_px",
)
NUM_CANDIDATES_SHOWN = 8
MAX_PROMPTS = 20

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
    project: ProjectArgument = PROJECT_FILE,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", help="Image, or a folder of them (repeatable); if none, tiles of the project."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Mask to paint on each image: class numbers, or 0 and 255.")
    ] = None,
    override: OverrideOption = None,
    subset: Annotated[str, typer.Option("--subset", help="Tiles of the project: train or pool.")] = "train",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many tiles.")] = 64,
    whole: Annotated[
        bool, typer.Option("--whole", help="One driver of each whole image, not of its middle at the tile size.")
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the drivers: new, empty, or an earlier extraction.")
    ] = Path("drivers"),
) -> None:
    """Extract drivers from images, or from the tiles of a project, as PNG files, with the prompts that go with them."""
    from defectory.api.drivers import extract_drivers
    from defectory.cli.show import say
    from defectory.errors import ConfigError

    if subset not in ("train", "pool"):
        raise ConfigError("option --subset", f"is {subset!r}", "choose train or pool")
    opened = open_project(project, overrides=override) if project.is_file() or not images else None
    made = extract_drivers(opened, images=images or (), mask=mask, subset=subset, limit=limit, whole=whole, out=out)
    for name, prompt in made[:MAX_PROMPTS] if images else ():
        say(f"{name}: {prompt}")
    say(f"{len(made)} drivers in {out}")


def tune(
    project: ProjectArgument = PROJECT_FILE,
    override: OverrideOption = None,
    preset: PresetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose driver constants: keep most of the surface's structure without telling which images had a defect."""
    from defectory.api.drivers import tune_drivers
    from defectory.cli.show import say_json, show_work

    opened = open_project(project, overrides=override, preset=preset)
    run_until(opened, "tiles", as_json=as_json)
    found = show_work(tune_drivers(opened), as_json=as_json)
    if as_json:
        best, file = found.best.config.model_dump(mode="json"), str(found.file)
        say_json({"event": "Tuned", "best": best, "changed": found.changed, "leaks": found.best.leaks, "file": file})
    else:
        _show_choices(found, config=project)


def _show_choices(found: TunedDrivers, *, config: Path) -> None:
    from defectory.cli.show import say, show_table

    keys = [key for key in DRIVER_CONSTANTS if len({getattr(c.config, key) for c in found.choices}) > 1]
    shown = [("present", found.present)]
    shown += [(f"{rank}", c) for rank, c in enumerate(found.choices[:NUM_CANDIDATES_SHOWN], start=1)]
    show_table(
        f"Drivers of kind {found.best.config.kind}: {len(found.choices)} choices",
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
    if found.best.leaks:
        say("every choice leaks: check that labels cover the whole defect, and that drivers.defect_blind is on")
    say(
        f"[drivers] of {config}: "
        + (", ".join(f"{key} = {value}" for key, value in found.changed.items()) or "stays as it is")
    )
    say(f"all choices: {found.file}")


def compare(
    project: ProjectArgument = PROJECT_FILE,
    override: OverrideOption = None,
    num_tiles: Annotated[int, typer.Option("--tiles", min=1, help="Train tiles to show.")] = 6,
    out: Annotated[Path, typer.Option("--out", help="Picture to write (PNG).")] = Path("drivers.png"),
) -> None:
    """Show train tiles beside their drivers of every kind, geometry brightened so that it can be seen."""
    from defectory.api.drivers import compare_drivers
    from defectory.cli.show import say
    from defectory.folders.claims import require_new_or_ours
    from defectory.images.save import save_png

    require_new_or_ours(out)
    opened = open_project(project, overrides=override)
    run_until(opened, "tiles")
    save_png(out, compare_drivers(opened, num_tiles=num_tiles), software=True)
    say(out)


@masks_app.callback()
def _masks() -> None:
    """Masks that synthesis may paint: those of train, an expert's, and new ones."""


def review_masks(
    project: ProjectArgument = PROJECT_FILE,
    override: OverrideOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write: new or empty.")] = Path("masks"),
) -> None:
    """Write the training masks as PNG files for an expert to correct or add to; `masks.expert` of the project file
    reads them back.
    """
    from defectory.api.masks import require_review_folder
    from defectory.api.masks import review_masks as write
    from defectory.cli.show import say

    require_review_folder(out)
    opened = open_project(project, overrides=override)
    run_until(opened, "tiles")
    count = write(opened, out=out)
    say(
        f"{count} masks in {out}, one folder per class; look at {out / 'sheet.png'}, correct files, add new ones, "
        "and set"
    )
    say(f'masks.expert = "{opened.path_from(out)}"')


def preview_masks(
    project: ProjectArgument = PROJECT_FILE,
    override: OverrideOption = None,
    per_class: Annotated[int, typer.Option("--per-class", min=1, help="Masks of each class.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the masks.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Picture to write (PNG).")] = Path("masks.png"),
) -> None:
    """Draw masks from the project's sources and look at them before anything is synthesized."""
    from defectory.api.masks import preview_masks as preview
    from defectory.cli.show import say, show_table
    from defectory.folders.claims import require_new_or_ours
    from defectory.images.save import save_png

    require_new_or_ours(out)
    opened = open_project(project, overrides=override)
    run_until(opened, "learn-masks" if "learn-masks" in opened.stages() else "tiles")
    sheet, counts = preview(opened, per_class=per_class, seed=seed)
    save_png(out, sheet, software=True)
    rows = [(name, ", ".join(f"{count} {kind}" for kind, count in sorted(of.items()))) for name, of in counts.items()]
    show_table("Masks", ("class", "drawn from"), rows)
    say(out)
