"""Second table: more of the same kinds."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from .common import (
    class_named,
    coco,
    each_annotation,
    each_image,
    first_outline,
    mask_folders,
    nothing,
    per_class,
    plain_rows,
    rle,
    table,
    yolo,
)
from .kinds import Case, Read, Refused
from .makers import CLASSES, SIZE_HW, Made, Shot, coco_of, encoded, index_map, mask_png, raster, shots, write_images


def nfd_names(made: Made) -> str:
    """File names with decomposed letters on disk, composed ones in the JSON."""
    content = shots()
    for shot in content:
        name = unicodedata.normalize("NFD", f"prüf-{shot.name}.png")
        made.write_image(name, encoded(shot.pixels), {n: shot.mask(n) for n, _ in shot.instances})
    made.write_json(
        "annotations.json",
        coco_of(content, file_name=lambda shot: unicodedata.normalize("NFC", f"prüf-{shot.name}.png")),
    )
    return "annotations.json"


def turned(made: Made) -> str:
    """JPEG files whose EXIF says half a turn; annotations are of the upright picture."""
    content = shots()
    for shot in content:
        exif = Image.Exif()
        exif[0x0112] = 3
        data = encoded(np.ascontiguousarray(shot.pixels[::-1, ::-1]), "JPEG", quality=95, exif=exif)
        made.write_image(f"{shot.name}.jpg", data, {n: shot.mask(n) for n, _ in shot.instances})
    made.write_json("annotations.json", coco_of(content, file_name=lambda shot: f"{shot.name}.jpg"))
    return "annotations.json"


def pages(made: Made) -> str:
    """TIFF files of two pages."""
    content = shots()
    for shot in content:
        buffer = io.BytesIO()
        first = Image.fromarray(shot.pixels)
        first.save(buffer, "TIFF", save_all=True, append_images=[Image.fromarray(255 - shot.pixels)])
        made.write_image(f"{shot.name}.tif", buffer.getvalue(), {n: shot.mask(n) for n, _ in shot.instances})
    made.write_json("annotations.json", coco_of(content, file_name=lambda shot: f"{shot.name}.tif"))
    return "annotations.json"


def depths_mixed(made: Made) -> str:
    """Some 8-bit, some 16-bit files in one set."""
    content = shots()
    for number, shot in enumerate(content):
        pixels = shot.pixels[..., 0] if number % 2 else (shot.pixels[..., 0].astype(np.uint16) * 12)
        made.write_image(f"{shot.name}.png", encoded(pixels), {n: shot.mask(n) for n, _ in shot.instances})
    made.write_json("annotations.json", coco_of(content))
    return "annotations.json"


def same_names(made: Made) -> str:
    """COCO with equal base names in two folders."""
    content = shots()
    for number, shot in enumerate(content):
        made.write_image(
            f"line{number % 2}/{number // 2:03d}.png",
            encoded(shot.pixels),
            {n: shot.mask(n) for n, _ in shot.instances},
        )
    places = {shot.name: f"line{number % 2}/{number // 2:03d}.png" for number, shot in enumerate(content)}
    made.write_json("annotations.json", coco_of(content, file_name=lambda shot: places[shot.name]))
    return "annotations.json"


def other_machine(made: Made) -> str:
    """Absolute paths of the machine where it was labelled."""
    return coco(nothing, name="/home/anna/labels/upload/1/{}.png")(made)


def subsets(made: Made) -> str:
    """One COCO file per subset beside images/."""
    content = shots()
    write_images(made, content, folder="images/")
    for subset, some in (
        ("train", content[:6] + content[8:9]),
        ("val", [content[6], content[9]]),
        ("test", [content[7], content[10]]),
    ):
        value = coco_of(some)
        value["categories"] = [{"id": 1, "name": "scratch"}, {"id": 2, "name": "dent"}]
        names = {c["id"]: c["name"] for c in coco_of(some)["categories"]}
        for annotation in value["annotations"]:
            annotation["category_id"] = 1 + CLASSES.index(names[annotation["category_id"]])
        made.write_json(f"annotations/instances_{subset}.json", value)
    return "."


def labelme(made: Made) -> str:
    """A JSON of labelme beside every image."""
    for shot in shots():
        made.write_image(f"{shot.name}.png", encoded(shot.pixels), {n: shot.mask(n) for n, _ in shot.instances})
        shapes = [
            {
                "label": n,
                "points": np.reshape(ring, (-1, 2)).tolist(),
                "group_id": None,
                "shape_type": "polygon",
                "flags": {},
            }
            for n, ring in shot.instances
        ]
        made.write_json(
            f"{shot.name}.json",
            {
                "version": "5.4.1",
                "flags": {},
                "shapes": shapes,
                "imagePath": f"{shot.name}.png",
                "imageData": None,
                "imageHeight": SIZE_HW[0],
                "imageWidth": SIZE_HW[1],
            },
        )
    return "."


def voc(made: Made) -> str:
    """Pascal VOC with class and object masks as palette PNGs, 255 along borders."""
    for shot in shots():
        made.write_image(
            f"JPEGImages/{shot.name}.jpg",
            encoded(shot.pixels, "JPEG", quality=95),
            {n: shot.mask(n) for n, _ in shot.instances},
        )
        for folder, labels in (
            ("SegmentationClass", index_map(shot)),
            ("SegmentationObject", (index_map(shot) > 0).astype(np.uint8)),
        ):
            image = Image.fromarray(labels)
            image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 753 + [224, 224, 192][:3])
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            made.write(f"{folder}/{shot.name}.png", buffer.getvalue())
        objects = "".join(
            f"<object><name>{n}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
            for n, _ in shot.instances
        )
        made.write(
            f"Annotations/{shot.name}.xml", f"<annotation><filename>{shot.name}.jpg</filename>{objects}</annotation>"
        )
    made.write("labels.txt", "__background__\nscratch\ndent\n")
    return "."


def cvat_xml(made: Made) -> str:
    """CVAT for images 1.1."""
    content = shots()
    write_images(made, content, folder="images/")
    rows: list[str] = []
    for number, shot in enumerate(content):
        shapes = "".join(
            f'<polygon label="{n}" source="manual" occluded="0" '
            f'points="{";".join(f"{x:.2f},{y:.2f}" for x, y in np.reshape(ring, (-1, 2)))}" z_order="0"/>'
            for n, ring in shot.instances
        )
        rows.append(
            f'<image id="{number}" name="{shot.name}.png" width="{SIZE_HW[1]}" height="{SIZE_HW[0]}">{shapes}</image>'
        )
    made.write(
        "annotations.xml",
        f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{"".join(rows)}</annotations>',
    )
    return "."


def label_studio(made: Made) -> str:
    """Label Studio's own JSON: tasks with polygons in percent."""
    content = shots()
    write_images(made, content, folder="images/")
    tasks: list[dict[str, Any]] = []
    for number, shot in enumerate(content, start=1):
        results = [
            {
                "original_width": SIZE_HW[1],
                "original_height": SIZE_HW[0],
                "image_rotation": 0,
                "type": "polygonlabels",
                "from_name": "label",
                "to_name": "image",
                "value": {
                    "points": [[x / SIZE_HW[1] * 100, y / SIZE_HW[0] * 100] for x, y in np.reshape(ring, (-1, 2))],
                    "closed": True,
                    "polygonlabels": [n],
                },
            }
            for n, ring in shot.instances
        ]
        tasks.append(
            {
                "id": number,
                "data": {"image": f"/data/upload/1/0a1b2c3d-{shot.name}.png"},
                "annotations": [{"id": number, "result": results}],
            }
        )
    for task, shot in zip(tasks, content, strict=True):
        task["data"]["image"] = f"images/{shot.name}.png"
    made.write_json("project.json", tasks)
    return "project.json"


def kolektor(made: Made) -> str:
    """KolektorSDD: one folder per part, Part0.jpg and Part0_label.bmp."""
    for number, shot in enumerate(shots()):
        folder = f"kos{number:02d}"
        made.write_image(
            f"{folder}/Part0.jpg",
            encoded(shot.pixels, "JPEG", quality=95),
            {n: shot.mask(n) for n, _ in shot.instances},
        )
        made.write(f"{folder}/Part0_label.bmp", mask_png(index_map(shot) > 0, kind="BMP"))
    return "."


def severstal(made: Made) -> str:
    """RLE in a CSV: column-major, from 1, pairs of start and length."""
    content = shots()
    rows = ["ImageId,ClassId,EncodedPixels"]
    for shot in content:
        made.write_image(
            f"train_images/{shot.name}.png", encoded(shot.pixels), {n: shot.mask(n) for n, _ in shot.instances}
        )
        for n, _ in shot.instances:
            flat = np.concatenate([[0], shot.mask(n).T.reshape(-1).astype(np.int8), [0]])
            starts, ends = np.flatnonzero(np.diff(flat) == 1) + 1, np.flatnonzero(np.diff(flat) == -1) + 1
            rows.append(
                f"{shot.name}.png,{CLASSES.index(n) + 1},"
                + " ".join(f"{s} {e - s}" for s, e in zip(starts, ends, strict=True))
            )
        if not shot.instances:
            rows.append(f"{shot.name}.png,,")
    made.write("train.csv", "\n".join(rows) + "\n")
    return "train.csv"


def one_mask_each(made: Made) -> str:
    """masks/<image>/0.png, one file per instance."""
    content = shots()
    for shot in content:
        second = [8.0, 8.0, 18.0, 8.0, 18.0, 14.0, 8.0, 14.0]
        shot.instances = [("defect", ring) for _, ring in shot.instances[:1]] + (
            [("defect", second)] if shot.instances else []
        )
    write_images(made, content, folder="images/")
    for shot in content:
        for number, (_, ring) in enumerate(shot.instances):
            made.write(f"masks/{shot.name}/{number}.png", mask_png(raster([ring], SIZE_HW)))
        if not shot.instances:
            made.write(f"masks/{shot.name}/0.png", mask_png(np.zeros(SIZE_HW, bool)))
    return "."


COLOURS = {1: (220, 20, 60), 2: (0, 90, 200)}


def colour_masks(made: Made, *, with_table: bool) -> str:
    """RGB masks, with or without the table of colours."""
    content = shots()
    write_images(made, content, folder="images/")
    for shot in content:
        picture = np.zeros((*SIZE_HW, 3), np.uint8)
        for value, colour in COLOURS.items():
            picture[index_map(shot) == value] = colour
        made.write(f"masks/{shot.name}.png", encoded(picture))
    if with_table:
        made.write(
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\nscratch:220,20,60::\ndent:0,90,200::\n",
        )
    return "."


def masks_of_values(values_of: Callable[[Shot], np.ndarray]) -> Callable[[Made], str]:
    return mask_folders(encode=lambda shot: encoded(values_of(shot)))


def no_masks(made: Made) -> str:
    """A folder of masks none of which belongs to any image."""
    content = shots()
    write_images(made, content, folder="images/")
    for shot in content:
        made.write(f"masks/other_{shot.name}_x.png", encoded(index_map(shot)))
    return "."


def spare_mask(made: Made) -> str:
    mask_folders()(made)
    made.write("masks/im99.png", encoded(index_map(shots()[0])))
    return "."


def labels_nowhere(made: Made) -> str:
    content = shots()
    write_images(made, content, folder="images/")
    made.write("data.yaml", "names: [scratch, dent]\ntrain: images\n")
    return "data.yaml"


def txt_lists(made: Made) -> str:
    """train and val as lists of image files."""
    yolo("", empty=True)(made)
    made.write("train.txt", "".join(f"./images/im{n:02d}.png\n" for n in range(8)))
    made.write("val.txt", "".join(f"./images/im{n:02d}.png\n" for n in range(8, 11)))
    made.write("data.yaml", "train: train.txt\nval: val.txt\nnames:\n  0: scratch\n  1: dent\n")
    return "data.yaml"


def classes_txt(made: Made) -> str:
    """classes.txt and no data.yaml."""
    yolo("", empty=True)(made)
    (made.root / "data.yaml").unlink()
    made.write("labels/classes.txt", "scratch\ndent\n")
    return "."


def box_labels(made: Made) -> str:
    content = shots()
    write_images(made, content, folder="images/")
    for shot in content:
        made.write(f"labels/{shot.name}.txt", "0 0.5 0.5 0.2 0.1\n" if shot.instances else "")
    made.write("data.yaml", "names: [scratch, dent]\ntrain: images\n")
    return "data.yaml"


def all_crowd(value: dict[str, Any]) -> None:
    for annotation in value["annotations"]:
        annotation["iscrowd"] = 1


def normalised(value: dict[str, Any]) -> None:
    for annotation in value["annotations"]:
        annotation["segmentation"] = [
            [v / (SIZE_HW[1] if i % 2 == 0 else SIZE_HW[0]) for i, v in enumerate(annotation["segmentation"][0])]
        ]


def boxes_only(value: dict[str, Any]) -> None:
    for annotation in value["annotations"]:
        annotation["segmentation"] = []


def flat_list(value: dict[str, Any]) -> None:
    for annotation in value["annotations"]:
        annotation["segmentation"] = annotation["segmentation"][0]


def unlisted(made: Made) -> str:
    """Two image files that no entry lists."""
    source = coco(nothing)(made)
    for shot in shots(13)[11:]:
        made.write(f"{shot.name}.png", encoded(shot.pixels))
    return source


def capitals(value: dict[str, Any]) -> None:
    for image in value["images"]:
        image["file_name"] = image["file_name"].upper()


def uppercase_masks(shot: Shot) -> str:
    return f"{shot.name}.PNG"


def comma_class(content: list[Shot]) -> str:
    rows = plain_rows(content)
    return "\n".join(row.replace(",scratch,", ',"scratch, deep",') for row in rows) + "\n"


def csv_backslashes(content: list[Shot]) -> str:
    return "\n".join(row.replace("/", "\\") for row in plain_rows(content)) + "\n"


def csv_capital_columns(content: list[Shot]) -> str:
    return "\n".join(["Filename,Mask,Class,Group", *plain_rows(content)[1:]]) + "\n"


def csv_zero_group(content: list[Shot]) -> str:
    rows = plain_rows(content)
    return (
        "\n".join([rows[0], *(row.rsplit(",", 1)[0] + f",{number // 3}" for number, row in enumerate(rows[1:]))]) + "\n"
    )


def csv_names_missing(content: list[Shot]) -> str:
    return "\n".join(row.replace("images/im03", "images/im77") for row in plain_rows(content)) + "\n"


def huge_counts(runs: list[int], text: str) -> object:
    return [2**62, 2**62, 5]


def huge_text(runs: list[int], text: str) -> object:
    return "o" * 12 + "0" + text


def extra_free(made: Made) -> str:
    """More defect-free images in a folder, two of them named like labelled ones."""
    source = coco(nothing)(made)
    for number, shot in enumerate(shots(16)[11:]):
        made.write_image(f"good/{f'im{number:02d}' if number < 2 else shot.name}.png", encoded(shot.pixels))
    return source


def values16(shot: Shot) -> np.ndarray:
    return index_map(shot).astype(np.uint16)


def ignore_border(shot: Shot) -> np.ndarray:
    labels = index_map(shot)
    labels[:2] = 255
    return labels


def instance_ids(shot: Shot) -> np.ndarray:
    labels = np.zeros(SIZE_HW, np.uint8)
    for number in range(9):
        labels[6 + 7 * number : 9 + 7 * number, 10:20] = (number + int(shot.name[2:]) * 9) % 200 + 1
    return labels


MORE: tuple[Case, ...] = (
    Case("JSON in UTF-16, big end first", "Java tools", coco(nothing, encoding="utf-16-be"), Read()),
    Case("JSON in UTF-32", "a script", coco(nothing, encoding="utf-32"), Read()),
    Case("names decomposed on disk", "macOS", nfd_names, Read()),
    Case("names in capitals in the JSON", "Windows", coco(capitals), Read(says=("lower case",))),
    Case("absolute paths of another machine", "labelled elsewhere", other_machine, Read(says=("path",))),
    Case("equal names in two folders", "two cameras", same_names, Read()),
    Case("one COCO file per subset", "train, val, test", subsets, Read(says=("split",))),
    Case("files that no entry lists", "unlabelled images", unlisted, Read(says=("2 ",))),
    Case("one flat list as outline", "a script", coco(flat_list), Read()),
    Case("normalised outlines in COCO", "a converter", coco(normalised), Refused(("normalised",))),
    Case("boxes only", "a detector's set", coco(boxes_only), Refused(("segmentation",))),
    Case("every instance a crowd", "an exporter", coco(all_crowd), Read(says=("crowd",))),
    Case("a size of zero", "an exporter", coco(each_image(width=0, height=0)), Refused(("0",))),
    Case("a size of another image", "resized images", coco(each_image(width=208, height=144)), Refused(("144x208",))),
    Case("iscrowd null", "an exporter", coco(each_annotation(lambda a: a.update(iscrowd=None))), Read()),
    Case(
        "an outline of words",
        "a script",
        coco(each_annotation(lambda a: a.update(segmentation=[["a", "b", "c", "d", "e", "f"]]))),
        Refused(("number",)),
    ),
    Case(
        "an outline far outside", "another image's", first_outline([400.0, 20, 460, 20, 460, 60]), Refused(("right",))
    ),
    Case(
        "an outline with NaN",
        "a script",
        coco(each_annotation(lambda a: a["segmentation"][0].__setitem__(0, float("nan")))),
        Refused(("finite",)),
    ),
    Case("RLE counts near 2^62", "an adversary", rle(huge_counts), Refused(("rle",))),
    Case("RLE text of huge numbers", "an adversary", rle(huge_text), Refused(("rle",))),
    Case("RLE of negative runs", "a script", rle(lambda runs, text: [-5, *runs]), Refused(("rle",))),
    Case(
        "class with an escape sequence",
        "an adversary",
        coco(class_named("\x1b[2Jcrack")),
        Read(classes=("\x1b[2Jcrack", "dent")),
    ),
    Case(
        "class with 300 letters",
        "a sentence",
        coco(class_named("long " * 60)),
        Read(classes=(("long " * 60).strip(), "dent")),
    ),
    Case("class CON", "a reserved name", coco(class_named("CON")), Read(classes=("CON", "dent"))),
    Case(
        "classes that differ in capitals",
        "Crack, crack",
        coco(lambda v: v.update(categories=[{"id": 1, "name": "Crack"}, {"id": 2, "name": "crack"}])),
        Read(classes=("Crack", "crack")),
    ),
    Case("EXIF half-turn", "a phone", turned, Read(says=("EXIF",), min_iou=0.98)),
    Case("TIFF of two pages", "a scanner", pages, Read(says=("page",))),
    Case("8 and 16 bit in one set", "two cameras", depths_mixed, Read(says=("16",))),
    Case("labelme", "a JSON beside every image", labelme, Read(layout="labelme", defect_free=3)),
    Case("Pascal VOC", "class and object masks", voc, Read(layout="VOC", classes=None)),
    Case("CVAT XML", "CVAT for images 1.1", cvat_xml, Read(layout="CVAT", defect_free=3)),
    Case("Label Studio JSON", "tasks, polygons in percent", label_studio, Read(layout="Label Studio", defect_free=3)),
    Case("KolektorSDD", "Part0_label.bmp", kolektor, Read(classes=None, defect_free=3)),
    Case("Severstal", "RLE in a CSV", severstal, Read(classes=None, defect_free=3)),
    Case(
        "one mask per instance", "masks/<image>/0.png", one_mask_each, Read(instances=16, classes=None, defect_free=3)
    ),
    Case(
        "RGB masks with labelmap.txt",
        "CVAT segmentation mask",
        lambda made: colour_masks(made, with_table=True),
        Read(defect_free=3),
    ),
    Case(
        "RGB masks without a table",
        "an exporter",
        lambda made: colour_masks(made, with_table=False),
        Refused(("colour",)),
    ),
    Case("masks of 16 bit", "indices", masks_of_values(values16), Read(classes=None, defect_free=3)),
    Case("masks with 255 as ignore", "VOC's habit", masks_of_values(ignore_border), Read(classes=None, says=("255",))),
    Case("masks of instance numbers", "each value an object", masks_of_values(instance_ids), Refused(("values",))),
    Case("masks in .PNG", "Windows", per_class(uppercase_masks), Read(images=8)),
    Case("masks in .bmp", "old tools", per_class(lambda shot: f"{shot.name}.bmp", kind="BMP"), Read(images=8)),
    Case("masks with -mask", "a habit", per_class(lambda shot: f"{shot.name}-mask.png"), Read(images=8)),
    Case("masks with _GT", "KolektorSDD2's habit", per_class(lambda shot: f"{shot.name}_GT.png"), Read(images=8)),
    Case("masks that belong to no image", "another set's", no_masks, Refused(("mask",))),
    Case("a mask without an image", "a deleted image", spare_mask, Refused(("im99",))),
    Case(
        "images without masks, asked as defect-free",
        "the import asks",
        per_class(lambda shot: f"{shot.name}.png"),
        Read(defect_free=3),
        {"unlabelled": "defect-free"},
    ),
    Case(
        "images without masks, refused",
        "the import asks",
        per_class(lambda shot: f"{shot.name}.png"),
        Refused(("3 images",)),
        {"unlabelled": "refuse"},
    ),
    Case("a comma in a class name", "CSV", table(comma_class), Read(classes=("scratch, deep", "dent"))),
    Case("backslashes in a CSV", "Windows", table(csv_backslashes), Read()),
    Case("capital columns in a CSV", "people", table(csv_capital_columns), Read()),
    Case("tabs in a CSV", "people", table(lambda content: "\n".join(plain_rows(content, sep="\t"))), Read()),
    Case(
        "CSV in UTF-16",
        "Excel's Unicode text",
        table(lambda content: "\n".join(plain_rows(content, sep="\t")).encode("utf-16")),
        Read(),
    ),
    Case("group 0 in a CSV", "a script", table(csv_zero_group), Read()),
    Case("a CSV that names an image that is not there", "a slip", table(csv_names_missing), Refused(("im77",))),
    Case("an empty CSV", "a slip", table(lambda content: ""), Refused(("csv",))),
    Case("YOLO without any label", "labels forgotten", labels_nowhere, Refused(("label",))),
    Case("YOLO labels of boxes", "a detector's set", box_labels, Refused(("box",))),
    Case("YOLO lists of files", "train.txt", txt_lists, Read(defect_free=3)),
    Case("YOLO with classes.txt alone", "LabelImg's habit", classes_txt, Read(defect_free=3)),
    Case(
        "YOLO labels with a byte-order mark",
        "Notepad",
        yolo("names: [scratch, dent]\n", empty=True, encode=lambda t: t.encode("utf-8-sig")),
        Read(defect_free=3),
    ),
    Case(
        "YOLO labels in UTF-16",
        "PowerShell",
        yolo("names: [scratch, dent]\n", empty=True, encode=lambda t: t.encode("utf-16")),
        Read(defect_free=3),
    ),
    Case("YOLO names twice the same", "a slip", yolo("names: [dent, dent]\n", empty=True), Refused(("dent",))),
    Case(
        "YOLO names in a nested alias bomb",
        "an adversary",
        yolo(
            "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: "
            "&d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f "
            "[*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nnames: *g\n",
            empty=True,
        ),
        Refused(),
        within_s=2.0,
    ),
    Case(
        "defect-free folder with names of labelled ones",
        "two folders",
        extra_free,
        Read(images=16, defect_free=8),
        {"defect_free": "good"},
    ),
    Case(
        "a JSON that ends early",
        "a full disk",
        lambda made: made.write("annotations.json", '{"images": [{"id": 1, "file_na') and "annotations.json",
        Refused(("json",)),
    ),
    Case(
        "a JSON of nothing",
        "an exporter",
        lambda made: made.write("annotations.json", "") and "annotations.json",
        Refused(("empty",)),
    ),
    Case(
        "a JSON of a list",
        "an exporter",
        lambda made: made.write("annotations.json", json.dumps([1, 2])) and "annotations.json",
        Refused(),
    ),
    Case(
        "a JSON nested 100,000 deep",
        "an adversary",
        lambda made: made.write("annotations.json", "[" * 100_000) and "annotations.json",
        Refused(),
    ),
)
