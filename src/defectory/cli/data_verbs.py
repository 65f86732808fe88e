"""Defines the verbs for data: import, check, predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defectory.cli.options import PROJECT_FILE, DeviceOption, JsonOption, open_project

if TYPE_CHECKING:
    from defectory.api.data import DataCheck
    from defectory.errors import ConfigError

FORMAT_NAMES = (
    "defectory",
    "cvat",
    "label-studio",
    "coco",
    "voc",
    "labelme",
    "mvtec",
    "visa",
    "severstal",
    "kolektor",
    "yolo",
    "index-csv",
    "masks",
    "voc-xml",
)
"""Names in the registry of formats, repeated here so that `--help` does not import it."""
OPTION_OF = {
    "format": "--format",
    "image_root": "--image-root",
    "defect_free": "--defect-free",
    "index": "--index",
    "min_area_px": "--min-area-px",
    "unlabelled": "--unlabelled",
    "mask_threshold": "--mask-threshold",
    "class_colours": "--class-colours",
}
"""Maps a setting of the section `data` to the option of `import` that holds it."""
MAX_LINES = 40
"""Most lines printed per kind of remark; `--json` prints all."""


SourceArgument = Annotated[
    Path,
    typer.Argument(
        help="Annotation file (COCO JSON, data.yaml, CSV, XML) or folder of a data set; its layout is recognised."
    ),
]
DataSetOption = Annotated[
    Path, typer.Option("--out", help="Data set folder to write: new, empty, or an earlier import.")
]
FormatOption = Annotated[str, typer.Option("--format", help=f"auto, or one of: {', '.join(FORMAT_NAMES)}.")]
ImageRootOption = Annotated[
    Path | None, typer.Option("--image-root", help="Where the images are, if not beside the annotations.")
]
DefectFreeOption = Annotated[
    Path | None, typer.Option("--defect-free", help="Folder of further images, all without defects.")
]
IndexOption = Annotated[
    Path | None, typer.Option("--index", help="Mask folders: CSV with image, mask, class and group columns.")
]
ClassOption = Annotated[list[str] | None, typer.Option("--class", help="Keep only this class (repeatable).")]
MinAreaOption = Annotated[int, typer.Option("--min-area-px", min=0, help="Drop instances with a smaller area, pixels.")]
SkipBadEntriesOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out bad images and annotations, and list them.")
]
UnlabelledOption = Annotated[
    str,
    typer.Option(
        "--unlabelled", help="Images without any label: skip (leave out, with a remark), refuse (stop), or defect-free."
    ),
]
FollowLinksOption = Annotated[bool, typer.Option("--follow-links", help="Follow links that lead out of the data set.")]
MaskThresholdOption = Annotated[
    int | None,
    typer.Option(
        "--mask-threshold", min=1, max=255, help="Mask values from this one on are the defect (JPEG or smoothed masks)."
    ),
]
ClassColoursOption = Annotated[
    Path | None, typer.Option("--class-colours", help="CSV or JSON table of colours and class names, for RGB masks.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("import")(import_data)
    app.command("check")(check)
    app.command("predict")(predict)


def import_data(
    source: SourceArgument,
    out: DataSetOption,
    kind: FormatOption = "auto",
    image_root: ImageRootOption = None,
    defect_free: DefectFreeOption = None,
    index: IndexOption = None,
    classes: ClassOption = None,
    min_area_px: MinAreaOption = 0,
    skip_bad: SkipBadEntriesOption = False,
    unlabelled: UnlabelledOption = "skip",
    follow_links: FollowLinksOption = False,
    mask_threshold: MaskThresholdOption = None,
    class_colours: ClassColoursOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy annotated images into one data set folder. Images stay byte for byte what they were."""
    from defectory.api.data import import_data as import_from
    from defectory.api.data import summary_of
    from defectory.cli.show import say, say_json
    from defectory.errors import ConfigError

    try:
        result = import_from(
            source,
            out=out,
            format=kind,
            image_root=image_root,
            defect_free=defect_free,
            index=index,
            classes=classes or None,
            min_area_px=min_area_px,
            skip_bad=skip_bad,
            unlabelled=unlabelled,
            follow_links=follow_links,
            mask_threshold=mask_threshold,
            class_colours=class_colours,
        )
    except ConfigError as error:
        raise _as_typed(error) from None
    data, found = result.dataset, summary_of(result.dataset)
    if as_json:
        say_json(
            {
                "images": found.num_images,
                "defect_free": found.num_defect_free,
                "instances": found.num_instances,
                "classes": found.class_names,
                "layout": data.layout,
                "subsets": found.images_per_subset,
                "value_range": None if data.value_range is None else [data.value_range.low, data.value_range.high],
                "remarks": data.remarks,
                "skipped": [{"id": rejected.id, "reason": rejected.reason} for rejected in result.rejected],
            }
        )
        return
    say(f"recognised as {data.layout}")
    say(
        f"{out}: {found.num_images} images ({found.num_defect_free} defect-free), {found.num_instances} instances "
        f"of {', '.join(found.class_names)}"
    )
    _say_some([f"remark: {line}" for line in data.remarks])
    _say_some([f"skipped {rejected.id}: {rejected.reason}" for rejected in result.rejected])


def _as_typed(error: ConfigError) -> ConfigError:
    """Name a wrong setting of the section `data` as the option of `import` that it came from."""
    from defectory.errors import ConfigError

    name, space, value = error.where.removeprefix("data.").partition(" ")
    if not error.where.startswith("data.") or name not in OPTION_OF:
        return error
    return ConfigError(f"option {OPTION_OF[name]}{space}{value}", error.found, error.todo)


def _say_some(lines: list[str]) -> None:
    from defectory.cli.show import say

    for line in lines[:MAX_LINES]:
        say(line)
    if len(lines) > MAX_LINES:
        say(f"... and {len(lines) - MAX_LINES} more (--json lists all)")


def check(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Data set folder made by `defectory import`, run folder, or any data set that `import` reads."
        ),
    ],
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", help="Contact sheet to write; contact_sheet.png in the data set folder, if not given."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a data set holds, list every problem, and write a contact sheet."""
    from defectory.api.data import check_data
    from defectory.cli.show import say, say_json

    found = check_data(folder, sheet=sheet)
    if as_json:
        value_range = None if found.value_range is None else [found.value_range.low, found.value_range.high]
        picture = None if found.contact_sheet is None else str(found.contact_sheet)
        report = found.report.model_dump(mode="json")
        say_json({**report, "layout": found.layout, "value_range": value_range, "contact_sheet": picture})
        return
    _show_counts(found)
    remarks, problems = list(found.report.remarks), list(found.report.problems)
    if found.is_imported:
        _say_some([f"remark: {line}" for line in (*remarks, *problems)])
        reason = f"not written ({found.no_sheet}; --sheet FILE writes it elsewhere)"
        say(f"{_counted(len(remarks) + len(problems))}; contact sheet: {found.contact_sheet or reason}")
        return
    _say_some([f"bad: {line}" for line in problems])
    _say_some([f"remark: {line}" for line in remarks])
    bad = f"; {len(problems)} bad entries, which import refuses without --skip-bad" if problems else ""
    say(
        f"{_counted(len(remarks))}{bad}; not imported yet: `defectory import {folder} --out FOLDER` also draws a "
        "contact sheet"
    )


def _counts(instances: int, images: int) -> str:
    return f"{instances} instance{'' if instances == 1 else 's'} in {images} image{'' if images == 1 else 's'}"


def _counted(remarks: int) -> str:
    return f"{remarks or 'no'} remark{'' if remarks == 1 else 's'}"


def _show_counts(found: DataCheck) -> None:
    from defectory.cli.show import show_table

    report = found.report
    own_split = ", ".join(f"{subset} {count}" for subset, count in found.images_per_subset.items())
    rows: list[tuple[str, object]] = [
        *((("layout", found.layout),) if found.layout else ()),
        ("images", f"{report.num_images} ({report.num_defect_free} defect-free)"),
        *((("split of its own", own_split),) if own_split else ()),
        ("instances", report.num_instances),
        ("groups", report.num_groups),
        *(
            (f"class {name}", _counts(count, report.images_per_class.get(name, 0)))
            for name, count in report.instances_per_class.items()
        ),
        *((f"size {size} (height x width)", f"{count} images") for size, count in report.sizes_hw.items()),
        *((f"instance area, quantile {q}", f"{area:.0f} px") for q, area in report.area_quantiles_px.items()),
    ]
    if found.value_range is not None:
        rows.append(("value range", f"{found.value_range.low:g} to {found.value_range.high:g} become 0 to 255"))
    show_table(str(found.folder), ("what", "found"), rows)


def predict(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    segmenter: Annotated[
        Path | None,
        typer.Option(
            "--segmenter",
            "-m",
            help="Folder of a trained segmenter, for example runs/demo/best_segmenter, or a project file, whose best "
            "segmenter is taken. Default: project.toml.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for predictions.json and overlays.")] = Path("predictions"),
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score",
            min=0,
            max=1,
            help="Detections with a lower score are not drawn. Default: the segmenter's own threshold, chosen on "
            "validation.",
        ),
    ] = None,
    device: DeviceOption = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be read, and list them.")
    ] = False,
) -> None:
    """Find defects in images: COCO results and overlays."""
    from defectory.api.segmenter import predict as find_in
    from defectory.cli.show import say

    folder = _segmenter_folder(segmenter)
    done = find_in(images, segmenter=folder, out=out, min_score=min_score, device=device or "cpu", skip_bad=skip_bad)
    for line in done.skipped:
        say(f"skipped {line}")
    for line in done.remarks:
        say(f"note: {line}")
    say(f"{done.num_images} images; {out / 'predictions.json'} and overlays in {out / 'overlays'}")


def _segmenter_folder(given: Path | None) -> Path:
    """Return the folder of a segmenter, or that of the best segmenter of a project.

    Raises:
        ConfigError: none is given and there is no project file here, or the project file is wrong.
    """
    from defectory.errors import ConfigError

    if given is None and not PROJECT_FILE.is_file():
        raise ConfigError(PROJECT_FILE, "no such file", "name a segmenter's folder or a project file with --segmenter")
    if given is not None and given.suffix != ".toml":
        return given
    return open_project(given or PROJECT_FILE).best_segmenter
