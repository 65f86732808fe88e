"""Write a project's export in every format, and open each with readers that are not ours.

    python bench/open_exports.py write project.toml exports          (needs defectory and a project that has been run)
    python bench/open_exports.py read exports                        (needs numpy and any of the readers)

`read` runs in any environment: readers that are not installed there are passed over, and readers seldom share one. It
prints a table row for each reader: images, instances, and the least IoU of an instance with the mask that the run
holds.
`exports/truth.json` has these masks; no writer takes part in it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Mask = np.ndarray[Any, Any]
Labels = dict[str, list[tuple[str, Mask]]]


def write_all(config: Path, out: Path) -> None:
    from defectory import Project, export, export_formats
    from defectory.rle import Rle, decode

    project = Project.open(config)
    names = {category.id: category.name for category in project.dataset.categories}
    truth: dict[str, Any] = {}
    stage = json.loads((project.synthetic / "annotations.json").read_bytes())

    def runs(mask: Mask) -> list[int]:
        flat = mask.T.reshape(-1)
        places = np.flatnonzero(np.diff(flat)) + 1
        lengths = np.diff(np.concatenate([[0], places, [len(flat)]])).tolist()
        return [0, *lengths] if flat[0] else lengths

    for about in stage["images"]:
        labels = [a for a in stage["annotations"] if a["image_id"] == about["id"]]
        masks = [
            decode(Rle(size_hw=tuple(a["segmentation"]["size"]), counts=a["segmentation"]["counts"])) for a in labels
        ]
        truth[f"synthetic-{Path(about['file_name']).stem}"] = {
            "size_hw": [about["height"], about["width"]],
            "labels": [[names[a["category_id"]], runs(mask)] for a, mask in zip(labels, masks, strict=True)],
        }
    for tile in project.tiles.tiles:
        if tile.subset == "pool" or (tile.subset == "train" and tile.instances):
            height, width = tile.valid_hw
            truth[f"real-{tile.id}"] = {
                "size_hw": [height, width],
                "labels": [[names[i.category_id], runs(decode(i.rle)[:height, :width])] for i in tile.instances],
            }
    for name in export_formats():
        *_, last = export(project, name, out=out / name, with_real=True, real="tiles")
        print(name, "-", getattr(last, "summary", ""))
    (out / "truth.json").write_text(json.dumps(truth))


def read_truth(out: Path) -> tuple[Labels, dict[str, tuple[int, int]]]:
    content = json.loads((out / "truth.json").read_text())
    labels: Labels = {}
    for stem, about in content.items():
        height, width = about["size_hw"]
        labels[stem] = [
            (name, np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T)
            for name, runs in about["labels"]
        ]
    return labels, {stem: (about["size_hw"][0], about["size_hw"][1]) for stem, about in content.items()}


def iou(one: Mask, other: Mask) -> float:
    either = int((one | other).sum())
    return float((one & other).sum()) / either if either else 1.0


def is_within_1_px(found: Labels, truth: Labels, sizes: dict[str, tuple[int, int]]) -> bool:
    """Tell whether all is found, and nothing beyond a pixel to the right of it or below: readers that round corners to
    pixels draw these.
    """
    for stem, expected in truth.items():
        for kind in {name for name, _ in [*found[stem], *expected]}:
            mask, true = union(found[stem], sizes[stem], kind), union(expected, sizes[stem], kind)
            padded = np.pad(true, ((1, 0), (1, 0)))
            near = padded[1:, 1:] | padded[:-1, 1:] | padded[1:, :-1] | padded[:-1, :-1]
            if (true & ~mask).any() or (mask & ~near).any():
                return False
    return True


def union(labels: Iterable[tuple[str, Mask]], size_hw: tuple[int, int], name: str | None = None) -> Mask:
    return np.logical_or.reduce([np.zeros(size_hw, bool), *(m for other, m in labels if name in (None, other))])


def least_iou(found: Labels, truth: Labels, sizes: dict[str, tuple[int, int]], *, by: str) -> float:
    """Return the least IoU: of instances, each with its best partner, of the classes of an image, or of all its
    defects.
    """
    values: list[float] = []
    for stem, expected in truth.items():
        labels = found[stem]
        if by == "instance":
            if len(labels) != len(expected):
                return 0.0
            values += [max(iou(mask, other) for kind, other in labels if kind == name) for name, mask in expected]
        elif by == "class":
            kinds = {name for name, _ in [*labels, *expected]}
            values += [iou(union(labels, sizes[stem], kind), union(expected, sizes[stem], kind)) for kind in kinds]
        else:
            values.append(iou(union(labels, sizes[stem]), union(expected, sizes[stem])))
    return min(values)


def whole(mask: Mask, corner_xy: Sequence[float], size_hw: tuple[int, int]) -> Mask:
    result = np.zeros(size_hw, bool)
    x, y = round(corner_xy[0]), round(corner_xy[1])
    result[y : y + mask.shape[0], x : x + mask.shape[1]] = mask > 0
    return result


def with_pycocotools(labels_file: Path) -> Labels:
    from pycocotools.coco import COCO

    coco = COCO(str(labels_file))
    assert all(a["synthetic"] is coco.imgs[a["image_id"]]["synthetic"] for a in coco.anns.values())
    return {
        Path(about["file_name"]).stem: [
            (coco.cats[a["category_id"]]["name"], coco.annToMask(a).astype(bool))
            for a in coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        ]
        for image_id, about in coco.imgs.items()
    }


def with_supervision(make: Callable[[Any], Any], sizes: dict[str, tuple[int, int]]) -> Labels:
    import supervision

    data = make(supervision.DetectionDataset)
    found: Labels = {}
    for path, image, detections in data:
        assert image.shape[:2] == sizes[Path(path).stem]
        masks = [] if detections.mask is None else list(detections.mask)
        found[Path(path).stem] = [
            (data.classes[int(c)], np.asarray(m)) for c, m in zip(detections.class_id, masks, strict=True)
        ]
    return found


def boxes_with_supervision(folder: Path, truth: Labels) -> Labels:
    """Return the true masks of an image where its boxes are those of these masks, and nothing where they are not."""
    import supervision

    data = supervision.DetectionDataset.from_pascal_voc(str(folder / "JPEGImages"), str(folder / "Annotations"))
    found: Labels = {}
    for path, _, detections in data:
        expected = []
        for name, mask in truth[Path(path).stem]:
            y, x = np.nonzero(mask)
            expected.append((name, (x.min(), y.min(), x.max() + 1, y.max() + 1)))
        # supervision takes one off all four numbers, though the far ends of VOC's boxes belong to them
        boxes = [
            (data.classes[int(c)], tuple(round(float(v)) for v in box))
            for c, box in zip(detections.class_id, detections.xyxy, strict=True)
        ]
        near = [(name, (x0, y0, x1 - 1, y1 - 1)) for name, (x0, y0, x1, y1) in expected]
        same = sorted(boxes) in (sorted(expected), sorted(near))
        found[Path(path).stem] = truth[Path(path).stem] if same else []
    return found


def with_fiftyone(folder: Path, sizes: dict[str, tuple[int, int]]) -> Labels:
    # the importer that Dataset.from_dir uses; without a data set, no database is needed
    from fiftyone.utils.coco import COCODetectionDatasetImporter

    importer = COCODetectionDatasetImporter(dataset_dir=str(folder), label_types="segmentations", extra_attrs=True)
    importer.setup()
    found: Labels = {}
    for path, _, labels in importer:
        stem = Path(path).stem
        detections = labels.detections if labels is not None else []
        assert all(d["synthetic"] is stem.startswith("synthetic") for d in detections)
        height, width = sizes[stem]
        found[stem] = [
            (d.label, whole(np.asarray(d.mask), (d.bounding_box[0] * width, d.bounding_box[1] * height), sizes[stem]))
            for d in detections
        ]
    return found


def with_datasets(folder: Path, sizes: dict[str, tuple[int, int]]) -> Labels:
    from datasets import load_dataset

    data = load_dataset("imagefolder", data_dir=str(folder), split="train")
    found: Labels = {}
    for row in data:
        stem = next(s for s in sizes if Path(row["image"].filename).stem == s)
        assert row["synthetic"] is stem.startswith("synthetic")
        assert row["image"].size[::-1] == sizes[stem]
        height, width = sizes[stem]
        objects = row["objects"]
        found[stem] = [
            (name, np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T)
            for name, runs in zip(objects["category"], objects["counts"], strict=True)
        ]
    return found


def with_datumaro(folder: Path, kind: str, sizes: dict[str, tuple[int, int]]) -> Labels:
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    data = Dataset.import_from(str(folder), kind)
    names = [label.name for label in data.categories()[AnnotationType.label]]
    found: Labels = {}
    for item in data:
        stem = Path(item.id).name
        labels: list[tuple[str, Mask]] = []
        for annotation in item.annotations:
            if annotation.type == AnnotationType.mask and names[annotation.label] not in ("background", "good"):
                labels.append((names[annotation.label], np.asarray(annotation.image).astype(bool)))
            elif annotation.type == AnnotationType.polygon:
                raise AssertionError("a polygon where masks were written")
        found[stem] = labels
    return {stem: found.get(stem, []) for stem in sizes}


def with_labelme(folder: Path, sizes: dict[str, tuple[int, int]]) -> Labels:
    from labelme.utils.shape import shape_to_mask

    found: Labels = {}
    for file in sorted((folder / "images").glob("*.json")):
        content = json.loads(file.read_text())
        assert content["flags"]["synthetic"] is file.stem.startswith("synthetic")
        groups: dict[int, tuple[str, Mask]] = {}
        for shape in content["shapes"]:
            mask = np.asarray(shape_to_mask(sizes[file.stem], shape["points"], shape["shape_type"]))
            groups[shape["group_id"]] = shape["label"], mask | groups.get(shape["group_id"], ("", mask))[1]
        found[file.stem] = list(groups.values())
    return found


def with_label_studio(folder: Path, sizes: dict[str, tuple[int, int]]) -> Labels:
    from label_studio_sdk.converter.brush import decode_rle

    found: Labels = {}
    for task in json.loads((folder / "tasks.json").read_text()):
        stem = Path(task["data"]["image"]).stem
        assert task["data"]["synthetic"] is stem.startswith("synthetic")
        found[stem] = [
            (r["value"]["brushlabels"][0], np.reshape(decode_rle(r["value"]["rle"]), (*sizes[stem], 4))[..., 3] > 0)
            for r in task["annotations"][0]["result"]
        ]
    return found


def with_ultralytics(folder: Path, sizes: dict[str, tuple[int, int]]) -> Labels:
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset, polygon2mask

    data = check_det_dataset(str(folder / "data.yaml"), autodownload=False)
    found: Labels = {}
    for label in YOLODataset(img_path=data["train"], data=data, task="segment").labels:
        stem = Path(label["im_file"]).stem
        height, width = sizes[stem]
        found[stem] = [
            (data["names"][int(kind)], polygon2mask((height, width), [(ring * (width, height)).reshape(-1)]) > 0)
            for kind, ring in zip(label["cls"].reshape(-1), label["segments"], strict=True)
        ]
    return found


def with_pillow(folder: Path, sizes: dict[str, tuple[int, int]]) -> Labels:
    from PIL import Image

    names = dict(line.split(": ", 1) for line in (folder / "classes.txt").read_text().splitlines())
    found: Labels = {}
    for stem in sizes:
        values = np.asarray(Image.open(folder / "masks" / f"{stem}.png"))
        found[stem] = [(names[str(value)], values == value) for value in np.unique(values[values > 0])]
    return found


def readers(
    out: Path, truth: Labels, sizes: dict[str, tuple[int, int]]
) -> list[tuple[str, str, str, Callable[[], Labels]]]:
    """Return format, package, what is compared, and how it is opened."""
    polygons, coco, yolo = out / "coco-polygons", out / "coco", out / "yolo"
    return [
        ("coco", "pycocotools", "instance", lambda: with_pycocotools(coco / "annotations.json")),
        ("coco-polygons", "pycocotools", "instance", lambda: with_pycocotools(polygons / "annotations.json")),
        ("fiftyone", "pycocotools", "instance", lambda: with_pycocotools(out / "fiftyone" / "labels.json")),
        (
            "coco",
            "supervision",
            "instance",
            lambda: with_supervision(
                lambda d: d.from_coco(str(coco / "images"), str(coco / "annotations.json"), force_masks=True), sizes
            ),
        ),
        (
            "coco-polygons",
            "supervision",
            "instance, within 1 px",
            lambda: with_supervision(
                lambda d: d.from_coco(str(polygons / "images"), str(polygons / "annotations.json"), force_masks=True),
                sizes,
            ),
        ),
        (
            "yolo",
            "supervision",
            "class, within 1 px",
            lambda: with_supervision(
                lambda d: d.from_yolo(
                    str(yolo / "images" / "train"),
                    str(yolo / "labels" / "train"),
                    str(yolo / "data.yaml"),
                    force_masks=True,
                ),
                sizes,
            ),
        ),
        ("yolo", "ultralytics", "class", lambda: with_ultralytics(yolo, sizes)),
        ("voc", "supervision", "boxes", lambda: boxes_with_supervision(out / "voc", truth)),
        ("voc", "datumaro", "class", lambda: with_datumaro(out / "voc", "voc_segmentation", sizes)),
        ("masks", "pillow", "class", lambda: with_pillow(out / "masks", sizes)),
        ("mvtec", "datumaro", "defects", lambda: with_datumaro(out / "mvtec", "mvtec_segmentation", sizes)),
        ("labelme", "labelme", "instance", lambda: with_labelme(out / "labelme", sizes)),
        ("cvat", "datumaro", "instance", lambda: with_datumaro(out / "cvat", "cvat", sizes)),
        ("label-studio", "label-studio-sdk", "instance", lambda: with_label_studio(out / "label-studio", sizes)),
        ("fiftyone", "fiftyone", "instance", lambda: with_fiftyone(out / "fiftyone", sizes)),
        ("imagefolder", "datasets", "instance", lambda: with_datasets(out / "imagefolder", sizes)),
    ]


def read_all(out: Path, only: str | None) -> int:
    logging.disable(logging.WARNING)
    truth, sizes = read_truth(out)
    num_failed = 0
    print("| format | reader | images | instances | compared by | least IoU |\n|---|---|---|---|---|---|")
    for name, package, by, open_it in readers(out, truth, sizes):
        if only not in (None, package):
            continue
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        stdout = sys.stdout
        try:
            with open(os.devnull, "w") as sys.stdout:
                found = open_it()
        except Exception as error:
            sys.stdout = stdout
            print(f"| {name} | {package} {version} | | | | {type(error).__name__}: {str(error)[:200]} |")
            num_failed += 1
            continue
        finally:
            sys.stdout = stdout
        missing = set(truth) - set(found)
        kind, _, tolerance = by.partition(", ")
        least = 0.0 if missing else least_iou(found, truth, sizes, by="instance" if kind == "boxes" else kind)
        print(f"| {name} | {package} {version} | {len(found)} | {sum(map(len, found.values()))} | {by} | {least:.3f} |")
        num_failed += not is_within_1_px(found, truth, sizes) if tolerance and not missing else least < 1
    return num_failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write")
    write.add_argument("config", type=Path)
    write.add_argument("out", type=Path)
    read = commands.add_parser("read")
    read.add_argument("out", type=Path)
    read.add_argument("--reader", help="only this package")
    given = parser.parse_args()
    if given.command == "write":
        write_all(given.config, given.out)
    else:
        sys.exit(min(1, read_all(given.out, given.reader)))


if __name__ == "__main__":
    main()
