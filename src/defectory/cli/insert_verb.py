"""Defines the verb `insert`: draws defects into a user's images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from defectory.cli.options import PROJECT_FILE, DeviceOption, JsonOption, OverrideOption, ProjectArgument, open_project


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("insert")(insert)


def insert(
    image: Annotated[
        list[Path],
        typer.Option(
            "--image",
            "-i",
            help="Defect-free image of any size, or a folder of them (repeatable); grey of 8 or 16 bit, RGB and RGBA "
            "keep their depth.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write: images/, annotations.json and sheet.jpg.")],
    project: ProjectArgument = PROJECT_FILE,
    count: Annotated[int, typer.Option("--count", min=1, help="How many images of each, each with one defect.")] = 1,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of the defects; as often as in train, if not given.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="Mask of the image's size: the defect is drawn exactly where it is not black."),
    ] = None,
    region: Annotated[
        Path | None, typer.Option("--region", help="PNG of the image's size, white where defects may lie.")
    ] = None,
    drawing: Annotated[
        Path | None,
        typer.Option("--drawing", help="Drawing of the image, where the project takes geometry from drawings."),
    ] = None,
    override: OverrideOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of places, masks and noise.")] = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw defects of a trained project into images of your own, which stay as they are around them."""
    from defectory.api.insert import insert as insert_into
    from defectory.cli.show import say, show_events
    from defectory.memory import PeakMemory

    opened = open_project(project, overrides=override, device=device)
    events = insert_into(
        opened, image, out=out, count=count, class_name=class_name, mask=mask, region=region, drawing=drawing, seed=seed
    )
    with PeakMemory() as peak:
        show_events(events, as_json=as_json)
    if not as_json:
        say(f"at most {peak.gb:.1f} GB of memory")
