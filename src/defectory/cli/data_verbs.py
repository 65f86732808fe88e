"""Defines the verbs for data: import, check, predict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defectory.cli.options import DeviceOption, JsonOption

if TYPE_CHECKING:
    from defectory.artifacts.dataset import Dataset
    from defectory.dataset.check import CheckReport
    from defectory.dataset.config import DataConfig

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
    from defectory.cli.show import say, say_json
    from defectory.dataset.importer import import_dataset
    from defectory.folders.claims import require_replaceable

    config = _data_config(
        {
            "path": source,
            "format": kind,
            "image_root": image_root,
            "defect_free": defect_free,
            "index": index,
            "classes": classes or None,
            "min_area_px": min_area_px,
            "skip_bad": skip_bad,
            "unlabelled": unlabelled,
            "follow_links": follow_links,
            "mask_threshold": mask_threshold,
            "class_colours": class_colours,
        }
    )
    require_replaceable(
        out,
        kind="dataset",
        sources=[path for path in (source, image_root, defect_free, index, class_colours) if path is not None],
    )
    result = import_dataset(config, out)
    summary = _summary(result.dataset, [(rejected.id, rejected.reason) for rejected in result.rejected])
    if as_json:
        say_json(summary)
        return
    say(f"recognised as {result.dataset.layout}")
    say(
        f"{out}: {summary['images']} images ({summary['defect_free']} defect-free), {summary['instances']} instances "
        f"of {', '.join(summary['classes'])}"
    )
    _say_some([f"remark: {line}" for line in result.dataset.remarks])
    _say_some([f"skipped {rejected.id}: {rejected.reason}" for rejected in result.rejected])


def _data_config(values: dict[str, Any]) -> DataConfig:
    """Convert the options of `import` to configuration, and name a wrong option as it was typed."""
    from pydantic import ValidationError

    from defectory.dataset.config import DataConfig
    from defectory.errors import ConfigError
    from defectory.formats.registry import format_named

    if values["format"] != "auto":
        try:
            format_named(values["format"])
        except ConfigError as error:
            raise ConfigError(f"option --format {values['format']!r}", error.found, error.todo) from None
    for key in ("image_root", "defect_free", "index", "class_colours"):
        # a format that does not use the path would not check it
        if values[key] is not None and not os.path.lexists(values[key]):
            raise ConfigError(
                f"option --{key.replace('_', '-')}", f"{values[key]}: no such file or folder", "check the path"
            )
    try:
        return DataConfig.model_validate(
            {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = f"option --{str(first['loc'][0]).replace('_', '-')}"
        raise ConfigError(
            option, f"{first['msg'][0].lower()}{first['msg'][1:]}", "see `defectory import --help`"
        ) from None


def _summary(dataset: Dataset, skipped: list[tuple[str, str]]) -> dict[str, Any]:
    from collections import Counter

    subsets = Counter(record.subset for record in dataset.images if record.subset is not None)
    return {
        "images": len(dataset.images),
        "defect_free": sum(record.is_defect_free for record in dataset.images),
        "instances": sum(len(record.instances) for record in dataset.images),
        "classes": [category.name for category in dataset.categories],
        "layout": dataset.layout,
        "subsets": {subset: subsets[subset] for subset in ("train", "val", "test") if subsets[subset]},
        "value_range": None if dataset.value_range is None else [dataset.value_range.low, dataset.value_range.high],
        "remarks": list(dataset.remarks),
        "skipped": [{"id": name, "reason": reason} for name, reason in skipped],
    }


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
    from defectory.artifacts.dataset import MANIFEST, Dataset
    from defectory.cli.show import say, say_json
    from defectory.dataset.check import check_dataset, write_contact_sheet
    from defectory.errors import InputError
    from defectory.folders.claims import require_new_or_ours
    from defectory.runs.layout import DATA

    if sheet is not None:
        require_new_or_ours(sheet)
    if not (folder / MANIFEST).is_file():
        if not (folder / DATA / MANIFEST).is_file():
            _check_source(folder, sheet=sheet, as_json=as_json)
            return
        folder = folder / DATA
    dataset = Dataset.load(folder / MANIFEST)
    report = check_dataset(folder, dataset)
    path, reason = sheet or folder / "contact_sheet.png", ""
    try:
        require_new_or_ours(path)
        write_contact_sheet(folder, dataset, path)
    except InputError as error:
        if sheet is not None:
            raise
        # a data set on a read-only medium is still checked
        reason = f"not written ({error.where}: {error.found}; --sheet FILE writes it elsewhere)"
    if as_json:
        say_json(
            {**report.model_dump(mode="json"), **_provenance(dataset), "contact_sheet": None if reason else str(path)}
        )
        return
    _show_report(folder, report, dataset)
    _say_some([f"remark: {line}" for line in (*dataset.remarks, *report.problems)])
    say(f"{_counted(len(dataset.remarks) + len(report.problems))}; contact sheet: {reason or path}")


def _counts(instances: int, images: int) -> str:
    return f"{instances} instance{'' if instances == 1 else 's'} in {images} image{'' if images == 1 else 's'}"


def _counted(remarks: int) -> str:
    return f"{remarks or 'no'} remark{'' if remarks == 1 else 's'}"


def _provenance(dataset: Dataset) -> dict[str, Any]:
    return {
        "layout": dataset.layout,
        "value_range": None if dataset.value_range is None else [dataset.value_range.low, dataset.value_range.high],
        "remarks": list(dataset.remarks),
    }


def _show_report(folder: Path, report: CheckReport, dataset: Dataset) -> None:
    from defectory.cli.show import show_table

    own_split = ", ".join(f"{subset} {count}" for subset, count in _summary(dataset, [])["subsets"].items())
    rows: list[tuple[str, object]] = [
        *((("layout", dataset.layout),) if dataset.layout else ()),
        ("images", f"{report.num_images} ({report.num_defect_free} defect-free)"),
        *((("split of its own", own_split),) if own_split else ()),
        ("instances", report.num_instances),
        ("groups", report.num_groups),
        *(
            (f"class {name}", _counts(count, report.images_per_class.get(name, 0)))
            for name, count in report.instances_per_class.items()
        ),
        *((f"size {size} (height x width)", f"{count} images") for size, count in list(report.sizes_hw.items())[:8]),
        *((f"instance area, quantile {q}", f"{area:.0f} px") for q, area in report.area_quantiles_px.items()),
    ]
    if dataset.value_range is not None:
        rows.append(("value range", f"{dataset.value_range.low:g} to {dataset.value_range.high:g} become 0 to 255"))
    show_table(str(folder), ("what", "found"), rows)


def _check_source(path: Path, *, sheet: Path | None, as_json: bool) -> None:
    """Print the content of a data set that was never imported, without copying or writing anything."""
    from collections import Counter

    from defectory.cli.show import say, say_json, show_table
    from defectory.errors import ConfigError
    from defectory.formats.raw import LoadOptions
    from defectory.formats.registry import load

    if sheet is not None:
        raise ConfigError(
            "option --sheet",
            f"{path} was not imported yet",
            f"run `defectory import {path} --out FOLDER` and check that folder",
        )
    raw = load(path, LoadOptions(skip_bad=True))
    instances = [instance for image in raw.images for instance in image.instances]
    per_class = Counter(instance.class_name for instance in instances)
    images = Counter(name for image in raw.images for name in {instance.class_name for instance in image.instances})
    sizes = Counter(f"{image.size_hw[0]} x {image.size_hw[1]}" for image in raw.images)
    rejected = [f"{entry.id}: {entry.reason}" for entry in raw.rejected]
    free = sum(image.is_defect_free for image in raw.images)
    if as_json:
        say_json(
            {
                "layout": raw.layout,
                "num_images": len(raw.images),
                "num_defect_free": free,
                "num_instances": len(instances),
                "num_groups": len({image.group for image in raw.images}),
                "instances_per_class": {name: per_class[name] for name in raw.class_names},
                "images_per_class": {name: images[name] for name in raw.class_names},
                "sizes_hw": dict(sizes.most_common(8)),
                "problems": rejected,
                "remarks": list(raw.remarks),
                "contact_sheet": None,
            }
        )
        return
    rows: list[tuple[str, object]] = [
        ("layout", raw.layout),
        ("images", f"{len(raw.images)} ({free} defect-free)"),
        ("instances", len(instances)),
        ("groups", len({image.group for image in raw.images})),
        *((f"class {name}", _counts(per_class[name], images[name])) for name in raw.class_names),
        *((f"size {size} (height x width)", f"{count} images") for size, count in sizes.most_common(8)),
    ]
    show_table(str(path), ("what", "found"), rows)
    _say_some([f"bad: {line}" for line in rejected])
    _say_some([f"remark: {line}" for line in raw.remarks])
    bad = f"; {len(rejected)} bad entries, which import refuses without --skip-bad" if rejected else ""
    say(
        f"{_counted(len(raw.remarks))}{bad}; not imported yet: `defectory import {path} --out FOLDER` also draws a "
        "contact sheet"
    )


def predict(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    segmenter: Annotated[
        Path,
        typer.Option(
            "--segmenter", "-m", help="Folder of a trained segmenter, for example runs/demo/segment/real-seed0."
        ),
    ],
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
    from defectory.cli.show import say
    from defectory.tools.predict import predict_files

    done = predict_files(
        images, segmenter=segmenter, out=out, min_score=min_score, device=device or "cpu", skip_bad=skip_bad
    )
    for line in done.skipped:
        say(f"skipped {line}")
    for line in done.remarks:
        say(f"note: {line}")
    say(f"{done.num_images} images; {out / 'predictions.json'} and overlays in {out / 'overlays'}")
