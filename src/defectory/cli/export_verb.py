"""Defines the verb `export`: runs the stage, or writes a folder in another tool's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from defectory.cli.options import (
    PROJECT_FILE,
    DeviceOption,
    DryRunOption,
    JsonOption,
    OverrideOption,
    PresetOption,
    ProjectArgument,
    SeedOption,
    YesOption,
    open_project,
    run_project,
)

FORMATS_OUT = (
    "coco",
    "coco-polygons",
    "yolo",
    "voc",
    "masks",
    "mvtec",
    "labelme",
    "cvat",
    "label-studio",
    "fiftyone",
    "imagefolder",
)
"""Names in the registry of formats, repeated here so that `--help` does not import it."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("export")(export)


def export(
    project: ProjectArgument = PROJECT_FILE,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            help=f"Write a folder in this format: {', '.join(FORMATS_OUT)}. Without it, the run gets its synthetic/.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write: new, empty, or an earlier export.")
    ] = None,
    with_real: Annotated[
        bool, typer.Option("--with-real", help="Add the real training images; never those of validation and test.")
    ] = False,
    real: Annotated[
        str | None,
        typer.Option(
            "--real",
            help="Real images as tiles (as the segmenters see them) or images (whole); as the drafts are, if not "
            "given.",
        ),
    ] = None,
    override: OverrideOption = None,
    preset: PresetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the accepted drafts with their labels: in the run, or as a folder in a format that other tools open."""
    _require_together(kind=kind, out=out, with_real=with_real, real=real)
    from defectory.api.export import require_format

    if kind is not None:
        require_format(kind)
    opened = open_project(project, overrides=override, preset=preset, seed=seed, device=device)
    if kind is None or out is None:
        run_project(opened, until=["export"], dry_run=dry_run, yes=yes, as_json=as_json)
        return
    from defectory.api.export import export as export_to
    from defectory.cli.show import show_events

    form = "images" if real == "images" else "tiles" if real == "tiles" else None
    # report errors before hours of training
    work = export_to(opened, kind, out=out, with_real=with_real, real=form)
    run_project(opened, until=["export"], dry_run=dry_run, yes=yes, as_json=as_json)
    if not dry_run:
        show_events(work, as_json=as_json)


def _require_together(*, kind: str | None, out: Path | None, with_real: bool, real: str | None) -> None:
    """Refuse options that need another option.

    Raises:
        ConfigError: the other option is missing, or `--real` is neither tiles nor images.
    """
    from defectory.errors import ConfigError

    if kind is not None and out is None:
        raise ConfigError("option --format", "is given without --out", "name the folder to write (--out)")
    for option, given in (("--out", out is not None), ("--with-real", with_real), ("--real", real is not None)):
        if given and kind is None:
            todo = f"give a format: {', '.join(FORMATS_OUT)}"
            raise ConfigError(f"option {option}", "is given without --format", todo)
    if real is not None and not with_real:
        raise ConfigError("option --real", "is given without --with-real", "give both, or neither")
    if real not in (None, "tiles", "images"):
        raise ConfigError("option --real", f"is {real!r}", "give tiles or images")
