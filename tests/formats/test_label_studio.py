"""Label Studio's JSON: whole and minimal exports, polygons, ellipses and brush strokes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.errors import InputError
from defectory.rle import area_px

from .annotation_sets import (
    HEIGHT,
    SIZE_HW,
    WIDTH,
    Content,
    assert_as_drawn,
    label_studio_tasks,
    read,
    truth,
    write_images,
    write_json,
    write_label_studio,
)

Tasks = list[Content]
CLOSE = 0.999


def result_of(tasks: Tasks) -> Content:
    return tasks[0]["annotations"][0]["result"][0]


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def packed(mask: np.ndarray) -> list[int]:
    """RGBA of a mask in rle-pack: a run of equal values, or a stretch of several, each with its length in one of four
    sizes.
    """
    values = np.repeat(mask.reshape(-1).astype(np.uint8) * 255, 4)
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    at = 0
    while at < len(values):
        length = 1
        while at + length < len(values) and values[at + length] == values[at] and length < 2**16:
            length += 1
        if length < 3:
            length = min(2, len(values) - at)
            bits += "0" + "00" + f"{length - 1:03b}" + "".join(f"{value:08b}" for value in values[at : at + length])
        else:
            bits += "1" + "11" + f"{length - 1:016b}" + f"{values[at]:08b}"
        at += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


@pytest.mark.parametrize(
    "image",
    [
        "/data/upload/1/0a1b2c3d-{}.png",
        "images/{}.png",
        "/data/local-files/?d=set%2Fimages%2F{}.png",
        "s3://bucket/x/{}.png",
        "http://host:8080/data/{}.png?x=1",
    ],
)
def test_tasks_are_recognised_and_images_found_by_any_address(image: str, tmp_path: Path) -> None:
    def edit(tasks: Tasks) -> None:
        for number, task in enumerate(tasks):
            task["data"]["image"] = image.format(f"p{number}")

    path = write_label_studio(tmp_path, edit)
    for source in (path, tmp_path):
        raw = read(source)
        assert_as_drawn(raw, min_iou=CLOSE)
        assert "Label Studio" in raw.layout


def test_the_minimal_export_is_read(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    tasks: Tasks = []
    for number, task in enumerate(label_studio_tasks()):
        regions = [
            {**result["value"], "original_width": WIDTH, "original_height": HEIGHT}
            for result in task["annotations"][0]["result"]
        ]
        tasks.append(
            {"id": number, "image": task["data"]["image"], "annotation_id": number, "annotator": 1}
            | ({"tag": regions} if regions else {})
        )
    assert_as_drawn(read(write_json(tmp_path / "min.json", tasks)), min_iou=CLOSE)


def test_brush_strokes_are_the_alpha_of_their_run_lengths(tmp_path: Path) -> None:
    def edit(tasks: Tasks) -> None:
        result_of(tasks).update(
            type="brushlabels", value={"format": "rle", "rle": packed(truth()["p0"]), "brushlabels": ["scratch"]}
        )

    assert_as_drawn(read(write_label_studio(tmp_path, edit)), min_iou=CLOSE)


def test_ellipses_are_filled(tmp_path: Path) -> None:
    def edit(tasks: Tasks) -> None:
        result_of(tasks).update(
            type="ellipselabels",
            value={"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "rotation": 0, "ellipselabels": ["scratch"]},
        )

    (ellipse,) = read(write_label_studio(tmp_path, edit)).images[0].instances
    assert area_px(ellipse.rle) == pytest.approx(np.pi * 6 * 8, rel=0.05)


def test_a_label_of_its_own_result_belongs_to_the_region_of_its_id(tmp_path: Path) -> None:
    def edit(tasks: Tasks) -> None:
        value = result_of(tasks)["value"]
        del value["polygonlabels"]
        result_of(tasks)["type"] = "polygon"
        tasks[0]["annotations"][0]["result"].append(
            {"id": "r1", "type": "labels", "value": {"points": value["points"], "labels": ["scratch"]}}
        )

    assert_as_drawn(read(write_label_studio(tmp_path, edit)), min_iou=CLOSE)


def test_the_last_annotation_that_was_not_cancelled_is_read(tmp_path: Path) -> None:
    def edit(tasks: Tasks) -> None:
        good = tasks[0]["annotations"][0]
        tasks[0]["annotations"] = [{"result": []}, good, {"result": [], "was_cancelled": True}]

    raw = read(write_label_studio(tmp_path, edit))
    assert_as_drawn(raw, min_iou=CLOSE)
    assert any("several annotations" in remark for remark in raw.remarks)


@pytest.mark.parametrize("annotations", [[], [{"result": [], "was_cancelled": True}]])
def test_a_task_that_nobody_submitted_is_not_defect_free_unless_the_import_asks(
    annotations: list[Any], tmp_path: Path
) -> None:
    path = write_label_studio(tmp_path, lambda tasks: tasks[2].update(annotations=annotations))
    raw = read(path)
    assert [Path(image.file_name).name for image in raw.images] == ["p0.png", "p1.png"]
    assert any("p2.png" in remark for remark in raw.remarks)
    assert "submitted annotation" in refusal(path, unlabelled="refuse")
    assert_as_drawn(read(path, unlabelled="defect-free"), min_iou=CLOSE)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda r: r.update(type="rectanglelabels"), "'rectangle' is a box, not a mask"),
        (lambda r: r["value"].pop("polygonlabels"), "has no label"),
        (lambda r: r["value"].update(polygonlabels=["a", "b"]), "has 2 labels"),
        (lambda r: r["value"].update(polygonlabels="a"), "polygonlabels is the text"),
        (lambda r: r.update(value=None), "value is null"),
        (lambda r: r["value"].update(points=[[1, 2], [3]]), "a point is a list"),
        (lambda r: r["value"].update(points=[[1, 2], [3, "x"], [5, 5]]), "y is the text"),
        (lambda r: r["value"].update(points=[[1, 2], [3, 3]]), "2 points"),
        (lambda r: r.update(original_width=WIDTH + 1), "annotated as 40x61"),
        (lambda r: r.update(image_rotation=90), "was rotated"),
        (lambda r: r.update(type="brushlabels", value={"rle": [1, 2, 3], "brushlabels": ["a"]}), "ends early"),
        (lambda r: r.update(type="brushlabels", value={"rle": [300], "brushlabels": ["a"]}), "a list of bytes"),
        (
            lambda r: r.update(type="brushlabels", value={"rle": packed(np.zeros((5, 7), bool)), "brushlabels": ["a"]}),
            "140 values",
        ),
        (
            lambda r: r.update(
                type="brushlabels", value={"rle": packed(np.zeros(SIZE_HW, bool)), "brushlabels": ["a"]}
            ),
            "covers no pixel",
        ),
        (
            lambda r: r.update(type="brushlabels", value={"rle": packed(truth()["p0"])[:-9], "brushlabels": ["a"]}),
            "ends early",
        ),
    ],
)
def test_a_bad_region_is_one_line(edit: Callable[[Content], object], words: str, tmp_path: Path) -> None:
    path = write_label_studio(tmp_path, lambda tasks: edit(result_of(tasks)))
    assert words in refusal(path)
    assert all(
        image.instances or image.is_defect_free or Path(image.file_name).name == "p0.png"
        for image in read(path, skip_bad=True).images
    )


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda tasks: tasks[0].update(data={"text": "x"}), "no image in its data"),
        (lambda tasks: tasks[0].update(data={"a": "x.png", "b": "y.png"}), "2 images in its data"),
        (lambda tasks: tasks[0].update(data=5), "data is the number 5"),
        (lambda tasks: tasks.append(7), "the task is the number 7"),
        (lambda tasks: tasks.append(tasks[0]), "annotated twice"),
        (lambda tasks: tasks[0]["data"].update(image="/data/nowhere.png"), "no such file under"),
    ],
)
def test_a_bad_task_is_one_line(edit: Callable[[Tasks], object], words: str, tmp_path: Path) -> None:
    assert words in refusal(write_label_studio(tmp_path, edit))


def test_boxes_alone_are_told_as_that(tmp_path: Path) -> None:
    def edit(tasks: Tasks) -> None:
        for task in tasks:
            for result in task["annotations"][0]["result"]:
                result["type"] = "rectanglelabels"

    assert "none of 2 regions is a mask, only rectangle" in refusal(write_label_studio(tmp_path, edit))
