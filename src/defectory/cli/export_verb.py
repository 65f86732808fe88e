"""Defines the verb `export`: runs the stage, or writes a folder in another tool's format, or a segmenter as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from defectory.api.project import Project

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
    onnx: Annotated[
        str | None,
        typer.Option(
            "--onnx",
            metavar="SEGMENTER",
            help="Write a segmenter of the run as ONNX, for example real-seed0, instead of images.",
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
    """Write the accepted drafts with their labels: in the run, or as a folder in a format that other tools open.

    With --onnx, write a trained segmenter for use without Defectory and without torch.
    """
    _require_together(kind=kind, out=out, with_real=with_real, real=real, onnx=onnx)
    from defectory.api.export import require_format

    if kind is not None:
        require_format(kind)
    opened = open_project(project, overrides=override, preset=preset, seed=seed, device=device)
    if onnx is not None and out is not None:
        _export_onnx(opened, onnx, out, dry_run=dry_run, yes=yes, as_json=as_json)
        return
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


def _export_onnx(project: Project, segmenter: str, out: Path, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    from defectory.api.export import export_onnx, segmenter_stage
    from defectory.cli.show import show_events

    # report errors before hours of training
    work = export_onnx(project, segmenter, out=out)
    stage = segmenter_stage(project, segmenter)
    run_project(project, until=[stage], dry_run=dry_run, yes=yes, as_json=as_json)
    if not dry_run:
        show_events(work, as_json=as_json)


def _require_together(
    *, kind: str | None, out: Path | None, with_real: bool, real: str | None, onnx: str | None
) -> None:
    """Refuse options that need another option.

    Raises:
        ConfigError: the other option is missing, or `--real` is neither tiles nor images.
    """
    from defectory.errors import ConfigError

    for option, value in (("--format", kind), ("--onnx", onnx)):
        if value is not None and out is None:
            raise ConfigError(f"option {option}", "is given without --out", "name the folder to write (--out)")
    if onnx is not None and (kind is not None or with_real):
        raise ConfigError("option --onnx", "writes a segmenter, not images", "leave out --format and --with-real")
    for option, given in (("--out", out is not None), ("--with-real", with_real), ("--real", real is not None)):
        if given and kind is None and onnx is None:
            todo = f"give a format: {', '.join(FORMATS_OUT)}"
            raise ConfigError(f"option {option}", "is given without --format", todo)
    if real is not None and not with_real:
        raise ConfigError("option --real", "is given without --with-real", "give both, or neither")
    if real not in (None, "tiles", "images"):
        raise ConfigError("option --real", f"is {real!r}", "give tiles or images")
